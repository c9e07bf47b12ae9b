//! What is new, made complete beside where it will be: in a directory that is this user's alone.

#![allow(
    clippy::disallowed_methods,
    reason = "nobody else can enter the stage, and what is made in it is reached by descriptors"
)]

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::beneath::{Seen, look};
use super::error::{ApplyError, Result};
use super::journal::{Journal, Kept, State};
use super::plan::Plan;
use super::put::Attributes;
use super::step::{Act, Left, Options, What};
use crate::image::layer::merged::{find, of_union};
use crate::image::layer::place::{join, open_dir};
use crate::sys::filesystem;
use crate::sys::object::{At, Kind, SetTime, Stat, Writable};
use crate::sys::remove;
use crate::union::Union;
use crate::union::nodes::node::Node;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Names what step `number` puts, in the stage.
pub(super) fn new_name(number: usize) -> String {
    format!("n{number}")
}

/// Names what step `number` took out, in the stage.
pub(super) fn taken_name(number: usize) -> String {
    format!("m{number}")
}

/// Names what goes with step `number`, in the stage.
pub(super) fn trash_name(number: usize) -> String {
    format!("t{number}")
}

/// Names what step `number` has brought out and nobody has judged yet, in the stage.
pub(super) fn come_name(number: usize) -> String {
    format!("c{number}")
}

/// What is told of an object that lacks some attributes.
pub(super) const NOT_ALL: &str = "not all of its attributes can be kept here";

/// Makes the stages and all that is new. The journal knows each stage before anything is made in it.
///
/// # Errors
/// What can't be made. The target is as it was.
pub fn make(
    plan: &Plan,
    target: BorrowedFd<'_>,
    journal: &mut Journal,
    kept: &mut Kept,
    options: Options,
) -> Result<()> {
    let mut stages = Vec::new();
    for number in 0..journal.stages.len() {
        let stage = &mut journal.stages[number];
        let dir = make_stage(stage.home.open(target)?.as_fd(), &stage.name, &stage.home.path.0)?;
        let stat =
            At::Fd(dir.as_fd()).stat().map_err(ApplyError::at(&stage.home.path.0, "look at the stage"))?;
        stage.seen = Some(Seen::of(&stat));
        kept.write(journal)?;
        stages.push(dir);
    }
    let mut maker = Maker { union: &plan.merged, options, links: HashMap::new(), left_out: Vec::new() };
    for number in 0..journal.steps.len() {
        let step = &journal.steps[number];
        let path = step.path.0.clone();
        let (stage, dir) = (step.stage, &stages[step.stage]);
        let Act::Put { what, replaces, .. } = &step.act else { continue };
        let name = new_name(number);
        match *what {
            What::Moved(..) => continue,
            What::New => {
                // One that is moved itself isn't there yet; then its file gets the user's own group.
                let replaced = replaces.and_then(|_| step.dir.open(target).ok());
                let old = match &replaced {
                    Some(dir) => At::Name(dir.as_fd(), step.name()).stat().ok(),
                    None => None,
                };
                maker.tree(dir.as_fd(), stage, &name, &path, old.as_ref())?;
            }
            What::Link(first) if journal.steps[first].stage == stage => {
                fs::linkat(dir, new_name(first), dir, &name, AtFlags::empty())
                    .map_err(ApplyError::at(&path, "link it"))?;
            }
            What::Link(_) => maker.tree(dir.as_fd(), stage, &name, &path, None)?,
        }
        let made = At::Name(dir.as_fd(), name.as_bytes()).stat();
        let made = Seen::of(&made.map_err(ApplyError::at(&path, "look at what was made"))?);
        if let Act::Put { made: slot, .. } = &mut journal.steps[number].act {
            *slot = Some(made);
        }
    }
    for stage in &stages {
        filesystem::sync(stage).map_err(ApplyError::at(b"", "write what was made to the disk"))?;
    }
    journal.left.extend(maker.left_out.iter().map(|path| Left::new(path, NOT_ALL)));
    Ok(())
}

fn make_stage(home: BorrowedFd<'_>, name: &str, path: &[u8]) -> Result<OwnedFd> {
    keeping_times(home, || fs::mkdirat(home, name, Mode::RWXU))
        .map_err(ApplyError::at(path, "make a directory in it"))?;
    let failed = || ApplyError::at(path, "prepare a directory in it");
    let dir = fs::openat(home, name, DIR, Mode::empty()).map_err(failed())?;
    // Who owns the home can have put another directory there by now, one of this user's too. Nothing is changed in one that
    // holds something; and an empty one that is this user's and nobody else's is as good as that which was made.
    let is_free = || {
        let stat = At::Fd(dir.as_fd()).stat().map_err(failed())?;
        let own = stat.uid == rustix::process::geteuid().as_raw() && stat.mode & 0o077 == 0;
        match own && remove::names(dir.as_fd()).map_err(failed())?.is_empty() {
            true => Ok(()),
            false => Err(ApplyError::Changed(join(path, name.as_bytes()))),
        }
    };
    is_free()?;
    // What is made in it inherits nothing.
    let object = Writable::held(dir.as_fd());
    for acl in [&b"system.posix_acl_default"[..], b"system.posix_acl_access"] {
        match object.remove_xattr(acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(failed()(errno)),
        }
    }
    object.chmod(0o700).map_err(failed())?;
    is_free()?;
    Ok(dir)
}

