//! How much memory there is for this process, and giving some of it back.

use std::fs;
use std::mem::MaybeUninit;
use std::path::{Component, Path, PathBuf};

/// Where the system shows its control groups.
const GROUPS: &str = "/sys/fs/cgroup";

/// Groups within groups that are looked at; the system itself allows few.
const DEPTH_MAX: usize = 64;

/// The files with a control group's limits; beyond the first the group is held back until it has less, and weights are then read
/// from the disk again and again.
const LIMITS: [&str; 2] = ["memory.high", "memory.max"];

/// Bytes of memory that this process may have, if it were alone: the machine's, or what its control group leaves it before it
/// is held back or ended.
/// `None` if the system does not say.
#[must_use]
pub fn memory_bytes() -> Option<u64> {
    let machine = machine_bytes();
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| group_bytes(Path::new(GROUPS), &text));
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// Numbers of which every pattern of bits is one.
pub trait Number: sealed::Sealed + Copy {}

impl Number for i8 {}
impl Number for u16 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for i8 {}
    impl Sealed for u16 {}
}

/// Gives the system's whole pages within `numbers` back to the system: they take no memory until they are written again. What
/// the numbers there are afterwards is not said; those around them are what they were. Advice only.
pub fn give_back<T: Number>(numbers: &mut [T]) {
    // SAFETY: the call has no conditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Some(page) = usize::try_from(page)
        .ok()
        .filter(|page| page.is_power_of_two())
    else {
        return;
    };
    let bytes = size_of_val(numbers);
    let start = numbers.as_mut_ptr().cast::<u8>();
    let skipped = start.addr().wrapping_neg() % page;
    let whole = bytes.saturating_sub(skipped) / page * page;
    if whole == 0 {
        return;
    }
    // SAFETY: the pages lie within the slice, so nobody else has them; whatever the system puts in their place when they are
    // read again (zeros in memory of the process's own, what a file has in a map of one) are numbers.
    unsafe { libc::madvise(start.add(skipped).cast(), whole, libc::MADV_DONTNEED) };
}

fn machine_bytes() -> Option<u64> {
    let mut facts = MaybeUninit::<libc::sysinfo>::uninit();
    // SAFETY: there is room for the answer.
    if unsafe { libc::sysinfo(facts.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it wrote all of it.
    let facts = unsafe { facts.assume_init() };
    // The types of the fields differ between platforms.
    #[allow(clippy::useless_conversion)]
    let (units, bytes) = (u64::from(facts.totalram), u64::from(facts.mem_unit.max(1)));
    Some(units.saturating_mul(bytes))
}

/// The least that a group of version 2 and those around it leave, where `text` says which group that is.
fn group_bytes(root: &Path, text: &str) -> Option<u64> {
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let names = Path::new(group).components();
    // Groups outside of what this process may see are shown as a way up.
    let names: Vec<Component<'_>> = names
        .take_while(|name| matches!(name, Component::Normal(_)))
        .take(DEPTH_MAX)
        .collect();
    (0..=names.len())
        .flat_map(|depth| {
            let mut folder: PathBuf = root.to_path_buf();
            folder.extend(&names[..depth]);
            LIMITS.map(|name| {
                let limit = fs::read_to_string(folder.join(name)).ok()?;
                limit.trim().parse::<u64>().ok()
            })
        })
        .flatten()
        .min()
}

#[cfg(test)]
mod tests {
    use super::{give_back, group_bytes, memory_bytes};
    use std::fs;

    #[test]
    fn the_machine_has_memory() {
        assert!(memory_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn what_is_given_back_is_whole_pages_and_can_be_written_again() {
        let mut numbers = vec![7u16; 1 << 16];
        for range in [0..0, 5..6, 3..(1 << 16) - 3, 0..1 << 16] {
            give_back(&mut numbers[range]);
            assert!(numbers.iter().all(|&number| number == 0 || number == 7));
            numbers.fill(7);
            assert!(numbers.iter().all(|&number| number == 7));
        }
        give_back(&mut numbers[1000..1 << 15]);
        assert!(numbers[..1000].iter().all(|&number| number == 7));
        assert!(numbers[1 << 15..].iter().all(|&number| number == 7));
        assert!(numbers.contains(&0), "some whole pages were");
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let limit = |folder: &str, name: &str, text: &str| {
            let folder = root.path().join(folder);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join(name), text).expect("writable");
        };
        limit("a.slice", "memory.max", "5000\n");
        limit("a.slice/b", "memory.max", "max\n");
        limit("a.slice/b/c", "memory.max", "7000\n");
        limit("a.slice/b/c/d", "memory.max", "7000\n");
        limit("a.slice/b/c/d", "memory.high", "4000\n");
        limit("a.slice/b/c", "memory.high", "max\n");
        let of = |text: &str| group_bytes(root.path(), text);
        assert_eq!(of("0::/a.slice/b/c\n"), Some(5000));
        assert_eq!(of("0::/a.slice/b/c/d\n"), Some(4000), "held back before");
        assert_eq!(of("1:cpu:/x\n0::/a.slice/b\n"), Some(5000));
        assert_eq!(of("0::/\n"), None, "no limit at all");
        assert_eq!(of("0::/../a.slice\n"), None, "outside");
        assert_eq!(of("4:memory:/a.slice\n"), None, "version 1");
    }
}
