//! On which processor a thread runs, and when.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// The processors that this process may use, as they are for its main thread now.
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
    let mut only = CpuSet::new();
    if processor >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    only.set(processor);
    Ok(sched_setaffinity(None, &only)?)
}

/// Lets this thread run on all processors of the process: one that a thread of a single processor started would stay
/// there.
pub fn roam() {
    if let Err(e) = processors().and_then(|all| Ok(sched_setaffinity(None, &all)?)) {
        log::debug!("a thread stays on its processor: {e}");
    }
}

/// Whether this thread is scheduled as threads are that nobody gave another policy (SCHED_OTHER).
pub fn is_ordinary() -> bool {
    // SAFETY: a call with a plain number.
    unsafe { libc::sched_getscheduler(0) == libc::SCHED_OTHER }
}

/// From here on this thread runs only where nobody else would (SCHED_IDLE). Its input and output keep their rank, which
/// would otherwise fall to the lowest as well. Without CAP_SYS_NICE there is no way back.
///
/// # Errors
///
/// A security policy forbids it.
pub fn yield_to_all() -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    /// IOPRIO_CLASS_BE (2), level 4: what a thread of nice 0 has.
    const BEST_EFFORT: libc::c_int = (2 << 13) | 4;
    // SAFETY: a call with plain numbers; 0 is this thread.
    if unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, BEST_EFFORT) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads `param`, which outlives the call; 0 is this thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &param) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
    /// This thread.
    ///
    /// # Errors
    ///
    /// No /proc, or a kernel that doesn't count times.
    pub fn this_thread() -> io::Result<Watched> {
        Watched::open("thread-self")
    }

    /// A thread of any process, by its number.
    ///
    /// # Errors
    ///
    /// As above; or it is gone or can't be seen.
    pub fn thread(number: u32) -> io::Result<Watched> {
        Watched::open(&number.to_string())
    }

    fn open(dir: &str) -> io::Result<Watched> {
        let open = |name| File::open(format!("/proc/{dir}/{name}"));
        Ok(Watched { stat: open("stat")?, schedstat: open("schedstat")? })
    }

    /// Its times so far; `None` when it is gone.
    pub fn times(&self) -> Option<Times> {
        parse_times(&read(&self.schedstat, &mut [0; 64])?)
    }

    /// The processor that it ran on last; `None` when it is gone.
    pub fn processor(&self) -> Option<usize> {
        parse_processor(&read(&self.stat, &mut [0; 1024])?)
    }

    /// Whether it runs or waits for a processor, and for nothing else; `None` when it is gone.
    pub fn is_runnable(&self) -> Option<bool> {
        let mut buffer = [0; 1024];
        let text = read(&self.stat, &mut buffer)?;
        Some(text.rsplit_once(')')?.1.trim_start().starts_with('R'))
    }
}

/// The kernel makes the text anew for each read from the start.
fn read<'a>(file: &File, buffer: &'a mut [u8]) -> Option<Cow<'a, str>> {
    let size = file.read_at(buffer, 0).ok()?;
    Some(String::from_utf8_lossy(&buffer[..size]))
}

fn parse_times(text: &str) -> Option<Times> {
    let mut words = text.split_whitespace().map(|word| word.parse().map(Duration::from_nanos));
    Some(Times { ran: words.next()?.ok()?, waited: words.next()?.ok()? })
}

/// Field 39 of proc_pid_stat(5). The second, a name in parentheses, may hold anything.
fn parse_processor(text: &str) -> Option<usize> {
    let (_, after_name) = text.rsplit_once(')')?;
    after_name.split_whitespace().nth(39 - 3)?.parse().ok()
}

/// How much time this process has used, with all its threads.
pub fn process_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_found_behind_any_name() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let line = format!("7 (a) 1 2 (b) {}", fields.join(" "));
        assert_eq!(parse_processor(&line), Some(39));
        assert_eq!(parse_processor("7 (short) S 1"), None);
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
                    assert_eq!(this.is_runnable(), Some(true));
                    assert!(this.times().unwrap().ran <= process_time());
                }
                (Err(e), _) | (_, Err(e)) => eprintln!("SKIP: threads can't be watched: {e}"),
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
