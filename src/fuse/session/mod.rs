//! The life of a mount: mount, answer until it is unmounted, leave nothing behind.
//!
//! A mount ends in one of these ways:
//!
//! | what happens | what follows |
//! |---|---|
//! | `umount`, `fusermount3 -u` | the kernel ends the connection; the threads return; [`serve()`] returns |
//! | SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGXCPU | this process unmounts, as if it had been told by `umount`; busy: it says so and goes on |
//! | the same a second time | it unmounts lazily: the tree is gone from sight at once, its users may finish |
//! | any other signal that can be ignored | nothing |
//! | a panic | it is logged, the mount is taken away and the process ends: nothing that may be wrong is served or written; in a decoder ([`contained`](crate::sys::panics::contained)) it is an error of what is read |
//! | SIGKILL | the kernel ends the connection; users get ENOTCONN until somebody unmounts |
//!
//! The daemon never opens a path in its own mount: a request that waits for itself waits for ever.
//!
//! The session is our own. That of the crate `fuser` always begins with a handshake, so that it can't be taken over from
//! another process; nobody can drive its loop, and so neither which thread asks nor what the requests come over can be
//! chosen; and a node's id is always its inode's number. What is here:
//!
//! | module | what it knows |
//! |---|---|
//! | `connection` | from the first word with the kernel to the last |
//! | [`init`] | what is agreed on with the first word |
//! | `worker` | the loop of a thread that answers requests from the device |
//! | [`device`] | /dev/fuse: its descriptors, what is read from and written to it |
//! | `ring` | the same over io_uring |
//! | `spin` | asking for a moment before sleeping |
//! | [`serve`](mod@serve) | what every request passes on its way to the [`Filesystem`] |
//! | [`interrupts`] | programs that got a signal while they wait |
//! | [`notifier`] | what the kernel is told unasked |
//! | [`parting`], `gate` | the session goes on in another process: what that must know; threads stop between two requests |

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGXCPU};
use signal_hook::iterator::{Handle, Signals};

use super::backing_dev_info;
use super::dispatch::DispatchPolicy;
use super::mount::{self, MountError, MountFlags, Mounted};
use crate::sys::panics::on_panic;
use crate::sys::{memory, own, process};

mod connection;
pub mod device;
mod gate;
pub mod init;
pub mod interrupts;
pub mod notifier;
pub mod parting;
mod ring;
pub mod serve;
mod spin;
mod worker;

use connection::{Connection, How, Running};
use device::Device;
pub use notifier::Notifier;
use parting::{Parting, SessionState};
use serve::Admission;
pub use serve::Filesystem;

/// How a filesystem is mounted and served.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Where; an absolute path without symlinks.
    pub mount_point: PathBuf,
    /// The device is that of a filesystem which the caller has mounted already, somewhere.
    pub given: bool,
    /// What mount(8) shows as the device.
    pub source: OsString,
    /// What the mount is given.
    pub flags: MountFlags,
    /// How many threads answer; `None`: one for each processor, between 2 and 8.
    pub threads: Option<usize>,
    /// Programs are served as pairs where they can be; as many more threads.
    pub pairing: Option<Arc<DispatchPolicy>>,
    /// Requests come over io_uring where the kernel offers it; `threads` then has no effect, save that a single one
    /// keeps them on the device.
    pub uring: bool,
}

impl SessionOptions {
    /// Returns those of a mount at a place, an absolute path without symlinks, with all else as it is unless somebody
    /// chooses.
    pub fn at(mount_point: impl Into<PathBuf>) -> SessionOptions {
        SessionOptions {
            mount_point: mount_point.into(),
            given: false,
            source: default_source().to_owned(),
            flags: MountFlags::default(),
            threads: None,
            pairing: None,
            uring: false,
        }
    }
}

/// What is to be called while a session lives.
pub struct Hooks {
    /// Once, when the filesystem is mounted and the kernel has greeted it; requests are answered right after it
    /// returns. Gets what tells the kernel to forget cached things.
    /// And what the session is handed over by.
    pub ready: Box<dyn FnOnce(Notifier, Parting)>,
    /// At each SIGUSR1, on a thread of its own.
    pub report: Box<dyn Fn() + Send>,
    /// Before the process ends because of a signal although the filesystem, which somebody else has mounted, is there.
    pub abandon: Box<dyn Fn() + Send>,
}

impl Default for Hooks {
    /// Returns hooks that do nothing.
    fn default() -> Hooks {
        Hooks { ready: Box::new(|_, _| {}), report: Box::new(|| {}), abandon: Box::new(|| {}) }
    }
}

