//! The daemon's end of the control socket.
//!
//! One thread accepts, one serves each client. None of them ever touches the mount or resolves a path of the merged tree
//! on the host; whatever they can't do is logged, and the mount goes on.
//!
//! Who may connect: the socket is in a directory of the daemon's user and has mode 0600, and each client is asked for its
//! credentials (SO_PEERCRED) besides: the daemon's user and root are served, anybody else is told why not.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use serde::Serialize;

use super::explanation::CopyingReport;
use super::explanation::{Explanation, LayerReport};
use super::pause::Pause;
use super::protocol::{About, Counts, LONGEST_REQUEST, Reply, Request, Restacked, Status, Told, Upgraded};
use super::runtime_dir;
use crate::error::Result;
use crate::union::Union;
use crate::union::current::Current;
use crate::union::events::{Filter, Heard};

/// How many clients are served at once.
const CLIENTS: usize = 32;
/// How many events wait for a listener before it loses some.
const QUEUE: usize = 16 << 10;
/// How long a client may be silent before its request.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a trace looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(500);

/// What the server's owner answers for it.
pub trait Answers: Send + Sync {
    /// Returns how many requests of each kind were served.
    fn requests(&self) -> BTreeMap<String, u64>;

    /// Returns the layers of the stack, without entries.
    ///
    /// # Errors
    /// Those of finding where they are.
    fn layers(&self, union: &Union) -> Result<Vec<LayerReport>>;

    /// Explains a path, relative to the root of the mount, in a language if one is wanted.
    ///
    /// # Errors
    /// Those of reading the layers.
    fn explain(&self, union: &Union, path: &[u8], language: Option<&str>) -> Result<Explanation>;

    /// Takes a snapshot of the upper, and returns its name. Nobody who asks holds the union meanwhile.
    ///
    /// # Errors
    /// The reason, for the person who asked.
    fn snapshot(&self, name: Option<&str>) -> std::result::Result<String, String>;

    /// Goes back to a snapshot, and returns its name. Nobody who asks holds the union meanwhile.
    ///
    /// # Errors
    /// The reason, for the person who asked.
    fn rollback(&self, name: Option<&str>) -> std::result::Result<String, String>;

    /// Makes a new upper over what is shown, and returns the name of the snapshot that was taken for it. Nobody who asks holds the
    /// union meanwhile.
    ///
    /// # Errors
    /// The reason, for the person who asked.
    fn branch(&self, new: &Path) -> std::result::Result<Option<String>, String>;

    /// Changes which lowers there are, as that request asks. Nobody who asks holds the union meanwhile.
    ///
    /// # Errors
    /// The reason, for the person who asked.
    fn restack(&self, request: Request) -> std::result::Result<Restacked, String>;

    /// Lets a program, of that device and inode number, go on with the mount and with the socket. Nobody who asks holds the union
    /// meanwhile. When it is done this process has only to [end](Answers::end).
    ///
    /// # Errors
    /// The reason, for the person who asked; all goes on as before.
    fn upgrade(
        &self,
        program: &Path,
        id: (u64, u64),
        socket: Listening<'_>,
    ) -> std::result::Result<Upgraded, String>;

    /// Ends this process, which isn't the mount's daemon any more.
    fn end(&self) -> !;
}

/// A socket that another process is to go on with.
#[derive(Debug, Clone, Copy)]
pub struct Listening<'a> {
    /// It.
    pub listener: BorrowedFd<'a>,
    /// The directory that it is in.
    pub dir: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a str,
    /// Its inode number.
    pub ino: u64,
}

/// The same, in that process.
#[derive(Debug)]
pub struct TakenOver {
    /// The socket.
    pub listener: OwnedFd,
    /// The directory that it is in.
    pub dir: OwnedFd,
    /// Its name there.
    pub name: String,
    /// Its inode number.
    pub ino: u64,
}

/// The socket, and what keeps the thread that accepts from accepting.
struct Socket {
    listener: UnixListener,
    dir: OwnedFd,
    name: Mutex<String>,
    ino: u64,
    pause: Pause,
}

/// What the threads share.
struct Shared {
    union: Arc<Current>,
    about: About,
    answers: Box<dyn Answers>,
    clients: AtomicUsize,
    ending: AtomicBool,
    /// The mount has ended, and its daemon goes on.
    unmounted: AtomicBool,
    /// One at a time changes the layers.
    changing: Mutex<()>,
    socket: Socket,
}

