//! Layers with marks of anybody's: whiteouts, opaque marks, redirects, owners in attributes. However they are made, the merged
//! view can be walked: it has an end, and what is listed resolves.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arbitrary::Unstructured;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
use unionmount::sys::object::Kind;
use unionmount::union::nodes::node::Node;
use unionmount::union::options::{FsOptions, XattrPermissions};
use unionmount::union::stack::layer::{Stack, StackOptions, XattrChoice};
use unionmount::union::{Limits, Union};

use crate::yard::Yard;

/// What objects are called, so that layers meet.
const NAMES: [&str; 8] = ["a", "b", "c", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh..wh.plnk", ".wh."];
/// Attributes that say something.
const ATTRIBUTES: [&str; 14] = [
    "overlay.opaque",
    "overlay.redirect",
    "overlay.origin",
    "overlay.impure",
    "overlay.metacopy",
    "overlay.whiteout",
    "overlay.nlink",
    "overlay.upper",
    "overlay.uuid",
    "fuseoverlayfs.opaque",
    "fuseoverlayfs.override_stat",
    "containers.override_stat",
    "unionmount.origin",
    "unionmount.links",
];
/// Values that mean something, besides any.
const VALUES: [&str; 8] = ["y", "x", "", "/a", "b", "/a/b", "../a", "0:0:040755:dir"];

/// No view of a few objects is larger, whatever their redirects say.
const MOST: usize = 50_000;

/// Makes layers and walks what they show.
pub fn marks(data: &[u8]) {
    let yard = Yard::new();
    let mut data = Unstructured::new(data);
    build(&yard, &mut data).ok();
    let choice = data.arbitrary::<u8>().unwrap_or_default();
    for writable in [false, true] {
        let options = StackOptions {
            lowers: ["1", "2", "3"].map(|name| yard.dir(name).into()).into(),
            upper: writable.then(|| yard.dir("0")),
            work: writable.then(|| yard.dir("work")),
            volatile: true,
            xattr: if choice & 1 == 0 { XattrChoice::Auto } else { XattrChoice::User },
            ..StackOptions::default()
        };
        // Some are refused, with the reason.
        let Ok(stack) = Stack::open(&options) else { continue };
        let permissions = match choice >> 1 & 3 {
            0 => XattrPermissions::Off,
            _ => FsOptions::default().xattr_permissions,
        };
        let options = FsOptions { xattr_permissions: permissions, ..FsOptions::default() };
        let Ok(union) = Union::with_options(stack, Limits::default(), &options) else { continue };
        let mut count = 0;
        walk(&union, union.root(), &mut Vec::new(), &mut count);
        union.shut_down();
    }
}

fn build(yard: &Yard, data: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    for layer in ["0", "1", "2", "3"] {
        yard.dir(layer);
    }
    let mut made: Vec<PathBuf> = ["0", "1", "2", "3"].map(|layer| yard.path().join(layer)).into();
    for _ in 0..40 {
        if data.is_empty() {
            break;
        }
        let place = data.choose(&made)?.clone();
        match data.int_in_range(0..=9)? {
            0..=2 => {
                let at = place.join(data.choose(&NAMES)?);
                if fs::create_dir(&at).is_ok() {
                    made.push(at);
                }
            }
            3 => {
                let at = place.join(data.choose(&NAMES)?);
                if !at.exists() && fs::write(&at, "").is_ok() {
                    made.push(at);
                }
            }
            4 => {
                // A device 0:0, which an ordinary user may make too.
                let at = place.join(data.choose(&NAMES)?);
                mknodat(CWD, at, FileType::CharacterDevice, Mode::empty(), 0).ok();
            }
            5 => {
                let at = place.join(data.choose(&NAMES)?);
                std::os::unix::fs::symlink(data.choose(&VALUES)?, at).ok();
            }
            6 => {
                let from = data.choose(&made)?.clone();
                let at = place.join(data.choose(&NAMES)?);
                let layer =
                    |path: &Path| path.strip_prefix(yard.path()).unwrap().iter().next().map(OsStr::to_owned);
                if layer(&from) == layer(&at) {
                    fs::hard_link(from, at).ok();
                }
            }
            _ => attribute(&place, data)?,
        }
    }
    Ok(())
}

fn attribute(place: &Path, data: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let namespace = data.choose(&["trusted", "user", "security"])?;
    let name = format!("{namespace}.{}", data.choose(&ATTRIBUTES)?);
    let value = match data.ratio(1, 2)? {
        true => data.choose(&VALUES)?.as_bytes().to_vec(),
        false => {
            let length = data.int_in_range(0..=40)?;
            data.bytes(length)?.to_vec()
        }
    };
    lsetxattr(place, name, &value, XattrFlags::empty()).ok();
    Ok(())
}

fn walk(union: &Union, dir: &Arc<Node>, path: &mut Vec<u8>, count: &mut usize) {
    let mut listed = Vec::new();
    let told = union.readdir(dir, 0, |entry| {
        listed.push((entry.name, entry.ino, entry.kind));
        true
    });
    if told.is_err() {
        return;
    }
    let length = path.len();
    for (name, ino, kind) in listed {
        *count += 1;
        assert!(*count < MOST, "the view has no end: {}", path.escape_ascii());
        assert!(
            !name.starts_with(b".wh."),
            "a mark is listed: {}/{}",
            path.escape_ascii(),
            name.escape_ascii()
        );
        path.push(b'/');
        path.extend_from_slice(&name);
        match union.lookup(dir, &name) {
            // It can't be examined, and answers its own error.
            Err(_) => {}
            Ok(None) => panic!("{} is listed, and isn't there", path.escape_ascii()),
            Ok(Some((node, attr))) => {
                assert_eq!((attr.ino, Some(node.kind)), (ino, kind), "{}", path.escape_ascii());
                let device = node.kind == Kind::CharDevice && attr.stat.rdev == 0;
                assert!(!device, "a whiteout is seen: {}", path.escape_ascii());
                for shown in union.listxattr(&node).unwrap_or_default().split(|byte| *byte == 0) {
                    let private = [&b"trusted.overlay."[..], b"user.overlay."]
                        .iter()
                        .any(|mark| shown.starts_with(mark));
                    assert!(!private, "{} shows {}", path.escape_ascii(), shown.escape_ascii());
                }
                if node.kind == Kind::Directory {
                    walk(union, &node, path, count);
                }
                explain(union, path);
                union.forget(node.ino, 1);
            }
        }
        path.truncate(length);
    }
}

/// What explain says of a path comes from the same layers.
fn explain(union: &Union, path: &[u8]) {
    let name = OsStr::from_bytes(path);
    union.inspector().provenance(name.as_bytes()).ok();
}
