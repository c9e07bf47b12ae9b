//! What is under way, written down outside of the target: where nobody else can write.
//!
//! One file for each target, known by the target's inode. It is replaced by a rename, and on the disk before anything that
//! it speaks of is done. A lock beside it keeps two calls apart.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::beneath::{Dir, Seen};
use super::error::{ApplyError, Result};
use super::plan::Plan;
use super::step::{Act, Brought, Left, Step, What};
use crate::sys::durable::write_durably;
use crate::sys::flock::{Access, try_lock};
use crate::sys::object::At;
use crate::union::escaped_path::EscapedPath;

/// The version of the form.
const VERSION: u32 = 1;

/// Which upper and which target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The upper's root.
    pub upper: Seen,
    /// The target's.
    pub target: Seen,
}

impl Place {
    /// Takes note of two open directories.
    ///
    /// # Errors
    /// Those of stat.
    pub fn of(upper: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &Path) -> Result<Place> {
        let seen =
            |dir| At::Fd(dir).stat().map(|stat| Seen::of(&stat)).map_err(ApplyError::io("look at it", path));
        Ok(Place { upper: seen(upper)?, target: seen(target)? })
    }
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// What is new is being made; nothing of the target was touched.
    Staging,
    /// All is made, and the steps are being done.
    Committed,
    /// All steps are done; the stages are to be removed.
    Done,
    /// Nothing is left to do. What is kept tells which renamed directories were brought to their places.
    Finished,
}

/// A directory in which objects are prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// The directory of the target that holds it.
    pub home: Dir,
    /// Its name there.
    pub name: String,
    /// Which it is, once it is made.
    pub seen: Option<Seen>,
}

/// What is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// For messages.
    pub upper_path: EscapedPath,
    /// For messages.
    pub target_path: EscapedPath,
    /// Which directories these are.
    pub place: Place,
    /// How far it has come.
    pub state: State,
    /// Where objects are prepared.
    pub stages: Vec<Stage>,
    /// What is to be done.
    pub steps: Vec<Step>,
    /// Renamed directories that have come to their places, of this upper and of others.
    pub brought: Vec<Brought>,
    /// What isn't as the upper has it.
    #[serde(default)]
    pub left: Vec<Left>,
}

impl Journal {
    /// Notes which renamed directories the steps have brought to their places.
    pub fn note_brought(&mut self) {
        let from = |number: usize| self.steps.get(number).map(|step| step.path.clone());
        let moved = self.steps.iter().filter_map(|step| match step.act {
            Act::Put { what: What::Moved(number, seen), .. } => {
                Some(Brought { from: from(number)?, to: step.path.clone(), seen, upper: self.place.upper })
            }
            _ => None,
        });
        let moved: Vec<Brought> = moved.collect();
        self.brought.retain(|old| !moved.iter().any(|new| (&new.to, &new.upper) == (&old.to, &old.upper)));
        self.brought.extend(moved);
    }

    /// Begins with a plan that is about to be staged.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn begin(
        plan: &Plan,
        brought: Vec<Brought>,
        place: Place,
        upper: &Path,
        target: &Path,
    ) -> Result<Journal> {
        let stages = plan.homes.iter().map(|home| {
            let mut id = [0; 8];
            rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
                .map_err(ApplyError::at(b"", "choose a name in it"))?;
            Ok(Stage {
                home: home.clone(),
                name: format!(".unionmount-apply-{}", hex::encode(id)),
                seen: None,
            })
        });
        Ok(Journal {
            version: VERSION,
            upper_path: noted(upper),
            target_path: noted(target),
            place,
            state: State::Staging,
            stages: stages.collect::<Result<_>>()?,
            steps: plan.steps.clone(),
            brought,
            left: Vec::new(),
        })
    }
}

/// What is under way, with the file that tells of it.
pub type UnderWay = (PathBuf, Journal);

/// A journal that can't be read.
#[derive(Debug)]
pub struct Unreadable {
    /// Of which upper it is, where it still says that.
    pub upper: Option<Seen>,
    /// Why.
    pub why: ApplyError,
}

/// The journal's file, locked.
#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    file: PathBuf,
    _alone: File,
}

impl Kept {
    /// Opens the one for a target, in the directory `records`, which is made if need be.
    ///
    /// # Errors
    /// When another call is at work on the target.
    pub fn open(records: &Path, place: &Place) -> Result<Kept> {
        Kept::of_target(records, &place.target)
    }