/// A socket that is served. Dropped, it is removed.
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Makes the socket of a mount and serves it.
    ///
    /// # Errors
    /// When there is no safe runtime directory, or the socket can't be made in it. The mount does without.
    pub fn start(union: Arc<Current>, about: About, answers: Box<dyn Answers>) -> io::Result<Server> {
        let (place, dir) = runtime_dir::own()?;
        let name = runtime_dir::socket_name(&about.device);
        // It has its final name only when it listens: until then somebody might take it for a stale one.
        let making = format!("{}.{}.new", about.device, about.pid);
        let path = place.join(&making);
        let listener = UnixListener::bind(&path)?;
        let published =
            runtime_dir::restrict(&path).and_then(|()| runtime_dir::publish(&dir, &making, &name));
        let ino = published.inspect_err(|_| {
            std::fs::remove_file(&path).unwrap_or_default(); // the error is told already
        })?;
        log::debug!("control socket {}", place.join(&name).display());
        let socket = TakenOver { listener: listener.into(), dir, name, ino };
        Server::go_on(union, about, answers, socket)
    }

    /// Serves a socket that listens already: that of the mount whose daemon this process is from here on.
    ///
    /// # Errors
    /// When there are no threads or descriptors to be had.
    pub fn go_on(
        union: Arc<Current>,
        about: About,
        answers: Box<dyn Answers>,
        socket: TakenOver,
    ) -> io::Result<Server> {
        /// As the standard library has it.
        const BACKLOG: i32 = 128;
        let TakenOver { listener, dir, name, ino } = socket;
        // Once more: whoever connects is told the process that has called it last, and waits for the end of that.
        rustix::net::listen(&listener, BACKLOG)?;
        let (listener, name, pause) = (listener.into(), Mutex::new(name), Pause::new()?);
        let shared = Arc::new(Shared {
            union,
            about,
            answers,
            clients: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
            unmounted: AtomicBool::new(false),
            changing: Mutex::new(()),
            socket: Socket { listener, dir, name, ino, pause },
        });
        let mut server = Server { shared, thread: None };
        let shared = server.shared.clone();
        let accepting = std::thread::Builder::new().name("control".into()).spawn(move || accept(&shared))?;
        server.thread = Some(accepting);
        Ok(server)
    }
}

