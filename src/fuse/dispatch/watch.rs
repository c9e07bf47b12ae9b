//! Whether a CPU-affine worker is kept waiting.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::affine_worker::AffineWorker;
use crate::sys::schedule::{self, Watched};

/// What a CPU-affine worker keeps of itself and of the program that it serves.
#[derive(Debug)]
pub(super) struct Watch {
    this: Watched,
    client: Option<Client>,
    requests: u32,
    last_request: Instant,
}

#[derive(Debug)]
struct Client {
    number: u32,
    thread: Watched,
    /// When it was judged last.
    judged: Sample,
}

/// What a look shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AffinityVerdict {
    /// Nothing; or there was no look.
    Nothing,
    /// The program is on this processor.
    On(usize),
    /// The CPU-affine worker had to wait for the processor because of others than those whom it serves.
    Stall,
}

/// A program that may be served as a pair: whether it has to wait for a processor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) client: u32,
    at: Instant,
    waited: Duration,
}

impl Candidate {
    /// Looks at that thread, and where it is now.
    pub(super) fn look(client: u32) -> Option<(Candidate, usize)> {
        let thread = Watched::thread(client).ok()?;
        let waited = thread.times()?.waited;
        // One with a priority of its own would starve the CPU-affine worker and who looks after it.
        if !thread.is_fair()? {
            return None;
        }
        Some((Candidate { client, at: Instant::now(), waited }, thread.processor()?))
    }

    /// Returns whether it had to wait for a good part of the time since then.
    pub(super) fn has_waited_since(&self, before: &Candidate) -> bool {
        self.waited.saturating_sub(before.waited) > Watch::LITTLE.max((self.at - before.at) / 4)
    }
}

/// What the one who looks after the pair compares.
#[derive(Debug)]
pub(super) struct Glance {
    at: Instant,
    streak: u32,
    worker_ran: Option<Duration>,
    client: u32,
    client_ran: Option<Duration>,
}

impl Glance {
    pub(super) fn take(affine_worker: &AffineWorker, streak: &AtomicU32, client: &AtomicU32) -> Glance {
        let client = client.load(Ordering::Relaxed);
        Glance {
            at: Instant::now(),
            streak: streak.load(Ordering::Relaxed),
            worker_ran: affine_worker.ran(),
            client,
            client_ran: Watched::thread(client).ok().and_then(|client| Some(client.times()?.ran)),
        }
    }

    /// Returns whether a request of the program came.
    pub(super) fn is_served_since(&self, before: &Glance) -> bool {
        self.streak != before.streak
    }

    /// Returns whether the CPU-affine worker did not run, if it could, and the program is not the reason.
    pub(super) fn is_starved_since(&self, before: &Glance) -> bool {
        let program = match (self.client == before.client, self.client_ran, before.client_ran) {
            (true, Some(now), Some(before)) => now.saturating_sub(before),
            _ => return false,
        };
        self.worker_ran == before.worker_ran && program < (self.at - before.at) / 2
    }
}

/// What is compared: of the CPU-affine worker, of its program, of this process.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    waited: Duration,
    /// What the program and this process ran. While they do, a CPU-affine worker waits, and nothing is lost.
    ran: Duration,
}

impl Watch {
    /// How many requests of a CPU-affine worker pass between two looks.
    const EVERY: u32 = 32;
    /// After as long a silence there is one at once.
    const SILENCE: Duration = Duration::from_millis(2);
    /// A stall is judged by as much time: threads of the kernel, above all, have a little to do now and then.
    const JUDGED: Duration = Duration::from_millis(16);
    /// A program that had to wait for less while it asked a few times was not kept waiting.
    pub(super) const LITTLE: Duration = Duration::from_millis(1);

    /// Watches the thread that calls this.
    ///
    /// # Errors
    ///
    /// The kernel doesn't tell how long threads wait.
    pub(super) fn new() -> io::Result<Watch> {
        let this = Watched::this_thread()?;
        Ok(Watch { this, client: None, requests: 0, last_request: Instant::now() })
    }

