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
//! What is to be forgotten, and notifications, still go over the device.


use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};
use zerocopy::IntoBytes;

use crate::Errno;
use crate::Filesystem;
use crate::ll::Operation;
use crate::ll::RequestId;
use crate::ll::fuse_abi as abi;
use crate::reply::ReplyEmpty;
use crate::reply::ReplySender;
use crate::request::RequestWithSender;
use crate::session::SessionEventLoop;

/// Threads of a queue that are not waiting for others.
const THREADS: usize = 2;

/// How long the thread that hears what is to be forgotten waits before it asks for more. Nothing waits for it, and much
/// at once costs far less than one by one.
pub(crate) const FORGET_PAUSE: Duration = Duration::from_millis(5);

// enum fuse_uring_cmd
const CMD_REGISTER: u32 = 1;
const CMD_COMMIT_AND_FETCH: u32 = 2;

// struct fuse_uring_req_header: the header of the request or of the reply, the first argument of the request, and
// struct fuse_uring_ent_in_out (u64 flags, u64 commit_id, u32 payload_sz, u32 padding, u64 reserved).
const IN_OUT_AT: usize = 0;
const OP_AT: usize = 128;
const OP_SIZE: usize = 128;
const COMMIT_ID_AT: usize = 256 + 8;
const PAYLOAD_SIZE_AT: usize = 256 + 16;
const HEADER_SIZE: usize = 288;

/// The payload begins at the second page, so that a request's header and first argument can be put before it.
const PAYLOAD_AT: usize = 4096;
const IN_HEADER: usize = size_of::<abi::fuse_in_header>();
const OUT_HEADER: usize = size_of::<abi::fuse_out_header>();
/// Requests up to this size, all but writes and large attributes, are moved away so that the reply can be put where
/// they came.
const SMALL: usize = 4096 + 512;

type Iovecs = [libc::iovec; 2];

/// The memory of an entry, which the kernel and this process write in turn: the kernel only after a commit.
struct Area {
    at: NonNull<u8>,
    layout: Layout,
    payload: usize,
}

// SAFETY: it is memory of its own.
unsafe impl Send for Area {}

impl Area {
    fn new(payload: usize) -> io::Result<Area> {
        let layout = Layout::from_size_align(PAYLOAD_AT + payload, PAYLOAD_AT).map_err(io::Error::other)?;
        // SAFETY: the size is not zero.
        let at = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Ok(Area { at, layout, payload })
    }

    fn iovecs(&self) -> Iovecs {
        let at = self.at.as_ptr();
        [
            libc::iovec { iov_base: at.cast(), iov_len: HEADER_SIZE },
            libc::iovec { iov_base: at.wrapping_add(PAYLOAD_AT).cast(), iov_len: self.payload },
        ]
    }

    fn header(&mut self) -> &mut [u8; HEADER_SIZE] {
        // SAFETY: it is allocated, any bytes are good, and who has `self` for itself may write.
        unsafe { self.at.cast::<[u8; HEADER_SIZE]>().as_mut() }
    }

    fn payload(&mut self) -> &mut [u8] {
        // SAFETY: as above; a request that lies here is only looked at while `State::in_place` is set, and then
        // nobody calls this.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr().add(PAYLOAD_AT), self.payload) }
    }

    fn u32_at(&mut self, at: usize) -> u32 {
        u32::from_ne_bytes(std::array::from_fn(|i| self.header()[at + i]))
    }

    fn commit_id(&mut self) -> u64 {
        u64::from_ne_bytes(std::array::from_fn(|i| self.header()[COMMIT_ID_AT + i]))
    }

    /// Puts a reply's header and tells the size of what follows it, which lies in the payload already.
    fn finish(&mut self, out_header: &[u8], payload: usize) {
        self.header()[IN_OUT_AT..][..OUT_HEADER].copy_from_slice(out_header);
        self.header()[PAYLOAD_SIZE_AT..][..4].copy_from_slice(&(payload as u32).to_ne_bytes());
    }

