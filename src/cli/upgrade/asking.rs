//! Asking daemons for an upgrade: one after the other, or many at once, of which some may be stopped or mean to hold up whoever asks.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::talk::ALL_TOGETHER;
use crate::control::client::{Client, ClientError};
use crate::control::mounts::Mount;
use crate::control::protocol::Upgraded;
use crate::union::escaped_path::EscapedPath;

/// How long one of many may take to say that it is there.
const THERE: Duration = Duration::from_secs(10);
/// How long an upgrade may take. Longer than a daemon gives the program for all that it has to do: who gives up before calls one silent that
/// goes on.
const PATIENCE: Duration = ALL_TOGETHER.saturating_add(THERE);
/// How many are asked at a time: whoever doesn't answer takes a place until patience ends.
const AT_A_TIME: usize = 16;

/// What is to be upgraded, and what messages call it.
pub(super) enum Daemon {
    Mount(Mount),
    /// One of this user's whose mount isn't seen from here, by its socket.
    Unseen(PathBuf),
}

type Done = Result<Upgraded, ClientError>;

/// The program that is to go on: where it is, its device and inode number.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) id: (u64, u64),
}

impl Daemon {
    /// Returns what messages call it.
    pub(super) fn shown(&self) -> EscapedPath {
        match self {
            Daemon::Mount(mount) => EscapedPath::from(mount.point.as_path()),
            Daemon::Unseen(socket) => EscapedPath::from(socket.as_path()),
        }
    }

    /// Returns whose it is, where that isn't who asks.
    fn other_user(&self) -> Option<u32> {
        let us = rustix::process::geteuid().as_raw();
        match self {
            Daemon::Mount(mount) => mount.owner.filter(|owner| *owner != us),
            Daemon::Unseen(_) => None,
        }
    }

    fn connect(&self, patience: Duration) -> Result<Client, ClientError> {
        match self {
            Daemon::Mount(mount) => Client::connect_within(mount, patience),
            Daemon::Unseen(socket) => Client::connect_to(socket, patience),
        }
    }

    /// Lets the program go on with it.
    pub(super) fn upgrade(&self, program: &Program) -> Done {
        self.connect(PATIENCE)?.upgrade(&program.path, program.id)
    }

    /// The same, of one of many: whether it is there is found out first.
    fn upgrade_if_there(&self, program: &Program) -> Done {
        // Whatever else it says, it is there.
        if let Err(ClientError::Silent) = self.connect(THERE)?.status() {
            return Err(ClientError::Silent);
        }
        self.upgrade(program)
    }
}

/// Lets the program go on with all of them: those of this user first, then those of others, in which the first of each user come before the
/// second of any, since one user may have many that are stopped. What became of each is told to `each` as soon as it is known.
///
/// # Errors
/// Those of `each`, at once.
pub(super) fn upgrade_all<E>(
    daemons: Vec<Daemon>,
    program: &Program,
    mut each: impl FnMut(&Daemon, Done) -> Result<(), E>,
) -> Result<(), E> {
    let (others, own): (Vec<Daemon>, Vec<Daemon>) =
        daemons.into_iter().partition(|daemon| daemon.other_user().is_some());
    for some in [own, in_turn(others)] {
        let program = program.clone();
        let ask = move |daemon: &Daemon| daemon.upgrade_if_there(&program);
        at_once(some.into(), THERE + PATIENCE + THERE, ask, |daemon, done| {
            each(daemon, done.unwrap_or(Err(ClientError::Silent)))
        })?;
    }
    Ok(())
}

/// Puts the first of each user before the second of any.
fn in_turn(daemons: Vec<Daemon>) -> Vec<Daemon> {
    let mut counts: HashMap<Option<u32>, usize> = HashMap::new();
    let mut count = |daemon: &Daemon| {
        let count = counts.entry(daemon.other_user()).or_default();
        *count += 1;
        *count
    };
    let mut ranked: Vec<(usize, Daemon)> =
        daemons.into_iter().map(|daemon| (count(&daemon), daemon)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, daemon)| daemon).collect()
}

/// Does something with each on threads, and tells what came of it. After `patience` without a word from any the rest are given up: to
/// connect to a socket may itself wait for a filesystem of somebody's.
fn at_once<T: Send + Sync + 'static, R: Send + 'static, E>(
    all: Arc<[T]>,
    patience: Duration,
    act: impl Fn(&T) -> R + Send + Sync + 'static,
    mut each: impl FnMut(&T, Option<R>) -> Result<(), E>,
) -> Result<(), E> {
    let (tell, told) = mpsc::channel();
    let (next, act) = (Arc::new(AtomicUsize::new(0)), Arc::new(act));
    let work = || {
        let (all, next, act, tell) = (all.clone(), next.clone(), act.clone(), tell.clone());
        move || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(one) = all.get(at) else { return };
                if tell.send((at, act(one))).is_err() {
                    return; // nobody waits any more
                }
            }
        }
    };
    let threads = (0..all.len().min(AT_A_TIME)).map(|_| std::thread::Builder::new().spawn(work()).is_ok());
    if !all.is_empty() && threads.filter(|is_there| *is_there).count() == 0 {
        work()(); // without a thread to spare
    }
    let mut open: Vec<bool> = vec![true; all.len()];
    for _ in 0..all.len() {
        let Ok((at, done)) = told.recv_timeout(patience) else { break };
        open[at] = false;
        each(&all[at], Some(done))?;
    }
    all.iter().zip(open).filter(|(_, open)| *open).try_for_each(|(one, _)| each(one, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(owner: u32, name: &str) -> Daemon {
        let text = |text: &str| text.to_owned();
        Daemon::Mount(Mount {
            id: 1,
            point: name.into(),
            root: "/".into(),
            device: text("0:1"),
            source: text("none"),
            owner: Some(owner),
            options: text("rw"),
        })
    }

    #[test]
    fn many_of_one_user_do_not_come_before_the_first_of_another() {
        let daemons = [(71, "a"), (71, "b"), (71, "c"), (72, "d"), (73, "e"), (72, "f")];
        let turns = in_turn(daemons.into_iter().map(|(owner, name)| of(owner, name)).collect());
        let names: Vec<String> = turns.iter().map(|daemon| daemon.shown().to_string()).collect();
        assert_eq!(names, ["a", "d", "e", "b", "f", "c"]);
    }

    /// One of them waits until all the others were told.
    #[test]
    fn one_that_hangs_holds_up_no_other_and_is_given_up() {
        let all: Vec<usize> = (0..40).collect();
        let (go, wait) = mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(Some(wait));
        let act = move |one: &usize| {
            if *one == 0 {
                let wait = wait.lock().unwrap().take().unwrap();
                // Until the sender is dropped, at the end of the test.
                assert!(wait.recv().is_err());
            }
            one * 2
        };
        let mut seen = Vec::new();
        let each = |one: &usize, done: Option<usize>| {
            seen.push((*one, done));
            Ok::<(), ()>(())
        };
        at_once(all.into(), Duration::from_secs(1), act, each).unwrap();
        assert_eq!(seen.pop(), Some((0, None)));
        seen.sort_unstable();
        assert_eq!(seen, (1..40).map(|one| (one, Some(one * 2))).collect::<Vec<_>>());
        drop(go);
    }
}
