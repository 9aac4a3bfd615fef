//! Tests in processes of their own, which find the emulated card.

use andon_cuda::Device;
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
