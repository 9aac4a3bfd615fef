//! llama.cpp through llama-cpp-python, built here for what a definition asks for, in an environment of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::definition::{Build, Definition, Rival};
use super::machine;
use crate::{cache, packages, shell};

/// The release compared with.
pub(crate) const VERSION: &str = "0.3.36";

/// A setting of llama.cpp, and what runs it.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    /// An interpreter that has it, or the server.
    pub(crate) program: PathBuf,
    pub(crate) repack: bool,
    pub(crate) flash_attention: bool,
}

impl Build {
    /// What cmake is told.
    pub(crate) fn flags(self) -> &'static str {
        match self {
            Build::Native => "-DGGML_NATIVE=ON -DLLAMA_BUILD_TOOLS=OFF",
            Build::AvxVnni => {
                "-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON \
                 -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX_VNNI=ON -DLLAMA_BUILD_TOOLS=OFF"
            }
        }
    }

    /// Why it cannot run on this processor, if it cannot.
    pub(crate) fn missing(self) -> Option<&'static str> {
        let lacks = self == Build::AvxVnni && !machine::has_flag("avx_vnni");
        lacks.then_some(
            "this processor has no AVX-VNNI, so llama.cpp built for it does not run here",
        )
    }
}

/// The interpreter that has llama.cpp of this build, made if it is not there: some minutes.
///
/// # Errors
/// When there is no compiler, or it cannot be built.
pub(crate) fn ensure(build: Build) -> Result<PathBuf> {
    let _lock = cache::lock()?;
    let key = key(build.flags());
    let folder = cache::folder()?.join(format!("llama-cpp-{VERSION}-{key}"));
    let (python, complete) = (folder.join("bin/python"), folder.join("complete"));
    if complete.is_file() && python.exists() {
        return Ok(python);
    }
    packages::ensure(&[&packages::VENV, &packages::COMPILER])?;
    println!("  building llama.cpp in {}", folder.display());
    shell::run(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
    )?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "--disable-pip-version-check", "install"]);
    pip.args(["--quiet", "--no-binary", "llama-cpp-python"]);
    pip.arg(format!("llama-cpp-python=={VERSION}"));
    shell::run(pip.env("CMAKE_ARGS", build.flags()))?;
    fs::write(&complete, b"")?;
    Ok(python)
}

/// Names a build with these flags: a native one runs where it was built only.
pub(crate) fn key(flags: &str) -> String {
    let mut hash = Sha256::new();
    for part in [VERSION, flags, &machine::flags()] {
        hash.update(part);
    }
    let bytes = hash.finalize();
    let letters = bytes.iter().take(6).map(|byte| format!("{byte:02x}"));
    letters.collect()
}

/// Every setting that a definition asks for.
pub(crate) fn variants(rival: &Rival, program: &Path) -> Vec<Variant> {
    let mut variants = Vec::new();
    for &repack in &rival.repack {
        for &flash_attention in &rival.flash_attention {
            variants.push(Variant {
                program: program.to_path_buf(),
                repack,
                flash_attention,
            });
        }
    }
    variants
}

impl Variant {
    /// The setting in words.
    pub(crate) fn name(&self) -> String {
        let repack = if self.repack {
            "repacked"
        } else {
            "as in file"
        };
        let attention = if self.flash_attention {
            "flash"
        } else {
            "plain"
        };
        format!("{repack}, {attention} attention")
    }

    /// Measures it once.
    ///
    /// # Errors
    /// When it does not run or says something else than figures.
    pub(crate) fn measure(&self, definition: &Definition, model: &Path) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command
            .arg(super::definition::folder().join("llama.py"))
            .arg(model);
        let figures = [
            ("--threads", definition.threads),
            ("--prompt", definition.prompt),
            ("--gen", definition.generate),
            ("--depth", definition.depth),
            ("--runs", definition.runs),
            ("--repack", usize::from(self.repack)),
            ("--flash-attention", usize::from(self.flash_attention)),
            ("--columns", usize::from(definition.columns)),
        ];
        for (name, value) in figures {
            command.arg(name).arg(value.to_string());
        }
        let output = shell::output(&mut command)?;
        let seconds: Value = serde_json::from_str(&output).context("llama.py printed no JSON")?;
        let median = |name: &str| -> Result<f64> {
            let values = seconds[name].as_array().into_iter().flatten();
            let values: Vec<f64> = values.filter_map(Value::as_f64).collect();
            if values.is_empty() {
                bail!("llama.py has no seconds of {name}");
            }
            Ok(super::median(&values))
        };
        let mut report = json!({
            "prefill_tok_s": definition.prompt as f64 / median("prefill")?,
            "decode_tok_s": definition.generate as f64 / median("decode")?,
        });
        if let Some(runs) = seconds["columns"].as_array().filter(|_| definition.columns) {
            let column = |index: usize| {
                let values: Vec<f64> = runs.iter().filter_map(|run| run[index].as_f64()).collect();
                super::median(&values)
            };
            let costs: Vec<f64> = (0..8).map(|index| column(index) / column(0)).collect();
            report["costs"] = json!(costs);
        }
        Ok(report)
    }
}
