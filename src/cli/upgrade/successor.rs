//! The program that takes a mount over: started by the mount's daemon, it reads what that hands over, and goes on.
//!
//! Its standard input is a socket to the daemon. Until that one says `go` this process changes nothing, and may end at any moment.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::state::{self, FORMAT, Head};
use super::talk::{Talk, Word};
use crate::cli::daemon::Ready;
use crate::cli::serve::{Before, Mounting, pairing, run as serve};
use crate::cli::{Failure, descriptors, logging, lowers};
use crate::control::server::TakenOver;
use crate::fuse::dispatch::start_thread;
use crate::fuse::session::{self, SessionOptions, default_threads};
use crate::sys::descriptors::Incoming;
use crate::sys::namespace::rights;
use crate::sys::own;
use crate::sys::process::{Stdio, close_inherited, detach_stdio, raise_nofile_limit};
use crate::union::Union;
use crate::union::escaped_path::EscapedPath;
use crate::union::handover::{OpenedTree, TreeState};
use crate::union::stack::layer::LowerSource;

/// How long the daemon may take until nobody asks it any more: longer than it has patience for that.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes a mount over, and serves it until its end. `args`: this program's.
pub(in crate::cli) fn run(args: &[OsString]) -> Result<ExitCode, Failure> {
    let no_daemon = "this is for a daemon to call, which is asked by `unionmount upgrade`";
    if args.len() != 3 {
        return Err(Failure::usage(no_daemon));
    }
    // The program itself, by which it was started, and whatever else nobody has closed: all that is needed comes over the socket.
    close_inherited();
    // It was started by a descriptor, whose number is no name for `ps`.
    rustix::thread::set_name(c"unionmount").unwrap_or_default();
    let talk = Rc::new(Channel::new(socket().map_err(|_| Failure::usage(no_daemon))?));
    let ended = take_over(&talk);
    match (talk.end(), &ended) {
        // The daemon tells it to who has asked. It may have gone, and the mount with it.
        (Some(talk), Err(failure)) => {
            talk.say(&Word::Refused(failure.message.clone())).unwrap_or_default();
            Err(Failure::told(1))
        }
        _ => ended.map(|()| ExitCode::SUCCESS),
    }
}

/// The talk with the daemon, until that has nothing more to say.
struct Channel(RefCell<Option<Talk>>);

impl Channel {
    fn new(socket: UnixStream) -> Channel {
        Channel(RefCell::new(Some(Talk(socket))))
    }

    /// Does what is to be done with it.
    fn during<T>(&self, talk: impl FnOnce(&Talk) -> Result<T, String>) -> Result<T, String> {
        self.0.borrow().as_ref().map_or_else(|| Err("the daemon has gone".to_owned()), talk)
    }

    /// Ends it: what is said from then on nobody hears.
    fn end(&self) -> Option<Talk> {
        self.0.borrow_mut().take()
    }
}

/// Asks for what there is, and goes on with it until the mount ends.
fn take_over(talk: &Rc<Channel>) -> Result<(), Failure> {
    let handed = talk.during(|talk| {
        talk.say(&Word::Hello { program: env!("CARGO_PKG_VERSION").to_owned(), format: FORMAT })?;
        raise_nofile_limit().map_err(|error| error.to_string())?;
        let (mut word, mut trees) = (talk.hear(Some(PATIENCE))?, Vec::new());
        if let Word::Archives(told) = word {
            trees = open_again(told)?;
            talk.say(&Word::Opened)?;
            word = talk.hear(Some(PATIENCE))?;
        }
        match word {
            Word::Handed { descriptors } => {
                let fds = Incoming::receive(&talk.0, descriptors).map_err(|error| error.to_string())?;
                Ok((fds, descriptors, trees))
            }
            _ => Err("the daemon says what makes no sense".to_owned()),
        }
    });
    let (fds, descriptors, trees) = handed.map_err(Failure::failed)?;
    go_on(talk, (fds, descriptors), &trees).map_err(Failure::failed)?
}

/// Opens archives again, by the names by which they were opened. Each must be the one that the daemon reads.
fn open_again(told: Vec<TreeState>) -> Result<Vec<OpenedTree>, String> {
    let mut opened = Vec::new();
    // Layers of an image that lie right above each other tell of each other: see `lowers`.
    for run in told.chunk_by(|above, below| above.at() + 1 == below.at()) {
        let paths = run.iter().map(|one| one.path().to_owned());
        let found = lowers::sources(paths).map_err(|failure| failure.message)?;
        if found.len() != run.len() {
            return Err(format!("{}: is another image by now", EscapedPath::from(run[0].path())));
        }
        for (told, found) in run.iter().zip(found) {
            match found {
                LowerSource::Tree { tree, .. } if told.is(&*tree) => opened.push((told.clone(), tree)),
                _ => {
                    let shown = EscapedPath::from(told.path());
                    return Err(format!(
                        "{shown}: another file is there, or it was changed since it was mounted"
                    ));
                }
            }
        }
    }
    Ok(opened)
}

