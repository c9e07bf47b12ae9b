//! What a daemon and the program that is to take over from it say to each other: a line of JSON each.
//!
//! ```text
//! successor → {"hello":{"program":"0.2.0","format":1}}      it is there, and can read that
//! daemon    → {"archives":[…]}                              lowers that it is to open again, where there are some
//! successor → "opened"
//! daemon    → {"handed":{"descriptors":14}}                 nobody asks any more; then the descriptors, the first is the state
//! successor → "ready"                                       it has changed nothing yet
//! daemon    → "go"                                          this one will never answer again
//! successor → "serving"
//! ```
//!
//! In place of `hello`, of `opened` and of `ready` it may say `{"refused":"WHY"}`. Until `go` the daemon goes on when the other one ends or is silent.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::fuse::live::PATIENCE as DRAINING;
use crate::union::handover::TreeState;

/// How long the program may take to start. Requests are answered meanwhile.
pub(super) const STARTING: Duration = Duration::from_secs(20);
/// How long it may take to open archives, which may have to be decompressed. Requests are answered meanwhile.
pub(super) const OPENING: Duration = Duration::from_secs(60);
/// How long it may take to read what is handed over. Requests wait meanwhile.
pub(super) const READING: Duration = Duration::from_secs(20);

/// How long all that may take together, requests that are under way included: who has asked waits longer, as the answer comes at the end.
pub(super) const ALL_TOGETHER: Duration =
    STARTING.saturating_add(OPENING).saturating_add(DRAINING).saturating_add(READING);

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Word {
    Hello { program: String, format: u32 },
    Archives(Vec<TreeState>),
    Opened,
    Handed { descriptors: usize },
    Ready,
    Refused(String),
    Go,
    Serving,
}

/// The longest line.
const LONGEST: usize = 4 << 20;

/// One end of the talk.
pub(super) struct Talk(pub(super) UnixStream);

impl Talk {
    /// Begins one with somebody who may stop reading: what is said, and descriptors too, fails when that takes so long.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub(super) fn within(socket: UnixStream, patience: Duration) -> io::Result<Talk> {
        socket.set_write_timeout(Some(patience))?;
        Ok(Talk(socket))
    }

    pub(super) fn say(&self, word: &Word) -> Result<(), String> {
        let mut line = serde_json::to_vec(word).map_err(|error| error.to_string())?;
        line.push(b'\n');
        (&self.0).write_all(&line).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => "it doesn't read what it is told".to_owned(),
            _ => error.to_string(),
        })
    }

    /// Returns what is said next, within `patience` if there is one. A byte at a time: descriptors may follow.
    pub(super) fn hear(&self, patience: Option<Duration>) -> Result<Word, String> {
        let until = patience.map(|patience| Instant::now() + patience);
        let mut line = Vec::new();
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) || line.len() > LONGEST {
                return Err("it says nothing of use".to_owned());
            }
            self.0.set_read_timeout(left).map_err(|error| error.to_string())?;
            let mut byte = [0];
            match (&self.0).read(&mut byte) {
                Ok(0) => return Err("it ended without a word".to_owned()),
                Ok(_) if byte[0] == b'\n' => break,
                Ok(_) => line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It hadn't read all that it was told.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err("it ended without a word".to_owned());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err("it says nothing".to_owned());
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        serde_json::from_slice(&line).map_err(|error| format!("it says something else: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::descriptors::Outgoing;

    #[test]
    fn nobody_is_held_up_by_who_does_not_read() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let talk = Talk::within(ours, Duration::from_millis(1)).unwrap();
        let why = talk.say(&Word::Refused("x".repeat(LONGEST))).unwrap_err();
        assert_eq!(why, "it doesn't read what it is told");
        // Nor are descriptors waited for.
        let fds = (0..3).fold(Outgoing::default(), |mut fds, _| {
            fds.add_copy(std::os::fd::AsFd::as_fd(&theirs)).unwrap();
            fds
        });
        assert_eq!(fds.send(&talk.0).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
