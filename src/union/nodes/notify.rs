//! What the union changes by itself, told to whoever keeps its answers.
//!
//! The kernel keeps attributes until a request changes them, and it knows of those that it asked for: of the file that
//! is written, of the directory in which a name is made or goes. It doesn't know that a change made copies of all
//! directories above, that another name of a file became a link, or that a mark was set. So whatever changes an object
//! beyond what its request says calls [`Union::changed_by_itself`].
//!
//! It is called before the request is answered: an answer that is on its way with what was true before is then older
//! than what the kernel was told, and doesn't count.

use std::fmt;
use std::sync::OnceLock;

use crate::union::Union;
use crate::union::nodes::node::Node;

/// Who is told, by the number of the node.
type Listener = Box<dyn Fn(u64) + Send + Sync>;

/// Who keeps attributes.
#[derive(Default)]
pub(in crate::union) struct AttributeCache(OnceLock<Listener>);

impl fmt::Debug for AttributeCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AttributeCache").field(&self.0.get().is_some()).finish()
    }
}

impl Union {
    /// Tells `forget` from now on the number of each node whose attributes were changed by something other than a
    /// request for it. It is called with locks held, and must not call the union. Only the first is.
    pub fn tell_changes(&self, forget: impl Fn(u64) + Send + Sync + 'static) {
        if self.attribute_cache.0.set(Box::new(forget)).is_err() {
            log::debug!("changes are told already");
        }
    }

    /// Notes that the attributes of a node are no longer those that were told last, and no request says so.
    pub(in crate::union) fn changed_by_itself(&self, node: &Node) {
        if node.lookups() > 0
            && let Some(forget) = self.attribute_cache.0.get()
        {
            forget(node.ino);
        }
    }

    /// Does the same of the node of that number, if there is one.
    pub(in crate::union) fn changed_by_itself_if_known(&self, ino: u64) {
        if let Some(node) = self.table.get(ino) {
            self.changed_by_itself(&node);
        }
    }
}
