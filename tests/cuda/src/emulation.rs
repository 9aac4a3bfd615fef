//! Builds the driver library of `tests/cuda/emulation`.
//!
//! A program that is started with the folder in `LD_LIBRARY_PATH` finds a card of compute capability 8.7 with one
//! processor. Faults are asked for by variables of the environment, which `driver.cpp` lists.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, thread};

/// Units that are compiled, one at a time each.
const UNITS: [&str; 5] = ["kernels", "fibers", "memory", "stream", "driver"];

/// Rounding as it is written, and no checks of jumps between stacks.
const FLAGS: [&str; 10] = [
    "-std=c++17",
    "-O2",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fPIC",
    "-U_FORTIFY_SOURCE",
    "-Wno-unknown-pragmas",
    "-DANDON_EMULATION",
    "-w",
];

/// The folder with `libcuda.so.1`, which is built unless it is there; `None` where there is no C++ compiler.
///
/// # Errors
/// When it does not compile, or cannot be written.
pub fn driver() -> io::Result<Option<PathBuf>> {
    driver_with(&[])
}

/// [`driver`] with these macros defined for the kernels.
///
/// # Errors
/// As for [`driver`].
pub fn driver_with(macros: &[&str]) -> io::Result<Option<PathBuf>> {
    let Some(compiler) = compiler() else {
        return Ok(None);
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = [here.join("emulation"), here.join("../../kernels/cuda")];
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(
        || here.join("../../target"),
        |folder| here.join("../..").join(folder),
    );
    let target = target.join("cuda-emulation");
    fs::create_dir_all(&target)?;
    let target = target.canonicalize()?;
    // Only one of several tests builds.
    let lock = File::create(target.join("lock"))?;
    lock.lock()?;
    let name = format!("{:016x}", digest(&compiler, macros, &sources)?);
    let folder = target.join(&name);
    if folder.is_dir() {
        return Ok(Some(folder));
    }
    let building = target.join(format!("{name}.building"));
    let _ = fs::remove_dir_all(&building);
    fs::create_dir_all(&building)?;
    build(&compiler, macros, &sources, &building)?;
    fs::rename(&building, &folder)?;
    Ok(Some(folder))
}

/// `LD_LIBRARY_PATH` for programs that are to find the driver of `folder` first.
#[must_use]
pub fn library_path(folder: &Path) -> OsString {
    let before = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_path_buf());
    let folders = folders.chain(env::split_paths(&before).filter(|path| path.is_absolute()));
    env::join_paths(folders).unwrap_or_else(|_| folder.into())
}

/// The compiler that `CXX` names, or one of the usual ones.
fn compiler() -> Option<OsString> {
    let named = env::var_os("CXX").filter(|name| !name.is_empty());
    let known = ["g++", "clang++"].map(OsString::from);
    named.into_iter().chain(known).find(|compiler| {
        let version = Command::new(compiler).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    })
}

fn digest(compiler: &OsString, macros: &[&str], folders: &[PathBuf; 2]) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    Command::new(compiler)
        .arg("--version")
        .output()?
        .stdout
        .hash(&mut hasher);
    (FLAGS, macros).hash(&mut hasher);
    for folder in folders {
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?;
        paths.sort();
        for path in paths.into_iter().filter(|path| path.is_file()) {
            path.file_name().hash(&mut hasher);
            fs::read(&path)?.hash(&mut hasher);
        }
    }
    Ok(hasher.finish())
}

fn build(
    compiler: &OsString,
    macros: &[&str],
    sources: &[PathBuf; 2],
    out: &Path,
) -> io::Result<()> {
    let object = |unit: &str| out.join(unit).with_extension("o");
    let compile = |unit: &str| {
        let mut command = Command::new(compiler);
        for folder in sources {
            command.arg("-I").arg(folder);
        }
        command.args(FLAGS).arg("-c");
        command.args(macros.iter().map(|name| format!("-D{name}")));
        command.arg(sources[0].join(unit).with_extension("cpp"));
        ran(command.arg("-o").arg(object(unit)))
    };
    thread::scope(|scope| {
        let jobs = UNITS.map(|unit| scope.spawn(move || compile(unit)));
        jobs.into_iter().try_for_each(|job| {
            let done = job.join();
            done.unwrap_or_else(|_| Err(io::Error::other("a compiler's thread panicked")))
        })
    })?;
    let library = out.join("libcuda.so.1");
    let mut link = Command::new(compiler);
    link.arg("-shared").args(UNITS.map(object));
    // Its C++ library comes with it: what loads the driver may see no other one.
    link.args(["-static-libstdc++", "-static-libgcc", "-Wl,-Bsymbolic"]);
    ran(link.arg("-o").arg(&library))?;
    // The first name that is looked for, so that a real driver beside it is not found.
    std::os::unix::fs::symlink("libcuda.so.1", out.join("libcuda.so"))
}

fn ran(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(said))
}
