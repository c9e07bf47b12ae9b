//! A quota whose mount another process goes on with: what is counted is told, not counted anew.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::mark::Mark;
use super::taken::{Bounds, Taken};
use super::{Quota, Sums};
use crate::sys::descriptors::{Incoming, Outgoing};

/// What of a quota goes to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaState {
    bytes: u64,
    inodes: u64,
    /// Whether that is what is there; else the upper is to be counted anew.
    exact: bool,
    /// Whether it is another than at the start of the mount.
    changed: bool,
    /// Objects that are held, by number, and what they are counted as: of those without a name nobody else tells.
    held: Vec<(u64, u64)>,
    /// The note in the workdir, by the number of its descriptor.
    note: Option<u32>,
}

/// The same, with its descriptor, until the upper is there that it counts.
#[derive(Debug)]
pub(in crate::union) struct QuotaTaken {
    state: QuotaState,
    note: Option<OwnedFd>,
}

impl QuotaState {
    /// Returns it with its descriptor.
    ///
    /// # Errors
    /// That is missing.
    pub(in crate::union) fn open(self, fds: &mut Incoming) -> std::io::Result<QuotaTaken> {
        let note = self.note.map(|fd| fds.take(fd)).transpose()?;
        Ok(QuotaTaken { state: self, note })
    }
}

impl Quota {
    /// Returns what another process goes on with. Nobody changes the upper meanwhile.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(in crate::union) fn state(&self, fds: &mut Outgoing) -> std::io::Result<QuotaState> {
        let counted_as = |ino: &u64| self.objects.get(ino).map(|blocks| (*ino, *blocks));
        let mut held: Vec<_> = self.held.lock().keys().filter_map(counted_as).collect();
        held.sort_unstable();
        // At one moment: whoever counts anew may end between two looks.
        let (Taken { bytes, inodes }, exact) = {
            let sums = self.sums.lock();
            (sums.in_force(), !sums.recounting)
        };
        let note = self.mark.held()?.map(|note| fds.add(Arc::new(note)));
        Ok(QuotaState { bytes, inodes, exact, changed: self.has_changed(), held, note })
    }

    /// Goes on with what another process has counted. Nothing is changed by that.
    ///
    /// # Errors
    /// Those of looking at the root.
    pub(in crate::union) fn of_state(
        told: QuotaTaken,
        mark: Mark,
        root: BorrowedFd<'_>,
        bounds: Bounds,
    ) -> rustix::io::Result<Quota> {
        let QuotaState { bytes, inodes, exact, changed, held, .. } = told.state;
        mark.hold(told.note);
        let mut sums = Sums { counted: Taken { bytes, inodes }, recounting: !exact, ..Sums::default() };
        for (_, blocks) in &held {
            sums.met.add(Taken { bytes: blocks * super::SECTOR, inodes: 1 });
        }
        let quota = Quota::with(mark, root, bounds, sums)?;
        for (ino, blocks) in held {
            quota.objects.insert(ino, blocks);
        }
        quota.changed.store(changed || !exact, Ordering::Relaxed);
        Ok(quota)
    }
}
