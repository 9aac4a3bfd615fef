//! Answers as a client gets them: the chat template, the likeliest token each time, several side by side.

use std::collections::HashMap;
use std::sync::Arc;

use andon_engine::Model;
use andon_engine::generate::{
    Event, FinishReason, GenerationId, GenerationRequest, Generator, GeneratorOptions, StartError,
};
use andon_engine::grammar::{Constraint, Grammar};
use andon_policy::confidence::{ALTERNATIVES, Gauge, entropy};
use anyhow::{Context as _, Result, bail};

use super::question::{Question, Truth};
use super::{Arguments, Outcome, Output, asked, judge};

/// Tokens in which a choice is named, if it is at all.
const LETTER_TOKENS: usize = 24;

/// An answer under way.
struct Open {
    question: usize,
    text: String,
    gauge: Gauge,
    reason: Option<FinishReason>,
}

pub(super) fn measure(
    arguments: &Arguments,
    model: &Arc<Model>,
    questions: &[Question],
    output: &mut Output,
) -> Result<()> {
    let each = arguments.prompt_tokens_max + arguments.generate;
    let executor = arguments.run.executor(model, each * arguments.parallel)?;
    let options = GeneratorOptions {
        parallel_max: arguments.parallel,
        prefill_chunk_tokens: executor.batch_tokens_max(),
        ..GeneratorOptions::default()
    };
    let mut generator = Generator::new(executor, options);
    let mut open: HashMap<GenerationId, Open> = HashMap::new();
    let mut next = 0;
    while next < questions.len() || !open.is_empty() {
        while let Some(question) = questions
            .get(next)
            .filter(|_| open.len() < arguments.parallel)
        {
            let place = || format!("{}: {}", question.set, question.id);
            let Some(request) = request(arguments, model, question).with_context(place)? else {
                output.leave_out();
                next += 1;
                continue;
            };
            match generator.start(request) {
                Ok(id) => {
                    let begun = Open {
                        question: next,
                        text: String::new(),
                        gauge: Gauge::new(),
                        reason: None,
                    };
                    open.insert(id, begun);
                    next += 1;
                }
                Err(StartError::Busy { .. } | StartError::KvFull { .. }) if !open.is_empty() => {
                    break;
                }
                Err(error) => return Err(error).with_context(place),
            }
        }
        generator.step(&mut |id, event| {
            let Some(open) = open.get_mut(&id) else {
                return;
            };
            match event {
                Event::PromptDone { .. } => {}
                Event::Text { text, tokens, .. } => {
                    open.text.push_str(text);
                    for token in tokens {
                        let choice = entropy(token.top.iter().map(|ranked| ranked.logprob));
                        open.gauge.token(token.id, token.logprob, choice);
                    }
                }
                Event::Finished { reason, .. } => open.reason = Some(reason),
            }
        })?;
        let mut ended: Vec<GenerationId> = open
            .iter()
            .filter(|(_, open)| open.reason.is_some())
            .map(|(&id, _)| id)
            .collect();
        ended.sort_unstable();
        for id in ended {
            let Some(ended) = open.remove(&id) else {
                continue;
            };
            let question = &questions[ended.question];
            let mut signals = ended.gauge.signals();
            signals.ended = match ended.reason {
                Some(FinishReason::Failed(why)) => {
                    bail!("{}: {}: {why}", question.set, question.id)
                }
                reason => reason == Some(FinishReason::Stop),
            };
            let outcome = Outcome {
                right: judge::is_right(&ended.text, &question.truth),
                answer: ended.text,
                signals,
                scores: Vec::new(),
            };
            output.add(question, outcome)?;
        }
    }
    Ok(())
}

/// What is asked for; `None` if it is too long.
fn request(
    arguments: &Arguments,
    model: &Arc<Model>,
    question: &Question,
) -> Result<Option<GenerationRequest>> {
    let prompt = asked(arguments, model, &question.prompt)?;
    if prompt.len() > arguments.prompt_tokens_max {
        return Ok(None);
    }
    let tokens_max = match question.truth {
        Truth::Choice { .. } => arguments.generate.min(LETTER_TOKENS),
        _ => arguments.generate,
    };
    let constraint = match &question.schema {
        None => None,
        Some(schema) => {
            let vocabulary = model.grammar_vocabulary()?;
            let constraint = Constraint::JsonSchema(schema.clone());
            let grammar = Grammar::compile(vocabulary, &constraint, tokens_max)?;
            Some(Arc::new(grammar))
        }
    };
    // A text that is continued has no end of its own: it goes on with a question of its own making.
    let stop = if arguments.plain || model.chat_template().is_none() {
        vec!["\nQuestion:".to_owned()]
    } else {
        Vec::new()
    };
    Ok(Some(GenerationRequest {
        prompt,
        tokens_max: Some(tokens_max),
        logprobs: Some(ALTERNATIVES),
        constraint,
        stop,
        ..GenerationRequest::default()
    }))
}
