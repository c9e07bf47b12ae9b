//! Broken and hostile input: one clear error, and the store as it was.

use serde_json::{Value, json};

use crate::lab::{Files, Image, Lab, Tar, gzip, oci, sha256, three_layers, zstd};
use support::LoopFilesystem;

/// Loads an archive that is refused, in a store with an image, from a file and from a pipe.
#[track_caller]
fn refused(what: &str, archive: &[u8], parts: &[&str]) {
    refused_with(what, archive, "", parts);
}

#[track_caller]
fn refused_with(what: &str, archive: &[u8], arguments: &str, parts: &[&str]) {
    let lab = Lab::new();
    let there = Image::new("there:1", vec![Tar::new().file("f", "there").bytes()]);
    lab.write("there.tar", &there.oci().archive());
    lab.um(&["load", "there.tar"]).ok();
    let before = lab.state();
    lab.write("bad.tar", archive);
    for how in ["bad.tar", "< bad.tar", "- < <(cat bad.tar)"] {
        let ended = lab.sh(&format!("$UM load {arguments} {how}"));
        assert_eq!(ended.err.lines().count(), 1, "{what}: {how}: {ended:?}");
        println!("{what}: {}", ended.err.trim());
        ended.refused(1, parts);
        assert_eq!(lab.state(), before, "{what}: {how}");
    }
}

/// Twists the documents of a good image: its manifest, and with it the index.
fn twisted(image: &Image, twist: impl Fn(&mut Value)) -> Vec<u8> {
    let mut files = image.oci();
    let mut index: Value = serde_json::from_slice(files.get("index.json")).unwrap();
    let old = index["manifests"][0]["digest"].as_str().unwrap()[7..].to_owned();
    let mut manifest: Value = serde_json::from_slice(files.get(&format!("blobs/sha256/{old}"))).unwrap();
    twist(&mut manifest);
    let text = manifest.to_string();
    index["manifests"][0]["digest"] = json!(format!("sha256:{}", sha256(text.as_bytes())));
    index["manifests"][0]["size"] = json!(text.len());
    files.put(&format!("blobs/sha256/{}", sha256(text.as_bytes())), text);
    files.put("index.json", index.to_string());
    files.archive()
}

/// A good image with one file of its layout replaced.
fn with(mut files: Files, name: &str, content: &[u8]) -> Vec<u8> {
    files.put(name, content);
    files.archive()
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(bytes))
}

#[test]
fn truncated_archives() {
    let image = three_layers();
    for (what, archive) in [("oci", image.oci().archive()), ("docker", image.docker().archive())] {
        // Before the end of the last file, and within a header.
        for cut in [archive.len() / 2 / 512 * 512, archive.len() / 3, 700] {
            refused(&format!("{what} cut at {cut}"), &archive[..cut], &[]);
        }
    }
    let compressed = gzip(&image.oci().archive());
    refused("gzip cut", &compressed[..compressed.len() - 20], &[]);
    let compressed = zstd(&image.oci().archive());
    refused("zstd cut", &compressed[..compressed.len() - 20], &[]);
    refused("nothing", b"", &["holds no archive"]);
    refused("no tar", b"this is no archive of any kind, but some text", &[]);
    refused("xz that is none", b"\xfd7zXZ\0\0\0\0", &[]);
    refused(
        "another tar",
        &Tar::new().file("etc/passwd", "root").bytes(),
        &["index.json", "manifest.json", "import"],
    );
    refused("old docker", &Tar::new().file("repositories", "{}").bytes(), &["before 1.10"]);
}

