//! `unionmount try`: a command whose changes can be looked at, and then be kept or thrown away.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use rustix::io::Errno;

use super::apply::{apply_to, finish_applying, report};
use super::discard::is_half_applied;
use super::store::own_place;
use super::{Failure, ask, say};
use crate::changes::apply::{Options, Policy};
use crate::changes::patch;
use crate::changes::stacked::Stacked;
use crate::image::layer::{Change, ChangeKind};
use crate::sys::dir::open_named;
use crate::sys::flock::Access;
use crate::trying::inside::{self, LIMITS};
use crate::trying::record::{Kept, Record, TryError};
use crate::trying::waiting::HandingOn;
use crate::union::escaped_path::EscapedPath;

/// Run a command, look at what it changed, and then decide whether it has happened
///
/// The command sees the directory as it is, and changes it as it likes; but the changes are kept beside it. When it has
/// ended, they are listed, and you choose: apply them, keep them for later, or discard them. Until you apply, nothing has
/// happened. No rights are needed for that.
#[derive(Debug, clap::Args)]
#[command(name = "try", after_long_help = EXAMPLES)]
pub(super) struct Try {
    /// A directory whose changes are kept beside it; may repeat [default: the current one]
    #[arg(long = "dir", value_name = "DIR", conflicts_with_all = ["root_fs", "resume"])]
    dirs: Vec<PathBuf>,

    /// The same for the whole machine: changes of /etc, /usr and so on are kept beside it too
    #[arg(long, conflicts_with = "resume")]
    root_fs: bool,

    /// Apply the changes without asking
    #[arg(long, group = "decision")]
    apply: bool,

    /// Keep them for later without asking
    #[arg(long, group = "decision")]
    keep: bool,

    /// Discard them without asking
    #[arg(long, group = "decision")]
    discard: bool,

    /// Go on with a try that was kept: run a command in it again, or with --apply or --discard only decide
    #[arg(long, value_name = "NAME")]
    resume: Option<String>,

    /// List what is kept
    #[arg(long, conflicts_with_all = ["dirs", "root_fs", "decision", "resume", "command"])]
    list: bool,

    /// Where a file was changed by somebody else meanwhile, apply over it
    #[arg(long, conflicts_with = "theirs")]
    force: bool,

    /// Where a file was changed by somebody else meanwhile, leave it, and apply the rest
    #[arg(long)]
    theirs: bool,

    /// The part within the namespaces
    #[arg(long, hide = true, value_name = "DIR")]
    inside: Option<PathBuf>,

    /// The command and its arguments [default: your shell]
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

const EXAMPLES: &str = "\
EXAMPLES:
  What would this clean up? Look, then decide:
      unionmount try -- make clean

  A shell to play in; leave it with exit:
      unionmount try

  A script that installs things somewhere in your home:
      cd; unionmount try -- sh install.sh

  In a script of your own, without questions:
      unionmount try --discard -- ./test.sh

WHAT IT DOESN'T KEEP IN:
  Files outside of the directory (see --dir and --root-fs), the network, other programs' memory. sudo and other setuid programs
  don't work in it unless you are root. What the command leaves running is ended with it.

EXIT STATUS:
  That of the command; 125 if the try itself failed; 126 or 127 if the command can't be run or isn't there.";

/// The exit status that says: not the command has failed, but what was to run it.
const OWN_FAILURE: u8 = 125;

/// How many changes are listed before a question; the rest is counted.
const LISTED: usize = 40;

/// What becomes of the changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Apply,
    Keep,
    Discard,
}

impl From<TryError> for Failure {
    fn from(error: TryError) -> Failure {
        Failure::failed(error)
    }
}

