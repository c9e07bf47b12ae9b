//! An ordinary user: owners and devices that only root can make are kept, and come out again.

use std::os::unix::fs::MetadataExt;

use crate::lab::{Image, Tar};
use support::cli::{Place, is_root};

#[test]
fn an_ordinary_user_keeps_everything() {
    if !is_root() {
        support::skip!("the user is made by root");
    }
    let place = Place::of_user();
    // As root, a tar with foreign owners, a device and a setuid program; as a user, through a store and out again.
    let made = place.sh(
        "mkdir -p t/dev t/srv && mknod t/dev/null c 1 3 && echo hi > t/srv/f && chown 12:34 t/srv/f && chmod 4755 t/srv/f && \
         chmod 700 t/srv && chown 5:6 t/srv && tar -C t --sort=name --mtime=@1000000000 -cf rootfs.tar . && chmod 644 rootfs.tar",
    );
    assert_eq!(made.code, Some(0), "{made:?}");
    let um = "HOME=$PWD XDG_DATA_HOME= ./unionmount";
    let ended = place.sh_as_user(&format!(
        "{um} import rootfs.tar mine:1 && {um} save --format docker -o saved.tar mine:1 && {um} verify && mkdir x && tar -C x -xf saved.tar"
    ));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("all is well"), "{ended:?}");
    let store = place.at(".local/share/unionmount");
    assert_eq!(store.metadata().unwrap().mode() & 0o777, 0o700);
    // The tar is byte for byte what came in, and its tree, written again out of the unpacked layer, says the same of owners.
    let listed = place.sh("tar -tvf x/*.tar --numeric-owner | sort > listed-a; tar -tvf rootfs.tar --numeric-owner | sort > listed-b; cmp listed-a listed-b && cat listed-a");
    assert_eq!(listed.code, Some(0), "{listed:?}");
    for part in ["crw", "1,3", "12/34", "-rwsr-xr-x", "drwx------ 5/6"] {
        assert!(listed.out.contains(part), "{part} in {}", listed.out);
    }
    let gone = place.sh_as_user(&format!(
        "{um} rmi mine:1 && {um} prune -f && find .local/share/unionmount/layers -mindepth 1"
    ));
    assert_eq!(gone.code, Some(0), "{gone:?}");
    assert!(!gone.out.contains(".local"), "{gone:?}");
}

#[test]
fn a_store_of_root_is_closed_to_users() {
    if !is_root() {
        support::skip!("the user is made by root");
    }
    let place = Place::new();
    let image = Image::new("a:1", vec![Tar::new().file("f", "1").bytes()]);
    std::fs::write(place.at("a.tar"), image.oci().archive()).unwrap();
    place.unionmount(&["load", "--root", "store", "a.tar"]).ok();
    let ended = place.sh_as_user("./unionmount images --root store");
    ended.refused(1, &["store", "Permission denied"]);
}

/// Whatever the umask, and whoever made it: nobody else looks into a store.
#[test]
fn the_store_is_closed_to_others() {
    if !is_root() {
        support::skip!("the user is made by root");
    }
    for (store, place) in [("roots", Place::new()), ("users", Place::of_user())] {
        place.sh("mkdir t && echo hi > t/f && tar -C t -cf rootfs.tar . && chmod 644 rootfs.tar").ok();
        let import =
            format!("umask 0; HOME=$PWD XDG_DATA_HOME= ./unionmount import --root {store} rootfs.tar mine");
        let done = if store == "roots" { place.sh(&import) } else { place.sh_as_user(&import) };
        assert_eq!(done.code, Some(0), "{done:?}");
        assert_eq!(place.at(store).metadata().unwrap().mode() & 0o777, 0o700, "{store}");
        // What is in it, should the store be opened some day, is no others' to change.
        let open = place.sh(&format!("find {store} -perm /022 ! -type l"));
        assert_eq!(open.out, "", "{store}: others can change these");
    }
}
