//! Requests over io_uring (Linux 6.14, where root has turned it on for the module `fuse`).
//!
//! The kernel has a queue for every processor. A request goes to the queue of the processor that it is made on, and
//! there to a free entry that somebody registered for the queue; where there is none it waits. Whoever holds the entry
//! answers and asks for the next one in a single system call, and on the very processor where the program waits, so
//! that no other processor has to be woken and none has to be kept awake.
//!
//! Here a thread holds one entry, in a ring of its own, and every queue has [`THREADS`] of them, so that a request that
//! takes long holds up nobody else: the kernel gives the entry that became free last, hence one thread of a queue does
//! nearly all, and the others take over while it is busy. A thread whose request is answered later by another one waits
//! for that, after it has made sure that the queue still has as many; so there are never more than the most requests
//! that were under way at once, and [`THREADS`]. An entry has memory for the largest request, which is not touched
//! before one comes.
//!
//! What is to be forgotten, interrupts, and notifications still go over the device.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::Errno;
use parking_lot::{Condvar, Mutex};
use zerocopy::{FromBytes, IntoBytes};

use super::device::Device;
use super::serve::{Filesystem, Served};
use crate::fuse::wire::abi::UringReqHeader;
use crate::fuse::wire::args::Args;
use crate::fuse::wire::reply::{Fill, Transport, header};
use crate::fuse::wire::request::HEADER_SIZE;
use crate::fuse::wire::{Reply, Request};
use crate::sys::fuse::Pages;
use crate::sys::ring::{Area, Ring, Told};
use crate::sys::schedule;

/// Threads of a queue that are not waiting for others.
const THREADS: usize = 2;

/// How long the thread that hears what is to be forgotten waits before it asks for more. Nothing waits for it, and much
/// at once costs far less than one by one.
pub(super) const FORGET_PAUSE: Duration = Duration::from_millis(5);

/// An entry, as those see it who answer.
struct Slot {
    state: Mutex<RingState>,
    replied: Condvar,
    /// The largest payload.
    room: usize,
}

#[derive(Default)]
struct RingState {
    /// Where the reply is to be put. Not there while the request, which lies there too, is looked at: the body then waits
    /// in `aside`.
    payload: Option<Pages>,
    aside: Vec<u8>,
    /// The reply's header and the size of its body, when it is there.
    replied: Option<([u8; crate::fuse::wire::reply::HEADER_SIZE], usize)>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

impl Transport for Slot {
    fn answer(&self, unique: u64, size: usize, fill: Fill<'_>) -> io::Result<()> {
        let mut state = self.state.lock();
        let fits = size <= self.room;
        let state_ref = &mut *state;
        let filled = match &mut state_ref.payload {
            // Whoever asked must not wait for ever.
            _ if !fits => Err(Errno::EIO),
            Some(payload) => fill(&mut payload[..size]),
            None => {
                state_ref.aside.resize(size, 0);
                fill(&mut state_ref.aside)
            }
        };
        let filled = filled.map(|filled| filled.min(size));
        state.replied = Some((header(unique, filled), filled.unwrap_or(0)));
        drop(state);
        self.replied.notify_one();
        match fits {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "more than was asked for")),
        }
    }
}

impl Slot {
    /// Gets ready for a request; a reply can be put into `payload` at once, where it is given.
    fn begin(&self, payload: Option<Pages>) {
        let mut state = self.state.lock();
        state.payload = payload;
        state.replied = None;
    }

    /// Notes that nobody looks at the request any more, which lay in `payload` if that is given. Returns whether the
    /// reply is there.
    fn dispatched(&self, payload: Option<Pages>) -> bool {
        let mut state = self.state.lock();
        if let Some(mut payload) = payload {
            if let Some((_, size)) = state.replied {
                payload[..size].copy_from_slice(&state.aside[..size]);
            }
            state.payload = Some(payload);
        }
        state.replied.is_some()
    }

    fn wait(&self) {
        let mut state = self.state.lock();
        while state.replied.is_none() {
            self.replied.wait(&mut state);
        }
    }

    /// Takes the memory and the reply, which is there.
    fn finish(&self, header: &mut Pages) -> io::Result<Pages> {
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        let mut state = self.state.lock();
        let (head, size) = state.replied.take().ok_or_else(missing)?;
        let (all, _) = UringReqHeader::mut_from_prefix(header).map_err(|_| missing())?;
        all.in_out[..head.len()].copy_from_slice(&head);
        all.ring_ent_in_out.payload_sz = size as u32;
        state.payload.take().ok_or_else(missing)
    }
}