impl Server {
    /// Goes on though the mount has ended, for who asks what its daemon still does. The next mount may have the device's number, so
    /// the socket is called after the process, and after its own number: processes of several pid namespaces may share the directory.
    pub fn outlives_mount(&mut self) {
        self.shared.unmounted.store(true, Ordering::Relaxed);
        let Socket { dir, name: own, ino, .. } = &self.shared.socket;
        let name = runtime_dir::socket_name(&format!("ended-{}-{ino}", self.shared.about.pid));
        let mut own = own.lock();
        match runtime_dir::rename_own(dir, (&own, *ino), &name) {
            Ok(()) => *own = name,
            Err(error) => log::debug!("control socket: keeps its name: {error}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Socket { listener, dir, name, ino, .. } = &self.shared.socket;
        runtime_dir::remove_own(dir, &name.lock(), *ino);
        self.shared.ending.store(true, Ordering::Release);
        drop(self.shared.changing.lock());
        // Wakes the thread that accepts.
        if let Err(errno) = rustix::net::shutdown(listener, rustix::net::Shutdown::Both) {
            return log::debug!("control socket: {errno}");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the control socket has panicked");
        }
    }
}

fn accept(shared: &Arc<Shared>) {
    let Socket { listener, pause, .. } = &shared.socket;
    while !shared.ending.load(Ordering::Acquire) {
        if !pause.wait_for(listener) {
            pause.obey();
            continue;
        }
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(_) if shared.ending.load(Ordering::Acquire) => return,
            Err(error) => {
                // Out of descriptors, say: that passes.
                log::debug!("control socket: {error}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if shared.clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS {
            refuse(&client, "too many clients");
            shared.clients.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let serving = shared.clone();
        let served = std::thread::Builder::new().name("client".into()).spawn(move || {
            if let Err(error) = serve(&serving, client) {
                log::debug!("control socket: a client has gone: {error}");
            }
            serving.clients.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = served {
            shared.clients.fetch_sub(1, Ordering::Relaxed);
            log::debug!("control socket: {error}");
        }
    }
}

fn refuse(client: &UnixStream, why: &str) {
    // It may have gone already.
    send(client, &Reply::<()>::Error(why.to_owned())).unwrap_or_default();
}

/// Writes a line.
fn send(mut client: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    client.write_all(&line)
}

fn serve(shared: &Shared, client: UnixStream) -> io::Result<()> {
    let peer = socket_peercred(&client)?.uid;
    if !peer.is_root() && peer != rustix::process::geteuid() {
        refuse(&client, "only the user who mounted it and root may ask");
        return Ok(());
    }
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(client.try_clone()?);
    loop {
        let mut line = Vec::new();
        if reader.by_ref().take(LONGEST_REQUEST).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let request: Request = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(error) => {
                refuse(&client, &format!("not understood: {error}"));
                return Ok(());
            }
        };
        let request = match change(shared, &client, request)? {
            Some(request) => request,
            None => continue,
        };
        let union = match shared.union.get() {
            Ok(union) => union,
            Err(why) => {
                refuse(&client, &why.to_string());
                return Ok(());
            }
        };
        match request {
            Request::Status => send(&client, &status(shared, &union))?,
            Request::Explain { path, language } => {
                let explained = shared.answers.explain(&union, &path.0, language.as_deref());
                let reply = explained.map_or_else(|error| Reply::Error(error.to_string()), Reply::Ok);
                send(&client, &reply)?;
            }
            // Answered above: these wait until nobody has the union.
            Request::Snapshot { .. } | Request::Rollback { .. } | Request::Branch { .. } => {}
            Request::AddLayer { .. } | Request::RemoveLayer { .. } | Request::Upgrade { .. } => {}
            Request::Trace { filter } => {
                return trace(shared, union, &client, filter);
            }
        }
    }
}

/// Answers a request that changes the layers. Returns any other.
fn change(shared: &Shared, client: &UnixStream, request: Request) -> io::Result<Option<Request>> {
    fn answer<T: Serialize>(client: &UnixStream, done: std::result::Result<T, String>) -> io::Result<()> {
        send(client, &done.map_or_else(Reply::Error, Reply::Ok))
    }
    // Whoever ends the mount waits until it is told what has become of it.
    let changing = || shared.changing.lock();
    match request {
        Request::Branch { new } => {
            let _changing = changing();
            answer(client, shared.answers.branch(new.as_path()))?;
        }
        Request::Rollback { name } => {
            let _changing = changing();
            answer(client, shared.answers.rollback(name.as_deref()))?;
        }
        Request::Snapshot { name } => {
            let _changing = changing();
            answer(client, shared.answers.snapshot(name.as_deref()))?;
        }
        request @ (Request::AddLayer { .. } | Request::RemoveLayer { .. }) => {
            let _changing = changing();
            answer(client, shared.answers.restack(request))?;
        }
        Request::Upgrade { program, id } => {
            let _changing = changing();
            match upgrade(shared, program.as_path(), id) {
                Ok(done) => {
                    // It may have gone; the mount goes on without this process in any case.
                    send(client, &Reply::Ok(done)).unwrap_or_default();
                    shared.answers.end();
                }
                Err(why) => answer(client, Err::<(), _>(why))?,
            }
        }
        other => return Ok(Some(other)),
    }
    Ok(None)
}

/// Lets another process go on with the mount and the socket.
fn upgrade(shared: &Shared, program: &Path, id: (u64, u64)) -> std::result::Result<Upgraded, String> {
    let Socket { listener, dir, name, ino, pause } = &shared.socket;
    if shared.unmounted.load(Ordering::Relaxed) {
        return Err("the mount has ended".to_owned());
    }
    if !pause.begin() {
        return Err("the control socket is busy; try again".to_owned());
    }
    let name = name.lock().clone();
    let socket = Listening { listener: listener.as_fd(), dir: dir.as_fd(), name: &name, ino: *ino };
    shared.answers.upgrade(program, id, socket).inspect_err(|_| pause.end())
}

fn status(shared: &Shared, union: &Union) -> Reply<Status> {
    let layers = match shared.answers.layers(union) {
        Ok(layers) => layers,
        Err(error) => return Reply::Error(error.to_string()),
    };
    let counters = &union.counters;
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    Reply::Ok(Status {
        about: shared.about.clone(),
        layers,
        counters: Counts {
            copy_ups: get(&counters.copy_ups),
            copied_bytes: get(&counters.copied_bytes),
            whiteouts: get(&counters.whiteouts),
            creates: get(&counters.creates),
            renames: get(&counters.renames),
            attribute_changes: get(&counters.setattrs),
            xattr_changes: get(&counters.setxattrs),
            index_answers: get(&counters.index_answers),
        },
        requests: shared.answers.requests(),
        memory: resident_memory(),
        nodes: union.known_nodes() as u64,
        listeners: union.events.count() as u64,
        lazy: union.lazy_report(),
        unmounted: shared.unmounted.load(Ordering::Relaxed),
        copying: union.copying_up().iter().map(CopyingReport::from).collect(),
    })
}

/// Returns the memory of this process that is in RAM.
fn resident_memory() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Tells events until the client goes or the union ends.
fn trace(shared: &Shared, union: Arc<Union>, client: &UnixStream, filter: Filter) -> io::Result<()> {
    let mut listening = union.events.listen(filter, QUEUE);
    send(client, &status(shared, &union))?;
    drop(union); // a listener doesn't keep the union alive
    while !shared.ending.load(Ordering::Acquire) {
        match listening.hear(LOOK) {
            Heard::Event(event) => send(client, &Told::Event(event))?,
            Heard::Lost(lost) => send(client, &Told::Lost { lost })?,
            Heard::Nothing if has_gone(client) => return Ok(()),
            Heard::Nothing => {}
            Heard::End => return Ok(()),
        }
    }
    Ok(())
}

/// Returns whether the client has closed its end, or said something, which it has no reason to.
fn has_gone(client: &UnixStream) -> bool {
    let fd = client.as_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN | PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}
