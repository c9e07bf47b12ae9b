//! Asking a daemon over its control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use serde::de::DeserializeOwned;

use super::mounts::Mount;
use super::protocol::{Reply, Request, Status, Told};
use super::report::Explanation;
use super::runtime;
use crate::union::events::Filter;
use crate::union::text::Text;

/// How long an answer may take. The daemon answers at once unless the machine is very busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It has no socket.
    #[error(
        "the daemon of {} has no control socket here; was it started by another user, in a container, or without a runtime directory?",
        Text::from(.0.as_path())
    )]
    NoSocket(PathBuf),
    /// The socket is somebody else's.
    #[error("the mount {} belongs to uid {owner}; only that user and root may ask its daemon", Text::from(.point.as_path()))]
    NotYours {
        /// The mount.
        point: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A process that isn't the mount's daemon listens there.
    #[error("{}: the process that listens there is uid {uid}'s, not the mount's daemon", Text::from(.socket.as_path()))]
    Impostor {
        /// The socket.
        socket: PathBuf,
        /// Whose process.
        uid: u32,
    },
    /// The daemon said so.
    #[error("{}", Text::from(.0.as_bytes()))]
    Refused(String),
    /// It has ended.
    #[error("the daemon has ended")]
    Ended,
    /// It says nothing.
    #[error("the daemon doesn't answer")]
    Silent,
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
}

impl Client {
    /// Connects to the daemon of a mount.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(mount: &Mount) -> Result<Client, ClientError> {
        let us = rustix::process::geteuid().as_raw();
        let mut impostor = None;
        for socket in runtime::sockets_of(&mount.device) {
            let stream = match UnixStream::connect(&socket) {
                Ok(stream) => stream,
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::NotADirectory => continue,
                    io::ErrorKind::PermissionDenied if mount.owner.is_none_or(|owner| owner == us) => {
                        continue;
                    }
                    io::ErrorKind::PermissionDenied => break,
                    _ => return Err(error.into()),
                },
            };
            // Whoever could write to the directory could listen there.
            let uid = socket_peercred(&stream).map_err(io::Error::from)?.uid.as_raw();
            if uid != 0 && uid != us && Some(uid) != mount.owner {
                impostor = Some(ClientError::Impostor { socket, uid });
                continue;
            }
            stream.set_read_timeout(Some(PATIENCE))?;
            return Ok(Client { reader: BufReader::new(stream) });
        }
        if let Some(impostor) = impostor {
            return Err(impostor);
        }
        match mount.owner {
            Some(owner) if owner != us && us != 0 => {
                Err(ClientError::NotYours { point: mount.point.clone(), owner })
            }
            _ => Err(ClientError::NoSocket(mount.point.clone())),
        }
    }

    /// Connects to a daemon by its socket, which must be served by this user or root.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect_to(socket: &Path) -> Result<Client, ClientError> {
        let stream = UnixStream::connect(socket)?;
        let uid = socket_peercred(&stream).map_err(io::Error::from)?.uid.as_raw();
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            return Err(ClientError::Impostor { socket: socket.to_owned(), uid });
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { reader: BufReader::new(stream) })
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        match self.reader.get_mut().write_all(&line) {
            // What it said before it hung up is still to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
        let line = self.line().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ClientError::Silent,
            _ => ClientError::Io(error),
        });
        match line? {
            None => Err(ClientError::Ended),
            Some(line) => match serde_json::from_str(&line)? {
                Reply::Ok(answer) => Ok(answer),
                Reply::Error(why) => Err(ClientError::Refused(why)),
            },
        }
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            other => other.map(|_| Some(line)),
        }
    }

    /// How the mount is doing.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.ask(&Request::Status)
    }

    /// Where a path comes from, relative to the root of the mount.
    pub fn explain(&mut self, path: Vec<u8>) -> Result<Explanation, ClientError> {
        self.ask(&Request::Explain { path: Text(path) })
    }

    /// Begins to listen. Then [`Trace::next_told`] waits for what happens.
    pub fn trace(mut self, filter: Filter) -> Result<Trace, ClientError> {
        let status = self.ask(&Request::Trace { filter })?;
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
            Some(line) => Ok(Some(serde_json::from_str(&line)?)),
        }
    }
}
