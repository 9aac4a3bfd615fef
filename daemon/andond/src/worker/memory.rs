//! What the loaded models and what goes with them may take of the memory that there is for andond.
//!
//! Invariant: only a budget that is smaller than what the configured model cannot do without keeps it from being served.
//! Earlier answers are kept of no more clients than fit beside it, and a draft gets what all that leaves. A model that somebody
//! asks for is loaded only where the system has what it takes left, too.

use std::fmt;
use std::sync::Arc;

use andon_engine::Executor;
use andon_engine::speculate::Corpus;

use crate::config::Config;
use crate::memory::{Budget, Held, Part, Refusal, Reservation};

/// Bytes, each the most that its part takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Memory {
    /// All that there is; `None` if the system does not say.
    all: Option<usize>,
    weights: usize,
    activations: usize,
    /// The KV cache when it is full.
    kv_cache: usize,
    /// The vocabulary that answers with a shape need.
    shapes: usize,
    /// Earlier answers to tasks.
    answers: usize,
    /// Of how many clients or tasks those are.
    corpora_max: usize,
}

impl Memory {
    /// That of what `executor` runs, to which `tasks` tasks are configured, of `all` that there is for it.
    pub(super) fn of(
        config: &Config,
        executor: &Executor,
        tasks: usize,
        all: Option<u64>,
    ) -> Memory {
        let model = executor.model();
        let kv_cache = executor
            .kv_tokens_max()
            .saturating_mul(executor.kv_bytes_per_token());
        let memory = Memory {
            all: all.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            weights: model.info().file_bytes,
            activations: executor.bytes().saturating_sub(kv_cache),
            kv_cache,
            shapes: model.grammar_vocabulary_bytes(),
            answers: 0,
            corpora_max: 0,
        };
        let speculation = &config.speculation;
        let memory = memory.keeping(speculation.corpora(tasks), speculation.corpus_tokens_max);
        tracing::info!(
            all = memory.all,
            weights = memory.weights,
            activations = memory.activations,
            kv_cache = memory.kv_cache,
            shapes = memory.shapes,
            earlier_answers = memory.answers,
            "bytes of memory, at most"
        );
        memory
    }

    /// With earlier answers of so many clients or tasks, or as many as fit, each of at most `tokens_max` tokens.
    fn keeping(mut self, corpora: usize, tokens_max: usize) -> Memory {
        let bytes = Corpus::bytes_max(tokens_max).max(1);
        let left = self.left().unwrap_or(usize::MAX);
        self.corpora_max = corpora.min(left / bytes);
        self.answers = self.corpora_max.saturating_mul(bytes);
        if self.corpora_max < corpora {
            tracing::warn!(
                kept = self.corpora_max,
                configured = corpora,
                bytes_each = bytes,
                left,
                "there is memory for earlier answers of fewer clients or tasks than [speculation] corpora-max and \
                 corpus-tokens-max ask for"
            );
        }
        self
    }

    /// Of how many clients or tasks earlier answers are kept in memory.
    pub(super) fn corpora_max(&self) -> usize {
        self.corpora_max
    }

    /// Has all parts promised; of a model that somebody asks for only if the system has that left now.
    ///
    /// # Errors
    /// There is not so much.
    pub(super) fn promise(
        &self,
        budget: &Arc<Budget>,
        asked: bool,
    ) -> Result<Vec<Reservation>, Refusal> {
        [
            (Part::Weights, Held::Mapped, self.weights),
            (
                Part::Working,
                Held::Private,
                self.activations.saturating_add(self.kv_cache),
            ),
            (Part::Shapes, Held::Private, self.shapes),
            (Part::Answers, Held::Private, self.answers),
        ]
        .into_iter()
        .map(|(part, held, bytes)| {
            if asked {
                budget.reserve(part, held, bytes as u64)
            } else {
                budget.require(part, held, bytes as u64)
            }
        })
        .collect()
    }

