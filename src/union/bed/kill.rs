//! A process of its own for an operation, which is killed at an instant of it.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

use super::Bed;
use crate::union::change::failpoint::hook;

/// Tells the process what to do: the number of the instant, that of what is done, and where the layers are.
const ORDER: &str = "UNIONMOUNT_TEST_KILL";

/// Lets the ignored test `killed` of a module (`module_path!()`) do what has the number `act`, over these layers, and be killed
/// at an instant of it. Returns whether it was: `false` where it was done before that instant came.
pub(in crate::union) fn kill_at(module: &str, instant: usize, act: usize, bed: &Bed) -> bool {
    let (_, within) = module.split_once("::").unwrap();
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", &format!("{within}::killed")])
        .env(ORDER, format!("{instant} {act} {}", bed.at("").display()))
        .output()
        .unwrap();
    if ended.status.signal() == Some(libc::SIGKILL) {
        return true;
    }
    let told = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && told.contains("1 passed"), "{ended:?}");
    false
}

/// What such a process is to do.
pub(in crate::union) struct Order {
    instant: usize,
    /// The number of what is done.
    pub act: usize,
    top: PathBuf,
}

impl Order {
    /// Returns it; `None` where somebody else has started the test.
    pub fn read() -> Option<Order> {
        let order = std::env::var(ORDER).ok()?;
        let [instant, act, top] = order.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{order}") };
        let number = |word: &str| word.parse().unwrap();
        Some(Order { instant: number(instant), act: number(act), top: top.into() })
    }

    /// Returns the layers, of which one is a lower.
    pub fn bed(&self) -> Bed {
        Bed::of(&self.top, 1)
    }

    /// Does it; the process ends at the instant.
    pub fn carry_out<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut left = self.instant;
        let kill = move |_| match left.checked_sub(1) {
            Some(rest) => left = rest,
            None => {
                let own = rustix::process::getpid();
                rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
            }
        };
        hook::during(kill, work)
    }
}
