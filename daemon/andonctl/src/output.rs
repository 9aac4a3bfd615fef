//! Standard output, and the making harmless of what is shown on a terminal.
//!
//! Invariant: what a model or a daemon wrote reaches a terminal without control characters other
//! than line feed and tab, so that no answer can move the cursor, set the title or type keys. Into
//! a pipe or a file it goes as it is.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use crate::failure::Failure;

/// Standard output.
pub(crate) struct Output {
    stdout: io::Stdout,
    terminal: bool,
    /// Whether the last byte written ended a line, or nothing was written.
    line_ended: bool,
}

impl Output {
    pub(crate) fn new() -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self {
            stdout,
            terminal,
            line_ended: true,
        }
    }

    /// Whether a person is looking.
    pub(crate) const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes text and shows it at once.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        let shown = if self.terminal {
            printable(text)
        } else {
            Cow::Borrowed(text)
        };
        self.bytes(shown.as_bytes())
    }

    /// Ends the line, if one was begun.
    pub(crate) fn end_line(&mut self) -> Result<(), Failure> {
        if self.line_ended {
            Ok(())
        } else {
            self.bytes(b"\n")
        }
    }

    /// Clears the screen of a terminal; does nothing elsewhere.
    pub(crate) fn clear(&mut self) -> Result<(), Failure> {
        if self.terminal {
            self.bytes(b"\x1b[H\x1b[2J")
        } else {
            Ok(())
        }
    }

    /// Writes bytes of our own making as they are, and shows them at once.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Some(last) = bytes.last() else {
            return Ok(());
        };
        self.line_ended = *last == b'\n';
        let mut lock = self.stdout.lock();
        lock.write_all(bytes)
            .and_then(|()| lock.flush())
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Failure::OutputClosed,
                _ => Failure::Output(error),
            })
    }
}

/// `text` with every control character but line feed and tab replaced by U+FFFD.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(harmful) {
        Cow::Owned(text.replace(harmful, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn terminals_get_no_control_characters() {
        assert_eq!(printable("a\tb\n"), "a\tb\n");
        assert_eq!(
            printable("\x1b]0;title\x07\u{9b}1m\r"),
            "\u{fffd}]0;title\u{fffd}\u{fffd}1m\u{fffd}"
        );
    }
}
