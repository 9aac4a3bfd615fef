//! A question to a model and its answer, by the same loop that the daemon runs.

use std::io;

use andon_engine::Model;
use andon_engine::generate::{Event, FinishReason, GenerationRequest, Generator, Timings, Usage};
use andon_engine::tokenizer::{ChatInput, ChatMessage, Special};
use anyhow::{Context as _, Result, bail};

/// One answer.
pub(crate) struct Answer {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: String,
    /// How it ended.
    pub(crate) finish: &'static str,
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
}

impl Answer {
    /// What `generator`, which has nothing else to do, answers. Its text is `heard` as it comes.
    ///
    /// # Errors
    /// That the request is refused or failed, or what `heard` says.
    pub(crate) fn of(
        generator: &mut Generator,
        request: GenerationRequest,
        mut heard: impl FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer> {
        let id = generator.start(request)?;
        let (mut ids, mut answer, mut end, mut went) = (Vec::new(), String::new(), None, Ok(()));
        while generator.active() > 0 {
            generator.step(&mut |_, event| match event {
                Event::PromptDone { .. } => {}
                Event::Text { text, ids: new, .. } => {
                    answer.push_str(text);
                    ids.extend_from_slice(new);
                    if went.is_ok() {
                        went = heard(text);
                    }
                }
                Event::Finished {
                    reason,
                    usage,
                    timings,
                } => end = Some((reason, usage, timings)),
            })?;
            if went.is_err() {
                // Nobody waits for the rest.
                generator.cancel(id);
            }
        }
        went?;
        let (reason, usage, timings) = end.context("the generation did not end")?;
        let finish = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Failed(message) => bail!("the generation failed: {message}"),
        };
        Ok(Answer {
            ids,
            text: answer,
            finish,
            usage,
            timings,
        })
    }
}

/// The prompt of a question, as the model's chat template has it; `None` if it has none.
pub(crate) fn question(model: &Model, text: &str) -> Result<Option<Vec<u32>>> {
    let Some(template) = model.chat_template() else {
        return Ok(None);
    };
    let message = ChatMessage::new("user", text);
    // The template writes what belongs at the beginning.
    let input = ChatInput {
        messages: &[message],
        add_generation_prompt: true,
        ..ChatInput::default()
    };
    let prompt = template.render(&input)?;
    Ok(Some(model.tokenizer().encode(&prompt, Special::Parse)))
}
