//! Changes: where they run, and what happens when the disk is full.
//!
//! A change runs on the thread that read its request, and moves to a thread of its own where it would keep that one for
//! long: when it copies much, or when it waits for room (see [`crate::union::nodes::deferred_free`]). The room comes by FORGETs, which
//! the session's threads read, so none of them may wait for it.

use std::borrow::Borrow;
use std::sync::Arc;

use super::session::interrupts;
use crate::error::Result;
use crate::union::Union;

/// Works on a thread of its own, so that no other request waits for it. Where there is none to be had, the reply goes
/// with `work` and tells an error. Who waits for it may be interrupted.
fn aside(work: impl FnOnce() + Send + 'static) {
    let interruptible = interrupts::take_over();
    super::dispatch::start_thread(move || interruptible.during(work));
}

/// Makes a change with an argument that the request holds, and answers. What the change holds of the union is let go
/// before the answer: the caller's next request may want it gone.
pub(super) fn change<A, T>(
    union: &Arc<Union>,
    argument: &A,
    long: bool,
    change: impl Fn(&Union, &A) -> Result<T> + Send + 'static,
    answer: impl FnOnce(Result<T>) + Send + 'static,
) where
    A: ToOwned<Owned: Send + 'static> + ?Sized,
    T: 'static,
{
    if long {
        let (union, argument) = (union.clone(), argument.to_owned());
        return aside(move || answer(union.change_with_room(|| change(&union, argument.borrow()))));
    }
    match union.try_change(|| change(union, argument)) {
        Ok(done) => answer(done),
        Err(full) => {
            let (union, argument) = (union.clone(), argument.to_owned());
            aside(move || answer(union.change_again(full, || change(&union, argument.borrow()))));
        }
    }
}