impl Try {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        self.run_to_its_end().map_err(|failure| match failure.code {
            2 => failure,
            _ => Failure { code: OWN_FAILURE, ..failure },
        })
    }

    fn decision(&self) -> Option<Decision> {
        let given =
            [(self.apply, Decision::Apply), (self.keep, Decision::Keep), (self.discard, Decision::Discard)];
        given.into_iter().find(|(given, _)| *given).map(|(_, decision)| decision)
    }

    fn run_to_its_end(self) -> Result<ExitCode, Failure> {
        super::logging::start_for_verb();
        if let Some(dir) = &self.inside {
            return match inside::run(&Kept::open(dir.clone())?, &self.command) {
                Err(TryError::NoProgram { code, why }) => {
                    say(&why);
                    Ok(ExitCode::from(code))
                }
                ended => Ok(ExitCode::from(code_of(ended?))),
            };
        }
        let own = own_place()?;
        if self.list {
            return list(&own);
        }
        let kept = match &self.resume {
            Some(name) => Kept::find(&own, name)?,
            None => self.begin(&own)?,
        };
        let only_decide = self.resume.is_some() && self.command.is_empty() && self.decision().is_some();
        let code = if only_decide { 0 } else { self.try_it(&kept)? };
        // Nobody is in it any more, or else nothing is decided.
        let Some(_alone) = kept.alone()? else {
            return Err(Failure::failed(format!(
                "{}: something still runs in it; {}",
                kept.name(),
                how_to_resume(&kept)
            )));
        };
        if code == OWN_FAILURE && !only_decide && count(&changes(&kept)?) == 0 {
            throw_away(&kept)?;
            return Err(Failure::told(OWN_FAILURE));
        }
        self.decide(&kept, self.decision())?;
        Ok(ExitCode::from(code))
    }

    /// Begins a try of the directories that are asked for.
    fn begin(&self, own: &Path) -> Result<Kept, Failure> {
        let asked = match (self.root_fs, &self.dirs[..]) {
            (true, _) => vec![PathBuf::from("/")],
            (false, []) => vec![PathBuf::from(".")],
            (false, dirs) => dirs.to_vec(),
        };
        let mut dirs = Vec::new();
        for dir in asked {
            let shown = EscapedPath::from(dir.as_path());
            let real =
                std::fs::canonicalize(&dir).map_err(|error| Failure::usage(format!("{shown}: {error}")))?;
            if !real.is_dir() {
                return Err(Failure::usage(format!("{shown}: is no directory")));
            }
            if !dirs.contains(&real) {
                dirs.push(real);
            }
        }
        let root_fs = dirs.iter().any(|dir| dir == Path::new("/"));
        let within = |one: &PathBuf, other: &PathBuf| one != other && one.starts_with(other);
        if let Some(inner) = dirs.iter().find(|one| dirs.iter().any(|other| within(one, other))) {
            let inner = EscapedPath::from(inner.as_path());
            return Err(Failure::usage(format!(
                "{inner}: lies in another directory that is given; leave it out"
            )));
        }
        // Within a try, what is kept outside of it isn't this one's affair.
        let outside = std::env::var_os("UNIONMOUNT_TRY").is_none();
        let (all, unreadable) = Kept::all(own);
        unreadable.iter().for_each(|error| say(&error.to_string()));
        for earlier in all.into_iter().filter(|_| outside) {
            let same = earlier.record.dirs.iter().any(|dir| dirs.iter().any(|new| new == dir.as_path()));
            if same && is_idle(&earlier)? == Some(true) {
                let dir = &earlier.record.dirs[0];
                say(&format!("changes of an earlier try in {dir} are kept; {}", how_to_resume(&earlier)));
            }
        }
        Ok(Kept::begin(own, Record::new(&dirs, root_fs, &self.words()))?)
    }

    /// Returns the command, or the user's shell.
    fn words(&self) -> Vec<OsString> {
        match &self.command[..] {
            [] => {
                vec![std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or("/bin/sh".into())]
            }
            words => words.to_vec(),
        }
    }

    /// Runs the command, within namespaces, by calling this very program. Returns its exit status.
    fn try_it(&self, kept: &Kept) -> Result<u8, Failure> {
        let signals =
            HandingOn::begin().map_err(|error| Failure::failed(format!("cannot catch signals: {error}")))?;
        inside::adopt()?;
        // From before the command is in it until it has left, so that nobody decides meanwhile.
        let lock = kept.lock(Access::Shared)?;
        if lock.is_none() {
            return Err(Failure::failed(format!("{}: somebody else is at work in it", kept.name())));
        }
        let place = match kept.record.root_fs {
            true => "the whole machine, as you see it,".to_owned(),
            false => kept.record.dirs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        let limits = if crate::sys::namespace::may_mount() { "" } else { LIMITS };
        let limits = if limits.is_empty() { String::new() } else { format!(" ({limits})") };
        say(&format!("{place} is being tried: nothing in it is changed until you apply it{limits}"));
        let mut command = Command::new("/proc/self/exe");
        command.arg0("unionmount").args(["try", "--inside"]).arg(&kept.dir).arg("--").args(self.words());
        let ended = command.spawn().and_then(|mut child| signals.wait(&mut child));
        let ended =
            ended.map_err(|error| Failure::failed(format!("/proc/self/exe: cannot be run: {error}")))?;
        if ended.signal().is_some() {
            inside::end_orphans(kept)
                .map_err(|error| Failure::failed(format!("{error}; kept: {}", how_to_resume(kept))))?;
        }
        Ok(code_of(ended))
    }

    /// Shows what was changed, and does what is decided.
    fn decide(&self, kept: &Kept, given: Option<Decision>) -> Result<(), Failure> {
        let found = changes(kept)?;
        if count(&found) == 0 {
            throw_away(kept)?;
            say("nothing was changed");
            return Ok(());
        }
        if given != Some(Decision::Discard) {
            show(&found);
        }
        let mut decision = given;
        loop {
            match decision.map_or_else(|| question(&found), Ok)? {
                Decision::Keep => {
                    say(&format!("kept; {}", how_to_resume(kept)));
                    return Ok(());
                }
                Decision::Discard => {
                    throw_away(kept)?;
                    say("discarded: nothing was changed");
                    return Ok(());
                }
                Decision::Apply => match self.apply_all(kept) {
                    Ok(true) => {
                        throw_away(kept)?;
                        say("applied");
                        return Ok(());
                    }
                    Ok(false) => {
                        say(&format!(
                            "applied, but for what is named above, which is kept; {}",
                            how_to_resume(kept)
                        ));
                        return Ok(());
                    }
                    Err(failure) if decision.is_some() => {
                        say(&format!("kept, since it could not be applied; {}", how_to_resume(kept)));
                        return Err(failure);
                    }
                    Err(failure) => say(&failure.message),
                },
            }
            decision = None;
        }
    }

    /// Applies all. Returns whether nothing is left that isn't applied.
    fn apply_all(&self, kept: &Kept) -> Result<bool, Failure> {
        let policy = match (self.force, self.theirs) {
            (true, _) => Policy::Force,
            (_, true) => Policy::Theirs,
            _ => Policy::Refuse,
        };
        let options =
            Options { policy, keep_owners: !crate::sys::namespace::may_mount(), ..Options::default() };
        let mut whole = true;
        // What an earlier call has begun is half done already, and comes first.
        for (upper, dir) in kept.pairs() {
            let applied = finish_applying(&upper, &dir, options)?;
            whole &= applied.left.is_empty();
            report(&applied, options)?;
        }
        // What is in the way of one is in the way of all.
        for dry_run in [true, false] {
            let options = Options { dry_run, ..options };
            for (upper, dir) in kept.pairs() {
                let applied = apply_to(&upper, &dir, options)?;
                let refused = policy == Policy::Refuse && !applied.conflicts.is_empty();
                if !dry_run || refused {
                    report(&applied, options)?;
                }
                whole &= applied.left.is_empty() && applied.conflicts.is_empty() || policy == Policy::Force;
            }
        }
        Ok(whole)
    }
}

