//! One generation under way, without its KV sequence.

use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::constrained::{Choose, Constrained, ConstraintCounts, Masker};
use super::event::{Event, FinishReason, GenerationId, Timings, TokenLogprob, Usage};
use super::output::Output;
use super::request::{GenerationRequest, StartError};
use crate::grammar::{Grammar, StateError};
use crate::sample::{
    ANOTHER_DRAW, History, LogitBias, LogitRow, SampleError, Sampler, SamplingOptions,
};
use crate::speculate::{Acceptance, Corpus, DRAFT_MAX, Guesser, Limits, Wanted};
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// Where the caller's events go.
pub(super) type Sink<'a> = &'a mut dyn FnMut(GenerationId, Event<'_>);

/// A token and what was asked to be known about it.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) id: u32,
    logprob: Option<TokenLogprob>,
}

/// Why none could be chosen.
#[derive(Debug, Error)]
pub(super) enum ChooseError {
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Constraint(#[from] StateError),
}

#[derive(Debug)]
pub(super) struct Active {
    pub(super) id: GenerationId,
    /// Another generation of the same prompt, whose reading of it serves this one too.
    pub(super) follows: Option<GenerationId>,
    prompt: Arc<[u32]>,
    /// Tokens chosen, and behind them, during a pass, those guessed.
    generated: Vec<u32>,
    /// How many were chosen, or forced.
    settled: usize,
    /// How many of those are in the KV sequence: all but the last one chosen and what was forced behind it.
    fed: usize,
    constrained: Option<Constrained>,
    /// The memory of what is forced behind a token.
    forced: Vec<u32>,
    guesser: Option<Box<Guesser>>,
    /// Where the answer goes when it is complete, for later ones to be guessed from.
    learns: Option<Arc<Corpus>>,
    guessed: usize,
    accepted: usize,
    /// Tokens of the prompt that are in the KV sequence.
    read: usize,
    /// Tokens of the prompt that were there from the start.
    cached: usize,
    tokens_max: usize,
    /// Whether the caller limited the answer, so that its KV pages are promised.
    pub(super) limited: bool,
    sampling: SamplingOptions,
    bias: Arc<LogitBias>,
    logprobs: Option<u8>,
    ignore_end: bool,
    pub(super) urgent: bool,
    /// Whether it takes no part in passes until it is resumed.
    pub(super) parked: bool,
    /// Whether its KV pages were given away, and what of its text is then to be read again before the answer goes on.
    pub(super) aside: bool,
    again: Option<Again>,
    output: Output,
    pub(super) cancelled: bool,
    clock: Clock,
}

/// A text that was in KV pages which were given away.
#[derive(Debug)]
struct Again {
    /// The prompt, and what was fed of the answer.
    text: Vec<u32>,
    /// Tokens of it that are in the KV sequence.
    read: usize,
}

/// A row of logits, and how a token is chosen by it.
struct Choice<'a> {
    logits: LogitRow<'a>,
    sampling: &'a SamplingOptions,
    bias: &'a LogitBias,
    history: History<'a>,
    position: u64,
    /// What was drawn among all tokens.
    drawn: Option<u32>,
    sampler: &'a mut Sampler,
}

impl Active {
    /// Tokens of its prompt that are read, and of its answer that are settled.
    pub(super) fn progress(&self) -> usize {
        self.read + self.settled + self.again.as_ref().map_or(0, |again| again.read)
    }

    /// Leaves its KV pages to others, and takes part in no pass until it has some again.
    pub(super) fn put_aside(&mut self) {
        (self.aside, self.parked) = (true, true);
        if let Some(again) = &mut self.again {
            again.read = 0;
        } else if self.read < self.prompt.len() {
            self.read = 0;
        } else {
            let fed = self.generated.iter().take(self.fed);
            let text = self.prompt.iter().chain(fed).copied().collect();
            self.again = Some(Again { text, read: 0 });
        }
    }

    /// Has KV pages again, with the first `found` tokens of its text.
    pub(super) fn take_up(&mut self, found: usize) {
        self.aside = false;
        if let Some(again) = &mut self.again {
            again.read = found;
        } else {
            self.read = found;
            self.cached = self.cached.min(found);
        }
    }

