//! Tests on a processor that the machine is not.
//!
//! Not part of a plain run. Emulation shows that results are right, never how fast they are.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::stages::Outcome;
use crate::{packages, shell};

/// The compiler that Debian builds: unlike rustup's it can be given another architecture's library by apt.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const ARM_TARGET: &str = "aarch64-unknown-linux-gnu";
/// Dot products and f16 but no i8mm, like the processors of Jetson Orin.
const ARM_PROCESSOR: &str = "cortex-a76";
const ARM_CRATES: [&str; 5] = [
    "andon-kernels",
    "andon-wire",
    "andon-policy",
    "andon-os",
    "andon-engine",
];

/// Builds the crates below the daemon for aarch64 and runs their tests under qemu.
///
/// # Errors
/// When the tools cannot be had, or a test fails.
pub(crate) fn aarch64() -> Result<Outcome> {
    let library = Path::new("/usr/lib/rustlib").join(ARM_TARGET);
    if !library.is_dir() {
        shell::run(Command::new("dpkg").args(["--add-architecture", "arm64"]))?;
    }
    packages::ensure(&[
        &packages::DEBIAN_RUSTC,
        &packages::ARM_LIBRARY,
        &packages::ARM_LINKER,
        &packages::ARM_EMULATOR,
    ])?;
    let mut cargo = shell::cargo(&["test", "--lib", "--no-fail-fast", "--target", ARM_TARGET]);
    for name in ARM_CRATES {
        cargo.args(["-p", name]);
    }
    // Static: a dynamic program would take its loader and its C library from two different packages.
    cargo
        .arg("--target-dir")
        .arg(shell::target_directory().join("emulate"))
        .env("RUSTC", DEBIAN_RUSTC)
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
            "aarch64-linux-gnu-gcc",
        )
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        )
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            format!("qemu-aarch64-static -cpu {ARM_PROCESSOR}"),
        );
    shell::run(&mut cargo)?;
    Ok(Outcome::Passed(format!("as {ARM_PROCESSOR}")))
}
