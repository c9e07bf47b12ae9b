//! Pairing, the dispatch policy: a program that asks, and the thread that answers it, take turns on one processor.
//!
//! A small request costs the daemon a few microseconds, and the two of them several times that for waking each other:
//! each sleeps while the other works, and the scheduler, which sees an idle processor, moves whoever wakes there, so
//! that every request and every answer wakes a processor that had gone to sleep, too. Yet there is nothing to be done
//! side by side. On one and the same processor a request is two changes of context.
//!
//! So while one program alone asks, its requests go to the **CPU-affine worker**: a thread that runs only on the processor that
//! the program runs on. That alone would not do, for when the CPU-affine worker answers, the program is woken, finds its
//! processor in use and is moved to the next idle one. But to the scheduler a processor counts as idle if all that runs
//! there is of the policy SCHED_IDLE (kernel/sched/fair.c: select_idle_sibling and sched_idle_cpu), so the CPU-affine worker is: a
//! program that is woken by it stays, and goes on at once.
//!
//! SCHED_IDLE has a price: while all processors are wanted by others, the CPU-affine worker hardly runs at all. And an ordinary
//! user's thread can't leave it. Therefore:
//!
//! - The session's other threads, the **pool workers**, are as ordinary as any. They ask for requests while there is no pair,
//!   and wait in [`DispatchPolicy::park`] while there is one; the CPU-affine worker the other way round.
//! - The CPU-affine worker looks at how long it had to wait for the processor (`watch`). Was it kept waiting by somebody else
//!   than the program it serves, the pair parts, and there is none for a while: a second at first, at most a minute.
//! - A request of another program, or for much data, parts the pair: then there is something to be done side by side.
//! - One of the pool workers that wait looks every few milliseconds whether requests are served: where none was, be it that the
//!   program does something else, that the CPU-affine worker waits for a disk or that it doesn't get to run, the pair parts.
//!   If it waits for a request then it is called back, for it would take the next one, whoever asks.
//! - What would keep the CPU-affine worker for long runs on a thread of its own, an ordinary one ([`start_thread`]).
//!
//! There is one CPU-affine worker: of several, each would have to follow when the program is moved, and those that are on their
//! way keep the processor busy for which the program looks.

mod affine_worker;
mod starter;
mod watch;

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex as Plain, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sys::schedule::{self, Watched};
use affine_worker::AffineWorker;
pub use starter::start_thread;
use starter::{Job, spawn};
use watch::{AffinityVerdict, Candidate, Glance, Watch};

/// How many requests in a row make a pair, at least.
const FEW: u32 = 16;
/// How many do where pairs used to last for a few requests only.
const MORE: u32 = 1024;
/// A pair that lasted for so many requests was worth it.
const WORTH: u32 = 512;
/// A pair that is not asked for so long parts.
const QUIET: Duration = Duration::from_millis(5);
/// For how long there is no pair after a CPU-affine worker was kept waiting: at first, and at most.
const PAUSE: Range<u64> = 1_000..64_000; // milliseconds
/// After a pair that lasted for so many requests the next pause is a short one again.
const UNDISTURBED: u32 = 8192;
/// Requests for as many bytes are answered faster side by side: the kernel reads ahead while the program works.
const MUCH: usize = 32 << 10;

/// No processor; others are one higher than their number.
const APART: u32 = 0;

/// Who asks, and whether it is served as a pair.
#[derive(Debug)]
pub struct DispatchPolicy {
    pool_workers: usize,
    /// Where the pair is, or [`APART`].
    processor: AtomicU32,
    /// The thread that asked last, and how often in a row.
    client: AtomicU32,
    streak: AtomicU32,
    /// The one who may be served as a pair next.
    candidate: Mutex<Option<Candidate>>,
    /// How often in a row makes a pair.
    enough: AtomicU32,
    /// Until when there is no pair, in milliseconds since `began`, and how long the last pause was.
    paused_until: AtomicU64,
    pause: AtomicU64,
    began: Instant,
    /// Once it is ready.
    affine_worker: OnceLock<Arc<AffineWorker>>,
    /// Whether a pool worker looks after the pair.
    guarded: AtomicBool,
    ended: AtomicBool,
    /// Held while `processor` changes between a pair and none, by which pool workers wait. Not one of those that are handed over
    /// when they are let go: whoever gets it may not run for a while.
    changing: Plain<()>,
    changed: Condvar,
    starter: Sender<Job>,
    counters: Counters,
}