/// Why a session could not begin or did not end in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Mounting failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The filesystem refused to begin, or the kernel's FUSE is too old.
    #[error("cannot begin the FUSE session: {0}")]
    Begin(#[source] io::Error),
    /// The connection broke.
    #[error("the FUSE session broke off: {0}")]
    Broken(#[source] io::Error),
    /// No signal handlers or threads could be had.
    #[error("cannot set up the daemon: {0}")]
    Setup(#[source] io::Error),
}

/// Mounts `fs` and answers until it is unmounted. `device` comes from [`mount::open_device`].
///
/// The umask is cleared: the modes that requests carry are final.
///
/// # Errors
///
/// What happens before [`Hooks::ready`] leaves nothing mounted.
pub fn serve<F: Filesystem>(
    fs: F,
    device: OwnedFd,
    options: &SessionOptions,
    hooks: Hooks,
) -> Result<(), SessionError> {
    let signals = prepare()?;
    let (device, mounted) = if options.given {
        (device, Mounted::by_caller())
    } else {
        mount::mount(device, &options.mount_point, &options.source, &options.flags)?
    };
    let device_of = mounted.device();
    let on_failure = UnmountOnFailure(Some(mounted.clone()));
    // Before anything is answered.
    let _own = own::declare(mount::device_number(&device, &mounted));
    let watched = device.try_clone().map_err(SessionError::Setup)?;

    let connection = Connection::begin(fs, Device::new(device), how(options)).map_err(SessionError::Begin)?;

    if !options.given {
        backing_dev_info::tune(&options.mount_point);
    }
    stop_on_panic(mounted.clone());
    let listener =
        listen(signals, mounted, watched, (hooks.report, hooks.abandon)).map_err(SessionError::Setup)?;
    log::info!("mounted on {}", options.mount_point.display());
    let (notifier, parting) = (connection.notifier(), connection.parting(device_of));
    let running = connection.start().map_err(SessionError::Begin)?;
    (hooks.ready)(notifier, parting);
    until_end(running, listener, on_failure, &options.mount_point)
}

/// Goes on with the session of another process, and answers until the filesystem is unmounted. `device` is that of its connection.
///
/// [`Hooks::ready`] returns when the other one asks for no request any more and never will; until then nothing is done that the kernel
/// or anybody else could notice. Where it can't be so it ends the process.
///
/// # Errors
///
/// As [`serve()`]. What happens before [`Hooks::ready`] leaves the mount as it is.
pub fn take_over<F: Filesystem>(
    fs: F,
    device: OwnedFd,
    options: &SessionOptions,
    agreed: SessionState,
    hooks: Hooks,
) -> Result<(), SessionError> {
    let signals = prepare()?;
    let mounted = Mounted::taken_over(&options.mount_point, agreed.device);
    let _own = own::declare(mount::device_number(&device, &mounted));
    let watched = device.try_clone().map_err(SessionError::Setup)?;
    let connection = Connection::resume(fs, Device::new(device), agreed.agreed(), how(options));
    let (notifier, parting) = (connection.notifier(), connection.parting(agreed.device));
    let running = connection.start().map_err(SessionError::Begin)?;
    (hooks.ready)(notifier, parting);
    let on_failure = UnmountOnFailure(Some(mounted.clone()));
    stop_on_panic(mounted.clone());
    let listener =
        listen(signals, mounted, watched, (hooks.report, hooks.abandon)).map_err(SessionError::Setup)?;
    log::info!("went on with the mount on {}", options.mount_point.display());
    until_end(running, listener, on_failure, &options.mount_point)
}

/// Answers until the mount has ended.
fn until_end<F: Filesystem>(
    running: Running<F>,
    listener: Listener,
    mut on_failure: UnmountOnFailure,
    mount_point: &Path,
) -> Result<(), SessionError> {
    let_go_of_start();
    let ended = running.answer(|| on_failure.unmount()).map_err(SessionError::Broken);
    listener.stop();
    if ended.is_ok() {
        on_failure.0 = None;
        log::info!("unmounted {}", mount_point.display());
    }
    ended
}

/// Makes the process one that can serve a mount: no signal can end it and leave a dead mount, the modes of requests are final.
fn prepare() -> Result<Signals, SessionError> {
    rustix::process::umask(rustix::fs::Mode::empty());
    memory::keep_large_apart();
    process::ignore_stray_signals();
    Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGXCPU, SIGUSR1]).map_err(SessionError::Setup)
}

