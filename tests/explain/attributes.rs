//! Where files come from, as attributes of the mount.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, getxattr, removexattr, setxattr};
use rustix::io::Errno;

use support::{OpaqueForm, Stack, read_xattrs};

fn fact(path: &Path, name: &str) -> Result<String, Errno> {
    let mut value = [0; 4096];
    let n = getxattr(path, format!("user.unionmount.{name}"), &mut value)?;
    Ok(String::from_utf8(value[..n].to_vec()).unwrap())
}

#[test]
fn facts_are_right_never_listed_and_cannot_be_set() {
    let stack = Stack::new(2);
    stack.lower(0).file("etc/both", "0").dir("cut").opaque("cut", OpaqueForm::Aufs);
    stack.lower(1).file("etc/both", "1").file("etc/low", "low").file("cut/x", "").file("gone", "gone");
    let mount = stack.mount();
    let facts = |path: &str| {
        let path = mount.join(path);
        ["layer", "layers", "state", "hidden"].map(|name| fact(&path, name).unwrap()).join(" ")
    };
    assert_eq!(facts("etc/both"), "1 1 lower 2");
    assert_eq!(facts("etc/low"), "2 2 lower ");
    assert_eq!(facts("etc"), "1 1,2 lower ");
    assert_eq!(facts("cut"), "1 1 lower 2");
    assert_eq!(facts(""), "upper upper,1,2 merged ");
    let real = |path: &str| fact(&mount.join(path), "path").unwrap();
    assert_eq!(Path::new(&real("etc/low")), stack.lower(1).root().join("etc/low"));
    assert_eq!(Path::new(&real("")), stack.upper().root());

    fs::write(mount.join("etc/both"), "new").unwrap();
    fs::write(mount.join("etc/made"), "new").unwrap();
    File::options().append(true).open(mount.join("etc/low")).unwrap().write_all(b"!").unwrap();
    File::open(mount.join("etc/low")).unwrap().sync_all().unwrap();
    assert_eq!(facts("etc/both"), "upper upper changed 1,2");
    assert_eq!(facts("etc/made"), "upper upper upper ");
    assert_eq!(facts("etc/low"), "upper upper changed 2");
    assert_eq!(facts("etc"), "upper upper,1,2 merged ");
    assert_eq!(Path::new(&real("etc/low")), stack.upper().root().join("etc/low"));

    fs::rename(mount.join("etc"), mount.join("etcetera")).unwrap();
    assert_eq!(facts("etcetera"), "upper upper,1,2 merged ");

    let gone = File::open(mount.join("gone")).unwrap();
    fs::remove_file(mount.join("gone")).unwrap();
    let mut value = [0; 64];
    let n = fgetxattr(&gone, "user.unionmount.state", &mut value).unwrap();
    assert_eq!(&value[..n], b"unlinked");
    drop(gone);

    let path = mount.join("etcetera/low");
    assert_eq!(fact(&path, "none"), Err(Errno::NODATA));
    assert!(read_xattrs(&path).unwrap().keys().all(|name| !name.starts_with(b"user.unionmount.")));
    for name in ["user.unionmount.layer", "user.unionmount.none"] {
        assert_eq!(setxattr(&path, name, b"1", XattrFlags::empty()), Err(Errno::PERM));
        assert_eq!(removexattr(&path, name), Err(Errno::PERM));
    }
    mount.unmount();
}