    /// What is to be in the KV sequence before there are logits.
    pub(super) fn text_to_read(&self) -> &[u32] {
        match &self.again {
            Some(again) => &again.text,
            None => &self.prompt,
        }
    }

    /// Whether it has to read again what it had read already.
    pub(super) fn reads_again(&self) -> bool {
        self.again.is_some()
    }
}

impl Choice<'_> {
    fn sample(&mut self, allowed: Option<&[u32]>) -> Result<u32, SampleError> {
        let another = allowed.is_some() && self.drawn.is_some();
        self.sampler.sample_among(
            self.logits,
            self.sampling,
            self.bias,
            self.history,
            self.position | if another { ANOTHER_DRAW } else { 0 },
            allowed,
        )
    }
}

impl Choose for Choice<'_> {
    type Error = ChooseError;

    fn likely(&mut self, ids: &mut [u32]) -> usize {
        if self.sampling.keeps_all() {
            // A token drawn among all, and where that may not come another drawn among those that may, come as often as
            // one drawn among those in the first place.
            self.drawn = self.drawn.or_else(|| self.sample(None).ok());
            return match (self.drawn, ids) {
                (Some(drawn), [id, ..]) => {
                    *id = drawn;
                    1
                }
                _ => 0,
            };
        }
        if !self.sampling.takes_largest() {
            return 0;
        }
        let (sampler, count) = (&mut *self.sampler, ids.len());
        let ranked = sampler.rank(self.logits, self.sampling, self.bias, self.history, count);
        let mut found = 0;
        for (id, ranked) in ids.iter_mut().zip(ranked) {
            *id = ranked;
            found += 1;
        }
        found
    }

    fn among(&mut self, allowed: &[u32]) -> Result<u32, ChooseError> {
        Ok(self.sample(Some(allowed))?)
    }
}

/// How a prompt was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    cached: usize,
    first_pass: Option<Instant>,
    prompt_done: Option<Instant>,
}

#[derive(Debug)]
struct Clock {
    started: Instant,
    first_pass: Option<Instant>,
    prompt_done: Option<Instant>,
    first_token: Option<Instant>,
}

