//! Layers that other programs wrote, and what they read of ours.

use std::path::Path;

use crate::{Bed, Success, lacking};
use support::{Fields, Snapshot, diff};

/// A tree with all that a layer can hold.
pub const EVERYTHING: &str = "
    set -e
    mkdir -p tree/dir/sub tree/empty tree/sticky tree/acl
    cd tree
    echo content > dir/file; chown 33:44 dir/file; chmod 6755 dir/file
    ln dir/file dir/sub/hard; ln -s ../../nowhere dir/sub/symbolic; chown -h 5:6 dir/sub/symbolic
    mknod dir/null c 1 3; mknod dir/disk b 8 17; mkfifo -m 640 dir/fifo
    chmod 1777 sticky; chown 100000:4000000000 sticky
    cp /bin/true dir/cap; setcap cap_dac_override,cap_fowner,cap_net_raw+ep dir/cap
    setfacl -m u:10:rwx,g:2570:r-- acl; setfacl -d -m u:10:r-x acl; touch acl/inner; setfacl -b acl/inner
    setfattr -n user.binary -v 0x000a0d3dff0a dir/file; setfattr -n trusted.mine -v kept dir/sub
    truncate -s 30M sparse; echo tail >> sparse; dd if=/dev/zero of=zeros bs=1M count=3 status=none
    long=$(printf 'n%.0s' $(seq 200)); mkdir -p $long/$long; echo deep > $long/$long/$long
    printf x > \"$(printf 'odd\\n\\t\\377 \\\\ name')\"; touch -- '-dash' ' space' 'ünï'
    ln -s $(printf 't%.0s' $(seq 300)) long-target
    touch -d '1970-01-01 00:00:01.123456789 UTC' dir/file
    touch -d '1931-05-06 07:08:09.5 UTC' zeros; touch -d '2260-01-01 UTC' sparse
    touch -d '2001-02-03 04:05:06.7 UTC' dir/sub dir empty .
";

#[test]
fn layers_of_gnu_tar_in_every_format_come_whole() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.sh(EVERYTHING).ok();
    let tree = Snapshot::take(&bed.place.at("tree"));
    assert!(tree.entries.len() > 20);
    let posix = "--format=posix --xattrs --xattrs-include='*'";
    for (options, fields) in [
        (posix.to_owned(), Fields::tree()),
        (format!("{posix} --sparse --sparse-version=1.0"), Fields::tree()),
        (format!("{posix} --sparse --sparse-version=0.1"), Fields::tree()),
        (format!("{posix} --sparse --sparse-version=0.0"), Fields::tree()),
        // Whole seconds and no attributes.
        (
            "--format=gnu --sparse --exclude=./zeros".to_owned(),
            Fields { xattrs: false, mtime: false, directory_mtime: false, ..Fields::tree() },
        ),
    ] {
        bed.sh(&format!("tar {options} -C tree -cf layer.tar .")).ok();
        bed.um(&["import", "layer.tar", "imported"]).success();
        bed.um(&["mount", "imported", "mnt"]).ok();
        let mut expected = tree.clone();
        if options.contains("zeros") {
            expected.entries.remove(Path::new("zeros").as_os_str());
        }
        assert_eq!(diff(&expected, &Snapshot::take(&bed.place.at("mnt")), &fields), "", "{options}");
        bed.sh("test $(du -k mnt/sparse | cut -f1) -lt 1000").ok();
        bed.place.umount("mnt");
    }
}

#[test]
fn our_layers_are_read_by_gnu_tar() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.sh(EVERYTHING).ok();
    bed.um(&["import", "tree", "imported"]).success();
    let layer = bed.image("imported", "{{json .RootFS.Layers}}");
    let digest = layer.trim_matches(['[', ']', '"']).strip_prefix("sha256:").unwrap().to_owned();
    bed.place.mkdir("out");
    let tar = "tar --xattrs --xattrs-include='*' --numeric-owner --delay-directory-restore --same-owner -p -C out -x";
    bed.sh(&format!("f=home/store/blobs/sha256/{digest}; test -f $f || exit 9; {tar} -f $f")).success();
    let tree = Snapshot::take(&bed.place.at("tree"));
    assert_eq!(diff(&tree, &Snapshot::take(&bed.place.at("out")), &Fields::tree()), "");
}

#[test]
fn a_container_is_sealed_by_its_name() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.um(&["create", "--name", "build", "bb", "sh"]).success();
    let dir = |name: &str| bed.image("build", &format!("{{{{.GraphDriver.Data.{name}}}}}"));
    let (lower, upper, work) = (dir("LowerDir"), dir("UpperDir"), dir("WorkDir"));
    bed.sh(&format!(
        "./unionmount --lower {lower} --upper {upper} --work {work} -o metacopy=on mnt && chmod 600 mnt/data/sub/f && ./unionmount umount mnt"
    ))
    .ok();
    let told = bed.um(&["seal", "-n", "build"]).success();
    assert!(told.out.ends_with("1 file, 13 B to be sealed\n"), "{told:?}");
    bed.um(&["seal", "--userxattr", "build"]).refused(2, &["leave --work and --userxattr out"]);
    bed.um(&["seal", "build"]).prints("1 file, 13 B sealed");
    let sealed = Path::new(&upper).join("data/sub/f");
    assert_eq!(std::fs::read_to_string(&sealed).unwrap(), "of the image\n");
    let marks = support::read_xattrs(&sealed).unwrap();
    assert!(!marks.contains_key(&b"trusted.overlay.metacopy"[..]), "{marks:?}");
    bed.um(&["seal", "build"]).prints("0 files, 0 B sealed");
    // Who has it mounted keeps it.
    let point = bed.um(&["mount", "build"]).success().out;
    bed.um(&["seal", "build"]).refused(1, &["build"]);
    bed.place.sh(&format!("umount {point}")).ok();
}
