//! Mounting: the command line without a verb, and the command lines of mount(8) and of fuse-overlayfs.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser};

use super::branches;
use super::daemon::{self, Ready, Where};
use super::logging::LogOptions;
use super::lowers;
use super::options::{Options, split};
use super::request::{AskedTrust, MountRequest};
use super::serve::serve_request;
use super::{Failure, say};
use super::{dead, remount};
use crate::fuse::session::default_source;
use crate::sys::namespace::may_pass_through;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below;
use crate::union::options::{Lazy, Passthrough, XattrPermissions};
use crate::union::stack::layer::{LowerSource, StackOptions, XattrChoice};

/// The arguments of a mount.
#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// Read-only: directories, tars, images; may repeat
    ///
    /// Images are squashfs, also in a SIF, or EROFS. A tar may be compressed; one that holds an image, as docker save writes it, is its layers. oci:DIR[:NAME] are those of an image
    /// in an OCI layout. Behind FILE,layer the .wh. names of a tar are whiteouts, FILE,tar is a tar whatever it holds. A
    /// colon within a name is written \:
    #[arg(long = "lower", value_name = "DIR[:DIR…]")]
    lowers: Vec<OsString>,

    /// The writable layer; without it all is read-only
    ///
    /// It receives all changes.
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,

    /// Where changes are prepared
    ///
    /// A directory on the upper's filesystem [default: .NAME.work beside the upper, while mounted]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,

    /// Mount options, as ro, noatime, volatile; may repeat
    ///
    /// ro, noatime, nosuid, nodev, noexec, allow_other, …; lowerdir=, upperdir=, workdir= and the options of
    /// fuse-overlayfs; passthrough or writeback where much data is written; uring and pairing=0 for how requests are
    /// answered. docs/options.md has them all.
    #[arg(short, value_name = "OPTION[,…]")]
    options: Vec<OsString>,

    /// Stay in the foreground and log to stderr
    ///
    /// Ctrl-C unmounts.
    #[arg(short, long)]
    foreground: bool,

    /// Say more: -v what is done, -vv why
    ///
    /// -vvv says everything; RUST_LOG goes before it.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Add messages to this file
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    log_file: Option<PathBuf>,

    /// The same as --foreground -vv
    #[arg(short, long, hide_short_help = true)]
    debug: bool,

    /// One thread answers, as in libfuse
    #[arg(short, hide = true)]
    single_thread: bool,

    /// Keep a shared lock (flock) on this directory while mounted: whoever may remove it takes an exclusive one first
    #[arg(long, value_name = "DIR", hide = true)]
    hold: Vec<PathBuf>,

    /// mount(8) wants to know whether it would work: mount nothing
    #[arg(skip)]
    fake: bool,

    /// A dead mount on the mount point is taken away first
    #[arg(skip)]
    take_dead_away: bool,

    /// A person wrote this, who is told of slips; an engine's words go on meaning what they meant
    #[arg(skip)]
    by_a_person: bool,

    /// Where the merged tree shall appear; a SOURCE before it is shown by mount(8) and otherwise ignored
    #[arg(value_name = "MOUNTPOINT", required = true, num_args = 1..)]
    places: Vec<OsString>,
}

/// The command line of fuse-overlayfs: the same arguments, without verbs.
#[derive(Debug, Parser)]
#[command(name = super::NAME, version, override_usage = HELPER_USAGE, disable_version_flag = true)]
struct HelperCli {
    #[command(flatten)]
    mount: MountArgs,

