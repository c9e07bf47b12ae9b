//! What can be loaded, from where, and how often it is read.

use serde_json::json;

use crate::lab::{Files, Image, Lab, Tar, docker, gzip, oci, sha256, three_layers, zstd};
use support::{Content, Mount, Options, Snapshot};

/// The image is there, its layers are its diff ids, its tree is right, and the store is sound.
#[track_caller]
fn is_loaded(lab: &Lab, image: &Image) {
    let shown = lab.inspect(&image.names[0]);
    assert_eq!(shown["Id"], format!("sha256:{}", image.id()));
    assert_eq!(shown["RootFS"]["Layers"], image.config["rootfs"]["diff_ids"]);
    let layers = lab.layers(&image.names[0]);
    assert_eq!(layers.len(), image.tars.len());
    assert_eq!(std::fs::read(layers[0].join("srv/app")).unwrap(), b"v2");
    assert_eq!(std::fs::read(layers[1].join("srv/app")).unwrap(), b"v1");
    lab.verify();
}

#[test]
fn every_form_from_file_directory_and_pipe() {
    let image = three_layers();
    let forms: Vec<(&str, Files)> = vec![
        ("oci", image.oci()),
        ("oci-gzip", image.clone().compressed(gzip, "+gzip").oci()),
        ("oci-zstd", image.clone().compressed(zstd, "+zstd").oci()),
        ("docker", image.docker()),
        ("docker-gzip", image.clone().compressed(gzip, "").docker()),
    ];
    for (name, files) in forms {
        let lab = Lab::new();
        files.write(&lab.at("layout"));
        lab.write("plain.tar", &files.archive());
        lab.write("gz.tar.gz", &gzip(&files.archive()));
        lab.write("zst.tar.zst", &zstd(&files.archive()));
        for (at, how) in [
            "$UM load layout",
            "$UM load plain.tar",
            "$UM load -i gz.tar.gz",
            "$UM load zst.tar.zst",
            "$UM load < plain.tar",
            "cat plain.tar | $UM load",
            "cat gz.tar.gz | $UM load -",
            "cat zst.tar.zst | $UM load",
        ]
        .iter()
        .enumerate()
        {
            let root = format!("store{at}");
            let out = lab.out(&format!("export UNIONMOUNT_ROOT={root}; {how}"));
            assert_eq!(out, "Loaded image: app:1", "{name}: {how}");
            let inspected = lab.out(&format!("$UM --version >/dev/null; UNIONMOUNT_ROOT={root} $UM inspect -f '{{{{.Id}}}} {{{{json .RootFS.Layers}}}}' app:1"));
            assert_eq!(
                inspected,
                format!("sha256:{} {}", image.id(), image.config["rootfs"]["diff_ids"]),
                "{name}: {how}"
            );
            assert!(
                lab.out(&format!("UNIONMOUNT_ROOT={root} $UM verify")).ends_with("all is well"),
                "{name}: {how}"
            );
            // Nothing is left of what was spooled.
            assert_eq!(lab.out(&format!("ls {root}/tmp")), "", "{name}: {how}");
        }
    }
}

