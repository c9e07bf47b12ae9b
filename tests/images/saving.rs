//! What leaves the store comes back the same.

use crate::lab::{Image, Lab, Tar, gzip, three_layers, zstd};

#[test]
fn saved_and_loaded_again_it_is_the_same_image() {
    let lab = Lab::new();
    for (ending, with) in [
        ("", None),
        ("+gzip", Some(gzip as fn(&[u8]) -> Vec<u8>)),
        ("+zstd", Some(zstd as fn(&[u8]) -> Vec<u8>)),
    ] {
        let mut image = three_layers();
        if let Some(with) = with {
            image = image.compressed(with, ending);
        }
        lab.write("in.tar", &image.oci().archive());
        lab.out("rm -rf store again && $UM load in.tar");
        for format in ["oci", "docker"] {
            lab.out(&format!(
                "$UM save --format {format} -o out.tar app:1 && $UM save --format {format} app:1 > out2.tar"
            ));
            // Byte for byte, and also from a store that got it by another way.
            lab.out("cmp out.tar out2.tar");
            lab.out(&format!(
                "rm -rf again; $UM load --root again out.tar && $UM save --root again --format {format} app:1 | cmp - out.tar"
            ));
            let id = lab.out("$UM inspect --root again -f '{{.Id}}' app:1");
            assert_eq!(id, format!("sha256:{}", image.id()), "{format} {ending}");
            lab.out("$UM verify --root again");
        }
    }
}

#[test]
fn several_images_share_their_layers_in_the_archive() {
    let lab = Lab::new();
    let first = three_layers();
    let mut tars = first.tars.clone();
    tars.push(Tar::new().file("new", "x").bytes());
    for image in [first, Image::new("app:2", tars)] {
        lab.write("in.tar", &image.docker().archive());
        lab.um(&["load", "in.tar"]).ok();
    }
    lab.um(&["tag", "app:1", "other/name"]).ok();
    for (format, layers) in [("docker", r"\.tar$"), ("oci", "^blobs/sha256/.")] {
        lab.out(&format!("$UM save --format {format} -o out.tar app:1 app:2 other/name"));
        let count: usize = lab.out(&format!("tar tf out.tar | grep -c '{layers}'")).parse().unwrap();
        assert_eq!(count, if format == "docker" { 4 } else { 4 + 2 + 2 });
        let loaded = lab.out("rm -rf again; $UM load --root again out.tar | sort");
        assert_eq!(loaded, "Loaded image: app:1\nLoaded image: app:2\nLoaded image: other/name:latest");
    }
}

#[test]
fn by_id_an_image_is_saved_without_a_name() {
    let lab = Lab::new();
    let image = three_layers();
    lab.write("in.tar", &image.oci().archive());
    lab.um(&["load", "in.tar"]).ok();
    for format in ["oci", "docker"] {
        lab.out(&format!("$UM save --format {format} -o out.tar {}", &image.id()[..10]));
        assert_eq!(
            lab.out("rm -rf again; $UM load --root again out.tar"),
            format!("Loaded image ID: sha256:{}", image.id())
        );
    }
}

#[test]
fn a_damaged_blob_is_not_saved() {
    let lab = Lab::new();
    let image = three_layers();
    lab.write("in.tar", &image.oci().archive());
    lab.um(&["load", "in.tar"]).ok();
    let blob = lab.store().join("blobs/sha256").join(crate::lab::sha256(&image.tars[1]));
    lab.out(&format!(
        "chmod u+w {0}; printf X | dd of={0} bs=1 seek=600 conv=notrunc status=none",
        blob.display()
    ));
    for format in ["oci", "docker"] {
        lab.um(&["save", "--format", format, "-o", "out.tar", "app:1"])
            .refused(1, &["its content has the di", "verify"]);
        assert!(!lab.at("out.tar").exists());
    }
    lab.um(&["save", "-o", "/dev/full", "app:1"]).refused(1, &["No space left"]);
    lab.um(&["save", "nothing:1"]).refused(1, &["no image \"nothing:1\""]);
}