/// What became of it.
#[derive(Debug, Default)]
struct Counters {
    pairs: AtomicU64,
    requests: AtomicU64,
    moves: AtomicU64,
    stalls: AtomicU64,
}

/// Why there is no pairing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoAffinity {
    /// There is nobody to be woken.
    #[error("there is one processor only")]
    OneProcessor,
    /// Somebody decided how this process is scheduled.
    #[error("this process has a scheduling policy of its own")]
    Policy,
    /// The kernel doesn't tell how long threads wait.
    #[error("/proc/thread-self/schedstat cannot be read")]
    NoTimes,
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

thread_local! {
    /// What a CPU-affine worker keeps.
    static SLOT: RefCell<Option<WorkerSlot>> = const { RefCell::new(None) };
}

#[derive(Debug)]
struct WorkerSlot {
    watch: Watch,
    affine_worker: Arc<AffineWorker>,
    starter: Sender<Job>,
}

impl DispatchPolicy {
    /// Makes the policy of a session with so many ordinary threads.
    ///
    /// # Errors
    ///
    /// It can't be had here, or is of no use.
    pub fn new(pool_workers: usize) -> Result<DispatchPolicy, NoAffinity> {
        if schedule::processors()?.count() < 2 {
            return Err(NoAffinity::OneProcessor);
        }
        if !schedule::is_ordinary() {
            return Err(NoAffinity::Policy);
        }
        let times = Watched::this_thread().map(|this| this.times());
        if !matches!(times, Ok(Some(_))) {
            return Err(NoAffinity::NoTimes);
        }
        let (starter, jobs) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("starter".into()).spawn(move || jobs.iter().for_each(spawn))?;
        Ok(DispatchPolicy {
            pool_workers,
            processor: AtomicU32::new(APART),
            client: AtomicU32::new(0),
            streak: AtomicU32::new(0),
            candidate: Mutex::new(None),
            enough: AtomicU32::new(FEW),
            paused_until: AtomicU64::new(0),
            pause: AtomicU64::new(0),
            began: Instant::now(),
            affine_worker: OnceLock::new(),
            guarded: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            changing: Plain::new(()),
            changed: Condvar::new(),
            starter,
            counters: Counters::default(),
        })
    }

    /// Returns how many threads the session needs.
    pub fn threads(&self) -> usize {
        self.pool_workers + 1
    }

    /// Notes a request: of that thread (0: of one that can't be named) or of the kernel itself, with or for so many
    /// bytes of data.
    pub fn asked(&self, client: Option<u32>, bytes: usize) {
        let pair = self.processor.load(Ordering::Acquire);
        let is_affine_worker = SLOT.with_borrow(|slot| {
            slot.iter().for_each(|slot| slot.affine_worker.work());
            slot.is_some()
        });
        if pair == APART && !is_affine_worker {
            // It may have missed that it was called.
            self.affine_worker
                .get()
                .filter(|affine_worker| affine_worker.is_out())
                .into_iter()
                .for_each(|affine_worker| affine_worker.interrupt());
        }
        let Some(client) = client else { return };
        if bytes >= MUCH || self.client.load(Ordering::Relaxed) != client {
            self.client.store(client, Ordering::Relaxed);
            if pair == APART {
                self.streak.store(0, Ordering::Relaxed);
            } else {
                self.end_streak();
            }
            return;
        }
        let streak = self.streak.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if pair == APART {
            self.consider(client, streak);
            return;
        }
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let seen = SLOT.with_borrow_mut(|slot| {
            slot.as_mut().map_or(AffinityVerdict::Nothing, |slot| slot.watch.look(client))
        });
        match seen {
            AffinityVerdict::Nothing => {}
            AffinityVerdict::On(processor) => self.follow(pair, number_of(processor)),
            AffinityVerdict::Stall => self.stall(),
        }
    }

