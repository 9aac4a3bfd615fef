//! `[speculation]`: tokens that are guessed, so that a pass gives more than one.

use andon_engine::speculate::Corpus;
use serde::Deserialize;

use super::Problems;

/// Whose earlier answers guesses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CorpusScope {
    /// Nobody's: no answer is kept for it.
    Off,
    /// Those to the same task of the same client.
    Client,
    /// Those to the same task, of all clients.
    Task,
}

/// `[speculation]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct SpeculationConfig {
    /// Whether anything is guessed.
    pub enabled: bool,
    /// Whether guesses come from the prompt and the answer so far.
    pub lookup: bool,
    /// Whose earlier answers they come from.
    pub corpus: CorpusScope,
    /// Most tokens of the answers kept for one task, or for one client of it.
    pub corpus_tokens_max: usize,
    /// Most tasks, or clients of tasks, whose answers are kept.
    pub corpora_max: usize,
    /// Whether they are kept on the disk for the next start.
    pub corpus_keep: bool,
}

impl Default for SpeculationConfig {
    fn default() -> Self {
        SpeculationConfig {
            enabled: true,
            lookup: true,
            corpus: CorpusScope::Client,
            corpus_tokens_max: 32 * 1024,
            corpora_max: 64,
            corpus_keep: true,
        }
    }
}

impl SpeculationConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.within(
            "speculation.corpus-tokens-max",
            self.corpus_tokens_max,
            256..=Corpus::TOKENS_MAX,
        );
        problems.within("speculation.corpora-max", self.corpora_max, 1..=1024);
    }
}
