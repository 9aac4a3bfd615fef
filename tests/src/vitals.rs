//! What a process holds: memory, descriptors, threads, as the kernel counts them.

use std::fs;
use std::io;

/// The figures of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vitals {
    /// Bytes in memory, mapped files included.
    pub resident: u64,
    /// Bytes in memory that come from no file: heap, stacks, caches.
    pub anonymous: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Vitals {
    /// Those of the process with this number.
    ///
    /// # Errors
    /// When there is no such process, or it is somebody else's.
    pub fn of(pid: u32) -> io::Result<Vitals> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Vitals {
            resident: 1024 * number(&memory, "Rss:")?,
            anonymous: 1024 * number(&memory, "Anonymous:")?,
            descriptors: u64::try_from(descriptors).map_err(io::Error::other)?,
            threads: number(&status, "Threads:")?,
        })
    }
}

/// The number behind a name at the beginning of a line.
fn number(text: &str, name: &str) -> io::Result<u64> {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .ok_or_else(|| io::Error::other(format!("the kernel does not say {name}")))
}

#[cfg(test)]
mod tests {
    use super::Vitals;

    #[test]
    fn what_this_process_holds_is_counted() {
        let before = Vitals::of(std::process::id()).unwrap();
        let _files: Vec<std::fs::File> = (0..10)
            .map(|_| std::fs::File::open("/proc/self/status").unwrap())
            .collect();
        let after = Vitals::of(std::process::id()).unwrap();
        assert!(after.descriptors >= 10 && before.threads >= 1);
        assert!(after.anonymous > 0 && after.resident >= after.anonymous);
    }
}