    /// Decides whether that thread, which has asked so often in a row, is served as a pair. Who has to wait for a
    /// processor itself isn't: a CPU-affine worker would wait for much longer.
    fn consider(&self, client: u32, streak: u32) {
        const HALF: u32 = FEW / 2;
        if streak.saturating_add(HALF) < self.enough.load(Ordering::Relaxed) || !streak.is_multiple_of(HALF) {
            return;
        }
        let paused = self.paused_until.load(Ordering::Relaxed) > self.milliseconds();
        if paused || self.affine_worker.get().is_none_or(|affine_worker| affine_worker.is_out()) {
            return;
        }
        let Some((candidate, processor)) = Candidate::look(client) else { return self.pause() };
        let before = self.candidate.lock().replace(candidate);
        if !streak.is_multiple_of(FEW) {
            return;
        }
        match before.filter(|before| before.client == client) {
            None => {}
            Some(before) if candidate.has_waited_since(&before) => {
                log::debug!("no pair: {client} has to wait for a processor");
                self.pause();
            }
            Some(_) => self.pair(processor),
        }
    }

    /// Serves the program on this processor as a pair from the next request on.
    fn pair(&self, processor: usize) {
        if !schedule::processors().is_ok_and(|all| all.is_set(processor)) {
            return self.pause();
        }
        self.counters.pairs.fetch_add(1, Ordering::Relaxed);
        self.change(number_of(processor));
    }

    /// Looks where the program is. While a pool worker is on its processor, the scheduler moves it when it is answered.
    fn look(&self) {
        let pair = self.processor.load(Ordering::Relaxed);
        let client = Watched::thread(self.client.load(Ordering::Relaxed)).ok();
        if let Some(processor) = client.and_then(|client| client.processor()) {
            self.follow(pair, number_of(processor));
        }
    }

    /// Follows the program to where it is now. A pair that parted meanwhile stays apart.
    fn follow(&self, before: u32, now: u32) {
        if before == APART || now == APART {
            return;
        }
        if before != now {
            self.counters.moves.fetch_add(1, Ordering::Relaxed);
            if self.processor.compare_exchange(before, now, Ordering::Release, Ordering::Relaxed).is_err() {
                return;
            }
        }
        self.place(now);
    }

