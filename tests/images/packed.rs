//! Images whose layers stay as they came: loaded without unpacking, and mounted so.

use support::{Fields, Snapshot, diff};
use unionmount::container::lowers::image_as_it_lies;
use unionmount::image::store::Store;

use crate::lab::{Image, Lab, Tar, gzip};

/// Three layers: what is deleted, what is opaque, and directories that the upper layers don't name.
pub fn image() -> Image {
    let base = Tar::new()
        .dir_of("root/", 0o700, 0)
        .dir_of("tmp/", 0o1777, 0)
        .dir_of("srv/", 0o750, 7)
        .dir("old/")
        .file("old/a", "1")
        .file("old/b", "2")
        .file("etc/motd", "welcome");
    let app = Tar::new().file("root/.profile", "x").file("srv/deep/app", "v1").file("etc/.wh.motd", "");
    let patch = Tar::new()
        .file("srv/deep/app", "v2")
        .file("old/.wh..wh..opq", "")
        .file("old/c", "3")
        .file("tmp/x", "");
    Image::new("app:1", vec![base.bytes(), app.bytes(), patch.bytes()])
}

/// The trees that are unpacked.
fn unpacked(lab: &Lab) -> usize {
    std::fs::read_dir(lab.at("store/layers")).map_or(0, Iterator::count)
}

/// What a mount of the image shows.
fn shown(lab: &Lab, how: &[&str]) -> Snapshot {
    let point = lab.at("mnt");
    std::fs::create_dir_all(&point).unwrap();
    lab.um(&[&["mount"], how, &["app:1", "mnt"]].concat()).ok();
    let tree = Snapshot::take_checked(&point);
    lab.um(&["umount", "mnt"]).ok();
    tree
}

#[test]
fn an_image_that_is_not_unpacked_mounts_to_the_same_tree() {
    support::needs_root!();
    for image in [image(), image().compressed(gzip, "+gzip")] {
        let lab = Lab::new();
        lab.write("a.tar", &image.oci().archive());
        lab.um(&["load", "--no-unpack", "a.tar"]).ok();
        assert_eq!(unpacked(&lab), 0);
        let packed = shown(&lab, &["--lazy"]);
        assert_eq!(unpacked(&lab), 0, "a mount that is lazy unpacks nothing");
        assert_eq!(lab.um(&["unpack", "app:1"]).ok().out, "");
        assert!(unpacked(&lab) >= 3);
        assert_eq!(diff(&shown(&lab, &[]), &packed, &Fields::tree()), "");
        // Then the trees serve, which are there.
        assert_eq!(diff(&shown(&lab, &["--lazy"]), &packed, &Fields::tree()), "");
        lab.verify();
    }
}

#[test]
fn who_only_looks_at_an_image_unpacks_nothing_and_sees_the_same() {
    support::needs_root!();
    // Each directory is named, so that there is nothing to put together when they are unpacked.
    let image = || {
        let base = Tar::new().dir("etc/").file("etc/motd", "welcome").dir("srv/").file("srv/app", "v1");
        let patch =
            Tar::new().dir("etc/").file("etc/.wh.motd", "").dir("srv/").file("srv/app", "v2").dir("new/");
        Image::new("app:1", vec![base.bytes(), patch.bytes()])
    };
    for image in [image(), image().compressed(gzip, "+gzip")] {
        let lab = Lab::new();
        let other = Image::new("other:1", vec![Tar::new().file("etc/motd", "welcome").bytes()]);
        lab.write("a.tar", &image.oci().archive());
        lab.write("b.tar", &other.oci().archive());
        for archive in ["a.tar", "b.tar"] {
            lab.um(&["load", "--no-unpack", archive]).ok();
        }
        let looks = [
            "$UM layers app:1",
            "$UM layers --json app:1 | sed 's/\"path\":\"[^\"]*\",//g'",
            "$UM explain app:1 /srv/app /new /etc",
            "$UM image diff other:1 app:1",
            "$UM image diff --stat other:1 app:1",
            "rm -f got; $UM cp app:1:/srv/app got; cat got",
            "$UM cp app:1:/ - | tar -tvf - | LC_ALL=C sort",
        ];
        let looked = looks.map(|look| lab.out(look));
        assert!(looked[0].contains("step 1") && looked[5] == "v2", "{looked:?}");
        let inspected = lab.inspect("app:1");
        assert_eq!((unpacked(&lab), inspected["Unpacked"].as_str()), (0, Some("no")));
        // What inspect tells of is a lower as any other.
        let data = &inspected["GraphDriver"]["Data"];
        let lower = format!("{}:{}", data["UpperDir"].as_str().unwrap(), data["LowerDir"].as_str().unwrap());
        let told = lab.um(&["explain", "--lower", &lower, "--json", "srv/app"]).ok().out;
        assert_eq!(unpacked(&lab), 0);
        assert!(told.contains("srv/app"), "{told}");
        lab.um(&["unpack", "app:1"]).ok();
        lab.um(&["unpack", "other:1"]).ok();
        assert_eq!(lab.inspect("app:1")["Unpacked"], "yes");
        for (look, before) in looks.iter().zip(&looked) {
            assert_eq!(&lab.out(look), before, "{look}");
        }
    }
}

