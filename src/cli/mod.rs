//! The command line: clap definitions and one small file a verb.
//!
//! Mounting is what the program does when no verb is named. A verb is a file in this directory with an argument
//! struct and its `run`, and one line in `Verb` and in its `run`.
//!
//! Called as `fuse-overlayfs`, or as `mount.…` by mount(8), the program has no verbs: see `mount::helper_args`.

mod apply;
mod ask;
mod asked;
mod attach;
mod branches;
mod commit;
mod completions;
mod container;
mod create;
mod daemon;
mod dead;
mod demo;
mod descriptors;
mod diff;
mod explain;
mod history;
mod images;
mod import;
mod inspect;
mod layers;
mod load;
mod logging;
mod login;
mod man;
pub mod mount;
mod nearest;
pub mod options;
mod output;
mod page;
mod prune;
mod ps;
mod pull;
mod push;
mod registry;
mod remount;
mod rm;
mod rmi;
mod run;
mod save;
mod serve;
#[cfg(feature = "snapshotter")]
mod snapshotter;
#[cfg(not(feature = "snapshotter"))]
#[path = "no_snapshotter.rs"]
mod snapshotter;
mod status;
mod store;
mod tag;
mod tags;
mod template;
mod trace;
mod umount;
mod uptime;
mod verify;
mod volumes;
mod watch;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::union::escaped_path::escaped;

/// The program's name in messages.
const NAME: &str = "unionmount";

/// Merge directories into one tree: read-only layers below, one writable layer on top.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    after_help = SHORT_EXAMPLE,
    override_usage = USAGE,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    disable_help_subcommand = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    mount: mount::MountArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Explain(explain::Explain),
    Status(status::Status),
    Trace(trace::Trace),
    Layers(layers::Layers),
    Demo(demo::Demo),
    Load(load::Load),
    Save(save::Save),
    Import(import::Import),
    Images(images::Images),
    Inspect(inspect::Inspect),
    History(history::History),
    Pull(pull::Pull),
    Push(push::Push),
    Login(login::Login),
    Logout(login::Logout),
    Tags(tags::Tags),
    Tag(tag::Tag),
    Rmi(rmi::Rmi),
    Prune(prune::Prune),
    Verify(verify::Verify),
    Create(create::Create),
    Run(run::Run),
    Ps(ps::Ps),
    Diff(diff::Diff),
    Apply(apply::Apply),
    Discard(apply::Discard),
    Commit(commit::Commit),
    Rm(rm::Rm),
    #[command(name = "mount")]
    Attach(attach::Attach),
    #[command(visible_alias = "unmount")]
    Umount(umount::Umount),
    Man(man::Man),
    Completions(completions::Completions),
    Snapshotter(snapshotter::Snapshotter),
}

impl Verb {
    fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Verb::Explain(verb) => verb.run(),
            Verb::Status(verb) => verb.run(),
            Verb::Trace(verb) => verb.run(),
            Verb::Layers(verb) => verb.run(),
            Verb::Demo(verb) => verb.run(),
            Verb::Load(verb) => verb.run(),
            Verb::Save(verb) => verb.run(),
            Verb::Import(verb) => verb.run(),
            Verb::Images(verb) => verb.run(),
            Verb::Inspect(verb) => verb.run(),
            Verb::History(verb) => verb.run(),
            Verb::Pull(verb) => verb.run(),
            Verb::Push(verb) => verb.run(),
            Verb::Login(verb) => verb.run(),
            Verb::Logout(verb) => verb.run(),
            Verb::Tags(verb) => verb.run(),
            Verb::Tag(verb) => verb.run(),
            Verb::Rmi(verb) => verb.run(),
            Verb::Prune(verb) => verb.run(),
            Verb::Verify(verb) => verb.run(),
            Verb::Create(verb) => verb.run(),
            Verb::Run(verb) => verb.run(),
            Verb::Ps(verb) => verb.run(),
            Verb::Diff(verb) => verb.run(),
            Verb::Apply(verb) => verb.run(),
            Verb::Discard(verb) => verb.run(),
            Verb::Commit(verb) => verb.run(),
            Verb::Rm(verb) => verb.run(),
            Verb::Attach(verb) => verb.run(),
            Verb::Umount(verb) => verb.run(),
            Verb::Man(verb) => verb.run(),
            Verb::Completions(verb) => verb.run(),
            Verb::Snapshotter(verb) => verb.run(),
        }
    }
}

const USAGE: &str = "\
unionmount --lower DIR[:DIR…] [--upper DIR] [OPTIONS] MOUNTPOINT
       unionmount -o lowerdir=…,upperdir=…,workdir=… [SOURCE] MOUNTPOINT
       unionmount VERB …";

const LONG_ABOUT: &str = "\
Merge directories into one tree: read-only layers below, one writable layer on top.

The merged tree shows, for each path, the topmost entry. What is written goes to the upper layer: a file of a lower \
layer is copied up when it is first changed, and a deleted one is hidden by a whiteout. The lower layers never change, \
so many mounts can share them. Without an upper layer the mount is read-only.

The layout of the upper is that of the kernel's overlayfs; each can mount what the other wrote.";

const SHORT_EXAMPLE: &str = "\
Example:
  unionmount --lower base --upper changes merged   # changes to merged/ land in changes/
  umount merged                                    # or, as an ordinary user: fusermount3 -u merged

More with --help.";

