//! What must hold after a power failure.
//!
//! On a filesystem with one journal for all (ext4, XFS) what is found must be what a program could have seen at one
//! instant: the names and attributes of one state between the last that was made durable and the last that was begun.
//! On btrfs, whose log holds single objects, that is asked of each path by itself. Data are no part of a journal: each
//! byte of a file must be one that the file had since its data were last made durable, or a hole of a file that grew.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::worker::Worker;
use crate::workload::{Done, Durable};
use support::model::tree::{Id, Model, Node};
use support::{Content, Entry, Fields, Kind, Snapshot, diff};

/// In pieces of that size data are compared first.
const PIECE: usize = 4096;

/// How what is found may differ from a state of the whole tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Names and attributes are those of one instant.
    Whole,
    /// Each path may be older or newer than others.
    EachPath,
}

/// The tree that was found after a failure.
pub struct Found {
    snapshot: Snapshot,
    contents: BTreeMap<OsString, Vec<u8>>,
}

impl Found {
    /// Reads the tree at `root`.
    pub fn read(root: &Path, worker: Worker) -> Found {
        let snapshot = worker.read(root);
        let files = snapshot.entries.iter().filter(|(_, entry)| entry.kind == Kind::File);
        let contents =
            files.map(|(path, _)| (path.clone(), std::fs::read(root.join(path)).unwrap())).collect();
        Found { snapshot: shape(snapshot), contents }
    }
}

/// A snapshot without what is no part of the promise about names: data and times.
fn shape(mut snapshot: Snapshot) -> Snapshot {
    for entry in snapshot.entries.values_mut().filter(|entry| entry.kind == Kind::File) {
        entry.content = Content::Any;
        entry.size = 0;
    }
    snapshot
}

fn fields() -> Fields {
    Fields { mtime: false, directory_mtime: false, nlink: false, ..Fields::tree() }
}

/// What was done, and how much of it a failure at a position may have left.
pub struct Promise<'a> {
    states: Vec<&'a Model>,
    done: &'a [Done],
    position: usize,
    /// The first state that may be found.
    first: usize,
    /// The last one.
    last: usize,
}

