//! Entries that are not what the kernel knows them as: somebody has changed a layer behind the mount's back.
//!
//! The program that met one is told `ESTALE`, and the kernel is told to forget the name, so that the next looks it up
//! again. That is done by a thread of its own, for it may have to wait for a request on the same directory. Who owns a
//! layer can make as many of them as he likes: what doesn't fit into a short queue is left out, and found again.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use fuser::INodeNo;

use super::dispatch::start_thread;
use super::session::Notifier;
use crate::union::Union;

/// So many wait at most.
const QUEUE: usize = 256;

/// A directory's node and a name in it.
type Entry = (u64, Vec<u8>);

/// Tells the kernel of the union's stale entries, once `notifier` is there.
pub(super) fn watch(union: &Union, notifier: Arc<OnceLock<Notifier>>) {
    let thread: OnceLock<SyncSender<Entry>> = OnceLock::new();
    union.on_stale(Box::new(move |parent, name| {
        let queue = thread.get_or_init(|| {
            let (queue, entries) = sync_channel(QUEUE);
            let notifier = notifier.clone();
            start_thread(move || forget(&notifier, &entries));
            queue
        });
        // Full: it is met again.
        queue.try_send((parent, name.to_vec())).unwrap_or_default();
    }));
}

/// Runs until the union is gone.
fn forget(notifier: &OnceLock<Notifier>, entries: &Receiver<Entry>) {
    for (parent, name) in entries {
        let told = notifier.get().map(|kernel| kernel.inval_entry(INodeNo(parent), &name));
        if let Some(Err(error)) = told {
            // It doesn't know the name any more.
            log::debug!("a stale entry was not forgotten: {error}");
        }
    }
}
