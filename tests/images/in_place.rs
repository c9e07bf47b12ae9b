//! Images where they lie: layouts and archives are lowers, layer by layer, without a store.

use std::fs;
use std::path::PathBuf;

use support::{Fields, Snapshot, diff};

use crate::lab::{Files, Image, Lab, Tar, docker, gzip, oci, sha256, zstd};
use crate::packed::image;

/// What is mounted from these lowers.
#[track_caller]
fn shown(lab: &Lab, lowers: &[&str]) -> Snapshot {
    mount(lab, lowers);
    let tree = Snapshot::take_checked(&lab.at("mnt"));
    lab.um(&["umount", "mnt"]).ok();
    tree
}

#[track_caller]
fn mount(lab: &Lab, lowers: &[&str]) {
    fs::create_dir_all(lab.at("mnt")).unwrap();
    let mut args = Vec::new();
    for lower in lowers {
        args.extend(["--lower", lower]);
    }
    // What the daemon keeps is this place's alone.
    let ended = support::cli::run(
        lab.command(&[&args[..], &["mnt"]].concat()).env("XDG_CACHE_HOME", lab.at("cache")),
    );
    ended.ok();
}

#[track_caller]
fn refused(lab: &Lab, lower: &str, said: &[&str]) {
    fs::create_dir_all(lab.at("mnt")).unwrap();
    lab.um(&["--lower", lower, "mnt"]).refused(1, said);
}

#[test]
fn an_image_where_it_lies_shows_what_its_unpacked_mount_shows() {
    support::needs_root!();
    for image in [image(), image().compressed(gzip, "+gzip"), image().compressed(zstd, "+zstd")] {
        let lab = Lab::new();
        image.oci().write(&lab.at("layout"));
        lab.write("oci.tar", &image.oci().archive());
        lab.write("docker.tar", &image.docker().archive());
        lab.write("docker.tar.gz", &gzip(&image.docker().archive()));
        lab.um(&["load", "oci.tar"]).ok();
        fs::create_dir(lab.at("mnt")).unwrap();
        lab.um(&["mount", "app:1", "mnt"]).ok();
        let expected = Snapshot::take_checked(&lab.at("mnt"));
        lab.um(&["umount", "mnt"]).ok();
        for lower in
            ["oci:layout", "oci:layout:app:1", "oci:oci.tar", "oci.tar", "docker.tar", "docker.tar.gz"]
        {
            assert_eq!(diff(&expected, &shown(&lab, &[lower]), &Fields::tree()), "", "{lower}");
        }
        // Each layer for itself is found again under the name that `status` gives it.
        let each = ["oci.tar,layer=3", "oci.tar,layer=2", "oci.tar,layer=1"];
        assert_eq!(diff(&expected, &shown(&lab, &each), &Fields::tree()), "");
        // As an archive it is a tree of files.
        mount(&lab, &["oci.tar,tar"]);
        assert!(lab.at("mnt/index.json").is_file());
        lab.um(&["umount", "mnt"]).ok();
    }
}