impl<'a> Promise<'a> {
    /// For a failure at `position`.
    pub fn new(start: &'a Model, done: &'a [Done], position: usize) -> Promise<'a> {
        let states = std::iter::once(start).chain(done.iter().map(|done| &done.model)).collect();
        let ended = |(_, done): &(usize, &Done)| done.ended <= position;
        let all = done.iter().enumerate().filter(ended);
        let first =
            all.clone().filter(|(_, done)| done.durable.contains(&Durable::All)).map(|(at, _)| at + 1).max();
        let promised = all.filter(|(_, done)| !done.durable.is_empty()).map(|(at, _)| at + 1).max();
        let begun = done.iter().filter(|done| done.began < position).count();
        Promise { states, done, position, first: first.unwrap_or(0), last: begun.max(promised.unwrap_or(0)) }
    }

    /// The promises that were made by the failure, each with the number of the state that it was made in.
    fn made(&self) -> impl Iterator<Item = (usize, &Durable)> {
        let ended = self.done.iter().enumerate().filter(|(_, done)| done.ended <= self.position);
        ended.flat_map(|(at, done)| done.durable.iter().map(move |durable| (at + 1, durable)))
    }

    /// Says what is wrong with what was found; nothing if it may be so.
    pub fn broken(&self, found: &Found, order: Order) -> Option<String> {
        match order {
            Order::Whole => {
                let mut nearest: Vec<(usize, String)> = Vec::new();
                for state in self.first..=self.last {
                    nearest.push((state, self.broken_as(found, state)?));
                }
                nearest.sort_by_key(|(state, text)| (text.lines().count(), std::cmp::Reverse(*state)));
                let nearest = nearest.iter().take(3).map(|(state, text)| format!("state {state}:\n{text}"));
                let nearest: String = nearest.collect();
                Some(format!("the nearest of the states {}..={}:\n{nearest}", self.first, self.last))
            }
            Order::EachPath => self.broken_paths(found),
        }
    }

    /// What speaks against `found` being the state of that number.
    fn broken_as(&self, found: &Found, state: usize) -> Option<String> {
        let model = self.states[state];
        let mut text = diff(&shape(model.snapshot()), &found.snapshot, &fields());
        for (at, durable) in self.made().filter(|(at, _)| *at > state) {
            let then = self.states[at];
            let same = match durable {
                Durable::All => false,
                Durable::Object(id) => same_names(model, then, *id) && alike(model, then, *id),
                Durable::Data(id) => same_names(model, then, *id),
                Durable::Entries(id) => {
                    same_names(model, then, *id)
                        && model.inodes.get(*id).and_then(|_| model.children(*id)) == then.children(*id)
                }
            };
            if !same {
                text += &format!(
                    "{durable:?} ({:?}) was made durable in state {at}\n",
                    paths(then, durable.id())
                );
            }
        }
        if text.is_empty() {
            for (path, id) in files(model) {
                if let Some(wrong) = self.broken_data(id, &found.contents[&path]) {
                    text += &format!("{}: {wrong}\n", path.display());
                }
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// Whether a file may hold these data.
    fn broken_data(&self, id: Id, data: &[u8]) -> Option<String> {
        let is_of_data = |(_, durable): &(usize, &Durable)| matches!(durable, Durable::Object(of) | Durable::Data(of) if *of == id);
        let durable = self.made().filter(is_of_data).map(|(at, _)| at).max();
        let from = durable.unwrap_or(0).max(self.first);
        let mut versions: Vec<&[u8]> = Vec::new();
        for state in from..=self.last {
            match self.states[state].inodes.get(id).map(|inode| &inode.node) {
                Some(Node::File(bytes)) => versions.push(bytes),
                _ => versions.push(b""),
            }
            if state > from
                && let Some((other, bytes)) = &self.done[state - 1].between
                && *other == id
            {
                versions.push(bytes);
            }
        }
        let longest = versions.iter().map(|version| version.len()).max()?;
        let shortest = versions.iter().map(|version| version.len()).min()?;
        if !(shortest..=longest).contains(&data.len()) {
            return Some(format!(
                "is {} bytes long, and was {shortest} to {longest} since state {from}",
                data.len()
            ));
        }
        // Nearly all is of one version, and byte by byte large files take long.
        let pieces = data.chunks(PIECE).enumerate().map(|(number, piece)| (number * PIECE, piece));
        let others = pieces.filter(|(start, piece)| {
            !versions.iter().any(|version| version.get(*start..start + piece.len()) == Some(*piece))
        });
        let mut bytes = others
            .flat_map(|(start, piece)| piece.iter().enumerate().map(move |(at, byte)| (start + at, byte)));
        let wrong = bytes.find(|(at, byte)| {
            let had = versions.iter().any(|version| version.get(*at) == Some(byte));
            // A file that grows is a hole there until its data are written.
            let hole = **byte == 0 && versions.iter().any(|version| version.len() <= *at);
            !had && !hole
        });
        let (at, byte) = wrong?;
        let had: BTreeSet<_> = versions
            .iter()
            .filter_map(|version| version.get(at))
            .map(|byte| byte.escape_ascii().to_string())
            .collect();
        Some(format!("byte {at} is '{}', and was one of {had:?} since state {from}", byte.escape_ascii()))
    }

    fn broken_paths(&self, found: &Found) -> Option<String> {
        let snapshots: Vec<_> = self.states.iter().map(|state| shape(state.snapshot())).collect();
        let mut all: BTreeSet<&OsString> = found.snapshot.entries.keys().collect();
        snapshots[..=self.last].iter().for_each(|snapshot| all.extend(snapshot.entries.keys()));
        let mut text = String::new();
        for path in all {
            let (from, attributes) = self.durable_since(path);
            let have = found.snapshot.entries.get(path);
            let could = |state: usize| snapshots[state].entries.get(path);
            let kind = |entry: Option<&Entry>| entry.map(|entry| entry.kind);
            let fits = (attributes..=self.last).any(|state| same_entry(could(state), have))
                && (from..=self.last).any(|state| kind(could(state)) == kind(have));
            if !fits {
                let what = |entry: Option<&Entry>| entry.map(|entry| (entry.kind, entry.mode, entry.uid));
                let could: Vec<_> =
                    (from..=self.last).map(|state| what(snapshots[state].entries.get(path))).collect();
                text += &format!(
                    "{}: is {:?}, and was {could:?} since state {from}\n",
                    path.display(),
                    what(have)
                );
            }
            let Some(data) = found.contents.get(path) else { continue };
            let ids: BTreeSet<Id> =
                (from..=self.last).filter_map(|state| files(self.states[state]).get(path).copied()).collect();
            let wrong: Vec<_> = ids.iter().map(|id| self.broken_data(*id, data)).collect();
            if let Some(Some(wrong)) = wrong.iter().find(|_| wrong.iter().all(Option::is_some)) {
                text += &format!("{}: {wrong}\n", path.display());
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// Whether a directory had the same path in all states up to that one.
    fn stays(&self, path: Option<&OsString>, state: usize) -> bool {
        let Some(path) = path else { return true };
        let at = |state: usize| {
            let path = support::model::op::Path(
                Path::new(path).iter().map(|name| name.as_bytes().to_vec()).collect(),
            );
            self.states[state].resolve(&path, false).ok()
        };
        let then = at(state);
        then.is_some() && (0..state).all(|state| at(state) == then)
    }

    /// The state since which what a path leads to is durable, and since which its attributes are.
    fn durable_since(&self, path: &OsString) -> (usize, usize) {
        let parent = Path::new(path).parent().map(|parent| parent.as_os_str().to_owned());
        let concerns = |(at, durable): &(usize, &Durable)| {
            let names = paths(self.states[*at], durable.id());
            match durable {
                Durable::All => true,
                Durable::Object(_) | Durable::Data(_) => {
                    names.contains(path) && (names.len() == 1 || self.stays(parent.as_ref(), *at))
                }
                Durable::Entries(_) => parent.as_ref().is_some_and(|parent| names.contains(parent)),
            }
        };
        let last = |all: &mut dyn Iterator<Item = (usize, &Durable)>| {
            all.map(|(at, _)| at).max().unwrap_or(0).max(self.first)
        };
        // A directory's entries are there with whatever attributes.
        let attributes = |(at, durable): &(usize, &Durable)| match durable {
            Durable::Data(_) => false,
            Durable::Entries(id) => paths(self.states[*at], *id).contains(path),
            Durable::All | Durable::Object(_) => true,
        };
        (last(&mut self.made().filter(concerns)), last(&mut self.made().filter(concerns).filter(attributes)))
    }
}

impl Durable {
    fn id(&self) -> Id {
        match self {
            Durable::All => 0,
            Durable::Object(id) | Durable::Data(id) | Durable::Entries(id) => *id,
        }
    }
}

fn same_entry(one: Option<&Entry>, other: Option<&Entry>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => {
            let of = |entry: &Entry| {
                let content = if entry.kind == Kind::Symlink { entry.content.clone() } else { Content::None };
                (entry.kind, entry.mode, entry.uid, entry.gid, entry.xattrs.clone(), content)
            };
            of(one) == of(other)
        }
        _ => false,
    }
}

/// Whether an object has the same attributes in two states.
fn alike(one: &Model, other: &Model, id: Id) -> bool {
    let of = |model: &Model| model.inodes.get(id).map(|i| (i.mode, i.owner, i.xattrs.clone()));
    of(one) == of(other)
}

/// Whether an object has the same names: the only one with the same path, or each of several in the same directory.
fn same_names(one: &Model, other: &Model, id: Id) -> bool {
    let (here, there) = (paths(one, id), paths(other, id));
    match (here.len(), there.len()) {
        (0..2, 0..2) => here == there,
        _ => entries(one, id) == entries(other, id),
    }
}

/// All entries of directories that lead to an object.
fn entries(model: &Model, id: Id) -> BTreeSet<(Id, Vec<u8>)> {
    let mut all = BTreeSet::new();
    visit(model, model.root, OsStr::new(""), &mut |_, at| {
        let children = model.children(at).into_iter().flatten();
        all.extend(children.filter(|(_, child)| **child == id).map(|(name, _)| (at, name.clone())));
    });
    all
}

/// All paths of an object.
fn paths(model: &Model, id: Id) -> BTreeSet<OsString> {
    let mut all = BTreeSet::new();
    visit(model, model.root, OsStr::new(""), &mut |path, at| {
        if at == id {
            all.insert(path.to_owned());
        }
    });
    all
}

/// All regular files by path.
fn files(model: &Model) -> BTreeMap<OsString, Id> {
    let mut all = BTreeMap::new();
    visit(model, model.root, OsStr::new(""), &mut |path, id| {
        if matches!(model.inodes[id].node, Node::File(_)) {
            all.insert(path.to_owned(), id);
        }
    });
    all
}

fn visit(model: &Model, id: Id, path: &OsStr, see: &mut impl FnMut(&OsStr, Id)) {
    see(path, id);
    for (name, child) in model.children(id).into_iter().flatten() {
        let mut path = path.to_owned();
        if !path.is_empty() {
            path.push("/");
        }
        path.push(OsStr::from_bytes(name));
        visit(model, *child, &path, see);
    }
}
