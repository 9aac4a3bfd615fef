//! How a test comes to a card: the emulated one, or the one of this machine where `ANDON_TEST_CARD` is set.
//!
//! Each test is started again in a process of its own, since a library path is read when a program starts, and a device that
//! failed is lost to the whole process.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use andon_cuda_check::emulation;

/// Set in a program that was started to find the card.
const INSIDE: &str = "ANDON_TEST_INSIDE";
/// Set where tests are to use the card of this machine.
const REAL: &str = "ANDON_TEST_CARD";

/// Whether tests use the card of this machine.
fn is_real() -> bool {
    env::var_os(REAL).is_some_and(|value| !value.is_empty())
}

/// The folder of the emulated driver; `None`, which is said, where there is no C++ compiler, or the card is a real one.
pub(crate) fn driver() -> Option<PathBuf> {
    if is_real() {
        println!("skipped: it is for the emulated card");
        return None;
    }
    let folder = emulation::driver().expect("the emulation compiles");
    if folder.is_none() {
        println!("skipped: there is no C++ compiler");
    }
    folder
}

/// What a program's environment has to be to find the card of `folder`.
pub(crate) fn environment(folder: &std::path::Path) -> (&'static str, OsString) {
    ("LD_LIBRARY_PATH", emulation::library_path(folder))
}

/// Runs `work` where there is a card: in this test, named `name`, started again.
pub(crate) fn inside(name: &str, work: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        work();
    } else if is_real() {
        again(name, &[], None);
    } else {
        inside_emulation(name, &[], work);
    }
}

/// Runs `work` where there is an emulated card, with these variables for the emulation.
pub(crate) fn inside_emulation(name: &str, variables: &[(&str, &str)], work: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        work();
    } else if let Some(folder) = driver() {
        again(name, variables, Some(environment(&folder)));
    }
}

fn again(name: &str, variables: &[(&str, &str)], library_path: Option<(&str, OsString)>) {
    let this = env::current_exe().expect("a program");
    let output = Command::new(this)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .envs(variables.iter().copied())
        .envs(library_path)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    let ran = output.status.success() && said.contains("1 passed");
    assert!(ran, "{}\n{said}\n{complained}", output.status);
}
