//! Many layers.

use std::fs;

use crate::{exists, names, read};
use support::{Stack, WhiteoutForm};

#[test]
fn five_hundred_layers() {
    let stack = Stack::new(500);
    for (index, lower) in stack.lowers().iter().enumerate() {
        lower.file(format!("d/{index}"), format!("{index}")).file("same", format!("{index}"));
        if index % 50 == 49 {
            // Whites out what the layer below has.
            lower.whiteout(format!("d/{}", index + 1), WhiteoutForm::Device);
        }
    }
    let mount = if support::Program::under_test() == support::Program::Kernel {
        support::skip!("mount(8) takes a page of options at most")
    } else {
        stack.mount()
    };
    assert_eq!(read(mount.join("same")), b"0");
    let listed = names(mount.join("d"));
    assert_eq!(listed.len(), 500 - 9);
    for index in [0, 1, 49, 51, 250, 499] {
        let hidden = index % 50 == 0 && index > 0;
        assert_eq!(exists(mount.join(format!("d/{index}"))), !hidden, "d/{index}");
        if !hidden {
            assert_eq!(read(mount.join(format!("d/{index}"))), index.to_string().into_bytes());
        }
    }
    fs::write(mount.join("d/499"), "changed").unwrap();
    fs::remove_file(mount.join("d/3")).unwrap();
    fs::rename(mount.join("d"), mount.join("e")).unwrap();
    mount.unmount();
    let mount = stack.mount();
    assert_eq!(names(mount.join("e")).len(), 500 - 10);
    assert_eq!(read(mount.join("e/499")), b"changed");
    assert!(!exists(mount.join("e/3")) && !exists(mount.join("d")));
    mount.unmount();
}

#[test]
fn deep_trees() {
    let stack = Stack::new(2);
    let path: String = (0..60).map(|depth| format!("level{depth}/")).collect();
    stack.lower(0).file(format!("{path}f"), "deep");
    stack.lower(1).file(format!("{path}g"), "deeper");
    let mount = stack.mount();
    assert_eq!(names(mount.join(&path)), ["f", "g"]);
    fs::write(mount.join(format!("{path}g")), "changed").unwrap();
    fs::rename(mount.join("level0/level1"), mount.join("moved")).unwrap();
    let moved: String = (2..60).map(|depth| format!("level{depth}/")).collect();
    assert_eq!(read(mount.join(format!("moved/{moved}g"))), b"changed");
    assert_eq!(read(mount.join(format!("moved/{moved}f"))), b"deep");
    fs::remove_dir_all(mount.join("moved")).unwrap();
    assert!(names(mount.join("level0")).is_empty());
    mount.unmount();
}

/// Longer than PATH_MAX: by relative steps, as programs have to do it.
#[test]
fn paths_longer_than_path_max() {
    use rustix::fs::{CWD, OFlags, mkdirat, openat};
    let stack = Stack::new(1);
    stack.lower(0).dir("start");
    let mount = stack.mount();
    let name = "n".repeat(200);
    let mut directory =
        openat(CWD, mount.join("start"), OFlags::DIRECTORY | OFlags::RDONLY, 0.into()).unwrap();
    for _ in 0..30 {
        mkdirat(&directory, &name, 0o755.into()).unwrap();
        directory = openat(&directory, &name, OFlags::DIRECTORY | OFlags::RDONLY, 0.into()).unwrap();
    }
    let file = openat(&directory, "f", OFlags::CREATE | OFlags::RDWR, 0o644.into()).unwrap();
    rustix::io::write(&file, b"far down").unwrap();
    let mut bytes = [0; 8];
    rustix::io::pread(&file, &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"far down");
    drop((file, directory));
    support::run("rm", &["-rf", mount.join("start").to_str().unwrap()]);
    assert!(names(mount.path()).is_empty());
    mount.unmount();
}
