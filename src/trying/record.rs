//! What is kept of a try: its record, and an upper for each directory.
//!
//! ```text
//! tries/NAME/
//! ├── record.json      what was tried, and where; written first
//! ├── lock             shared by all that is at work in it
//! └── 0, 1, …          the uppers, in the order of the directories
//! ```
//!
//! A place for uppers must take whiteouts, which a union itself does not: so a try within a try keeps its own elsewhere.

#![allow(clippy::disallowed_methods, reason = "the directory is its own")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, XattrFlags, mknodat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::container::mounting::wait_for_end;
use crate::sys::durable::write_durably;
use crate::sys::flock::{Access, lock_until};
use crate::sys::namespace::is_privileged;
use crate::sys::object::{At, Writable};
use crate::sys::xattr;
use crate::union::escaped_path::EscapedPath;
use crate::union::lookup::private::is_private_xattr;

const RECORD: &str = "record.json";

/// The version of its form.
const VERSION: u32 = 1;

/// How long others may be at work in a try that are about to leave it, or only look.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was tried, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The directories that are unions over themselves.
    pub dirs: Vec<EscapedPath>,
    /// The only one is the root of all.
    pub root_fs: bool,
    /// The command, for whoever lists what is kept.
    pub command: Vec<EscapedPath>,
    /// When it began, in seconds since the epoch.
    pub began: i64,
}

/// A try that is kept.
#[derive(Debug)]
pub struct Kept {
    /// Its directory.
    pub dir: PathBuf,
    /// What was tried.
    pub record: Record,
}

/// Why there is no try.
#[derive(Debug, thiserror::Error)]
pub enum TryError {
    /// A file of its own.
    #[error("{}: cannot {what}: {source}", EscapedPath::from(.path.as_path()))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The command can't be run.
    #[error("{why}")]
    NoProgram {
        /// The exit status that shells give for it.
        code: u8,
        /// The reason.
        why: String,
    },
    /// It was thrown away meanwhile.
    #[error("the try {0} was thrown away meanwhile; unionmount try --list shows what is kept")]
    Gone(String),
    /// Anything else.
    #[error("{0}")]
    Refused(String),
}

/// The result of what is done with a try.
pub type Result<T> = std::result::Result<T, TryError>;

impl TryError {
    /// Makes, for `map_err`, an error of a file.
    pub fn io<E: Into<io::Error>>(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(E) -> TryError {
        let path = path.as_ref().to_owned();
        move |error| TryError::Io { what, path, source: error.into() }
    }
}

/// Returns where tries may be kept, the best first. `own`: where this user's things are.
fn places(own: &Path) -> Vec<PathBuf> {
    let name = format!("unionmount-{}", rustix::process::geteuid().as_raw());
    let mut places = vec![own.join("tries")];
    if let Some(runtime) =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute())
    {
        places.push(runtime.join("unionmount/tries"));
    }
    places.extend(["/var/tmp", "/tmp", "/dev/shm"].map(|dir| Path::new(dir).join(&name).join("tries")));
    places
}

/// Makes a directory that is this user's alone, with the one that holds it.
fn own_dir(dir: &Path) -> io::Result<()> {
    for dir in dir.parent().into_iter().chain([dir]) {
        match fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !is_own(dir)? {
            return Err(io::Error::other("it is not this user's alone"));
        }
    }
    Ok(())
}

/// Tells whether this is a directory of this user's, in which nobody else can put anything.
fn is_own(dir: &Path) -> io::Result<bool> {
    let stat = fs::symlink_metadata(dir)?;
    Ok(stat.is_dir() && stat.uid() == rustix::process::geteuid().as_raw() && stat.mode() & 0o022 == 0)
}

