//! What the CUDA kernels need: a compiler where there is none, their limits, and their checks on a device.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::stages::Outcome;
use crate::{cache, shell};

/// Of one toolkit: machine code does not depend on the driver's version, but what is compiled and what is linked must agree.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
];

/// Processors that kernels are compiled for: Ampere and Ada, Jetson Orin, Hopper.
const TARGETS: [&str; 3] = ["80", "87", "90"];

/// Registers of a thread, by the end of a kernel's name: what leaves room for the blocks that a processor has to hold.
const REGISTERS_MAX: [(&str, u32); 5] = [
    ("_1_decode_16", 168),
    ("_decode_8", 128),
    ("_decode_16", 128),
    ("_panel_64", 128),
    ("_panel_128", 255),
];

fn folder() -> Result<PathBuf> {
    Ok(cache::folder()?.join("cuda-13.0"))
}

/// The compiler that `ANDON_NVCC` names, of `PATH`, or of the cache.
fn nvcc() -> Result<Option<PathBuf>> {
    let named = env::var_os("ANDON_NVCC").filter(|name| !name.is_empty());
    let kept = folder()?.join("nvidia/cu13/bin/nvcc");
    Ok(named
        .map(PathBuf::from)
        .or_else(|| shell::find("nvcc"))
        .or_else(|| kept.is_file().then_some(kept)))
}

/// Installs a compiler into the cache unless there is one, and says how it is used.
///
/// # Errors
/// When pip cannot fetch it.
pub(crate) fn install() -> Result<ExitCode> {
    if nvcc()?.is_none() {
        let _lock = cache::lock()?;
        let folder = folder()?;
        println!("  installing nvcc in {}", folder.display());
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--disable-pip-version-check", "install"]);
        pip.args(["--quiet", "--only-binary", ":all:", "--target"]);
        shell::run(pip.arg(&folder).args(PACKAGES))?;
        for tools in ["nvidia/cu13/bin", "nvidia/cu13/nvvm/bin"] {
            let tools = folder.join(tools);
            if tools.is_dir() {
                shell::run(Command::new("chmod").args(["-R", "a+rx"]).arg(&tools))?;
            }
        }
    }
    let nvcc = nvcc()?.context("pip installed no nvcc")?;
    println!("export ANDON_NVCC={}", nvcc.display());
    Ok(ExitCode::SUCCESS)
}

