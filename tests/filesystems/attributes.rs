//! Attributes of lowers that the upper's filesystem can't hold.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::io::Errno;

use crate::below::{Below, Kind};
use crate::needs;
use support::{self, Mount, Options, Scratch, Stack};

/// The warnings and errors of a mount's log.
fn told(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap();
    text.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_property_of_btrfs_stays_on_btrfs() {
    needs!(Kind::Btrfs);
    let scratch = Scratch::new();
    let below = Below::new(&scratch, Kind::Btrfs);
    let stack = Stack::new(1).with_lower_in(0, below.path());
    stack.lower(0).file("d/f", "f").file("g", "g");
    let lower = stack.lower(0).root();
    for path in ["d", "d/f", "g"] {
        let path = lower.join(path);
        support::run("btrfs", &["property", "set", path.to_str().unwrap(), "compression", "zstd"]);
    }
    let log = stack.scratch().path().join("log");
    let mount = Mount::new(&Options { log: Some(log.clone()), ..stack.options() }, stack.mountpoint());
    fs::set_permissions(mount.join("d/f"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(mount.join("g"), "new").unwrap();
    fs::rename(mount.join("d"), mount.join("e")).unwrap();
    fs::write(mount.join("e/new"), "new").unwrap();
    assert_eq!(fs::read(mount.join("e/f")).unwrap(), b"f");
    mount.unmount();
    let told = told(&log);
    assert_eq!(told.lines().count(), 1, "one warning a mount: {told}");
    assert!(told.contains("btrfs.compression"), "{told}");

    // And stays with a copy on btrfs.
    let other = Stack::new(1).with_upper_in(&scratch.path().join(below.path()));
    let options = Options { lowers: vec![lower.to_owned()], ..other.options() };
    let mount = Mount::new(&options, other.mountpoint());
    fs::write(mount.join("g"), "new").unwrap();
    mount.unmount();
    let kept = support::read_xattrs(&other.upper().root().join("g")).unwrap();
    assert_eq!(kept.get(&b"btrfs.compression"[..]).map(Vec::as_slice), Some(&b"zstd"[..]));
}

/// An ACL says who may do what: without it nothing is copied up, unless the mount has none.
#[test]
fn an_acl_that_cannot_be_kept_refuses_the_copy_and_is_named() {
    needs!(Kind::Unionfs);
    let scratch = Scratch::new();
    let below = Below::new(&scratch, Kind::Unionfs);
    let stack = Stack::new(1).with_upper_in(below.path());
    stack.lower(0).file("f", "f");
    let path = stack.lower(0).root().join("f");
    support::run("setfacl", &["-m", "u:1000:rw", path.to_str().unwrap()]);
    let log = stack.scratch().path().join("log");
    let mount = Mount::new(&Options { log: Some(log.clone()), ..stack.options() }, stack.mountpoint());
    support::assert_errno!(
        fs::set_permissions(mount.join("f"), PermissionsExt::from_mode(0o600)),
        Errno::OPNOTSUPP
    );
    mount.unmount();
    assert!(
        told(&log).contains("/f: can't be copied up with its attribute system.posix_acl_access"),
        "{}",
        told(&log)
    );
    let mount = stack.mount_with(&["noacl"]);
    fs::set_permissions(mount.join("f"), PermissionsExt::from_mode(0o600)).unwrap();
    mount.unmount();
}

/// Ids that the user namespace doesn't map can't be set again: their entries are left out, but for those that deny.
#[test]
fn acls_with_ids_that_the_user_namespace_does_not_map() {
    support::needs_root!();
    let stack = Stack::new(1);
    stack.lower(0).file("grants", "g").file("denies", "d").file("d/f", "f");
    let lower = stack.lower(0).root();
    let set = |words: &[&str], path: &str| {
        let path = lower.join(path);
        support::run("setfacl", &[words, &[path.to_str().unwrap()]].concat());
    };
    set(&["-m", "u:1234:rw,g:0:r"], "grants");
    set(&["-m", "u:1234:---"], "denies");
    set(&["-d", "-m", "u:1234:rwx"], "d");
    let script = r#"
        set -e
        "$1" --log-file "$6" --lower "$2" --upper "$3" --work "$4" "$5"
        trap 'umount "$5"' EXIT
        getfacl -cn "$5/grants" | grep -q group:0:r
        chmod 640 "$5/grants"
        echo more >>"$5/grants"
        echo new >"$5/d/new"
        if chmod 600 "$5/denies" 2>/dev/null; then echo "a denial was lost"; exit 1; fi
        cat "$5/denies" >/dev/null
    "#;
    let log = stack.scratch().path().join("log");
    let mut words: Vec<String> = ["-Urm", "sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    let paths = [
        Path::new(env!("CARGO_BIN_EXE_unionmount")),
        lower,
        stack.upper().root(),
        stack.work(),
        stack.mountpoint(),
        &log,
    ];
    words.extend(paths.map(|path| path.to_str().unwrap().to_owned()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    support::run("unshare", &words);
    assert_eq!(fs::read(stack.upper().root().join("grants")).unwrap(), b"gmore\n");
    let acl = String::from_utf8(
        support::output("getfacl", &["-cn".as_ref(), stack.upper().root().join("grants").as_path()]).stdout,
    )
    .unwrap();
    assert!(acl.contains("group:0:r--") && !acl.contains("1234"), "{acl}");
    assert!(
        told(&log).contains("doesn't map") && told(&log).contains("/denies: can't be copied up"),
        "{}",
        told(&log)
    );
}