    /// Puts a reply.
    fn put(&mut self, parts: &[IoSlice<'_>]) {
        let mut head = [0; OUT_HEADER];
        let mut at = 0;
        for mut part in parts.iter().map(|part| &**part) {
            if at < OUT_HEADER {
                let (first, rest) = part.split_at(part.len().min(OUT_HEADER - at));
                head[at..at + first.len()].copy_from_slice(first);
                at += first.len();
                part = rest;
            }
            if !part.is_empty() {
                self.payload()[at - OUT_HEADER..][..part.len()].copy_from_slice(part);
                at += part.len();
            }
        }
        self.finish(&head, at - OUT_HEADER);
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: allocated so. The ring, which the kernel writes for, is gone before.
        unsafe { dealloc(self.at.as_ptr(), self.layout) }
    }
}

/// An entry, as those see it who answer.
pub(crate) struct Slot {
    state: Mutex<State>,
    replied: Condvar,
}

struct State {
    area: Area,
    /// The request lies in the payload and is still looked at: the reply waits in `aside`.
    in_place: bool,
    aside: Vec<u8>,
    done: bool,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

impl Slot {
    /// Takes the reply.
    pub(crate) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.state.lock();
        let size: usize = parts.iter().map(|part| part.len()).sum();
        let sent = if size <= OUT_HEADER + state.area.payload {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "more than was asked for"))
        };
        // Whoever asked must not wait for ever.
        let error = out_header(unique_of(parts), Err(Errno::EIO));
        let error = [IoSlice::new(&error)];
        let parts = if sent.is_ok() { parts } else { &error };
        if state.in_place {
            state.aside.clear();
            for part in parts {
                state.aside.extend_from_slice(part);
            }
        } else {
            state.area.put(parts);
        }
        state.done = true;
        drop(state);
        self.replied.notify_one();
        sent
    }

    /// Takes a reply of up to `size` bytes that `fill` puts where the kernel takes them, where there is room now.
    pub(crate) fn fill<F>(&self, unique: RequestId, size: usize, fill: F) -> Result<(), F>
    where
        F: FnOnce(&mut [u8]) -> Result<usize, Errno>,
    {
        let mut state = self.state.lock();
        if state.in_place || size > state.area.payload {
            return Err(fill);
        }
        let filled = fill(&mut state.area.payload()[..size]).map(|filled| filled.min(size));
        state.area.finish(&out_header(unique.0, filled), filled.unwrap_or(0));
        state.done = true;
        drop(state);
        self.replied.notify_one();
        Ok(())
    }

    /// Nobody looks at the request any more. Returns whether the reply is there.
    fn dispatched(&self) -> bool {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.in_place) && state.done {
            let reply = std::mem::take(&mut state.aside);
            state.area.put(&[IoSlice::new(&reply)]);
            state.aside = reply;
        }
        state.done
    }

    fn wait(&self) {
        let mut state = self.state.lock();
        while !state.done {
            self.replied.wait(&mut state);
        }
    }
}

/// A reply's header: with so many bytes after it, or an error.
fn out_header(unique: u64, result: Result<usize, Errno>) -> [u8; OUT_HEADER] {
    let header = abi::fuse_out_header {
        len: (OUT_HEADER + result.unwrap_or(0)) as u32,
        error: result.map_or_else(|errno| -errno.code(), |_| 0),
        unique,
    };
    let mut bytes = [0; OUT_HEADER];
    bytes.copy_from_slice(header.as_bytes());
    bytes
}

