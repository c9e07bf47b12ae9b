//! Asking a daemon over its control socket.
//!
//! The daemon may be anybody's: root asks those of all users. So it is trusted with nothing: each talk has a deadline
//! that no trickle of bytes extends, from the connection on, and what it says is bounded.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::de::DeserializeOwned;

use super::explanation::Explanation;
use super::mounts::{Life, Mount};
use super::protocol::{LONGEST_ANSWER, Reply, Request, Restacked, Status, Told, Upgraded};
use super::runtime_dir;
use crate::sys::process::peer_process;
use crate::union::escaped_path::EscapedPath;
use crate::union::events::Filter;
use crate::union::stack::layer::TakeAway;

/// How long a talk about the mount's state may take, all in all. A daemon has that at hand.
pub const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// How long a talk may take for which the daemon reads the layers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It has no socket.
    #[error(
        "the daemon of {} has no control socket here; was it started by another user, in a container, or without a runtime directory?",
        EscapedPath::from(.0.as_path())
    )]
    NoSocket(PathBuf),
    /// It has ended without unmounting.
    #[error("{}: a dead FUSE mount, its daemon has ended; {}", EscapedPath::from(.0.as_path()), TakeAway(.0))]
    Dead(PathBuf),
    /// The socket is somebody else's.
    #[error("the mount {} belongs to uid {owner}; only that user and root may ask its daemon", EscapedPath::from(.point.as_path()))]
    NotYours {
        /// The mount.
        point: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A process that isn't the mount's daemon listens there.
    #[error("{}: the process that listens there is uid {uid}'s, not the mount's daemon", EscapedPath::from(.socket.as_path()))]
    Impostor {
        /// The socket.
        socket: PathBuf,
        /// Whose process.
        uid: u32,
    },
    /// The daemon said so.
    #[error("{}", EscapedPath::from(.0.as_bytes()))]
    Refused(String),
    /// It has ended.
    #[error("the daemon has ended")]
    Ended,
    /// It says nothing, or not enough in time.
    #[error("the daemon doesn't answer; it may be stopped or busy")]
    Silent,
    /// It says more than any answer has.
    #[error("the daemon's answer is longer than {LONGEST_ANSWER} bytes")]
    Endless,
    /// The talk failed.
    #[error("cannot talk to the daemon: {0}")]
    Io(#[from] io::Error),
    /// It speaks another language: a daemon of another version.
    #[error("the daemon's answer is not understood, it may be of another version: {0}")]
    Words(#[from] serde_json::Error),
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    /// When the talk must have ended; `None`: whenever something happens.
    deadline: Option<Instant>,
}

impl Client {
    /// Connects to the daemon of a mount, for a talk that ends within `patience`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect_within(mount: &Mount, patience: Duration) -> Result<Client, ClientError> {
        let deadline = Instant::now() + patience;
        let us = rustix::process::geteuid().as_raw();
        let (mut impostor, mut abandoned) = (None, false);
        for socket in runtime_dir::sockets_of(&mount.device) {
            let stream = match open(&socket, deadline) {
                Ok(stream) => stream,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(Errno::CONNREFUSED) => {
                    abandoned = true;
                    continue;
                }
                Err(Errno::ACCESS) if mount.owner.is_none_or(|owner| owner == us) => continue,
                Err(Errno::ACCESS) => break,
                Err(errno) => return Err(talk_failed(errno.into())),
            };
            // Whoever could write to the directory could listen there.
            let uid = socket_peercred(&stream).map_err(io::Error::from)?.uid.as_raw();
            if uid != 0 && uid != us && Some(uid) != mount.owner {
                impostor = Some(ClientError::Impostor { socket, uid });
                continue;
            }
            return Ok(Client { reader: BufReader::new(stream), deadline: Some(deadline) });
        }
        if let Some(impostor) = impostor {
            return Err(impostor);
        }
        let life = mount.life(deadline.saturating_duration_since(Instant::now()));
        match (life, mount.owner) {
            (Life::Dead, _) => Err(ClientError::Dead(mount.point.clone())),
            // A daemon takes the name of its socket over from one that was killed: nobody has this mount.
            (Life::Unknown, _) if abandoned => Err(ClientError::Dead(mount.point.clone())),
            (_, Some(owner)) if owner != us && us != 0 => {
                Err(ClientError::NotYours { point: mount.point.clone(), owner })
            }
            _ => Err(ClientError::NoSocket(mount.point.clone())),
        }
    }

    /// Connects to the daemon of a mount, to ask it what may take it a while.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(mount: &Mount) -> Result<Client, ClientError> {
        Client::connect_within(mount, PATIENCE)
    }

    /// Connects to a daemon by its socket, which must be served by this user or root, for a talk that ends within
    /// `patience`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect_to(socket: &Path, patience: Duration) -> Result<Client, ClientError> {
        let deadline = Instant::now() + patience;
        let stream = open(socket, deadline).map_err(|errno| talk_failed(errno.into()))?;
        let uid = socket_peercred(&stream).map_err(io::Error::from)?.uid.as_raw();
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            return Err(ClientError::Impostor { socket: socket.to_owned(), uid });
        }
        Ok(Client { reader: BufReader::new(stream), deadline: Some(deadline) })
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        match self.reader.get_mut().write_all(&line) {
            // What it said before it hung up is still to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other.map_err(talk_failed)?,
        }
        match self.line()? {
            None => Err(ClientError::Ended),
            Some(line) => match serde_json::from_slice(&line)? {
                Reply::Ok(answer) => Ok(answer),
                Reply::Error(why) => Err(ClientError::Refused(why)),
            },
        }
    }

    /// Returns the next line, without its end, which must come before the deadline; `None` at the end of the talk.
    fn line(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let mut line = Vec::new();
        loop {
            if let Some(deadline) = self.deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ClientError::Silent);
                }
                self.reader.get_ref().set_read_timeout(Some(left))?;
            }
            let said = match self.reader.fill_buf() {
                Ok([]) => return if line.is_empty() { Ok(None) } else { Err(ClientError::Ended) },
                Ok(said) => said,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(talk_failed(error)),
            };
            let end = said.iter().position(|&byte| byte == b'\n');
            let part = end.unwrap_or(said.len());
            if line.len() + part > LONGEST_ANSWER {
                return Err(ClientError::Endless);
            }
            line.extend_from_slice(&said[..part]);
            self.reader.consume(part + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }

    /// Returns the process that answers, as a pidfd.
    ///
    /// # Errors
    /// Those of getsockopt(2), as where the process isn't visible from here.
    pub fn daemon(&self) -> io::Result<OwnedFd> {
        peer_process(self.reader.get_ref())
    }

    /// Returns how the mount is doing.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.ask(&Request::Status)
    }

    /// Returns where a path comes from, relative to the root of the mount; its sentences are in a language.
    pub fn explain(&mut self, path: Vec<u8>, language: &str) -> Result<Explanation, ClientError> {
        self.ask(&Request::Explain { path: EscapedPath(path), language: Some(language.to_owned()) })
    }

    /// Lets the daemon take a snapshot of the upper, and returns its name.
    pub fn snapshot(&mut self, name: Option<&str>) -> Result<String, ClientError> {
        self.ask(&Request::Snapshot { name: name.map(str::to_owned) })
    }

    /// Lets a new upper be made that shows what the mount shows. Returns the name of the snapshot that was taken for it.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn branch(&mut self, new: &Path) -> Result<Option<String>, ClientError> {
        self.ask(&Request::Branch { new: EscapedPath::from(new) })
    }

    /// Lets the mount go back to a snapshot, and returns its name.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn rollback(&mut self, name: Option<&str>) -> Result<String, ClientError> {
        self.ask(&Request::Rollback { name: name.map(str::to_owned) })
    }

    /// Lets a directory become a lower as well, or a lower go.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn restack(&mut self, request: &Request) -> Result<Restacked, ClientError> {
        self.ask(request)
    }

    /// Lets a daemon of another program go on with the mount, and waits until this one has ended. Where it is: `program`, with its device
    /// and inode number.
    ///
    /// # Errors
    /// Why this one goes on.
    pub fn upgrade(&mut self, program: &Path, id: (u64, u64)) -> Result<Upgraded, ClientError> {
        let done = self.ask(&Request::Upgrade { program: EscapedPath::from(program), id })?;
        while self.line()?.is_some() {}
        Ok(done)
    }

    /// Begins to listen. Then [`Trace::next_told`] waits for what happens.
    pub fn trace(mut self, filter: Filter) -> Result<Trace, ClientError> {
        let status = self.ask(&Request::Trace { filter })?;
        self.deadline = None;
        self.reader.get_ref().set_read_timeout(None)?;
        Ok(Trace { client: self, status })
    }
}

/// A trace that is heard.
#[derive(Debug)]
pub struct Trace {
    client: Client,
    /// The mount, as it was when the trace began.
    pub status: Status,
}

impl Trace {
    /// Waits for what is told next; `None` when the mount has ended.
    pub fn next_told(&mut self) -> Result<Option<Told>, ClientError> {
        match self.client.line()? {
            None => Ok(None),
            Some(line) => Ok(Some(serde_json::from_slice(&line)?)),
        }
    }
}

/// Connects to a socket. A daemon that accepts nobody makes connecting wait: until the deadline.
fn open(socket: &Path, deadline: Instant) -> Result<UnixStream, Errno> {
    let address = SocketAddrUnix::new(socket)?;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::AGAIN);
        }
        set_socket_timeout(&stream, Timeout::Send, Some(left))?;
        match connect(&stream, &address) {
            Err(Errno::INTR) => {}
            other => return other.map(|()| stream.into()),
        }
    }
}

fn talk_failed(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent,
        _ => ClientError::Io(error),
    }
}