/// Changes what is in a directory, and gives it the times that it had.
fn keeping_times(
    dir: BorrowedFd<'_>,
    change: impl FnOnce() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let before = At::Fd(dir).stat()?;
    change()?;
    let [atime, mtime] = [before.atime, before.mtime].map(|time| Some(SetTime::At(time)));
    if let Err(errno) = Writable::held(dir).utimens(atime, mtime) {
        log::debug!("the times of a directory are new, since it is somebody else's: {errno}");
    }
    Ok(())
}

/// Whether an earlier call may have removed a stage already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// None has: one that isn't there was moved away by somebody else.
    First,
    /// One may have been interrupted in the middle of that.
    Again,
}

/// Removes the stages, and what is left in them: what was made and has come nowhere, and what goes. All else stays, and is
/// told in the journal, as what can't be removed: a stage that is in the way of nothing mustn't be in the way of all that
/// comes after.
pub fn sweep(target: BorrowedFd<'_>, journal: &mut Journal, sweep: Sweep) {
    let mut left = Vec::new();
    for (number, stage) in journal.stages.iter().enumerate() {
        let path = join(&stage.home.path.0, stage.name.as_bytes());
        match sweep_one(target, journal, number) {
            Ok(()) => {}
            // Nothing was ever made, or it is removed.
            Err(ApplyError::At { errno: Errno::NOENT, .. })
                if stage.seen.is_none() || sweep == Sweep::Again => {}
            Err(ApplyError::Changed(_) | ApplyError::At { errno: Errno::NOENT, .. }) => {
                left.push(Left::new(
                    &path,
                    "what was prepared here was moved away by somebody else, and is not removed",
                ));
            }
            Err(error) => left.push(Left::new(&path, &format!("is not removed: {error}"))),
        }
    }
    journal.left.extend(left);
}

fn sweep_one(target: BorrowedFd<'_>, journal: &Journal, number: usize) -> Result<()> {
    let stage = &journal.stages[number];
    let path = join(&stage.home.path.0, stage.name.as_bytes());
    let failed = || ApplyError::at(&path, "remove what was prepared");
    let home = stage.home.open(target)?;
    let home = At::Fd(home.as_fd()).open_directory().map_err(failed())?;
    // One that the journal doesn't know holds nothing.
    if stage.seen.is_some() {
        let dir = stage.open(target)?;
        for (step, one) in journal.steps.iter().enumerate().filter(|(_, step)| step.stage == number) {
            remove::entry(dir.as_fd(), trash_name(step).as_bytes()).map_err(failed())?;
            let name = new_name(step);
            let is_made = |stat: &Stat| match (&one.act, journal.state) {
                (_, State::Staging) => true,
                (Act::Put { made: Some(made), .. }, _) => made.is_same(stat),
                _ => false,
            };
            if look(dir.as_fd(), name.as_bytes(), &path)?.is_some_and(|stat| is_made(&stat)) {
                remove::entry(dir.as_fd(), name.as_bytes()).map_err(failed())?;
            }
        }
        if !remove::names(dir.as_fd()).map_err(failed())?.is_empty() {
            return Err(ApplyError::Refused("something is left here that belongs to the directory".into()));
        }
    }
    let name = CString::new(stage.name.as_bytes()).map_err(|_| failed()(Errno::INVAL))?;
    keeping_times(home.as_fd(), || fs::unlinkat(&home, &name, AtFlags::REMOVEDIR)).map_err(failed())?;
    filesystem::sync(&home).map_err(failed())
}

/// Makes objects as the union shows them.
struct Maker<'a> {
    union: &'a Union,
    options: Options,
    /// Where a file with several names was made first: by its real inode and the stage, the path in the stage.
    links: HashMap<(u64, u64, usize), Vec<u8>>,
    left_out: Vec<Vec<u8>>,
}

/// A directory that is being filled.
struct Frame {
    dir: OwnedFd,
    /// In the stage, and in the target.
    staged: Vec<u8>,
    path: Vec<u8>,
    node: Arc<Node>,
    names: Vec<Vec<u8>>,
    attributes: Attributes,
}

