//! A mount goes on over another upper, or over other lowers: its layers are exchanged while programs use it.
//!
//! What is needed is prepared while requests are answered, and may fail without a trace. Then nobody asks for a moment, and the
//! upper is exchanged in one step. The union before it is there until the next one is ready: its locks and its workdir are handed
//! on and never let go, its layers are reached by the descriptors that it has. So nobody gets the upper in between, and whatever
//! has the layers' places by now doesn't matter.
//!
//! | module | what it knows |
//! |---|---|
//! | [`snapshot`] | the upper is frozen |
//! | [`rollback`] | the upper is thrown away |
//! | [`layers`] | a lower comes, or goes |
//! | `compared` | what of that which is known is something else over other lowers |
//! | `succession` | the union that takes over |
//! | `superseded` | directories that others stand for (`lower=checked`), which end there |

mod compared;
pub mod layers;
pub mod rollback;
pub mod snapshot;
mod succession;
mod superseded;

pub use succession::How;

use std::fmt;

/// Why a mount doesn't go on over another upper.
#[derive(Debug)]
pub enum Unchanged<E> {
    /// All is as it was.
    AsBefore(E),
    /// The upper was exchanged, and the layers can't be used: nothing can be answered any more.
    Lost(E),
}

impl<E: fmt::Display> fmt::Display for Unchanged<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unchanged::AsBefore(error) => error.fmt(f),
            Unchanged::Lost(error) => write!(
                f,
                "the upper was exchanged, and the layers can't be read again: {error}; unmount it, and mount again"
            ),
        }
    }
}
