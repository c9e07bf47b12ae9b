//! Panics that are an error of what was asked for, and no more: those of libraries that read what anybody may have made.
//!
//! A panic ends a mount ([`on_panic`]), since what is wrong may be anything. A decoder is another matter: it has a block and a
//! buffer, and what comes of damaged data is one file that can't be read. What the decoder itself reads from is this program's again, and a
//! panic there is what it is anywhere ([`uncontained`]).

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::Once;

use parking_lot::RwLock;

thread_local! {
    /// In how many calls of [`contained`] this thread is, since the last one of [`uncontained`].
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Where the last panic was that one of them contained.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic that goes on through those that contain others.
struct Uncontained(Box<dyn Any + Send>);

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

/// What is called at a panic that isn't contained; `None`: what was called before.
static HOOK: RwLock<Option<Hook>> = RwLock::new(None);

/// Has a function called, from now on, at each panic that isn't contained.
pub fn on_panic(hook: impl Fn(&PanicHookInfo<'_>) + Send + Sync + 'static) {
    keep_contained_ones_quiet();
    *HOOK.write() = Some(Box::new(hook));
}

/// Runs what may panic and has nothing that others see but what it returns: after a panic, whatever it was lent is to be thrown away.
///
/// # Errors
/// That it has panicked; where, and what it said.
pub fn contained<T>(run: impl FnOnce() -> T) -> io::Result<T> {
    keep_contained_ones_quiet();
    DEPTH.set(DEPTH.get() + 1);
    let ran = catch_unwind(AssertUnwindSafe(run));
    let above = DEPTH.get() - 1;
    DEPTH.set(above);
    ran.map_err(|panic| {
        let panic = match panic.downcast::<Uncontained>() {
            Ok(own) if above == 0 => resume_unwind(own.0),
            Ok(own) => resume_unwind(own),
            Err(panic) => panic,
        };
        let place = PLACE.take().unwrap_or_else(|| "an unknown place".to_owned());
        io::Error::other(format!("a panic at {place}: {}", said(&*panic)))
    })
}

/// Runs what is called back by what [`contained`] runs, and isn't to be contained: its panic is told as every other is, and goes on through
/// all of them.
pub fn uncontained<T>(run: impl FnOnce() -> T) -> T {
    let depth = DEPTH.replace(0);
    let ran = catch_unwind(AssertUnwindSafe(run));
    DEPTH.set(depth);
    match ran {
        Ok(done) => done,
        Err(panic) if depth == 0 => resume_unwind(panic),
        Err(panic) => resume_unwind(Box::new(Uncontained(panic))),
    }
}

/// Returns what a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it said nothing")
}

/// Puts a hook before the one that there is, once.
fn keep_contained_ones_quiet() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if DEPTH.get() > 0 {
                PLACE.set(panic.location().map(ToString::to_string));
                return;
            }
            match &*HOOK.read() {
                Some(hook) => hook(panic),
                None => before(panic),
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_tells_of_it() {
        assert_eq!(contained(|| 5).unwrap(), 5);
        let cases: [(fn(), &str); 3] = [
            (|| panic!("no block"), "no block"),
            (|| panic!("no block {}", std::process::id()), &format!("no block {}", std::process::id())),
            (|| std::panic::panic_any(3), "it said nothing"),
        ];
        for (run, said) in cases {
            let error = contained(run).unwrap_err().to_string();
            assert!(error.contains("src/sys/panics.rs:") && error.ends_with(said), "{error}");
        }
        // One within another ends the inner one.
        let outer = contained(|| contained(|| panic!("inner")).map_or(1, |()| 2));
        assert_eq!((outer.unwrap(), DEPTH.get()), (1, 0));
    }

    #[test]
    fn a_panic_that_is_called_back_goes_on_through_all_that_contain_others() {
        assert_eq!(contained(|| uncontained(|| 5)).unwrap(), 5);
        let cases: [fn(); 4] = [
            || uncontained(|| panic!("own")),
            || drop(contained(|| uncontained(|| panic!("own")))),
            || drop(contained(|| contained(|| uncontained(|| panic!("own"))))),
            || drop(contained(|| uncontained(|| contained(|| uncontained(|| panic!("own")))))),
        ];
        for (at, run) in cases.into_iter().enumerate() {
            let panic = catch_unwind(run).unwrap_err();
            assert_eq!((said(&*panic), DEPTH.get()), ("own", 0), "{at}");
        }
        // What is contained within it stays so, and so does what comes after it.
        let inner = contained(|| uncontained(|| contained(|| panic!("inner")).unwrap_err().to_string()));
        assert!(inner.unwrap().ends_with("inner"));
        let after = contained(|| {
            uncontained(|| ());
            panic!("after")
        });
        assert!(after.is_err_and(|error: io::Error| error.to_string().ends_with("after")));
    }
}
