//! The store itself: names, removal, several processes, sudden death, verification.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

use serde_json::json;

use crate::lab::{Image, Lab, Tar, docker, gzip, sha256, three_layers};

fn loaded(image: &Image) -> Lab {
    let lab = Lab::new();
    lab.write("a.tar", &image.oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    lab
}

/// A container's record, as `create` writes it.
fn contain(lab: &Lab, id: &str, image: &Image) {
    let record = json!({
        "id": id, "name": "web", "image": format!("sha256:{}", image.id()), "image_name": "app:1",
        "created": "2026-01-01T00:00:00Z", "settings": {},
    });
    lab.write(&format!("store/containers/{id}/config.json"), record.to_string().as_bytes());
}

fn layer_count(lab: &Lab) -> usize {
    fs::read_dir(lab.at("store/layers")).unwrap().count()
}

#[test]
fn names_and_ids() {
    let image = three_layers();
    let lab = loaded(&image);
    let id = image.id();
    lab.um(&["tag", &id[..8], "localhost/other"]).ok();
    for name in
        ["app:1", "docker.io/library/app:1", "localhost/other", &id, &id[..4], &format!("sha256:{id}")]
    {
        assert_eq!(lab.inspect(name)["Id"], format!("sha256:{id}"), "{name}");
    }
    let manifest = lab.inspect("app:1")["RepoDigests"][0].as_str().unwrap().to_owned();
    assert_eq!(lab.inspect(&manifest)["Id"], format!("sha256:{id}"));
    // What podman and buildah build has no registry but localhost, and is called by its short name.
    lab.um(&["tag", "app:1", "localhost/own:1"]).ok();
    assert_eq!(lab.inspect("own:1")["Id"], format!("sha256:{id}"));
    assert!(lab.out("$UM save own:1 | tar -xO index.json").contains("localhost/own:1"));
    assert_eq!(lab.um(&["rmi", "own:1"]).ok().out, "Untagged: localhost/own:1\n");
    lab.um(&["inspect", "docker.io/library/other"]).refused(1, &["no image"]);
    lab.um(&["history", "app"]).refused(1, &["no image \"app\"", "unionmount images"]);
    lab.um(&["inspect", "app:2"]).refused(1, &["no image and no container"]);
    lab.um(&["tag", "app:1", "UPPER"]).refused(2, &["UPPER", "lower-case"]);
    lab.um(&["tag", "app:1", &id]).refused(2, &["id of an image"]);
    // Two images whose ids begin alike: among a thousand there are some.
    let made = |at: u16| Image::new(&format!("n:{at}"), vec![Tar::new().file("f", at.to_le_bytes()).bytes()]);
    let mut begun: std::collections::HashMap<String, u16> = std::collections::HashMap::new();
    let (twice, pair) = (0..u16::MAX)
        .find_map(|at| {
            let begins = made(at).id()[..4].to_owned();
            begun.insert(begins.clone(), at).map(|first| (begins, [first, at]))
        })
        .unwrap();
    lab.write("b.tar", &docker(&pair.map(made)).archive());
    lab.um(&["load", "-q", "b.tar"]).ok();
    lab.um(&["inspect", &twice]).refused(1, &["begins the ids of several images"]);
    lab.um(&["inspect", &id[..3]]).refused(1, &["no image and no container"]);
}

#[test]
fn what_tables_and_templates_show() {
    let lab = loaded(&three_layers());
    let id = &three_layers().id()[..12];
    let table = lab.um(&["images"]).ok().out;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]);
    assert_eq!(lines[1][..3], ["app", "1", id]);
    // 6 + 7 + 2, 9 + 2, 2 bytes.
    assert!(lines[1].ends_with(&["28", "B"]), "{table}");
    assert_eq!(lab.um(&["images", "-q"]).ok().out, format!("{id}\n"));
    assert_eq!(lab.um(&["images", "app:2"]).ok().out.lines().count(), 1);
    assert_eq!(lab.um(&["images", "app"]).ok().out.lines().count(), 2);
    let row: serde_json::Value =
        serde_json::from_str(&lab.um(&["images", "--format", "json"]).ok().out).unwrap();
    assert_eq!(
        (&row["Repository"], &row["Bytes"], &row["Containers"]),
        (&json!("app"), &json!(28), &json!(0))
    );
    lab.um(&["images", "--format", "{{.Nothing}}"]).refused(2, &["Nothing", "the fields are"]);
    let shown = lab.inspect("app:1");
    assert_eq!(
        (&shown["Author"], &shown["Size"], &shown["Os"]),
        (&json!("somebody"), &json!(28), &json!("linux"))
    );
    // What oci-spec doesn't know is kept.
    assert_eq!(shown["Config"]["Healthcheck"], json!({ "Test": ["NONE"] }));
    let history = lab.um(&["history", "app:1", "--format", "{{.CreatedBy}} {{.Bytes}}"]).ok().out;
    assert_eq!(history, "step 2 2\nstep 1 11\nstep 0 15\n");
}

