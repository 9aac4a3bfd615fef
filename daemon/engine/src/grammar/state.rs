//! Where one answer stands in its grammar.
//!
//! Where the grammar leaves one way on, the state goes it at once: the bytes are cut into tokens by the model's own
//! tokenizer, and those are [`State::forced`]. They are what the answer has there whether they are appended together or
//! taken one by one, so both ways give the same answer.
//!
//! Invariant: `taken` is what the parser has been given, all of which fits the grammar; its first `position` tokens are
//! those of the answer, and the others are forced.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use llguidance::Matcher;
use llguidance::toktrie::{SimpleVob, TokenizerEnv};

use super::closing::{Closing, Context, Lead, Place, Reserve};
use super::constraint::copy;
use super::error::{StateError, message};
use super::vocabulary::Tokens;
use super::{limits, tidy};

/// The state of one answer. See the module.
pub struct State {
    matcher: Matcher,
    tokens: Arc<Tokens>,
    taken: Vec<u32>,
    /// For each of `taken`, whether the grammar left no other.
    forced: Vec<bool>,
    position: usize,
    /// What may come next; of tokens that were settled not to, see `barred`.
    mask: Option<SimpleVob>,
    /// Tokens that may not come next though the grammar allows them ([`State::settle`]).
    barred: Vec<u32>,
    /// Tokens taken, and others found not to be allowed, since a mask was computed.
    unmasked: usize,
    /// Tokens of the answer up to which `unmasked` has counted: what is taken once more is no more work.
    counted: usize,
    /// Masks computed, and the time that took, since that was last asked.
    spent: (u32, Duration),
    /// A space at the start of the answer's first token is not part of its text.
    drops_space: bool,
    /// For each of `taken`, where JSON stands behind it.
    contexts: Vec<Context>,
    /// What leads to it, where text may come first.
    lead: Option<Lead>,
    /// What closing may need, if the answer is JSON.
    reserve: Option<Reserve>,
    closing: Option<Closing>,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed<'a> {
    /// This token.
    One(u32),
    /// Those whose bits are set, the lowest first; tokens without a bit may not.
    Any(&'a [u32]),
}

impl core::fmt::Debug for State {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("State")
            .field("position", &self.position)
            .field("forced", &self.forced())
            .finish_non_exhaustive()
    }
}

impl State {
    /// `warm` says whether a mask was computed by `matcher` before.
    pub(super) fn new(
        matcher: Matcher,
        tokens: Arc<Tokens>,
        reserve: Option<Reserve>,
        lead: Option<Lead>,
        warm: bool,
    ) -> Self {
        Self {
            matcher,
            tokens,
            taken: Vec::new(),
            forced: Vec::new(),
            position: 0,
            mask: None,
            barred: Vec::new(),
            unmasked: if warm { 0 } else { limits::UNMASKED_TOKENS_MAX },
            counted: 0,
            spent: (0, Duration::ZERO),
            drops_space: false,
            contexts: Vec::new(),
            lead,
            reserve,
            closing: None,
        }
    }

    /// The matcher behind what is forced at the beginning, with all that was found out for the mask there, and then back
    /// at the beginning. `None` if that fails.
    pub(super) fn warmed(mut self) -> Option<Matcher> {
        while let Some(&id) = self.forced().first() {
            self.accept(id).ok()?;
        }
        self.prepare().ok()?;
        self.matcher.rollback(self.taken.len()).ok()?;
        Some(self.matcher)
    }

