//! Several threads for one piece of work, as many as there are to be had: where the machine or a limit gives no more
//! (`EAGAIN`), those that there are do it.

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
pub fn at_once<T: Send, R: Send>(all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = processors.min(all.len());
    let queue = Mutex::new(all.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    on_threads(jobs, &|| {
        loop {
            // Not held while one is at work.
            let next = queue.lock().next();
            let Some((at, one)) = next else { return };
            let result = work(one);
            done.lock().push((at, result));
        }
    });
    let mut done = done.into_inner();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_of_it_is_in_order() {
        let all: Vec<usize> = (0..100).collect();
        assert_eq!(at_once(all, |one| one * 2), (0..100).map(|one| one * 2).collect::<Vec<_>>());
        assert_eq!(at_once(Vec::<usize>::new(), |one| one), Vec::<usize>::new());
    }
}