impl Active {
    /// `count` generations of a checked request whose prompt is shorter than `context`, of which `cached` tokens are in
    /// the KV sequence. Those after the first follow it.
    pub(super) fn group(
        first: u64,
        count: u32,
        request: GenerationRequest,
        context: usize,
        cached: usize,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<Self>, StartError> {
        let calls = request.constraint.as_deref().and_then(Grammar::calls);
        // Control tokens are a part of calls, and there are none in text that is held to have some.
        let decoder = StreamDecoder::after(tokenizer, &request.prompt, calls.is_none());
        let room = context.saturating_sub(request.prompt.len());
        let prompt: Arc<[u32]> = request.prompt.into();
        let bias = Arc::new(request.bias);
        let started = Instant::now();
        let tokens_max = request.tokens_max.map_or(room, |tokens| tokens.min(room));
        let one_by_one = request.one_by_one || request.logprobs.is_some();
        let drops_space = decoder.drops_space(tokenizer);
        let constrained = || {
            let grammar = request.constraint.as_deref();
            let sampling = &request.sampling;
            let asks_all = !sampling.takes_largest() && !sampling.keeps_all();
            let new =
                |grammar| Constrained::new(grammar, drops_space, tokens_max, one_by_one, asks_all);
            grammar.map(new).transpose()
        };
        let active = |choice| -> Result<Self, StartError> {
            Ok(Self {
                id: GenerationId(first + u64::from(choice)),
                follows: (choice > 0).then_some(GenerationId(first)),
                output: Output::new(decoder.clone(), &request.stop, calls),
                guesser: Guesser::new(&request.sources, &prompt, tokens_max).map(Box::new),
                learns: request
                    .sources
                    .corpus
                    .clone()
                    .filter(|_| request.sources.learns),
                prompt: Arc::clone(&prompt),
                generated: Vec::new(),
                settled: 0,
                fed: 0,
                constrained: constrained()?,
                forced: Vec::new(),
                guessed: 0,
                accepted: 0,
                read: cached,
                cached,
                tokens_max,
                limited: request.tokens_max.is_some(),
                sampling: SamplingOptions {
                    choice: request.sampling.choice.wrapping_add(choice),
                    ..request.sampling
                },
                bias: Arc::clone(&bias),
                logprobs: request.logprobs,
                ignore_end: request.ignore_end,
                urgent: request.urgent,
                parked: false,
                aside: false,
                again: None,
                cancelled: false,
                clock: Clock {
                    started,
                    first_pass: None,
                    prompt_done: None,
                    first_token: None,
                },
            })
        };
        (0..count).map(active).collect()
    }

    /// KV tokens promised at the start: the prompt, and the answer if it was limited.
    pub(super) fn kv_tokens_promised(&self) -> usize {
        let all = self.prompt.len() + if self.limited { self.tokens_max } else { 0 };
        all.max(self.text_to_read().len())
    }

    /// KV pages that were promised and are not yet taken.
    pub(super) fn kv_pages_due(&self, page_tokens: usize) -> usize {
        if self.aside {
            return 0;
        }
        let held = if self.follows.is_some() {
            // The full pages of the prompt are due to the one it follows.
            self.prompt.len() / page_tokens
        } else {
            let tokens = match &self.again {
                Some(again) => again.read,
                None => self.read + self.fed,
            };
            tokens.div_ceil(page_tokens)
        };
        self.kv_tokens_promised()
            .div_ceil(page_tokens)
            .saturating_sub(held)
    }

    /// KV pages that it had before anything was computed for it.
    pub(super) fn kv_pages_known(&self, page_tokens: usize) -> usize {
        self.cached.div_ceil(page_tokens)
    }

    /// Takes the place of `leader`, which ended before it had read the prompt.
    pub(super) fn lead(&mut self, leader: &Active) {
        self.follows = None;
        self.read = leader.read;
        self.cached = leader.cached;
        self.clock.first_pass = leader.clock.first_pass;
    }

    /// Goes on by itself from where `leader` is, which has read the prompt. Says why the generation is over, if it is.
    pub(super) fn part(&mut self, leader: Head) -> Option<FinishReason> {
        self.follows = None;
        self.read = self.prompt.len();
        self.cached = leader.cached;
        self.clock.first_pass = leader.first_pass;
        self.clock.prompt_done = leader.prompt_done;
        (self.tokens_max == 0).then_some(FinishReason::Length)
    }

    /// How its prompt was read.
    pub(super) fn head(&self) -> Head {
        Head {
            cached: self.cached,
            first_pass: self.clock.first_pass,
            prompt_done: self.clock.prompt_done,
        }
    }

    /// Whether the next pass has no tokens of it: another reads the prompt, or it is parked.
    pub(super) fn waits(&self) -> bool {
        self.follows.is_some() || self.parked
    }

    pub(super) fn reads_prompt(&self) -> bool {
        (self.read < self.prompt.len() || self.reads_again()) && self.follows.is_none()
    }

    /// Tokens of the answer that are not in the KV sequence, guesses aside.
    pub(super) fn unfed(&self) -> usize {
        self.settled.saturating_sub(self.fed)
    }

    /// Tokens for the next pass: a piece of the prompt of at most `chunk_tokens`; or the last one chosen, what was forced
    /// behind it and the guesses, without the latter if the former alone are more than `chunk_tokens`.
    pub(super) fn next_tokens(&self, chunk_tokens: usize) -> &[u32] {
        if self.reads_prompt() {
            let (text, read) = match &self.again {
                Some(again) => (&*again.text, again.read),
                None => (&*self.prompt, self.read),
            };
            &text[read..read.saturating_add(chunk_tokens).min(text.len())]
        } else {
            let unfed = &self.generated[self.fed..];
            if chunk_tokens < self.unfed() {
                &unfed[..chunk_tokens]
            } else {
                unfed
            }
        }
    }

    /// Guesses that can become part of the answer: the pass gives one token more than there are.
    fn guesses_max(&self) -> usize {
        self.tokens_max.saturating_sub(self.settled + 1)
    }

    /// Looks for guesses that cost nothing; returns how many there are.
    pub(super) fn propose(&mut self, all: &Acceptance) -> usize {
        let most = self.guesses_max();
        match &mut self.guesser {
            Some(guesser) if !self.cancelled => {
                let constrained = self.constrained.as_ref();
                let fits = |guesses: &[u32]| match constrained {
                    Some(constrained) => constrained.fitting(guesses),
                    None => guesses.len(),
                };
                guesser.propose(all, most, fits)
            }
            _ => 0,
        }
    }

    /// Probability that guess `guess` is right if all before it are.
    pub(super) fn probability(&self, all: &Acceptance, guess: usize) -> f32 {
        let guesser = self.guesser.as_ref();
        guesser.map_or(0.0, |guesser| guesser.probability(all, guess))
    }

    /// Tokens that a drafter may guess; `None` if it is not to.
    pub(super) fn drafts_max(&self) -> Option<usize> {
        let asks = self
            .guesser
            .as_ref()
            .is_some_and(|guesser| guesser.asks_model());
        let most = self.guesses_max().min(DRAFT_MAX);
        (asks && !self.cancelled && most > 0).then_some(most)
    }

    /// The prompt and the answer, as guesses are made from them.
    pub(super) fn text(&self) -> &[u32] {
        self.guesser.as_ref().map_or(&[], |guesser| guesser.text())
    }

    /// Probability that a drafter's guess `guess` is right if all before it are.
    pub(super) fn draft_probability(&self, all: &Acceptance, guess: usize) -> f32 {
        let guesser = self.guesser.as_ref();
        guesser.map_or(0.0, |guesser| guesser.model_probability(all, guess))
    }

    /// What a drafter is to be asked for `count` guesses.
    pub(super) fn wanted(&mut self, count: usize) -> Option<Wanted<'_>> {
        let (text, guesses) = self.guesser.as_mut()?.model_draft();
        Some(Wanted {
            id: self.id.0,
            before: 0,
            text,
            prompt_tokens: self.prompt.len(),
            sampling: &self.sampling,
            bias: &self.bias,
            limits: self
                .constrained
                .as_ref()
                .map(|constrained| constrained as &dyn Limits),
            count,
            guesses,
        })
    }

