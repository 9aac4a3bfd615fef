//! `[engine]`: what computes, and how the processor is used.

use serde::{Deserialize, Serialize};

use super::Problems;

/// What computes answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendChoice {
    /// An accelerator that is there and covers the model, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// NVIDIA cards and Jetson; without one the daemon does not start.
    Cuda,
}

/// `[engine]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct EngineConfig {
    /// What computes answers. Embeddings and drafts are computed by the processor always.
    pub backend: BackendChoice,
    /// Whether the processor goes on with what is being answered where a device that computes fails.
    pub backend_fallback: bool,
    /// Compute threads; unset, what affinity and cgroup quota allow.
    pub threads: Option<usize>,
    /// Instruction set to force (`scalar`, `avx2`, …); unset, the best this processor has.
    pub isa: Option<String>,
    /// Most tokens of one pass over the weights.
    pub batch_tokens_max: usize,
    /// Most requests decoded at once; fewer than `batch_tokens_max`.
    pub parallel_max: usize,
    /// Whether requests that begin with the same text share what was computed for it.
    pub prefix_cache: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            backend: BackendChoice::Auto,
            backend_fallback: true,
            threads: None,
            isa: None,
            batch_tokens_max: 512,
            parallel_max: 8,
            prefix_cache: true,
        }
    }
}

impl EngineConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        if let Some(threads) = self.threads {
            problems.within("engine.threads", threads, 1..=1024);
        }
        problems.within("engine.batch-tokens-max", self.batch_tokens_max, 2..=8192);
        problems.within("engine.parallel-max", self.parallel_max, 1..=256);
        problems.require(
            self.parallel_max < self.batch_tokens_max,
            "engine.parallel-max",
            "is not smaller than engine.batch-tokens-max",
            "every request decoded at once needs a place in the pass, and so does an alarm beside them",
        );
    }
}