    /// A state of its own that stands where this one does.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            matcher: copy(&self.matcher),
            tokens: Arc::clone(&self.tokens),
            taken: self.taken.clone(),
            forced: self.forced.clone(),
            position: self.position,
            mask: self.mask.clone(),
            barred: self.barred.clone(),
            unmasked: self.unmasked,
            counted: self.counted,
            spent: (0, Duration::ZERO),
            drops_space: self.drops_space,
            contexts: self.contexts.clone(),
            lead: self.lead.clone(),
            reserve: self.reserve,
            closing: self.closing,
        }
    }

    /// Begins an answer of at most `tokens_max` tokens. `drops_space` says that a space at the start of its first token
    /// will not be part of its text.
    ///
    /// # Errors
    /// [`StateError`] if no answer can begin like that.
    pub fn begin(&mut self, drops_space: bool, tokens_max: usize) -> Result<(), StateError> {
        self.drops_space = drops_space;
        self.closing = self
            .reserve
            .map(|reserve| Closing::new(reserve, tokens_max));
        self.force()
    }

    /// The tokens that come next whatever the model says, in order; empty if it has a choice, or all is said.
    #[must_use]
    pub fn forced(&self) -> &[u32] {
        self.taken.get(self.position..).unwrap_or_default()
    }

    /// Masks computed since this was last asked, and the time that took.
    pub(crate) fn spent(&mut self) -> (u32, Duration) {
        core::mem::take(&mut self.spent)
    }

    /// The last `count` tokens of the answer, or all it has.
    pub(crate) fn last(&self, count: usize) -> &[u32] {
        &self.taken[self.position.saturating_sub(count)..self.position]
    }

    /// The answer's tokens so far.
    pub(crate) fn said(&self) -> &[u32] {
        &self.taken[..self.position]
    }

    /// What had to come behind all but the last `count` tokens of the answer.
    pub(crate) fn forced_before(&self, count: usize) -> Option<u32> {
        let index = self.position.checked_sub(count)?;
        let forced = self.forced.get(index).copied()?;
        self.taken.get(index).copied().filter(|_| forced)
    }

    /// Whether the answer is complete and nothing may follow.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.position == self.taken.len() && self.is_done()
    }

    fn is_done(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    /// Why the matcher has stopped, if it has, and not because all is said.
    fn check(&self) -> Result<(), StateError> {
        if !self.matcher.is_stopped() || self.is_done() {
            return Ok(());
        }
        let error = self.matcher.get_error();
        let error = error.unwrap_or_else(|| self.matcher.stop_reason().to_string());
        Err(StateError(message(&error)))
    }

    /// Whether the answer is complete as it is, though more may follow.
    pub fn is_accepting(&mut self) -> bool {
        self.position == self.taken.len()
            && (self.is_finished() || self.matcher.is_accepting().unwrap_or(false))
    }

    /// Whether [`State::prepare`] has something to do.
    pub(crate) fn is_to_be_prepared(&self) -> bool {
        self.position == self.taken.len() && self.mask.is_none() && !self.matcher.is_stopped()
    }

    /// Computes what may come next, if that was not done. [`State::allowed`] does so too; this is for another thread.
    ///
    /// # Errors
    /// [`StateError`] if it takes more work than a token may, or nothing may come.
    pub fn prepare(&mut self) -> Result<(), StateError> {
        if self.position < self.taken.len() || self.mask.is_some() {
            return Ok(());
        }
        self.check()?;
        if self.is_done() {
            return Err(StateError("the answer is complete".to_owned()));
        }
        let context = self.context();
        let lead = self.lead.as_ref().filter(|_| !self.taken.is_empty());
        let known = lead.and_then(|lead| lead.text_mask(context));
        if let Some(known) = known
            && known.get().is_none()
        {
            // By a copy: whichever state needs it first goes on as all others do.
            let began = Instant::now();
            let mask = copy(&self.matcher).compute_mask();
            self.spent.0 += 1;
            self.spent.1 += began.elapsed();
            if let Ok(mask) = mask {
                let _ = known.set(mask);
            }
        }
        if let Some(mask) = known.and_then(OnceLock::get) {
            let mut mask = mask.clone();
            self.barred.iter().for_each(|&id| mask.disallow_token(id));
            self.mask = Some(mask);
            return Ok(());
        }
        let began = Instant::now();
        let mask = self.matcher.compute_mask();
        self.spent.0 += 1;
        self.spent.1 += began.elapsed();
        let mut mask = mask.map_err(|error| StateError(message(&error)))?;
        self.unmasked = 0;
        if self.taken.is_empty() && self.drops_space {
            self.tokens
                .spaced()
                .iter()
                .for_each(|&id| mask.disallow_token(id));
        }
        self.barred.iter().for_each(|&id| mask.disallow_token(id));
        if mask.is_zero() {
            return Err(StateError("no token may come next".to_owned()));
        }
        self.mask = Some(mask);
        Ok(())
    }

    /// Whether `id` may come next, as [`State::allowed`] says, without finding out about all the others: for text that
    /// is some hundred times less work. `None` where that does not tell.
    pub fn takes(&mut self, id: u32) -> Option<bool> {
        if let Some(&only) = self.taken.get(self.position) {
            return Some(id == only);
        }
        if let Some(mask) = &self.mask {
            return Some(is_set(mask.as_slice(), id));
        }
        if self.barred.contains(&id) {
            return Some(false);
        }
        // The library lets the work of several tokens add up until a mask is computed.
        let knows = !self.may_be_forced() && self.unmasked < limits::UNMASKED_TOKENS_MAX;
        if !knows || self.matcher.is_stopped() {
            return None;
        }
        let trie = self.tokens.tok_trie();
        if usize::try_from(id).map_or(true, |id| id >= trie.vocab_size()) {
            return Some(false);
        }
        if !self.tokens.is_text(id) {
            let ends = trie.eos_tokens().contains(&id);
            return (ends && self.matcher.is_accepting().ok()?).then_some(true);
        }
        if self.taken.is_empty() && self.drops_space && self.tokens.spaced().contains(&id) {
            return Some(false);
        }
        let takes = self.matcher.validate_tokens(&[id]).ok()? == 1;
        // What is allowed is counted when it is taken.
        self.unmasked += usize::from(!takes);
        Some(takes)
    }

    /// What may come next.
    ///
    /// # Errors
    /// As for [`State::prepare`].
    pub fn allowed(&mut self) -> Result<Allowed<'_>, StateError> {
        if let Some(&id) = self.taken.get(self.position) {
            return Ok(Allowed::One(id));
        }
        self.prepare()?;
        Ok(Allowed::Any(
            self.mask.as_ref().map_or(&[], SimpleVob::as_slice),
        ))
    }

    /// What becomes of the choice of `id`, which is allowed. Mostly it stands. Where no way would lead to the end of the
    /// answer behind it within the limit, it becomes the first token of the way before it ([`super::closing`]). Where it
    /// would give an object a name that it has, or a number too many digits, or begin a call of a tool that could not close
    /// any more, it is `None`: the token is not allowed any more, and another is to be chosen.
    ///
    /// # Errors
    /// As for [`State::accept`].
    pub fn settle(&mut self, id: u32) -> Result<Option<u32>, StateError> {
        let tokens = Arc::clone(&self.tokens);
        let trie = tokens.tok_trie();
        let Some(mut closing) = self.closing else {
            return Ok(Some(id));
        };
        let is_given = self.position < self.taken.len() || trie.eos_tokens().contains(&id);
        let (context, bytes) = (self.context(), trie.token(id));
        // Text may end anywhere.
        if is_given || context.after(bytes, self.lead.as_ref()).is_free() {
            return Ok(Some(id));
        }
        let calls = context.may_call(self.reserve);
        let near = closing.is_near(self.position, bytes, calls);
        let open = self.reserve.is_some_and(|reserve| reserve.open);
        // Another name needs one that is not there yet.
        let goes_on = open && bytes.contains(&b',');
        self.closing = Some(closing);
        if !near && !open {
            return Ok(Some(id));
        }
        let (before, room) = (self.taken.len(), closing.room(self.position));
        let (mask, barred) = (self.mask.take(), core::mem::take(&mut self.barred));
        self.take(&[id], false)?;
        self.force()?;
        let used = self.taken.len() - before;
        let fits = !open || self.is_tidy(&self.text(&[]));
        let way = room
            .checked_sub(used)
            .filter(|_| fits && (near || goes_on))
            .and_then(|room| self.way(room));
        self.matcher
            .rollback(used)
            .map_err(|error| StateError(message(&error)))?;
        self.keep(before);
        (self.mask, self.barred) = (mask, barred);
        if let Some(way) = way {
            closing.needs(used.saturating_sub(1) + way.len());
            self.closing = Some(closing);
            return Ok(Some(id));
        }
        if !fits || goes_on && !near {
            self.barred.push(id);
            if let Some(mask) = &mut self.mask {
                mask.disallow_token(id);
                if mask.is_zero() {
                    return Err(StateError("no name is left for an object".to_owned()));
                }
            }
            return Ok(None);
        }
        if !near {
            return Ok(Some(id));
        }
        // Text goes on, and has no need to close.
        if context.is_free() && self.bar(id)? {
            return Ok(None);
        }
        // Where no way is found, it will be cut.
        let way = self.way(room);
        Ok(Some(way.and_then(|way| way.first().copied()).unwrap_or(id)))
    }

    /// Lets a token that is allowed come no more; says whether another may.
    fn bar(&mut self, id: u32) -> Result<bool, StateError> {
        self.prepare()?;
        let Some(mask) = &mut self.mask else {
            return Ok(false);
        };
        mask.disallow_token(id);
        if mask.is_zero() {
            mask.allow_token(id);
            return Ok(false);
        }
        self.barred.push(id);
        Ok(true)
    }

    /// The way to the end, if one is found.
    fn way(&mut self, most: usize) -> Option<Vec<u32>> {
        let way = self.find_way(most);
        // Its work is the same lexer's.
        let length = way.as_ref().map_or(most, Vec::len);
        self.count(self.taken.len().saturating_add(length));
        way
    }

    fn find_way(&self, most: usize) -> Option<Vec<u32>> {
        let place = Place {
            context: self.context(),
            lead: self.lead.as_ref(),
            between: self.reserve.and_then(|reserve| reserve.between),
        };
        let trie = self.tokens.tok_trie();
        let closers = self.tokens.closers();
        let limits = (most, self.unmasked);
        let way = closers.way(self.matcher.clone(), trie, place, limits)?;
        let open = self.reserve.is_some_and(|reserve| reserve.open);
        (!open || self.is_tidy(&self.text(&way))).then_some(way)
    }

    /// The text so far, and that of these tokens.
    fn text(&self, ids: &[u32]) -> Vec<u8> {
        let trie = self.tokens.tok_trie();
        let all = self.taken.iter().chain(ids);
        all.filter(|&id| !trie.eos_tokens().contains(id))
            .flat_map(|&id| trie.token(id))
            .copied()
            .collect()
    }

    /// Whether a text has no object with a name twice, as far as it is JSON.
    fn is_tidy(&self, text: &[u8]) -> bool {
        let json = self.lead.as_ref().map_or(text, |lead| lead.behind(text));
        tidy::is_tidy(json)
    }

    /// Where the answer stands.
    fn context(&self) -> Context {
        let last = self.contexts.last().copied();
        last.unwrap_or_else(|| Context::start(self.lead.as_ref()))
    }

    /// Forgets all but the first `count` of those taken.
    fn keep(&mut self, count: usize) {
        self.taken.truncate(count);
        self.forced.truncate(count);
        self.contexts.truncate(count);
        self.mask = None;
        self.barred.clear();
    }

    /// Takes the next token of the answer.
    ///
    /// # Errors
    /// [`StateError`] with nothing changed if it is not allowed; or if following it takes more work than a token may, after
    /// which the state is of no use.
    pub fn accept(&mut self, id: u32) -> Result<(), StateError> {
        let allowed = match self.takes(id) {
            Some(allowed) => allowed,
            None => match self.allowed()? {
                Allowed::One(only) => id == only,
                Allowed::Any(words) => is_set(words, id),
            },
        };
        if !allowed {
            return Err(StateError(format!("token {id} may not come next")));
        }
        self.follow(id)
    }

    /// Takes the next token of the answer, which is allowed.
    ///
    /// # Errors
    /// As for [`State::accept`].
    pub(crate) fn follow(&mut self, id: u32) -> Result<(), StateError> {
        if let Some(&only) = self.taken.get(self.position) {
            if id != only {
                return Err(StateError(format!("token {id} may not come next")));
            }
            self.position += 1;
            return Ok(());
        }
        let before = self.taken.len();
        let taken = self.take(&[id], false).and_then(|()| self.force());
        if taken.is_err() {
            // The matcher has failed, and says so whatever it is asked; but what it had taken is no part of the answer.
            let _ = self.matcher.rollback(self.taken.len() - before);
            self.keep(before);
        } else {
            self.position += 1;
        }
        taken
    }

    /// Takes back the last `count` tokens of the answer.
    ///
    /// # Errors
    /// [`StateError`] if it has fewer.
    pub fn rollback(&mut self, count: usize) -> Result<(), StateError> {
        let position = self
            .position
            .checked_sub(count)
            .ok_or_else(|| StateError(format!("{count} tokens cannot be taken back")))?;
        // What was forced behind the new position still is.
        let kept = (position..self.taken.len())
            .find(|&index| !self.forced[index])
            .unwrap_or(self.taken.len());
        if kept < self.taken.len() {
            self.matcher
                .rollback(self.taken.len() - kept)
                .map_err(|error| StateError(message(&error)))?;
            self.keep(kept);
        }
        self.position = position;
        Ok(())
    }

    /// How many of `tokens`, from the first on, may come next one after the other, found without working out what else may:
    /// taken one by one, it may be fewer. The state stays where it is.
    ///
    /// # Errors
    /// [`StateError`] if that takes more work than there is for it, after which the state is of no use.
    pub(crate) fn fitting(&mut self, tokens: &[u32]) -> Result<usize, StateError> {
        let forced = self.forced();
        let same = forced
            .iter()
            .zip(tokens)
            .take_while(|(forced, token)| forced == token)
            .count();
        let count = self.tokens.tok_trie().vocab_size();
        let rest = tokens.get(same..).unwrap_or_default();
        let known = rest.iter().take_while(|&&id| (id as usize) < count).count();
        if same < forced.len() || known == 0 || self.matcher.is_stopped() {
            return Ok(same);
        }
        let fitting = self.matcher.validate_tokens(&rest[..known]);
        Ok(same + fitting.map_err(|error| StateError(message(&error)))?)
    }

    /// Whether a run of forced tokens was cut, so that the next may be forced too.
    fn may_be_forced(&self) -> bool {
        let run = self.forced.iter().rev().take_while(|&&forced| forced);
        run.take(limits::FORCED_TOKENS_MAX).count() == limits::FORCED_TOKENS_MAX
    }

    /// Goes on as long as the grammar leaves one way.
    fn force(&mut self) -> Result<(), StateError> {
        let start = self.taken.len();
        while self.taken.len() - start < limits::FORCED_TOKENS_MAX && !self.matcher.is_stopped() {
            let mut run = self.matcher.compute_ff_tokens();
            run.truncate(limits::FORCED_TOKENS_MAX);
            let Some(first) = run.first() else {
                break;
            };
            if self.taken.is_empty() && self.drops_space && self.tokens.spaced().contains(first) {
                let reason = "the answer would begin with a space, which this model cannot say";
                return Err(StateError(reason.to_owned()));
            }
            self.take(&run, true)?;
        }
        self.check()
    }

    /// Counts the work for the first `length` tokens of the answer.
    fn count(&mut self, length: usize) {
        self.unmasked += length.saturating_sub(self.counted);
        self.counted = self.counted.max(length);
    }

    fn take(&mut self, ids: &[u32], forced: bool) -> Result<(), StateError> {
        self.mask = None;
        self.barred.clear();
        self.count(self.taken.len() + ids.len());
        self.matcher
            .consume_tokens(ids)
            .map_err(|error| StateError(message(&error)))?;
        let mut context = self.context();
        for &id in ids {
            let bytes = self.tokens.tok_trie().token(id);
            context = context.after(bytes, self.lead.as_ref());
            self.contexts.push(context);
        }
        self.taken.extend_from_slice(ids);
        self.forced.resize(self.taken.len(), forced);
        Ok(())
    }
}