    /// Takes in that a drafter has guessed: of its guesses those are left that may come.
    pub(super) fn drafted(&mut self) {
        let Some(constrained) = &self.constrained else {
            return;
        };
        constrained.take_back();
        if let Some(guesser) = &mut self.guesser {
            guesser.cut_model_draft(|guesses| constrained.fitting(guesses));
        }
    }

    /// Settles on the best guesses, a drafter's included; returns how many there are.
    pub(super) fn take_best(&mut self, all: &Acceptance) -> usize {
        self.guesser
            .as_mut()
            .map_or(0, |guesser| guesser.take_best(all))
    }

    /// Tokens that the answer may still get.
    pub(super) fn tokens_left(&self) -> usize {
        self.tokens_max.saturating_sub(self.settled)
    }

    /// Tokens of the answer so far.
    pub(super) fn answered(&self) -> usize {
        self.settled
    }

    /// Guesses that may be tried.
    pub(super) fn guesses_count(&self) -> usize {
        let guesser = self.guesser.as_ref();
        guesser.map_or(0, |guesser| guesser.guesses().len())
    }

    /// Puts the first `count` guesses behind what was chosen.
    pub(super) fn try_guesses(&mut self, count: usize) {
        if let Some(guesser) = &self.guesser {
            let guesses = guesser.guesses();
            self.generated
                .extend_from_slice(&guesses[..count.min(guesses.len())]);
        }
    }

    /// The guesses that are being tried.
    pub(super) fn tried(&self) -> &[u32] {
        &self.generated[self.settled..]
    }

    /// Takes the guesses out again.
    pub(super) fn drop_guesses(&mut self) {
        self.generated.truncate(self.settled);
    }

    /// Tokens that stay in the KV sequence: all but the last one chosen and those behind it, which the next pass appends.
    pub(super) fn kept(&self) -> usize {
        self.prompt.len() + self.fed
    }

    /// Notes that a pass appended `count` tokens of the answer, or guesses behind all of them.
    pub(super) fn feed(&mut self, count: usize) {
        self.fed = self.fed.saturating_add(count).min(self.settled);
    }

    /// Lets `masker` begin with what the choice after the next pass needs.
    pub(super) fn prepare(&self, masker: &mut Masker) {
        if let Some(constrained) = &self.constrained {
            masker.prepare(constrained);
        }
    }