/// What all threads share.
pub(super) struct Queues<F: Filesystem> {
    served: Arc<Served<F>>,
    device: Arc<Device>,
    payload_size: usize,
    /// For each queue, how many threads are not waiting for others.
    ready: Vec<AtomicUsize>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Fails where no rings can be had: seccomp and `kernel.io_uring_disabled` forbid them in many places.
pub(super) fn usable() -> io::Result<()> {
    Ring::new(1).map(drop)
}

/// Starts the threads; returns when every queue has an entry, from when on the kernel asks.
pub(super) fn start<F: Filesystem>(
    served: Arc<Served<F>>,
    device: Arc<Device>,
    payload_size: usize,
) -> io::Result<Arc<Queues<F>>> {
    let processors = |which| {
        let path = format!("/sys/devices/system/cpu/{which}");
        let list = std::fs::read_to_string(path)?;
        parse_list(&list).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a list of processors"))
    };
    let online = processors("online")?;
    // The kernel numbers them without gaps.
    let count = processors("possible")?.len() as u16;
    let queues = Arc::new(Queues {
        served,
        device,
        payload_size,
        ready: (0..count).map(|_| AtomicUsize::new(0)).collect(),
        threads: Mutex::default(),
    });
    let (report, reports) = mpsc::channel();
    let (here, absent): (Vec<u16>, Vec<u16>) = (0..count).partition(|queue| online.contains(queue));
    for queue in here {
        for i in 0..THREADS {
            spawn(&queues, vec![queue], format!("fuse-{queue}-{i}"), Some(report.clone()))?;
        }
    }
    if !absent.is_empty() {
        // Should such a processor appear, this is slow but right.
        spawn(&queues, absent, "fuse-absent".to_owned(), Some(report.clone()))?;
    }
    drop(report);
    for registered in reports {
        registered?;
    }
    Ok(queues)
}

impl<F: Filesystem> Queues<F> {
    /// Waits until the connection has ended and all threads with it.
    pub(super) fn join(&self) -> io::Result<()> {
        loop {
            let Some(thread) = self.threads.lock().pop() else { return Ok(()) };
            thread.join().map_err(|_| io::Error::other("a thread of a ring panicked"))?;
        }
    }
}

fn spawn<F: Filesystem>(
    queues: &Arc<Queues<F>>,
    serves: Vec<u16>,
    name: String,
    report: Option<mpsc::Sender<io::Result<()>>>,
) -> io::Result<()> {
    let shared = queues.clone();
    let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
        let (mut server, registered) = match Server::register(shared, &serves, name) {
            Ok(server) => (Some(server), Ok(())),
            Err(e) => (None, Err(e)),
        };
        match (report, registered) {
            // Who started it has gone because of another thread's failure.
            (Some(report), registered) => report.send(registered).unwrap_or_default(),
            (None, Ok(())) => {}
            (None, Err(e)) => log::error!("a queue has a thread less: {e}"),
        }
        if let Some(server) = &mut server {
            // Requests of this queue would wait for ever, and nothing else would tell.
            server.serve().unwrap_or_else(|e| panic!("FUSE over io_uring broke off: {e}"));
        }
    })?;
    queues.threads.lock().push(thread);
    Ok(())
}

/// A thread's ring.
struct Server<F: Filesystem> {
    ring: Ring,
    entries: Vec<(u16, Arc<Slot>)>,
    queues: Arc<Queues<F>>,
    name: String,
}

impl<F: Filesystem> Server<F> {
    fn register(queues: Arc<Queues<F>>, serves: &[u16], name: String) -> io::Result<Self> {
        if let &[queue] = serves
            && let Err(e) = schedule::run_on(usize::from(queue))
        {
            log::debug!("not bound to processor {queue}: {e}");
        }
        queues.served.interrupts.enter();
        let mut ring = Ring::new(serves.len())?;
        let mut areas = Vec::new();
        for &queue in serves {
            let header = Pages::new(size_of::<UringReqHeader>())?;
            areas.push((queue, Area { header, payload: Pages::new(queues.payload_size)? }));
        }
        ring.register(queues.device.as_fd(), areas)?;
        let slot = || Slot { state: Mutex::default(), replied: Condvar::new(), room: queues.payload_size };
        let entries = serves.iter().map(|&queue| (queue, Arc::new(slot()))).collect();
        for &queue in serves {
            queues.ready[usize::from(queue)].fetch_add(1, Ordering::Relaxed);
        }
        Ok(Server { ring, entries, queues, name })
    }

