//! The daemon answers for itself: a panic is a bug, and systemd restarts what aborted.
//!
//! The one exception are panics of the library that parses grammars: what it is given comes from clients, so one of those
//! ends a request and nothing else ([`andon_engine::grammar::panics_are_errors`]).

use std::panic;

/// From now on a panic of any thread ends the process once it has been reported.
pub fn end_the_process() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if andon_engine::grammar::panics_are_errors() {
            return;
        }
        report(info);
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus, Stdio};

    /// Names a case in the environment of a process that is to go through it.
    const CASE: &str = "ANDON_TEST_PANIC";
    const SIGABRT: i32 = 6;

    fn went(case: &str) -> ExitStatus {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([
            "--exact",
            "panics::tests::a_panic_ends_the_process_unless_a_grammar_is_at_fault",
        ]);
        command
            .env(CASE, case)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().expect("it runs")
    }

    #[test]
    fn a_panic_ends_the_process_unless_a_grammar_is_at_fault() {
        let Ok(case) = std::env::var(CASE) else {
            assert!(went("grammar").success());
            assert_eq!(went("thread").signal(), Some(SIGABRT));
            return;
        };
        super::end_the_process();
        if case == "grammar" {
            let failed = andon_engine::grammar::guarded(|| panic!("of a grammar"));
            assert!(failed.is_err());
        } else {
            // The harness would see one of this thread.
            let joined = std::thread::spawn(|| panic!("of a thread")).join();
            assert!(joined.is_err());
        }
    }
}
