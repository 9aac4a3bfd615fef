//! A scripted model, and what comes out of a generator over it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use andon_engine::backend::DeviceError;
use andon_engine::generate::{
    Event, FinishReason, Forward, GenerationId, GenerationRequest, Generator, GeneratorOptions,
    PassError, Reading, Usage,
};
use andon_engine::gguf::Gguf;
use andon_engine::grammar::{Constraint, Grammar, Vocabulary};
use andon_engine::sample::LogitRow;
use andon_engine::tokenizer::Tokenizer;
use andon_engine::{Chunk, ForwardError, LogitsFor};

use crate::support::Writer;

pub(crate) const A: u32 = 0;
pub(crate) const B: u32 = 1;
pub(crate) const C: u32 = 2;
/// The two bytes of `é`.
pub(crate) const FIRST_HALF: u32 = 3;
pub(crate) const SECOND_HALF: u32 = 4;
pub(crate) const END: u32 = 5;
pub(crate) const VOCABULARY: usize = 6;
pub(crate) const CONTEXT: usize = 64;
pub(crate) const PAGE: usize = 4;

/// Logits from the tokens so far.
pub(crate) type Script = fn(&[u32]) -> Vec<f32>;

pub(crate) struct Scripted {
    tokenizer: Tokenizer,
    pages_free: Rc<Cell<usize>>,
    script: Script,
    context: usize,
    pub(crate) passes: Rc<Cell<usize>>,
    /// How many tokens are known of the next prompt that is looked for.
    pub(crate) known: Cell<usize>,
    /// Pages that there are.
    pages: usize,
    /// How many passes are made before the device fails that makes them, and whether something goes on for it then.
    pub(crate) fails_after: Cell<Option<usize>>,
    pub(crate) falls_back: Cell<bool>,
}

pub(crate) struct Pages {
    tokens: Vec<u32>,
    held: usize,
    /// The pages of a prompt that several hold.
    shared: RefCell<Option<Rc<Shared>>>,
    pages_free: Rc<Cell<usize>>,
}

/// Pages that are freed with the last holder.
pub(crate) struct Shared {
    count: usize,
    pages_free: Rc<Cell<usize>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.pages_free.set(self.pages_free.get() + self.count);
    }
}

impl Pages {
    fn share(&self, count: usize) -> Rc<Shared> {
        let mut shared = self.shared.borrow_mut();
        let shared = shared.get_or_insert_with(|| {
            Rc::new(Shared {
                count,
                pages_free: Rc::clone(&self.pages_free),
            })
        });
        assert_eq!(shared.count, count);
        Rc::clone(shared)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let shared = self
            .shared
            .borrow()
            .as_ref()
            .map_or(0, |shared| shared.count);
        self.pages_free
            .set(self.pages_free.get() + self.held - shared);
    }
}