    /// Print version
    #[arg(short = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

const HELPER_USAGE: &str = "fuse-overlayfs [-f] [-d] -o lowerdir=DIR[:DIR…][,upperdir=DIR,workdir=DIR][,OPTION…] [SOURCE] MOUNTPOINT";

/// The command line by which mount(8) calls `mount.TYPE`.
#[derive(Debug, Parser)]
#[command(name = "mount.unionmount", version)]
struct MountHelperCli {
    /// Ignored
    source: OsString,
    /// Where to mount
    target: OsString,
    /// Mount options
    #[arg(short, value_name = "OPTION[,…]")]
    options: Vec<OsString>,
    /// Do all but the mount itself
    #[arg(short)]
    fake: bool,
    /// Say more
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Tolerate unknown options, which is always done
    #[arg(short)]
    sloppy: bool,
    /// Write no mtab, which is never done
    #[arg(short)]
    no_mtab: bool,
    /// The type, which the name tells
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<OsString>,
}

/// Reads the arguments of a program that is called by another name than its own; `None` when it is not.
pub(super) fn helper_args(called: &OsStr, args: &[OsString]) -> Option<Result<MountArgs, clap::Error>> {
    if called.as_bytes().starts_with(b"mount.") {
        return Some(MountHelperCli::try_parse_from(args).map(MountArgs::from));
    }
    if called == "fuse-overlayfs" {
        return Some(HelperCli::try_parse_from(args).map(|cli| cli.mount));
    }
    None
}

impl From<MountHelperCli> for MountArgs {
    fn from(cli: MountHelperCli) -> MountArgs {
        MountArgs {
            lowers: Vec::new(),
            upper: None,
            work: None,
            options: cli.options,
            foreground: false,
            verbose: cli.verbose,
            log_file: None,
            debug: false,
            single_thread: false, // to mount(8) -s means something else
            hold: Vec::new(),
            fake: cli.fake,
            take_dead_away: true,
            by_a_person: false,
            places: vec![cli.source, cli.target],
        }
    }
}

impl MountRequest {
    fn new(mut args: MountArgs) -> Result<MountRequest, Failure> {
        let mut options = Options::default();
        for text in &args.options {
            options.read(text).map_err(Failure::usage)?;
        }
        let mut warnings = unknown_options(&options, args.by_a_person)?;
        warnings.extend(settle_passthrough(&mut options)?);
        check_lowers_may_change(&options)?;
        let (source, mount_point) = places(&mut args, &mut options)?;
        let device = given_device(&mount_point);
        let read_only_asked = options.mount.read_only;
        // An engine that names a workdir without an upper means nothing by it; a person may have forgotten one.
        let needless_work = !args.options.is_empty() && args.lowers.is_empty();
        let given =
            args.options.iter().flat_map(|text| split(text.as_bytes())).map(EscapedPath::from).collect();
        let mut mount = options.mount.clone();
        let debug = args.debug || options.debug;
        let mut stack = layers(&mut args, &mut options, source.as_deref())?;
        let asked = AskedTrust { suid: options.suid_asked, dev: options.dev_asked };
        if options.xattr == XattrChoice::User || options.fs.xattr_permissions != XattrPermissions::Off {
            asked.mistrust(&mut mount);
        }
        stack.mount_point = Some(mount_point.clone()).filter(|_| device.is_none());
        if mount.read_only {
            only_read(&mut stack)?;
        }
        if stack.upper.is_none() {
            if options.fs.quota.are_set() && !read_only_asked {
                return Err(Failure::usage(
                    "the options size and inodes limit what an upper takes, and none is given; name one by --upper",
                ));
            }
            mount.read_only = true;
            if needless_work {
                stack.work = None;
            }
            if args.by_a_person && !read_only_asked && super::messages_are_read_on_a_terminal() {
                warnings.push("mounted read-only, since no --upper is given to receive changes".to_owned());
            }
        }
        Ok(MountRequest {
            stack,
            given,
            device,
            mount,
            trust: asked,
            fs: options.fs,
            mount_point,
            source: source.unwrap_or_else(|| default_source().to_owned()),
            uring: options.uring,
            pairing: !options.no_pairing,
            threads: if options.single_thread || args.single_thread { Some(1) } else { options.max_threads },
            foreground: args.foreground || debug,
            hold: args.hold,
            fake: args.fake,
            take_dead_away: args.take_dead_away,
            log: LogOptions {
                verbosity: if debug { args.verbose.max(2) } else { args.verbose },
                file: args.log_file,
            },
            warnings,
        })
    }
}

/// Makes the upper of a stack into which nothing will be written one more layer to read, which needs neither lock nor workdir.
fn only_read(stack: &mut StackOptions) -> Result<(), Failure> {
    let Some(upper) = stack.upper.take() else { return Ok(()) };
    let below = below::of_path(&upper).map_err(Failure::failed)?;
    let frozen = below.as_ref().map_or(Vec::new(), |below| below.layers.clone());
    if stack.lowers.is_empty() {
        stack.lowers.extend(LowerSource::directories(below.map_or(Vec::new(), |below| below.lowers)));
    }
    let top = std::iter::once(upper).chain(frozen);
    stack.lowers.splice(0..0, LowerSource::directories(top));
    stack.work = None;
    Ok(())
}

/// Returns what is said of options without effect. A slip in a known one is an error where a person wrote it: the mount
/// would be another than the one that was meant.
fn unknown_options(options: &Options, by_a_person: bool) -> Result<Vec<String>, Failure> {
    let slip = options.ignored.iter().filter(|_| by_a_person).find_map(|one| Some((one, one.meant()?)));
    if let Some((ignored, meant)) = slip {
        let given = ignored.option.to_string_lossy();
        return Err(Failure::usage(format!("unknown option {given}; did you mean {meant}?")));
    }
    Ok(options.ignored.iter().map(warning).collect())
}

/// Refuses options under which a change of a lower couldn't be seen.
fn check_lowers_may_change(options: &Options) -> Result<(), Failure> {
    if options.fs.check_lowers && options.fs.writeback {
        return Err(Failure::usage(
            "the options lower=checked and writeback exclude each other: with writeback the kernel keeps sizes and times \
             by itself, and sees no change of them; leave writeback out",
        ));
    }
    if options.fs.check_lowers && options.fs.metacopy {
        return Err(Failure::usage(
            "the options lower=checked and metacopy exclude each other: data that stay in a lower would be whatever is there \
             by then; leave metacopy out",
        ));
    }
    Ok(())
}

/// Leaves passthrough out where it can't be had, and says so.
fn settle_passthrough(options: &mut Options) -> Result<Option<String>, Failure> {
    if options.fs.passthrough == Passthrough::Off {
        return Ok(None);
    }
    if options.fs.writeback {
        return Err(Failure::usage(
            "the options passthrough and writeback exclude each other; use one of them",
        ));
    }
    if options.fs.passthrough == Passthrough::Lower && options.fs.lazy != Lazy::Off {
        // The data of a file that is open would be in two places.
        return Err(Failure::usage(
            "the options passthrough=lower and lazy exclude each other; lazy goes with passthrough alone",
        ));
    }
    let without = !may_pass_through();
    if without {
        options.fs.passthrough = Passthrough::Off;
    }
    if !without && options.fs.quota.are_set() {
        return Err(Failure::usage(
            "the options passthrough and size or inodes exclude each other: what the kernel writes by itself isn't \
             counted; leave passthrough out",
        ));
    }
    let why = "option passthrough ignored: it needs root (CAP_SYS_ADMIN) outside of any user namespace";
    Ok(without.then(|| why.to_owned()))
}

/// Returns the source and the mount point.
fn places(args: &mut MountArgs, options: &mut Options) -> Result<(Option<OsString>, PathBuf), Failure> {
    let no_point = || Failure::usage("no mount point given; see --help");
    let mount_point = PathBuf::from(args.places.pop().ok_or_else(no_point)?);
    let before = std::mem::take(&mut args.places);
    let in_our_words = !args.lowers.is_empty() || args.upper.is_some();
    // A layer that stands alone, not a source: it would be lost silently.
    let is_layer = |place: &OsString| in_our_words && lowers::could_be(Path::new(place));
    if !before.is_empty() && before.iter().all(is_layer) {
        return Err(Failure::usage(stray_layers(args, &before)));
    }
    if before.len() > 1 {
        let all: Vec<String> = before
            .iter()
            .map(OsString::as_os_str)
            .chain([mount_point.as_os_str()])
            .map(|one| format!("'{}'", one.display()))
            .collect();
        return Err(Failure::usage(format!(
            "one mount point is expected, with a source before it or none: not {}; see unionmount --help",
            all.join(", ")
        )));
    }
    Ok((options.source.take().or(before.into_iter().next()), mount_point))
}

/// Returns what to say of layers that are written as words of their own.
fn stray_layers(args: &MountArgs, stray: &[OsString]) -> String {
    let shown = |list: &[OsString], between: &str| {
        list.iter().map(|one| one.to_string_lossy()).collect::<Vec<_>>().join(between)
    };
    let all = [&args.lowers[..], stray].concat();
    format!(
        "{} would be no layer here: layers are parted by colons, --lower {}",
        shown(stray, " and "),
        shown(&all, ":")
    )
}

/// Returns the layers, by whichever words.
fn layers(
    args: &mut MountArgs,
    options: &mut Options,
    source: Option<&OsStr>,
) -> Result<StackOptions, Failure> {
    let (mut lowers, mut data_only) = (Vec::new(), std::mem::take(&mut options.data_only));
    for list in &args.lowers {
        let named = lowers::split(list.as_bytes()).map_err(Failure::usage)?;
        lowers.extend(named.merged);
        data_only.extend(named.data_only);
    }
    let named = some(std::mem::take(&mut options.lowers));
    let lowers = once("lower layers", "--lower", "lowerdir", some(lowers), named)?;
    let upper = once("upper layer", "--upper", "upperdir", args.upper.take(), options.upper.take())?;
    // What lies below it may have been recorded with its snapshots.
    let recorded = match &upper {
        Some(upper) if lowers.is_none() => matches!(below::of_path(upper), Ok(Some(_))),
        _ => false,
    };
    let lowers = lowers.or_else(|| recorded.then(Vec::new));
    let no_lowers = || match source.and_then(branches::spelled) {
        Some(ours) => Failure::usage(format!("a source names no layers here; write -o {ours}")),
        None => Failure::usage(crate::union::stack::layer::StackError::NoLowers),
    };
    Ok(StackOptions {
        lowers: LowerSource::directories(lowers.ok_or_else(no_lowers)?),
        data_only,
        upper,
        work: once("workdir", "--work", "workdir", args.work.take(), options.work.take())?,
        volatile: options.fs.volatile,
        xattr: options.xattr,
        ..StackOptions::default()
    })
}

/// Returns the number in `/dev/fd/N`: the form in which mount.fuse3 (`drop_privileges`), Apptainer and CSI drivers name
/// what they have mounted themselves.
fn given_device(mount_point: &Path) -> Option<RawFd> {
    mount_point.to_str()?.strip_prefix("/dev/fd/")?.parse().ok().filter(|number| *number >= 0)
}

fn warning(ignored: &super::options::Ignored) -> String {
    let option = ignored.option.to_string_lossy();
    match ignored.why {
        "" => format!("unknown option ignored: {option}"),
        why => format!("option {option} ignored: {why}"),
    }
}

fn some(list: Vec<PathBuf>) -> Option<Vec<PathBuf>> {
    if list.is_empty() { None } else { Some(list) }
}

/// Takes what may be said by an argument or by an option, but not by both.
fn once<T>(
    what: &str,
    argument: &str,
    option: &str,
    a: Option<T>,
    b: Option<T>,
) -> Result<Option<T>, Failure> {
    match (a, b) {
        (Some(_), Some(_)) => Err(Failure::usage(format!(
            "{what} given twice, with {argument} and with -o {option}=; use one of them"
        ))),
        (a, b) => Ok(a.or(b)),
    }
}

/// Mounts by this program's own command line. An engine that was told to call the program by its own name says `-o
/// lowerdir=…`, and has no terminal.
pub(super) fn run_own(mut args: MountArgs) -> Result<ExitCode, Failure> {
    let in_our_words = !args.lowers.is_empty() || args.upper.is_some() || args.work.is_some();
    args.by_a_person = in_our_words || super::messages_are_read_on_a_terminal();
    run(args)
}

/// Mounts. Returns when the mount answers, or with `--foreground`, when it has ended.
pub(super) fn run(args: MountArgs) -> Result<ExitCode, Failure> {
    if remount::is_asked(&args.options) {
        let point = args.places.last().ok_or_else(|| Failure::usage("no mount point given; see --help"))?;
        if !args.fake {
            remount::run(&args.options, Path::new(point))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let request = MountRequest::new(args)?;
    for warning in &request.warnings {
        say(warning);
    }
    // Before it is looked what the mount point is without a mount.
    if request.take_dead_away && request.device.is_none() && dead::take_away(&request.mount_point)? {
        say(&format!("{}: took a dead mount away", request.mount_point.display()));
    }
    // Where nothing is mounted there is nothing to wait for.
    if request.foreground || request.fake {
        serve_request(&request, Ready::nobody_waits())?;
    } else {
        let place = request.device.map_or(Where::On(&request.mount_point), Where::Given);
        daemon::in_background(place, |ready| serve_request(&request, ready))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &[&str]) -> Result<MountRequest, Failure> {
        let args = HelperCli::try_parse_from([&["unionmount"], line].concat()).unwrap();
        MountRequest::new(args.mount)
    }

    fn paths(list: &[&str]) -> Vec<PathBuf> {
        list.iter().map(PathBuf::from).collect()
    }

    fn lowers(request: &MountRequest) -> Vec<PathBuf> {
        request.stack.lowers.iter().map(|lower| lower.path().to_owned()).collect()
    }

    #[test]
    fn lowers_add_up_and_colons_can_be_escaped() {
        let request = request(&["--lower", r"a\:b:c", "--lower", "d", "--upper", "up:per", "mnt"]).unwrap();
        assert_eq!(lowers(&request), paths(&["a:b", "c", "d"]));
        assert_eq!(request.stack.upper, Some("up:per".into()));
        assert_eq!(request.mount_point, PathBuf::from("mnt"));
        assert_eq!(request.source, "unionmount");
        assert!(!request.mount.read_only);
    }

    #[test]
    fn options_stand_anywhere_and_repeat() {
        for line in [
            &["-o", "lowerdir=/l", "none", "/mnt", "-o", "noexec,upperdir=/u"][..],
            &["none", "-olowerdir=/l", "-o", "upperdir=/u,,noexec,", "/mnt"],
            &["none", "/mnt", "-o", "lowerdir=/l,upperdir=/u", "-o", "", "-onoexec"],
        ] {
            let request = request(line).unwrap();
            assert_eq!(lowers(&request), paths(&["/l"]));
            assert_eq!(request.stack.upper, Some("/u".into()));
            assert_eq!(request.mount_point, PathBuf::from("/mnt"));
            assert_eq!(request.source, "none");
            assert!(request.mount.no_exec);
        }
    }

    #[test]
    fn read_only_makes_the_upper_a_lower() {
        let request = request(&["-o", "lowerdir=/l,upperdir=/u,workdir=/w,ro", "/mnt"]).unwrap();
        assert_eq!(lowers(&request), paths(&["/u", "/l"]));
        assert!(request.stack.upper.is_none() && request.stack.work.is_none());
        assert!(request.mount.read_only);
    }

    #[test]
    fn what_is_said_twice_or_not_at_all_is_a_usage_error() {
        for (line, message) in [
            (&["mnt"][..], "no lower layer given"),
            (&["--lower", "a", "-o", "passthrough,writeback", "mnt"], "exclude each other"),
            (&["--lower", "a", "-o", "passthrough=lower,writeback", "mnt"], "exclude each other"),
            (&["--lower", "a", "-o", "lower=checked,writeback", "mnt"], "exclude each other"),
            (&["--lower", "a", "-o", "lower=checked,metacopy=on", "mnt"], "exclude each other"),
            (&["--lower", "a", "-o", "passthrough=lower,lazy=keep", "mnt"], "exclude each other"),
            (&["--lower", "a", "-o", "lowerdir=b", "mnt"], "lower layers given twice"),
            (&["--lower", "a", "--upper", "b", "-o", "upperdir=b", "mnt"], "upper layer given twice"),
            (&["--lower", "a:", "mnt"], "empty name"),
            (&["--lower", "a::b:c", "mnt"], "layers of data alone come last"),
            (&["--lower", "a", "-o", "xino=7", "mnt"], "give on, off or auto"),
        ] {
            let failure = request(line).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.contains(message), "{}", failure.message);
        }
    }

    #[test]
    fn mount_calls_its_helpers_with_flags_of_their_own() {
        let line = [
            "mount.fuse.unionmount",
            "none",
            "/mnt",
            "-sn",
            "-f",
            "-v",
            "-o",
            "rw,lowerdir=/l",
            "-t",
            "fuse.x",
        ];
        let args: Vec<OsString> = line.iter().map(OsString::from).collect();
        let request = MountRequest::new(helper_args(OsStr::new(line[0]), &args).unwrap().unwrap()).unwrap();
        assert!(request.fake && !request.foreground);
        assert_eq!(request.source, "none");
        assert!(helper_args(OsStr::new("unionmount"), &args).is_none());
    }

    #[test]
    fn debug_stays_in_the_foreground() {
        for line in [
            &["-d", "--lower", "a", "m"][..],
            &["-o", "debug,lowerdir=a", "m"],
            &["--debug", "--lower", "a", "m"],
        ] {
            let request = request(line).unwrap();
            assert!(request.foreground);
            assert_eq!(request.log.verbosity, 2);
        }
    }
}
