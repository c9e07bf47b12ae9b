//! On which processor a thread runs, and when.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Returns the processors that this process may use, as they are for its main thread now.
///
/// # Errors
///
/// More processors than the set can hold.
pub fn processors() -> io::Result<CpuSet> {
    Ok(sched_getaffinity(Some(rustix::process::getpid()))?)
}

/// Lets this thread run on one processor only.
///
/// # Errors
///
/// It is not there or may not be used.
pub fn run_on(processor: usize) -> io::Result<()> {
    put_on(None, processor)
}

fn put_on(thread: Option<Pid>, processor: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    if processor >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    only.set(processor);
    Ok(sched_setaffinity(thread, &only)?)
}

/// Lets this thread run on all processors of the process: one that a thread of a single processor started would stay
/// there.
pub fn roam() {
    if let Err(e) = processors().and_then(|all| Ok(sched_setaffinity(None, &all)?)) {
        log::debug!("a thread stays on its processor: {e}");
    }
}

/// Returns whether this thread is scheduled as threads are that nobody gave another policy (SCHED_OTHER).
pub fn is_ordinary() -> bool {
    // SAFETY: a call with a plain number.
    unsafe { libc::sched_getscheduler(0) == libc::SCHED_OTHER }
}

/// Lets this thread give way: it has the processor as little as nice(1) allows, and the disk when nobody else wants it (of
/// the schedulers that look at that).
///
/// # Errors
///
/// A security policy forbids it.
pub fn give_way() -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    /// IOPRIO_CLASS_IDLE.
    const IDLE: libc::c_int = 3 << 13;
    // SAFETY: calls with plain numbers; 0 is this thread, as Linux has it for both.
    let refused = unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19) != 0
            || libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IDLE) != 0
    };
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A thread of this process that others may move, and that may run only where nobody else would.
#[derive(Debug, Clone, Copy)]
pub struct Placed(Pid);

impl Placed {
    /// Names this thread. Its input and output keep their rank, whatever its policy.
    ///
    /// # Errors
    ///
    /// A security policy forbids it.
    pub fn this_thread() -> io::Result<Placed> {
        const IOPRIO_WHO_PROCESS: libc::c_int = 1;
        /// IOPRIO_CLASS_BE (2), level 4: what a thread of nice 0 has.
        const BEST_EFFORT: libc::c_int = (2 << 13) | 4;
        // SAFETY: a call with plain numbers; 0 is this thread.
        if unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, BEST_EFFORT) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Placed(rustix::thread::gettid()))
    }

    /// Lets it run only where nobody else would (SCHED_IDLE), and on this processor only.
    ///
    /// # Errors
    ///
    /// The processor is not there or may not be used, or a security policy forbids it.
    pub fn yield_on(self, processor: usize) -> io::Result<()> {
        self.set_policy(libc::SCHED_IDLE)?;
        put_on(Some(self.0), processor)
    }

    /// Lets it run on all processors of the process, and, where CAP_SYS_NICE allows that, as any other thread.
    pub fn release(self) {
        if let Err(e) = processors().and_then(|all| Ok(sched_setaffinity(Some(self.0), &all)?)) {
            log::debug!("a thread stays on its processor: {e}");
        }
        // An ordinary user may leave SCHED_IDLE only with a resource limit (RLIMIT_NICE) that hardly anybody has.
        let _as_it_is = self.set_policy(libc::SCHED_OTHER);
    }

    fn set_policy(self, policy: libc::c_int) -> io::Result<()> {
        let param = libc::sched_param { sched_priority: 0 };
        // SAFETY: the kernel reads `param`, which outlives the call; the number is that of a thread, or of none.
        if unsafe { libc::sched_setscheduler(self.0.as_raw_nonzero().get(), policy, &param) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// What the scheduler knows of a thread (/proc/TID/schedstat).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How long it has run.
    pub ran: Duration,
    /// How long it could have run but had to wait for a processor.
    pub waited: Duration,
}

/// A thread that is looked at now and then: a look is one or two system calls.
#[derive(Debug)]
pub struct Watched {
    stat: File,
    schedstat: File,
}

impl Watched {
    /// Watches this thread.
    ///
    /// # Errors
    ///
    /// No /proc, or a kernel that doesn't count times.
    pub fn this_thread() -> io::Result<Watched> {
        Watched::open("thread-self")
    }

    /// Returns a thread of any process, by its number.
    ///
    /// # Errors
    ///
    /// As above; or it is gone or can't be seen.
    pub fn thread(number: u32) -> io::Result<Watched> {
        // The files of the process itself add up all its threads.
        Watched::open(&format!("{number}/task/{number}"))
    }

    fn open(dir: &str) -> io::Result<Watched> {
        let open = |name| File::open(format!("/proc/{dir}/{name}"));
        Ok(Watched { stat: open("stat")?, schedstat: open("schedstat")? })
    }

    /// Returns its times so far; `None` when it is gone.
    pub fn times(&self) -> Option<Times> {
        parse_times(&read(&self.schedstat, &mut [0; 64])?)
    }

    /// Returns the processor that it ran on last; `None` when it is gone.
    pub fn processor(&self) -> Option<usize> {
        parse_stat(&read(&self.stat, &mut [0; 1024])?, 39)?.parse().ok()
    }

    /// Returns whether its policy is one of those that leave others their share: SCHED_OTHER, SCHED_BATCH or
    /// SCHED_IDLE; `None` when it is gone.
    pub fn is_fair(&self) -> Option<bool> {
        let policy: libc::c_int = parse_stat(&read(&self.stat, &mut [0; 1024])?, 41)?.parse().ok()?;
        Some([libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE].contains(&policy))
    }

    /// Returns whether it runs or waits for a processor, and for nothing else; `None` when it is gone.
    pub fn is_runnable(&self) -> Option<bool> {
        Some(parse_stat(&read(&self.stat, &mut [0; 1024])?, 3)? == "R")
    }
}

/// Reads a text that the kernel makes anew for each read from the start.
fn read<'a>(file: &File, buffer: &'a mut [u8]) -> Option<Cow<'a, str>> {
    let size = file.read_at(buffer, 0).ok()?;
    Some(String::from_utf8_lossy(&buffer[..size]))
}