impl Forward for Scripted {
    type Sequence = Pages;

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
    fn vocabulary_count(&self) -> usize {
        VOCABULARY
    }
    fn context_tokens_max(&self) -> usize {
        self.context
    }
    fn batch_tokens_max(&self) -> usize {
        16
    }
    fn kv_page_tokens(&self) -> usize {
        PAGE
    }
    fn kv_tokens_free(&self) -> usize {
        self.pages_free.get() * PAGE
    }
    fn sequence(&self, prompt: &[u32]) -> (Pages, usize) {
        let held = self.known.take().min(prompt.len() - 1) / PAGE;
        let left = self.pages_free.get() - held;
        self.pages_free.set(left);
        let pages = Pages {
            tokens: prompt[..held * PAGE].to_vec(),
            held,
            shared: RefCell::new(None),
            pages_free: Rc::clone(&self.pages_free),
        };
        (pages, held * PAGE)
    }
    fn fork(&mut self, sequence: &Pages) -> Option<Pages> {
        // Full pages are freed with the last that shares them.
        let full = sequence.tokens.len() / PAGE;
        let begun = usize::from(!sequence.tokens.len().is_multiple_of(PAGE));
        let left = self.pages_free.get().checked_sub(begun)?;
        self.pages_free.set(left);
        let shared = sequence.share(full);
        Some(Pages {
            tokens: sequence.tokens.clone(),
            held: full + begun,
            shared: RefCell::new(Some(shared)),
            pages_free: Rc::clone(&self.pages_free),
        })
    }
    fn keep(&mut self, sequence: &mut Pages, tokens: usize) {
        sequence.tokens.truncate(tokens);
        let held = sequence.tokens.len().div_ceil(PAGE);
        self.pages_free
            .set(self.pages_free.get() + sequence.held - held);
        sequence.held = held;
    }
    fn fall_back(&mut self, error: &ForwardError) -> bool {
        assert!(matches!(error, ForwardError::Device(_)));
        assert_eq!(self.pages_free.get(), self.pages, "nobody holds a page");
        let falls_back = self.falls_back.get();
        if falls_back {
            self.fails_after.set(None);
        }
        falls_back
    }
    fn pass(
        &mut self,
        parts: &mut [Chunk<'_, Pages>],
        interrupted: &dyn Fn() -> bool,
        row: &mut dyn FnMut(LogitRow<'_>),
    ) -> Result<(), PassError> {
        self.passes.set(self.passes.get() + 1);
        if self
            .fails_after
            .get()
            .is_some_and(|passes| self.passes.get() > passes)
        {
            let lost = DeviceError::Lost { code: 700 };
            return Err(PassError::Forward(ForwardError::Device(lost)));
        }
        if interrupted() {
            return Err(PassError::Interrupted);
        }
        let after = |part: &Chunk<'_, Pages>| {
            (part.sequence.tokens.len() + part.tokens.len()).div_ceil(PAGE)
        };
        let needed: usize = parts
            .iter()
            .map(|part| after(part) - part.sequence.held)
            .sum();
        assert!(parts.iter().map(|part| part.tokens.len()).sum::<usize>() <= 16);
        let left = self.pages_free.get().checked_sub(needed);
        self.pages_free.set(left.ok_or(PassError::KvFull)?);
        for part in parts {
            assert!(!part.tokens.is_empty());
            part.sequence.held = after(part);
            let rows = match part.logits {
                LogitsFor::None => 0,
                LogitsFor::Guesses(count) => count + 1,
                LogitsFor::Last => 1,
                LogitsFor::All => part.tokens.len(),
            };
            for (index, &token) in part.tokens.iter().enumerate() {
                part.sequence.tokens.push(token);
                if index + rows >= part.tokens.len() {
                    row((&(self.script)(&part.sequence.tokens)).into());
                }
            }
        }
        Ok(())
    }
}

fn tokenizer() -> Tokenizer {
    let mut writer = Writer::new();
    writer
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .strs(
            "tokenizer.ggml.tokens",
            &["a", "b", "c", "Ã", "©", "<|end|>"],
        )
        .i32s("tokenizer.ggml.token_type", &[1, 1, 1, 1, 1, 3])
        .strs::<&str>("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.eos_token_id", END);
    let bytes = writer.finish();
    Tokenizer::from_gguf(&Gguf::parse(&bytes).expect("a file")).expect("a tokenizer")
}

/// A grammar for the scripted model's tokens.
pub(crate) fn grammar(constraint: &Constraint) -> Arc<Grammar> {
    static VOCABULARY: OnceLock<Arc<Vocabulary>> = OnceLock::new();
    let vocabulary = VOCABULARY.get_or_init(|| {
        let vocabulary = Vocabulary::new(&Arc::new(tokenizer()));
        Arc::new(vocabulary.expect("a vocabulary"))
    });
    Arc::new(Grammar::compile(vocabulary, constraint, CONTEXT).expect("it compiles"))
}

pub(crate) fn scripted(script: Script, pages: usize) -> Generator<Scripted> {
    scripted_for(CONTEXT, script, pages)
}

/// A generator for texts of up to `context` tokens.
pub(crate) fn scripted_for(context: usize, script: Script, pages: usize) -> Generator<Scripted> {
    let options = GeneratorOptions {
        parallel_max: 4,
        parked_max: 4,
        prefill_chunk_tokens: 3,
        ..GeneratorOptions::default()
    };
    scripted_with(context, script, pages, options)
}

/// The same with options of its own.
pub(crate) fn scripted_with(
    context: usize,
    script: Script,
    pages: usize,
    options: GeneratorOptions,
) -> Generator<Scripted> {
    let forward = Scripted {
        tokenizer: tokenizer(),
        context,
        pages_free: Rc::new(Cell::new(pages)),
        script,
        passes: Rc::new(Cell::new(0)),
        known: Cell::new(0),
        pages,
        fails_after: Cell::new(None),
        falls_back: Cell::new(true),
    };
    Generator::new(forward, options)
}

/// Logits that make `token` certain.
pub(crate) fn certain(token: u32) -> Vec<f32> {
    let mut logits = vec![0.0; VOCABULARY];
    logits[token as usize] = 100.0;
    logits
}

/// After a prompt of one token: the answer `a b c é a b c é …`.
pub(crate) fn cycle(history: &[u32]) -> Vec<f32> {
    certain([A, B, C, FIRST_HALF, SECOND_HALF][(history.len() - 1) % 5])
}

/// As `cycle`, ending after two tokens.
pub(crate) fn short(history: &[u32]) -> Vec<f32> {
    if history.len() == 3 {
        certain(END)
    } else {
        cycle(history)
    }
}

/// Logits that depend on every token before them; the end token is out of reach.
pub(crate) fn chaotic(history: &[u32]) -> Vec<f32> {
    let mut state = 17_u32;
    for &token in history {
        state = (state ^ token)
            .wrapping_mul(0x9E37_79B1)
            .rotate_left(13)
            .wrapping_add(1);
    }
    let mut logits: Vec<f32> = (0..VOCABULARY as u32)
        .map(|id| ((state.wrapping_mul(2 * id + 1) >> 24) as f32) / 64.0)
        .collect();
    logits[END as usize] = -100.0;
    logits
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) pieces: Vec<String>,
    pub(crate) ids: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) prompt_tokens: Option<usize>,
    pub(crate) end: Option<(FinishReason, Usage)>,
}