/// What a reply, which begins with its header, replies to.
fn unique_of(parts: &[IoSlice<'_>]) -> u64 {
    let unique = parts.first().and_then(|header| header.get(8..OUT_HEADER)?.try_into().ok());
    unique.map_or(0, u64::from_ne_bytes)
}

/// What all threads share.
pub(crate) struct Queues {
    payload: usize,
    /// For each queue, how many threads are not waiting for others.
    ready: Vec<AtomicUsize>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Whether rings can be had: seccomp and `kernel.io_uring_disabled` forbid them in many places.
pub(crate) fn usable() -> io::Result<()> {
    new_ring(1).map(drop)
}

fn new_ring(entries: usize) -> io::Result<IoUring<squeue::Entry128, cqueue::Entry>> {
    // What the kernel has for this thread is done when it asks, and wakes it for nothing else.
    IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries.max(1) as u32)
}

/// Starts the threads; returns when every queue has an entry, from when on the kernel asks.
pub(crate) fn start<FS: Filesystem>(
    payload: usize,
    event_loop: impl Fn(String) -> SessionEventLoop<FS>,
) -> io::Result<Arc<Queues>> {
    let processors = |which| {
        let path = format!("/sys/devices/system/cpu/{which}");
        let list = std::fs::read_to_string(path)?;
        parse_list(&list).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a list of processors"))
    };
    let online = processors("online")?;
    // The kernel numbers them without gaps.
    let count = processors("possible")?.len() as u16;
    let queues = Arc::new(Queues {
        payload,
        ready: (0..count).map(|_| AtomicUsize::new(0)).collect(),
        threads: Mutex::default(),
    });
    let (report, reports) = mpsc::channel();
    let (here, absent): (Vec<u16>, Vec<u16>) = (0..count).partition(|queue| online.contains(queue));
    for queue in here {
        for i in 0..THREADS {
            spawn(&queues, vec![queue], event_loop(format!("fuser-{queue}-{i}")), Some(report.clone()))?;
        }
    }
    if !absent.is_empty() {
        // Should such a processor appear, this is slow but right.
        spawn(&queues, absent, event_loop("fuser-absent".to_string()), Some(report.clone()))?;
    }
    drop(report);
    for registered in reports {
        registered?;
    }
    Ok(queues)
}

impl Queues {
    /// Waits until the connection has ended and all threads with it.
    pub(crate) fn join(&self) -> io::Result<()> {
        loop {
            let Some(thread) = self.threads.lock().pop() else { return Ok(()) };
            thread.join().map_err(|_| io::Error::other("event loop thread panicked"))?;
        }
    }
}

fn spawn<FS: Filesystem>(
    queues: &Arc<Queues>,
    serves: Vec<u16>,
    event_loop: SessionEventLoop<FS>,
    report: Option<mpsc::Sender<io::Result<()>>>,
) -> io::Result<()> {
    let shared = queues.clone();
    let thread = std::thread::Builder::new().name(event_loop.thread_name.clone()).spawn(move || {
        let (mut ring, registered) = match Ring::register(shared, &serves, event_loop) {
            Ok(ring) => (Some(ring), Ok(())),
            Err(e) => (None, Err(e)),
        };
        match (report, registered) {
            // Who started it has gone because of another thread's failure.
            (Some(report), registered) => report.send(registered).unwrap_or_default(),
            (None, Ok(())) => {}
            (None, Err(e)) => log::error!("a queue has a thread less: {e}"),
        }
        if let Some(ring) = &mut ring {
            // Requests of this queue would wait for ever, and nothing else would tell.
            ring.serve().unwrap_or_else(|e| panic!("FUSE over io_uring broke off: {e}"));
        }
    })?;
    queues.threads.lock().push(thread);
    Ok(())
}

/// A thread's ring.
struct Ring<FS: Filesystem> {
    /// Before the entries, that it may be gone before their memory.
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    entries: Vec<Entry>,
    /// Entries and results that the ring told and that were not looked at yet.
    completed: VecDeque<(usize, i32)>,
    queues: Arc<Queues>,
    event_loop: SessionEventLoop<FS>,
    /// A small request, aligned.
    request: Box<[u64; SMALL / 8]>,
}

struct Entry {
    queue: u16,
    slot: Arc<Slot>,
    commit_id: u64,
}

impl<FS: Filesystem> Ring<FS> {
    fn register(queues: Arc<Queues>, serves: &[u16], event_loop: SessionEventLoop<FS>) -> io::Result<Self> {
        if let &[queue] = serves {
            bind(queue);
        }
        let ring = new_ring(serves.len())?;
        let request = Box::new([0; SMALL / 8]);
        let completed = VecDeque::new();
        let mut ring = Ring { ring, entries: Vec::new(), completed, queues, event_loop, request };
        let mut iovecs: Vec<Iovecs> = Vec::new();
        for &queue in serves {
            let area = Area::new(ring.queues.payload)?;
            iovecs.push(area.iovecs());
            let state = State { area, in_place: false, aside: Vec::new(), done: false };
            let slot = Arc::new(Slot { state: Mutex::new(state), replied: Condvar::new() });
            ring.entries.push(Entry { queue, slot, commit_id: 0 });
        }
        for index in 0..serves.len() {
            ring.push(CMD_REGISTER, index, Some(&iovecs[index]))?;
        }
        ring.ring.submit()?;
        // Failures are told at once; what else is there are requests.
        ring.completed.extend(ring.ring.completion().map(|done| (done.user_data() as usize, done.result())));
        if let Some(&(_, failed)) = ring.completed.iter().find(|(_, result)| *result < 0) {
            // The kernel may have others of them; the session ends now, and the process with it.
            std::mem::forget(std::mem::take(&mut ring.entries));
            return Err(io::Error::from_raw_os_error(-failed));
        }
        for &queue in serves {
            ring.queues.ready[usize::from(queue)].fetch_add(1, Ordering::Relaxed);
        }
        Ok(ring)
    }

    fn push(&mut self, op: u32, index: usize, iovecs: Option<&Iovecs>) -> io::Result<()> {
        let entry = &self.entries[index];
        // struct fuse_uring_cmd_req: u64 flags, u64 commit_id, u16 qid
        let mut command = [0; 80];
        command[8..16].copy_from_slice(&entry.commit_id.to_ne_bytes());
        command[16..18].copy_from_slice(&entry.queue.to_ne_bytes());
        let device = types::Fd(self.event_loop.ch.as_fd().as_raw_fd());
        let mut sqe = opcode::UringCmd80::new(device, op)
            .cmd(command)
            .addr(iovecs.map(|iovecs| iovecs.as_ptr() as u64))
            .build()
            .user_data(index as u64);
        if let Some(iovecs) = iovecs {
            /// Of `len` in struct io_uring_sqe.
            const LEN_AT: usize = 24;
            // SAFETY: it is a struct io_uring_sqe; the crate has no way to set this for a command.
            unsafe { (&raw mut sqe).cast::<u8>().add(LEN_AT).cast::<u32>().write(iovecs.len() as u32) };
        }
        // SAFETY: the iovecs live until it is submitted, and what they tell of as long as the ring.
        unsafe { self.ring.submission().push(&sqe) }.map_err(io::Error::other)
    }

    /// Submits what was pushed, and waits for a completion: an entry and its result.
    fn next(&mut self) -> io::Result<(usize, i32)> {
        loop {
            self.completed
                .extend(self.ring.completion().map(|done| (done.user_data() as usize, done.result())));
            if let Some(done) = self.completed.pop_front() {
                return Ok(done);
            }
            match self.ring.submit_and_wait(1) {
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Memory is short.
                    Some(libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => return Err(e),
                },
                Ok(_) => {}
            }
        }
    }

    /// Serves until the connection ends.
    fn serve(&mut self) -> io::Result<()> {
        // The memory of an entry is the kernel's until it has said so of each.
        let mut left = self.entries.len();
        while left > 0 {
            let (index, result) = self.next()?;
            match -result {
                0 => {
                    self.answer(index)?;
                    self.push(CMD_COMMIT_AND_FETCH, index, None)?;
                }
                libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV => left -= 1,
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
        Ok(())
    }

    /// Serves the request of an entry.
    fn answer(&mut self, index: usize) -> io::Result<()> {
        let entry = &mut self.entries[index];
        let slot = entry.slot.clone();
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "Invalid request");
        let mut state = slot.state.lock();
        entry.commit_id = state.area.commit_id();
        let size = state.area.u32_at(IN_OUT_AT) as usize;
        let payload = state.area.u32_at(PAYLOAD_SIZE_AT) as usize;
        let op_size = size.checked_sub(IN_HEADER + payload).ok_or_else(invalid)?;
        if op_size > OP_SIZE || payload > state.area.payload {
            return Err(invalid());
        }
        state.done = false;
        state.in_place = size > SMALL;
        // Where the header, the first argument and the payload come to lie one behind the other.
        let base = state.area.at.as_ptr();
        let to = match state.in_place {
            true => base.wrapping_add(PAYLOAD_AT - op_size - IN_HEADER),
            false => self.request.as_mut_ptr().cast::<u8>(),
        };
        // SAFETY: the sizes are checked above; the page before the payload has room for both behind the kernel's
        // header, and `request` for all that is small. Nobody writes there while `in_place` is set, or to `request`.
        let request = unsafe {
            base.add(IN_OUT_AT).copy_to_nonoverlapping(to, IN_HEADER);
            base.add(OP_AT).copy_to_nonoverlapping(to.add(IN_HEADER), op_size);
            if !state.in_place {
                base.add(PAYLOAD_AT).copy_to_nonoverlapping(to.add(IN_HEADER + op_size), payload);
            }
            std::slice::from_raw_parts(to, size)
        };
        drop(state);
        let sender = ReplySender::Uring(slot.clone(), self.event_loop.ch.sender());
        let request = RequestWithSender::new(sender, request).ok_or_else(invalid)?;
        match request.request.operation() {
            Ok(Operation::Destroy(_)) => request.reply::<ReplyEmpty>().ok(),
            _ => request.dispatch(&self.event_loop),
        }
        if !slot.dispatched() {
            self.wait_for(index, &slot);
        }
        Ok(())
    }

    /// Another thread answers; the queue must not lack this one meanwhile.
    fn wait_for(&self, index: usize, slot: &Slot) {
        let queue = self.entries[index].queue;
        let ready = &self.queues.ready[usize::from(queue)];
        if ready.fetch_sub(1, Ordering::Relaxed) <= THREADS {
            let name = self.event_loop.thread_name.clone();
            if let Err(e) = spawn(&self.queues, vec![queue], self.event_loop.twin(name), None) {
                log::error!("a queue has a thread less for now: {e}");
            }
        }
        slot.wait();
        ready.fetch_add(1, Ordering::Relaxed);
    }
}

/// Keeps this thread on the processor whose queue it serves, where it may run there.
fn bind(processor: u16) {
    let mut set = CpuSet::new();
    let bound = set.set(usize::from(processor)).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(e) = bound {
        log::debug!("not bound to processor {processor}: {e}");
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
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(parse_list("0-1\n"), Some(vec![0, 1]));
        assert_eq!(parse_list("0-1,4,6-7\n"), Some(vec![0, 1, 4, 6, 7]));
        assert_eq!(parse_list("x"), None);
    }

    #[test]
    fn replies_lie_where_the_kernel_takes_them() {
        let mut area = Area::new(8192).unwrap();
        // The header may come in parts, or with what follows it.
        area.put(&[IoSlice::new(&[1; 10]), IoSlice::new(&[2; 8]), IoSlice::new(&[3; 5])]);
        assert_eq!(area.header()[..18], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0]);
        assert_eq!(area.payload()[..8], [2, 2, 3, 3, 3, 3, 3, 0]);
        assert_eq!(area.u32_at(PAYLOAD_SIZE_AT), 7);
    }
}
