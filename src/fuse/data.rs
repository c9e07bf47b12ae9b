//! File data on its way to the kernel.
//!
//! A read of the kernel's is answered with the file's bytes, which costs two copies where the daemon reads them and
//! writes them out again. Large answers go through a pipe in place of that: it holds the file's pages by reference, and
//! each is copied once. Small ones don't, for the pipe takes two system calls more; nor do those over io_uring, which are
//! read to where the kernel takes them from.

use std::cell::RefCell;
use std::sync::Arc;

use super::convert::errno;
use super::wire::Reply;
use crate::sys::splice::Pipe;
use crate::union::Union;
use crate::union::nodes::node::Node;

/// Answers from so many bytes on go through a pipe.
const SPLICE_FROM: u32 = 64 << 10;

/// What a thread's pipe has room for: as much as an ordinary user may have. The kernel's read-ahead stays below
/// ([`READ_AHEAD`](super::policy::READ_AHEAD)), for an answer can't be sent in two pieces.
const PIPE_SIZE: usize = 1 << 20;

/// A thread's pipe.
enum Way {
    Unknown,
    Pipe(Pipe),
    /// None is to be had.
    Plain,
}

thread_local! {
static WAY: RefCell<Way> = const { RefCell::new(Way::Unknown) };}

/// Answers a read.
pub(super) fn reply_read(union: &Union, node: &Arc<Node>, (offset, size): (u64, u32), reply: Reply) {
    if size < SPLICE_FROM || !reply.takes_pipes() || !union.fits_pipes(node) {
        return reply_copied(union, node, (offset, size), reply);
    }
    WAY.with_borrow_mut(|way| {
        if matches!(way, Way::Unknown) {
            *way = Pipe::new(PIPE_SIZE).map_or(Way::Plain, Way::Pipe);
        }
        let Way::Pipe(pipe) = way else { return reply_copied(union, node, (offset, size), reply) };
        if !pipe.takes(size as usize) {
            return reply_copied(union, node, (offset, size), reply);
        }
        let filled = union.read_to_pipe(node, (offset, size), pipe, |len| reply.splice_header(len));
        let (reply, is_told) = match filled {
            Ok(Some(len)) => match reply.splice(pipe.out(), len) {
                Ok(()) => return,
                Err(reply) => (reply, true),
            },
            Ok(None) | Err(_) => (reply, false),
        };
        // What the pipe holds is of no use; the next large read makes a new one.
        *way = Way::Unknown;
        if is_told {
            return reply.fill(size, |into| union.read_again(node, offset, into).map_err(|e| errno(&e)));
        }
        reply_copied(union, node, (offset, size), reply);
    });
}

/// Answers a read that changes no access time.
pub(super) fn reply_unnoticed(union: &Union, node: &Arc<Node>, (offset, size): (u64, u32), reply: Reply) {
    reply.fill(size, |into| union.read_unnoticed(node, offset, into).map_err(|e| errno(&e)));
}

fn reply_copied(union: &Union, node: &Arc<Node>, (offset, size): (u64, u32), reply: Reply) {
    reply.fill(size, |into| union.read(node, offset, into).map_err(|e| errno(&e)));
}