/// Throws a try away, unless its changes are half applied: the rest of them is there alone.
fn throw_away(kept: &Kept) -> Result<(), Failure> {
    for (upper, _) in kept.pairs() {
        match open_named(&upper) {
            Ok(dir) => is_half_applied(&dir.into())?,
            Err(Errno::NOENT) => {}
            Err(errno) => {
                let (upper, error) = (EscapedPath::from(upper.as_path()), std::io::Error::from(errno));
                return Err(Failure::failed(format!("{upper}: cannot be opened: {error}")));
            }
        }
    }
    Ok(kept.remove()?)
}

fn count(found: &[(PathBuf, PathBuf, Vec<Change>)]) -> usize {
    found.iter().map(|(.., changes)| changes.len()).sum()
}

/// Asks what becomes of the changes. Without anybody to ask they are kept.
fn question(found: &[(PathBuf, PathBuf, Vec<Change>)]) -> Result<Decision, Failure> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() || !super::messages_are_read_on_a_terminal() {
        return Ok(Decision::Keep);
    }
    loop {
        let answer =
            ask::line("[a]pply these changes, [k]eep them for later, [d]iscard them, or show a [p]atch?")?;
        match answer.as_deref().map(str::to_lowercase).as_deref() {
            // The terminal is gone.
            None => return Ok(Decision::Keep),
            Some("a" | "apply") => return Ok(Decision::Apply),
            Some("k" | "keep") => return Ok(Decision::Keep),
            Some("d" | "discard") => return Ok(Decision::Discard),
            Some("p" | "patch") => {
                for (upper, dir, changes) in found {
                    let stacked = Stacked::open(upper, std::slice::from_ref(dir)).map_err(Failure::failed)?;
                    let sides = stacked.sides()?;
                    for change in changes {
                        sides.compare(change, |compared| {
                            let mut text = Vec::new();
                            patch::write(&mut text, &compared).map_err(Failure::failed)?;
                            for line in text.split_inclusive(|&byte| byte == b'\n') {
                                let line = line.strip_suffix(b"\n").unwrap_or(line);
                                ask::tell(&EscapedPath::from(line).to_string());
                            }
                            Ok::<_, Failure>(())
                        })?;
                    }
                }
            }
            Some(_) => {}
        }
    }
}

