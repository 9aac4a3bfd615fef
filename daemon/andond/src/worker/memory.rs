//! What the loaded models and what goes with them may take of the memory that there is for andond.
//!
//! Invariant: only a budget that is smaller than what the configured model cannot do without keeps it from being served:
//! others make room for it. Pages are kept on the disk if what that takes fits beside it, earlier answers of no more clients
//! than fit, and a draft gets what all that leaves. Another model is loaded only where the system has what it takes left, too.

use std::fmt;
use std::sync::Arc;

use andon_engine::speculate::Corpus;
use andon_engine::{Model, Needs, pack};

use crate::config::Config;
use crate::config::cache::PackWhen;
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
    /// What a device has of this machine's memory for good, and what it and the daemon have beside until the weights are there.
    device: usize,
    pieces: usize,
    /// The vocabulary that answers with a shape need.
    shapes: usize,
    /// A page of keys and values on its way to the disk, and one that is read; none where none are kept there.
    pages: usize,
    /// Earlier answers to tasks.
    answers: usize,
    /// Of how many clients or tasks those are.
    corpora_max: usize,
    /// Of how many they would be, and how many tokens each.
    wanted: (usize, usize),
}

impl Memory {
    /// That of a model whose executor takes `needs`, and to which `tasks` tasks are configured, of `all` that there is for it.
    ///
    /// Of a model that a device computes the files are read once and given back; only a processor that has to go on for one
    /// reads them again. Where the device's memory is this machine's, that reads them from the disk as far as the system has no
    /// room for them then: they are promised nothing beside their copies.
    pub(super) fn of(
        config: &Config,
        model: &Model,
        needs: &Needs,
        tasks: usize,
        all: Option<u64>,
    ) -> Memory {
        let goes_on = config.engine.backend_fallback;
        let shared = needs.device.filter(|device| device.integrated);
        let memory = Memory {
            all: all.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            weights: match needs.device {
                None => weights(config, model),
                Some(device) if device.integrated || !goes_on => 0,
                Some(_) => model.info().file_bytes,
            },
            activations: needs.activations,
            kv_cache: needs.kv_cache,
            device: shared.map_or(0, |device| device.there().saturating_sub(device.pieces)),
            // There and here.
            pieces: shared.map_or(0, |device| device.pieces.saturating_mul(2)),
            shapes: model.grammar_vocabulary_bytes(),
            pages: if config.keeps_pages() {
                needs.page.saturating_mul(2)
            } else {
                0
            },
            answers: 0,
            corpora_max: 0,
            wanted: (0, 0),
        };
        let speculation = &config.speculation;
        memory.wanting(speculation.corpora(tasks), speculation.corpus_tokens_max)
    }

    /// With the files, since the processor serves before a device does.
    pub(super) fn with_files(self, config: &Config, model: &Model) -> Memory {
        Memory {
            weights: weights(config, model),
            ..self
        }
    }

    /// Bytes that a device has for good of this machine's memory.
    pub(super) fn device(&self) -> u64 {
        self.device as u64
    }

    /// To keep earlier answers of so many clients or tasks, each of at most `tokens_max` tokens.
    fn wanting(mut self, corpora: usize, tokens_max: usize) -> Memory {
        self.wanted = (corpora, tokens_max);
        self
    }

