//! Tests on processors that the machine is not.
//!
//! Emulation shows that results are right, never how fast they are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::stages::Outcome;
use crate::{packages, shell};

/// The compiler that Debian builds: unlike rustup's it can be given another architecture's library by apt.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const ARM_TARGET: &str = "aarch64-unknown-linux-gnu";
const EMULATOR: &str = "qemu-aarch64-static";
/// The crates below the daemon.
const CRATES: [&str; 5] = [
    "andon-kernels",
    "andon-wire",
    "andon-policy",
    "andon-os",
    "andon-engine",
];

/// An emulated processor and what runs on it.
struct Processor {
    /// Its name to qemu.
    model: &'static str,
    /// The best instruction set of ours that it has.
    isa: &'static str,
    /// Test programs, by the names of their targets.
    programs: &'static [&'static str],
}

/// The kernels run on each; what is built on them once with matrix products and, like Jetson Orin, once without.
const PROCESSORS: [Processor; 3] = [
    Processor {
        // All that qemu knows; a cheap algorithm for signing pointers, which programs from Debian do all the time.
        model: "max,pauth-impdef=on",
        isa: "neon-i8mm",
        programs: &["andon_kernels", "generate"],
    },
    Processor {
        model: "cortex-a76",
        isa: "neon-dotprod",
        programs: &[
            "andon_kernels",
            "andon_os",
            "andon_wire",
            "andon_policy",
            "andon_engine",
        ],
    },
    Processor {
        model: "cortex-a72",
        isa: "neon",
        programs: &["andon_kernels"],
    },
];

/// The test that compares the processor with the instruction set that a run is about, and the variable that names this.
const ISA_TEST: &str = "check::the_instruction_set_that_the_run_is_about_is_there";
const ISA_VARIABLE: &str = "ANDON_TEST_ISA";

/// Builds the crates below the daemon for aarch64 and runs tests of them under qemu.
///
/// # Errors
/// When a crate does not build, or a test fails.
pub(crate) fn aarch64() -> Result<Outcome> {
    if let Err(error) = install() {
        return Ok(Outcome::Skipped(format!("{error:#}")));
    }
    let programs = build()?;
    for processor in &PROCESSORS {
        for name in processor.programs {
            let program = programs.get(name)?;
            shell::run(emulated(processor.model, program).env(ISA_VARIABLE, processor.isa))?;
        }
    }
    // The processors differ in what they have, or a run on one of them shows nothing about another.
    let kernels = programs.get("andon_kernels")?;
    for (processor, better) in PROCESSORS[1..].iter().zip(&PROCESSORS) {
        let mut run = emulated(processor.model, kernels);
        run.args(["--exact", ISA_TEST])
            .env(ISA_VARIABLE, better.isa);
        if shell::output(&mut run).is_ok() {
            bail!("{} is said to have {}", processor.model, better.isa);
        }
    }
    let models = PROCESSORS.map(|processor| processor.model);
    Ok(Outcome::Passed(format!("as {}", models.join(" and "))))
}

fn install() -> Result<()> {
    let library = Path::new("/usr/lib/rustlib").join(ARM_TARGET);
    if !library.is_dir() {
        shell::run(Command::new("dpkg").args(["--add-architecture", "arm64"]))?;
    }
    packages::ensure(&[
        &packages::DEBIAN_RUSTC,
        &packages::ARM_LIBRARY,
        &packages::ARM_LINKER,
        &packages::ARM_EMULATOR,
    ])
}

/// Test programs by the names of their targets.
struct Programs(Vec<(String, PathBuf)>);

impl Programs {
    fn get(&self, name: &str) -> Result<&Path> {
        let mut found = self.0.iter().filter(|(target, _)| target == name);
        match (found.next(), found.next()) {
            (Some((_, path)), None) => Ok(path),
            _ => bail!("not exactly one test program {name}"),
        }
    }
}

/// Builds the crates, the tests in them and those that generate with the engine.
fn build() -> Result<Programs> {
    let mut cargo = shell::cargo(&[
        "test",
        "--quiet",
        "--no-run",
        "--lib",
        "--test",
        "generate",
        "--message-format",
        "json-render-diagnostics",
        "--target",
        ARM_TARGET,
    ]);
    for name in CRATES {
        cargo.args(["-p", name]);
    }
    // Static: a dynamic program would take its loader and its C library from two different packages, and hangs under
    // emulation once it has threads.
    cargo
        .arg("--target-dir")
        .arg(shell::target_directory().join("emulate"))
        .env("RUSTC", DEBIAN_RUSTC)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
            "aarch64-linux-gnu-gcc",
        )
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        );
    println!("  $ {}", shell::line(&cargo));
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("`{}` ended with {}", shell::line(&cargo), output.status);
    }
    programs(&String::from_utf8_lossy(&output.stdout)).map(Programs)
}

/// The test programs in what cargo says about what it built, a line of JSON each.
fn programs(messages: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("a message of cargo")?;
        if message["profile"]["test"] != true {
            continue;
        }
        if let (Some(name), Some(path)) = (
            message["target"]["name"].as_str(),
            message["executable"].as_str(),
        ) {
            programs.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(programs)
}

/// `program` on a processor of this model.
fn emulated(model: &str, program: &Path) -> Command {
    let mut command = Command::new(EMULATOR);
    command.args(["-cpu", model]).arg(program).arg("--quiet");
    command
}

#[cfg(test)]
mod tests {
    use super::programs;
    use std::path::PathBuf;

    #[test]
    fn test_programs_are_read_from_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"profile":{"test":true},"executable":"/t/a-1"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"b"},"profile":{"test":false},"executable":"/t/b"}
{"reason":"build-finished","success":true}"#;
        let found = programs(messages).expect("sound messages");
        assert_eq!(found, [("a".to_owned(), PathBuf::from("/t/a-1"))]);
        assert!(programs("not JSON").is_err());
    }
}