#[test]
fn digests_and_sizes_that_do_not_match() {
    let image = three_layers();
    let compressed = image.clone().compressed(gzip, "+gzip");
    let mut flipped = image.tars[1].clone();
    *flipped.last_mut().unwrap() ^= 1;
    refused(
        "a flipped bit",
        &with(image.oci(), &blob(&image.tars[1]), &flipped),
        &["layer 2 of 3", "has the digest"],
    );
    let mut longer = image.tars[1].clone();
    longer.extend([0; 512]);
    refused("a longer blob", &with(image.oci(), &blob(&image.tars[1]), &longer), &["layer 2 of 3", "larger"]);
    let shorter = &image.tars[1][..image.tars[1].len() - 512];
    refused(
        "a shorter blob",
        &with(image.oci(), &blob(&image.tars[1]), shorter),
        &["layer 2 of 3", "bytes instead of"],
    );
    let mut flipped = compressed.blobs[2].0.clone();
    flipped[30] ^= 0x55;
    refused(
        "damaged gzip",
        &with(compressed.oci(), &blob(&compressed.blobs[2].0), &flipped),
        &["layer 3 of 3"],
    );
    let cut = &compressed.blobs[2].0[..compressed.blobs[2].0.len() - 9];
    refused(
        "gzip that ends early",
        &with(compressed.oci(), &blob(&compressed.blobs[2].0), cut),
        &["layer 3 of 3"],
    );
    let config = image.config.to_string();
    refused(
        "another config",
        &with(image.oci(), &blob(config.as_bytes()), b"{}"),
        &["blob sha256:", "has the digest"],
    );
    refused(
        "another config in a docker archive",
        &with(
            image.docker(),
            &format!("{}.json", image.id()),
            config.replace("somebody", "nobody").as_bytes(),
        ),
        &[&image.id(), "has the digest"],
    );
    refused(
        "a size in the manifest",
        &twisted(&image, |m| m["layers"][0]["size"] = json!(17)),
        &["layer 1 of 3"],
    );
    refused(
        "a size of the config",
        &twisted(&image, |m| m["config"]["size"] = json!(17)),
        &["where the manifest says 17"],
    );
    let mut files = image.oci();
    let text = String::from_utf8(files.get("index.json").to_vec()).unwrap();
    let mut index: Value = serde_json::from_str(&text).unwrap();
    index["manifests"][0]["size"] = json!(1);
    files.put("index.json", index.to_string());
    refused("a size in the index", &files.archive(), &["where index.json says 1"]);
}

#[test]
fn configs_that_disagree_with_their_layers() {
    let mut fewer = three_layers();
    fewer.config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
    refused("fewer ids", &fewer.oci().archive(), &["lists 2 layers where the manifest has 3"]);
    refused("fewer ids", &fewer.docker().archive(), &["lists 2 layers where manifest.json has 3"]);
    let mut swapped = three_layers();
    swapped.config["rootfs"]["diff_ids"].as_array_mut().unwrap().swap(0, 2);
    for files in [swapped.oci(), swapped.docker(), swapped.clone().compressed(gzip, "+gzip").oci()] {
        refused("swapped ids", &files.archive(), &["layer ", "of 3", "has the diff id"]);
    }
    let mut odd = three_layers();
    odd.config["rootfs"]["diff_ids"][1] = json!("sha512:00");
    refused("another algorithm", &odd.oci().archive(), &["only sha256"]);
    odd.config["rootfs"]["diff_ids"][1] = json!("sha256:../../../etc/passwd");
    refused("no digest", &odd.oci().archive(), &["is not a digest"]);
}