/// Lists the directories of tries in a place. One that is another user's, as anybody can make one in a place of all, holds
/// none of this user's.
fn dirs_in(place: &Path) -> (Vec<PathBuf>, Vec<TryError>) {
    let (mut dirs, mut unreadable) = (Vec::new(), Vec::new());
    let mut note = |what, path: &Path, error: io::Error| {
        if error.kind() != io::ErrorKind::NotFound {
            unreadable.push(TryError::io(what, path)(error));
        }
    };
    for dir in place.parent().into_iter().chain([place]) {
        match is_own(dir) {
            Ok(true) => {}
            Ok(false) => {
                log::debug!("{}: is passed over, since it is not this user's alone", dir.display());
                return (dirs, unreadable);
            }
            Err(error) => {
                note("look at it", dir, error);
                return (dirs, unreadable);
            }
        }
    }
    match fs::read_dir(place) {
        Err(error) => note("list it", place, error),
        Ok(entries) => {
            for entry in entries {
                let dir = match entry {
                    Ok(entry) => entry.path(),
                    Err(error) => {
                        note("list it", place, error);
                        break;
                    }
                };
                match is_own(&dir) {
                    Ok(true) => dirs.push(dir),
                    Ok(false) => {}
                    Err(error) => note("look at it", &dir, error),
                }
            }
        }
    }
    (dirs, unreadable)
}

/// Returns whether an upper can be there: it takes whiteouts and attributes.
fn takes_uppers(dir: &Path) -> io::Result<()> {
    // In a directory that nobody else knows: another try may look at the same time.
    let probe = tempfile::Builder::new().prefix(".probe-").tempdir_in(dir)?;
    let open = File::open(probe.path())?;
    mknodat(&open, "whiteout", FileType::CharacterDevice, Mode::empty(), 0)?;
    Ok(rustix::fs::fsetxattr(&open, "user.unionmount.probe", b"", XattrFlags::empty())?)
}

