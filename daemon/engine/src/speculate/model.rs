//! A small model as a drafter: it reads the same texts, in its own tokens ([`super::translate`]) where those are others, and
//! says what it would choose.
//!
//! Invariant: what a text's sequence holds is what its list of tokens says, a beginning of some text that was given;
//! everything else is looked up anew at each call, so a call that failed leaves nothing wrong behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use super::translate::{Told, Translator};
use super::{Drafter, NEAR_TOKENS, Wanted};
use crate::sample::{ANOTHER_DRAW, History, LogitBias, LogitRow, Sampler, SamplingOptions};
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
    /// The tokens that the sequence holds, which are the draft's.
    tokens: Vec<u32>,
    /// The text in the draft's tokens, where these are others than the model's.
    told: Told,
}

impl Text {
    /// A text of which as much is read as the cache remembers of its tokens `ids`.
    fn begin(executor: &Executor, told: Told, ids: &[u32]) -> Text {
        let sequence = executor.sequence_of(ids);
        let tokens = ids[..sequence.len()].to_vec();
        Text {
            sequence,
            tokens,
            told,
        }
    }

    /// Forgets what is not the beginning of `ids`.
    fn follow(&mut self, ids: &[u32]) {
        let common = common(&self.tokens, ids);
        self.tokens.truncate(common);
        self.sequence.truncate(common);
    }
}

/// How many of `tokens` are the beginning of `text`. The last of `text` is never one: what comes after it is only known from
/// computing it.
fn common(tokens: &[u32], text: &[u32]) -> usize {
    let before = &text[..text.len().saturating_sub(1)];
    let same = tokens.iter().zip(before);
    same.take_while(|(mine, its)| mine == its).count()
}

/// A model that guesses for another.
#[derive(Debug)]
pub struct DraftModel {
    executor: Executor,
    /// Where its tokens are others than the model's.
    translator: Option<Translator>,
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
    /// What may be guessed, of an answer that is held to a shape.
    mask: Vec<u32>,
}

/// An answer that is guessed for.
#[derive(Debug)]
struct Going<'w, 'a> {
    wanted: &'w mut Wanted<'a>,
    sequence: &'w mut Sequence,
    /// The tokens that the sequence holds.
    tokens: &'w mut Vec<u32>,
    /// The text, and what was guessed behind it.
    ids: &'w [u32],
    guesses: Vec<u32>,
    /// Most guesses.
    count: usize,
}

