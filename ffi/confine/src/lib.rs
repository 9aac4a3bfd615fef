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

/// Sees that this is the only thread, since others would not be bound. An emulator brings some of its own.
///
/// # Errors
/// There are several.
pub fn alone() -> Result<(), Unavailable> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(Unavailable(format!(
            "there are {threads} threads, of which it would bind one"
        )));
    }
    Ok(())
}
