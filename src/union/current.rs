//! The union that a mount shows now: its layers may be opened anew while it is mounted.

use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use crate::union::Union;

/// Leads to the union of a mount, without keeping its layers open.
#[derive(Debug)]
pub struct Current(RwLock<Weak<Union>>);

impl Current {
    /// Leads to this one.
    pub fn new(union: &Arc<Union>) -> Arc<Current> {
        Arc::new(Current(RwLock::new(Arc::downgrade(union))))
    }

    /// Returns it; `None` when the mount has ended.
    pub fn get(&self) -> Option<Arc<Union>> {
        self.0.read().upgrade()
    }

    /// Leads to another one from now on.
    pub fn set(&self, union: &Arc<Union>) {
        *self.0.write() = Arc::downgrade(union);
    }
}