const EXAMPLES: &str = "\
EXAMPLES:
  Try changes to a tree without touching it:
      mkdir changes merged
      unionmount --lower /usr/share/doc --upper changes merged
      rm -r merged/bash; echo hello > merged/new
      find changes                     # the new file, and the whiteout that hides bash/
      umount merged                    # as an ordinary user: fusermount3 -u merged

  Three layers, the first on top:
      unionmount --lower patches:app:base --upper rw /mnt/merged

  In /etc/fstab, or with mount -t fuse.unionmount:
      none /mnt/merged fuse.unionmount lowerdir=/app:/base,upperdir=/rw,workdir=/rw.work 0 0

  For podman, in storage.conf:
      mount_program = \"/usr/bin/unionmount\"

  Where a file comes from, and what happens:
      unionmount explain merged/etc/passwd
      unionmount status; unionmount trace merged

SIGNALS:
  SIGTERM, SIGINT, SIGHUP and SIGQUIT unmount; a second one does so although files are in use. SIGUSR1 logs counters.

EXIT STATUS:
  0  mounted (in the background: the mount answers), or with --foreground: unmounted in order
  1  it could not be done; one line on stderr says why and what to do
  2  the command line is wrong";

/// Why the program ends without success.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The command line is wrong: exit status 2.
    pub fn usage(error: impl std::fmt::Display) -> Failure {
        Failure { code: 2, message: error.to_string() }
    }

    /// What was asked could not be done: exit status 1.
    pub fn failed(error: impl std::fmt::Display) -> Failure {
        Failure { code: 1, message: error.to_string() }
    }

    /// With another exit status, which the verb's help tells.
    fn with(code: u8, error: impl std::fmt::Display) -> Failure {
        Failure { code, message: error.to_string() }
    }

    /// Somebody else has told the user.
    fn told(code: u8) -> Failure {
        Failure { code, message: String::new() }
    }
}

/// Runs the program with its arguments, the first of which is its name; prints at most one error line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match dispatch(args) {
        Ok(code) => code,
        Err(failure) => {
            if !failure.message.is_empty() {
                say(&failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let called =
        args.first().and_then(|name| Path::new(name).file_name()).unwrap_or(OsStr::new(NAME)).to_owned();
    if let Some(parsed) = mount::helper_args(&called, &args) {
        return match parsed {
            Ok(mount) => mount::run(mount),
            Err(error) => clap_says(error),
        };
    }
    if let Some(parsed) = umount::helper_args(&called, &args) {
        return match parsed {
            Ok(umount) => umount.run(),
            Err(error) => clap_says(error),
        };
    }
    let elsewhere = verb_of_engines(&args);
    let runs = args.get(1).is_some_and(|verb| verb == "run");
    let done = match Cli::try_parse_from(args) {
        Ok(Cli { verb: Some(verb), .. }) => verb.run(),
        Ok(Cli { verb: None, mount }) => mount::run_own(mount),
        Err(error) => clap_says(error),
    };
    done.map_err(|failure| match elsewhere {
        // A command may end with any other number.
        _ if runs => Failure { code: run::OWN_FAILURE, ..failure },
        Some(instead) if failure.code == 2 => Failure::usage(instead),
        _ => failure,
    })
}

/// What to do instead of a verb that container engines have, and this program doesn't. A mount point may have such a
/// name, so this is for command lines that name no layers, and turn out to be wrong.
fn verb_of_engines(args: &[OsString]) -> Option<String> {
    let verb = args.get(1)?.to_str()?;
    let instead = match verb {
        "build" => "use buildah build and unionmount load, or unionmount create, mount and commit",
        "start" | "stop" | "restart" | "kill" | "exec" | "logs" | "pause" | "unpause" | "top" => {
            "containers run in the foreground, by unionmount run"
        }
        _ => return None,
    };
    let names_layers = args.iter().filter_map(|arg| arg.to_str()).any(|arg| {
        arg.starts_with("-o") || ["--lower", "--upper", "--work"].iter().any(|option| arg.starts_with(option))
    });
    (!names_layers).then(|| format!("{verb} is no verb here: {instead}"))
}

/// The whole command line, for what is made out of it.
fn command() -> clap::Command {
    Cli::command()
}

/// Help goes to stdout as clap laid it out; an error becomes one line.
fn clap_says(error: clap::Error) -> Result<ExitCode, Failure> {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            page::print_own(error.render().to_string().as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        // The whole short help, which is no error line.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.print().map_err(Failure::usage)?;
            Err(Failure::told(2))
        }
        _ => Err(Failure::usage(format!("{}; see unionmount --help", one_line(&error.render().to_string())))),
    }
}

/// The cause and the tips of clap's error, without usage.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for part in text
        .lines()
        .take_while(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"))
        .map(|part| part.trim().trim_start_matches("error: "))
        .filter(|part| !part.is_empty())
    {
        if !line.is_empty() {
            line.push_str(if part.starts_with("tip:") { "; " } else { " " });
        }
        line.push_str(part);
    }
    line
}

/// Does a terminal read stderr?
#[allow(clippy::disallowed_methods, reason = "nothing is printed")]
fn messages_are_read_on_a_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}

/// One line on stderr. There is nobody to tell when that fails.
#[allow(clippy::disallowed_methods, reason = "the one place for messages; it escapes")]
fn say(message: &str) {
    // Names in it come from anywhere, and mean nothing to a terminal.
    let text = format!("{NAME}: {}\n", escaped(message));
    std::io::stderr().write_all(text.as_bytes()).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn verbs_of_engines_are_answered_where_no_layers_are_named() {
        let told = |line: &str| verb_of_engines(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(told("unionmount exec -it c sh").unwrap().contains("unionmount run"));
        for line in
            ["unionmount build --lower a", "unionmount build -o lowerdir=a", "unionmount mnt", "unionmount"]
        {
            assert_eq!(told(line), None, "{line}");
        }
    }
}
