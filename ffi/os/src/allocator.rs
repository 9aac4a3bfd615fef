//! How the system's allocator keeps what was freed.

/// Bytes from which on an allocation is a map of its own, and which freed memory may have at the end of a heap before the
/// system gets it back. Long prompts, bodies and grammars are larger than that, what is taken for every token smaller.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 << 10;

/// Heaps that threads share. Few threads allocate at the same time, and each heap has holes of its own.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: libc::c_int = 2;

/// Has the allocator give memory back instead of keeping it for the next time: for a program that runs for years beside
/// others. By itself glibc takes it that whoever freed much once will want as much again, and has up to eight heaps for each
/// processor. To be called before other threads are started. Does nothing where the allocator is another.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, LARGE),
        (libc::M_TRIM_THRESHOLD, LARGE),
        (libc::M_ARENA_MAX, HEAPS_MAX),
    ] {
        // SAFETY: the call takes numbers only. That it takes none of these changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_large_is_given_back_when_it_is_freed() {
        use std::hint::black_box;

        const EACH: usize = 1 << 20;
        super::keep_little();
        let resident = || -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("the process's memory");
            let pages = statm.split_ascii_whitespace().nth(1).expect("a field");
            pages.parse::<usize>().expect("a number") * 4096
        };
        // By itself the allocator would have learnt from the first ones to keep the later ones.
        let take = || -> Vec<Vec<u8>> { (0..32).map(|_| black_box(vec![1; EACH])).collect() };
        drop(take());
        let taken = take();
        // Something small behind them, which would keep a heap from shrinking.
        let small = black_box(vec![1u8; 100]);
        let before = resident();
        drop(taken);
        assert!(before.saturating_sub(resident()) > 16 * EACH);
        drop(small);
    }
}
