//! How a test comes to the emulated card.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use andon_cuda_check::emulation;

/// Set in a program that was started to find the card.
const INSIDE: &str = "ANDON_TEST_INSIDE";

/// The folder of the driver; `None`, which is said, where there is no C++ compiler.
pub(crate) fn driver() -> Option<PathBuf> {
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

/// Runs `work` where there is an emulated card: in this test, named `name`, started again.
pub(crate) fn inside(name: &str, work: impl FnOnce()) {
    inside_with(name, &[], work);
}

/// [`inside`], with these variables for the emulation.
pub(crate) fn inside_with(name: &str, variables: &[(&str, &str)], work: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return work();
    }
    let Some(folder) = driver() else { return };
    let this = env::current_exe().expect("a program");
    let (variable, value) = environment(&folder);
    let output = Command::new(this)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .envs(variables.iter().copied())
        .env(variable, value)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    let ran = output.status.success() && said.contains("1 passed");
    assert!(ran, "{}\n{said}\n{complained}", output.status);
}