#[test]
fn history_keeps_steps_without_layers() {
    let mut image = three_layers();
    let steps = image.config["history"].as_array_mut().unwrap();
    steps.insert(1, json!({ "created_by": "ENV A=1", "empty_layer": true, "comment": "nothing" }));
    steps.push(json!({ "created_by": "CMD sh", "empty_layer": true }));
    let lab = loaded(&image);
    let history =
        lab.um(&["history", "app:1", "--format", "{{.ID}} {{.CreatedBy}} {{.Bytes}}{{.Comment}}"]).ok().out;
    let expected = format!(
        "{} CMD sh 0\n<missing> step 2 2\n<missing> step 1 11\n<missing> ENV A=1 0nothing\n<missing> step 0 15\n",
        &image.id()[..12]
    );
    assert_eq!(history, expected);
}

#[test]
fn rmi_takes_names_then_images_then_what_nobody_shares() {
    let first = three_layers();
    let lab = loaded(&first);
    let mut tars = first.tars[..2].to_vec();
    tars.push(Tar::new().file("other", "x").bytes());
    let second = Image::new("second:1", tars);
    lab.write("b.tar", &second.oci().archive());
    lab.um(&["load", "b.tar"]).ok();
    lab.um(&["tag", "app:1", "app:2"]).ok();
    assert_eq!(layer_count(&lab), 4);

    assert_eq!(lab.um(&["rmi", "app:2"]).ok().out, "Untagged: app:2\n");
    lab.um(&["tag", "app:1", "app:2"]).ok();
    lab.um(&["rmi", &first.id()[..12]]).refused(1, &["several names", "app:1, app:2", "-f"]);
    let gone = lab.um(&["rmi", "-f", &first.id()[..12]]).ok().out;
    assert_eq!(gone, format!("Untagged: app:1\nUntagged: app:2\nDeleted: sha256:{}\n", first.id()));
    // The two shared layers stay.
    assert_eq!(layer_count(&lab), 3);
    lab.verify();
    // One that isn't there does not keep the others from going.
    let ended = lab.um(&["rmi", "nothing", "second:1"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.contains("Deleted"), "{ended:?}");
    assert_eq!((layer_count(&lab), lab.images().len()), (0, 0));
    assert_eq!(fs::read_dir(lab.at("store/blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn an_image_that_a_container_needs_stays() {
    let image = three_layers();
    let lab = loaded(&image);
    contain(&lab, "c1", &image);
    lab.um(&["rmi", "app:1"]).refused(1, &["container web", "unionmount rm web", "-f"]);
    lab.um(&["rmi", &image.id()]).refused(1, &["container web"]);
    assert_eq!(lab.um(&["rmi", "-f", "app:1"]).ok().out, "Untagged: app:1\n");
    lab.um(&["prune", "-a", "-f"]).ok();
    assert_eq!(lab.images(), [format!("<none>:<none> {}", &image.id()[..12])]);
    lab.verify();
    fs::remove_dir_all(lab.at("store/containers/c1")).unwrap();
    lab.um(&["prune", "-f"]).ok();
    assert_eq!((lab.images().len(), layer_count(&lab)), (0, 0));
    // A record that can't be read might need anything.
    let lab = loaded(&image);
    lab.write("store/containers/c2/config.json", b"{");
    lab.um(&["prune", "-a", "-f"]).refused(1, &["containers/c2/config.json", "no record of a container"]);
    assert_eq!(layer_count(&lab), 3);
}

#[test]
fn mounted_layers_stay_until_they_are_free() {
    use rustix::fs::{FlockOperation, flock};
    let image = three_layers();
    let lab = loaded(&image);
    let layer = lab.layers("app:1")[0].parent().unwrap().to_owned();
    let pin = fs::File::open(&layer).unwrap();
    flock(&pin, FlockOperation::LockShared).unwrap();
    lab.um(&["rmi", "app:1"]).ok();
    assert!(layer.join("diff/srv/app").exists());
    assert_eq!(layer_count(&lab), 1);
    drop(pin);
    assert!(lab.um(&["prune", "-f"]).ok().out.contains("1 layer,"));
    assert_eq!(layer_count(&lab), 0);
}

#[test]
fn prune_takes_what_nothing_needs() {
    let lab = loaded(&three_layers());
    let stray = b"a blob of nobody";
    lab.write(&format!("store/blobs/sha256/{}", sha256(stray)), stray);
    lab.write("store/tmp/staging-old/blobs/x", &[0; 5000]);
    lab.out("mkdir -m 0 store/tmp/staging-old/closed");
    lab.out("mkdir -p store/containers/half-made/upper/x");
    fs::create_dir_all(lab.at(&format!("store/layers/{}/diff", sha256(b"x")))).unwrap();
    let ended = lab.um(&["verify"]).ok();
    assert!(ended.out.contains("3 things that nothing needs"), "{ended:?}");
    let ended = lab.um(&["prune", "-f"]).ok();
    assert!(ended.out.contains("0 images, 1 layer, 1 blob and 2 leftovers"), "{ended:?}");
    assert!(!lab.at("store/containers/half-made").exists());
    lab.verify();
    assert_eq!(lab.images().len(), 1);
    assert!(lab.um(&["prune", "-a", "-f"]).ok().out.contains("1 image, 3 layers"));
    assert_eq!(lab.images().len(), 0);
}

#[test]
fn verify_finds_what_is_broken_and_repair_makes_room_for_it() {
    let image = three_layers().compressed(gzip, "+gzip");
    let lab = loaded(&image);
    // A tree that somebody wrote to, a blob with a flipped bit, a blob that is too short.
    let tree = lab.layers("app:1")[0].clone();
    fs::write(tree.join("srv/app"), "tampered").unwrap();
    let blob = |at: usize| lab.at(&format!("store/blobs/sha256/{}", sha256(&image.blobs[at].0)));
    lab.out(&format!(
        "chmod u+w {0}; printf X | dd of={0} bs=1 seek=60 conv=notrunc status=none",
        blob(0).display()
    ));
    lab.out(&format!("chmod u+w {0}; truncate -s -9 {0}", blob(1).display()));
    let ended = lab.um(&["verify"]);
    assert_eq!(ended.code, Some(1));
    for part in [tree.parent().unwrap(), &blob(0), &blob(1)] {
        assert!(ended.out.contains(part.to_str().unwrap()), "{} in {ended:?}", part.display());
    }
    assert!(ended.out.contains("load the image again (app:1)"), "{ended:?}");
    assert!(ended.err.contains("3 things are broken"), "{ended:?}");
    let repaired = lab.um(&["verify", "--repair"]);
    assert_eq!(repaired.code, Some(1), "{repaired:?}");
    assert!(!blob(0).exists() && !tree.exists());
    lab.um(&["load", "a.tar"]).ok();
    lab.verify();
    assert_eq!(fs::read(tree.join("srv/app")).unwrap(), b"v2");
    // A layer's directory that somebody emptied is made again when it is needed.
    let dir = tree.parent().unwrap();
    lab.out(&format!("rm -r {0}/*; mkdir {0}/diff", dir.display()));
    let ended = lab.um(&["unpack", "app:1"]);
    assert!(ended.code == Some(0) && ended.err.contains("is set aside as"), "{ended:?}");
    assert_eq!(lab.layers("app:1")[0], tree);
    assert_eq!(fs::read(tree.join("srv/app")).unwrap(), b"v2");
    lab.verify();
    // A manifest that is gone: the image can still be removed, and the rest goes on.
    let manifest =
        lab.inspect("app:1")["RepoDigests"][0].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    fs::remove_file(lab.at(&format!("store/blobs/sha256/{manifest}"))).unwrap();
    let ended = lab.um(&["images"]);
    assert!(ended.code == Some(0) && ended.err.contains("app:1 is left out"), "{ended:?}");
    lab.um(&["inspect", "app:1"]).refused(1, &[&manifest]);
    lab.um(&["prune", "-f"]).refused(1, &[&manifest]);
    let ended = lab.um(&["rmi", "app:1"]);
    assert!(ended.code == Some(0), "{ended:?}");
    lab.um(&["prune", "-f"]).ok();
    lab.verify();
}

#[test]
fn what_is_no_store_is_not_made_one() {
    let lab = Lab::new();
    lab.write("home/letter.txt", b"dear");
    lab.um(&["images", "--root", "home"]).refused(1, &["home", "letter.txt", "--root"]);
    lab.write("file", b"");
    lab.um(&["images", "--root", "file"]).refused(1, &["file"]);
    lab.write("future/oci-layout", br#"{"imageLayoutVersion":"9.0"}"#);
    lab.um(&["images", "--root", "future"]).refused(1, &["9.0"]);
    assert_eq!(lab.out("ls -A home"), "letter.txt");
}

#[test]
fn several_processes_at_once() {
    let lab = Lab::new();
    let images: Vec<Image> = (0..8)
        .map(|at| {
            let mut tars = three_layers().tars;
            tars.push(Tar::new().file("own", [at; 50_000]).bytes());
            Image::new(&format!("app:{at}"), tars)
        })
        .collect();
    for (at, image) in images.iter().enumerate() {
        lab.write(&format!("{at}.tar"), &image.oci().archive());
    }
    let spawn =
        |args: &[&str]| lab.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut children: Vec<(String, Child)> = Vec::new();
    for at in 0..8 {
        children.push((format!("load {at}"), spawn(&["load", &format!("{at}.tar")])));
        children.push((format!("tag {at}"), spawn(&["images"])));
    }
    // Those who delete come in between; they may find that somebody is at work.
    let mut pruning = spawn(&["prune", "-f"]);
    for (what, child) in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    }
    pruning.wait().unwrap();
    assert_eq!(lab.images().len(), 8);
    lab.verify();
    // Loads and removals of the same image.
    let children: Vec<Child> = (0..10)
        .map(|at| if at % 2 == 0 { spawn(&["load", "0.tar"]) } else { spawn(&["rmi", "app:0"]) })
        .collect();
    for (at, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert!(at % 2 == 1 || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    lab.um(&["load", "0.tar"]).ok();
    lab.um(&["prune", "-f"]).ok();
    lab.verify();
    assert_eq!(lab.images().len(), 8);
}

#[test]
fn killed_at_any_moment_it_is_before_or_after() {
    let image = {
        let mut tars = three_layers().tars;
        tars.push(
            (0..300).fold(Tar::new(), |tar, at| tar.file(&format!("f{at}"), vec![at as u8; 3000])).bytes(),
        );
        Image::new("app:1", tars).compressed(gzip, "+gzip")
    };
    let lab = Lab::new();
    lab.write("a.tar", &image.oci().archive());
    let (mut before, mut after) = (0, 0);
    for at in 0..40u64 {
        let mut child =
            lab.command(&["load", "a.tar"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Each time a little later; a spread of moments, not a condition to wait for.
        std::thread::sleep(std::time::Duration::from_micros(at * 4000));
        child.kill().unwrap();
        let killed = child.wait().unwrap().signal().is_some();
        match lab.images().as_slice() {
            [] => before += 1,
            [one] => {
                assert!(one.starts_with("app:1 "), "{one}");
                after += 1;
            }
            more => panic!("{more:?}"),
        }
        let ended = lab.um(&["verify"]);
        assert_eq!(ended.code, Some(0), "killed after {} ms ({killed}): {ended:?}", at * 4);
        if at % 5 == 4 {
            lab.um(&["prune", "-a", "-f"]).ok();
            // Perhaps it never came to make a store.
            let left = |place: &str| fs::read_dir(lab.at(place)).map_or(0, Iterator::count);
            assert_eq!((left("store/blobs/sha256"), left("store/layers")), (0, 0));
        }
    }
    assert!(before > 0, "never killed before the end: {before}, {after}");
    lab.um(&["load", "a.tar"]).ok();
    lab.um(&["prune", "-f"]).ok();
    lab.verify();
    assert_eq!(lab.layers("app:1").len(), 4);
}
