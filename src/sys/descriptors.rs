//! Descriptors that go to another process beside a text, which names them by number (SCM_RIGHTS, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// SCM_MAX_FD: how many descriptors one message carries.
const AT_ONCE: usize = 253;

/// Descriptors to be sent, by the order in which they came.
#[derive(Debug, Default)]
pub struct Outgoing(Vec<Arc<OwnedFd>>);

impl Outgoing {
    /// Adds one, and returns its number.
    pub fn add(&mut self, fd: Arc<OwnedFd>) -> u32 {
        self.0.push(fd);
        (self.0.len() - 1) as u32
    }

    /// Adds a copy of one, and returns its number.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn add_copy(&mut self, fd: BorrowedFd<'_>) -> io::Result<u32> {
        let copy = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
        Ok(self.add(Arc::new(copy)))
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sends all of them.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub fn send(&self, socket: &UnixStream) -> io::Result<()> {
        for batch in self.0.chunks(AT_ONCE) {
            let fds: Vec<BorrowedFd<'_>> = batch.iter().map(|fd| fd.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(Errno::NOBUFS.into());
            }
            // They travel with a byte.
            loop {
                match sendmsg(socket, &[IoSlice::new(b"D")], &mut control, SendFlags::NOSIGNAL) {
                    Err(Errno::INTR) => {}
                    other => break other.map(drop)?,
                }
            }
        }
        Ok(())
    }

    /// Returns copies of all of them, as the other process gets them.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn copies(&self) -> io::Result<Incoming> {
        let copy = |fd: &Arc<OwnedFd>| Ok(Some(fd.try_clone()?));
        Ok(Incoming(self.0.iter().map(copy).collect::<io::Result<_>>()?))
    }
}

/// Descriptors that came, by the same numbers.
#[derive(Debug, Default)]
pub struct Incoming(Vec<Option<OwnedFd>>);

impl Incoming {
    /// Receives so many.
    ///
    /// # Errors
    /// Those of recvmsg(2), fewer came, or this process may not have as many.
    pub fn receive(socket: &UnixStream, count: usize) -> io::Result<Incoming> {
        let mut all = Vec::new();
        while all.len() < count {
            let mut byte = [0u8];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let before = all.len();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    all.extend(fds.map(Some));
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) {
                return Err(io::Error::other(
                    "some of the descriptors can't be had here: raise the limit on open files",
                ));
            }
            if all.len() == before {
                return Err(io::Error::other("descriptors were expected, and something else came"));
            }
        }
        Ok(Incoming(all))
    }

    /// Takes the one with that number.
    ///
    /// # Errors
    /// There is none, or it was taken already.
    pub fn take(&mut self, number: u32) -> io::Result<OwnedFd> {
        let slot = self.0.get_mut(number as usize);
        slot.and_then(Option::take).ok_or_else(|| io::Error::other(format!("descriptor {number} is missing")))
    }
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn many_arrive_by_their_numbers_and_what_is_said_between_stays_apart() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut outgoing = Outgoing::default();
        let null = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        for _ in 0..300 {
            outgoing.add(null.clone());
        }
        assert_eq!(outgoing.add_copy(file.as_fd()).unwrap(), 300);
        (&ours).write_all(b"before").unwrap();
        outgoing.send(&ours).unwrap();
        (&ours).write_all(b"after").unwrap();
        let mut said = [0; 6];
        (&theirs).read_exact(&mut said).unwrap();
        assert_eq!(&said, b"before");
        let mut incoming = Incoming::receive(&theirs, 301).unwrap();
        (&theirs).read_exact(&mut said[..5]).unwrap();
        assert_eq!(&said[..5], b"after");
        let got = rustix::fs::fstat(incoming.take(300).unwrap()).unwrap();
        assert_eq!(got.st_ino, rustix::fs::fstat(&file).unwrap().st_ino);
        assert!(incoming.take(300).is_err(), "it is taken");
        assert!(incoming.take(301).is_err());
        drop(ours);
        assert_eq!(Incoming::receive(&theirs, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
