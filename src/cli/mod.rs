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
mod candidates;
mod commit;
mod completions;
mod container;
mod container_prune;
mod cp;
mod create;
mod daemon;
mod dead;
mod demo;
mod descriptors;
mod df;
mod diff;
mod discard;
mod engines;
mod exec;
mod explain;
mod export;
mod filter;
mod help;
mod history;
mod how_mounted;
mod image_diff;
mod image_tree;
mod images;
mod import;
mod inspect;
mod language;
mod layers;
mod line;
mod load;
mod logging;
mod login;
mod lowers;
mod man;
pub mod mount;
mod nearest;
pub mod options;
mod output;
mod page;
mod page_of_help;
mod prune;
mod ps;
mod pull;
mod push;
mod registry;
mod remount;
mod rename;
mod reopening;
mod request;
mod rm;
mod rmi;
mod run;
mod save;
mod seal;
mod sealing;
mod serve;
mod snapshot;
#[cfg(feature = "snapshotter")]
mod snapshotter;
#[cfg(not(feature = "snapshotter"))]
#[path = "no_snapshotter.rs"]
mod snapshotter;
mod squash;
mod stacks;
mod status;
mod store;
mod tag;
mod tags;
pub mod template;
mod terminal;
mod trace;
mod trial;
mod umount;
mod unpack;
mod upgrade;
mod uptime;
mod using;
mod verbs;
mod verify;
mod version;
mod volumes;
mod watch;
mod whose;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::image::progress::bar_style;
use crate::union::escaped_path::escaped;

/// The program's name in messages.
const NAME: &str = "unionmount";

/// Merge directories into one tree: read-only layers below, one writable on top
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
    verb: Option<verbs::Verb>,
    #[command(flatten)]
    mount: mount::MountArgs,
}

const USAGE: &str = "\
unionmount --lower DIR[:DIR…] [--upper DIR] [OPTIONS] MOUNTPOINT
       unionmount -o lowerdir=…,upperdir=…,workdir=… [SOURCE] MOUNTPOINT
       unionmount VERB …            New here? unionmount demo";

const LONG_ABOUT: &str = "\
Merge directories into one tree: read-only layers below, one writable layer on top.

The merged tree shows, for each path, the topmost entry. What is written goes to the upper layer: a file of a lower \
layer is copied up when it is first changed, and a deleted one is hidden by a whiteout. The lower layers never change, \
so many mounts can share them. Without an upper layer the mount is read-only.

The layout of the upper is that of the kernel's overlayfs; each can mount what the other wrote.";

const SHORT_EXAMPLE: &str = "\
Example:  unionmount --lower base --upper changes mnt; unionmount umount mnt";

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
    /// Makes the failure of a command line that is wrong: exit status 2.
    pub fn usage(error: impl std::fmt::Display) -> Failure {
        Failure { code: 2, message: error.to_string() }
    }

    /// Makes the failure where what was asked could not be done: exit status 1.
    pub fn failed(error: impl std::fmt::Display) -> Failure {
        Failure { code: 1, message: error.to_string() }
    }

    /// Makes one with another exit status, which the verb's help tells.
    fn with(code: u8, error: impl std::fmt::Display) -> Failure {
        Failure { code, message: error.to_string() }
    }

    /// Makes one of which somebody else has told the user.
    fn told(code: u8) -> Failure {
        Failure { code, message: String::new() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
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
    if args.get(1).is_some_and(|first| first == upgrade::SUCCESSOR) {
        return upgrade::successor::run(&args);
    }
    let program = command();
    let args = line::in_order(&program, args);
    if let Some(failure) = line::unknown_verb(&program, &args) {
        return Err(failure);
    }
    let runs = line::runs_a_command(&program, &args);
    let parsed = program.clone().try_get_matches_from(&args);
    let done = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(Cli { verb: Some(verb), .. }) => verb.run(),
        Ok(Cli { verb: None, mount }) => mount::run_own(mount),
        Err(error)
            if error.use_stderr()
                && error.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            Err(line::explained(&error, &program, &args))
        }
        Err(error) => help_is_asked(error, &args),
    };
    // A command may end with any other number.
    done.map_err(|failure| if runs { Failure { code: run::OWN_FAILURE, ..failure } } else { failure })
}

/// Returns the whole command line, for what is made out of it.
fn command() -> clap::Command {
    help::with_groups(Cli::command())
}

/// Puts on stdout what is asked for: by `-h` a page, by `--help` all. A verb that was given nothing shows a page.
fn help_is_asked(error: clap::Error, args: &[OsString]) -> Result<ExitCode, Failure> {
    let is_whole = args.iter().any(|arg| arg == "--help");
    let again = || page_of_help::short(command()).try_get_matches_from(args).err();
    clap_says(if is_whole { error } else { again().unwrap_or(error) })
}

/// Puts help on stdout as clap laid it out; makes an error one line.
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
        _ => Err(Failure::usage(format!("{}; see --help", line::one_line(&error.render().to_string())))),
    }
}

/// Tells whether a terminal reads stderr.
#[allow(clippy::disallowed_methods, reason = "nothing is printed")]
fn messages_are_read_on_a_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}

/// Makes a bar that shows on stderr how far something is that may take long; nothing where no terminal reads.
fn progress_bar(what: &'static str) -> ProgressBar {
    let target = match messages_are_read_on_a_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(bar_style());
    bar.set_message(what);
    bar
}

/// Makes a sign on stderr that something is being done, of which nobody knows how long it takes; nothing where no terminal reads.
fn spinner(what: &'static str) -> ProgressBar {
    let spinner = progress_bar(what).with_style(ProgressStyle::default_spinner());
    spinner.enable_steady_tick(std::time::Duration::from_millis(300));
    spinner
}

/// Writes one line on stderr. There is nobody to tell when that fails.
#[allow(clippy::disallowed_methods, reason = "the one place for messages; it escapes")]
fn say(message: &str) {
    // Names in it come from anywhere, and mean nothing to a terminal.
    let text = format!("{NAME}: {}\n", escaped(&without_error_numbers(message)));
    std::io::stderr().write_all(text.as_bytes()).unwrap_or_default();
}

/// Leaves out the numbers that Rust puts after the system's words, and the names of temporary files that a crate does.
fn without_error_numbers(message: &str) -> String {
    let mut words = String::with_capacity(message.len());
    let mut rest = message;
    while let Some((before, after)) = rest.split_once(" (os error ") {
        let Some((number, after)) = after.split_once(')') else { break };
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            break;
        }
        words += before;
        let path = after.strip_prefix(" at path \"").and_then(|inner| inner.split_once('"'));
        rest = path.map_or(after, |(_, after)| after);
    }
    words + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_no_error_numbers() {
        for (message, said) in [
            (
                "/s: cannot write: No space left on device (os error 28)",
                "/s: cannot write: No space left on device",
            ),
            (
                "/s/tmp: No such file (os error 2) at path \"/s/tmp/.tmpx\"; go on",
                "/s/tmp: No such file; go on",
            ),
            ("a (os error 1): b (os error 2)", "a: b"),
            ("a file (os error x", "a file (os error x"),
        ] {
            assert_eq!(without_error_numbers(message), said);
        }
    }

    #[test]
    fn the_definitions_are_consistent() {
        command().debug_assert();
    }
}