/// Whether the bit of a token is set.
fn is_set(words: &[u32], id: u32) -> bool {
    words
        .get(id as usize / 32)
        .is_some_and(|word| word >> (id % 32) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Constraint, Grammar, Vocabulary};
    use crate::gguf::Gguf;
    use crate::support;
    use crate::tokenizer::Tokenizer;

    #[test]
    fn a_panic_of_the_parser_ends_one_answer() {
        let mut writer = support::Writer::new();
        writer
            .str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", "gpt-2")
            .strs("tokenizer.ggml.tokens", &["a", "b", "<|end|>"])
            .i32s("tokenizer.ggml.token_type", &[1, 1, 3])
            .strs::<&str>("tokenizer.ggml.merges", &[])
            .u32("tokenizer.ggml.eos_token_id", 2);
        let file = writer.finish();
        let gguf = Gguf::parse(&file).expect("a file");
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).expect("a tokenizer"));
        let vocabulary = Arc::new(Vocabulary::new(&tokenizer).expect("a vocabulary"));
        let constraint = Constraint::Regex("[ab]+".to_owned());
        let grammar = Grammar::compile(&vocabulary, &constraint, 8).expect("it compiles");
        let mut state = grammar.state();
        state.begin(false, 8).expect("it begins");
        let mut fork = state.fork();
        assert!(state.matcher.test_trigger_lexer_error().is_err());
        let error = state.accept(0).expect_err("its parser is gone");
        assert!(error.to_string().contains("synthetic error"), "{error}");
        assert!(state.fork().prepare().is_err() && state.prepare().is_err());
        // Others go on.
        fork.accept(0).expect("it may come");
        assert!(grammar.state().begin(false, 8).is_ok());
    }
}
