//! What is short is not broken, and what is broken takes nothing else with it.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use crate::lab::{Image, Lab, Tar, gzip, sha256, three_layers};
use support::LoopFilesystem;

/// A store with `app:1` of three layers and `other:1` of one, and a container of each.
struct Bench {
    lab: Lab,
    app: String,
    other: String,
}

fn bench() -> Bench {
    let lab = Lab::new();
    lab.write("a.tar", &three_layers().oci().archive());
    let other = Image::new("other:1", vec![Tar::new().file("o", "other").bytes()]);
    lab.write("b.tar", &other.oci().archive());
    lab.um(&["load", "-q", "a.tar"]).ok();
    lab.um(&["load", "-q", "b.tar"]).ok();
    let create = |name: &str, image: &str| {
        lab.um(&["create", "--name", name, "-w", "/", image, "sh"]).ok().out.trim().to_owned()
    };
    let (app, other) = (create("app", "app:1"), create("other", "other:1"));
    Bench { lab, app, other }
}

impl Bench {
    fn record(&self, id: &str) -> PathBuf {
        self.lab.at(&format!("store/containers/{id}/config.json"))
    }

    fn layers(&self) -> usize {
        fs::read_dir(self.lab.at("store/layers")).unwrap().count()
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.lab.at("store/blobs/sha256")).unwrap().count()
    }
}

/// Everything in the store but what is being made and what was set aside.
fn kept(lab: &Lab) -> String {
    lab.out("cd store && find blobs layers index.json oci-layout containers | LC_ALL=C sort")
}

