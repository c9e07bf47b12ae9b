//! Several threads for one piece of work, as many as there are to be had: where the machine or a limit gives no more
//! (`EAGAIN`), those that there are do it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, scope};

use parking_lot::Mutex;

/// Runs `work` on that many threads at once, this one among them, and returns when all have ended.
pub fn on_threads(jobs: usize, work: &(dyn Fn() + Sync)) {
    scope(|scope| {
        for _ in 1..jobs {
            if let Err(error) = Builder::new().spawn_scoped(scope, work) {
                log::debug!("no more threads: {error}");
                break;
            }
        }
        work();
    });
}

/// Does the same work for each, as many at a time as there are processors; what came of it, in order.
///
/// # Errors
/// The first in order. What isn't begun by then is left.
pub fn at_once<T: Send, R: Send, E: Send>(
    all: Vec<T>,
    work: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = processors.min(all.len());
    let queue = Mutex::new(all.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    let has_failed = AtomicBool::new(false);
    on_threads(jobs, &|| {
        while !has_failed.load(Ordering::Relaxed) {
            // Not held while one is at work.
            let next = queue.lock().next();
            let Some((at, one)) = next else { return };
            let result = work(one);
            if result.is_err() {
                has_failed.store(true, Ordering::Relaxed);
            }
            done.lock().push((at, result));
        }
    });
    // They are begun in order, so that none before the first error is missing.
    let mut done = done.into_inner();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn what_comes_of_it_is_in_order() {
        let all: Vec<usize> = (0..100).collect();
        let doubled = at_once(all, |one| Ok::<_, ()>(one * 2));
        assert_eq!(doubled, Ok((0..100).map(|one| one * 2).collect::<Vec<_>>()));
        assert_eq!(at_once(Vec::<usize>::new(), Ok::<_, ()>), Ok(Vec::new()));
    }

    #[test]
    fn after_an_error_nothing_more_is_begun() {
        let begun = AtomicUsize::new(0);
        let all: Vec<usize> = (0..10_000).collect();
        let failed = at_once(all, |one| {
            begun.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(one)
        });
        assert_eq!(failed, Err(0));
        let processors = std::thread::available_parallelism().unwrap().get();
        assert!(begun.into_inner() <= processors, "each thread ends with its own error");
    }
}
