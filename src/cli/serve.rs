//! Serving a mount: the layers are opened, the kernel is told, requests are answered until the end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::Failure;
use super::asked::{Asked, now};
use super::daemon::Ready;
use super::descriptors;
use super::logging;
use super::reopening::{self, Reopening};
use super::request::MountRequest;
use super::sealing::Sealing;
use super::upgrade::handing::Handing;
use super::upgrade::state::RequestState;
use crate::control::server::TakenOver;
use crate::fuse::UnionFs;
use crate::fuse::counters::RequestCounters;
use crate::fuse::dispatch::DispatchPolicy;
use crate::fuse::io_mode::OpenState;
use crate::fuse::live::LiveFs;
use crate::fuse::mount::open_device;
use crate::fuse::policy::{FOR_EVER, IoMode, MAX_WRITE, Policy};
use crate::fuse::session::{Hooks, SessionError, SessionOptions, default_threads, serve};
use crate::sys::flock::{Access, try_lock};
use crate::sys::process::{raise_nofile_limit, take_fuse_device};
use crate::union::lookup::checked;
use crate::union::options::{FsOptions, Passthrough};
use crate::union::stack::layer::{LowerSource, Stack, StackOptions};
use crate::union::{Limits, Union};

/// Opens the layers, mounts and answers until the mount has ended.
pub(super) fn serve_request(request: &MountRequest, ready: Ready) -> Result<(), Failure> {
    logging::start(&request.log)?;
    if let Err(error) = raise_nofile_limit() {
        log::warn!("cannot raise the limit on open files: {error}");
    }
    // One more where programs are served as pairs.
    let threads = request.threads.unwrap_or_else(default_threads).max(1) + 1;
    let share_out = |lowers: usize| descriptors::share_out(lowers + request.hold.len(), threads);
    let limits = share_out(request.stack.lowers.len())?;
    // First, since it needs nothing and is what fails most in a container.
    let device = match request.device {
        Some(number) => take_fuse_device(number).map_err(|error| {
            Failure::failed(format!("mount point {}: {error}", request.mount_point.display()))
        })?,
        None => open_device().map_err(Failure::failed)?,
    };
    let held = hold(&request.hold)?;
    let told = RequestState::of(request)
        .map_err(|error| Failure::failed(format!("cannot find the current directory: {error}")))?;
    let lowers = super::lowers::opened(&request.stack.lowers)?;
    // An image is as many as it has layers.
    let limits = if lowers.len() > request.stack.lowers.len() { share_out(lowers.len())? } else { limits };
    let mut flags = request.mount.clone();
    // Whoever makes an archive chooses what is setuid in it, whatever he may. Only what was opened tells that it is one.
    if lowers.iter().any(|lower| matches!(lower, LowerSource::Tree { .. })) {
        request.trust.mistrust(&mut flags);
    }
    let opened = StackOptions { lowers, ..request.stack.clone() };
    let stack = Stack::open(&opened).map_err(Failure::failed)?;
    let again = reopening::from_everywhere(&opened);
    let mount_point = match request.device {
        Some(_) => request.mount_point.clone(),
        None => std::fs::canonicalize(&request.mount_point).map_err(|error| {
            let point = request.mount_point.display();
            Failure::failed(format!("mount point {point}: cannot be resolved: {error}"))
        })?,
    };
    // All paths of the user are resolved; no directory of theirs is kept busy from here on.
    std::env::set_current_dir("/")
        .map_err(|error| Failure::failed(format!("cannot change to /: {error}")))?;
    if request.fake {
        ready.announce();
        return Ok(());
    }
    let options = SessionOptions {
        given: request.device.is_some(),
        mount_point,
        pairing: pairing(request),
        source: request.source.clone(),
        flags,
        threads: request.threads,
        uring: request.uring,
    };
    let union = Union::with_options(stack, limits, &request.fs)
        .map_err(|error| Failure::failed(format!("cannot read the layers: {error}")))?;
    union.count_anew();
    let policy = policy(&request.fs, &union);
    let told = told.mounted(&options.mount_point, &options.flags);
    let mounting = Mounting { request, told, again, limits, options: &options, hold: held, before: None };
    let serve = |fs, hooks| serve(fs, device, &options, hooks);
    run(Arc::new(union), policy, mounting, (serve, Box::new(|_| {})), ready)
}

/// A mount that is about to be served.
pub(super) struct Mounting<'a> {
    pub(super) request: &'a MountRequest,
    /// The same, for another process.
    pub(super) told: RequestState,
    /// What its layers can be opened anew by.
    pub(super) again: Result<StackOptions, String>,
    pub(super) limits: Limits,
    pub(super) options: &'a SessionOptions,
    /// Directories that are locked as long as it is mounted.
    pub(super) hold: Vec<Arc<OwnedFd>>,
    /// What another process was, which has served it until now.
    pub(super) before: Option<Before>,
}

/// What is left of the daemon that a mount had before.
pub(super) struct Before {
    /// Requests that it has served, by kind.
    pub(super) requests: BTreeMap<String, u64>,
    /// When the mount began.
    pub(super) since_us: u64,
    /// Whether the kernel can be told to ask for all names anew.
    pub(super) can_doubt_names: bool,
    /// Files that are open, where opens are requests.
    pub(super) opens: Vec<OpenState>,
    /// The filesystem's device.
    pub(super) device: Option<(u32, u32)>,
    /// The control socket.
    pub(super) socket: TakenOver,
}

/// Called when all is there, before the first request is answered.
pub(super) type Begin = Box<dyn FnOnce(&Arc<Union>)>;