pub(crate) type Answers = BTreeMap<GenerationId, Answer>;

pub(crate) fn step(generator: &mut Generator<Scripted>, answers: &mut Answers) {
    step_unless(generator, answers, false);
}

pub(crate) fn step_unless(
    generator: &mut Generator<Scripted>,
    answers: &mut Answers,
    interrupted: bool,
) {
    let mut sink = |id, event: Event<'_>| {
        let answer = answers.entry(id).or_default();
        assert!(answer.end.is_none(), "nothing follows the end");
        match event {
            Event::PromptDone { prompt_tokens, .. } => answer.prompt_tokens = Some(prompt_tokens),
            Event::Text { text, ids, tokens } => {
                assert!(!text.is_empty() || !ids.is_empty());
                answer.text.push_str(text);
                answer.pieces.push(text.to_owned());
                answer.ids.extend(ids);
                answer
                    .logprobs
                    .extend(tokens.iter().map(|token| token.logprob));
            }
            Event::Finished { reason, usage, .. } => answer.end = Some((reason, usage)),
        }
    };
    let reading = Reading {
        tokens_max: 3,
        order: None,
    };
    let stepped = generator.step_reading(reading, &mut sink, &|| interrupted);
    stepped.expect("a step");
}

pub(crate) fn finish(generator: &mut Generator<Scripted>) -> Answers {
    let mut answers = Answers::new();
    while generator.active() > 0 {
        step(generator, &mut answers);
    }
    answers
}

pub(crate) fn alone(script: Script, request: GenerationRequest) -> Answer {
    let mut generator = scripted(script, 64);
    let id = generator.start(request).expect("a start");
    let answer = finish(&mut generator).remove(&id).expect("an answer");
    assert_eq!(
        generator.executor().kv_tokens_free(),
        64 * PAGE,
        "pages are returned"
    );
    answer
}

pub(crate) fn request(prompt: &[u32], tokens_max: usize) -> GenerationRequest {
    GenerationRequest {
        prompt: prompt.to_vec(),
        tokens_max: Some(tokens_max),
        ..GenerationRequest::default()
    }
}

pub(crate) fn reason(answer: &Answer) -> &FinishReason {
    &answer.end.as_ref().expect("an end").0
}
