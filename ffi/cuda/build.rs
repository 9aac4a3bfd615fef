//! Compiles kernels/cuda to machine code, where an nvcc is found; what cannot be compiled is left out and named.
//!
//! `ANDON_NVCC` names the compiler; without it, `nvcc` of `PATH` is used if there is one. Set to nothing, it says to build
//! without kernels. `ANDON_NVCC_FLAGS` has more for it, for checks of variants.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Compiled for: what all of 8.x but Jetson runs (8.0, 8.6, 8.9), Hopper, and as PTX for what comes later.
const TARGETS: [&str; 3] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
];

/// Jetson Orin, whose processor is of this architecture.
const ORIN: (&str, &str) = ("aarch64", "-gencode=arch=compute_87,code=sm_87");

fn main() {
    let sources = Path::new("../../kernels/cuda");
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-env-changed=ANDON_NVCC");
    println!("cargo::rerun-if-env-changed=ANDON_NVCC_FLAGS");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where output goes"));
    let nvcc = env::var_os("ANDON_NVCC");
    let required = nvcc.as_ref().is_some_and(|nvcc| !nvcc.is_empty());
    let nvcc = nvcc.unwrap_or_else(|| "nvcc".into());
    let built = if nvcc.is_empty() {
        Err("it was built without nvcc".to_owned())
    } else {
        compile(Path::new(&nvcc), sources, &out)
    };
    let text = match built {
        Ok(modules) => {
            let entries: String = modules
                .iter()
                .map(|module| {
                    format!("({module:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{module}.fatbin\"))),\n")
                })
                .collect();
            format!(
                "pub(crate) const MODULES: Result<&[(&str, &[u8])], &str> = Ok(&[\n{entries}]);\n"
            )
        }
        Err(reason) => {
            assert!(!required, "ANDON_NVCC is set, and {reason}");
            format!("pub(crate) const MODULES: Result<&[(&str, &[u8])], &str> = Err({reason:?});\n")
        }
    };
    fs::write(out.join("modules.rs"), text).expect("the output folder can be written");
}

/// Compiles every module; the names of those that there are, or why there are none.
fn compile(nvcc: &Path, sources: &Path, out: &Path) -> Result<Vec<String>, String> {
    match Command::new(nvcc).arg("--version").output() {
        Ok(output) if output.status.success() => {}
        _ => return Err("it was built where no nvcc was found".to_owned()),
    }
    let more = env::var("ANDON_NVCC_FLAGS").unwrap_or_default();
    let (architecture, orin) = ORIN;
    let orin = (env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok(architecture)).then_some(orin);
    let mut modules = Vec::new();
    let entries = fs::read_dir(sources).map_err(|error| format!("kernels/cuda: {error}"))?;
    let mut paths: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    paths.sort();
    for path in paths {
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .ok_or("a kernel's name is not text")?;
        let status = Command::new(nvcc)
            .args([
                "-std=c++17",
                "-O3",
                "-fmad=false",
                "-fatbin",
                "--compress-mode=size",
            ])
            .args(TARGETS.into_iter().chain(orin))
            .args(more.split_whitespace())
            .arg(&path)
            .arg("-o")
            .arg(out.join(format!("{name}.fatbin")))
            .status()
            .map_err(|error| format!("nvcc: {error}"))?;
        if !status.success() {
            // An error in a kernel is no reason to do without one.
            panic!("{} does not compile", path.display());
        }
        modules.push(name.to_owned());
    }
    Ok(modules)
}