/// Serves a mount by `serve` until it has ended.
pub(super) fn run(
    union: Arc<Union>,
    policy: Policy,
    mounting: Mounting<'_>,
    (serve, begin): (impl FnOnce(LiveFs, Hooks) -> Result<(), SessionError>, Begin),
    ready: Ready,
) -> Result<(), Failure> {
    let Mounting { request, told: state, again, limits, options, hold, before } = mounting;
    let sealing = Arc::new(Sealing::default());
    // Whoever takes it over changes nothing before it has.
    if before.is_none() {
        sealing.start(&union).map_err(Failure::failed)?;
    }
    // The session has it alone, so that the layers are closed as soon as it ends.
    let (requests, since_us) = match &before {
        Some(before) => (RequestCounters::of(&before.requests), before.since_us),
        None => (RequestCounters::default(), now()),
    };
    let fs = UnionFs::new(union, policy).with_pairing(options.pairing.clone()).with_counters(requests.into());
    let (notifier, report, current) = (fs.notifier(), fs.report(), fs.current());
    let asked = Asked::new(current.clone(), &policy, request.given.clone());
    let fs = LiveFs::new(fs);
    let live = Arc::downgrade(&fs.live());
    before.iter().for_each(|before| fs.live().set_can_doubt_names(before.can_doubt_names));
    let opened_by = (again, request.fs.clone(), limits);
    let reopening = Reopening::of(opened_by, &policy, &options.mount_point, (&fs.live(), current.clone()));
    let (counters, control) = (report.counters(), Rc::new(Cell::new(None)));
    let (point, slot) = (options.mount_point.clone(), control.clone());
    let (given, abandoned) = (options.given, current.clone());
    // Who stays with it would see nothing at all.
    let on_a_terminal = request.foreground && super::messages_are_read_on_a_terminal();
    let told = format!("{} is mounted; Ctrl-C unmounts it", request.mount_point.display());
    let (begun, foreground, seals) = (current.clone(), request.foreground, sealing.clone());
    let hooks = Hooks {
        abandon: Box::new(move || {
            if let Ok(union) = abandoned.get() {
                union.abandon();
            }
        }),
        ready: Box::new(move |kernel, parting| {
            // The session keeps it until it ends, which it hasn't begun to.
            if let Ok(union) = begun.get() {
                begin(&union);
                if before.is_some()
                    && let Err(error) = seals.start(&union)
                {
                    log::warn!("what is half-copied is sealed when the mount ends: {error}");
                }
            }
            let (opens, socket) = before.map(|before| (before.opens, (before.socket, before.device))).unzip();
            if let (Some(live), Some(opens)) = (live.upgrade(), opens) {
                live.take_over_opens(opens, &kernel);
            }
            // There is one session, so nothing is there yet.
            notifier.set(kernel).unwrap_or_default();
            // Where somebody else has mounted it isn't known.
            let handing = Handing {
                request: state,
                hold,
                foreground,
                live,
                sealing: seals,
                parting,
                counters: counters.clone(),
                since_us,
            };
            slot.set(if given { None } else { asked.start(&point, counters, (reopening, handing), socket) });
            ready.announce();
            if on_a_terminal {
                super::say(&told);
            }
        }),
        report: Box::new(move || log::warn!("{report}")),
    };
    let ended = serve(fs, hooks).map_err(Failure::failed);
    let mut control = control.take();
    if ended.is_ok() && sealing.is_on() {
        if let Some(control) = &mut control {
            control.outlives_mount();
        }
        sealing.seal_rest(&options.mount_point);
    }
    drop(control);
    // A client of the socket may still be told something.
    if let Ok(union) = current.get() {
        union.shut_down();
    }
    ended
}

/// Tells whether programs are served as pairs.
pub(super) fn pairing(request: &MountRequest) -> Option<Arc<DispatchPolicy>> {
    let threads = request.threads.unwrap_or_else(default_threads).max(1);
    if !request.pairing || threads == 1 {
        return None;
    }
    DispatchPolicy::new(threads).map_err(|why| log::info!("no pairing: {why}")).ok().map(Arc::new)
}

/// Takes the shared locks that last as long as the mount.
fn hold(dirs: &[PathBuf]) -> Result<Vec<Arc<OwnedFd>>, Failure> {
    dirs.iter()
        .map(|dir| {
            let failed = |error: std::io::Error| {
                Failure::failed(format!("{}: cannot be kept from being removed: {error}", dir.display()))
            };
            let file = File::open(dir).map_err(failed)?;
            if !try_lock(&file, Access::Shared).map_err(|errno| failed(errno.into()))? {
                return Err(failed(rustix::io::Errno::WOULDBLOCK.into()));
            }
            Ok(Arc::new(file.into()))
        })
        .collect()
}

/// Returns what the kernel is told, by the options.
fn policy(options: &FsOptions, union: &Union) -> Policy {
    Policy {
        timeout: options.timeout.unwrap_or(if options.check_lowers { checked::KEPT } else { FOR_EVER }),
        io: match options {
            FsOptions { passthrough: Passthrough::Settled, .. } => IoMode::Passthrough,
            FsOptions { passthrough: Passthrough::Lower, .. } => IoMode::PassthroughLower,
            FsOptions { writeback: true, .. } => IoMode::WriteBack,
            _ => IoMode::WriteThrough,
        },
        no_xattrs: options.no_xattrs,
        no_acl: !union.has_acls(),
        no_fsync: union.is_volatile(),
        lowers_change: options.check_lowers,
        max_write: options.max_write.map_or(MAX_WRITE, |bytes| bytes.clamp(4096, MAX_WRITE)),
    }
}