fn parse_times(text: &str) -> Option<Times> {
    let mut words = text.split_whitespace().map(|word| word.parse().map(Duration::from_nanos));
    Some(Times { ran: words.next()?.ok()?, waited: words.next()?.ok()? })
}

/// Returns a field of proc_pid_stat(5), from the third on. The second, a name in parentheses, may hold anything.
fn parse_stat(text: &str, field: usize) -> Option<&str> {
    text.rsplit_once(')')?.1.split_whitespace().nth(field - 3)
}

/// Returns how much time this process has used, with all its threads.
pub fn process_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_yields_may_be_moved_and_released() {
        std::thread::spawn(|| {
            let all = processors().unwrap();
            let one = (0..CpuSet::MAX_CPU).find(|n| all.is_set(*n)).unwrap();
            let placed = Placed::this_thread().unwrap();
            placed.yield_on(one).unwrap();
            assert!(!is_ordinary());
            assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
            placed.release();
            assert_eq!(sched_getaffinity(None).unwrap().count(), all.count());
            assert!(is_ordinary() || !rustix::process::geteuid().is_root());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn who_gives_way_is_nice_alone() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let other = std::thread::spawn(move || {
            give_way().unwrap();
            nice()
        });
        assert_eq!((other.join().unwrap(), nice()), (19, before));
    }

    #[test]
    fn the_processor_is_found_behind_any_name() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let line = format!("7 (a) 1 2 (b) {}", fields.join(" "));
        assert_eq!((parse_stat(&line, 39), parse_stat(&line, 3)), (Some("39"), Some("3")));
        assert_eq!(parse_stat("7 (short) S 1", 39), None);
    }

    #[test]
    fn a_thread_runs_where_it_is_put() {
        std::thread::spawn(|| {
            let all = processors().unwrap();
            let one = (0..CpuSet::MAX_CPU).find(|n| all.is_set(*n)).unwrap();
            run_on(one).unwrap();
            let me = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
            match (Watched::thread(me), Watched::this_thread()) {
                (Ok(named), Ok(this)) => {
                    assert_eq!((named.processor(), this.processor()), (Some(one), Some(one)));
                    assert_eq!((this.is_runnable(), this.is_fair()), (Some(true), Some(true)));
                    assert!(this.times().unwrap().ran <= process_time());
                }
                (Err(e), _) | (_, Err(e)) => support::skipped(&format!("threads can't be watched: {e}")),
            }
            roam();
            assert_eq!(sched_getaffinity(None).unwrap().count(), all.count());
            assert!(run_on(CpuSet::MAX_CPU).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn times_are_read() {
        let times = parse_times("5000 70 3\n").unwrap();
        assert_eq!((times.ran, times.waited), (Duration::from_nanos(5000), Duration::from_nanos(70)));
        assert_eq!(parse_times("5000"), None);
    }
}
