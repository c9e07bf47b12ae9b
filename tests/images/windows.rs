//! Images for Windows: all that is done with images is done with them, but to run them.

use serde_json::json;

use crate::lab::{Image, Lab, Tar, gzip};

/// What Windows notes of each file.
const OF_A_FILE: [(&str, &str); 2] = [("MSWINDOWS.fileattr", "32"), ("MSWINDOWS.rawsd", "AQAEgBQAAAAkAAAA")];

fn image() -> Image {
    let dirs =
        |tar: Tar, names: &[&str]| names.iter().fold(tar, |tar, name| tar.records(&OF_A_FILE).dir(name));
    let base = dirs(Tar::new(), &["Files/", "Files/Windows/", "Files/Windows/System32/", "Hives/"])
        .records(&OF_A_FILE)
        .file("Files/Windows/System32/cmd.exe", "MZ")
        .records(&OF_A_FILE)
        .file("Files/old.txt", "old")
        .file("Hives/DefaultUser_Base", "regf");
    let app = dirs(Tar::new(), &["Files/", "Files/Program Files/", "Hives/"])
        .file("Files/.wh.old.txt", "")
        .records(&OF_A_FILE)
        .file("Files/Program Files/a.exe", "MZ")
        .file("Hives/Software_Delta", "regf");
    let mut image = Image::new("win:1", vec![base.bytes(), app.bytes()]);
    image.config["os"] = json!("windows");
    image.config["os.version"] = json!("10.0.17763.1");
    image
}

#[test]
fn an_image_for_windows_is_kept_shown_and_saved() {
    for image in [image(), image().compressed(gzip, "+gzip")] {
        let lab = Lab::new();
        lab.write("a.tar", &image.oci().archive());
        lab.um(&["load", "a.tar"]).ok();
        lab.verify();
        let inspected = lab.inspect("win:1");
        assert_eq!((&inspected["Os"], &inspected["OsVersion"]), (&json!("windows"), &json!("10.0.17763.1")));
        let layers = lab.um(&["layers", "win:1"]).ok().out;
        assert!(layers.contains("Files/Program Files/a.exe"), "{layers}");
        let told = lab.um(&["explain", "win:1", "/Files/Program Files/a.exe"]).ok().out;
        assert!(told.contains("layer 1 (step 1)"), "{told}");
        // Records and all: the digest of the tar is the same.
        lab.out("$UM save win:1 -o saved.tar; mkdir saved; tar -xf saved.tar -C saved");
        for (blob, _) in &image.blobs {
            let kept = std::fs::read(lab.at(&format!("saved/blobs/sha256/{}", crate::lab::sha256(blob))));
            assert!(&kept.unwrap() == blob);
        }
        if support::cli::is_root() {
            let files = lab
                .out("mkdir m; $UM mount win:1 m; cd m; find . -type f | LC_ALL=C sort; cd ..; $UM umount m");
            let expected =
                ["Program Files/a.exe", "Windows/System32/cmd.exe"].map(|name| format!("./Files/{name}"));
            let hives = ["DefaultUser_Base", "Software_Delta"].map(|name| format!("./Hives/{name}"));
            assert_eq!(files.lines().collect::<Vec<_>>(), [expected, hives].concat());
        }
    }
}

#[test]
fn an_image_for_windows_is_not_run() {
    support::needs_program!("crun");
    let lab = Lab::new();
    lab.write("a.tar", &image().oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    lab.um(&["run", "--rm", "win:1", "cmd.exe"])
        .refused(125, &["win:1 is an image for windows", "layers, explain, mount"]);
    assert_eq!(lab.um(&["ps", "-aq"]).ok().out, "");
}