#[test]
fn what_skopeo_podman_and_this_program_write_is_mounted_where_it_lies() {
    support::needs_root!();
    support::needs_program!("skopeo");
    let lab = Lab::new();
    lab.write("a.tar", &image().oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    lab.out(
        "$UM save -o saved.tar app:1; $UM save --format docker -o saved.docker.tar app:1
         skopeo copy -q --dest-compress-format zstd docker-archive:saved.docker.tar oci:layout:app:1
         skopeo copy -q oci:layout:app:1 oci-archive:by-skopeo.tar:app:1
         skopeo copy -q docker-archive:saved.docker.tar docker-archive:by-skopeo.docker.tar:app:1",
    );
    let expected = shown(&lab, &["a.tar"]);
    for lower in [
        "saved.tar",
        "saved.docker.tar",
        "oci:layout",
        "by-skopeo.tar",
        "by-skopeo.docker.tar",
        "oci:store:app:1",
    ] {
        assert_eq!(diff(&expected, &shown(&lab, &[lower]), &Fields::tree()), "", "{lower}");
    }
}

/// An image whose only layer has that content in a file.
fn small(name: &str, content: &str) -> Image {
    Image::new(name, vec![Tar::new().file("which", content).bytes()])
}

#[test]
fn which_image_is_meant_is_asked_where_there_are_several() {
    let lab = Lab::new();
    let (one, two) = (small("one:1", "1"), small("example.org/two:2", "2"));
    oci(&[one.clone(), two.clone()]).write(&lab.at("layout"));
    lab.write("both.tar", &docker(&[one.clone(), two.clone()]).archive());
    let which = |lower: &str| {
        mount(&lab, &[lower]);
        let which = fs::read_to_string(lab.at("mnt/which")).unwrap();
        lab.um(&["umount", "mnt"]).ok();
        which
    };
    for (lower, expected) in [
        ("oci:layout:one:1", "1"),
        ("oci:layout:example.org/two:2", "2"),
        ("oci:layout:2", "2"),
        ("oci:both.tar:one:1", "1"),
        (&format!("oci:layout@sha256:{}", two.id()), "2"),
        (&format!("oci:both.tar@sha256:{}", one.id()), "1"),
    ] {
        assert_eq!(which(lower), expected, "{lower}");
    }
    for lower in ["oci:layout", "both.tar"] {
        refused(&lab, lower, &["several images", "oci:PLACE:NAME", "one:1, example.org/two:2"]);
    }
    refused(&lab, "oci:layout:three", &["holds no image \"three\"", "one:1"]);
    refused(&lab, "oci:nowhere", &["lower layer 1 nowhere", "No such file"]);
    refused(&lab, "both.tar,layer=1", &["several images"]);
    // A directory that is called so goes before an image.
    fs::create_dir_all(lab.at("oci:layout")).unwrap();
    fs::write(lab.at("oci:layout/which"), "directory").unwrap();
    assert_eq!(which("oci:layout"), "directory");
}

#[test]
fn of_images_for_several_platforms_the_one_that_runs_here_is_taken() {
    let lab = Lab::new();
    let mut other = small("app:1", "foreign");
    other.config["architecture"] = "s390x".into();
    let own = small("app:1", "own");
    let mut files = Files::default();
    let mut index = Vec::new();
    for (image, architecture) in [(&other, "s390x"), (&own, "amd64")] {
        for (name, content) in image.oci().0 {
            if name == "index.json" {
                let mut list: serde_json::Value = serde_json::from_slice(&content).unwrap();
                let mut entry = list["manifests"][0].take();
                entry["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture });
                index.push(entry);
            } else {
                files.put(&name, content);
            }
        }
    }
    files.put("index.json", serde_json::json!({ "schemaVersion": 2, "manifests": index }).to_string());
    files.write(&lab.at("layout"));
    for lower in ["oci:layout", "oci:layout:app:1"] {
        mount(&lab, &[lower]);
        assert_eq!(fs::read_to_string(lab.at("mnt/which")).unwrap(), "own");
        lab.um(&["umount", "mnt"]).ok();
    }
}

/// The blobs of the layers, bottom first.
fn blobs(lab: &Lab, image: &Image, place: &str) -> Vec<PathBuf> {
    let path = |(blob, _): &(Vec<u8>, String)| lab.at(&format!("{place}/blobs/sha256/{}", sha256(blob)));
    image.blobs.iter().map(path).collect()
}

#[test]
fn a_blob_that_is_not_what_the_image_says_is_not_mounted() {
    for image in [image(), image().compressed(gzip, "+gzip")] {
        let lab = Lab::new();
        image.oci().write(&lab.at("layout"));
        lab.write("a.tar", &image.oci().archive());
        lab.um(&["load", "--no-unpack", "a.tar"]).ok();
        let digest = "its content has the digest sha256:";
        for place in ["layout", "store"] {
            // Another tar, which is as well-formed.
            let other = Tar::new().file("etc/motd", "evil").bytes();
            let other = if image.blobs[1].1.is_empty() { other } else { gzip(&other) };
            fs::write(&blobs(&lab, &image, place)[1], other).unwrap();
        }
        refused(&lab, "oci:layout", &[digest, "where the image says sha256:", "get the image anew"]);
        fs::create_dir_all(lab.at("mnt")).unwrap();
        lab.um(&["mount", "--lazy", "app:1", "mnt"]).refused(1, &[digest, "blobs/sha256/"]);
        // Docker's archives promise diff ids alone.
        let mut files = image.docker();
        let name = files.0.iter().find(|(name, _)| name.ends_with("layer.tar")).unwrap().0.clone();
        files.put(&name, Tar::new().file("x", "").bytes());
        lab.write("d.tar", &files.archive());
        refused(&lab, "d.tar", &[digest, "d.tar,layer=1"]);
    }
}

#[test]
fn a_blob_that_is_changed_while_it_is_mounted_is_an_error_for_what_is_read() {
    support::needs_root!();
    let lab = Lab::new();
    let image = Image::new(
        "app:1",
        vec![Tar::new().file("f", "x".repeat(9000)).file("g", "y".repeat(200_000)).bytes()],
    );
    image.oci().write(&lab.at("layout"));
    fs::create_dir(lab.at("mnt")).unwrap();
    lab.um(&["--log-file", "log", "--lower", "oci:layout", "mnt"]).ok();
    let blob = &blobs(&lab, &image, "layout")[0];
    let times = fs::metadata(blob).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(blob).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"z", 20_000).unwrap();
    file.set_modified(times).unwrap();
    assert!(fs::read(lab.at("mnt/g")).unwrap_err().raw_os_error() == Some(libc::EIO));
    assert!(fs::read_to_string(lab.at("log")).unwrap().contains("changed since it was opened"));
    lab.um(&["umount", "mnt"]).ok();
    refused(&lab, "oci:layout", &["its content has the digest"]);
}

#[test]
fn a_copy_of_a_layer_elsewhere_is_not_decoded_again() {
    let lab = Lab::new();
    // Larger than what isn't worth being kept.
    let noise: String = (0..60_000u32).map(|at| sha256(&at.to_le_bytes())).collect();
    let layer = Tar::new().file("f", noise).bytes();
    let image = Image::new("app:1", vec![layer]).compressed(gzip, "+gzip");
    image.oci().write(&lab.at("layout"));
    let read = |lower: &str| {
        mount(&lab, &[lower]);
        let read = fs::read(lab.at("mnt/f")).unwrap();
        lab.um(&["umount", "mnt"]).ok();
        read
    };
    let first = read("oci:layout");
    let kept = "stat -c '%i %n' cache/unionmount/archives/*.data";
    let data = lab.out(kept);
    assert_eq!(data.lines().count(), 1, "{data}");
    lab.out("cp -r layout copy");
    lab.write("a.tar", &image.oci().archive());
    for lower in ["oci:copy", "a.tar"] {
        assert_eq!(read(lower), first);
        assert_eq!(lab.out(kept), data, "{lower} was decoded again");
    }
}

#[test]
fn layers_are_called_by_their_image_and_step() {
    let lab = Lab::new();
    lab.write("a.tar", &image().compressed(gzip, "+gzip").oci().archive());
    image().oci().write(&lab.at("layout"));
    for (what, name) in
        [("a.tar", "a.tar, step 2"), ("oci:layout", "layout, step 2"), ("oci:layout:app:1", "layout, step 0")]
    {
        let told = lab.um(&["layers", what]).ok().out;
        assert!(told.contains(name), "{told}");
    }
    let told = lab.um(&["explain", "a.tar", "etc/motd"]);
    assert!(told.out.contains("a.tar, step 1") && told.out.contains('✗'), "{told:?}");
    let told = lab.um(&["explain", "oci:layout", "/srv/deep/app"]).ok().out;
    assert!(told.contains("layout, step 2"), "{told}");
    let told = lab.um(&["explain", "--lower", "a.tar", "srv/deep/app"]).ok().out;
    assert!(told.contains("a.tar, step 2"), "{told}");
    // A mount tells where each of them lies.
    mount(&lab, &["a.tar"]);
    let told = lab.um(&["status", "mnt"]).ok().out;
    assert!(told.contains("a.tar,layer=2"), "{told}");
    let told = lab.um(&["layers", "mnt"]).ok().out;
    assert!(told.contains("a.tar, step 2"), "{told}");
    lab.um(&["umount", "mnt"]).ok();
}

/// Changes a byte of a file by a store into a mapping of it, and sets the time of its content back.
fn store_into(lab: &Lab, file: &std::path::Path, at: usize) {
    let script = "import mmap, os, sys
path, at = sys.argv[1], int(sys.argv[2])
with open(path, 'r+b') as file:
    before = os.fstat(file.fileno())
    with mmap.mmap(file.fileno(), 0) as mapped:
        mapped[at] = ord('z')
    os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
";
    lab.write("store.py", script.as_bytes());
    lab.out(&format!("python3 store.py {} {at}", file.display()));
}

#[test]
fn what_is_stored_into_a_mapped_blob_is_never_shown() {
    support::needs_root!();
    support::needs_program!("python3");
    let lab = Lab::new();
    let tar = Tar::new().file("f", "x".repeat(9000)).file("g", "y".repeat(900_000)).file("h", "w").bytes();
    let image = Image::new("app:1", vec![tar]);
    image.oci().write(&lab.at("layout"));
    lab.write("a.tar", &image.oci().archive());
    let blob = blobs(&lab, &image, "layout").remove(0);
    let inside = fs::read(lab.at("a.tar")).unwrap().windows(9).position(|run| run == b"yyyyyyyyy").unwrap();
    for (lower, file, at) in
        [("oci:layout", blob.clone(), 500_000), ("a.tar", lab.at("a.tar"), inside + 500_000)]
    {
        let good = fs::read(&file).unwrap();
        fs::create_dir_all(lab.at("mnt")).unwrap();
        lab.um(&["--log-file", "log", "--lower", lower, "mnt"]).ok();
        assert_eq!(fs::read(lab.at("mnt/f")).unwrap(), "x".repeat(9000).into_bytes());
        store_into(&lab, &file, at);
        let read = fs::read(lab.at("mnt/g")).map(|read| read.iter().all(|&byte| byte == b'y'));
        assert_eq!(read.map_err(|error| error.raw_os_error()), Err(Some(libc::EIO)), "{lower}");
        // Nothing else is believed any more, though it be put back.
        fs::write(&file, &good).unwrap();
        let read = fs::read(lab.at("mnt/h"));
        assert_eq!(read.map_err(|error| error.raw_os_error()), Err(Some(libc::EIO)), "{lower}");
        let log = fs::read_to_string(lab.at("log")).unwrap();
        assert!(log.contains("changed since it was opened"), "{log}");
        lab.um(&["umount", "mnt"]).ok();
    }
}

#[test]
fn an_image_of_more_layers_than_can_be_mounted_is_refused_before_one_is_read() {
    let lab = Lab::new();
    let image = Image::new("app:1", vec![Tar::new().file("f", "x").bytes(); 501]);
    let mut files = image.oci();
    // It isn't even looked for.
    files.0.retain(|(name, _)| !name.ends_with(&sha256(&image.tars[0])));
    files.write(&lab.at("layout"));
    refused(&lab, "oci:layout", &["501 layers", "500"]);
}

/// The lowers of the mount on `mnt`, as it names them itself.
fn named(lab: &Lab) -> Vec<String> {
    let told: serde_json::Value =
        serde_json::from_str(&lab.um(&["status", "--json", "mnt"]).ok().out).unwrap();
    let told = if told.is_array() { told[0].clone() } else { told };
    let layers = told["layers"].as_array().unwrap().iter().filter(|layer| layer["layer"] != 0);
    layers.map(|layer| layer["directory"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_name_that_a_mount_gives_a_layer_leads_to_that_layer() {
    let lab = Lab::new();
    let of = |name: &str, content: &str| {
        let base = Tar::new().file("base", content).file("which", "base");
        Image::new(name, vec![base.bytes(), Tar::new().file("which", content).bytes()])
    };
    let images = [of("one:1", "1"), of("example.org/two:2", "2")];
    oci(&images).write(&lab.at("layout"));
    lab.write("oci:,both.tar", &oci(&images).archive());
    lab.write("docker.tar", &docker(&images).archive());
    lab.write("single.tar", &images[1].oci().archive());
    for lower in [
        "oci:layout:two:2".to_owned(),
        format!("oci:layout@sha256:{}", images[1].id()),
        r"oci:oci\:,both.tar:2".to_owned(),
        "oci:docker.tar:example.org/two:2".to_owned(),
        "single.tar".to_owned(),
    ] {
        mount(&lab, &[&lower.replace("layout:two", "layout:example.org/two")]);
        let names = named(&lab);
        assert_eq!(names.len(), 2, "{names:?}");
        let told = lab.um(&["layers", "mnt"]).ok().out;
        assert!(told.contains("step 1"), "{told}");
        lab.um(&["umount", "mnt"]).ok();
        for (name, file, content) in [(&names[0], "which", "2"), (&names[1], "base", "2")] {
            let escaped = if name.starts_with("oci:") { name.clone() } else { name.replace(':', r"\:") };
            mount(&lab, &[&escaped]);
            assert_eq!(named(&lab).first(), Some(name));
            let files = fs::read_dir(lab.at("mnt")).unwrap().count();
            assert_eq!(files, if file == "which" { 1 } else { 2 }, "{name}");
            assert_eq!(fs::read_to_string(lab.at("mnt").join(file)).unwrap(), content, "{name}");
            lab.um(&["umount", "mnt"]).ok();
        }
    }
}

#[test]
fn one_layer_of_an_image_is_added_to_a_mount() {
    let lab = Lab::new();
    let base = Tar::new().file("base", "b").bytes();
    let image = |name: &str, content: &str| {
        Image::new(name, vec![base.clone(), Tar::new().file("which", content).bytes()])
    };
    lab.write("single.tar", &image("app:1", "1").oci().archive());
    lab.write("both.tar", &docker(&[image("one:1", "1"), image("two:2", "2")]).archive());
    fs::create_dir_all(lab.at("dir")).unwrap();
    for (layer, content) in [("single.tar,layer=2", "1"), ("oci:both.tar:two:2,layer=2", "2")] {
        mount(&lab, &["dir"]);
        lab.um(&["layers", "add", layer, "mnt"]).ok();
        assert_eq!(fs::read_to_string(lab.at("mnt/which")).unwrap(), content, "{layer}");
        assert!(!lab.at("mnt/base").exists());
        let name = &named(&lab)[0];
        lab.um(&["layers", "remove", name, "mnt"]).ok();
        assert_eq!(named(&lab).len(), 1);
        lab.um(&["umount", "mnt"]).ok();
    }
    // Of all its layers none is read: that one of them is damaged isn't told.
    let mut files = image("app:1", "1").oci();
    files.put(&format!("blobs/sha256/{}", sha256(&base)), "damaged");
    lab.write("damaged.tar", &files.archive());
    mount(&lab, &["dir"]);
    for whole in ["damaged.tar", "oci:damaged.tar"] {
        lab.um(&["layers", "add", whole, "mnt"]).refused(1, &["one layer is added at a time", ",layer=N"]);
    }
    lab.um(&["umount", "mnt"]).ok();
}

#[test]
fn layers_that_lie_outside_or_are_no_files_are_refused() {
    let lab = Lab::new();
    let image = small("app:1", "1");
    lab.write("x", &image.tars[0]);
    for outside in ["../x", "../../x", "/x", "d/../../x"] {
        let mut files = image.docker();
        let mut list: serde_json::Value = serde_json::from_slice(files.get("manifest.json")).unwrap();
        list[0]["Layers"][0] = outside.into();
        files.put("manifest.json", list.to_string());
        lab.write("a.tar", &files.archive());
        refused(&lab, "a.tar", &[outside, "is missing"]);
        fs::create_dir_all(lab.at("dir/d")).unwrap();
        files.write(&lab.at("dir"));
        refused(&lab, "oci:dir", &[outside]);
    }
    image.oci().write(&lab.at("layout"));
    let blob = &blobs(&lab, &image, "layout")[0];
    let make = |make: &str| lab.out(&format!("rm -f {0}; {make} {0}", blob.display()));
    make("mkfifo");
    refused(&lab, "oci:layout", &["it is no regular file"]);
    make("ln -s /dev/zero");
    refused(&lab, "oci:layout", &["blobs/sha256"]);
    make("ln -s ../../../x");
    refused(&lab, "oci:layout", &["blobs/sha256"]);
}

#[test]
fn names_command_no_terminal() {
    let lab = Lab::new();
    let place = "a\u{1b}[2J\u{7}.tar";
    lab.write(place, &small("app:1", "1").docker().archive()[..513]);
    for lower in [place.to_owned(), format!("oci:{place}"), format!("{place},layer=1")] {
        fs::create_dir_all(lab.at("mnt")).unwrap();
        let told = lab.um(&["--lower", &lower, "mnt"]).refused(1, &[r"a\u{1b}[2J\u{7}.tar"]).err;
        assert!(!told.contains(['\u{1b}', '\u{7}']), "{told:?}");
    }
}
