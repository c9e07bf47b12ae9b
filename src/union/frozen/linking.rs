//! Files of which the upper has not all names: those that only a lower has find the copy by the hardlink index. A frozen layer has
//! no index, so it must have the names themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::dir::{for_each_entry, open_beneath};
use crate::sys::object::{At, Kind, Writable};
use crate::union::Union;
use crate::union::change::lend::with_rights;
use crate::union::frozen::mark::value;
use crate::union::hardlinks::counts::{NLINK, UNPUBLISHED, parse_nlink};
use crate::union::hardlinks::hidden::{HIDDEN, HIDING, REPLACING};
use crate::union::nodes::node::Node;
use crate::union::nodes::region::InodeId;
use crate::union::stack::workdir::{KERNEL_INDEX, Workdir};

/// What the hardlink index of an upper says.
#[derive(Debug, Default)]
pub struct IndexState {
    /// What in the index is of files that have names which only a lower has, or was left by a kill and is to be looked at by who
    /// has the lowers.
    pub lacking: BTreeSet<Vec<u8>>,
    /// How many names of files that were never copied up are hidden.
    pub hidden: BTreeMap<String, u64>,
}

/// Reads the hardlink index of a workdir.
///
/// # Errors
/// Those of reading it.
pub fn read(work: &Workdir) -> rustix::io::Result<IndexState> {
    let mut state = IndexState::default();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let kernel = match openat(&work.root, KERNEL_INDEX, flags, Mode::empty()) {
        Ok(dir) => Some(dir),
        Err(Errno::NOENT | Errno::ACCESS) => None,
        Err(errno) => return Err(errno),
    };
    for dir in std::iter::once(&work.index).chain(&kernel) {
        read_dir(dir, &mut state)?;
    }
    Ok(state)
}

fn read_dir(dir: &OwnedFd, state: &mut IndexState) -> rustix::io::Result<()> {
    let mut names = Vec::new();
    for_each_entry::<Errno>(dir.as_fd(), |entry| {
        names.push(entry.name.to_vec());
        Ok(())
    })?;
    for name in names {
        if let Some(file) = name.strip_suffix(HIDDEN.as_bytes()) {
            let target = At::Name(dir.as_fd(), &name).readlink()?;
            let count =
                std::str::from_utf8(&target).ok().and_then(|text| text.split(':').next()?.parse().ok());
            match (std::str::from_utf8(file), count) {
                (Ok(file), Some(count)) => drop(state.hidden.insert(file.to_owned(), count)),
                _ => drop(state.lacking.insert(name)),
            }
            continue;
        }
        let unfinished = [HIDING, REPLACING].iter().any(|end| name.ends_with(end.as_bytes()));
        if unfinished || lacks_names(dir.as_fd(), &name)? {
            state.lacking.insert(name);
        }
    }
    Ok(())
}

/// Tells whether a copy in an index has names that the upper hasn't.
fn lacks_names(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    let held = At::Name(dir, name).pin()?;
    let stat = At::Fd(held.as_fd()).stat()?;
    // Directories are there for NFS export, whiteouts say that a handle is stale.
    if stat.kind() == Kind::Directory || stat.is_whiteout_device() {
        return Ok(false);
    }
    #[expect(clippy::disallowed_methods, reason = "the workdir is its own")]
    let object = Writable::held(held.as_fd());
    let marks = with_rights(object, 0o600, || {
        Ok::<_, FsError>((value(held.as_fd(), UNPUBLISHED)?, value(held.as_fd(), NLINK)?))
    });
    let (unpublished, count) = marks.map_err(|error| error.errno())?;
    // Less the one in the index.
    let own = stat.nlink.saturating_sub(1);
    if unpublished.is_some() && own == 0 {
        return Ok(false); // never seen
    }
    Ok(match count {
        None => false,
        Some(count) => parse_nlink(&count, stat.nlink).is_none_or(|merged| merged > own),
    })
}

/// How many names of a file were found, and how many it has.
struct Names {
    found: u64,
    there: u64,
}

/// Counts the names of the files of a directory and all below it that have several. `on`: its device, and its region.
fn count_names(
    root: BorrowedFd<'_>,
    on: (u64, u16),
    all: &mut HashMap<InodeId, Names>,
) -> rustix::io::Result<()> {
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let dir = open_beneath(root, if path.is_empty() { b"." } else { &path })?;
        let mut entries = Vec::new();
        for_each_entry::<Errno>(dir.as_fd(), |entry| {
            entries.push(entry.name.to_vec());
            Ok(())
        })?;
        for name in entries {
            let stat = At::Name(dir.as_fd(), &name).stat()?;
            if stat.dev != on.0 {
                continue; // another region's, or of a mount in it
            }
            if stat.kind() == Kind::Directory {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                todo.push([&path[..], slash, &name].concat());
            } else if stat.nlink > 1
                && let Some(id) = InodeId::new(on.1, stat.ino)
            {
                all.entry(id).or_insert(Names { found: 0, there: stat.nlink }).found += 1;
            }
        }
    }
    Ok(())
}

impl Union {
    /// Returns what in the hardlink index is of files that have all their names in the lowers, hidden ones too. When all that are shown
    /// are links of the copies, the others can't be asked for.
    ///
    /// # Errors
    /// Those of reading the lowers.
    pub fn found_with_all_names(&self) -> Result<BTreeSet<Vec<u8>>> {
        let mut names = HashMap::new();
        for layer in self.merged_layers().iter().filter(|layer| !self.is_upper(layer.root.layer)) {
            if layer.root.tree().is_none() {
                let root = self.fds.host(&layer.root)?;
                count_names(root.as_fd(), (layer.root.id.0, layer.root.region()), &mut names)?;
            }
        }
        let all = names.into_iter().filter(|(_, names)| names.found == names.there).map(|(id, _)| id);
        let indexed = self.upper()?.links().indexed.read();
        Ok(all.filter_map(|id| indexed.get(&id).map(|of| of.name().to_vec())).collect())
    }

    /// Makes all names that only lowers have, of files that were copied up under others, links of the copies. Goes through the
    /// whole tree.
    ///
    /// # Errors
    /// The first of a name that can't be looked at or linked.
    pub fn link_all_names(&self) -> Result<()> {
        let mut todo: Vec<Arc<Node>> = vec![self.root().clone()];
        while let Some(dir) = todo.pop() {
            let mut names = Vec::new();
            self.readdir(&dir, 0, |entry| {
                names.push(entry.name);
                true
            })?;
            for name in names {
                let Some((node, attr)) = self.lookup(&dir, &name)? else { continue };
                if node.dir.is_some() {
                    todo.push(node);
                    continue;
                }
                // The last of several names counts as one, and is led to its copy by the index.
                let may_lead_elsewhere = attr.stat.nlink > 1 || self.hardlinks.origin(node.ino).is_some();
                let linked = if may_lead_elsewhere { self.link_lower_name(&dir, &name) } else { Ok(()) };
                let ino = node.ino;
                drop(node);
                self.forget(ino, 1);
                linked?;
            }
            if dir.ino != self.root().ino {
                let ino = dir.ino;
                drop(dir);
                self.forget(ino, 1);
            }
        }
        Ok(())
    }
}
