//! llama.cpp's own server, built here for this processor, and a running one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::broker::free_port;
use super::daemon::PATIENCE;
use super::rival::{self, VERSION, Variant};
use super::service::Address;
use crate::{cache, packages, shell};

/// What cmake is told.
const FLAGS: [&str; 4] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
];

/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(50);

/// The server of the release compared with, made if it is not there: some minutes.
///
/// # Errors
/// When there is no compiler, or it cannot be built.
pub(super) fn ensure() -> Result<PathBuf> {
    let _lock = cache::lock()?;
    let key = rival::key(&FLAGS.join(" "));
    let folder = cache::folder()?.join(format!("llama-server-{VERSION}-{key}"));
    let (program, complete) = (
        folder.join("build/bin/llama-server"),
        folder.join("complete"),
    );
    if complete.is_file() && program.exists() {
        return Ok(program);
    }
    packages::ensure(&[&packages::VENV, &packages::COMPILER])?;
    println!("  building llama-server in {}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let tools = folder.join("tools");
    shell::run(Command::new("python3").args(["-m", "venv"]).arg(&tools))?;
    let pip = || {
        let mut pip = Command::new(tools.join("bin/python"));
        pip.args(["-m", "pip", "--disable-pip-version-check"]);
        pip
    };
    shell::run(pip().args(["install", "--quiet", "cmake", "ninja"]))?;
    let mut download = pip();
    download.args(["download", "--quiet", "--no-deps", "--no-build-isolation"]);
    download
        .args(["--no-binary", ":all:", "--dest"])
        .arg(&folder);
    // pip asks the source for its name, which takes what builds it.
    shell::run(pip().args(["install", "--quiet", "scikit-build-core"]))?;
    shell::run(download.arg(format!("llama-cpp-python=={VERSION}")))?;
    let archive = fs::read_dir(&folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "gz"))
        .context("pip brought no source")?;
    let source = folder.join("source");
    fs::create_dir_all(&source)?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&archive).arg("-C").arg(&source);
    shell::run(tar.arg("--strip-components=1"))?;
    let build = folder.join("build");
    let mut cmake = Command::new(tools.join("bin/cmake"));
    cmake
        .arg("-S")
        .arg(source.join("vendor/llama.cpp"))
        .arg("-B")
        .arg(&build);
    cmake.args(["-G", "Ninja"]).args(FLAGS);
    let ninja = tools.join("bin/ninja");
    cmake.arg(format!("-DCMAKE_MAKE_PROGRAM={}", ninja.display()));
    shell::run(&mut cmake)?;
    let mut compile = Command::new(&ninja);
    shell::run(compile.arg("-C").arg(&build).arg("llama-server"))?;
    ensure!(program.is_file(), "there is no {}", program.display());
    fs::write(&complete, b"")?;
    Ok(program)
}

/// How a server is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) threads: usize,
    /// Answers at a time, and tokens of context for each.
    pub(super) parallel: usize,
    pub(super) context: usize,
}

/// A server, ended when dropped.
pub(super) struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts one and returns once it has loaded the model.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn start(
        folder: &Path,
        variant: &Variant,
        model: &Path,
        room: Room,
    ) -> Result<Server> {
        let port = free_port()?;
        let path = folder.join(format!("llama-server-{port}.log"));
        let log = fs::File::create(&path)?;
        let mut command = shell::mortal(&variant.program);
        command.arg("-m").arg(model).args(["--host", "127.0.0.1"]);
        for (name, value) in [
            ("--port", usize::from(port)),
            ("-t", room.threads),
            ("-tb", room.threads),
            ("-np", room.parallel),
            ("-c", room.parallel * room.context),
        ] {
            command.arg(name).arg(value.to_string());
        }
        let attention = if variant.flash_attention { "on" } else { "off" };
        command.args(["-fa", attention, "--jinja", "--no-webui"]);
        if !variant.repack {
            command.arg("--no-repack");
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", variant.program.display()))?;
        let mut server = Server { child, port };
        let began = Instant::now();
        while !server.address().is_healthy() {
            if let Some(status) = server.child.try_wait()? {
                let said = fs::read_to_string(&path).unwrap_or_default();
                let last: Vec<&str> = said.lines().rev().take(5).collect();
                bail!("llama-server ended with {status}: {}", last.join(" | "));
            }
            ensure!(began.elapsed() < PATIENCE, "llama-server is not ready");
            thread::sleep(LOOK);
        }
        Ok(server)
    }

    /// Where it listens.
    pub(super) fn address(&self) -> Address {
        Address::Port(self.port)
    }
}
