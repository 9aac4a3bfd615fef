//! Tests in processes of their own, which find the emulated card.

use andon_cuda::{Buffer, Device};
use andon_cuda_check::emulation;
use std::env;
use std::process::Command;

/// Says to a process that it is one of these.
const CHILD: &str = "ANDON_CUDA_TEST_CHILD";

/// Runs `work` in a process that is started with the emulated driver and these variables: the test called `name` again.
pub(crate) fn in_emulation(name: &str, variables: &[(&str, &str)], work: impl FnOnce()) {
    if env::var_os(CHILD).is_some_and(|child| child == name) {
        work();
        return;
    }
    let Some(folder) = emulation::driver().expect("the emulation is built") else {
        eprintln!("skipped: there is no C++ compiler");
        return;
    };
    let this = env::current_exe().expect("a test knows its program");
    let output = Command::new(this)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, name)
        .env("LD_LIBRARY_PATH", emulation::library_path(&folder))
        .envs(variables.iter().copied())
        .output()
        .expect("a test can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The emulated card.
pub(crate) fn open() -> Device {
    Device::open(0).expect("the emulated card")
}

/// Numbers in -1..1 that follow from `seed`.
pub(crate) fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        // Marsaglia's xorshift (2003).
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / f32::from_bits(0x4b00_0000) - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Rows of Q8_0 with levels by chance and a scale of about 2^-7.
pub(crate) fn rows(seed: u32, rows: usize, k: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for group in numbers(seed, rows * k).chunks_exact(32) {
        bytes.extend([0x00, 0x20]);
        bytes.extend(group.iter().map(|value| (value * 127.0) as i8 as u8));
    }
    bytes
}

/// All of a buffer.
pub(crate) fn all(device: &Device, buffer: &Buffer<f32>) -> Vec<f32> {
    let mut values = vec![0.0; buffer.len()];
    device.read(buffer, &mut values).expect("it can be read");
    values
}