    /// Brings the CPU-affine worker to where the pair is.
    fn place(&self, pair: u32) {
        let Some(affine_worker) = self.affine_worker.get() else { return };
        if pair != APART
            && let Err(e) = affine_worker.put_on(pair as usize - 1)
        {
            // The processor has just been taken away: the next look tells where the program went.
            log::debug!("the worker can't follow: {e}");
        }
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Lets there be no pair for a while.
    fn pause(&self) {
        let lasted = self.streak.swap(0, Ordering::Relaxed);
        let before = if lasted >= UNDISTURBED { 0 } else { self.pause.load(Ordering::Relaxed) };
        let pause = (before * 2).clamp(PAUSE.start, PAUSE.end);
        self.pause.store(pause, Ordering::Relaxed);
        self.paused_until.store(self.milliseconds().saturating_add(pause), Ordering::Relaxed);
    }

    /// Parts the pair, and for a while: others want the processor.
    fn stall(&self) {
        self.counters.stalls.fetch_add(1, Ordering::Relaxed);
        self.pause();
        self.part(true);
    }

    /// Parts the pair: somebody else asks, or nobody does.
    fn end_streak(&self) {
        let lasted = self.streak.swap(0, Ordering::Relaxed);
        self.weigh(lasted);
        self.part(false);
    }

    /// Lets pairs that last for a few requests only be made less often.
    fn weigh(&self, lasted: u32) {
        let enough = self.enough.load(Ordering::Relaxed);
        let next = match lasted.saturating_sub(enough) {
            ..WORTH => (enough * 2).min(MORE.max(enough)),
            _ => (enough / 2).max(FEW),
        };
        self.enough.store(next, Ordering::Relaxed);
    }

    fn part(&self, stalled: bool) {
        log::debug!("the pair parts{}", if stalled { ": others want its processor" } else { "" });
        self.change(APART);
    }

    fn change(&self, processor: u32) {
        if processor == APART {
            // First of all: what it has in hand, this lock perhaps, may be waited for.
            self.affine_worker.get().into_iter().for_each(|affine_worker| affine_worker.release());
        }
        {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            self.processor.store(processor, Ordering::Release);
        }
        self.changed.notify_all();
        // One that sits down just now is seen here, or sees what was changed: it would park, and nobody would wake it.
        fence(Ordering::SeqCst);
        let affine_worker = self.affine_worker.get();
        if processor == APART {
            // Where it waits for a request it would take the next one.
            affine_worker.into_iter().for_each(|affine_worker| affine_worker.interrupt());
        } else {
            self.place(processor);
            affine_worker.into_iter().for_each(|affine_worker| affine_worker.unpark());
        }
    }

    fn is_paired(&self) -> bool {
        self.processor.load(Ordering::Acquire) != APART
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Waits for a pool worker's turn: one looks after the pair meanwhile.
    fn roam(&self) {
        while self.is_paired() && !self.has_ended() {
            if self.guarded.swap(true, Ordering::AcqRel) {
                self.wait_for_change(None);
            } else {
                self.guard();
                schedule::roam();
                // If there is a pair again, somebody has to look after that one.
                self.guarded.store(false, Ordering::Release);
            }
        }
    }

    /// Waits until the pair parts, or for so long. Returns whether it was so long.
    fn wait_for_change(&self, limit: Option<Duration>) -> bool {
        let mut changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        while self.is_paired() && !self.has_ended() {
            match limit {
                None => changing = self.changed.wait(changing).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let waited = self.changed.wait_timeout(changing, limit);
                    let (held, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                    if waited.timed_out() {
                        return true;
                    }
                    changing = held;
                }
            }
        }
        false
    }

    /// Looks after the pair until it parts.
    fn guard(&self) {
        let Some(affine_worker) = self.affine_worker.get() else { return };
        let glance = || Glance::take(affine_worker, &self.streak, &self.client);
        let (mut before, mut place) = (glance(), APART);
        while self.is_paired() && !self.has_ended() {
            // On the processor of the pair: when another one is done with its look, the scheduler moves the program there.
            let pair = self.processor.load(Ordering::Acquire);
            if place != pair && pair != APART {
                place = pair;
                if let Err(e) = schedule::run_on(pair as usize - 1) {
                    log::debug!("who looks after the pair can't follow: {e}");
                }
            }
            if !self.wait_for_change(Some(QUIET)) {
                continue;
            }
            let now = glance();
            if now.is_served_since(&before) {
                self.look();
            } else if affine_worker.is_runnable() && now.is_starved_since(&before) {
                self.stall();
            } else {
                self.end_streak();
            }
            before = now;
        }
    }

    /// Makes the CPU-affine worker of this thread.
    fn sit_down(&self) {
        let slot = AffineWorker::this_thread().and_then(|affine_worker| {
            let (watch, affine_worker) = (Watch::new()?, Arc::new(affine_worker));
            self.affine_worker.set(affine_worker.clone()).map_err(|_| std::io::ErrorKind::AlreadyExists)?;
            Ok(WorkerSlot { watch, affine_worker, starter: self.starter.clone() })
        });
        // See `change`.
        fence(Ordering::SeqCst);
        match slot {
            Ok(slot) => SLOT.set(Some(slot)),
            Err(e) => log::info!("no pairing: {e}"),
        }
    }
}

impl DispatchPolicy {
    /// Keeps the thread with this number, from 0, which is about to ask for a request, waiting until it may. A
    /// thread that is interrupted by a signal while it waits for a request comes here again. Returns whether it may
    /// spin.
    pub fn park(&self, thread: usize) -> bool {
        if thread < self.pool_workers {
            self.roam();
            return true;
        }
        if SLOT.with_borrow(Option::is_none) && !self.has_ended() {
            self.sit_down();
        }
        let affine_worker = SLOT.with_borrow(|slot| slot.as_ref().map(|slot| slot.affine_worker.clone()));
        let not_yet = || !self.is_paired() && !self.has_ended();
        match affine_worker {
            None => {
                // There will never be a pair.
                while not_yet() {
                    std::thread::park();
                }
            }
            Some(affine_worker) => {
                while {
                    affine_worker.park_while(not_yet);
                    affine_worker.wait();
                    // Whoever has changed it since then has called it back, or missed it.
                    not_yet()
                } {}
            }
        }
        false
    }

    /// Ends it with the session: nobody is kept waiting from here on.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.change(APART);
        self.affine_worker.get().into_iter().for_each(|affine_worker| affine_worker.unpark());
    }
}

impl fmt::Display for DispatchPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counters { requests, pairs, moves, stalls } = &self.counters;
        let [requests, pairs, moves, stalls] =
            [requests, pairs, moves, stalls].map(|counter| counter.load(Ordering::Relaxed));
        write!(f, "paired: {requests} requests, {pairs} times, {moves} moves, {stalls} given up")
    }
}