/// Gives an upper the attributes of the directory that it is over: the root of the union shows them.
fn be_like(upper: &Path, dir: &Path) -> io::Result<()> {
    let (upper, dir) = (File::open(upper)?, File::open(dir)?);
    let (object, original) = (Writable::held(upper.as_fd()), At::Fd(dir.as_fd()));
    let stat = original.stat()?;
    if is_privileged() {
        object.chown(Some(stat.uid), Some(stat.gid))?;
    }
    object.chmod(stat.mode & 0o7777)?;
    for name in xattr::list(original)? {
        let wanted = name.starts_with(b"system.posix_acl_") || name.starts_with(b"user.");
        if wanted
            && !is_private_xattr(&name)
            && let Some(value) = xattr::get(original, &name)?
        {
            match object.set_xattr(&name, &value, XattrFlags::empty()) {
                // An ACL that names others can't be had by who may not give anything to them.
                Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

/// Makes an upper that is younger than all that was changed before: clocks are coarse, and what was changed in the instant
/// in which it was made would count as changed since.
fn make_young(upper: &Path, older: &Path) -> io::Result<()> {
    const TICK: std::time::Duration = std::time::Duration::from_millis(1);
    let then = At::Fd(File::open(older)?.as_fd()).stat()?.ctime;
    for round in 0.. {
        fs::DirBuilder::new().mode(0o700).create(upper)?;
        // Where births aren't known, or the clock was set back, there is nothing to wait for.
        let born = At::Fd(File::open(upper)?.as_fd()).stat()?.born;
        if round > 100 || born.is_none_or(|born| born > then) {
            break;
        }
        fs::remove_dir(upper)?;
        std::thread::sleep(TICK);
    }
    Ok(())
}

impl Kept {
    /// Begins a try of these directories, in the first place that can hold it.
    ///
    /// # Errors
    /// When there is none.
    pub fn begin(own: &Path, record: Record) -> Result<Kept> {
        let mut refusals = Vec::new();
        for (at, place) in places(own).into_iter().enumerate() {
            match own_dir(&place).and_then(|()| takes_uppers(&place)) {
                // What is only kept in a temporary place is called so.
                Ok(()) if at > 0 => {
                    let taken: Vec<String> = Kept::all(own).0.iter().map(Kept::name).collect();
                    return Kept::begin_in(&place, "t", &taken, record);
                }
                Ok(()) => return Kept::begin_in(&place, "", &[], record),
                Err(error) => refusals.push(format!("{}: {error}", EscapedPath::from(place.as_path()))),
            }
        }
        Err(TryError::Refused(format!(
            "there is no place for what will be changed: {}; give a directory with UNIONMOUNT_ROOT",
            refusals.join("; ")
        )))
    }

    fn begin_in(place: &Path, prefix: &str, taken: &[String], record: Record) -> Result<Kept> {
        let make = |dir: &Path| fs::DirBuilder::new().mode(0o700).create(dir);
        for number in 1u32.. {
            let name = format!("{prefix}{number}");
            let dir = place.join(&name);
            if taken.contains(&name) {
                continue;
            }
            match make(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(TryError::io("create it", &dir)(error)),
            }
            let kept = Kept { dir, record };
            return match kept.fill() {
                Ok(()) => Ok(kept),
                Err(error) => {
                    // One without uppers would be listed for ever.
                    if let Err(left) = kept.remove() {
                        log::warn!("{left}");
                    }
                    Err(error)
                }
            };
        }
        Err(TryError::Refused("too many tries are kept; see unionmount try --list".into()))
    }

    /// Writes the record, and makes the uppers.
    fn fill(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.record).map_err(|error| TryError::Refused(error.to_string()))?;
        let path = self.dir.join(RECORD);
        write_durably(&self.dir, &path, &text).map_err(TryError::io("write it", &path))?;
        for (upper, dir) in self.pairs() {
            make_young(&upper, &path).map_err(TryError::io("create it", &upper))?;
            be_like(&upper, &dir).map_err(TryError::io("give it the attributes of the directory", &upper))?;
        }
        Ok(())
    }

    /// Finds all that are kept, and why others can't be read.
    pub fn all(own: &Path) -> (Vec<Kept>, Vec<TryError>) {
        let (mut all, mut unreadable) = (Vec::new(), Vec::new());
        for place in places(own) {
            let (mut dirs, errors) = dirs_in(&place);
            unreadable.extend(errors);
            dirs.sort_by_key(|dir| {
                dir.file_name().and_then(|name| name.to_str()?.trim_start_matches('t').parse::<u32>().ok())
            });
            for dir in dirs {
                match Kept::open(dir) {
                    Ok(kept) => all.push(kept),
                    // It is only just begun, or thrown away.
                    Err(TryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => unreadable.push(error),
                }
            }
        }
        (all, unreadable)
    }

    /// Opens the one whose directory this is.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(dir: PathBuf) -> Result<Kept> {
        let path = dir.join(RECORD);
        let text = fs::read(&path).map_err(TryError::io("read it", &path))?;
        let wrong =
            |what: String| TryError::Refused(format!("{}: {what}", EscapedPath::from(path.as_path())));
        let record: Record =
            serde_json::from_slice(&text).map_err(|error| wrong(format!("is damaged: {error}")))?;
        match record.version {
            VERSION => Ok(Kept { dir, record }),
            other => Err(wrong(format!("was written by another version of this program (form {other})"))),
        }
    }

    /// Finds one by its name.
    ///
    /// # Errors
    /// When none has it.
    pub fn find(own: &Path, name: &str) -> Result<Kept> {
        let (mut all, unreadable) = Kept::all(own);
        if let Some(at) = all.iter().position(|kept| kept.name() == name) {
            return Ok(all.swap_remove(at));
        }
        let and = unreadable.iter().map(|error| format!("; {error}")).collect::<String>();
        Err(TryError::Refused(format!(
            "no try is called {name:?}; unionmount try --list shows what is kept{and}"
        )))
    }

    /// Returns its name.
    pub fn name(&self) -> String {
        self.dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Returns the uppers, each with the directory that it is over.
    pub fn pairs(&self) -> Vec<(PathBuf, PathBuf)> {
        let upper = |at: usize| self.dir.join(at.to_string());
        self.record.dirs.iter().enumerate().map(|(at, dir)| (upper(at), dir.as_path().to_owned())).collect()
    }

    /// Takes the lock. `None`: somebody is at work in it. Who only looks whether somebody is, holds it for a moment.
    ///
    /// # Errors
    /// When it can't be taken, and [`TryError::Gone`] where there is no such try any more.
    pub fn lock(&self, access: Access) -> Result<Option<File>> {
        let path = self.dir.join("lock");
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let gone = || TryError::Gone(self.name());
        let file = match file {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
            file => file.map_err(TryError::io("open it", &path))?,
        };
        let locked = lock_until(&file, access, Instant::now() + PATIENCE);
        if !locked.map_err(TryError::io("lock it", &path))? {
            return Ok(None);
        }
        // Meanwhile it may have been thrown away, and another one begun under its name.
        match Kept::open(self.dir.clone()) {
            Ok(now) if now.record == self.record => Ok(Some(file)),
            Ok(_) => Err(gone()),
            Err(TryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Err(gone()),
            Err(error) => Err(error),
        }
    }

    /// Takes the lock when nothing is at work in it any more: neither one who holds the lock, nor a mount, which can outlive
    /// who has made it. `None`: something is.
    ///
    /// # Errors
    /// When that can't be told.
    pub fn alone(&self) -> Result<Option<File>> {
        let Some(lock) = self.lock(Access::Exclusive)? else { return Ok(None) };
        for (upper, _) in self.pairs() {
            let free =
                wait_for_end(&upper, PATIENCE).map_err(|error| TryError::Refused(error.to_string()))?;
            if !free {
                return Ok(None);
            }
        }
        Ok(Some(lock))
    }

    /// Throws it away.
    ///
    /// # Errors
    /// What can't be removed.
    pub fn remove(&self) -> Result<()> {
        // From here on nobody finds it.
        let path = self.dir.join(RECORD);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(TryError::io("remove it", &path)(error));
            }
            _ => {}
        }
        crate::sys::remove::tree(&self.dir).map_err(|left| TryError::io("remove it", left.name)(left.errno))
    }
}

impl Record {
    /// Records a try that begins now.
    pub fn new(dirs: &[PathBuf], root_fs: bool, command: &[std::ffi::OsString]) -> Record {
        let path = |path: &Path| EscapedPath::from(path);
        Record {
            version: VERSION,
            dirs: dirs.iter().map(|dir| path(dir)).collect(),
            root_fs,
            command: command.iter().map(|word| path(Path::new(word))).collect(),
            began: rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn record(dir: &Path) -> Record {
        Record::new(&[dir.to_owned()], false, &["true".into()])
    }

    #[test]
    fn what_is_thrown_away_is_not_taken_for_what_comes_after_it() {
        let top = tempfile::tempdir().unwrap();
        let dirs = ["a", "b"].map(|name| top.path().join(name));
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let place = top.path().join("tries");
        own_dir(&place).unwrap();
        let first = Kept::begin_in(&place, "", &[], record(&dirs[0])).unwrap();
        assert!(first.lock(Access::Exclusive).unwrap().is_some());
        first.remove().unwrap();
        assert!(matches!(first.lock(Access::Exclusive), Err(TryError::Gone(_))));
        let second = Kept::begin_in(&place, "", &[], record(&dirs[1])).unwrap();
        assert_eq!(second.dir, first.dir);
        assert!(matches!(first.lock(Access::Exclusive), Err(TryError::Gone(_))));
        assert!(second.lock(Access::Exclusive).unwrap().is_some());
    }

    #[test]
    fn what_cannot_be_begun_leaves_nothing() {
        let top = tempfile::tempdir().unwrap();
        let place = top.path().join("tries");
        own_dir(&place).unwrap();
        Kept::begin_in(&place, "", &[], record(&top.path().join("none"))).unwrap_err();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    }

    #[test]
    fn a_place_of_somebody_else_holds_nothing_and_says_nothing() {
        let top = tempfile::tempdir().unwrap();
        let place = top.path().join("shared/tries");
        own_dir(&place).unwrap();
        let kept = Kept::begin_in(&place, "", &[], record(top.path())).unwrap();
        let listed = |place: &Path| {
            let (dirs, unreadable) = dirs_in(place);
            (dirs, unreadable.len())
        };
        assert_eq!(listed(&place), (vec![kept.dir.clone()], 0));
        assert_eq!(listed(&top.path().join("none/tries")), (vec![], 0));
        // In one that others can write to, what is in it is anybody's.
        let open = |dir: &Path, mode| fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
        for dir in [place.parent().unwrap(), &place] {
            open(dir, 0o777);
            assert_eq!(listed(&place), (vec![], 0), "{}", dir.display());
            open(dir, 0o700);
        }
        // A link leads into a place of somebody else's choice.
        std::os::unix::fs::symlink(top.path().join("shared"), top.path().join("link")).unwrap();
        assert_eq!(listed(&top.path().join("link/tries")), (vec![], 0));
        // What isn't there any more is not made again by a look at it.
        fs::remove_dir_all(&place).unwrap();
        assert_eq!((listed(&place), place.exists()), ((vec![], 0), false));
    }
}
