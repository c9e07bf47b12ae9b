//! The daemon's end of an upgrade: it starts the program that is to take over, tells it all, and ends.
//!
//! Nothing here changes anything that the mount needs. Until the other one has everything and is told to go, whatever fails leaves this
//! daemon as it is: the other one is killed first, and then requests are answered again.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Instant;

use rustix::fs::{MemfdFlags, Mode, OFlags};

use super::SUCCESSOR;
use super::program::may_be_started;
use super::state::{self, AgainState, FORMAT, Head, RequestState, SocketState};
use super::talk::{OPENING, READING, STARTING, Talk, Word};
use crate::cli::logging;
use crate::cli::sealing::Sealing;
use crate::control::protocol::Upgraded;
use crate::control::server::Listening;
use crate::fuse::counters::RequestCounters;
use crate::fuse::io_mode::OpenState;
use crate::fuse::live::Live;
use crate::fuse::policy::Policy;
use crate::fuse::session::parting::Parting;
use crate::sys::descriptors::Outgoing;
use crate::sys::namespace::rights;
use crate::sys::own::is_own;
use crate::union::Union;
use crate::union::escaped_path::EscapedPath;
use crate::union::handover::{Stays, TreeState, in_the_way};

/// What a mount is handed over by.
pub(in crate::cli) struct Handing {
    pub(in crate::cli) request: RequestState,
    /// Directories that are locked as long as it is mounted.
    pub(in crate::cli) hold: Vec<Arc<OwnedFd>>,
    /// Somebody waits for this very process.
    pub(in crate::cli) foreground: bool,
    /// Weak: who only asks must not keep the layers open.
    pub(in crate::cli) live: Weak<Live>,
    pub(in crate::cli) sealing: Arc<Sealing>,
    pub(in crate::cli) parting: Parting,
    pub(in crate::cli) counters: Arc<RequestCounters>,
    pub(in crate::cli) since_us: u64,
}

/// The program that was started. Dropped, it is killed, and doesn't run any more.
struct Started {
    child: Option<Child>,
    talk: Talk,
}

impl Drop for Started {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It may have ended by itself.
        child.kill().unwrap_or_default();
        if let Err(error) = child.wait() {
            log::error!("the program that was to take over: {error}");
        }
    }
}

impl Started {
    /// Has it open archives, which it finds by their names. Requests are answered meanwhile.
    fn open_again(&self, trees: Vec<TreeState>) -> Result<(), String> {
        let said = self.talk.say(&Word::Archives(trees)).and_then(|()| self.talk.hear(Some(OPENING)));
        match said {
            Ok(Word::Opened) => Ok(()),
            Ok(Word::Refused(why)) => Err(why),
            Ok(_) => Err("the program says what makes no sense".to_owned()),
            Err(why) => Err(format!("the program can't open the archives: {why}")),
        }
    }
}

