//! What a process may still do: which files, ports and signals, by Landlock ([`files`]), and which calls of the system, by
//! seccomp ([`calls`]), for which code that is needed later is loaded before ([`names`]).
//!
//! Both are given up for good, and both bind only the calling thread and what it starts: a process calls them before it has a
//! second thread. What the running kernel cannot do is an error that says so ([`Unavailable`]) and leaves the thread as it was;
//! whether to go on without is the caller's affair. Which files and ports there are is the caller's affair too, which calls of
//! the system is not: the list is that of this daemon.

#[cfg(feature = "attempts")]
pub mod attempts;
pub mod calls;
pub mod files;
pub mod names;

/// Why the system does not confine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable(String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}
