//! Node ids: what the kernel knows a node of the union by.
//!
//! A node has its number for an id, which is also what programs see as `st_ino`. With `-o passthrough=lower` it may get a
//! second one. The kernel can't exchange the real file that an open is passed through to, and lets nobody open the same
//! node in another way meanwhile. So when a lower's file is copied up while it is passed through, who opens it next is
//! told `ESTALE`; the kernel then looks the name up again, and gets the same node by its second id. To the kernel that is
//! another inode, with the same `st_ino`, which is passed through to the copy. The first id stays what those have who opened
//! it before:
//!
//! | | by the first id | by the second |
//! |---|---|---|
//! | known to | who had it open, and names that weren't opened since | who looked it up since |
//! | read, mapped | the lower's file, by opens from before | the copy |
//! | everything else | the node | the node |
//! | attributes | asked for each time | asked for each time |
//!
//! A name is never taken from the kernel for that: it would detach what is mounted there. One that is listed is listed
//! without its node, for the same reason. What is looked up anew has the second id.
//!
//! An open that comes again, by the same thread and without a lookup between, has no name that could lead to the second
//! id (`/proc/self/fd`). While opens from before are there it is answered for direct I/O, which reads the copy by
//! requests; the kernel opens the lower's file beside, as it wants one real file for all opens of an id, and that is what
//! such an open maps. So it is refused to whoever wants to write. When they have gone, it is passed through to the copy.
//!
//! Both ids count as lookups of the one node, and the second is forgotten with it.

use std::collections::VecDeque;

use fuser::INodeNo;
use parking_lot::Mutex;

use crate::union::nodes::region::SPARE;
use crate::union::view::attr::Attr;

/// Returns the number of the union's node that has this id.
pub(super) fn number(id: INodeNo) -> u64 {
    id.0 & !SPARE
}

/// Tells whether it is the second id of its node.
pub(super) fn is_second(id: INodeNo) -> bool {
    id.0 & SPARE != 0
}

/// Returns the other id of the node.
pub(super) fn other(id: INodeNo) -> INodeNo {
    INodeNo(id.0 ^ SPARE)
}

/// Returns the id that the kernel is told for the node with these attributes.
pub(super) fn told(attr: &Attr) -> INodeNo {
    INodeNo(if attr.second_id { attr.ino | SPARE } else { attr.ino })
}

/// So many threads are remembered that may come again.
const MOST: usize = 256;

/// Who was told `ESTALE`, and may come again without a name: threads, with the numbers of nodes.
#[derive(Debug, Default)]
pub(super) struct SentAway(Mutex<VecDeque<(u32, u64)>>);

impl SentAway {
    /// Notes that a thread was sent away from a node. 0 is no thread, but all those whose numbers can't be told here, of other pid
    /// namespaces: for one that was sent away another, which was not, would be taken to come again, and map what is older.
    pub(super) fn note(&self, thread: u32, number: u64) {
        if thread == 0 {
            return;
        }
        let mut sent = self.0.lock();
        if sent.len() == MOST {
            sent.pop_front();
        }
        sent.push_back((thread, number));
    }

    /// Tells whether the thread was sent away from that node, and forgets it: it has come again, or has found a name.
    pub(super) fn came_again(&self, thread: u32, number: u64) -> bool {
        let mut sent = self.0.lock();
        let at = sent.iter().position(|one| *one == (thread, number));
        at.is_some_and(|at| sent.remove(at).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ids_are_of_one_node() {
        let second = other(INodeNo(7));
        assert!(is_second(second) && !is_second(INodeNo(7)));
        assert_eq!((number(second), number(INodeNo(7)), other(second)), (7, 7, INodeNo(7)));
    }

    #[test]
    fn who_was_sent_away_comes_again_once() {
        let sent = SentAway::default();
        assert!(!sent.came_again(1, 7));
        sent.note(1, 7);
        assert!(!sent.came_again(2, 7) && !sent.came_again(1, 8));
        assert!(sent.came_again(1, 7) && !sent.came_again(1, 7));
        (1..=1 + MOST as u32).for_each(|thread| sent.note(thread, 7));
        assert!(!sent.came_again(1, 7), "the oldest is let go");
        assert!(sent.came_again(2, 7) && sent.came_again(1 + MOST as u32, 7));
        sent.note(0, 7);
        assert!(!sent.came_again(0, 7), "which of them came isn't known");
    }
}
