//! The union that a mount shows now: its layers may be opened anew while it is mounted.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::union::{OpenLayer, Union};

/// How long whoever asks waits while the layers are exchanged: more than that takes, and less than whoever asks has patience.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nobody gets hold of the union.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// There is none any more.
    #[error("the mount has ended")]
    Ended,
    /// The layers are being exchanged.
    #[error("its layers are being exchanged; try again")]
    Busy,
}

/// Where a layer is that is a directory of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlace {
    /// From the root and without links, when it was opened.
    pub path: PathBuf,
    /// Device and inode number.
    pub id: (u64, u64),
}

impl Union {
    /// Returns where the layers are that are directories of the host, the topmost first.
    pub fn layer_places(&self) -> Vec<LayerPlace> {
        let of_host = self.layers.iter().filter(|layer| layer.root.tree().is_none());
        let place = |layer: &OpenLayer| LayerPlace { path: layer.place(), id: layer.root.id };
        of_host.map(place).collect()
    }
}

/// Leads to the union of a mount, without keeping its layers open.
#[derive(Debug)]
pub struct Current {
    state: Mutex<State>,
    shown: Condvar,
}

#[derive(Debug)]
struct State {
    union: Weak<Union>,
    /// The layers are about to be opened anew: nobody gets hold of them.
    is_hidden: bool,
}

impl Current {
    /// Leads to this one.
    pub fn new(union: &Arc<Union>) -> Arc<Current> {
        let state = State { union: Arc::downgrade(union), is_hidden: false };
        Arc::new(Current { state: Mutex::new(state), shown: Condvar::new() })
    }

    /// Returns it. Waits a while where its layers are being exchanged.
    ///
    /// # Errors
    /// See [`NotNow`].
    pub fn get(&self) -> Result<Arc<Union>, NotNow> {
        let end = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        while state.is_hidden {
            if self.shown.wait_until(&mut state, end).timed_out() {
                return Err(NotNow::Busy);
            }
        }
        state.union.upgrade().ok_or(NotNow::Ended)
    }

    /// Lets nobody get hold of it until it is shown again.
    pub fn hide(&self) {
        self.state.lock().is_hidden = true;
    }

    /// Leads to what it led to before it was hidden, or to another one from now on.
    pub fn show(&self, union: Option<&Arc<Union>>) {
        let mut state = self.state.lock();
        if let Some(union) = union {
            state.union = Arc::downgrade(union);
        }
        state.is_hidden = false;
        self.shown.notify_all();
    }
}