impl Handing {
    /// Tells why this mount stays with its daemon, if so.
    fn in_the_way(&self) -> Option<&'static str> {
        let foreground = "it runs in the foreground (-f), and whoever started it waits for its end";
        let of_process = self.foreground.then_some(foreground);
        of_process.or_else(|| self.parting.in_the_way()).or_else(|| in_the_way(&self.request.fs))
    }

    /// Lets the program go on with the mount.
    pub(in crate::cli) fn upgrade(
        &self,
        program: &Path,
        id: (u64, u64),
        socket: Listening<'_>,
        again: AgainState,
    ) -> Result<Upgraded, String> {
        let stays = |why: String| format!("the daemon goes on as before: {why}");
        if let Some(why) = self.in_the_way() {
            return Err(format!(
                "this mount can't be upgraded while it is mounted: {why}; unmount it, and mount again"
            ));
        }
        let live = self.live.upgrade().ok_or_else(|| stays("the mount has ended".to_owned()))?;
        let (mut started, to) = self.start(program, id).map_err(stays)?;
        let trees = live.trees().map_err(|error| stays(error.to_string()))?;
        if !trees.is_empty() {
            started.open_again(trees).map_err(stays)?;
        }
        let mut waited = None;
        let hand = |union: &Union, policy: Policy, opens: Vec<OpenState>| {
            let since = Instant::now();
            self.hand(union, (policy, opens, live.can_doubt_names()), (socket, again), &mut started)?;
            waited = Some(since.elapsed());
            Ok::<_, String>(())
        };
        let handed = self.sealing.paused(|| live.hand_over(&self.parting, hand));
        handed.map_err(|error| stays(error.to_string()))?;
        let pid = started.child.take().map_or(0, |child| child.id());
        let micros = waited.unwrap_or_default().as_micros() as u64;
        log::info!("process {pid} (unionmount {to}) goes on with the mount; requests waited for {micros} µs");
        Ok(Upgraded { from: env!("CARGO_PKG_VERSION").to_owned(), to, pid, micros })
    }

    /// Starts the program, which has nothing yet. Returns its version as well.
    fn start(&self, program: &Path, id: (u64, u64)) -> Result<(Started, String), String> {
        let shown = EscapedPath::from(program);
        let failed = |error: io::Error| format!("{shown}: {error}");
        // What is looked at is what is started: somebody else may be able to exchange what has the name. It is left open for the program,
        // which may be a script, whose interpreter opens it by that number; who takes over closes it.
        let opened = rustix::fs::open(program, OFlags::PATH, Mode::empty());
        let opened = File::from(opened.map_err(|errno| failed(errno.into()))?);
        let found = opened.metadata().map_err(failed)?;
        if (found.dev(), found.ino()) != id {
            return Err(format!(
                "{shown}: the daemon sees another file there; is it in another mount namespace?"
            ));
        }
        // It would wait for itself.
        if is_own(found.dev()) {
            return Err(format!("{shown}: lies in the mount; take a program that lies outside of it"));
        }
        let own = may_be_started(&opened, &found).map_err(|why| format!("{shown}: {why}"))?;
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let talk = Talk::within(ours, READING).map_err(failed)?;
        let by_number = format!("/proc/self/fd/{}", opened.as_raw_fd());
        // Called as it is where it lies, and not as whoever asks likes to call it.
        let name = std::fs::read_link(&by_number).unwrap_or_else(|_| "unionmount".into());
        let mut command = Command::new(&by_number);
        if own.has_anothers_environment() {
            command.env_clear();
        }
        let child = command
            .arg0(name)
            .arg(SUCCESSOR)
            .arg(self.request.mount_point())
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        // With it goes this process's copy of the other end: that somebody has ended shows by the last one.
        drop(command);
        let started = Started { child: Some(child), talk };
        match started.talk.hear(Some(STARTING)) {
            Ok(Word::Hello { format, program }) if format < FORMAT => Err(format!(
                "{shown} is unionmount {program}, which reads states up to format {format}, and this daemon, unionmount {}, writes {FORMAT}",
                env!("CARGO_PKG_VERSION")
            )),
            Ok(Word::Hello { program, .. }) => {
                self.needs_nothing_of_the_mount(&started)?;
                Ok((started, program))
            }
            Ok(Word::Refused(why)) => Err(format!("{shown} can't take a mount over: {why}")),
            Ok(_) => Err(format!("{shown} is no program that can take a mount over")),
            Err(why) => Err(format!("{shown} can't take a mount over: {why}")),
        }
    }

    /// Checks that no part of the program lies in the mount, as its libraries do where that covers `/usr`: it would wait for itself.
    fn needs_nothing_of_the_mount(&self, started: &Started) -> Result<(), String> {
        let Some(((major, minor), child)) = self.parting.state().device.zip(started.child.as_ref()) else {
            return Ok(());
        };
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id()))
            .map_err(|error| format!("what the program needs can't be told: {error}"))?;
        let device = format!("{major:02x}:{minor:02x}");
        match maps.lines().any(|line| line.split_whitespace().nth(3) == Some(&device)) {
            false => Ok(()),
            true => Err("a part of the program, such as a library, lies in the mount; take one that is linked statically".to_owned()),
        }
    }

    /// Hands all over. Nobody asks for anything meanwhile.
    fn hand(
        &self,
        union: &Union,
        (policy, opens, can_doubt_names): (Policy, Vec<OpenState>, bool),
        (socket, again): (Listening<'_>, AgainState),
        started: &mut Started,
    ) -> Result<(), String> {
        let io = |error: io::Error| format!("it can't be handed over: {error}");
        let mut fds = Outgoing::default();
        let file = rustix::fs::memfd_create("unionmount-state", MemfdFlags::CLOEXEC);
        let mut file = File::from(file.map_err(|errno| io(errno.into()))?);
        fds.add_copy(file.as_fd()).map_err(io)?;
        let (mut nodes, mut count) = (Vec::new(), 0);
        let state = union
            .state(&mut fds, |node| {
                count += 1;
                Ok::<_, Stays>(state::add_node(&mut nodes, node)?)
            })
            .map_err(|error| error.to_string())?;
        let head = Head {
            request: self.request.clone(),
            again,
            session: self.parting.state(),
            policy,
            opens,
            can_doubt_names,
            union: state,
            nodes: count,
            requests: self.counters.all(),
            since_us: self.since_us,
            device: fds.add_copy(self.parting.device()).map_err(io)?,
            log: logging::file().map(|file| fds.add_copy(file.as_fd())).transpose().map_err(io)?,
            socket: SocketState {
                listener: fds.add_copy(socket.listener).map_err(io)?,
                dir: fds.add_copy(socket.dir).map_err(io)?,
                name: socket.name.to_owned(),
                ino: socket.ino,
            },
            hold: self.hold.iter().map(|held| fds.add(held.clone())).collect(),
            user: rustix::process::geteuid().as_raw(),
            rights: rights().map_err(io)?,
        };
        file.write_all(&state::write(&head, &nodes).map_err(io)?).map_err(io)?;
        drop(nodes);
        let talk = &started.talk;
        let sent =
            talk.say(&Word::Handed { descriptors: fds.len() }).and_then(|()| fds.send(&talk.0).map_err(io));
        let gone = |why: String| format!("the program didn't go on: {why}");
        // What it said before it hung up tells more than that it has.
        match talk.hear(Some(READING)) {
            Ok(Word::Ready) => sent.map_err(gone)?,
            Ok(Word::Refused(why)) => return Err(why),
            Ok(_) => return Err("the program says what makes no sense".to_owned()),
            Err(why) => return Err(format!("the program can't read it: {why}")),
        }
        talk.say(&Word::Go).map_err(gone)?;
        // Not killed any more: it may have begun. It says so before it does, and where it ends before that, this one goes on.
        match talk.hear(None) {
            Ok(Word::Serving) => Ok(()),
            Ok(_) => Err("the program says what makes no sense".to_owned()),
            Err(why) => Err(gone(why)),
        }
    }
}