#[test]
fn what_is_loaded_mounts_to_the_right_tree() {
    support::needs_root!();
    let lab = Lab::new();
    lab.write("a.tar", &three_layers().oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    is_loaded(&lab, &three_layers());
    let mountpoint = lab.at("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    let mount = Mount::new(&Options { lowers: lab.layers("app:1"), ..Options::default() }, &mountpoint);
    let tree = Snapshot::take_checked(&mountpoint);
    let paths: Vec<_> = tree.entries.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(paths, ["", "bin", "bin/sh", "etc", "etc/app.conf", "etc/os", "srv", "srv/app"]);
    assert_eq!(tree.get("srv/app").unwrap().content, Content::Bytes(b"v2".to_vec()));
    mount.unmount();
}

#[test]
fn layers_that_are_there_are_not_read_again() {
    let lab = Lab::new();
    let first = three_layers();
    lab.write("a.tar", &first.docker().archive());
    lab.um(&["load", "a.tar"]).ok();
    let before = lab.state();
    // The same again changes nothing, from whatever form.
    lab.um(&["load", "a.tar"]).ok();
    lab.write("b.tar", &first.clone().compressed(gzip, "+gzip").oci().archive());
    lab.um(&["load", "b.tar"]).ok();
    assert_eq!(lab.state(), before);

    // Another image on the same layers: the archive need not even hold them.
    let mut tars = first.tars.clone();
    tars.push(Tar::new().file("new", "x").bytes());
    let second = Image::new("app:2", tars);
    let mut files = second.docker();
    files.0.retain(|(name, _)| !first.tars.iter().any(|tar| name.starts_with(&sha256(tar))));
    lab.write("c.tar", &files.archive());
    lab.um(&["load", "c.tar"]).ok();
    assert_eq!(lab.layers("app:2")[1..], lab.layers("app:1"));
    lab.verify();
}

#[test]
fn docker_saves_a_layer_twice_as_a_link() {
    let lab = Lab::new();
    let layer = Tar::new().file("f", "1").bytes();
    let empty = Tar::new().bytes();
    let image = Image::new("twice:1", vec![empty.clone(), layer, empty.clone()]);
    let ids = ["a".repeat(64), "b".repeat(64), "c".repeat(64)];
    let names: Vec<String> = ids.iter().map(|id| format!("{id}/layer.tar")).collect();
    let archive = Tar::new()
        .file(&names[0], &image.tars[0])
        .file(&names[1], &image.tars[1])
        .link(tar::EntryType::Symlink, &names[2], &format!("../{}", names[0]))
        .file(&format!("{}.json", image.id()), image.config.to_string())
        .file(
            "manifest.json",
            json!([{
                "Config": format!("{}.json", image.id()), "RepoTags": ["twice:1"], "Layers": names,
            }])
            .to_string(),
        );
    lab.write("a.tar", &archive.bytes());
    assert_eq!(lab.out("cat a.tar | $UM load -q"), format!("sha256:{}", image.id()));
    // A mount takes each layer once; the config has it twice.
    assert_eq!(lab.layers("twice:1").len(), 2);
    assert_eq!(lab.inspect("twice:1")["RootFS"]["Layers"].as_array().unwrap().len(), 3);
    lab.verify();
}

#[test]
fn several_images_and_several_names() {
    let lab = Lab::new();
    let mut one = three_layers();
    one.names = vec!["one:1".into(), "registry.example/team/one:latest".into()];
    let two = Image::new("two", vec![Tar::new().file("f", "2").bytes()]);
    let mut nameless = Image::new("x", vec![Tar::new().file("f", "3").bytes()]);
    nameless.names.clear();
    for (at, files) in
        [oci(&[one.clone(), two.clone(), nameless.clone()]), docker(&[one, two, nameless])].iter().enumerate()
    {
        lab.write("a.tar", &files.archive());
        let ended = lab.um(&["load", "a.tar", "--root", &format!("store{at}")]).ok();
        let lines: Vec<&str> = ended.out.lines().collect();
        assert_eq!(
            lines[..3],
            [
                "Loaded image: one:1",
                "Loaded image: registry.example/team/one:latest",
                "Loaded image: two:latest"
            ]
        );
        assert!(lines[3].starts_with("Loaded image ID: sha256:"), "{ended:?}");
        let ended =
            lab.um(&["images", "--root", &format!("store{at}"), "--format", "{{.Repository}}:{{.Tag}}"]).ok();
        let mut names: Vec<&str> = ended.out.lines().collect();
        names.sort();
        assert_eq!(names, ["<none>:<none>", "one:1", "registry.example/team/one:latest", "two:latest"]);
    }
}

#[test]
fn a_name_goes_to_the_image_that_comes_last() {
    let lab = Lab::new();
    let old = three_layers();
    let new = Image::new("app:1", vec![Tar::new().file("f", "new").bytes()]);
    for image in [&old, &new] {
        lab.write("a.tar", &image.oci().archive());
        let ended = lab.um(&["load", "a.tar"]);
        assert_eq!(ended.code, Some(0));
        assert_eq!(ended.err.contains("was the name of image"), std::ptr::eq(image, &new), "{ended:?}");
    }
    assert_eq!(
        lab.images(),
        [format!("<none>:<none> {}", &old.id()[..12]), format!("app:1 {}", &new.id()[..12])]
    );
    lab.verify();
}

#[test]
fn of_several_platforms_the_one_that_runs_here() {
    let lab = Lab::new();
    let arch = std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64");
    let own = Image::new("x", vec![Tar::new().file("f", "own").bytes()]);
    let other = Image::new("x", vec![Tar::new().file("f", "other").bytes()]);
    let mut files = oci(&[own.clone(), other.clone()]);
    let index: serde_json::Value = serde_json::from_slice(files.get("index.json")).unwrap();
    let mut entries = index["manifests"].clone();
    for (at, arch) in [arch.as_str(), "s390x"].iter().enumerate() {
        entries[at]["platform"] = json!({ "os": "linux", "architecture": arch });
        entries[at].as_object_mut().unwrap().remove("annotations");
    }
    let inner = json!({ "schemaVersion": 2, "manifests": entries }).to_string();
    files.put(&format!("blobs/sha256/{}", sha256(inner.as_bytes())), &inner);
    let mut outer = crate::lab::descriptor("application/vnd.oci.image.index.v1+json", inner.as_bytes());
    outer["annotations"] = json!({ "io.containerd.image.name": "docker.io/library/multi:3", "org.opencontainers.image.ref.name": "3" });
    files.put("index.json", json!({ "schemaVersion": 2, "manifests": [outer] }).to_string());
    lab.write("a.tar", &files.archive());
    assert_eq!(lab.out("$UM load a.tar"), "Loaded image: multi:3");
    assert_eq!(lab.inspect("multi:3")["Id"], format!("sha256:{}", own.id()));
    // Docker saves the index with one platform's blobs alone.
    files.0.retain(|(name, _)| !name.ends_with(&sha256(&own.tars[0])) && !name.ends_with(&own.id()));
    let manifest = entries[0]["digest"].as_str().unwrap()[7..].to_owned();
    files.0.retain(|(name, _)| !name.ends_with(&manifest));
    lab.write("b.tar", &files.archive());
    lab.um(&["load", "b.tar"]);
    assert_eq!(lab.inspect("multi:3")["Id"], format!("sha256:{}", other.id()));
}

#[test]
fn a_hundred_and_twenty_seven_layers() {
    let lab = Lab::new();
    let tars = (0..127).map(|at| Tar::new().file(&format!("f{at}"), format!("{at}")).bytes()).collect();
    let image = Image::new("many", tars).compressed(gzip, "+gzip");
    lab.write("a.tar", &image.oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    assert_eq!(lab.layers("many").len(), 127);
    assert_eq!(lab.um(&["history", "-q", "many"]).ok().out.lines().count(), 127);
    if support::Privilege::current() == support::Privilege::Root {
        let mountpoint = lab.at("mnt");
        std::fs::create_dir(&mountpoint).unwrap();
        let mount = Mount::new(&Options { lowers: lab.layers("many"), ..Options::default() }, &mountpoint);
        assert_eq!(std::fs::read_dir(&mountpoint).unwrap().count(), 127);
        mount.unmount();
    }
}

#[test]
fn importing_a_tar_and_a_directory() {
    let lab = Lab::new();
    lab.write("tree/etc/os", b"debian");
    lab.write("rootfs.tar.gz", &gzip(&Tar::new().dir("etc/").file("etc/os", "debian").bytes()));
    let changes = r#"-c 'CMD ["sh", "-l"]' -c 'ENTRYPOINT=["/init"]' -c 'CMD ["x"]' -c "ENV A=1 B='two words'" -c 'WORKDIR /srv' -c 'USER 7:8' -c 'EXPOSE 80' -c 'LABEL k=v' -c 'VOLUME /data' -c 'STOPSIGNAL SIGINT'"#;
    for source in ["tree", "rootfs.tar.gz", "- < rootfs.tar.gz"] {
        let (source, redirect) = source.split_once(' ').unwrap_or((source, ""));
        let id = lab.out(&format!("$UM import {changes} -m 'by hand' {source} imported:1 {redirect}"));
        let shown = lab.inspect("imported:1");
        assert_eq!(shown["Id"], id);
        let config = &shown["Config"];
        assert_eq!(config["Cmd"], json!(["x"]));
        assert_eq!(config["Entrypoint"], json!(["/init"]));
        assert_eq!(config["Env"], json!(["A=1", "B=two words"]));
        assert_eq!(
            (&config["WorkingDir"], &config["User"], &config["StopSignal"]),
            (&json!("/srv"), &json!("7:8"), &json!("SIGINT"))
        );
        assert_eq!(
            (&config["ExposedPorts"], &config["Labels"], &config["Volumes"]),
            (&json!({"80/tcp": {}}), &json!({"k": "v"}), &json!({"/data": {}}))
        );
        assert_eq!(shown["Size"], 6);
        assert_eq!(std::fs::read(lab.layers("imported:1")[0].join("etc/os")).unwrap(), b"debian");
        assert!(lab.um(&["history", "imported:1"]).ok().out.contains("by hand"));
    }
    lab.um(&["import", "-c", "RUN x", "tree"]).refused(2, &["RUN", "CMD"]);
    lab.um(&["import", "missing"]).refused(1, &["missing", "No such file"]);
    lab.um(&["import", ".", "x"]).refused(1, &["the store itself"]);
    lab.um(&["prune", "-f"]).ok();
    lab.verify();
}

#[test]
fn large_images_take_little_memory() {
    let lab = Lab::new();
    // Four layers, two of them large, one with the largest window that is taken.
    lab.out("mkdir t && head -c 8M /dev/urandom > t/noise && truncate -s 70M t/zeros && tar -C t -cf big.tar noise zeros");
    let big = std::fs::read(lab.at("big.tar")).unwrap();
    let small = Tar::new().file("f", "1").bytes();
    let mut image = Image::new("big", vec![big.clone(), small.clone(), big, small]);
    image.blobs[0] = (gzip(&image.tars[0]), "+gzip".into());
    let window = |window: u32| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window).unwrap();
        std::io::Write::write_all(&mut encoder, &image.tars[2]).unwrap();
        encoder.finish().unwrap()
    };
    image.blobs[2] = (window(25), "+zstd".into());
    lab.write("a.tar", &image.oci().archive());
    for input in ["a.tar", "-"] {
        let stdin = std::fs::File::open(lab.at("a.tar")).unwrap();
        let mut command = lab.command(&["load", "-q", "--root", &format!("store{input}"), input]);
        let mut child = command.stdin(stdin).stdout(std::process::Stdio::null()).spawn().unwrap();
        let mut peak = 0;
        while child.try_wait().unwrap().is_none() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            // What the process itself takes; a debug build's code alone is twenty megabytes more.
            // In the instant of its start it has the memory of this one, and its name.
            let started = status.starts_with("Name:\tunionmount");
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).filter(|_| started);
            let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            peak = peak.max(kilobytes.unwrap_or(0));
            std::thread::yield_now();
        }
        assert!(child.wait().unwrap().success());
        println!("{input}: {peak} KiB");
        assert!(peak > 1000 && peak < 56 << 10, "{input}: {peak} KiB");
    }
}

