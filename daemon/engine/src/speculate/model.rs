//! A small model as a drafter: it reads the same texts and says what it would choose.
//!
//! Invariant: what a text's sequence holds is what its list of tokens says, a beginning of some text that was given;
//! everything else is looked up anew at each call, so a call that failed leaves nothing wrong behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use super::{Drafter, NEAR_TOKENS, Wanted};
use crate::sample::{History, Sampler};
use crate::{
    Chunk, Executor, ExecutorError, ExecutorOptions, ForwardError, LogitsFor, Model, Sequence,
};

/// Tokens of a text that are read at a time, if the executor takes as many.
const READ_TOKENS_MAX: usize = 128;

/// Why a model is no draft for another.
#[derive(Debug, Error)]
pub enum DraftError {
    /// It cannot be run.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// A token is another one.
    #[error(
        "token {id} is `{draft}` in the draft and `{target}` in the model: the vocabularies differ"
    )]
    Token {
        /// The first that differs.
        id: u32,
        /// Its bytes in the model, as text.
        target: String,
        /// Its bytes in the draft.
        draft: String,
    },
    /// A token with a meaning is another one.
    #[error("the {name} token is {draft:?} in the draft and {target:?} in the model")]
    Special {
        /// Its meaning.
        name: &'static str,
        /// In the model.
        target: Option<u32>,
        /// In the draft.
        draft: Option<u32>,
    },
    /// A batch is too small to keep up with answers.
    #[error("a batch of {tokens} tokens is too small for a draft, which needs {NEAR_TOKENS}")]
    Batch {
        /// Tokens of a batch.
        tokens: usize,
    },
}

/// One text that is followed.
#[derive(Debug)]
struct Text {
    sequence: Sequence,
    /// The tokens that the sequence holds.
    tokens: Vec<u32>,
}

impl Text {
    /// How many of its tokens are the beginning of `text`. The last of `text` is never one: what comes after it is only
    /// known from computing it.
    fn common(&self, text: &[u32]) -> usize {
        let before = &text[..text.len().saturating_sub(1)];
        let same = self.tokens.iter().zip(before);
        same.take_while(|(mine, its)| mine == its).count()
    }

    /// Forgets what is not the beginning of `text`.
    fn follow(&mut self, text: &[u32]) {
        let common = self.common(text);
        self.tokens.truncate(common);
        self.sequence.truncate(common);
    }
}

/// A model that guesses for another of the same vocabulary.
#[derive(Debug)]
pub struct DraftModel {
    executor: Executor,
    texts: BTreeMap<u64, Text>,
    rounds: Rounds,
}

/// What guessing needs beside the executor.
#[derive(Debug)]
struct Rounds {
    sampler: Sampler,
    /// Ids from here on are none of the model's.
    vocabulary_count: usize,
    /// The tokens of an answer with guesses behind them.
    answer: Vec<u32>,
    trimmed: Option<Trimmed>,
}

/// What it takes to choose among the tokens of a draft that guesses some only.
#[derive(Debug)]
struct Trimmed {
    /// A bit for each token that it has a logit for.
    known: Vec<u32>,
    /// A row of the whole vocabulary; only places of known tokens are ever looked at.
    row: Vec<f32>,
}

impl Trimmed {
    fn of(model: &Model) -> Option<Trimmed> {
        let tokens = model.draft_tokens()?;
        let vocabulary = model.info().vocabulary_count;
        let mut known = vec![0; vocabulary.div_ceil(32)];
        for &token in tokens {
            known[token as usize / 32] |= 1 << (token % 32);
        }
        Some(Trimmed {
            known,
            row: vec![0.0; vocabulary],
        })
    }

    /// Puts each of `logits` in the place of its token.
    fn spread(&mut self, tokens: &[u32], logits: &[f32]) {
        for (&token, &logit) in tokens.iter().zip(logits) {
            self.row[token as usize] = logit;
        }
    }
}

