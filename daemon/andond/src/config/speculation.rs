//! `[speculation]`: tokens that are guessed, so that a pass gives more than one.

use std::path::Path;

use andon_engine::speculate::Corpus;
use andon_wire::limits::MODEL_BYTES_MAX;
use andon_wire::manifest::is_model_name;
use serde::{Deserialize, Serialize};

use super::Problems;

/// Whose earlier answers guesses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
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
#[derive(Debug, Clone, Deserialize, Serialize)]
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
    /// A small model that guesses: the path of its file, or the name of one that is kept.
    pub draft: Option<String>,
    /// Most memory that it may take: weights, activations and KV cache.
    pub draft_bytes_max: usize,
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
            draft: None,
            draft_bytes_max: 1 << 30,
        }
    }
}

/// Where a draft is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftPlace<'a> {
    /// A GGUF file.
    Path(&'a Path),
    /// A model that is kept.
    Kept(&'a str),
}

impl SpeculationConfig {
    /// For how many tasks, or clients of the `tasks` tasks that there are, answers are kept in memory.
    pub fn corpora(&self, tasks: usize) -> usize {
        match self.corpus {
            _ if !self.enabled || tasks == 0 => 0,
            CorpusScope::Off => 0,
            CorpusScope::Client => self.corpora_max,
            CorpusScope::Task => self.corpora_max.min(tasks),
        }
    }

    /// Where the draft is, if anything is to be guessed and one is named.
    pub fn draft_place(&self) -> Option<DraftPlace<'_>> {
        let draft = self.draft.as_deref().filter(|_| self.enabled)?;
        Some(if draft.starts_with('/') {
            DraftPlace::Path(Path::new(draft))
        } else {
            DraftPlace::Kept(draft)
        })
    }

    /// What the draft is called.
    pub fn draft_name(&self) -> Option<String> {
        Some(match self.draft_place()? {
            DraftPlace::Kept(name) => name.to_owned(),
            DraftPlace::Path(path) => path
                .file_stem()
                .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
        })
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        problems.within(
            "speculation.corpus-tokens-max",
            self.corpus_tokens_max,
            256..=Corpus::TOKENS_MAX,
        );
        problems.within("speculation.corpora-max", self.corpora_max, 1..=1024);
        problems.require(
            self.draft
                .as_deref()
                .is_none_or(|draft| draft.starts_with('/') || is_model_name(draft)),
            "speculation.draft",
            "is neither a path nor the name of a model that is kept",
            "begin a path with /, or use a name of `andonctl model ls`",
        );
        problems.within(
            "speculation.draft-bytes-max",
            self.draft_bytes_max,
            1 << 20..=usize::try_from(MODEL_BYTES_MAX).unwrap_or(usize::MAX),
        );
    }
}
