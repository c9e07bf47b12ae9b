//! Telling how far long copies are.
//!
//! Whoever starts a copy says to whom its thread tells it ([`telling`]); what copies says where it is ([`at`]), after each piece.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

/// Hears how many bytes of a file are done.
type Hears = Rc<dyn Fn(u64)>;

thread_local! {
    static CURRENT: RefCell<Option<Hears>> = const { RefCell::new(None) };
}

/// As long as this lives, somebody hears how far its thread is.
pub struct Telling {
    before: Option<Hears>,
    /// It belongs to its thread.
    of_thread: PhantomData<Hears>,
}

/// Tells `hears` how far this thread's copies are, until what is returned is dropped.
pub fn telling(hears: impl Fn(u64) + 'static) -> Telling {
    Telling { before: CURRENT.replace(Some(Rc::new(hears))), of_thread: PhantomData }
}

impl Drop for Telling {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

/// Notes that the copy on this thread has come to a byte of its file.
pub fn at(offset: u64) {
    let hears = CURRENT.with_borrow(Clone::clone);
    if let Some(hears) = hears {
        hears(offset);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn who_began_last_hears_it_until_it_has_ended() {
        let (outer, inner) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let hears = |cell: &Rc<Cell<u64>>| {
            let cell = cell.clone();
            move |offset| cell.set(offset)
        };
        at(1);
        let telling_outer = telling(hears(&outer));
        at(2);
        {
            let _telling = telling(hears(&inner));
            at(3);
        }
        at(4);
        drop(telling_outer);
        at(5);
        assert_eq!((outer.get(), inner.get()), (4, 3));
    }
}
