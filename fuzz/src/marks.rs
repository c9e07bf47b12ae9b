//! Layers with marks of anybody's: whiteouts, opaque marks, redirects, owners in attributes. However they are made, the merged
//! view can be walked: it has an end, what is listed resolves and nothing else does, and what explain tells of it is so.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arbitrary::Unstructured;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
use unionmount::sys::object::Kind;
use unionmount::union::lookup::provenance::Outcome;
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
/// So many objects of a view are looked at as closely as can be.
const SOME: usize = 500;
/// What the names of attributes begin with that nobody is shown, beside the marks of the namespace that the mount believes.
const PRIVATE: [&str; 4] =
    ["user.fuseoverlayfs.", "security.fuseoverlayfs.", "user.containers.override_stat", "user.unionmount."];

/// What came of some layers.
#[derive(Debug, Default)]
struct Seen {
    /// How many mounts there could be.
    views: usize,
    /// How many objects they show.
    shown: usize,
    /// Under how many paths a layer has something, and the view nothing.
    deleted: usize,
    /// Under how many paths the view shows something, and hides something else.
    hidden: usize,
}

/// Makes layers and walks what they show.
pub fn marks(data: &[u8]) {
    look(data);
}

fn look(data: &[u8]) -> Seen {
    let mut seen = Seen::default();
    let yard = Yard::new();
    let mut data = Unstructured::new(data);
    build(&yard, &mut data).ok();
    let choice = data.arbitrary::<u8>().unwrap_or_default();
    let probe = lsetxattr(yard.dir("probe"), "trusted.unionmount", b"", XattrFlags::empty());
    let believed = if choice & 1 == 0 && probe.is_ok() { "trusted.overlay." } else { "user.overlay." };
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
        seen.views += 1;
        walk(&union, union.root(), &mut Vec::new(), (believed, &mut 0, &mut seen));
        union.shut_down();
    }
    seen
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

fn walk(
    union: &Union,
    dir: &Arc<Node>,
    path: &mut Vec<u8>,
    (believed, count, seen): (&str, &mut usize, &mut Seen),
) {
    let mut listed = Vec::new();
    let told = union.readdir(dir, 0, |entry| {
        listed.push((entry.name, entry.ino, entry.kind));
        true
    });
    if told.is_err() {
        return;
    }
    let length = path.len();
    if *count < SOME {
        for name in NAMES.iter().filter(|name| listed.iter().all(|(listed, ..)| **listed != *name.as_bytes()))
        {
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
            if let Ok(found) = union.lookup(dir, name.as_bytes()) {
                assert!(found.is_none(), "{} is there, and isn't listed", path.escape_ascii());
                seen.deleted += usize::from(explain(union, path, None));
            }
            path.truncate(length);
        }
    }
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
                    let mut private = PRIVATE.iter().chain([&believed]);
                    let private = private.any(|mark| shown.starts_with(mark.as_bytes()));
                    assert!(!private, "{} shows {}", path.escape_ascii(), shown.escape_ascii());
                }
                if node.kind == Kind::Directory {
                    walk(union, &node, path, (believed, count, seen));
                }
                seen.shown += 1;
                seen.hidden += usize::from(explain(union, path, Some(node.kind)));
                union.forget(node.ino, 1);
            }
        }
        path.truncate(length);
    }
}

/// Asserts that explain says of a path what lookup does. Returns whether layers have something there that isn't shown.
fn explain(union: &Union, path: &[u8], kind: Option<Kind>) -> bool {
    // It looks into layers that the lookup had no need to read, some of which can't be followed.
    let Ok(told) = union.inspector().provenance(path) else { return false };
    let is_directory = match told.outcome {
        Outcome::Absent => None,
        Outcome::Leaf { .. } => Some(false),
        Outcome::Directory { .. } => Some(true),
    };
    let expected = kind.map(|kind| kind == Kind::Directory);
    assert_eq!(is_directory, expected, "{}: {:?}", path.escape_ascii(), told.outcome);
    !told.hidden().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the corpus doesn't reach isn't looked at by the target either.
    #[test]
    fn the_corpus_has_marks_that_count() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/marks");
        let mut all = Seen::default();
        for file in fs::read_dir(corpus).unwrap() {
            let seen = look(&fs::read(file.unwrap().path()).unwrap());
            all.views += seen.views;
            all.shown += seen.shown;
            all.deleted += seen.deleted;
            all.hidden += seen.hidden;
        }
        assert!(all.views >= 20 && all.shown >= 80 && all.deleted >= 10 && all.hidden >= 20, "{all:?}");
    }
}