    fn of_target(records: &Path, target: &Seen) -> Result<Kept> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(records)
            .map_err(ApplyError::io("create it", records))?;
        let name = serde_json::to_vec(target).map_err(|error| ApplyError::Refused(error.to_string()))?;
        Kept::at(records.join(format!("{}.json", &crate::image::digest::Digest::of(&name).hex()[..32])))
    }

    /// Opens the one in that file.
    fn at(file: PathBuf) -> Result<Kept> {
        let lock = file.with_extension("lock");
        let alone = File::options().create(true).truncate(false).write(true).mode(0o600).open(&lock);
        let alone = alone.map_err(ApplyError::io("open it", &lock))?;
        if !try_lock(&alone, Access::Exclusive).map_err(ApplyError::io("lock it", &lock))? {
            return Err(ApplyError::Refused(
                "another call is applying changes to this directory; wait for its end".into(),
            ));
        }
        let dir = file.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(Kept { dir, file, _alone: alone })
    }

    /// Finds all that is under way, whatever the directory, with the file that tells of it; and why others can't be read.
    ///
    /// # Errors
    /// Those of listing them.
    pub fn all(records: &Path) -> Result<(Vec<UnderWay>, Vec<Unreadable>)> {
        let (mut all, mut unreadable) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(records) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((all, unreadable)),
            entries => entries.map_err(ApplyError::io("list it", records))?,
        };
        for entry in entries {
            let file = entry.map_err(ApplyError::io("list it", records))?.path();
            if file.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&file) {
                Ok(Some(journal)) if journal.state != State::Finished => all.push((file, journal)),
                Ok(_) => {}
                Err(why) => unreadable.push(Unreadable { upper: upper_in(&file), why }),
            }
        }
        Ok((all, unreadable))
    }

    /// Opens what is under way for a target: by which directory that is, and by its path only where it is gone. `upper` is the
    /// one whose changes these must be, known in the same way.
    ///
    /// # Errors
    /// When nothing is, or another upper's changes are, and those of [`Kept::open`].
    pub fn find(records: &Path, upper: &Path, target: &Path) -> Result<(Kept, Journal)> {
        let (upper_seen, target_seen) = (seen_at(upper)?, seen_at(target)?);
        let (upper_path, target_path) = (noted(upper), noted(target));
        let of_upper = |journal: &Journal| match upper_seen {
            Some(seen) => journal.place.upper == seen,
            None => journal.upper_path == upper_path,
        };
        let (mut of_path, unreadable) = Kept::all(records)?;
        of_path.retain(|(_, journal)| journal.target_path == target_path);
        let found = match target_seen {
            Some(seen) => Kept::of_target(records, &seen)?.under_way()?,
            None => match the_only_one(&of_path, &target_path, of_upper)? {
                Some(file) => Kept::at(file.to_owned())?.under_way()?,
                None => None,
            },
        };
        match found {
            Some((kept, journal)) if of_upper(&journal) => Ok((kept, journal)),
            Some((_, journal)) => {
                let (other, known) = (&journal.upper_path, journal.upper_path == upper_path);
                let was = if known { ", which was there before; move this one away meanwhile" } else { "" };
                Err(ApplyError::Refused(format!(
                    "{target_path}: what is half applied to it are the changes of another upper, {other}{was}; to give these \
                     up: unionmount apply --abandon {other} {target_path}"
                )))
            }
            None => {
                let was = match target_seen.is_some() && !of_path.is_empty() {
                    true => {
                        ", but to another directory that was there before; name that one by where it is now, or, where it is \
                         gone, move this one away meanwhile"
                    }
                    false => "",
                };
                let and = unreadable.iter().map(|one| format!("; {}", one.why)).collect::<String>();
                Err(ApplyError::Refused(format!("{target_path}: nothing is half applied to it{was}{and}")))
            }
        }
    }

    /// Reads what is under way, as long as it hasn't come to its end.
    fn under_way(self) -> Result<Option<(Kept, Journal)>> {
        let journal = self.read()?.filter(|journal| journal.state != State::Finished);
        Ok(journal.map(|journal| (self, journal)))
    }

    /// Reads what is under way, if anything is.
    ///
    /// # Errors
    /// When it can't be read, or was written by another version.
    pub fn read(&self) -> Result<Option<Journal>> {
        read(&self.file)
    }

    /// Writes it, to the disk.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&mut self, journal: &Journal) -> Result<()> {
        let text = serde_json::to_vec(journal).map_err(|error| ApplyError::Refused(error.to_string()))?;
        write_durably(&self.dir, &self.file, &text).map_err(ApplyError::io("write it", &self.file))
    }

    /// Forgets it: nothing is under way any more.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn forget(&mut self) -> Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(ApplyError::io("remove it", &self.file)(error)),
            // What came back after a power failure would speak of what is no more.
            Ok(()) => File::open(&self.dir)
                .and_then(|dir| dir.sync_all())
                .map_err(ApplyError::io("sync it", &self.dir)),
        }
    }

    /// Keeps of a journal that has come to its end what later calls need to know.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(&mut self, journal: &mut Journal) -> Result<()> {
        if journal.brought.is_empty() {
            return self.forget();
        }
        // A renamed directory is known as such by what it was before; so it is written down that it has come.
        journal.state = State::Finished;
        journal.steps.clear();
        journal.stages.clear();
        journal.left.clear();
        self.write(journal)
    }
}

