//! The server: one Unix socket, until a signal ends it.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use containerd_snapshots::tonic::transport::Server;
use rustix::fs::Mode;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::{RwLock, oneshot};
use tokio_stream::wrappers::UnixListenerStream;

use super::error::Error;
use super::places::Places;
use super::service::Service;
use super::snapshots::Snapshots;

/// How long calls under way may take once the server is to end. A longer one is cut off, as a kill would do it.
const GRACE: Duration = Duration::from_secs(10);
/// How long the last answers may take to be sent. Clients that are told of the end close their connections sooner.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// Where to serve what.
#[derive(Debug, Clone)]
pub struct Options {
    /// The socket.
    pub address: PathBuf,
    /// Where the snapshots lie.
    pub root: PathBuf,
    /// The program that containerd shall run to mount a union: a name in its PATH, or a path.
    pub program: String,
    /// Whether what lies there is to be moved out of the way first.
    pub set_aside: bool,
}

/// Why the server can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process serves this root.
    #[error("root {}: in use by another snapshotter; stop it, or choose another --root", .0.display())]
    RootInUse(PathBuf),
    /// Another process serves this socket.
    #[error("socket {}: another process answers there; stop it, or choose another --address", .0.display())]
    SocketInUse(PathBuf),
    /// There is something that is no socket.
    #[error("socket {}: there is something else of this name; choose another --address", .0.display())]
    NoSocket(PathBuf),
    /// The socket can't be made.
    #[error("socket {}: cannot {what}: {source}", .path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The root can't be opened.
    #[error("root {}: {error}", .root.display())]
    Root {
        /// The root.
        root: PathBuf,
        /// Why.
        error: Error,
    },
    /// No threads, no signals, no network.
    #[error("cannot serve: {0}")]
    Runtime(#[from] io::Error),
    /// gRPC failed.
    #[error("cannot serve: {0}")]
    Transport(#[from] containerd_snapshots::tonic::transport::Error),
}

/// Serves until SIGTERM or SIGINT, then ends when the calls under way have. A second signal ends at once.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    let (stop, stopped) = oneshot::channel();
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    // The database first, and let go of last: who has it owns the socket.
    let snapshots = open(options)?;
    let socket = Socket::bind(&options.address)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut signals = signals.forever();
        if let Some(signal) = signals.next() {
            log::info!("signal {signal}: ending");
            // A server that has failed meanwhile listens no more.
            stop.send(()).unwrap_or_default();
        }
        if signals.next().is_some() {
            log::warn!("second signal: ending at once");
            std::process::exit(1);
        }
    })?;
    let served = runtime.block_on(answer(socket.listener()?, snapshots.clone(), stopped));
    runtime.shutdown_timeout(GRACE);
    served
}

fn open(options: &Options) -> Result<Arc<Snapshots>, ServeError> {
    if options.set_aside {
        let aside = Places::set_all_aside(&options.root);
        let aside = aside.map_err(|error| ServeError::Root { root: options.root.clone(), error })?;
        if let Some(aside) = aside {
            log::warn!("all snapshots are in {} now; remove that when nothing needs it", aside.display());
        }
    }
    match Snapshots::open(&options.root, &options.program) {
        Ok(snapshots) => Ok(Arc::new(snapshots)),
        Err(error) if error.is_in_use() => Err(ServeError::RootInUse(options.root.clone())),
        Err(error) => Err(ServeError::Root { root: options.root.clone(), error }),
    }
}

async fn answer(
    listener: UnixListener,
    snapshots: Arc<Snapshots>,
    stopped: oneshot::Receiver<()>,
) -> Result<(), ServeError> {
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener)?);
    let under_way = Arc::new(RwLock::new(()));
    let service = Service::new(snapshots, under_way.clone());
    let (ending, ended) = oneshot::channel();
    let stop = async move {
        // That the thread which waits for signals is gone can only mean the end, too.
        stopped.await.unwrap_or_default();
        tell_systemd(NotifyState::Stopping);
        ending.send(()).unwrap_or_default();
    };
    let server = Server::builder()
        .add_service(containerd_snapshots::server(Arc::new(service)))
        .serve_with_incoming_shutdown(incoming, stop);
    tell_systemd(NotifyState::Ready);
    log::info!("serving");
    // The server ends when its clients have gone, which an idle one may never do.
    let idle = async move {
        ended.await.unwrap_or_default();
        match tokio::time::timeout(GRACE, under_way.write()).await {
            Ok(_none_under_way) => tokio::time::sleep(LAST_ANSWERS).await,
            Err(_) => log::warn!("a call takes too long: ending without it"),
        }
    };
    tokio::pin!(server, idle);
    std::future::poll_fn(|context| match server.as_mut().poll(context) {
        Poll::Ready(served) => Poll::Ready(served.map_err(ServeError::from)),
        Poll::Pending => idle.as_mut().poll(context).map(Ok),
    })
    .await
}

fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!("cannot tell systemd: {error}");
    }
}

/// The socket, removed in the end.
struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn bind(path: &Path) -> Result<Socket, ServeError> {
        let failed = |what| move |source| ServeError::Socket { path: path.to_owned(), what, source };
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
            made.map_err(failed("make its directory"))?;
        }
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at it")(error)),
            Ok(there) if !there.file_type().is_socket() => return Err(ServeError::NoSocket(path.to_owned())),
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return Err(ServeError::SocketInUse(path.to_owned())),
                // Left behind by one that was killed.
                Err(_) => std::fs::remove_file(path).map_err(failed("remove the old one"))?,
            },
        }
        // Whoever can connect is root on this machine. No thread has been started that could mind the umask.
        let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(umask);
        let listener = listener.map_err(failed("make it"))?;
        listener.set_nonblocking(true).map_err(failed("set it up"))?;
        Ok(Socket { path: path.to_owned(), listener })
    }

    fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("{}: cannot be removed: {error}", self.path.display());
        }
    }
}
