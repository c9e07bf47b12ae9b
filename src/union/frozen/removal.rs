//! Snapshots that aren't needed any more.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::sys::dir::for_each_entry;
use crate::sys::object::At;
use crate::sys::remove;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below::{open_base, read_head};
use crate::union::frozen::held::Writing;
use crate::union::frozen::keeping;
use crate::union::frozen::site::{BRANCHES, Layers, Site, layers_name};
use crate::union::frozen::unfit::{Result, SnapshotError};

/// A branch that stands on a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// The layer.
    pub layer: u32,
    /// Its directory with frozen layers, where it was when it was made.
    pub place: PathBuf,
    /// Whether it is there. One of which that can't be told counts as there.
    pub is_there: bool,
    /// Why that can't be told.
    pub unclear: Option<String>,
    /// Whether it is what is left of a container that has gone, or what there is of one that is being made.
    pub is_left: bool,
    /// The name under which it is written down.
    entry: Vec<u8>,
}

impl Branch {
    /// Returns its upper, as far as the name of its directory tells.
    pub fn upper(&self) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let name = self.place.file_name().unwrap_or_default().as_bytes();
        let own = name.strip_prefix(b".").and_then(|name| name.strip_suffix(b".layers"));
        own.map_or_else(
            || self.place.clone(),
            |own| self.place.with_file_name(std::ffi::OsStr::from_bytes(own)),
        )
    }

    /// Tells whether it holds nothing any more. `gone`: one that isn't found was not moved, but is gone.
    pub fn is_gone(&self, gone: bool) -> bool {
        !self.is_there && (gone || self.is_left)
    }
}

/// Returns the directory of the container whose upper would have that path, in whatever store.
pub fn container_of(upper: &Path) -> Option<&Path> {
    let own = upper.parent().filter(|_| upper.file_name().is_some_and(|name| name == "diff"))?;
    own.parent().and_then(Path::file_name).is_some_and(|within| within == "containers").then_some(own)
}

/// Returns where what is frozen of the upper at a path lies, if anything is.
pub fn place_of(upper: &Path) -> PathBuf {
    upper.with_file_name(layers_name(upper.file_name().unwrap_or_default()))
}

/// Tells whether the upper at a path is that of no container, though it lies where one's would, in the store of the layers' own one.
fn is_left(layers: &Layers, upper: &Path) -> Result<bool> {
    let Some(dir) = container_of(upper) else { return Ok(false) };
    let beside = layers.path.parent().and_then(Path::parent);
    if beside.is_none() || dir.parent() != beside {
        return Ok(false);
    }
    let record = dir.join("config.json");
    let is_there = record.try_exists();
    Ok(!is_there
        .map_err(SnapshotError::io("find out whether a branch is a container: look at it", record))?)
}

/// Lists the branches that stand on layers of a record.
///
/// # Errors
/// Those of reading where they are written down.
pub fn branches(layers: &Layers) -> Result<Vec<Branch>> {
    use std::os::unix::ffi::OsStringExt;
    let path = layers.path.join(BRANCHES);
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(&layers.dir, BRANCHES, flags, rustix::fs::Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        opened => opened.map_err(SnapshotError::io("open it", &path))?,
    };
    let mut names = Vec::new();
    for_each_entry::<Errno>(dir.as_fd(), |entry| {
        names.push(entry.name.to_vec());
        Ok(())
    })
    .map_err(SnapshotError::io("list it", &path))?;
    names.sort();
    let mut branches = Vec::new();
    for entry in names {
        let named = std::str::from_utf8(&entry).ok().and_then(|name| name.split_once('-'));
        let Some((Ok(layer), id)) = named.map(|(layer, id)| (layer.parse::<u32>(), id)) else { continue };
        let target =
            At::Name(dir.as_fd(), &entry).readlink().map_err(SnapshotError::io("read in it", &path))?;
        let place = PathBuf::from(std::ffi::OsString::from_vec(target));
        // What can't be read is no proof that it is gone.
        let (is_there, unclear) = match Layers::at(&place) {
            Ok(found) => (found.is_some_and(|found| found.record.id == id), None),
            Err(error) => (true, Some(error.to_string())),
        };
        let mut branch = Branch { layer, place, is_there, unclear, is_left: false, entry };
        branch.is_left = is_left(layers, &branch.upper())?;
        branches.push(branch);
    }
    Ok(branches)
}

