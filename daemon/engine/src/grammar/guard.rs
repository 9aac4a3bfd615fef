//! Panics of the library that parses grammars become errors: what a client sends must not end the daemon.
//!
//! The library does so itself in nearly all of its calls; [`guarded`] is for the others. Both need panics that unwind. A
//! process that is to end on any other panic says so in a hook, which asks [`panics_are_errors`] and lets those be; the
//! library's own hook asks no other about its own.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

// With panics that abort, one in the library would end everything.
const _: () = assert!(
    cfg!(panic = "unwind"),
    "constrained answers need panics that unwind"
);

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Whether a panic on this thread now would become an error of a constraint.
#[must_use]
pub fn panics_are_errors() -> bool {
    DEPTH.with(Cell::get) > 0
}

/// Does `work`, and makes a panic in it an error. What it works on is of no use after one.
///
/// # Errors
/// That it failed; the panic's own words may quote what was given.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    DEPTH.with(|depth| depth.set(depth.get() + 1));
    let done = catch_unwind(AssertUnwindSafe(work));
    DEPTH.with(|depth| depth.set(depth.get() - 1));
    done.map_err(|_| "its parser failed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_where_it_is_guarded() {
        assert!(!panics_are_errors());
        let outcome = guarded(|| {
            assert!(panics_are_errors());
            let nested = guarded(|| panic!("inner"));
            assert!(nested.is_err() && panics_are_errors());
            7
        });
        assert_eq!(outcome, Ok(7));
        assert!(guarded(|| panic!("outer")).is_err() && !panics_are_errors());
    }
}