    /// Notes a request of that thread, and says what to do.
    pub(super) fn look(&mut self, client: u32) -> AffinityVerdict {
        let now = Instant::now();
        let silence = now - self.last_request;
        self.last_request = now;
        self.requests += 1;
        match &mut self.client {
            Some(known) if known.number == client => {
                if self.requests < Self::EVERY && silence < Self::SILENCE {
                    return AffinityVerdict::Nothing;
                }
                self.requests = 0;
                if now - known.judged.at >= Self::JUDGED {
                    // A program that has ended while its last request was served waits for nothing.
                    let Some(sample) = Sample::take(&self.this, &known.thread) else {
                        return AffinityVerdict::Nothing;
                    };
                    let before = std::mem::replace(&mut known.judged, sample);
                    if sample.is_stalled_since(&before) {
                        return AffinityVerdict::Stall;
                    }
                }
                known.thread.processor().map_or(AffinityVerdict::Nothing, AffinityVerdict::On)
            }
            _ => {
                self.requests = 0;
                self.client = Client::new(&self.this, client);
                AffinityVerdict::Nothing
            }
        }
    }
}

impl Client {
    fn new(affine_worker: &Watched, number: u32) -> Option<Client> {
        let thread = Watched::thread(number).ok()?;
        let judged = Sample::take(affine_worker, &thread)?;
        Some(Client { number, thread, judged })
    }
}

impl Sample {
    fn take(affine_worker: &Watched, client: &Watched) -> Option<Sample> {
        let waited = affine_worker.times()?.waited;
        let ran = client.times()?.ran + schedule::process_time();
        Some(Sample { at: Instant::now(), waited, ran })
    }

    fn is_stalled_since(&self, before: &Sample) -> bool {
        let waited = self.waited.saturating_sub(before.waited);
        let ran = self.ran.saturating_sub(before.ran);
        waited > ran + (self.at - before.at) / 4
    }
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use super::super::tests::Program;
    use super::*;

    fn sample(start: Instant, at: u64, waited: u64, ran: u64) -> Sample {
        let ms = Duration::from_millis;
        Sample { at: start + ms(at), waited: ms(waited), ran: ms(ran) }
    }

    #[test]
    fn a_stall_is_waiting_for_neither_the_program_nor_this_process() {
        let now = Instant::now();
        let before = sample(now, 0, 0, 0);
        assert!(sample(now, 10, 8, 1).is_stalled_since(&before));
        assert!(!sample(now, 10, 8, 8).is_stalled_since(&before), "the program worked");
        assert!(!sample(now, 1000, 0, 0).is_stalled_since(&before), "nobody asked");
        assert!(!sample(now, 100, 20, 1).is_stalled_since(&before), "it is a small part");
    }

    /// Lets something else want the processor that a CPU-affine worker is on.
    #[test]
    fn the_affine_worker_notices_that_it_is_kept_waiting() {
        let watched = std::thread::spawn(|| {
            let all = schedule::processors().unwrap();
            let one = (0..rustix::thread::CpuSet::MAX_CPU).find(|n| all.is_set(*n)).unwrap();
            schedule::run_on(one).unwrap();
            // It stays on this processor, as what starts it does.
            let _hog = Program::new("while :; do :; done");
            schedule::Placed::this_thread().unwrap().yield_on(one).unwrap();
            let mut watch = Watch::new().ok()?;
            let client = Program::sleeping();
            let until = Instant::now() + Duration::from_secs(60);
            while Instant::now() < until {
                // As after an answer: others may run.
                std::thread::yield_now();
                if watch.look(client.number()) == AffinityVerdict::Stall {
                    return Some(true);
                }
            }
            Some(false)
        });
        match watched.join().unwrap() {
            None => support::skipped("the kernel does not count how long threads wait"),
            Some(noticed) => assert!(noticed),
        }
    }
}