    /// Bytes of all parts together.
    pub(super) fn bytes(&self) -> usize {
        let parts = self.parts().map(|(_, bytes)| bytes);
        parts.into_iter().fold(0, usize::saturating_add)
    }

    /// Bytes that are left for others; `None` if that is not known.
    pub(super) fn left(&self) -> Option<usize> {
        let taken = self.bytes();
        self.all.map(|all| all.saturating_sub(taken))
    }

    /// The parts by the names that metrics have for them.
    pub(super) fn parts(&self) -> [(&'static str, usize); 5] {
        [
            ("weights", self.weights),
            ("activations", self.activations),
            ("kv_cache", self.kv_cache),
            ("shapes", self.shapes),
            ("answers", self.answers),
        ]
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "of {} bytes, the model's weights take {}, its activations {}, its KV cache {}, its vocabulary for answers with a \
             shape {}, and earlier answers up to {} ([speculation] corpora-max and corpus-tokens-max)",
            self.all.unwrap_or(usize::MAX),
            self.weights,
            self.activations,
            self.kv_cache,
            self.shapes,
            self.answers
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::draft;
    use super::Memory;
    use crate::config::speculation::{CorpusScope, SpeculationConfig};
    use andon_engine::speculate::Corpus;

    fn memory(all: Option<usize>) -> Memory {
        Memory {
            all,
            weights: 100,
            activations: 5,
            kv_cache: 15,
            shapes: 3,
            answers: 0,
            corpora_max: 0,
        }
    }

    #[test]
    fn what_earlier_answers_may_take_is_not_left_for_others() {
        let bytes = Corpus::bytes_max(256);
        let full = memory(Some(123 + 5 * bytes + 7)).keeping(4, 256);
        assert_eq!((full.corpora_max, full.answers), (4, 4 * bytes));
        assert_eq!(full.left(), Some(bytes + 7));
        let says = full.to_string();
        for part in [
            "weights take 100",
            "activations 5",
            "cache 15",
            "shape 3",
            "up to 40960",
            "corpora-max",
        ] {
            assert!(says.contains(part), "{part:?} in {says}");
        }
        assert_eq!(draft::left(7, 10, &full), Ok(3));
        assert_eq!(draft::left(7, usize::MAX, &full), Ok(bytes));
        let refused = |most| draft::left(bytes + 8, most, &full).unwrap_err();
        assert!(refused(10).contains(&says) && refused(usize::MAX).contains(&says));
        assert!(
            draft::left(11, 10, &full)
                .unwrap_err()
                .contains("draft-bytes-max")
        );
        let unknown = memory(None).keeping(4, 256);
        assert_eq!((unknown.corpora_max, unknown.left()), (4, None));
    }

    #[test]
    fn earlier_answers_are_of_as_many_as_fit() {
        let bytes = Corpus::bytes_max(256);
        for (left, fit) in [(2 * bytes, 2), (2 * bytes - 1, 1), (0, 0)] {
            let memory = memory(Some(123 + left)).keeping(4, 256);
            assert_eq!((memory.corpora_max, memory.answers), (fit, fit * bytes));
        }
        assert_eq!(memory(Some(50)).keeping(4, 256).left(), Some(0));
    }

    #[test]
    fn only_corpora_that_can_be_count() {
        let config = |enabled, corpus| SpeculationConfig {
            enabled,
            corpus,
            corpora_max: 8,
            ..SpeculationConfig::default()
        };
        for (enabled, corpus, tasks, corpora) in [
            (true, CorpusScope::Client, 3, 8),
            (true, CorpusScope::Client, 0, 0),
            (true, CorpusScope::Task, 3, 3),
            (true, CorpusScope::Task, 9, 8),
            (true, CorpusScope::Off, 3, 0),
            (false, CorpusScope::Client, 3, 0),
        ] {
            let config = config(enabled, corpus);
            assert_eq!(config.corpora(tasks), corpora, "{corpus:?} {tasks}");
        }
    }
}