/// Returns a processor as [`DispatchPolicy::processor`] has it.
fn number_of(processor: usize) -> u32 {
    u32::try_from(processor).map_or(APART, |n| n.saturating_add(1))
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Returns a pairing with a CPU-affine worker that never asks for a request; `None`, said so, where it can't be
    /// had.
    fn pairing() -> Option<DispatchPolicy> {
        let pairing = match DispatchPolicy::new(2) {
            Ok(pairing) => pairing,
            Err(why) => {
                support::skipped(&format!("no pairing: {why}"));
                return None;
            }
        };
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let affine_worker = Arc::new(AffineWorker::this_thread().unwrap());
            tell.send(affine_worker.clone()).unwrap();
            affine_worker.park_while(|| true);
        });
        let affine_worker = told.recv().unwrap();
        while affine_worker.is_out() {
            std::thread::yield_now();
        }
        pairing.affine_worker.set(affine_worker).unwrap();
        Some(pairing)
    }

    /// Another program. It ends when this is dropped.
    pub(super) struct Program(std::process::Child);

    impl Program {
        pub(super) fn new(line: &str) -> Program {
            Program(std::process::Command::new("sh").args(["-c", line]).spawn().unwrap())
        }

        /// Starts one that never has to wait for a processor, for it sleeps.
        pub(super) fn sleeping() -> Program {
            let program = Program::new("exec sleep 1000");
            let is_asleep = || {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", program.number())).unwrap();
                stat.contains("(sleep) S")
            };
            // Until then it wants a processor, as any that starts.
            while !is_asleep() {
                std::thread::yield_now();
            }
            program
        }

        pub(super) fn number(&self) -> u32 {
            self.0.id()
        }

        fn ask(&self, pairing: &DispatchPolicy, times: u32) {
            ask(pairing, self.number(), times);
        }
    }

    impl Drop for Program {
        fn drop(&mut self) {
            let ended = self.0.kill().and_then(|()| self.0.wait());
            ended.map(drop).unwrap_or_else(|e| eprintln!("process {} is left: {e}", self.0.id()));
        }
    }

    fn ask(pairing: &DispatchPolicy, client: u32, times: u32) {
        for _ in 0..times {
            pairing.asked(Some(client), 0);
        }
    }

    #[test]
    fn one_who_asks_alone_is_paired_until_another_does() {
        let Some(pairing) = pairing() else { return };
        let program = Program::sleeping();
        program.ask(&pairing, FEW);
        assert!(!pairing.is_paired());
        program.ask(&pairing, 1);
        assert!(pairing.is_paired());
        // Those of nobody are the kernel's own.
        pairing.asked(None, 0);
        assert!(pairing.is_paired());
        ask(&pairing, 1, 1);
        assert!(!pairing.is_paired());
    }

    #[test]
    fn much_data_parts_a_pair_and_little_does_not() {
        let Some(pairing) = pairing() else { return };
        let program = Program::sleeping();
        program.ask(&pairing, FEW + 1);
        pairing.asked(Some(program.number()), MUCH - 1);
        assert!(pairing.is_paired());
        pairing.asked(Some(program.number()), MUCH);
        assert!(!pairing.is_paired());
        program.ask(&pairing, FEW - 1);
        assert!(!pairing.is_paired(), "it counts from the start again");
    }

    #[test]
    fn pairs_that_do_not_last_are_made_less_often() {
        let Some(pairing) = pairing() else { return };
        let program = Program::sleeping();
        let enough = || pairing.enough.load(Ordering::Relaxed);
        for round in 1..=10 {
            program.ask(&pairing, enough() + FEW);
            assert!(pairing.is_paired(), "round {round}");
            ask(&pairing, 1, 1);
            assert_eq!(enough(), (FEW << round).min(MORE));
        }
        program.ask(&pairing, enough() + WORTH + FEW);
        ask(&pairing, 1, 1);
        assert_eq!(enough(), MORE / 2);
    }

    #[test]
    fn after_a_stall_there_is_none_for_a_while() {
        let Some(pairing) = pairing() else { return };
        let program = Program::sleeping();
        pairing.pause();
        program.ask(&pairing, 10 * FEW);
        assert!(!pairing.is_paired());
        for expected in [2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 64_000] {
            pairing.pause();
            assert_eq!(pairing.pause.load(Ordering::Relaxed), expected);
        }
        assert!(pairing.paused_until.load(Ordering::Relaxed) <= pairing.milliseconds() + PAUSE.end);
        pairing.streak.store(UNDISTURBED, Ordering::Relaxed);
        pairing.pause();
        assert_eq!(pairing.pause.load(Ordering::Relaxed), PAUSE.start);
    }

    #[test]
    fn pool_workers_and_the_affine_worker_take_turns() {
        let Some(mut pairing) = pairing() else { return };
        pairing.affine_worker = OnceLock::new();
        let (tell, told) = mpsc::sync_channel(1);
        let all = schedule::processors().unwrap();
        let one = (0..rustix::thread::CpuSet::MAX_CPU).find(|n| all.is_set(*n)).unwrap();
        std::thread::scope(|scope| {
            for thread in [0, 2] {
                let (pairing, tell) = (&pairing, tell.clone());
                scope.spawn(move || {
                    while !pairing.ended.load(Ordering::Acquire) {
                        let spins = pairing.park(thread);
                        if tell.send((thread, spins, pairing.is_paired())).is_err() {
                            return;
                        }
                    }
                });
            }
            // Whoever was under way when the turn changed asks once more.
            let until = |expected: (usize, bool, bool)| {
                let came = told.iter().any(|turn| {
                    // On a busy machine the pair is given up again before its turn comes.
                    if expected.2 && !pairing.is_paired() {
                        pairing.change(number_of(one));
                    }
                    turn == expected
                });
                assert!(came, "{expected:?} never comes");
                for _ in 0..1000 {
                    let turn = told.recv().unwrap();
                    assert!(turn == expected || turn.2 != expected.2 || turn.0 != expected.0, "{turn:?}");
                }
            };
            until((0, true, false));
            pairing.change(number_of(one));
            until((2, false, true));
            pairing.change(APART);
            until((0, true, false));
            pairing.end();
            drop(told);
        });
    }

    #[test]
    fn what_the_affine_worker_starts_is_ordinary() {
        let Some(mut pairing) = pairing() else { return };
        pairing.affine_worker = OnceLock::new();
        let all = schedule::processors().unwrap();
        let one = (0..rustix::thread::CpuSet::MAX_CPU).find(|n| all.is_set(*n)).unwrap();
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pairing.sit_down();
                pairing.place(number_of(one));
                assert!(!schedule::is_ordinary());
                start_thread(move || tell.send(schedule::is_ordinary()).unwrap());
            });
        });
        assert!(told.recv().unwrap());
    }
}