    /// With earlier answers of as many clients or tasks as are wanted, or fit into `left` bytes.
    fn keeping(mut self, left: Option<usize>) -> Memory {
        let (corpora, tokens_max) = self.wanted;
        let bytes = Corpus::bytes_max(tokens_max).max(1);
        let left = left.unwrap_or(usize::MAX);
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

    /// Whether there is memory for pages on their way to the disk and back.
    pub(super) fn keeps_pages(&self) -> bool {
        self.pages > 0
    }

    /// Of how many clients or tasks earlier answers are kept in memory.
    pub(super) fn corpora_max(&self) -> usize {
        self.corpora_max
    }

    /// Has all parts promised: what the model cannot do without in full, pages if there is room for them, and earlier answers
    /// as far as there is.
    ///
    /// # Errors
    /// There is not so much.
    pub(super) fn promise(
        mut self,
        budget: &Arc<Budget>,
        needed: bool,
    ) -> Result<(Memory, Vec<Reservation>), Refusal> {
        let parts = [
            (Part::Weights, Held::Mapped, self.weights),
            (
                Part::Working,
                Held::Private,
                self.activations.saturating_add(self.kv_cache),
            ),
            // The driver takes that later; until then it is owed.
            (
                Part::Device,
                Held::Private,
                self.device.saturating_add(self.pieces),
            ),
            (Part::Shapes, Held::Private, self.shapes),
        ];
        let all = parts
            .into_iter()
            .map(|(part, held, bytes)| promised(budget, needed, part, held, bytes as u64));
        let mut all = all.collect::<Result<Vec<_>, _>>()?;
        // Before earlier answers, which may take all that is left.
        if self.keeps_pages() {
            match promised(
                budget,
                needed,
                Part::Pages,
                Held::Private,
                self.pages as u64,
            ) {
                Ok(pages) => all.push(pages),
                Err(refusal) => {
                    tracing::warn!(%refusal, "nothing is kept of prompts for the next start");
                    self.pages = 0;
                }
            }
        }
        let (memory, answers) = loop {
            let left = budget.left();
            let left = left.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
            let memory = self.clone().keeping(left);
            // Somebody else may have taken of it since; of none there is always room.
            match budget.reserve(Part::Answers, Held::Private, memory.answers as u64) {
                Ok(answers) => break (memory, answers),
                Err(refusal) if memory.answers == 0 => return Err(refusal),
                Err(_) => {}
            }
        };
        all.push(answers);
        tracing::info!(
            all = memory.all,
            weights = memory.weights,
            activations = memory.activations,
            kv_cache = memory.kv_cache,
            device = memory.device,
            shapes = memory.shapes,
            pages = memory.pages,
            earlier_answers = memory.answers,
            "bytes of memory, at most"
        );
        Ok((memory, all))
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
    pub(super) fn parts(&self) -> [(&'static str, usize); 7] {
        [
            ("weights", self.weights),
            ("activations", self.activations),
            ("kv_cache", self.kv_cache),
            ("device", self.device),
            ("shapes", self.shapes),
            ("pages", self.pages),
            ("answers", self.answers),
        ]
    }
}

/// Bytes of a model's weights: of its own file, or with a pack, which may be made while it is served.
pub(super) fn weights(config: &Config, model: &Model) -> usize {
    let more = match config.cache.pack {
        PackWhen::Never => 0,
        PackWhen::Added | PackWhen::Idle => pack::growth(model),
    };
    model.info().file_bytes.saturating_add(more)
}

/// Memory for a part, promised; whatever the system has left now for a model that is needed.
///
/// # Errors
/// There is not so much.
pub(super) fn promised(
    budget: &Arc<Budget>,
    needed: bool,
    part: Part,
    held: Held,
    bytes: u64,
) -> Result<Reservation, Refusal> {
    if needed {
        budget.require(part, held, bytes)
    } else {
        budget.reserve(part, held, bytes)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "of {} bytes, the model's weights take {}, its activations {}, its KV cache {}, its copies for a device {}, its \
             vocabulary for answers with a shape {}, pages for the disk {}, and earlier answers up to {} ([speculation] corpora-max and corpus-tokens-max)",
            self.all.unwrap_or(usize::MAX),
            self.weights,
            self.activations,
            self.kv_cache,
            self.device,
            self.shapes,
            self.pages,
            self.answers
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::draft;
    use super::Memory;
    use crate::config::speculation::{CorpusScope, SpeculationConfig};
    use crate::memory::Budget;
    use andon_engine::speculate::Corpus;
    use andon_policy::memory::{Limits, Reading};

    fn memory(all: Option<usize>) -> Memory {
        Memory {
            all,
            weights: 100,
            activations: 5,
            kv_cache: 15,
            device: 0,
            pieces: 0,
            shapes: 3,
            pages: 0,
            answers: 0,
            corpora_max: 0,
            wanted: (0, 0),
        }
    }

    #[test]
    fn what_earlier_answers_may_take_is_not_left_for_others() {
        let bytes = Corpus::bytes_max(256);
        let full = memory(Some(123 + 5 * bytes + 7)).wanting(4, 256);
        let left = full.left();
        let full = full.keeping(left);
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
        let unknown = memory(None).wanting(4, 256).keeping(None);
        assert_eq!((unknown.corpora_max, unknown.left()), (4, None));
    }

    #[test]
    fn earlier_answers_are_of_as_many_as_fit() {
        let bytes = Corpus::bytes_max(256);
        for (left, fit) in [(2 * bytes, 2), (2 * bytes - 1, 1), (0, 0)] {
            let memory = memory(Some(123 + left)).wanting(4, 256).keeping(Some(left));
            assert_eq!((memory.corpora_max, memory.answers), (fit, fit * bytes));
        }
        assert_eq!(
            memory(Some(50)).wanting(4, 256).keeping(Some(0)).left(),
            Some(0)
        );
    }

    #[test]
    fn a_model_is_not_refused_for_want_of_room_for_earlier_answers() {
        let bytes = Corpus::bytes_max(256) as u64;
        let budget = Budget::new(Limits {
            bytes_max: Some(1 << 30),
            ..Limits::default()
        });
        let reading = Reading {
            left_bytes: Some(123 + 2 * bytes),
            ..Reading::default()
        };
        budget.read(reading, 0);
        let wanted = || memory(Some(1 << 30)).wanting(4, 256);
        let (kept, promised) = wanted().promise(&budget, false).expect("two fit");
        assert_eq!((kept.corpora_max(), promised.len()), (2, 5));
        // The system has no more; the model that is needed is held to the budget only.
        assert!(wanted().promise(&budget, false).is_err());
        let (kept, _promised) = wanted().promise(&budget, true).expect("it is needed");
        assert_eq!(kept.corpora_max(), 0);
    }

    #[test]
    fn pages_go_before_earlier_answers_and_a_model_is_not_refused_for_them() {
        let bytes = Corpus::bytes_max(256);
        let kept = |all: usize| {
            let budget = Budget::new(Limits {
                bytes_max: Some(all as u64),
                ..Limits::default()
            });
            let wanted = Memory {
                pages: 50,
                ..memory(Some(all)).wanting(4, 256)
            };
            let (kept, _promised) = wanted.promise(&budget, true).expect("it fits");
            (kept.keeps_pages(), kept.corpora_max())
        };
        assert_eq!(kept(123 + 50 + 2 * bytes), (true, 2));
        assert_eq!(kept(123 + 49 + 2 * bytes), (true, 1));
        assert_eq!(kept(123 + 50), (true, 0));
        assert_eq!(kept(123 + 49), (false, 0));
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
