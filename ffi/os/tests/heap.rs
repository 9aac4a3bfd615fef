//! The counting allocator counts, and stops what asks for too much.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use andon_os::heap::{Counting, measure};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CASE: &str = "ANDON_HEAP_CASE";

#[test]
fn the_most_that_was_held_is_known() {
    let before = vec![1_u8; 1 << 20];
    let (length, most) = measure(1 << 24, 1, || {
        drop(vec![0_u8; 3 << 20]);
        drop(before);
        let mut growing = vec![0_u8; 1 << 20];
        growing.reserve_exact(1 << 20);
        growing.len()
    });
    assert_eq!(length, 1 << 20);
    assert_eq!(most, 3 << 20);
    let (_, most) = measure(1 << 24, 2, || vec![0_u8; 1000]);
    assert_eq!(most, 1000);
}

#[test]
fn too_much_ends_the_process_by_name() {
    if std::env::var_os(CASE).is_some() {
        measure(1 << 20, 4711, || std::hint::black_box(vec![0_u8; 1 << 40]));
        return;
    }
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "too_much_ends_the_process_by_name"])
        .env(CASE, "1")
        .output()
        .expect("a process");
    assert!(output.status.signal().is_some(), "{:?}", output.status);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("heap limit: 4711"), "{said}");
}