/// Returns the file that tells what is half applied to a directory that is gone; several can have been there, one after the
/// other.
fn the_only_one<'a>(
    of_path: &'a [(PathBuf, Journal)],
    target: &EscapedPath,
    of_upper: impl Fn(&Journal) -> bool,
) -> Result<Option<&'a Path>> {
    let mut files: Vec<&Path> =
        of_path.iter().filter(|(_, journal)| of_upper(journal)).map(|(file, _)| &**file).collect();
    if files.is_empty() {
        files.extend(of_path.first().map(|(file, _)| &**file));
    }
    if files.len() < 2 {
        return Ok(files.pop());
    }
    let files: Vec<String> = files.into_iter().map(|file| EscapedPath::from(file).to_string()).collect();
    Err(ApplyError::Refused(format!(
        "{target}: changes were half applied to several directories that were there; name the one that is meant by where it is \
         now, or remove what tells of it: {}",
        files.join(", ")
    )))
}

/// Returns a path as it is written down; what is gone has the one that it had.
fn noted(path: &Path) -> EscapedPath {
    let whole = fs::canonicalize(path).ok().or_else(|| {
        let path = std::path::absolute(path).ok()?;
        Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?))
    });
    EscapedPath::from(whole.unwrap_or(path.to_owned()).as_path())
}

/// Returns which directory has a path; `None`: none has it.
fn seen_at(path: &Path) -> Result<Option<Seen>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        dir => {
            let dir = dir.map_err(ApplyError::io("open it", path))?;
            let stat = At::Fd(dir.as_fd()).stat().map_err(ApplyError::io("look at it", path))?;
            Ok(Some(Seen::of(&stat)))
        }
    }
}

/// Returns of which upper a journal is that can't be read otherwise, as one of another version.
fn upper_in(file: &Path) -> Option<Seen> {
    let text: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    serde_json::from_value(text.get("place")?.get("upper")?.clone()).ok()
}

fn read(file: &Path) -> Result<Option<Journal>> {
    let text = match fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(ApplyError::io("read it", file))?,
    };
    let wrong = |what: String| {
        ApplyError::Refused(format!(
            "{}: {what}; it tells what was being applied, and to which directory: when that is known to be done, remove it",
            file.display()
        ))
    };
    let journal: Journal =
        serde_json::from_slice(&text).map_err(|error| wrong(format!("is damaged: {error}")))?;
    if journal.version != VERSION {
        let version = journal.version;
        return Err(wrong(format!("was written by another version of this program (form {version})")));
    }
    Ok(Some(journal))
}

impl Stage {
    /// Opens it: only the directory that was made is entered, and only if it is this user's alone.
    ///
    /// # Errors
    /// [`ApplyError::Changed`] where it is another.
    pub fn open(&self, target: BorrowedFd<'_>) -> Result<std::os::fd::OwnedFd> {
        let path = crate::image::layer::place::join(&self.home.path.0, self.name.as_bytes());
        let home = self.home.open(target)?;
        let dir = crate::image::layer::place::open_dir(home.as_fd(), self.name.as_bytes())
            .map_err(ApplyError::at(&path, "open it"))?;
        let stat = At::Fd(dir.as_fd()).stat().map_err(ApplyError::at(&path, "look at it"))?;
        let own = stat.uid == rustix::process::geteuid().as_raw() && stat.mode & 0o077 == 0;
        match own && self.seen.is_none_or(|seen| seen.is_same(&stat)) {
            true => At::Fd(dir.as_fd()).open_directory().map_err(ApplyError::at(&path, "open it")),
            false => Err(ApplyError::Changed(path)),
        }
    }
}