/// Takes the socket from the standard input.
fn socket() -> io::Result<UnixStream> {
    let stdin = rustix::stdio::stdin();
    let stat = rustix::fs::fstat(stdin)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Socket {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
    detach_stdio(Stdio::InputAndOutput)?;
    Ok(UnixStream::from(socket))
}

/// Goes on with what is handed over, until the mount ends; or tells why it can't, and nothing has happened.
fn go_on(
    talk: &Rc<Channel>,
    (mut fds, descriptors): (Incoming, usize),
    trees: &[OpenedTree],
) -> Result<Result<(), Failure>, String> {
    let said = |error: io::Error| error.to_string();
    let mut file = File::from(fds.take(0).map_err(said)?);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(said)?;
    drop(file);
    let (head, _, nodes) = state::read(&bytes)?;
    may_do_the_same(&head)?;
    let hold =
        head.hold.iter().map(|fd| fds.take(*fd).map(Arc::new)).collect::<io::Result<Vec<Arc<OwnedFd>>>>();
    let hold = hold.map_err(said)?;
    let device = fds.take(head.device).map_err(said)?;
    let socket = TakenOver {
        listener: fds.take(head.socket.listener).map_err(said)?,
        dir: fds.take(head.socket.dir).map_err(said)?,
        name: head.socket.name,
        ino: head.socket.ino,
    };
    let told = head.request.clone();
    let request = head.request.request();
    // The one that is open: by its path there may be another by now, or this very mount.
    let log = head.log.map(|fd| fds.take(fd)).transpose().map_err(said)?.map(File::from);
    logging::start_in(&request.log, log).map_err(|failure| failure.to_string())?;
    let threads = request.threads.unwrap_or_else(default_threads).max(1) + 1;
    let limits = descriptors::share_out(descriptors.saturating_sub(head.union.held()) + trees.len(), threads)
        .map_err(|failure| failure.to_string())?;
    // Before the layers are looked at: while nobody answers, nothing may be asked of the mount.
    let own = head.session.device.map(|(major, minor)| own::declare(Some(rustix::fs::makedev(major, minor))));
    let union = Union::of_state(head.union, nodes, (&mut fds, trees), (limits, &request.fs));
    let union = union.map_err(|error| error.to_string())?;
    drop(bytes);
    // Nobody has taken what is left.
    drop(fds);
    let options = SessionOptions {
        given: false,
        mount_point: request.mount_point.clone(),
        pairing: pairing(&request),
        source: request.source.clone(),
        flags: request.mount.clone(),
        threads: request.threads,
        uring: false,
    };
    let before = Before {
        requests: head.requests,
        since_us: head.since_us,
        can_doubt_names: head.can_doubt_names,
        opens: head.opens,
        device: head.session.device,
        socket,
    };
    let mounting = Mounting {
        request: &request,
        told,
        again: head.again.stack(trees),
        limits,
        options: &options,
        hold,
        before: Some(before),
    };
    let begin = Box::new({
        let talk = talk.clone();
        move |union: &Arc<Union>| {
            let is_gone = talk.during(|talk| talk.say(&Word::Ready).and_then(|()| wait_for_go(talk)));
            if let Err(why) = is_gone {
                log::info!("the daemon of before goes on: {why}");
                std::process::exit(1);
            }
            drop(talk.end());
            union.go_on();
            start_thread(union.settling());
            // What was being counted anew is so again.
            let counting = union.clone();
            start_thread(move || counting.count_anew());
        }
    });
    let policy = head.policy;
    let serve_on = |fs, hooks| session::take_over(fs, device, &options, head.session, hooks);
    let ended = serve(Arc::new(union), policy, mounting, (serve_on, begin), Ready::nobody_waits());
    drop(own);
    Ok(ended)
}

/// Waits until the daemon asks for no request any more and never will. From when it has been told that this process goes on, it does.
fn wait_for_go(talk: &Talk) -> Result<(), String> {
    match talk.hear(Some(PATIENCE))? {
        Word::Go => talk.say(&Word::Serving),
        _ => Err("it says what makes no sense".to_owned()),
    }
}

/// Checks that this process may do what the daemon may: a program that is started has fewer rights than who started it, where that has
/// some that aren't handed on.
fn may_do_the_same(head: &Head) -> Result<(), String> {
    let own = rights().map_err(|error| error.to_string())?;
    if rustix::process::geteuid().as_raw() != head.user || head.rights & !own != 0 {
        return Err("a program that the daemon starts may do less than the daemon, which has rights that aren't handed on".to_owned());
    }
    Ok(())
}