#[test]
fn who_looks_at_an_image_keeps_what_it_reads() {
    let lab = Lab::new();
    lab.write("a.tar", &image().oci().archive());
    lab.um(&["load", "--no-unpack", "a.tar"]).ok();
    let store = Store::open(Some(&lab.store())).unwrap();
    let looked_at = store.resolve("app:1").unwrap();
    let kept = image_as_it_lies(&store, &looked_at).unwrap();
    lab.um(&["rmi", "app:1"]);
    lab.um(&["prune", "--force", "--wait", "0"]).refused(1, &["reading from it"]);
    assert_eq!(kept.sources().unwrap().len(), 3);
    drop(kept);
    lab.um(&["rmi", "app:1"]);
    lab.um(&["prune", "--force"]).ok();
    let gone = image_as_it_lies(&store, &looked_at).unwrap_err().to_string();
    assert!(gone.contains("no image"), "{gone}");
}

/// One layer has a tree and no blob, another a blob and no tree.
#[test]
fn where_a_blob_is_missing_the_trees_serve() {
    let lab = Lab::new();
    let image = image();
    lab.write("a.tar", &image.oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    let layers = lab.um(&["layers", "app:1"]).ok().out;
    let at =
        |what: &str, tar: usize| lab.at(&format!("store/{what}/{}", crate::lab::sha256(&image.tars[tar])));
    std::fs::remove_file(at("blobs/sha256", 0)).unwrap();
    std::fs::remove_dir_all(at("layers", 2)).unwrap();
    assert_eq!(lab.um(&["layers", "app:1"]).ok().out, layers);
    assert!(at("layers", 2).join("diff").exists());
}

#[test]
fn trees_are_taken_away_and_come_again() {
    let lab = Lab::new();
    lab.write("a.tar", &image().oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    let saved = lab.out("$UM save app:1 | sha256sum");
    assert!(unpacked(&lab) >= 3);
    lab.um(&["prune", "--force"]).ok();
    assert!(unpacked(&lab) >= 3, "an image keeps its trees");
    let told = lab.um(&["prune", "--force", "--unpacked"]).ok().out;
    assert!(told.contains("0 images, ") && told.contains("0 blobs"), "{told}");
    assert_eq!(unpacked(&lab), 0);
    assert_eq!(lab.out("$UM save app:1 | sha256sum"), saved);
    lab.verify();
    lab.um(&["unpack", "app:1"]).ok();
    lab.um(&["create", "--name", "c", "app:1"]).ok();
    let before = unpacked(&lab);
    lab.um(&["prune", "--force", "--unpacked"]).ok();
    assert_eq!(unpacked(&lab), before, "a container keeps them");
    lab.um(&["mount", "--lazy", "c", "mnt"]).refused(2, &["c is a container", "create --lazy"]);
    lab.um(&["rm", "c"]).ok();
    lab.um(&["prune", "--force", "--unpacked"]).ok();
    assert_eq!(unpacked(&lab), 0);
}

#[test]
fn a_tree_that_is_mounted_stays() {
    support::needs_root!();
    let lab = Lab::new();
    lab.write("a.tar", &image().oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    std::fs::create_dir(lab.at("mnt")).unwrap();
    lab.um(&["mount", "app:1", "mnt"]).ok();
    let before = unpacked(&lab);
    lab.um(&["prune", "--force", "--unpacked"]).ok();
    assert_eq!(unpacked(&lab), before);
    assert_eq!(std::fs::read_to_string(lab.at("mnt/srv/deep/app")).unwrap(), "v2");
    lab.um(&["umount", "mnt"]).ok();
}

/// What somebody does in a container that is mounted on `m`.
const WORK: &str =
    "mkdir -p m; $UM mount NAME m; echo v3 >> m/srv/deep/app; rm m/old/c; mkdir m/new; echo x > m/new/x
    chmod 600 m/root/.profile; mv m/tmp m/moved; ln m/new/x m/srv/second; $UM umount m";

#[test]
fn a_lazy_container_is_as_any_other_and_nothing_is_unpacked_for_it() {
    support::needs_root!();
    for image in [image(), image().compressed(gzip, "+gzip")] {
        let lab = Lab::new();
        lab.write("a.tar", &image.oci().archive());
        lab.um(&["load", "--no-unpack", "a.tar"]).ok();
        let state = || lab.out("$UM images --format '{{.Unpacked}}' app:1");
        assert_eq!(state(), "no");
        lab.um(&["create", "--lazy", "--name", "lazy", "app:1"]).ok();
        lab.out(&WORK.replace("NAME", "lazy"));
        let changes = lab.out("$UM diff lazy");
        assert!(changes.contains("/srv/deep/app") && changes.contains("/old/c"), "{changes}");
        let patch = lab.out("$UM diff --stat lazy");
        let exported = lab.out("$UM export lazy | tar -tf - | LC_ALL=C sort");
        lab.um(&["commit", "lazy", "by-lazy:1"]).ok();
        lab.out("$UM cp lazy:/srv/deep/app got; grep -q v3 got; $UM inspect lazy; $UM ps -a");
        let told = lab.um(&["layers", "lazy"]).ok().out;
        assert!(told.contains("step 2"), "{told}");
        assert_eq!((unpacked(&lab), state()), (0, "no".into()));
        // As one over trees.
        lab.um(&["create", "--name", "eager", "app:1"]).ok();
        assert_eq!(state(), "yes");
        lab.out(&WORK.replace("NAME", "eager"));
        assert_eq!(lab.out("$UM diff eager"), changes);
        assert_eq!(lab.out("$UM diff --stat eager"), patch);
        assert_eq!(lab.out("$UM export eager | tar -tf - | LC_ALL=C sort"), exported);
        lab.um(&["commit", "eager", "by-eager:1"]).ok();
        assert_eq!(lab.out("$UM image diff by-eager:1 by-lazy:1"), "");
        // It needs no trees, and its layers stay.
        lab.um(&["rm", "eager"]).ok();
        lab.um(&["prune", "--force", "--unpacked"]).ok();
        assert_eq!((unpacked(&lab), state()), (0, "no".into()));
        lab.um(&["rmi", "app:1"]).refused(1, &["lazy"]);
        assert_eq!(lab.out("$UM mount lazy m; cat m/srv/deep/app; $UM umount m"), "v2v3");
        lab.verify();
    }
}

#[test]
fn a_lazy_container_is_not_made_of_a_layer_that_is_not_what_the_image_says() {
    let lab = Lab::new();
    let image = image().compressed(gzip, "+gzip");
    lab.write("a.tar", &image.oci().archive());
    lab.um(&["load", "--no-unpack", "a.tar"]).ok();
    let blob = lab.at(&format!("store/blobs/sha256/{}", crate::lab::sha256(&image.blobs[0].0)));
    std::fs::write(blob, gzip(&Tar::new().file("evil", "").bytes())).unwrap();
    lab.um(&["create", "--lazy", "app:1"])
        .refused(1, &["its content has the digest", "where the image says"]);
    assert_eq!(lab.um(&["ps", "-aq"]).ok().out, "");
}