/// What `cargo xtask cuda-check` is asked for.
#[derive(Args)]
pub(crate) struct Check {
    /// Builds the kernels a second time, so that both warps of a hand-over wait, for compute-sanitizer's racecheck.
    #[arg(long)]
    racecheck: bool,
    /// Only builds, and puts all programs into this folder, without symbols and once more packed, for a machine with a card and
    /// without a toolchain. There, `./andon-cuda-check --results FOLDER` does the rest.
    #[arg(long, value_name = "FOLDER")]
    build: Option<PathBuf>,
    /// Arguments of the checks: `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// The macro with which both warps of a hand-over wait.
const BOTH_WAIT: &str = "-DANDON_HAND_OVER_SYNC";

/// What the programs may take, packed, for machines that are handed no more than 64 MiB beside a checkout.
const PACKED_BYTES_MAX: u64 = 40 << 20;

/// All programs in one file.
const PACKED: &str = "programs.tar.gz";

/// The checks, by the name under which each program looks for the others beside it.
const CHECKS: &str = "andon-cuda-check";
const CHECKS_BOTH_WAIT: &str = "andon-cuda-check-both-wait";
const INTERFACES: &str = "andon-accelerated";
const DAEMON: &str = "andond";

/// Builds the checks and runs them on the device of this machine.
///
/// # Errors
/// When there is no compiler, or the checks do not build.
pub(crate) fn check(check: &Check) -> Result<ExitCode> {
    let nvcc = nvcc()?.context("no nvcc: cargo xtask cuda installs one")?;
    let carried = check.build.is_some();
    // In folders of their own: flags would have one build replace the other.
    let build = |folder: &str, flags: &str, command: &[&str]| {
        let target = shell::target_directory().join(folder);
        let mut cargo = shell::cargo(command);
        cargo.arg("--release").arg("--target-dir").arg(&target);
        cargo
            .env("ANDON_NVCC", &nvcc)
            .env("ANDON_NVCC_FLAGS", flags);
        if carried {
            cargo
                .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
                .env("CARGO_PROFILE_RELEASE_DEBUG", "0");
        }
        (cargo, target.join("release"))
    };
    let both = ["build", "--package", CHECKS, "--package", DAEMON];
    let (mut cargo, built) = build("cuda-check", "", &both);
    shell::run(&mut cargo)?;
    let tests = ["test", "--no-run", "--message-format", "json"];
    let (mut cargo, _) = build("cuda-check", "", &tests);
    cargo.args(["--package", "andon-tests", "--test", "accelerated"]);
    println!("  $ {}", shell::line(&cargo));
    let interfaces = executable(&shell::output(&mut cargo)?, "accelerated")
        .context("cargo names no program of the tests")?;
    let both_wait = if check.racecheck || carried {
        let checks = ["build", "--package", CHECKS];
        let (mut cargo, built) = build("cuda-check-both-wait", BOTH_WAIT, &checks);
        shell::run(&mut cargo)?;
        Some(built.join(CHECKS))
    } else {
        None
    };
    let mut programs = vec![
        (CHECKS, built.join(CHECKS)),
        (DAEMON, built.join(DAEMON)),
        (INTERFACES, interfaces),
    ];
    programs.extend(both_wait.map(|program| (CHECKS_BOTH_WAIT, program)));
    if let Some(folder) = &check.build {
        return gather(&programs, folder);
    }
    let mut checks = Command::new(built.join(CHECKS));
    for (name, program) in &programs {
        let option = match *name {
            DAEMON => "--andond",
            INTERFACES => "--interfaces",
            CHECKS_BOTH_WAIT => "--both-wait",
            _ => continue,
        };
        checks.arg(option).arg(program);
    }
    let status = checks.args(&check.arguments).status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Puts programs into a folder under their names, and all of them into one file there.
fn gather(programs: &[(&str, PathBuf)], folder: &Path) -> Result<ExitCode> {
    fs::create_dir_all(folder)?;
    let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for (name, program) in programs {
        let bytes = fs::copy(program, folder.join(name))
            .with_context(|| format!("cannot copy {}", program.display()))?;
        println!("  {name}: {:.1} MiB", megabytes(bytes));
    }
    let mut tar = Command::new("tar");
    tar.current_dir(folder).args(["-czf", PACKED]);
    tar.args(programs.iter().map(|(name, _)| name));
    shell::run(&mut tar)?;
    let packed = folder.join(PACKED);
    let bytes = fs::metadata(&packed)?.len();
    println!("  {}: {:.1} MiB", packed.display(), megabytes(bytes));
    ensure!(
        bytes < PACKED_BYTES_MAX,
        "more than {:.0} MiB",
        megabytes(PACKED_BYTES_MAX)
    );
    Ok(ExitCode::SUCCESS)
}

/// The program of the target called `name`, of what cargo says in JSON.
fn executable(said: &str, name: &str) -> Option<PathBuf> {
    let messages = said.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name).then_some(message)
    });
    let mut programs =
        messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    programs.next()
}

/// What ends the checks where there was nothing to run them with.
const SKIPPED: i32 = 77;

/// The stage: the kernels give the processor's bytes in an emulation, and compile within their limits for every processor.
///
/// # Errors
/// When one does not, or takes more registers than it may or any memory in their place.
pub(crate) fn stage() -> Result<Outcome> {
    let emulated = emulated()?;
    let Some(nvcc) = nvcc()? else {
        let reason = "no nvcc (cargo xtask cuda installs one)";
        return Ok(if emulated {
            Outcome::Passed(format!("emulated; not compiled: {reason}"))
        } else {
            Outcome::Skipped(format!("{reason}, no C++ compiler"))
        });
    };
    let compiled = compiled(&nvcc)?;
    let emulated = if emulated {
        "emulated"
    } else {
        "not emulated: no C++ compiler"
    };
    Ok(Outcome::Passed(format!(
        "{compiled} kernels within their limits; {emulated}"
    )))
}