    /// Serves until the connection ends.
    fn serve(&mut self) -> io::Result<()> {
        let mut left = self.entries.len();
        while left > 0 {
            match self.ring.wait()? {
                Told::Request(index, area) => {
                    let (queue, slot) = self.entries[index].clone();
                    let (commit_id, area) = self.answer(queue, &slot, area)?;
                    self.ring.commit(self.queues.device.as_fd(), index, (queue, commit_id), area)?;
                }
                Told::Ended(libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV) => left -= 1,
                Told::Ended(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
        Ok(())
    }

    /// Serves the request of an entry. Returns what its reply is committed by.
    fn answer(&self, queue: u16, slot: &Arc<Slot>, area: Area) -> io::Result<(u64, Area)> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a request in a ring that doesn't fit");
        let Area { mut header, payload } = area;
        // A copy: the reply's header goes to the same place.
        let (told, _) = UringReqHeader::read_from_prefix(&header).map_err(|_| invalid())?;
        let payload_size = told.ring_ent_in_out.payload_sz as usize;
        let (len, _) = u32::read_from_prefix(told.in_out.as_bytes()).map_err(|_| invalid())?;
        let first = (len as usize).checked_sub(HEADER_SIZE + payload_size).ok_or_else(invalid)?;
        let first = told.op_in.get(..first).ok_or_else(invalid)?;
        if payload_size > payload.len() {
            return Err(invalid());
        }
        let parsed =
            |args| Request::parse_parts(&told.in_out, args, len as usize, self.queues.served.dialect);
        let reply = |unique| Reply::new(unique, slot.clone());
        let is_there = if payload_size == 0 {
            slot.begin(Some(payload));
            self.queues.served.serve(parsed(Args::new(first, &[])), reply)?;
            slot.dispatched(None)
        } else {
            slot.begin(None);
            self.queues.served.serve(parsed(Args::new(first, &payload[..payload_size])), reply)?;
            slot.dispatched(Some(payload))
        };
        if !is_there {
            self.wait_for(queue, slot);
        }
        let payload = slot.finish(&mut header)?;
        Ok((told.ring_ent_in_out.commit_id, Area { header, payload }))
    }

    /// Waits for another thread's answer; the queue must not lack this one meanwhile.
    fn wait_for(&self, queue: u16, slot: &Slot) {
        let ready = &self.queues.ready[usize::from(queue)];
        if ready.fetch_sub(1, Ordering::Relaxed) <= THREADS
            && let Err(e) = spawn(&self.queues, vec![queue], self.name.clone(), None)
        {
            log::error!("a queue has a thread less for now: {e}");
        }
        slot.wait();
        ready.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads a list such as `0-3,8`.
fn parse_list(list: &str) -> Option<Vec<u16>> {
    let mut all = Vec::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        all.extend(first.parse::<u16>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(parse_list("0-1\n"), Some(vec![0, 1]));
        assert_eq!(parse_list("0-1,4,6-7\n"), Some(vec![0, 1, 4, 6, 7]));
        assert_eq!(parse_list("x"), None);
    }

    /// Sends a reply of two bytes, to a request that lies where the reply goes, or not.
    #[test]
    fn replies_lie_where_the_kernel_takes_them() {
        for lies_there in [false, true] {
            let slot = Arc::new(Slot { state: Mutex::default(), replied: Condvar::new(), room: 4096 });
            let (mut head, payload) = (Pages::new(4096).unwrap(), Pages::new(4096).unwrap());
            let (given, kept) = if lies_there { (None, Some(payload)) } else { (Some(payload), None) };
            slot.begin(given);
            Reply::new(7, slot.clone()).data(b"xy");
            assert!(slot.dispatched(kept));
            let payload = slot.finish(&mut head).unwrap();
            assert_eq!(head[..16], header(7, Ok(2)));
            assert_eq!((&payload[..3], head[256 + 16]), (&b"xy\0"[..], 2));
        }
    }

    #[test]
    fn a_reply_that_does_not_fit_is_an_error() {
        let slot = Arc::new(Slot { state: Mutex::default(), replied: Condvar::new(), room: 4096 });
        slot.begin(Some(Pages::new(4096).unwrap()));
        Reply::new(7, slot.clone()).fill(5000, |room| Ok(room.len()));
        let mut head = Pages::new(4096).unwrap();
        slot.finish(&mut head).unwrap();
        assert_eq!(head[..16], header(7, Err(Errno::EIO)));
    }
}