impl DraftModel {
    /// A draft for the model of `target`, which lends its threads.
    ///
    /// # Errors
    /// [`DraftError`]: if the vocabularies differ, or it cannot be run.
    pub fn new(
        model: Arc<Model>,
        target: &Executor,
        options: &ExecutorOptions,
    ) -> Result<DraftModel, DraftError> {
        check_vocabulary(target.model(), &model)?;
        let trimmed = Trimmed::of(&model);
        let executor = Executor::beside(target, model, options)?;
        let tokens = executor.batch_tokens_max();
        if tokens < NEAR_TOKENS {
            return Err(DraftError::Batch { tokens });
        }
        Ok(DraftModel {
            executor,
            texts: BTreeMap::new(),
            rounds: Rounds {
                sampler: Sampler::new(),
                vocabulary_count: target.model().info().vocabulary_count,
                answer: Vec::new(),
                trimmed,
            },
        })
    }

    /// What it is expected to cost to go through its weights, relative to a pass of `target` over one token.
    #[must_use]
    pub fn expected_cost(&self, target: &Model) -> f32 {
        self.executor.model().bytes_per_token() as f32 / target.bytes_per_token().max(1) as f32
    }

    /// Bytes of its activations and KV cache, beside the weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.executor.bytes()
    }

    /// Its executor, for what that can tell about itself.
    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Runs `work` with the threads of `beside`, if there is one.
    fn run<T>(
        &mut self,
        beside: Option<&mut Executor>,
        work: impl FnOnce(&mut Executor, &mut BTreeMap<u64, Text>, &mut Rounds) -> T,
    ) -> T {
        let (executor, texts, rounds) = (&mut self.executor, &mut self.texts, &mut self.rounds);
        match beside {
            Some(other) => {
                executor.with_threads_of(other, |executor| work(executor, texts, rounds))
            }
            None => work(executor, texts, rounds),
        }
    }
}

/// That each token of `target` that `draft` knows too is the same.
fn check_vocabulary(target: &Model, draft: &Model) -> Result<(), DraftError> {
    let (target, draft) = (target.tokenizer(), draft.tokenizer());
    for (name, target, draft) in [
        ("beginning", target.bos(), draft.bos()),
        ("end", target.eos(), draft.eos()),
    ] {
        if target != draft {
            return Err(DraftError::Special {
                name,
                target,
                draft,
            });
        }
    }
    // Models of a family are padded to different sizes.
    let count = target.vocabulary_count().min(draft.vocabulary_count());
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for id in 0..u32::try_from(count).unwrap_or(u32::MAX) {
        let (its, mine) = (target.token_bytes(id), draft.token_bytes(id));
        if its != mine || target.is_control(id) != draft.is_control(id) {
            return Err(DraftError::Token {
                id,
                target: shown(its),
                draft: shown(mine),
            });
        }
    }
    Ok(())
}

impl Drafter for DraftModel {
    fn missing(&self, id: u64, text: &[u32]) -> Option<usize> {
        if text.len() >= self.executor.context_tokens_max() {
            return None;
        }
        let known = self.texts.get(&id).map_or(0, |known| known.common(text));
        let unread = &text[known..];
        let count = self.executor.model().info().vocabulary_count;
        let unknown = unread.iter().any(|&token| token as usize >= count);
        (!unknown).then_some(unread.len())
    }

    fn read(&mut self, beside: Option<&mut Executor>, id: u64, text: &[u32]) -> usize {
        self.run(beside, |executor, texts, _| {
            let known = texts.entry(id).or_insert_with(|| begin(executor, text));
            known.follow(text);
            let most = executor.batch_tokens_max().min(READ_TOKENS_MAX);
            // The last is left for when guesses are wanted.
            let unread = &text[known.tokens.len()..text.len().saturating_sub(1)];
            let tokens = &unread[..unread.len().min(most)];
            let chunk = Chunk {
                sequence: &mut known.sequence,
                tokens,
                logits: LogitsFor::None,
            };
            if tokens.is_empty() || executor.forward(&mut [chunk]).is_err() {
                return 0;
            }
            known.tokens.extend_from_slice(tokens);
            tokens.len()
        })
    }

