//! `layers` of an image in the store.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::agreement::unionmount;
use support::{Layer, Scratch, WhiteoutForm};

/// A store with the image `base`, and with `app`, which changes a file of it and deletes another.
fn store(scratch: &Scratch) -> PathBuf {
    let root = scratch.path().join("store");
    let run = |arguments: &[&str]| {
        let output = command(&root, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let base = Layer::at(scratch.path().join("tree"));
    base.file("etc/changed", "four").file("etc/deleted", "123456").file("etc/kept", "x");
    run(&["import", base.root().to_str().unwrap(), "base"]);
    let container = run(&["create", "base", "true"]);
    let upper = Layer::at(root.join("containers").join(container).join("diff"));
    upper.file("etc/changed", "more than four").whiteout("etc/deleted", WhiteoutForm::Device);
    run(&["commit", &upper.root().parent().unwrap().file_name().unwrap().to_string_lossy(), "app"]);
    root
}

fn command(root: &PathBuf, arguments: &[&str]) -> Output {
    Command::new(unionmount()).args(arguments).env("UNIONMOUNT_ROOT", root).output().unwrap()
}

#[test]
fn an_image_has_its_layers_and_its_waste() {
    let scratch = Scratch::new();
    let root = store(&scratch);
    let output = command(&root, &["layers", "app", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["layers"].as_array().unwrap().len(), 2);
    assert_eq!(json["wasted_bytes"], 4 + 6);
    let shown = crate::agreement::shown(&json, 1);
    let sizes: Vec<(String, u64)> =
        shown.into_iter().map(|(path, (_, size))| (String::from_utf8(path).unwrap(), size)).collect();
    let expected =
        [("etc", 0), ("etc/changed", 14), ("etc/kept", 1)].map(|(path, size)| (path.to_owned(), size));
    assert_eq!(sizes, expected);
    let output = command(&root, &["layers", "app", "--ci"]);
    assert_eq!(output.status.code(), Some(1));
    let output = command(&root, &["layers", "base", "--ci"]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_is_neither_mount_nor_image_is_told() {
    let scratch = Scratch::new();
    let root = scratch.path().join("store");
    let output = command(&root, &["layers", "no-such-image"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("no store") && error.lines().count() == 1, "{error}");
    let output = command(&root, &["layers", "/proc"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("not in a mount"), "a path is no image");
}

#[test]
fn a_page_says_of_which_image_it_is() {
    let scratch = Scratch::new();
    let root = store(&scratch);
    let page = scratch.path().join("page.html");
    let output = command(&root, &["layers", "app", "--html", page.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(page).unwrap();
    let (_, data) = page.split_once(r#"<script type="application/json" id="data">"#).unwrap();
    let data: serde_json::Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    assert!(page.contains("<h1>Layers of app:latest</h1>"), "{}", data["title"]);
    let fact = |word: &str| {
        let facts = data["facts"].as_array().unwrap();
        facts.iter().find(|fact| fact[0] == word).unwrap_or_else(|| panic!("no {word}: {facts:?}"))[1]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(fact("Image"), "app:latest");
    assert!(fact("Id").starts_with("sha256:"), "{}", fact("Id"));
    assert!(fact("Created").starts_with("20"), "{}", fact("Created"));
    assert!(fact("Platform").starts_with("linux/"), "{}", fact("Platform"));
    assert_eq!(fact("Command"), "true");
    assert_eq!(fact("Size"), "25 B in 2 layers, of which 15 B are to be seen");
    assert!(fact("Made").contains("by unionmount layers app --html "), "{}", fact("Made"));
}

#[test]
fn a_mount_of_a_container_is_told_as_that() {
    if !std::path::Path::new("/dev/fuse").exists() {
        return support::skipped("no /dev/fuse");
    }
    let scratch = Scratch::new();
    let root = store(&scratch);
    let run = |arguments: &[&str]| {
        let output = command(&root, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    run(&["create", "--name", "box", "app", "true"]);
    let mounted = run(&["mount", "box"]);
    let page = scratch.path().join("page.html");
    let told = command(&root, &["layers", &mounted, "--html", page.to_str().unwrap()]);
    run(&["umount", "box"]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let page = std::fs::read_to_string(page).unwrap();
    for fact in [r#"["Container","box"]"#, r#"["Image","app"#, &format!(r#"["Mount","{mounted}"]"#)] {
        assert!(
            page.contains(fact),
            "no {fact} in {}",
            page.split_once(r#""facts""#).unwrap().1.split_at(600).0
        );
    }
}
