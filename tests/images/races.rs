//! What others remove while it is read: has gone, and is no error.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;

use serde_json::Value;

use crate::lab::{Image, Lab, Tar, oci, sha256};

fn images() -> [Image; 2] {
    ["first", "second"].map(|name| {
        Image::new(
            &format!("{name}:1"),
            vec![Tar::new().file(name, name).bytes(), Tar::new().file("f", "x").bytes()],
        )
    })
}

/// A process that lists images is held where it has read index.json and not yet the images: meanwhile one of them goes.
#[test]
fn an_image_that_goes_while_it_is_listed() {
    let lab = Lab::new();
    lab.write("a.tar", &oci(&images()).archive());
    lab.um(&["load", "-q", "a.tar"]).ok();
    let path = lab.at("store/index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let digests: Vec<String> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["digest"].as_str().unwrap()[7..].to_owned())
        .collect();
    // The first one's manifest is read as soon as somebody writes it.
    let gate = lab.at(&format!("store/blobs/sha256/{}", digests[0]));
    let content = fs::read(&gate).unwrap();
    fs::rename(&gate, lab.at("kept")).unwrap();
    lab.out(&format!("mkfifo {}", gate.display()));
    let child = lab
        .command(&["images", "--format", "{{.Repository}}"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut writer = None;
    support::cli::until("somebody reads", || {
        writer = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&gate).ok();
        writer.is_some()
    });
    // As any program may do it that knows OCI layouts.
    index["manifests"].as_array_mut().unwrap().remove(1);
    lab.write("index.json", index.to_string().as_bytes());
    fs::rename(lab.at("index.json"), &path).unwrap();
    let manifest: Value =
        serde_json::from_slice(&fs::read(lab.at(&format!("store/blobs/sha256/{}", digests[1]))).unwrap())
            .unwrap();
    for blob in [&digests[1], &manifest["config"]["digest"].as_str().unwrap()[7..].to_owned()] {
        fs::remove_file(lab.at(&format!("store/blobs/sha256/{blob}"))).unwrap();
    }
    fs::rename(lab.at("kept"), &gate).unwrap();
    writer.unwrap().write_all(&content).unwrap();
    let ended = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!((ended.status.code(), &*out, &*err), (Some(0), "first\n", ""), "{}", sha256(&content));
    // What is missing though it is listed is told.
    fs::remove_file(&gate).unwrap();
    let ended = lab.um(&["images"]);
    assert!(ended.err.contains("first:1 is left out"), "{ended:?}");
}

/// Readers beside processes that load, remove and tidy up: they see an image, or that there is none.
#[test]
fn readers_beside_those_who_remove() {
    let lab = Lab::new();
    for (image, name) in images().iter().zip(["a.tar", "b.tar"]) {
        lab.write(name, &image.oci().archive());
    }
    // Without an image there is no store yet.
    let ended = lab.sh(r#"
        "$UM" load -q a.tar >/dev/null
        for archive in a b; do
            name=first; [ $archive = a ] || name=second
            (for round in 1 2 3 4 5 6 7 8 9 10 11 12; do "$UM" load -q $archive.tar; "$UM" rmi $name:1; done) >/dev/null 2>>writers &
        done
        (for round in 1 2 3 4 5 6; do "$UM" prune -f --wait 30; done) >/dev/null 2>>pruners &
        for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
            "$UM" images >/dev/null 2>>listed; "$UM" ps -a >/dev/null 2>>listed
            for verb in history inspect layers "save -o /dev/null"; do "$UM" $verb first:1 2>>readers >/dev/null || true; done
        done
        wait"#);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said = |name: &str| fs::read_to_string(lab.at(name)).unwrap();
    assert_eq!((said("listed").as_str(), said("pruners").as_str()), ("", ""));
    for line in said("readers").lines() {
        assert!(line.contains("no image"), "{line}");
    }
    for line in said("writers").lines() {
        assert!(line.contains("another process uses the store"), "{line}");
    }
    lab.um(&["prune", "-f"]).ok();
    lab.verify();
}