impl Maker<'_> {
    /// Makes what the union shows at `path`, with all that is in it. `old`: what it is to replace.
    fn tree(
        &mut self,
        top: BorrowedFd<'_>,
        stage: usize,
        name: &str,
        path: &[u8],
        old: Option<&Stat>,
    ) -> Result<()> {
        let gone = || ApplyError::Changed(path.to_vec());
        let node = find(self.union, path)?.ok_or_else(gone)?;
        let mut frames: Vec<Frame> = Vec::new();
        frames.extend(self.object(top, top, stage, name.as_bytes(), name.as_bytes(), path, node, old)?);
        while let Some(frame) = frames.last_mut() {
            let Some(name) = frame.names.pop() else {
                let Some(done) = frames.pop() else { break };
                let whole =
                    done.attributes.put(Writable::held(done.dir.as_fd()), Kind::Directory, &done.path)?;
                self.note(whole, &done.path);
                self.union.forget(done.node.ino, 1);
                continue;
            };
            let (staged, path) = (join(&frame.staged, &name), join(&frame.path, &name));
            let Some((node, _)) = self.union.lookup(&frame.node, &name).map_err(of_union(&path))? else {
                continue;
            };
            let dir = frame.dir.as_fd();
            let below = self.object(top, dir, stage, &name, &staged, &path, node, None)?;
            frames.extend(below);
        }
        Ok(())
    }

    fn note(&mut self, whole: bool, path: &[u8]) {
        if !whole {
            self.left_out.push(path.to_vec());
        }
    }

    /// Makes one object, named `name` in `dir`. Returns it, to be filled, if it is a directory. Gives `node` back otherwise.
    #[allow(clippy::too_many_arguments, reason = "where it is made, where it is known, what it is")]
    fn object(
        &mut self,
        top: BorrowedFd<'_>,
        dir: BorrowedFd<'_>,
        stage: usize,
        name: &[u8],
        staged: &[u8],
        path: &[u8],
        node: Arc<Node>,
        old: Option<&Stat>,
    ) -> Result<Option<Frame>> {
        let stat = self.union.getattr(&node).map_err(of_union(path))?.stat;
        let mut attributes = Attributes::shown(self.union, &node, &stat, path)?;
        if self.options.keep_owners {
            attributes.owner = None;
        }
        let failed = || ApplyError::at(path, "make it in the stage");
        if stat.kind() == Kind::Directory {
            fs::mkdirat(dir, name, Mode::RWXU).map_err(failed())?;
            let made = fs::openat(dir, name, DIR, Mode::empty()).map_err(failed())?;
            let mut names = Vec::new();
            self.union
                .readdir(&node, 0, |entry| {
                    names.push(entry.name.into_vec());
                    true
                })
                .map_err(of_union(path))?;
            let (staged, path) = (staged.to_vec(), path.to_vec());
            return Ok(Some(Frame { dir: made, staged, path, node, names, attributes }));
        }
        let id = (stat.dev, stat.ino, stage);
        if stat.nlink > 1
            && let Some(first) = self.links.get(&id)
        {
            let (parent, last) = crate::image::layer::place::split(first);
            let parent = open_dir(top, parent).map_err(failed())?;
            fs::linkat(&parent, last, dir, name, AtFlags::empty()).map_err(failed())?;
        } else {
            let whole = self.leaf(dir, name, path, &node, &stat, &attributes, old)?;
            self.note(whole, path);
            if stat.nlink > 1 {
                self.links.insert(id, staged.to_vec());
            }
        }
        self.union.forget(node.ino, 1);
        Ok(None)
    }

    #[allow(clippy::too_many_arguments, reason = "where it is made, where it is known, what it is")]
    fn leaf(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        node: &Arc<Node>,
        stat: &Stat,
        attributes: &Attributes,
        old: Option<&Stat>,
    ) -> Result<bool> {
        let failed = || ApplyError::at(path, "make it in the stage");
        let special = |kind| {
            fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, stat.rdev).map_err(|errno| match errno {
                Errno::PERM => ApplyError::Refused(format!(
                    "{}: a device can only be made by root; delete it, or apply the changes as root",
                    crate::union::escaped_path::EscapedPath::from(path)
                )),
                errno => failed()(errno),
            })
        };
        match stat.kind() {
            Kind::File => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed())?;
                let data = self.union.content(node).map_err(of_union(path))?;
                data.copy_to(file.as_fd(), stat.size, true).map_err(of_union(path))?;
                self.give_group(file.as_fd(), old);
                return attributes.put(Writable::held(file.as_fd()), Kind::File, path);
            }
            Kind::Symlink => {
                let target = self.union.readlink(node).map_err(of_union(path))?;
                fs::symlinkat(&target[..], dir, name).map_err(failed())?;
            }
            Kind::Fifo => special(FileType::Fifo)?,
            Kind::Socket => special(FileType::Socket)?,
            Kind::CharDevice => special(FileType::CharacterDevice)?,
            Kind::BlockDevice => special(FileType::BlockDevice)?,
            Kind::Directory => {}
        }
        attributes.put(Writable::entry_of_own(dir, name), stat.kind(), path)
    }

    /// Gives the group: where owners stay, a file keeps that of the one that it replaces, if this user may give it.
    fn give_group(&self, file: BorrowedFd<'_>, old: Option<&Stat>) {
        if let Some(old) = old.filter(|_| self.options.keep_owners || !rustix::process::geteuid().is_root())
            && let Err(errno) = Writable::held(file).chown(None, Some(old.gid))
        {
            log::debug!("the group stays the user's own: {errno}");
        }
    }
}