    /// Whether a pass over the next `count` tokens is followed by choosing a token.
    pub(super) fn wants_logits(&self, count: usize) -> bool {
        if self.reads_again() {
            // Its next token was chosen before.
            false
        } else if self.reads_prompt() {
            self.read + count >= self.prompt.len() && self.tokens_max > 0
        } else {
            count >= self.unfed()
        }
    }

    /// Chooses the token after the first `right` guesses, which were right; changes nothing here.
    pub(super) fn choose(
        &self,
        right: usize,
        logits: LogitRow<'_>,
        sampler: &mut Sampler,
    ) -> Result<Chosen, ChooseError> {
        let generated = &self.generated[..self.settled + right];
        let history = History {
            prompt: &self.prompt,
            generated,
        };
        let position = self.prompt.len() + generated.len();
        let mut choice = Choice {
            logits,
            sampling: &self.sampling,
            bias: &self.bias,
            history,
            position: position as u64,
            drawn: None,
            sampler,
        };
        let id = match &self.constrained {
            None => choice.sample(None)?,
            Some(constrained) => constrained.choose(&self.tried()[..right], &mut choice)?,
        };
        let logprob = match self.logprobs {
            Some(top) => {
                let known = sampler.logprobs(logits, id, top)?;
                Some(TokenLogprob {
                    id,
                    logprob: known.logprob,
                    top: known.top,
                })
            }
            None => None,
        };
        Ok(Chosen { id, logprob })
    }

    /// What its constraint took since this was last asked.
    pub(super) fn constraint_counts(&self) -> ConstraintCounts {
        let constrained = self.constrained.as_ref();
        constrained.map_or_else(ConstraintCounts::default, Constrained::counts)
    }

    /// Notes that a pass over a piece of the prompt begins. Says whether it is the first.
    pub(super) fn pass_begins(&mut self, now: Instant) -> bool {
        let first = self.clock.first_pass.is_none();
        self.clock.first_pass.get_or_insert(now);
        first
    }

    /// Tokens of the prompt that are in the KV sequence.
    pub(super) fn read(&self) -> usize {
        self.read
    }

    /// Whether no pass has read from the prompt.
    pub(super) fn is_unread(&self) -> bool {
        self.clock.first_pass.is_none()
    }

    /// Tokens that its prompt and another's begin with alike.
    pub(super) fn shared_with(&self, other: &Active) -> usize {
        let pairs = self.prompt.iter().zip(other.prompt.iter());
        pairs.take_while(|(mine, theirs)| mine == theirs).count()
    }

    /// The prompt, and how much of it was in the KV sequence from the start.
    pub(super) fn prompt(&self) -> (&[u32], usize) {
        (&self.prompt, self.cached)
    }

    /// Notes that the KV sequence was replaced by one that begins with more of the prompt.
    pub(super) fn found(&mut self, cached: usize) {
        self.cached = cached;
        self.read = cached;
    }

    /// Notes that the next `tokens` tokens of the prompt came into the KV sequence without being computed.
    pub(super) fn restored(&mut self, tokens: usize) {
        self.read = self.read.saturating_add(tokens).min(self.prompt.len());
        self.cached = self.cached.saturating_add(tokens).min(self.read);
    }

    /// Takes the outcome of a pass over `count` tokens of the prompt. Says why the generation is over, if it is.
    pub(super) fn prompt_read(
        &mut self,
        count: usize,
        now: Instant,
        sink: Sink<'_>,
    ) -> Option<FinishReason> {
        if let Some(again) = &mut self.again {
            again.read = again.read.saturating_add(count);
            if again.read >= again.text.len() {
                self.again = None;
            }
            return None;
        }
        self.read = self.read.saturating_add(count).min(self.prompt.len());
        if self.reads_prompt() {
            return None;
        }
        self.clock.prompt_done = Some(now);
        sink(
            self.id,
            Event::PromptDone {
                prompt_tokens: self.prompt.len(),
                cached_tokens: self.cached,
            },
        );
        (self.tokens_max == 0).then_some(FinishReason::Length)
    }

