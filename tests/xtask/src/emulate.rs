//! Tests on processors that the machine is not.
//!
//! Emulation shows that results are right, never how fast they are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::stages::Outcome;
use crate::{packages, shell};

/// The compiler that Debian builds: unlike rustup's it can be given another architecture's library by apt.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const ARM_TARGET: &str = "aarch64-unknown-linux-gnu";
const EMULATOR: &str = "qemu-aarch64-static";
/// Packages whose tests are built.
const TESTED: [&str; 6] = [
    "andon-kernels",
    "andon-os",
    "andon-wire",
    "andon-policy",
    "andon-engine",
    "andon-tests",
];
/// Packages that few emulated tests need, and which take longer to optimize than these then take.
const UNHURRIED: [&str; 4] = ["llguidance", "derivre", "toktrie", "minijinja"];
/// Programs that are run against each other.
const SERVED: [&str; 2] = ["andond", "andonctl"];

/// An emulated processor and what runs on it.
struct Processor {
    /// Its name to qemu.
    model: &'static str,
    /// The best instruction set of ours that it has.
    isa: &'static str,
    /// Test programs, by the names of their targets, and which of their tests.
    programs: &'static [(&'static str, &'static [&'static str])],
}

/// All tests of a program.
const ALL: &[&str] = &[];
/// Those that the second and third processor could answer otherwise than the first.
const OF_THE_PROCESSOR: &[&str] = &[
    "--skip",
    "scalar_products",
    "--skip",
    "scalar_attention",
    "--skip",
    "follows_",
    "--skip",
    "on_every_architecture",
    "--skip",
    "tile::",
];
/// The whole model in every instruction set, which the first processor has all of; the other tests of that program
/// would take an hour.
const IDENTITY: &[&str] = &["instruction_sets_agree_on_a_few_tokens"];

/// The kernels run on each; what is built on them once with matrix products and, like Jetson Orin, once without.
const PROCESSORS: [Processor; 3] = [
    Processor {
        // All that qemu knows; a cheap algorithm for signing pointers, which programs from Debian do all the time.
        model: "max,pauth-impdef=on",
        isa: "neon-i8mm",
        programs: &[
            ("andon_kernels", ALL),
            ("generate", ALL),
            ("identity", IDENTITY),
        ],
    },
    Processor {
        model: "cortex-a76",
        isa: "neon-dotprod",
        programs: &[
            ("andon_kernels", OF_THE_PROCESSOR),
            ("andon_os", ALL),
            ("andon_wire", ALL),
            ("andon_policy", ALL),
            ("andon_engine", ALL),
        ],
    },
    Processor {
        model: "cortex-a72",
        isa: "neon",
        programs: &[("andon_kernels", OF_THE_PROCESSOR)],
    },
];

/// The test that compares the processor with the instruction set that a run is about, and the variable that names this.
const ISA_TEST: &str = "check::the_instruction_set_that_the_run_is_about_is_there";
const ISA_VARIABLE: &str = "ANDON_TEST_ISA";

/// Programs for aarch64 on their way, built at the lowest rank: cargo leaves a good part of two cores idle while it links, and
/// while tests wait for daemons.
pub(crate) struct Building(Result<JoinHandle<Result<Programs>>>);

impl Building {
    /// Installs what it takes, and begins to build the daemon and its client, and the test programs.
    pub(crate) fn start() -> Building {
        Building(install().map(|()| thread::spawn(build)))
    }
}

/// Waits for the programs, runs tests of the crates below the daemon under qemu, and has the emulated daemon answer the emulated
/// client.
///
/// # Errors
/// When something does not build, or a test fails.
pub(crate) fn aarch64(building: Building) -> Result<Outcome> {
    let building = match building.0 {
        Ok(building) => building,
        Err(error) => return Ok(Outcome::Skipped(format!("{error:#}"))),
    };
    let programs = building.join();
    let programs = programs.unwrap_or_else(|_| bail!("building for aarch64 panicked"))?;
    for processor in &PROCESSORS {
        for (name, tests) in processor.programs {
            let program = programs.get(name)?;
            let mut run = emulated(processor.model, program);
            shell::run(run.args(*tests).env(ISA_VARIABLE, processor.isa))?;
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
    serve()?;
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
        &packages::ARM_HEADERS,
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

/// Where cargo puts what is built for aarch64.
fn folder() -> PathBuf {
    shell::target_directory().join("emulate")
}

/// Cargo for aarch64, at the lowest rank.
fn cargo(arguments: &[&str]) -> Command {
    let cargo = shell::cargo(arguments);
    let mut niced = Command::new("nice");
    niced.args(["-n", "19"]).arg(cargo.get_program());
    niced.args(cargo.get_args()).current_dir(shell::root());
    let mut cargo = niced;
    // Static: a dynamic program would take its loader and its C library from two different packages, and hangs under
    // emulation once it has threads.
    cargo
        .args(["--quiet", "--target", ARM_TARGET, "--target-dir"])
        .arg(folder())
        .args(
            UNHURRIED
                .map(|name| {
                    [
                        "--config".to_owned(),
                        format!("profile.dev.package.{name}.opt-level=0"),
                    ]
                })
                .as_flattened(),
        )
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
    cargo
}

/// Builds the test programs, and the programs that a gateway has.
fn build() -> Result<Programs> {
    let mut cargo = cargo(&["test", "--no-run", "--lib"]);
    cargo.args(TESTED.map(|name| ["--package", name]).as_flattened());
    cargo.args(["--test", "generate", "--test", "identity"]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    println!("  $ {}", shell::line(&cargo));
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("`{}` ended with {}", shell::line(&cargo), output.status);
    }
    // With the same packages and a test, so that what they depend on has the same features and is not built once more.
    let mut cargo = self::cargo(&["build", "--bins", "--test", "generate"]);
    cargo.args(TESTED.map(|name| ["--package", name]).as_flattened());
    shell::run(cargo.args(SERVED.map(|name| ["--package", name]).as_flattened()))?;
    programs(&String::from_utf8_lossy(&output.stdout)).map(Programs)
}

/// Runs the tests of the client against the daemon, the tests themselves natively, both programs emulated.
fn serve() -> Result<()> {
    let programs = folder().join(ARM_TARGET).join("debug");
    let wrappers = folder().join("programs");
    fs::create_dir_all(&wrappers)?;
    // Like Jetson Orin.
    let model = PROCESSORS[1].model;
    for name in SERVED {
        let wrapper = wrappers.join(name);
        let program = programs.join(name);
        let line = format!(
            "exec {EMULATOR} -cpu {model} '{}' \"$@\"",
            program.display()
        );
        fs::write(&wrapper, format!("#!/bin/sh\n{line}\n"))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    }
    // The whole workspace is named so that the stage before this one has built it already.
    let mut tests = shell::cargo(&["test", "--quiet", "--workspace", "--test", "it"]);
    tests.args(["--", "andonctl::"]);
    shell::run(tests.env("ANDON_BIN_DIR", &wrappers))
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
