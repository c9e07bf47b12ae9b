//! What other programs say: skopeo, umoci, podman and buildah, of what is saved, of the store itself, and of trees.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::lab::{Image, Lab, Tar, gzip, three_layers};
use support::{Fields, Mount, Options, Snapshot, diff};

/// Skips unless all programs are there.
macro_rules! needs {
    ($($program:literal),+) => {
        for program in [$($program),+] {
            if !std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| dir.join(program).exists()) {
                support::skip!("{}: needs {program}", module_path!());
            }
        }
    };
}

/// podman and buildah with a storage of their own in the scratch directory.
const PODMAN: &str = "podman() { command podman --root $PWD/ps --runroot $PWD/pr --storage-driver vfs \"$@\"; }; \
                      buildah() { command buildah --root $PWD/ps --runroot $PWD/pr --storage-driver vfs \"$@\"; }; ";

fn diff_ids(image: &Image) -> Value {
    image.config["rootfs"]["diff_ids"].clone()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The tree of an image, as unionmount mounts it, is the tree at `expected`.
#[track_caller]
fn mounts_as(lab: &Lab, image: &str, expected: &Path) {
    let mountpoint = lab.at("mnt");
    fs::create_dir_all(&mountpoint).unwrap();
    let mount = Mount::new(&Options { lowers: lab.layers(image), ..Options::default() }, &mountpoint);
    let (mut want, mut have) = (Snapshot::take(expected), Snapshot::take(&mountpoint));
    // The root itself is not part of every layer.
    want.entries.remove(std::ffi::OsStr::new(""));
    have.entries.remove(std::ffi::OsStr::new(""));
    // umoci and podman set a directory's time before the last file in it is made. The link count of a lower's file counts
    // names that a layer above takes away.
    let fields = Fields { directory_mtime: false, nlink: false, ..Fields::tree() };
    assert_eq!(diff(&want, &have, &fields), "", "{image}");
    mount.unmount();
}

#[test]
fn skopeo_and_umoci_read_the_store_as_it_is() {
    support::needs_root!();
    needs!("skopeo", "umoci");
    let lab = Lab::new();
    lab.write("a.tar", &three_layers().docker().archive());
    lab.um(&["load", "a.tar"]).ok();
    let config = json(&lab.out("skopeo inspect --config oci:store:app:1"));
    assert_eq!(config["rootfs"]["diff_ids"], diff_ids(&three_layers()));
    assert_eq!(lab.out("umoci ls --layout store"), "app:1");
    lab.out("umoci unpack --image store:app:1 bundle 2>/dev/null");
    mounts_as(&lab, "app:1", &lab.at("bundle/rootfs"));
    lab.out("skopeo copy -q oci:store:app:1 dir:copied");
    lab.verify();
}

#[test]
fn skopeo_and_umoci_write_into_the_store() {
    support::needs_root!();
    needs!("skopeo", "umoci");
    let lab = Lab::new();
    lab.write("a.tar", &three_layers().docker().archive());
    lab.um(&["images"]).ok();
    // skopeo compresses on the way; nothing is unpacked until it is needed.
    lab.out("skopeo copy -q docker-archive:a.tar oci:store:by-skopeo:1");
    let config = json(&lab.out("skopeo inspect --config oci:store:by-skopeo:1"));
    assert_eq!(lab.inspect("by-skopeo:1")["RootFS"]["Layers"], config["rootfs"]["diff_ids"]);
    assert_eq!(fs::read(lab.layers("by-skopeo:1")[0].join("srv/app")).unwrap(), b"v2");
    lab.verify();
    // A layer on top, by umoci.
    lab.out(
        "umoci unpack --image store:by-skopeo:1 b && echo new > b/rootfs/etc/new && touch -d @1000000000 b/rootfs/etc/new && rm b/rootfs/bin/sh && \
         umoci repack --image store:by-umoci b && umoci config --image store:by-umoci --author me",
    );
    assert_eq!(lab.layers("by-umoci").len(), 4);
    assert_eq!(lab.inspect("by-umoci")["Author"], "me");
    mounts_as(&lab, "by-umoci:latest", &lab.at("b/rootfs"));
    lab.out("umoci gc --layout store");
    lab.verify();
    lab.um(&["rmi", "by-skopeo:1"]).ok();
    lab.verify();
    assert_eq!(lab.layers("by-umoci").len(), 4);
}

#[test]
fn what_is_saved_others_load_with_the_same_diff_ids() {
    support::needs_root!();
    needs!("skopeo", "umoci", "podman");
    let lab = Lab::new();
    for (at, image) in [three_layers(), three_layers().compressed(gzip, "+gzip")].iter().enumerate() {
        lab.write("a.tar", &image.oci().archive());
        lab.out("rm -rf store; $UM load a.tar; $UM save -o oci.tar app:1; $UM save --format docker -o docker.tar app:1");
        for (format, transport) in [("oci", "oci-archive"), ("docker", "docker-archive")] {
            let config = json(&lab.out(&format!("skopeo inspect --config {transport}:{format}.tar:app:1")));
            assert_eq!(config["rootfs"]["diff_ids"], diff_ids(image), "skopeo, {format}");
            let loaded = lab.out(&format!("{PODMAN} podman load -q -i {format}.tar; podman image inspect --format '{{{{json .RootFS.Layers}}}}' app:1"));
            assert_eq!(json(loaded.lines().last().unwrap()), diff_ids(image), "podman, {format}");
            let id = lab.out(&format!(
                "{PODMAN} podman image inspect --format '{{{{.Id}}}}' app:1; podman rmi -a -f >/dev/null"
            ));
            assert_eq!(id, image.id(), "podman, {format}");
            lab.out(&format!("rm -rf l b; skopeo copy -q {transport}:{format}.tar:app:1 oci:l:x && umoci unpack --image l:x b 2>/dev/null"));
            mounts_as(&lab, "app:1", &lab.at("b/rootfs"));
        }
        // And what podman saves comes back.
        lab.out(&format!("{PODMAN} podman load -q -i docker.tar"));
        for (format, id) in [("docker-archive", Some(image.id())), ("oci-archive", None)] {
            let root = format!("back{at}{format}");
            lab.out(&format!("{PODMAN} podman save -q --format {format} -o back.tar app:1 && $UM load --root {root} back.tar; rm back.tar"));
            let shown = json(&lab.out(&format!(
                "$UM inspect --root {root} localhost/app:1 || $UM inspect --root {root} app:1"
            )));
            assert_eq!(shown[0]["RootFS"]["Layers"], diff_ids(image));
            if let Some(id) = id {
                assert_eq!(shown[0]["Id"], format!("sha256:{id}"));
            }
        }
        lab.out(&format!("{PODMAN} podman rmi -a -f"));
    }
}

/// Everything that a layer can hold, in three layers that buildah makes.
#[test]
fn a_real_image_made_by_buildah() {
    support::needs_root!();
    needs!("buildah", "skopeo", "umoci", "busybox", "setcap");
    let lab = Lab::new();
    let script = r#"
        export BUILDAH_ISOLATION=chroot
        c=$(buildah from scratch); m=$(buildah mount $c); cd $m
        mkdir -p bin etc/sub var/cache empty tmp; chmod 1777 tmp; chmod 2750 var/cache; chown 12:34 var/cache
        cp $(command -v busybox) bin/busybox; for a in sh ls cat; do ln -s busybox bin/$a; done
        cp bin/busybox bin/ping; setcap cap_net_raw+ep bin/ping; cp bin/cat bin/su; chown 0:42 bin/su; chmod 6755 bin/su
        echo one > etc/one; ln etc/one etc/one-more; ln etc/one var/one-far
        mkfifo etc/fifo; mknod etc/null c 1 3; mknod etc/disk b 8 1; ln -s /nowhere etc/dangling
        truncate -s 5M var/sparse; printf x | dd of=var/sparse bs=1 seek=3000000 conv=notrunc status=none
        n=$(printf 'n%.0s' {1..200}); mkdir -p "$n/$n"; echo deep > "$n/$n/$n"; touch "$(printf 'odd\nname \377 \\ "')"
        echo gone > etc/gone; mkdir -p etc/old; echo a > etc/old/a; echo b > etc/old/b; touch -d 1999-09-09T09:09:09.123456789Z etc/sub/time
        chown 100000:100001 etc/sub/time; setfattr -n user.note -v text etc/one 2>/dev/null || true; setfacl -m u:7:r etc/sub/time
        cd - >/dev/null; buildah commit -q $c base >/dev/null; buildah rm $c >/dev/null
        c=$(buildah from base); m=$(buildah mount $c); cd $m
        rm etc/gone; rm -r etc/old; mkdir etc/old; echo c > etc/old/c; rm bin/ls; mkdir bin/ls; echo two > etc/one; chmod 600 etc/sub/time
        cd - >/dev/null; buildah commit -q $c second >/dev/null; buildah rm $c >/dev/null
        c=$(buildah from second); m=$(buildah mount $c); rm -r $m/var/cache; echo x > $m/var/cache; rm $m/etc/one-more
        buildah config --cmd '["/bin/sh"]' --env A=1 --label k=v $c; buildah commit -q $c real:1 >/dev/null; buildah rm $c >/dev/null
        buildah push -q real:1 docker-archive:$PWD/docker.tar:real:1; buildah push -q real:1 oci-archive:$PWD/oci.tar:real:1
        skopeo copy -q docker-archive:docker.tar:real:1 oci:layout:real:1; umoci unpack --image layout:real:1 bundle 2>/dev/null
    "#;
    lab.out(&format!("{PODMAN} {script}"));
    for (at, source) in
        ["docker.tar", "oci.tar", "layout", "- < docker.tar", "- < <(gzip -1 < oci.tar)"].iter().enumerate()
    {
        lab.out(&format!("rm -rf store; $UM load {source}"));
        let name = if at == 1 || at == 4 {
            lab.images()[0].split(' ').next().unwrap().to_owned()
        } else {
            "real:1".to_owned()
        };
        mounts_as(&lab, &name, &lab.at("bundle/rootfs"));
        assert_eq!(lab.inspect(&name)["Config"]["Labels"]["k"], "v");
        lab.verify();
    }
    // Out again, by both formats, into umoci's hands.
    for (format, transport) in [("oci", "oci-archive"), ("docker", "docker-archive")] {
        lab.out(&format!(
            "rm -rf l b; name=$($UM images --format '{{{{.Repository}}}}:{{{{.Tag}}}}'); $UM save --format {format} -o s.tar $name; \
             skopeo copy -q {transport}:s.tar oci:l:x; umoci unpack --image l:x b 2>/dev/null"
        ));
        let (want, have) = (Snapshot::take(&lab.at("bundle/rootfs")), Snapshot::take(&lab.at("b/rootfs")));
        assert_eq!(diff(&want, &have, &Fields { directory_mtime: false, ..Fields::tree() }), "", "{format}");
    }
}

/// Each layer is unpacked by itself: what one layer has below a name that is a link in a lower one makes a directory, which
/// hides the link. So it is with every engine that keeps layers apart.
#[test]
fn a_link_of_a_lower_layer_is_hidden_as_by_podman() {
    support::needs_root!();
    needs!("podman");
    let lab = Lab::new();
    let below = Tar::new()
        .dir("usr/")
        .dir("usr/lib/")
        .file("usr/lib/old", "old")
        .link(tar::EntryType::Symlink, "lib", "usr/lib")
        .link(tar::EntryType::Symlink, "abs", "/usr/lib")
        .link(tar::EntryType::Symlink, "gone", "nowhere");
    let above = Tar::new().file("lib/x", "x").file("abs/.wh.old", "").file("gone/z", "z");
    lab.write("a.tar", &Image::new("links:1", vec![below.bytes(), above.bytes()]).oci().archive());
    lab.um(&["load", "-q", "a.tar"]).ok();
    let podman = "podman --root $PWD/ps --runroot $PWD/pr --storage-driver overlay";
    let mounted = lab.sh(&format!("{podman} load -q -i a.tar >&2 && {podman} image mount links:1"));
    if mounted.code != Some(0) {
        support::skip!("{}: podman has no overlay here: {}", module_path!(), mounted.err);
    }
    // A whiteout below a name that is no directory any more is listed by the kernel, and can't be looked at.
    let listing = |dir: &str| {
        lab.out(&format!("cd {dir} && find . -printf '%y %p %l\\n' 2>/dev/null | LC_ALL=C sort || true"))
    };
    lab.out("mkdir mnt && $UM mount links:1 mnt");
    let own = listing("mnt");
    assert_eq!(own, listing(mounted.out.trim()));
    assert!(
        own.contains("d ./lib ") && own.contains("f ./lib/x ") && own.contains("f ./usr/lib/old"),
        "{own}"
    );
    lab.out(&format!("umount mnt; {podman} image umount -a; {podman} rmi -a -f; umount ps/overlay || true"));
}

#[test]
fn many_layers_by_umoci() {
    support::needs_root!();
    needs!("umoci");
    let lab = Lab::new();
    let tars = (0..127)
        .map(|at| {
            let tar = Tar::new().dir("d/").file("d/same", format!("{at}")).file(&format!("d/f{at}"), "x");
            // Every third layer takes away what the one before brought.
            if at % 3 == 2 { tar.file(&format!("d/.wh.f{}", at - 1), "") } else { tar }.bytes()
        })
        .collect();
    lab.write("a.tar", &Image::new("many:1", tars).oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    lab.out("umoci unpack --image store:many:1 b 2>/dev/null");
    mounts_as(&lab, "many:1", &lab.at("b/rootfs"));
}