/// Finds what was changed in each directory.
fn changes(kept: &Kept) -> Result<Vec<(PathBuf, PathBuf, Vec<Change>)>, Failure> {
    let of = |(upper, dir): (PathBuf, PathBuf)| {
        let stacked = Stacked::open(&upper, std::slice::from_ref(&dir)).map_err(Failure::failed)?;
        Ok((upper, dir, stacked.changes()?))
    };
    kept.pairs().into_iter().map(of).collect()
}

/// Lists changes where messages go: what the command prints may be read by a program. A new directory stands for what is in it.
fn show(found: &[(PathBuf, PathBuf, Vec<Change>)]) {
    let mut lines = Vec::new();
    for (upper, dir, changes) in found {
        let mut new: Option<Vec<u8>> = None;
        for change in changes {
            if new.as_ref().is_some_and(|new| change.path.starts_with(new)) {
                continue;
            }
            let path = EscapedPath::from(change.path.strip_prefix(b"/").unwrap_or(&change.path));
            let is_dir = change.kind == ChangeKind::Added
                && std::fs::symlink_metadata(upper.join(path.as_path())).is_ok_and(|found| found.is_dir());
            let slash = if is_dir { "/" } else { "" };
            if is_dir {
                new = Some([&change.path[..], b"/"].concat());
            }
            let shown = if found.len() > 1 { dir.join(path.as_path()) } else { path.as_path().to_owned() };
            lines.push(format!("  {} {}{slash}", change.kind.letter(), EscapedPath::from(shown.as_path())));
        }
    }
    lines.iter().take(LISTED).for_each(|line| ask::tell(line));
    if let Some(more) = lines.len().checked_sub(LISTED).filter(|more| *more > 0) {
        ask::tell(&format!("  … and {more} more"));
    }
    ask::tell("  (A: added, C: changed, or something in it, D: deleted)");
}

fn how_to_resume(kept: &Kept) -> String {
    let name = kept.name();
    format!("unionmount try --resume {name} goes on, with --apply or --discard it decides")
}

/// Tells whether nobody is at work in a try; `None`: it has been thrown away meanwhile.
fn is_idle(kept: &Kept) -> Result<Option<bool>, Failure> {
    match kept.lock(Access::Exclusive) {
        Ok(lock) => Ok(Some(lock.is_some())),
        Err(TryError::Gone(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn list(own: &Path) -> Result<ExitCode, Failure> {
    let mut page = super::page::Page::default();
    let (all, unreadable) = Kept::all(own);
    let mut reasons: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
    for kept in all {
        let busy = match is_idle(&kept)? {
            Some(true) => "",
            Some(false) => ", in use",
            None => continue,
        };
        let count = match changes(&kept) {
            Ok(found) if count(&found) == 1 => "1 change".to_owned(),
            Ok(found) => format!("{} changes", count(&found)),
            Err(failure) => {
                reasons.push(failure.message);
                "changes can't be told".to_owned()
            }
        };
        let words =
            |paths: &[EscapedPath]| paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        page.line(format_args!(
            "{}  {}  {count}{busy}: {}",
            kept.name(),
            words(&kept.record.dirs),
            words(&kept.record.command)
        ));
    }
    page.print()?;
    reasons.iter().for_each(|reason| say(reason));
    Ok(if unreadable.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the exit status as shells tell it.
fn code_of(ended: ExitStatus) -> u8 {
    match (ended.code(), ended.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => u8::try_from(128 + signal.unwrap_or_default()).unwrap_or(u8::MAX),
    }
}