/// Tells how a connection is served.
fn how(options: &SessionOptions) -> How {
    let owner = rustix::process::geteuid().as_raw();
    How {
        threads: match &options.pairing {
            Some(pairing) => pairing.threads(),
            None => options.threads.unwrap_or_else(default_threads).max(1),
        },
        // A descriptor of their own lets threads wait apart; who may not open the device anew shares one.
        apart: mount::open_device().is_ok(),
        admission: match options.flags.only_owner_and_root() {
            true => Admission::RootAnd(owner),
            false => Admission::All,
        },
        given: options.given,
        pairing: options.pairing.clone(),
        uring: options.uring && options.threads != Some(1),
    }
}

/// When the first requests are answered by, and a mount that is only to answer a few has gone.
const STARTED: Duration = Duration::from_millis(100);

/// Gives back what was needed to start and isn't to serve: most of an idle mount's memory.
fn let_go_of_start() {
    let started = std::thread::Builder::new().name("start".into()).spawn(|| {
        std::thread::sleep(STARTED);
        if let Err(error) = memory::let_go_of_text() {
            log::debug!("the memory of the start is kept: {error}");
        }
        memory::trim_heaps();
    });
    if let Err(error) = started {
        log::debug!("the memory of the start is kept: {error}");
    }
}

/// Returns how many threads answer where nobody said how many.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}

/// Takes the mount away, unless all went well.
struct UnmountOnFailure(Option<Mounted>);

impl UnmountOnFailure {
    fn unmount(&mut self) {
        if let Some(mounted) = self.0.take()
            && let Err(error) = mounted.unmount(true)
        {
            log::error!("{error}");
        }
    }
}

impl Drop for UnmountOnFailure {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// The thread that waits for signals.
struct Listener {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Listener {
    fn stop(self) {
        self.handle.close();
        if self.thread.join().is_err() {
            log::error!("the thread that waits for signals has panicked");
        }
    }
}

/// What is called now and then, on the thread that waits for signals.
type Call = Box<dyn Fn() + Send>;

fn listen(
    mut signals: Signals,
    mounted: Mounted,
    device: OwnedFd,
    (report, abandon): (Call, Call),
) -> io::Result<Listener> {
    let handle = signals.handle();
    let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut asked = false;
        for signal in &mut signals {
            if signal == SIGUSR1 {
                report();
            } else if mounted.is_by_caller() {
                // Who mounted it unmounts it; that it is served no more is all that can be done here.
                abandon();
                std::process::exit(0);
            } else if mount::is_connected(device.as_fd()) {
                end(&mounted, asked);
                asked = true;
            }
        }
    })?;
    Ok(Listener { handle, thread })
}

/// Unmounts because of a signal.
fn end(mounted: &Mounted, lazy: bool) {
    match mounted.unmount(lazy) {
        Ok(()) => {}
        Err(MountError::Unmount { busy: true, .. }) => {
            log::warn!("busy: files are open in the mount; signal again to take it away from under them");
        }
        Err(error) => log::error!("{error}"),
    }
}

/// Lets a panic of any thread end the process from now on, and the mount with it, unless it is contained.
fn stop_on_panic(mounted: Mounted) {
    /// Taking the mount away may wait for answers that nobody gives any more.
    const PATIENCE: Duration = Duration::from_secs(2);
    const EXIT_CODE: i32 = 101;
    let ((panicked, wait), (done, unmounted)) = (mpsc::channel::<()>(), mpsc::channel());
    // Now: a thread that panics may be one that runs only where nobody else would, as would be what it starts.
    let unmounting = std::thread::Builder::new().name("unmount".into()).spawn(move || {
        // Without a panic it waits until the process ends.
        if wait.recv().is_err() {
            return;
        }
        if let Err(error) = mounted.unmount(true) {
            log::error!("{error}");
        }
        // Nobody listens any more when patience was short.
        done.send(()).unwrap_or_default();
    });
    let unmounted = Mutex::new(unmounted);
    on_panic(move |panic| {
        log::error!("{panic}\n{}", std::backtrace::Backtrace::force_capture());
        if unmounting.is_ok() && panicked.send(()).is_ok() {
            unmounted.lock().recv_timeout(PATIENCE).unwrap_or_default();
        }
        // The kernel ends the connection; what was staged is swept by the next mount.
        std::process::exit(EXIT_CODE);
    });
}

/// Returns what mount(8) shows as the device when nobody gave a name.
pub fn default_source() -> &'static OsStr {
    OsStr::new("unionmount")
}
