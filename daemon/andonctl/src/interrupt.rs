//! Ctrl-C: the first ends the answer that is being made, the next, or one with no answer to end,
//! ends the program.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use andon_wire::{Cancel, ClientFrame, RequestId};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::connection::send;
use crate::failure::Failure;

/// Exit status of a program that a signal ended, as shells count it, less the signal's number.
const SIGNALLED: i32 = 128;

/// The request that Ctrl-C would cancel.
struct Target {
    stream: UnixStream,
    id: RequestId,
}

/// Turns Ctrl-C into cancels.
#[derive(Clone)]
pub(crate) struct Interrupts {
    target: Arc<Mutex<Option<Target>>>,
}

/// As long as it lives, Ctrl-C cancels its request.
pub(crate) struct Guard<'a>(&'a Interrupts);

impl Interrupts {
    /// Begins to listen for signals. Called once in a program's life.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let interrupts = Self {
            target: Arc::default(),
        };
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Failure::Output)?;
        let listener = interrupts.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                if signal != SIGINT || !listener.cancel() {
                    std::process::exit(SIGNALLED + signal);
                }
            }
        });
        Ok(interrupts)
    }

    /// Makes Ctrl-C cancel request `id`, which was sent on `stream`.
    pub(crate) fn cancels(&self, stream: UnixStream, id: RequestId) -> Guard<'_> {
        self.set(Some(Target { stream, id }));
        Guard(self)
    }

    /// Sends a cancel, if there is something to cancel that was not cancelled before.
    fn cancel(&self) -> bool {
        let target = self
            .target
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        target.is_some_and(|mut target| {
            send(
                &mut target.stream,
                &ClientFrame::Cancel(Cancel { id: target.id }),
            )
            .is_ok()
        })
    }

    fn set(&self, target: Option<Target>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}
