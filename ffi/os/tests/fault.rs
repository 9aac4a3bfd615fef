//! Files that are truncated under their map: the process reads zeros and learns of it, and every SIGBUS that is not
//! ours ends where it would have ended without us.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};

use andon_os::Mapping;

/// A multiple of every page size in use.
const PIECE: usize = 1 << 16;
/// Names the case that a process started by [`in_a_process`] is for.
const CASE: &str = "ANDON_FAULT_CASE";

fn file(folder: &Path, pieces: usize) -> std::path::PathBuf {
    let path = folder.join("file");
    let mut file = File::create(&path).expect("created");
    file.write_all(&vec![7; pieces * PIECE]).expect("written");
    path
}

fn truncate(path: &Path, bytes: usize) {
    let file = File::options().write(true).open(path).expect("opened");
    file.set_len(bytes as u64).expect("truncated");
}

#[test]
fn what_was_cut_off_reads_as_zeros_and_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(folder.path(), 4);
    let (cut, whole) = (
        Mapping::open(&path).expect("a map"),
        Mapping::copy(&[7; 100]).expect("a map"),
    );
    assert!(!cut.is_damaged());
    truncate(&path, PIECE);
    assert!(cut.is_damaged(), "the file is shorter than the map");
    assert!(cut[..PIECE].iter().all(|&byte| byte == 7));
    assert!(cut[2 * PIECE..].iter().all(|&byte| byte == 0));
    assert!(cut[PIECE..].iter().all(|&byte| byte == 0));
    // The mark stays when the length is right again.
    truncate(&path, 4 * PIECE);
    assert!(cut.is_damaged());
    assert!(!whole.is_damaged());
    assert_eq!(&whole[..], [7; 100]);
    drop(cut);
    assert!(!Mapping::open(&path).expect("a map").is_damaged());
}

#[test]
fn what_is_read_ahead_ends_where_it_is_told_to_and_where_the_file_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(folder.path(), 64);
    let map = Mapping::open(&path).expect("a map");
    let pieces = |most: usize| {
        let asked = std::cell::Cell::new(0);
        map.read_ahead(&|| asked.replace(asked.get() + 1) < most);
        asked.get()
    };
    let all = pieces(usize::MAX);
    assert!(all > 1);
    assert_eq!(pieces(1), 2);
    // What cannot be read is no reason to go on, and none to fail: whoever needs it finds that out.
    truncate(&path, PIECE);
    assert_eq!(pieces(usize::MAX), 1);
    assert!(map.is_damaged());
}

#[test]
fn several_threads_survive_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(folder.path(), 64);
    let map = Mapping::open(&path).expect("a map");
    let start = std::sync::Barrier::new(9);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (map, start) = (&map, &start);
            scope.spawn(move || {
                start.wait();
                // From the end, so that each thread meets pages that nobody has replaced yet.
                for piece in (0..64).rev().filter(|piece| piece % 8 == thread) {
                    let sum: usize = map[piece * PIECE..][..PIECE]
                        .iter()
                        .map(|&b| usize::from(b))
                        .sum();
                    assert!(sum <= 7 * PIECE);
                }
            });
        }
        start.wait();
        truncate(&path, 0);
    });
    assert!(map.iter().all(|&byte| byte == 0));
    assert!(map.is_damaged());
}

#[test]
fn entries_are_used_again() {
    for _ in 0..10_000 {
        drop(Mapping::copy(b"x").expect("a map"));
    }
}

/// Runs the case in a process of its own and says how it ended.
fn in_a_process(case: &str) -> ExitStatus {
    let program = std::env::current_exe().expect("this program");
    Command::new(program)
        .args(["--exact", "child", "--test-threads", "1"])
        .env(CASE, case)
        .status()
        .expect("a process")
}

/// Not a test by itself: what [`in_a_process`] runs.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(folder.path(), 2);
    let handler: extern "C" fn(libc::c_int) = leave;
    match case.as_str() {
        // SAFETY: the handler only leaves the process.
        "plain" | "unread" => unsafe {
            libc::signal(libc::SIGBUS, handler as libc::sighandler_t);
        },
        // SAFETY: as above; the default action needs nothing.
        "default" | "sent" => unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        },
        "std" => {}
        other => panic!("no case {other}"),
    }
    let ours = Mapping::open(&path).expect("a map");
    if case == "sent" {
        // SAFETY: ends the process.
        unsafe { libc::raise(libc::SIGBUS) };
    }
    if case == "unread" {
        send_memory_failure(&ours[PIECE]);
        unreachable!("damaged: {}", ours.is_damaged());
    }
    let file = File::open(&path).expect("opened");
    // SAFETY: the truncation below is the point.
    let foreign = unsafe { memmap2::Mmap::map(&file).expect("a map") };
    truncate(&path, 0);
    assert_eq!(ours[PIECE], 0);
    assert!(ours.is_damaged());
    let byte = std::hint::black_box(&foreign)[PIECE];
    unreachable!("read {byte} where there is no page");
}

/// Sends what the kernel sends when memory at `address` failed that nobody reads.
fn send_memory_failure(address: &u8) {
    const BUS_MCEERR_AO: libc::c_int = 5;
    // SAFETY: zeros are a `siginfo_t`; the address is the first field after three numbers and what aligns it. The
    // call reads the whole of it and sends it to this thread.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        info.si_signo = libc::SIGBUS;
        info.si_code = BUS_MCEERR_AO;
        (&raw mut info)
            .cast::<*const u8>()
            .add(16 / size_of::<*const u8>())
            .write(address);
        assert_eq!(info.si_addr().cast_const().cast(), &raw const *address);
        let (process, thread) = (libc::getpid(), libc::gettid());
        let call = libc::SYS_rt_tgsigqueueinfo;
        let sent = libc::syscall(call, process, thread, libc::SIGBUS, &raw const info);
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }
}

const LEFT: i32 = 77;

extern "C" fn leave(_: libc::c_int) {
    // SAFETY: allowed in a handler; does not return.
    unsafe { libc::_exit(LEFT) }
}

#[test]
fn other_maps_fault_as_before() {
    for case in ["plain", "unread"] {
        assert_eq!(in_a_process(case).code(), Some(LEFT), "{case}");
    }
    for case in ["default", "std", "sent"] {
        assert_eq!(in_a_process(case).signal(), Some(libc::SIGBUS), "{case}");
    }
}
