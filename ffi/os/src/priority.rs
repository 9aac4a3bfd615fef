//! How threads rank when there are more of them than processors.

use std::io;

/// The lowest rank: about a seventieth of an ordinary thread's share of a processor that both want.
const LOWEST: libc::c_int = 19;

/// Gives the calling thread the lowest rank, for good: it works where others leave time. Threads that it starts
/// inherit this.
///
/// # Errors
/// If the system does not let it, for instance because a filter of system calls bars it.
pub fn give_way() -> io::Result<()> {
    // SAFETY: the call takes numbers only. On Linux the rank is a thread's own, and 0 stands for the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    /// The calling thread's rank, as the system tells it.
    fn rank() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("a thread's facts");
        // The name in brackets may hold anything; the rank is the 17th field after it.
        let fields = stat.rsplit(')').next().expect("fields");
        let rank = fields.split_ascii_whitespace().nth(16);
        rank.expect("a rank").parse().expect("a number")
    }

    #[test]
    fn one_thread_gives_way_and_the_others_do_not() {
        let before = rank();
        let inside = thread::spawn(|| {
            super::give_way().expect("a lower rank");
            rank()
        });
        assert_eq!(inside.join().expect("a thread"), super::LOWEST);
        assert_eq!(rank(), before);
    }
}