impl Going<'_, '_> {
    /// What of the text and the guesses behind it is not read.
    fn unread(&self) -> &[u32] {
        match self.ids.get(self.tokens.len()..) {
            Some(unread) if !unread.is_empty() => unread,
            // The guesses begin where the text was read to its end.
            _ => &self.guesses[self.tokens.len() - self.ids.len()..],
        }
    }
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
    /// A draft for the model of `target`, which lends its threads. One of another vocabulary is told texts in its own tokens,
    /// and its guesses are cut into the model's, which costs some of them.
    ///
    /// # Errors
    /// [`DraftError`] if it cannot be run, or is of another vocabulary and cannot say all of it.
    pub fn new(
        model: Arc<Model>,
        target: &Executor,
        options: &ExecutorOptions,
    ) -> Result<DraftModel, DraftError> {
        let translator = match check_vocabulary(target.model(), &model) {
            Ok(()) => None,
            Err(error) if model.draft_tokens().is_some() => return Err(error),
            Err(_) => Some(Translator::new(
                target.model().shared_tokenizer(),
                model.shared_tokenizer(),
            )),
        };
        let trimmed = Trimmed::of(&model);
        let executor = Executor::beside(target, model, options)?;
        let tokens = executor.batch_tokens_max();
        if tokens < NEAR_TOKENS {
            return Err(DraftError::Batch { tokens });
        }
        Ok(DraftModel {
            executor,
            translator,
            texts: BTreeMap::new(),
            rounds: Rounds {
                sampler: Sampler::new(),
                vocabulary_count: target.model().info().vocabulary_count,
                answer: Vec::new(),
                trimmed,
                mask: Vec::new(),
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
        self.executor.needs().bytes()
    }

    /// Its executor, for what that can tell about itself.
    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// Whether its vocabulary is the model's, so that each of its guesses is a token of it.
    #[must_use]
    pub fn has_same_vocabulary(&self) -> bool {
        self.translator.is_none()
    }

    /// What is known of a text by `id`, out of the map for the time; it begins as `text` does.
    fn known(&mut self, id: u64, text: &[u32]) -> Text {
        let known = self.texts.remove(&id);
        let Some(translator) = &self.translator else {
            let begin = || Text::begin(&self.executor, Told::default(), text);
            let mut known = known.unwrap_or_else(begin);
            known.follow(text);
            return known;
        };
        match known {
            Some(mut known) => {
                let mut told = std::mem::take(&mut known.told);
                translator.tell(&mut told, text);
                known.follow(told.ids());
                known.told = told;
                known
            }
            None => {
                let mut told = Told::default();
                translator.tell(&mut told, text);
                let mut known = Text::begin(&self.executor, Told::default(), told.ids());
                known.told = told;
                known
            }
        }
    }

    /// Runs `work` with the threads of `beside`, if there is one.
    fn run<T>(
        &mut self,
        beside: Option<&mut Executor>,
        work: impl FnOnce(&mut Executor, &mut Rounds) -> T,
    ) -> T {
        let (executor, rounds) = (&mut self.executor, &mut self.rounds);
        match beside {
            Some(other) => executor.with_threads_of(other, |executor| work(executor, rounds)),
            None => work(executor, rounds),
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
        if self.executor.model().damaged().is_some() {
            return None;
        }
        let context = self.executor.context_tokens_max();
        let known = self.texts.get(&id);
        if self.translator.is_some() {
            // What was not told yet is taken to be as many tokens.
            let (unheard, told, read) = known.map_or((text.len(), 0, 0), |known| {
                let unheard = known.told.unheard(text);
                (unheard, known.told.ids().len(), known.tokens.len())
            });
            let fits = told + unheard < context;
            return fits.then(|| (unheard + told.saturating_sub(read)).max(1));
        }
        if text.len() >= context {
            return None;
        }
        let unread = &text[known.map_or(0, |known| common(&known.tokens, text))..];
        let count = self.executor.model().info().vocabulary_count;
        let unknown = unread.iter().any(|&token| token as usize >= count);
        (!unknown).then_some(unread.len())
    }

    fn read(&mut self, beside: Option<&mut Executor>, id: u64, text: &[u32]) -> usize {
        let mut known = self.known(id, text);
        let ids = match &self.translator {
            Some(_) => known.told.ids(),
            None => text,
        };
        let most = self.executor.batch_tokens_max().min(READ_TOKENS_MAX);
        // The last is left for when guesses are wanted.
        let before = ids.len().saturating_sub(1);
        let unread = ids.get(known.tokens.len()..before).unwrap_or_default();
        let tokens = &unread[..unread.len().min(most)];
        let sequence = &mut known.sequence;
        let done = !tokens.is_empty()
            && self.run(beside, |executor, _| {
                let chunk = Chunk {
                    sequence,
                    tokens,
                    logits: LogitsFor::None,
                };
                executor.forward(&mut [chunk]).is_ok()
            });
        let count = if done { tokens.len() } else { 0 };
        known.tokens.extend_from_slice(&tokens[..count]);
        self.texts.insert(id, known);
        count
    }

    fn draft(&mut self, beside: Option<&mut Executor>, wanted: &mut [Wanted<'_>]) -> usize {
        let mut followed: Vec<Text> = wanted
            .iter()
            .map(|wanted| self.known(wanted.id, wanted.text))
            .collect();
        let translates = self.translator.is_some();
        let mut going: Vec<Going<'_, '_>> = wanted
            .iter_mut()
            .zip(&mut followed)
            .map(|(wanted, known)| Going {
                ids: if translates {
                    known.told.ids()
                } else {
                    wanted.text
                },
                // Of the last, more would have to be known.
                count: wanted.count + usize::from(translates),
                wanted,
                sequence: &mut known.sequence,
                tokens: &mut known.tokens,
                guesses: Vec::new(),
            })
            .collect();
        let passes = self.run(beside, |executor, rounds| {
            rounds.make(executor, &mut going, translates)
        });
        let said: Vec<Vec<u32>> = going.into_iter().map(|going| going.guesses).collect();
        let mut most = 0;
        for ((wanted, known), said) in wanted.iter_mut().zip(followed).zip(said) {
            match &self.translator {
                Some(translator) => {
                    let heard = translator.heard(&known.told, &said, wanted.count);
                    wanted.guesses.extend(heard);
                }
                None => wanted.guesses.extend(said),
            }
            most = most.max(wanted.guesses.len());
            self.texts.insert(wanted.id, known);
        }
        // It is asked for guesses, and what each of them costs is to be known.
        if translates {
            passes.min(most.max(1))
        } else {
            passes
        }
    }

    fn forget(&mut self, id: u64) {
        self.texts.remove(&id);
    }
}

impl Rounds {
    /// Guesses a token for each of `all` in a pass, until each has as many as it is to have or can have. Returns how many
    /// passes were made.
    fn make(
        &mut self,
        executor: &mut Executor,
        all: &mut [Going<'_, '_>],
        translates: bool,
    ) -> usize {
        let model = Arc::clone(executor.model());
        let known = model.draft_tokens().unwrap_or_default();
        let mut passes = 0;
        let mut going: Vec<&mut Going<'_, '_>> = all
            .iter_mut()
            .filter(|going| going.count > 0 && !going.ids.is_empty())
            .collect();
        while !going.is_empty() {
            // Those that a pass has no room for do without.
            let mut room = executor.batch_tokens_max();
            let context = executor.context_tokens_max();
            going.retain(|going| {
                let unread = going.unread().len();
                let fits = unread <= room && going.tokens.len() + unread <= context;
                room -= if fits { unread } else { 0 };
                fits
            });
            let mut chunks: Vec<Chunk<'_>> = Vec::with_capacity(going.len());
            for going in &mut going {
                let read = going.tokens.len();
                let unread = going.unread().to_vec();
                going.tokens.extend_from_slice(&unread);
                chunks.push(Chunk {
                    tokens: &going.tokens[read..],
                    sequence: going.sequence,
                    logits: LogitsFor::Last,
                });
            }
            let forwarded = executor.forward_unless(&mut chunks, &|| false);
            drop(chunks);
            let outputs = match forwarded {
                Ok(outputs) => outputs,
                Err(error) => {
                    for going in &mut going {
                        going.tokens.truncate(going.sequence.len());
                    }
                    if matches!(error, ForwardError::KvFull { .. }) {
                        going.pop();
                        continue;
                    }
                    break;
                }
            };
            passes += 1;
            let mut row = 0;
            going.retain_mut(|going| {
                let logits = outputs.row(row);
                row += 1;
                let chosen = if translates {
                    self.likeliest(logits)
                } else {
                    self.choose(going, known, logits)
                };
                let Some(token) = chosen else {
                    return false;
                };
                going.guesses.push(token);
                let over = translates && !model.tokenizer().is_text(token);
                going.guesses.len() < going.count && !over
            });
        }
        passes
    }

    /// The token that the draft takes to be likeliest: what another vocabulary would have drawn is not known.
    fn likeliest(&mut self, logits: LogitRow<'_>) -> Option<u32> {
        let (options, bias) = (SamplingOptions::default(), LogitBias::default());
        let chosen = self
            .sampler
            .sample(logits, &options, &bias, History::default(), 0);
        chosen.ok()
    }

    /// What the draft would choose after a text and the guesses behind it, drawn as the model's token there will be: where
    /// both find the same tokens likely, the same draw tends to choose the same one. Of a trimmed draft, `logits` are those of
    /// `tokens`.
    fn choose(
        &mut self,
        going: &Going<'_, '_>,
        tokens: &[u32],
        logits: LogitRow<'_>,
    ) -> Option<u32> {
        let wanted = &*going.wanted;
        let (prompt, answer) = wanted.text.split_at(wanted.prompt_tokens);
        let generated = if going.guesses.is_empty() {
            answer
        } else {
            self.answer.clear();
            self.answer.extend_from_slice(answer);
            self.answer.extend_from_slice(&going.guesses);
            &self.answer
        };
        let history = History { prompt, generated };
        let position = (wanted.before + prompt.len() + generated.len()) as u64;
        let (row, among) = match &mut self.trimmed {
            Some(trimmed) => {
                trimmed.spread(tokens, logits.all()?);
                ((&trimmed.row).into(), Some(&trimmed.known[..]))
            }
            None => (logits, None),
        };
        let (sampling, bias) = (wanted.sampling, wanted.bias);
        let (sampler, mask) = (&mut self.sampler, &mut self.mask);
        let mut sample = |position: u64, among: Option<&[u32]>| {
            let chosen = sampler.sample_among(row, sampling, bias, history, position, among);
            chosen.ok()
        };
        let chosen = match wanted.limits {
            None => sample(position, among),
            // As the answer's own tokens are chosen: where all are kept, one is drawn among all, and another if it may not
            // come; where some are left out, that depends on which may come.
            Some(limits) => limits.guess(&mut |words| {
                let Some(words) = words else {
                    let same = sampling.keeps_all() || sampling.takes_largest();
                    return same.then(|| sample(position, among)).flatten();
                };
                let another = if sampling.keeps_all() {
                    ANOTHER_DRAW
                } else {
                    0
                };
                let Some(among) = among else {
                    return sample(position | another, Some(words));
                };
                mask.clear();
                mask.extend(words.iter().zip(among).map(|(one, other)| one & other));
                sample(position | another, Some(mask))
            }),
        };
        let known = |&token: &u32| (token as usize) < self.vocabulary_count;
        chosen.filter(known)
    }
}