/// Removes snapshots of the upper at a path. `gone`: branches that aren't found any more hold none.
///
/// # Errors
/// When something stands on one of them; then none is removed.
pub fn remove(path: &Path, names: &[String], gone: bool) -> Result<()> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let upper = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map_err(SnapshotError::io("open it", path))?;
    let none = || SnapshotError::refused(path, "has no snapshots");
    let layers = Site::of(upper.as_fd(), path)?.layers()?.ok_or_else(none)?;
    let mut writing = Writing::lock(layers)?;
    keeping::is_read_by_nobody(&writing.layers)?;
    let record = &writing.layers.record;
    let mut going = BTreeSet::new();
    for name in names {
        let found = record.find(name).filter(|layer| *layer != 0);
        going.insert(found.ok_or_else(|| {
            SnapshotError::refused(
                path,
                format!("no snapshot of it is called {name}; unionmount snapshots lists them"),
            )
        })?);
    }
    // Who had the lock before may have exchanged it.
    let upper = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map_err(SnapshotError::io("open it", path))?;
    let head = read_head(upper.as_fd(), path)?.map_or(0, |head| head.layer);
    if let Some(used) = record.chain(head).iter().find(|layer| going.contains(&layer.layer)) {
        let why = format!("it lies on the snapshot {}; roll back to one before it first", used.name);
        return Err(SnapshotError::refused(path, why));
    }
    let left = record.layers.iter().filter(|layer| !going.contains(&layer.layer));
    if let Some(on) = left.into_iter().find(|layer| going.contains(&layer.below)) {
        let below = record.layer(on.below).map_or("", |below| &below.name);
        let why = format!("the snapshot {} lies on {below}; remove that too", on.name);
        return Err(SnapshotError::refused(path, why));
    }
    let branches = branches(&writing.layers)?;
    let standing: Vec<&Branch> = branches.iter().filter(|branch| going.contains(&branch.layer)).collect();
    if let Some(branch) = standing.iter().find(|branch| !branch.is_gone(gone)) {
        return Err(SnapshotError::refused(path, why_not(branch)));
    }
    let record = &mut writing.layers.record;
    let leaving = record.layers.extract_if(.., |layer| going.contains(&layer.layer));
    record.removing.extend(leaving.map(|layer| layer.directory()));
    writing.layers.write()?;
    failpoint::reached(Failpoint::Changed);
    forget(&writing.layers, standing)?;
    writing.remove_leaving()
}

/// Forgets branches that were written down.
pub(super) fn forget<'a>(layers: &Layers, branches: impl IntoIterator<Item = &'a Branch>) -> Result<()> {
    let list = layers.path.join(BRANCHES);
    for branch in branches {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let flags = flags | rustix::fs::OFlags::NOFOLLOW;
        let dir = rustix::fs::openat(&layers.dir, BRANCHES, flags, rustix::fs::Mode::empty())
            .map_err(SnapshotError::io("open it", &list))?;
        remove::entry(dir.as_fd(), &branch.entry)
            .map_err(SnapshotError::io("remove an entry of it", &list))?;
    }
    Ok(())
}

/// Lets the stack that the upper at a path branches off forget it, now that it goes, or has gone already.
///
/// # Errors
/// When that stack isn't found, or can't be changed.
pub fn let_go(path: &Path) -> Result<()> {
    let Some(own) = Layers::beside(path)? else { return Ok(()) };
    let Some(base) = own.record.base.clone() else { return Ok(()) };
    let writing = Writing::lock(open_base(&own, &base)?)?;
    let entry = format!("{}-{}", base.layer, own.record.id).into_bytes();
    let mut going = branches(&writing.layers)?;
    going.retain(|branch| branch.entry == entry);
    forget(&writing.layers, &going)
}

/// Returns the branches that stand on layers of the upper at a path, those too that aren't found: they may have been moved.
///
/// # Errors
/// When the record can't be read.
pub fn standing(path: &Path) -> Result<Vec<Branch>> {
    Layers::beside(path)?.map_or_else(|| Ok(Vec::new()), |own| branches(&own))
}

/// Returns where the own frozen layers of the upper at a path lie, those too that it doesn't lie on.
///
/// # Errors
/// When the record can't be read.
pub fn own_places(path: &Path) -> Result<Vec<PathBuf>> {
    let Some(own) = Layers::beside(path)? else { return Ok(Vec::new()) };
    Ok(own.record.layers.iter().map(|layer| own.place(layer.layer)).collect())
}

fn why_not(branch: &Branch) -> String {
    let upper = EscapedPath::from(branch.upper().as_path());
    match branch.is_there {
        true if branch.is_left => format!(
            "the branch {upper} stands on it, of a container that has gone or is being made; if it has gone, unionmount prune removes \
             what is left of it"
        ),
        true => format!(
            "the branch {upper} stands on it; remove {upper} first, with {} beside it",
            EscapedPath::from(branch.place.as_path())
        ),
        false => why_gone(branch),
    }
}

/// Says that a branch isn't found, and the way out.
pub(super) fn why_gone(branch: &Branch) -> String {
    let upper = EscapedPath::from(branch.upper().as_path());
    format!(
        "the branch {upper} stood on it, and isn't there now; if it is gone for good and was not moved: --force"
    )
}