/// A merged directory shows its topmost layer's attributes, which must not be those that unpacking made up.
#[test]
fn directories_that_a_layer_only_implies_are_as_below() {
    let lab = Lab::new();
    let base = Tar::new()
        .dir_of("./", 0o711, 8)
        .dir_of("etc/", 0o750, 5)
        .dir_of("etc/x/", 0o1770, 7)
        .file("etc/x/old", "1")
        .dir_of("gone/", 0o700, 9)
        .file("gone/old", "1");
    let app = Tar::new().file("etc/x/new", "2").file("fresh/deep/f", "2").dir("srv/").file("srv/f", "2");
    // A parent that its tar describes after what is in it, and one that takes the place of another.
    let top = Tar::new()
        .file("etc/x/newer", "3")
        .dir_of("etc/", 0o701, 6)
        .file(".wh.gone", "")
        .file("gone/new", "3");
    let image = Image::new("app:1", vec![base.bytes(), app.bytes(), top.bytes()]);
    lab.write("a.tar", &image.oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    std::fs::create_dir(lab.at("mnt")).unwrap();
    lab.um(&["mount", "app:1", "mnt"]).ok();
    let told =
        lab.out("cd mnt && stat -c '%n %a %u:%g' . etc etc/x fresh fresh/deep srv gone && ls etc/x gone");
    lab.um(&["create", "--name", "c", "app:1"]).ok();
    let stays = lab
        .out("at=$(\"$UM\" mount c) && stat -c %a $at && touch $at/etc/x/mine && stat -c '%a %u' $at/etc/x");
    let diff = lab.um(&["diff", "c"]).ok().out;
    let layers = lab.um(&["layers", "app:1"]).ok().out;
    lab.um(&["rm", "-f", "c"]).ok();
    lab.out("umount mnt || fusermount3 -u mnt");
    assert_eq!(
        told,
        ". 711 8:8\netc 701 6:6\netc/x 1770 7:7\nfresh 755 0:0\nfresh/deep 755 0:0\nsrv 755 0:0\ngone 755 0:0\n\
         etc/x:\nnew\nnewer\nold\n\ngone:\nnew"
    );
    assert_eq!(stays, "711\n1770 7");
    assert!(diff.contains("A /etc/x/mine\n") && !diff.contains("gone"), "{diff}");
    assert!(layers.contains("only imply"), "{layers}");
    // Four trees, and none when the image has gone.
    let trees = || std::fs::read_dir(lab.store().join("layers")).unwrap().count();
    assert_eq!(trees(), 4);
    lab.verify();
    lab.um(&["rmi", "app:1"]).ok();
    lab.um(&["prune", "-f"]).ok();
    assert_eq!(trees(), 0);
}

/// Such an image needs no more than its layers when what they imply is what is below.
#[test]
fn what_is_implied_rightly_costs_no_layer() {
    let lab = Lab::new();
    let base = Tar::new().dir("./").dir("etc/").file("etc/old", "1");
    let image = Image::new("app:1", vec![base.bytes(), Tar::new().file("etc/new", "2").bytes()]);
    lab.write("a.tar", &image.oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    assert_eq!(lab.layers("app:1").len(), 2);
    lab.verify();
}