#[test]
fn a_blob_of_another_image_is_not_believed() {
    // The store has a blob; a second image says that it is a layer with a diff id that is also in the store.
    let lab = Lab::new();
    let first = three_layers().compressed(gzip, "+gzip");
    lab.write("a.tar", &first.oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    let mut liar = first.clone();
    liar.blobs.swap(0, 1);
    liar.config["author"] = json!("liar");
    lab.write("b.tar", &liar.oci().archive());
    let before = lab.state();
    lab.um(&["load", "b.tar"]).refused(1, &["layer ", "has the diff id"]);
    assert_eq!(lab.state(), before);
}

#[test]
fn missing_parts() {
    let image = three_layers();
    let without = |mut files: Files, name: &str| {
        let count = files.0.len();
        files.0.retain(|(known, _)| known != name);
        assert!(files.0.len() < count);
        files.archive()
    };
    refused("no layer", &without(image.oci(), &blob(&image.tars[0])), &["layer 1 of 3", "is missing"]);
    refused(
        "no config",
        &without(image.oci(), &blob(image.config.to_string().as_bytes())),
        &[&image.id(), "is missing"],
    );
    let file = format!("{}/layer.tar", sha256(&image.tars[2]));
    refused("no layer", &without(image.docker(), &file), &[&file, "is missing"]);
    let file = format!("{}.json", image.id());
    refused("no config", &without(image.docker(), &file), &[&file, "is missing"]);
    let mut files = image.oci();
    files.put("index.json", r#"{"schemaVersion":2,"manifests":[]}"#);
    refused("no image", &files.archive(), &["holds no image"]);
    refused("no image", &with(image.docker(), "manifest.json", b"[]"), &["holds no image"]);
}

#[test]
fn media_types() {
    let image = three_layers();
    let kind = |text: &str| {
        let text = json!(text);
        twisted(&image, move |manifest| manifest["layers"][1]["mediaType"] = text.clone())
    };
    refused(
        "unknown",
        &kind("application/x-rar"),
        &["layer 2 of 3", "unknown media type \"application/x-rar\""],
    );
    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    refused("encrypted", &kind(encrypted), &["layer 2 of 3", "encrypted", "--decryption-key"]);
    let chart = "application/vnd.cncf.helm.config.v1+json";
    refused("no image", &twisted(&image, |m| m["config"]["mediaType"] = json!(chart)), &["holds no image"]);
    // Docker's types are as good, and what is stored is OCI's.
    let docker = twisted(&image, |manifest| {
        manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
        manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar");
        }
    });
    let lab = Lab::new();
    lab.write("a.tar", &docker);
    lab.um(&["load", "a.tar"]).ok();
    assert_eq!(lab.inspect("app:1")["Id"], format!("sha256:{}", image.id()));
    assert_eq!(lab.out("grep -l docker store/index.json store/blobs/sha256/* || true"), "");
    lab.verify();
}

#[test]
fn documents_that_are_none() {
    let image = three_layers();
    for (name, files) in [("index.json", image.oci()), ("manifest.json", image.docker())] {
        for (what, text) in
            [("no json", &b"{"[..]), ("another type", b"7"), ("not text", b"\xff\xfe"), ("null", b"null")]
        {
            refused(what, &with(files.clone(), name, text), &[name]);
        }
        let deep = "[".repeat(100_000);
        refused("deep", &with(files.clone(), name, deep.as_bytes()), &[name]);
        let large = format!("[\"{}\"]", "x".repeat(5 << 20));
        refused("large", &with(files, name, large.as_bytes()), &[name, "too many", "4 MiB at most"]);
    }
    refused(
        "a manifest that is none",
        &twisted(&image, |manifest| *manifest = json!({})),
        &["is no manifest"],
    );
    // Indexes within indexes within indexes.
    let mut files = image.oci();
    for _ in 0..6 {
        let index = files.get("index.json").to_vec();
        files.put(&blob(&index), &index);
        let outer = crate::lab::descriptor("application/vnd.oci.image.index.v1+json", &index);
        files.put("index.json", json!({ "schemaVersion": 2, "manifests": [outer] }).to_string());
    }
    refused("deep indexes", &files.archive(), &["nested too deeply: more than 3 deep"]);
}

#[test]
fn names_that_collide_and_names_that_are_none() {
    let one = three_layers();
    let other = Image::new("app:1", vec![Tar::new().file("f", "other").bytes()]);
    refused("oci", &oci(&[one.clone(), other.clone()]).archive(), &["app:1", "two images"]);
    refused("docker", &crate::lab::docker(&[one.clone(), other]).archive(), &["app:1", "two images"]);
    let mut odd = one;
    odd.names = vec!["No Such Name".into()];
    refused("docker", &odd.docker().archive(), &["No Such Name", "lower-case"]);
    // Members that collide: the last one counts, as for tar, and digests say whether it is right.
    let image = three_layers();
    let archive = image
        .oci()
        .0
        .iter()
        .fold(Tar::new().file("index.json", "old"), |tar, (name, content)| tar.file(name, content));
    let lab = Lab::new();
    lab.write("a.tar", &archive.bytes());
    lab.um(&["load", "a.tar"]).ok();
}

#[test]
fn archives_that_lead_out_of_themselves() {
    let image = three_layers();
    let id = image.id();
    let manifest = |layer: &str, config: &str| {
        json!([{ "Config": config, "RepoTags": ["app:1"], "Layers": [layer, layer, layer] }]).to_string()
    };
    for (what, target) in
        [("symlink", "../../../../../../etc/passwd"), ("symlink", "/etc/passwd"), ("itself", "l/layer.tar")]
    {
        let archive = Tar::new()
            .link(tar::EntryType::Symlink, "l/layer.tar", target)
            .file(&format!("{id}.json"), image.config.to_string())
            .file("manifest.json", manifest("l/layer.tar", &format!("{id}.json")));
        refused(what, &archive.bytes(), &["l/layer.tar", "is missing"]);
    }
    for outside in ["../../../../etc/passwd", "/etc/passwd"] {
        let archive = Tar::new().file("x", "").file("manifest.json", manifest("x", outside));
        refused("outside", &archive.bytes(), &[outside, "is missing"]);
    }
    let lab = Lab::new();
    lab.write("layout/manifest.json", manifest("../secret", &format!("{id}.json")).as_bytes());
    lab.write(&format!("layout/{id}.json"), image.config.to_string().as_bytes());
    lab.write("secret", &image.tars[0]);
    lab.um(&["load", "layout"]).refused(1, &["../secret"]);
    lab.out("ln -s ../secret layout/l; sed -i s,../secret,l, layout/manifest.json; mkfifo layout/fifo");
    lab.um(&["load", "layout"]).refused(1, &["layer 1 of 3"]);
    lab.out("sed -i 's,\"l\",\"fifo\",g' layout/manifest.json");
    lab.um(&["load", "layout"]).refused(1, &["layer 1 of 3"]);
    assert_eq!(lab.out("ls store/layers store/tmp | grep -v : || true"), "");
}

#[test]
fn layers_that_lead_out_of_their_root() {
    for (what, tar) in [
        ("dots", Tar::new().file("../../escape", "x")),
        ("dots within", Tar::new().dir("a/").file("a/../../../escape", "x")),
        ("a symlink", Tar::new().link(tar::EntryType::Symlink, "out", "/tmp").file("out/escape", "x")),
        ("a hardlink", Tar::new().link(tar::EntryType::Link, "l", "../../../../etc/passwd")),
        ("a whiteout of ..", Tar::new().file(".wh...", "")),
        ("a file for the root", Tar::new().file("./", "x").file("/", "x")),
    ] {
        let image = Image::new("bad:1", vec![Tar::new().file("good", "1").bytes(), tar.bytes()]);
        let lab = Lab::new();
        lab.write("a.tar", &image.docker().archive());
        let ended = lab.um(&["load", "a.tar"]);
        // Some of these are refused, some are taken in within the root; none leads out.
        if ended.code == Some(1) {
            println!("{what}: {}", ended.err.trim());
            ended.refused(1, &["layer 2 of 2"]);
            assert_eq!(lab.images().len(), 0);
        }
        let found = lab.out(&format!(
            "find {} -name escape -not -path '*/diff/*'; ls /tmp/escape /escape 2>/dev/null || true",
            lab.path().display()
        ));
        assert_eq!(found, "", "{what}");
    }
}

#[test]
fn bombs_and_limits() {
    let files = (0..200).fold(Tar::new(), |tar, at| tar.file(&format!("f{at}"), ""));
    let many = Image::new("many", vec![files.bytes()]);
    refused_with("entries", &many.oci().archive(), "--max-entries 100", &["layer 1 of 1", "100"]);
    let large = Image::new("large", vec![Tar::new().file("zeros", vec![0; 3 << 20]).bytes()])
        .compressed(gzip, "+gzip");
    refused_with("bytes", &large.oci().archive(), "--max-size 1M", &["layer 1 of 1"]);
    // Zeros behind the end of the tar.
    let mut tail = Tar::new().file("f", "").bytes();
    tail.extend(vec![0; 20 << 20]);
    let tail = Image::new("tail", vec![tail]).compressed(zstd, "+zstd");
    refused_with("a tail", &tail.oci().archive(), "--max-size 1M --max-entries 1000", &["--max-size"]);
    // A header that says how long its attributes are, and is believed by nobody.
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(300 << 20);
    header.set_path("x").unwrap();
    header.set_cksum();
    let mut bomb = header.as_bytes().to_vec();
    bomb.extend(vec![b'0'; 3 << 20]);
    refused("attributes", &bomb, &["larger than a mebibyte"]);
    refused("attributes", &gzip(&bomb), &["larger than a mebibyte"]);
}

#[test]
fn a_full_disk() {
    support::needs_root!();
    let lab = Lab::new();
    let disk = LoopFilesystem::tmpfs(lab.scratch(), "disk", 6 << 20);
    let root = disk.path().join("store");
    let root = root.to_str().unwrap();
    let small = three_layers();
    lab.write("small.tar", &small.oci().archive());
    lab.um(&["load", "--root", root, "small.tar"]).ok();
    let noise: Vec<u8> = (0..5u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let large = Image::new("large", vec![small.tars[0].clone(), Tar::new().file("noise", noise).bytes()]);
    lab.write("large.tar", &large.oci().archive());
    for how in ["large.tar", "- < large.tar", "- < <(gzip -1 < large.tar)"] {
        let ended = lab.sh(&format!("$UM load --root {root} {how}"));
        println!("{}", ended.err.trim());
        ended.refused(1, &["No space left on device"]);
        assert_eq!(lab.out(&format!("ls {root}/tmp")), "");
        assert!(lab.out(&format!("$UM verify --root {root}")).ends_with("3 layers, 5 blobs: all is well"));
    }
    lab.sh(&format!("$UM import --root {root} large.tar x")).refused(1, &["No space left on device"]);
}

/// What an archive holds instead of a tar is not printed as it is.
#[test]
fn errors_are_one_line_whatever_the_bytes() {
    let lab = Lab::new();
    let text = "root:x:0:0:root:/root:/bin/bash\ndaemon:\x1b[31m*:1:1::/\n".repeat(40);
    lab.write("a.tar", text.as_bytes());
    lab.um(&["load", "a.tar"]).refused(1, &["a.tar", "no tar"]);
    let ended = lab.um(&["inspect", "no\nsuch\x1b[31m"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
    assert!(!ended.err.contains('\x1b'), "{ended:?}");
    // A verb of container engines is told from a mount point without layers.
    lab.um(&["images", "-a"]).ok();
}

/// Zeros, by each way of compressing, take less memory than there are of them.
#[test]
fn decompression_takes_bounded_memory() {
    const READ: &str = "ulimit -d 20480; exec ./unionmount import --root store bomb x";
    let place = support::cli::Place::new();
    let of = |program: &str| format!("{{ cat head; head -c 32M /dev/zero; }} | {program} > bomb");
    std::fs::write(place.at("head"), Tar::new().file("f", "").bytes()).unwrap();
    for program in ["cat", "gzip -1", "zstd -1", "xz -0", "bzip2 -1"] {
        place.sh(&of(program)).ok();
        // What is private to the process, the stacks of its threads included.
        let ended = place.sh(READ);
        assert_eq!(ended.code, Some(0), "{program}: {ended:?}");
    }
    // A window of two gigabytes, which would be had before the first byte is written.
    place.sh(&of("zstd -1 --ultra --long=31")).ok();
    let ended = place.sh(READ);
    assert!(ended.code == Some(0) || ended.code == Some(1) && ended.err.lines().count() == 1, "{ended:?}");
}
