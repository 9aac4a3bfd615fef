//! Whether a model is fit to be asked: it makes the tokens that it is known to make, and fast enough.
//!
//! What it is known to make was noted when it was added ([`Known`]). The engine computes the same bits on every machine, so
//! other tokens mean that a file or the machine is damaged.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use andon_engine::generate::{
    Event, FinishReason, Forward, GenerationRequest, Generator, Reading, StepError,
};
use andon_engine::kv::KvType;
use andon_engine::tokenizer::Special;
use andon_engine::{ForwardError, Model};

use super::Shared;
use super::load::LoadFailure;
use super::machine::Seat;
use crate::registry::Known;

/// Tokens that are made of a model that somebody asks for: enough to tell its speed by.
const TOKENS: usize = 24;
/// When the daemon starts, or an alarm waits, no more are made after this time.
const BRIEF: Duration = Duration::from_millis(40);

/// How a model did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Proved {
    /// How many of its tokens were compared with those it is known to make.
    pub(crate) compared: usize,
    /// How fast it made them; 0 if too few were made to tell.
    pub(crate) tokens_per_second: f32,
}

/// Has the model make tokens: what `/readyz` promises. As few as will do where nobody asked for it, or an alarm waits. What is
/// asked of other models comes first where that is more urgent than what is of this one.
pub(super) fn prove<F: Forward>(
    shared: &Shared,
    model: &Model,
    generator: &mut Generator<F>,
    known: Option<(&Known, KvType)>,
    seat: &mut Seat,
) -> Result<Proved, LoadFailure> {
    let brief = !shared.around.asked;
    let failed = |why: &str| LoadFailure::operator(&format!("the self-test failed: {why}"));
    let (mut prompt, expected) = match known {
        Some((known, kv_type)) => (known.prompt.clone(), known.tokens(kv_type)),
        None => {
            let prompt = model.tokenizer().encode_prompt("Hello", Special::Plain);
            (prompt, &[][..])
        }
    };
    if prompt.is_empty() {
        // A vocabulary without these letters still has a first token.
        prompt.push(0);
    }
    let most = match (brief, expected) {
        (true, []) => 1,
        (true, expected) => expected.len(),
        (false, _) => TOKENS,
    };
    let request = GenerationRequest {
        prompt,
        tokens_max: Some(most),
        ignore_end: true,
        ..GenerationRequest::default()
    };
    let id = generator
        .start(request)
        .map_err(|error| failed(&error.to_string()))?;
    let began = Instant::now();
    let mut made: Vec<u32> = Vec::new();
    let mut finished = None;
    // A token is made by reading the prompt, and one by each step after that.
    let (mut read, mut steps, mut decoding) = (false, 0u16, Duration::ZERO);
    while generator.active() > 0 {
        shared.take_to_load(seat)?;
        let (step_began, decodes) = (Instant::now(), read);
        let alarms = seat.alarms();
        let reading = Reading {
            tokens_max: usize::MAX,
            order: None,
        };
        let mut deliver = |_, event: Event<'_>| match event {
            Event::Text { ids, .. } => made.extend_from_slice(ids),
            Event::Finished { reason, usage, .. } => {
                finished = Some((reason, usage.completion_tokens));
            }
            Event::PromptDone { .. } => read = true,
        };
        generator
            .step_reading(reading, &mut deliver, &|| seat.alarms() != alarms)
            .map_err(|error| match error {
                StepError(ForwardError::ModelChanged { .. } | ForwardError::Device(_)) => {
                    LoadFailure::machine(&error)
                }
                _ => failed(&error.to_string()),
            })?;
        if decodes {
            decoding += step_began.elapsed();
            steps += 1;
        }
        let hurries = brief || shared.hurries.load(Ordering::Relaxed);
        if hurries && read && began.elapsed() > BRIEF && finished.is_none() {
            generator.cancel(id);
            generator.end_cancelled(&mut |_, event| {
                if let Event::Finished { reason, usage, .. } = event {
                    finished = Some((reason, usage.completion_tokens));
                }
            });
        }
    }
    seat.release();
    match finished {
        Some((FinishReason::Failed(why), _)) => return Err(failed(&why)),
        Some((_, 1..)) => {}
        _ => return Err(failed("no token came out")),
    }
    let compared = expected.len().min(made.len());
    if let Some(at) = (0..compared).find(|&at| expected.get(at) != made.get(at)) {
        return Err(failed(&format!(
            "token {at} is {:?} where it was {:?} when the model was added: its files or this machine are damaged",
            made.get(at).copied().unwrap_or_default(),
            expected.get(at).copied().unwrap_or_default(),
        )));
    }
    let tokens_per_second = if decoding.is_zero() {
        0.0
    } else {
        f32::from(steps) / decoding.as_secs_f32()
    };
    Ok(Proved {
        compared,
        tokens_per_second,
    })
}