    /// Takes the tokens chosen after a pass, of which all but the last were guessed, and delivers what text they settle.
    /// Says why the generation is over, if it is: tokens after that are not taken.
    pub(super) fn accept(
        &mut self,
        chosen: impl Iterator<Item = Result<Chosen, ChooseError>>,
        tokenizer: &Tokenizer,
        now: Instant,
        all: &mut Acceptance,
        sink: Sink<'_>,
    ) -> Option<FinishReason> {
        self.clock.first_token.get_or_insert(now);
        let (first, tried) = (self.settled, self.tried().len());
        self.drop_guesses();
        let mut over = None;
        for (index, chosen) in chosen.enumerate() {
            // What was forced behind the one before is there already.
            if first + index < self.settled {
                continue;
            }
            over = match chosen {
                Ok(chosen) => self.follow(chosen, tokenizer),
                Err(error) => Some(FinishReason::Failed(error.to_string())),
            };
            if over.is_some() {
                break;
            }
        }
        self.fed = first;
        if let Some(guesser) = &mut self.guesser {
            let taken = &self.generated[first..];
            let right = guesser.chosen(all, taken, tried);
            self.guessed += tried;
            self.accepted += right;
            // These were in the pass.
            self.fed += right;
        }
        if over.is_none() {
            self.deliver(false, sink);
        }
        over
    }

    /// Takes a token that was chosen, and what its constraint forces behind it. Says why the generation is over, if it is.
    fn follow(&mut self, chosen: Chosen, tokenizer: &Tokenizer) -> Option<FinishReason> {
        let Some(constrained) = &self.constrained else {
            return self.take(chosen, tokenizer);
        };
        let mut forced = core::mem::take(&mut self.forced);
        forced.clear();
        if let Err(error) = constrained.accept(chosen.id, &mut forced) {
            return Some(FinishReason::Failed(error.to_string()));
        }
        let finished = constrained.is_finished();
        let mut over = self.take(chosen, tokenizer);
        let mut left = forced.iter();
        while over.is_none()
            && let Some(&id) = left.next()
        {
            over = self.take(Chosen { id, logprob: None }, tokenizer);
        }
        // Complete also where the limit of tokens is just reached.
        if left.len() == 0 && finished {
            over = Some(FinishReason::Stop);
        }
        self.forced = forced;
        over
    }

    /// Takes one token. Says why the generation is over, if it is.
    fn take(&mut self, chosen: Chosen, tokenizer: &Tokenizer) -> Option<FinishReason> {
        self.generated.push(chosen.id);
        self.settled += 1;
        let ends = !self.ignore_end || self.constrained.is_some();
        if ends && tokenizer.is_end_of_generation(chosen.id) {
            return Some(FinishReason::Stop);
        }
        if self.output.push(tokenizer, chosen.id, chosen.logprob) {
            return Some(FinishReason::Stop);
        }
        (self.settled >= self.tokens_max).then_some(FinishReason::Length)
    }

    /// Delivers what is left and reports the end.
    pub(super) fn finish(mut self, reason: FinishReason, sink: Sink<'_>) {
        let mut reason = reason;
        // Who cancelled has stopped reading; everyone else gets the text held back.
        if reason != FinishReason::Cancelled {
            if self.output.finish() && reason == FinishReason::Length {
                reason = FinishReason::Stop;
            }
            self.deliver(true, sink);
        }
        if let Some(corpus) = &self.learns
            && matches!(reason, FinishReason::Stop | FinishReason::Length)
        {
            corpus.add(&self.prompt, &self.generated);
        }
        let usage = Usage {
            prompt_tokens: self.prompt.len(),
            cached_tokens: self.cached,
            completion_tokens: self.settled,
            guessed_tokens: self.guessed,
            accepted_tokens: self.accepted,
        };
        sink(
            self.id,
            Event::Finished {
                reason,
                usage,
                timings: self.clock.timings(Instant::now()),
            },
        );
    }

    fn deliver(&mut self, last: bool, sink: Sink<'_>) {
        if let Some(piece) = self.output.ready(last) {
            sink(
                self.id,
                Event::Text {
                    text: piece.text,
                    ids: piece.ids,
                    tokens: piece.tokens,
                },
            );
            self.output.delivered(last);
        }
    }
}

impl Clock {
    fn timings(&self, now: Instant) -> Timings {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => nanoseconds(to.saturating_duration_since(from)),
            _ => 0,
        };
        Timings {
            queue_ns: between(Some(self.started), self.first_pass),
            prefill_ns: between(self.first_pass, self.prompt_done),
            first_token_ns: between(Some(self.started), self.first_token),
            decode_ns: between(self.first_token, Some(now)),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