#[test]
fn a_full_disk_is_no_damage() {
    support::needs_root!();
    let lab = Lab::new();
    let image = {
        let big: Vec<u8> =
            (0..600_000u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        Image::new("big:1", vec![Tar::new().file("big", big).bytes(), Tar::new().file("small", "x").bytes()])
    };
    let disk = LoopFilesystem::tmpfs(lab.scratch(), "disk", 8 << 20);
    let root = disk.path().join("store");
    lab.write("a.tar", &image.compressed(gzip, "+gzip").oci().archive());
    let um = |args: &[&str]| {
        let mut command = lab.command(args);
        support::cli::run(command.env("UNIONMOUNT_ROOT", &root))
    };
    um(&["load", "-q", "a.tar"]).ok();
    let tree = || lab.out(&format!("cd {} && find blobs layers index.json | LC_ALL=C sort", root.display()));
    let before = tree();
    // What is free is less than a trial unpacking needs.
    lab.out(&format!("cat /dev/zero >{} 2>/dev/null || true", disk.path().join("filler").display()));
    for args in [&["verify"][..], &["verify", "--repair"]] {
        let ended = um(args);
        assert_eq!(ended.code, Some(3), "{ended:?}");
        assert!(ended.out.contains("could not be checked") && !ended.out.contains("--repair"), "{ended:?}");
        assert!(
            !ended.out.contains("broken things") && ended.err.contains("could not be checked"),
            "{ended:?}"
        );
    }
    assert_eq!(tree(), before);
    // The message of a load says what can't be written, and where.
    let refused = um(&["load", "-q", "a.tar"]);
    assert!(refused.code == Some(0) || refused.err.contains("No space left"), "{refused:?}");
    fs::remove_file(disk.path().join("filler")).unwrap();
    let ended = um(&["verify"]).ok();
    assert!(ended.out.ends_with("all is well\n"), "{ended:?}");
    let saved = um(&["save", "-o", "/dev/null", "big:1"]);
    assert_eq!(saved.code, Some(0), "{saved:?}");
}

#[test]
fn a_load_on_a_full_disk_says_what_cannot_be_written() {
    support::needs_root!();
    let lab = Lab::new();
    let big: Vec<u8> = (0..600_000u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let image = Image::new("big:1", vec![Tar::new().file("big", big).bytes()]);
    lab.write("a.tar", &image.oci().archive());
    let disk = LoopFilesystem::tmpfs(lab.scratch(), "disk", 1 << 20);
    let root = disk.path().join("store");
    let mut command = lab.command(&["load", "-q", "a.tar"]);
    support::cli::run(command.env("UNIONMOUNT_ROOT", &root))
        .refused(1, &[root.join("tmp").to_str().unwrap(), "cannot write", "No space left on device"]);
}

/// A filesystem that has bytes and no inodes.
#[test]
fn without_inodes_each_verb_says_so_and_loses_nothing() {
    support::needs_root!();
    support::needs_program!("mkfs.ext4");
    let lab = Lab::new();
    let layer =
        |name: &str| (0..30).fold(Tar::new(), |tar, number| tar.file(&format!("{name}-{number}"), name));
    lab.write("a.tar", &Image::new("one:1", vec![layer("a").bytes()]).oci().archive());
    lab.write("b.tar", &Image::new("two:1", vec![layer("b").bytes()]).oci().archive());
    lab.out("truncate -s 16M disk.img && mkfs.ext4 -Fq -N 256 disk.img");
    let disk = LoopFilesystem::again(lab.scratch(), "disk");
    let root = disk.path().join("store");
    let um = |args: &[&str]| support::cli::run(lab.command(args).env("UNIONMOUNT_ROOT", &root));
    um(&["load", "-q", "a.tar"]).ok();
    for name in ["kept", "to-remove"] {
        um(&["create", "--name", name, "one:1", "sh"]).ok();
    }
    let tree = || lab.out(&format!("cd {} && find . ! -name '*lock' | LC_ALL=C sort", root.display()));
    let before = tree();
    lab.out("mkdir disk/filler && i=0 && while : 2>/dev/null >disk/filler/$i; do i=$((i + 1)); done; df --output=iavail disk | grep -qx ' *0'");
    let verbs: [&[&str]; 4] = [
        &["load", "-q", "b.tar"],
        &["create", "one:1", "sh"],
        &["commit", "kept", "three:1"],
        &["tag", "one:1", "other:1"],
    ];
    for verb in verbs {
        um(verb).refused(1, &[root.to_str().unwrap(), "No space left on device"]);
        assert_eq!(tree(), before, "{verb:?}");
    }
    let ended = um(&["verify"]);
    assert!(ended.code == Some(3) && ended.out.contains("could not be checked"), "{ended:?}");
    um(&["prune", "-f"]).ok();
    assert_eq!(tree(), before);
    // What only reads, and what gives inodes back, needs none.
    um(&["save", "-o", "saved.tar", "one:1"]).ok();
    um(&["rm", "to-remove"]).ok();
    // Those few are not enough for a layer: it is all gone again.
    let before = tree();
    um(&["load", "-q", "b.tar"]).refused(1, &["No space left on device"]);
    assert_eq!(tree(), before);
    fs::remove_dir_all(disk.path().join("filler")).unwrap();
    for verb in verbs {
        um(verb).ok();
    }
    assert!(um(&["verify"]).ok().out.ends_with("all is well\n"));
}

#[test]
fn too_few_descriptors_are_no_damage() {
    let bench = bench();
    let before = kept(&bench.lab);
    let mut seen = 0;
    for limit in 4..40 {
        let ended = bench.lab.sh(&format!("ulimit -n {limit}; \"$UM\" verify --repair"));
        match ended.code {
            Some(0) => break,
            // Too few to say anything, or to look at everything.
            Some(1 | 127) => assert!(!ended.out.contains("mend:"), "{limit}: {ended:?}"),
            Some(3) => {
                assert!(ended.out.contains("could not be checked"), "{limit}: {ended:?}");
                seen += 1;
            }
            other => panic!("{limit}: {other:?} {ended:?}"),
        }
    }
    assert!(seen > 0, "no limit was low enough");
    assert_eq!(kept(&bench.lab), before);
    // Who could open nothing could not tidy up either.
    bench.lab.um(&["prune", "-f"]).ok();
    bench.lab.verify();
}

#[test]
fn a_damaged_record_locks_nothing_else() {
    let bench = bench();
    let lab = &bench.lab;
    for content in ["", "{", "[1]", "{\"image\": 7}"] {
        fs::write(bench.record(&bench.app), content).unwrap();
        let ended = lab.um(&["ps", "-a", "--format", "{{.Names}}"]);
        assert!(
            ended.code == Some(0) && ended.out == "other\n" && ended.err.contains(&bench.app),
            "{ended:?}"
        );
        assert_eq!(lab.images().len(), 2);
        assert_eq!(lab.um(&["diff", "other"]).ok().out, "");
        // Its image stays, and so does its layers, whatever is removed.
        lab.um(&["rmi", "app:1"]).refused(1, &["needed by container", &bench.app]);
        lab.um(&["prune", "-a", "-f"]).ok();
        assert_eq!((bench.layers(), lab.images().len()), (4, 2));
        lab.um(&["rm", &bench.app[..12]]).refused(1, &["config.json", "unionmount rm -f"]);
        let ended = lab.um(&["verify"]);
        assert!(ended.code == Some(1) && ended.out.contains(&bench.app), "{ended:?}");
        assert!(ended.out.contains("verify --repair"), "{ended:?}");
    }
    let upper = lab.at(&format!("store/containers/{}/diff", bench.app));
    fs::write(upper.join("mine"), "kept").unwrap();
    let ended = lab.um(&["verify", "--repair"]);
    assert!(ended.code == Some(0) && ended.out.contains("new record"), "{ended:?}");
    assert!(ended.out.contains("store/damaged"), "{ended:?}");
    assert_eq!(lab.um(&["diff", &bench.app[..12]]).ok().out, "A /mine\n");
    let ended = lab.um(&["rm", "other", &bench.app]).ok();
    assert_eq!(ended.out, format!("other\n{}\n", bench.app));
    lab.um(&["prune", "-a", "-f"]).ok();
    assert_eq!((bench.layers(), bench.blobs()), (0, 0));
}

#[test]
fn a_container_of_unknown_image_is_removed_by_force_and_keeps_all_until_then() {
    let bench = bench();
    let lab = &bench.lab;
    fs::write(bench.record(&bench.app), "").unwrap();
    // As made by an earlier version.
    fs::remove_file(lab.at(&format!("store/containers/{}/image", bench.app))).unwrap();
    let ended = lab.um(&["rmi", "-f", "app:1"]);
    assert!(
        ended.code == Some(0) && ended.err.contains("kept") && ended.err.contains(&bench.app),
        "{ended:?}"
    );
    lab.um(&["prune", "-a", "-f"]).refused(1, &["no layers and no blobs were removed", &bench.app, "rm -f"]);
    assert_eq!(bench.layers(), 4);
    let ended = lab.um(&["verify", "--repair"]);
    assert!(ended.code == Some(1) && ended.out.contains("unionmount rm -f"), "{ended:?}");
    lab.um(&["rm", "-f", "other"]).ok();
    lab.um(&["rm", "-f", &bench.app[..12]]).ok();
    lab.um(&["prune", "-a", "-f"]).ok();
    assert_eq!((bench.layers(), bench.blobs()), (0, 0));
}

#[test]
fn what_cannot_be_removed_of_a_container_is_told() {
    support::needs_root!();
    let bench = bench();
    let lab = &bench.lab;
    let volumes = lab.at(&format!("store/containers/{}/volumes", bench.app));
    let ended =
        lab.sh(&format!("unshare -m bash -c 'mount -t tmpfs none {0} && \"$UM\" rm app'", volumes.display()));
    assert!(ended.code == Some(1) && ended.err.contains(volumes.to_str().unwrap()), "{ended:?}");
    // It is no container any more, and what is left goes when it can.
    assert_eq!(lab.um(&["ps", "-a", "--format", "{{.Names}}"]).ok().out, "other\n");
    assert!(volumes.exists());
    lab.um(&["prune", "-f"]).ok();
    assert!(!volumes.exists());
    lab.verify();
}

#[test]
fn flipped_bits_are_seen() {
    let bench = bench();
    let lab = &bench.lab;
    lab.verify();
    for name in [format!("containers/{}/config.json", bench.other), "index.json".into(), "oci-layout".into()]
    {
        let path = lab.at("store").join(&name);
        let good = fs::read(&path).unwrap();
        for at in 0..12 {
            let at = (at * good.len() * 8 / 12 + at % 8) % (good.len() * 8);
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            // Of oci-layout, the version's first number alone says something.
            let layout = serde_json::from_slice::<serde_json::Value>(&bad).ok();
            let says = name != "oci-layout"
                || !layout.is_some_and(|layout| {
                    layout["imageLayoutVersion"].as_str().is_some_and(|version| version.starts_with("1."))
                });
            let ended = lab.um(&["verify"]);
            assert_eq!(ended.code, Some(i32::from(says)), "{name}, bit {at}: {ended:?}");
        }
        fs::write(&path, &good).unwrap();
        lab.verify();
    }
}

#[test]
fn lists_are_mended() {
    let bench = bench();
    let lab = &bench.lab;
    let index = fs::read(lab.at("store/index.json")).unwrap();
    for content in ["", "{}", "{\"schemaVersion\":2,\"manifests\":[{"] {
        fs::write(lab.at("store/index.json"), content).unwrap();
        // For a look, the copy is as good.
        let ended = lab.um(&["images", "-q"]);
        assert!(ended.code == Some(0) && ended.out.lines().count() == 2, "{ended:?}");
        assert!(ended.err.contains("verify --repair"), "{ended:?}");
        let ended = lab.um(&["ps", "-aq"]);
        assert!(ended.code == Some(0) && ended.out.lines().count() == 2, "{ended:?}");
        // Told once.
        assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
        lab.um(&["tag", "app:1", "app:2"]).refused(1, &["index.json", "unionmount verify"]);
        let ended = lab.um(&["verify", "--repair"]);
        assert!(ended.code == Some(0) && ended.out.contains("mended from its copy"), "{ended:?}");
        assert_eq!(fs::read(lab.at("store/index.json")).unwrap(), index);
    }
    // Gone, with its copy, and the constant too: what lies in the store tells what images there are.
    for name in ["index.json", "index.copy.json", "oci-layout"] {
        fs::remove_file(lab.at("store").join(name)).unwrap();
    }
    let ended = lab.um(&["prune", "-a", "-f"]);
    assert!(ended.code == Some(1) && ended.err.contains("index.json"), "{ended:?}");
    let ended = lab.um(&["verify", "--repair"]);
    assert!(ended.code == Some(0) && ended.out.contains("2 images lost their names"), "{ended:?}");
    assert_eq!(lab.images().iter().filter(|line| line.starts_with("<none>:<none>")).count(), 2);
    assert_eq!(lab.um(&["diff", "app"]).ok().out, "");
    fs::write(lab.at("store/oci-layout"), "").unwrap();
    let ended = lab.um(&["images", "-q"]);
    assert!(ended.code == Some(0) && ended.out.lines().count() == 2, "{ended:?}");
    assert_eq!(lab.um(&["verify", "--repair"]).code, Some(0));
    // A layer whose record is damaged is made again.
    let record = lab.layers(&three_layers().id())[0].with_file_name("layer.json");
    for content in ["", "{\"size\":1}"] {
        fs::write(&record, content).unwrap();
        assert_eq!(lab.um(&["images", "-q"]).code, Some(0));
        let ended = lab.um(&["verify"]);
        assert!(ended.code == Some(1) && ended.out.contains("layer.json"), "{ended:?}");
        let ended = lab.um(&["diff", "app"]);
        assert!(ended.code == Some(0) && ended.err.contains("unpacked again"), "{ended:?}");
        assert_eq!(lab.um(&["verify"]).code, Some(0));
    }
}

#[test]
fn prune_waits_for_others() {
    let bench = bench();
    let lab = &bench.lab;
    // Somebody who reads a load from a pipe.
    let mut load = lab
        .command(&["load", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let archive = fs::read(lab.at("b.tar")).unwrap();
    let mut pipe = load.stdin.take().unwrap();
    pipe.write_all(&archive[..1024]).unwrap();
    let busy = || fs::read_dir(lab.at("store/tmp")).unwrap().count() > 0;
    support::cli::until("the load has begun", busy);
    lab.um(&["prune", "-f", "--wait", "0"]).refused(1, &["for 0 s", "--wait"]);
    let mut prune = lab.command(&["prune", "-f", "--wait", "30"]).stdout(Stdio::null()).spawn().unwrap();
    // What is short goes on beside it.
    assert_eq!(lab.images().len(), 2);
    pipe.write_all(&archive[1024..]).unwrap();
    drop(pipe);
    assert!(load.wait_with_output().unwrap().status.success());
    assert!(prune.wait().unwrap().success());
    lab.verify();
}

#[test]
fn prune_and_seven_others() {
    let bench = bench();
    let lab = &bench.lab;
    let ended = lab.sh(r#"for worker in 1 2 3 4 5 6 7; do
            (for round in 1 2; do
                id=$("$UM" create app:1 sh); "$UM" ps -aq >/dev/null; "$UM" rm "$id" >/dev/null
                "$UM" tag other:1 "t:$worker"; "$UM" rmi "t:$worker" >/dev/null; "$UM" images >/dev/null
            done) 2>>errors &
        done
        for round in 1 2 3 4; do "$UM" prune -f --wait 30 >/dev/null 2>>errors; done
        wait"#);
    let errors = fs::read_to_string(lab.at("errors")).unwrap();
    assert_eq!((ended.code, errors.as_str()), (Some(0), ""), "{ended:?}");
    lab.um(&["prune", "-f"]).ok();
    lab.verify();
}

#[test]
fn what_is_set_aside_can_be_had_again() {
    let bench = bench();
    let lab = &bench.lab;
    let blob = lab.at(&format!("store/blobs/sha256/{}", sha256(&three_layers().blobs[0].0)));
    let good = fs::read(&blob).unwrap();
    lab.out(&format!(
        "chmod u+w {0}; printf X | dd of={0} bs=1 seek=600 conv=notrunc status=none",
        blob.display()
    ));
    let ended = lab.um(&["verify", "--repair"]);
    assert!(ended.code == Some(1) && ended.out.contains("load the image again (app:1)"), "{ended:?}");
    let aside: Vec<PathBuf> =
        fs::read_dir(lab.at("store/damaged")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(&aside[0]).unwrap().len(), good.len());
    assert!(ended.out.contains(aside[0].to_str().unwrap()), "{ended:?}");
    lab.um(&["load", "-q", "a.tar"]).ok();
    assert_eq!(lab.um(&["verify"]).code, Some(0));
}