/// Runs everything on small sizes in the emulation; `false` where there is no C++ compiler for it.
fn emulated() -> Result<bool> {
    let package = ["run", "--quiet", "--package", "andon-cuda-check"];
    let mut checks = shell::cargo(&package);
    // However slow the machine is.
    checks.args(["--", "--emulated", "--seconds", "3600"]);
    println!("  $ {}", shell::line(&checks));
    let status = checks.status().context("cannot run cargo")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(SKIPPED) => Ok(false),
        _ => bail!("the emulated checks ended with {status}"),
    }
}

/// Compiles every module for every processor; how many kernels that are.
fn compiled(nvcc: &Path) -> Result<usize> {
    let sources = shell::root().join("kernels/cuda");
    let out = shell::target_directory().join("cuda");
    fs::create_dir_all(&out)?;
    let mut kernels = 0;
    let mut entries: Vec<PathBuf> = fs::read_dir(&sources)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    entries.sort();
    for source in &entries {
        for target in TARGETS {
            kernels += limits(&compile(nvcc, source, target, &out)?)
                .with_context(|| format!("{} for sm_{target}", source.display()))?;
        }
    }
    ensure!(kernels > 0, "no kernel was compiled");
    Ok(kernels)
}

/// Compiles for one processor; what the assembler says of each kernel.
fn compile(nvcc: &Path, source: &Path, target: &str, out: &Path) -> Result<String> {
    let mut command = Command::new(nvcc);
    command.args([
        "-std=c++17",
        "-O3",
        "-fmad=false",
        "-cubin",
        "-Xptxas",
        "-v",
    ]);
    command.arg(format!("-gencode=arch=compute_{target},code=sm_{target}"));
    command.arg(source).arg("-o").arg(out.join("kernel.cubin"));
    let output = command.output().context("cannot run nvcc")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("{} for sm_{target}: {said}", source.display());
    }
    Ok(said)
}

/// Counts the kernels that the assembler speaks of, all within their limits.
fn limits(said: &str) -> Result<usize> {
    let (mut kernels, mut name) = (0, "");
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            name = rest.split('\'').next().unwrap_or_default();
        }
        if let Some(bytes) = before(line, " bytes spill stores") {
            ensure!(bytes == 0, "{name} spills {bytes} bytes");
        }
        if let Some(registers) = before(line, " registers") {
            let limit = REGISTERS_MAX.iter().find(|(end, _)| name.ends_with(end));
            if let Some(&(_, limit)) = limit {
                ensure!(
                    registers <= limit,
                    "{name} takes {registers} registers, more than {limit}"
                );
            }
            kernels += 1;
        }
    }
    Ok(kernels)
}

/// The number before `word`.
fn before(line: &str, word: &str) -> Option<u32> {
    let (head, _) = line.split_once(word)?;
    head.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{executable, limits};
    use std::path::PathBuf;

    const SAID: &str = "ptxas info    : Compiling entry function 'q4_k_decode_8' for 'sm_87'\n\
        ptxas info    : Function properties for q4_k_decode_8\n    \
        0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 94 registers, used 0 barriers\n";

    #[test]
    fn what_the_assembler_says_is_held_to_limits() {
        assert_eq!(limits(SAID).expect("within them"), 1);
        assert!(limits(&SAID.replace("94 reg", "129 reg")).is_err());
        assert!(limits(&SAID.replace(" 0 bytes spill stores", " 8 bytes spill stores")).is_err());
        assert_eq!(limits("").expect("nothing"), 0);
    }

    #[test]
    fn the_program_of_a_test_is_found_among_what_cargo_says() {
        let said = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"half\"},\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"it\"},\"executable\":\"/t/it-1\"}\n";
        assert_eq!(executable(said, "it"), Some(PathBuf::from("/t/it-1")));
        assert_eq!(executable(said, "half"), None);
    }
}
