//! The daemon answers for itself: a panic is a bug, and systemd restarts what aborted. What is left of it holds nobody's secrets.
//!
//! The one exception are panics of the library that parses grammars: what it is given comes from clients, so one of those
//! ends a request and nothing else ([`andon_engine::grammar::panics_are_errors`]).

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether what a panic says may be told though it may quote what it was about.
static TELLS_TEXT: AtomicBool = AtomicBool::new(false);

/// From now on a panic of any thread ends the process once it has been reported.
pub fn end_the_process() {
    panic::set_hook(Box::new(move |info| {
        if andon_engine::grammar::panics_are_errors() {
            return;
        }
        report(info);
        std::process::abort();
    }));
}

/// From now on a crash leaves no core dump, which would hold prompts, passwords and keys, and programs of the same user can neither
/// trace the process nor read its memory. Root can.
///
/// # Errors
/// What the system says.
pub fn leave_no_core() -> std::io::Result<()> {
    nix::sys::prctl::set_dumpable(false).map_err(std::io::Error::from)
}

/// Has panics told with all they say, which may be text of a prompt or an answer.
pub fn tell_text(tells: bool) {
    TELLS_TEXT.store(tells, Ordering::Relaxed);
}

/// Says where it was. What a panic says in words of the program is told; what was put together may quote a text that was
/// being worked on ("byte index 7 is not a character boundary of …").
fn report(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let location = info.location().map(ToString::to_string);
    let location = location.as_deref().unwrap_or("an unknown place");
    let why = if TELLS_TEXT.load(Ordering::Relaxed) {
        info.payload_as_str()
    } else {
        info.payload().downcast_ref::<&'static str>().copied()
    };
    let why = why.unwrap_or("the text is left out");
    if tracing::dispatcher::has_been_set() {
        crate::event!(Panicked, thread, location, why, "a bug ends the daemon");
    } else {
        eprintln!("andond: a bug ends the daemon: thread {thread}, {location}: {why}");
    }
    // Names of functions and nothing else, if RUST_BACKTRACE asks for it.
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        eprintln!("{trace}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus, Stdio};

    /// Names a case in the environment of a process that is to go through it.
    const CASE: &str = "ANDON_TEST_PANIC";
    const SIGABRT: i32 = 6;

    fn went(case: &str) -> (ExitStatus, String) {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([
            "--nocapture",
            "--exact",
            "panics::tests::a_panic_ends_the_process_unless_a_grammar_is_at_fault",
        ]);
        command
            .env(CASE, case)
            .env_remove("RUST_BACKTRACE")
            .stdout(Stdio::null());
        let output = command.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status, said)
    }

    #[test]
    fn a_panic_ends_the_process_unless_a_grammar_is_at_fault() {
        let Ok(case) = std::env::var(CASE) else {
            assert!(went("grammar").0.success());
            for (case, heard) in [("thread", false), ("text", true)] {
                let (status, said) = went(case);
                assert_eq!(status.signal(), Some(SIGABRT), "{said}");
                assert!(said.contains("src/panics.rs:"), "{said}");
                assert_eq!(said.contains("a prompt"), heard, "{case}: {said}");
            }
            let (_, said) = went("literal");
            assert!(said.contains("no text of anybody"), "{said}");
            return;
        };
        super::end_the_process();
        if case == "grammar" {
            let failed = andon_engine::grammar::guarded(|| panic!("of a grammar"));
            assert!(failed.is_err());
        } else {
            super::tell_text(case == "text");
            let literal = case == "literal";
            // The harness would see one of this thread.
            let panics = move || {
                let prompt = "a prompt".to_owned();
                assert!(!literal, "no text of anybody");
                panic!("in {prompt}");
            };
            let joined = std::thread::spawn(panics).join();
            assert!(joined.is_err());
        }
    }
}