    fn draft(&mut self, beside: Option<&mut Executor>, wanted: &mut [Wanted<'_>]) -> usize {
        self.run(beside, |executor, texts, rounds| {
            // Out of the map for the time, so that all can be changed at once.
            let mut followed: Vec<Text> = wanted
                .iter()
                .map(|wanted| {
                    let known = texts.remove(&wanted.id);
                    let mut known = known.unwrap_or_else(|| begin(executor, wanted.text));
                    known.follow(wanted.text);
                    known
                })
                .collect();
            let mut going: Vec<(&mut Wanted<'_>, &mut Text)> =
                wanted.iter_mut().zip(&mut followed).collect();
            let passes = rounds.make(executor, &mut going);
            for (wanted, known) in wanted.iter().zip(followed) {
                texts.insert(wanted.id, known);
            }
            passes
        })
    }

    fn forget(&mut self, id: u64) {
        self.texts.remove(&id);
    }
}

/// A text of which as much is read as the cache remembers.
fn begin(executor: &Executor, text: &[u32]) -> Text {
    let sequence = executor.sequence_of(text);
    let tokens = text[..sequence.len()].to_vec();
    Text { sequence, tokens }
}

impl Rounds {
    /// Guesses a token for each of `going` in a pass, until none is left. Returns how many passes were made.
    fn make(
        &mut self,
        executor: &mut Executor,
        going: &mut Vec<(&mut Wanted<'_>, &mut Text)>,
    ) -> usize {
        let model = Arc::clone(executor.model());
        let tokens = model.draft_tokens().unwrap_or_default();
        let mut passes = 0;
        going.retain(|(wanted, _)| wanted.count > 0 && !wanted.text.is_empty());
        while !going.is_empty() {
            // Those that a pass has no room for do without.
            let mut room = executor.batch_tokens_max();
            let context = executor.context_tokens_max();
            going.retain(|(wanted, known)| {
                let unread = unread(wanted, known).len();
                let fits = unread <= room && known.tokens.len() + unread <= context;
                room -= if fits { unread } else { 0 };
                fits
            });
            let mut chunks: Vec<Chunk<'_>> = going
                .iter_mut()
                .map(|(wanted, known)| Chunk {
                    tokens: unread(wanted, known),
                    sequence: &mut known.sequence,
                    logits: LogitsFor::Last,
                })
                .collect();
            let logits = match executor.forward(&mut chunks) {
                Ok(logits) => logits,
                Err(ForwardError::KvFull { .. }) => {
                    going.pop();
                    continue;
                }
                Err(_) => break,
            };
            passes += 1;
            let mut row = 0;
            going.retain_mut(|(wanted, known)| {
                let read = unread(wanted, known);
                known.tokens.extend_from_slice(read);
                let logits = logits.row(row);
                row += 1;
                let Some(token) = self.choose(wanted, tokens, logits) else {
                    return false;
                };
                wanted.guesses.push(token);
                wanted.guesses.len() < wanted.count
            });
        }
        passes
    }

    /// What the draft would choose after a text and the guesses behind it, drawn as the model's token there will be: where
    /// both find the same tokens likely, the same draw tends to choose the same one. Of a trimmed draft, `logits` are those of
    /// `tokens`.
    fn choose(&mut self, wanted: &Wanted<'_>, tokens: &[u32], logits: &[f32]) -> Option<u32> {
        let (prompt, answer) = wanted.text.split_at(wanted.prompt_tokens);
        let generated = if wanted.guesses.is_empty() {
            answer
        } else {
            self.answer.clear();
            self.answer.extend_from_slice(answer);
            self.answer.extend_from_slice(wanted.guesses);
            &self.answer
        };
        let history = History { prompt, generated };
        let position = (prompt.len() + generated.len()) as u64;
        let (row, among) = match &mut self.trimmed {
            Some(trimmed) => {
                trimmed.spread(tokens, logits);
                (&trimmed.row[..], Some(&trimmed.known[..]))
            }
            None => (logits, None),
        };
        let (sampling, bias) = (wanted.sampling, wanted.bias);
        let chosen = self
            .sampler
            .sample_among(row, sampling, bias, history, position, among);
        let known = |&token: &u32| (token as usize) < self.vocabulary_count;
        chosen.ok().filter(known)
    }
}

/// What of a text and the guesses behind it is not read.
fn unread<'a>(wanted: &'a Wanted<'_>, known: &Text) -> &'a [u32] {
    match known.tokens.get(..wanted.text.len()) {
        Some(_) => &wanted.guesses[known.tokens.len() - wanted.text.len()..],
        // The guesses begin where the text was read to its end.
        None => &wanted.text[known.tokens.len()..],
    }
}
