//! Asking: one request out, its chunks and its end in.
//!
//! Invariant: the text that [`exchange`] returns is the chunks of the last attempt, all of them
//! and in order; an answer with a gap is an error, not an answer.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;
use std::process;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use andon_wire::{
    Ask, AskError, Chunk, ClientFrame, Done, Fault, Finish, Input, Message, RequestId, Role,
    ServerFrame, limits,
};
use serde::Serialize;

use crate::arguments::{AnswerOptions, AskOptions};
use crate::connection::{Connection, unexpected};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::Output;

/// How much longer than the deadline to wait for the daemon's word that it passed.
pub(crate) const DEADLINE_GRACE: Duration = Duration::from_secs(5);

/// A complete answer.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) done: Done,
}

/// What `--json` prints.
#[derive(Serialize)]
struct AnswerReport<'a> {
    text: &'a str,
    #[serde(flatten)]
    done: &'a Done,
    decode_tokens_per_s: Option<f64>,
}

/// What `--json` prints when there is no answer.
#[derive(Serialize)]
struct ErrorReport<'a> {
    error: Fault<'a>,
}

/// The command `ask`.
pub(crate) fn run(path: &Path, options: &AskOptions, output: &mut Output) -> Result<(), Failure> {
    let interrupts = Interrupts::listen()?;
    let text = question(options)?;
    if text.trim().is_empty() && !options.raw {
        return Err(Failure::Request(AskError::Empty));
    }
    let id = options.id.clone().map_or_else(|| fresh_id(0), Ok)?;
    let input = if let Some(name) = &options.task {
        Input::Task {
            name: name.clone(),
            input_json: &text,
        }
    } else if options.raw {
        Input::Prompt(&text)
    } else {
        let system = options
            .answer
            .system
            .as_deref()
            .map(|content| (Role::System, content));
        messages(system.into_iter().chain([(Role::User, text.as_str())]))?
    };
    let ask = Ask {
        stream: !options.no_stream,
        ..request(id.clone(), input, &options.answer)?
    };

    let stream = !options.no_stream && !options.json;
    let outcome = Connection::open(path).and_then(|mut connection| {
        exchange(&mut connection, ask, &options.answer, &interrupts, |text| {
            if stream { output.text(text) } else { Ok(()) }
        })
    });
    if stream {
        output.end_line()?;
    }
    if options.json {
        return report(output, &id, outcome);
    }
    let answer = outcome?;
    if !stream {
        output.text(&answer.text)?;
        output.end_line()?;
    }
    if options.answer.stats || (output.is_terminal() && io::stderr().is_terminal()) {
        eprintln!("{}", stats(&answer.done));
    }
    finished(&answer.done)
}

/// A request as the options say.
pub(crate) fn request<'a>(
    id: RequestId,
    input: Input<'a>,
    options: &'a AnswerOptions,
) -> Result<Ask<'a>, Failure> {
    let mut ask = Ask::new(id, input);
    ask.model.clone_from(&options.model);
    ask.sampling = options.sampling.sampling();
    ask.tokens_max = options.tokens_max;
    andon_wire::check_stops(&options.stop)?;
    ask.stop = options.stop.iter().map(String::as_str).collect();
    ask.priority = options.priority.map(Into::into);
    ask.deadline_ms = options.deadline_ms;
    ask.egress = options.egress.map(Into::into);
    ask.check()?;
    Ok(ask)
}

/// The messages of a conversation.
pub(crate) fn messages<'a>(
    said: impl Iterator<Item = (Role, &'a str)>,
) -> Result<Input<'a>, Failure> {
    let mut messages = heapless::Vec::new();
    for (role, content) in said {
        let count = messages.len() + 1;
        messages
            .push(Message { role, content })
            .map_err(|_| AskError::TooManyMessages { count })?;
    }
    Ok(Input::Messages(messages))
}

/// Sends a request and takes in its answer, giving each piece of text to `show` as it comes.
pub(crate) fn exchange(
    connection: &mut Connection,
    ask: Ask<'_>,
    options: &AnswerOptions,
    interrupts: &Interrupts,
    mut show: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<Answer, Failure> {
    // A queue may take its time, so without a deadline there is no time at which to give up.
    let deadline = options
        .deadline_ms
        .map(|ms| Duration::from_millis(ms.into()) + DEADLINE_GRACE);
    connection.wait_at_most(deadline)?;
    let id = ask.id.clone();
    connection.send(&ClientFrame::Ask(ask))?;
    let _guard = interrupts.cancels(connection.stream()?, id.clone());

    let mut text = String::new();
    let (mut attempt, mut count) = (0, 0);
    loop {
        match connection.receive()? {
            ServerFrame::Accepted(accepted) if accepted.id == id => {}
            // Whether it found anything, the request's own end tells.
            ServerFrame::Cancelled(_) => {}
            ServerFrame::Chunk(chunk) if chunk.id == id => {
                if chunk.attempt > attempt {
                    if !text.is_empty() {
                        eprintln!("\nandonctl: the answer begins again");
                        text.clear();
                    }
                    (attempt, count) = (chunk.attempt, 0);
                }
                check_order(&chunk, attempt, count)?;
                count += 1;
                text.push_str(chunk.text);
                show(chunk.text)?;
            }
            ServerFrame::Done(done) if done.id == id => {
                if done.chunks != count {
                    return Err(Failure::Lost(format!(
                        "the answer has {} chunks and {count} arrived",
                        done.chunks
                    )));
                }
                return Ok(Answer { text, done });
            }
            ServerFrame::Error(fault) if fault.id.is_none() || fault.id.as_ref() == Some(&id) => {
                return Err(Failure::from(&fault));
            }
            _ => return Err(unexpected("request")),
        }
    }
}

fn check_order(chunk: &Chunk<'_>, attempt: u16, count: u32) -> Result<(), Failure> {
    if (chunk.attempt, chunk.sequence) == (attempt, count) && count < u32::MAX {
        return Ok(());
    }
    Err(Failure::Lost(format!(
        "chunk {} of attempt {} came where chunk {count} of attempt {attempt} was due",
        chunk.sequence, chunk.attempt
    )))
}

/// Turns an answer that the user cancelled into that failure.
pub(crate) fn finished(done: &Done) -> Result<(), Failure> {
    match done.finish {
        Finish::Stop | Finish::Length => Ok(()),
        Finish::Cancelled => Err(Failure::Cancelled),
    }
}

/// One line about an answer.
pub(crate) fn stats(done: &Done) -> String {
    let Done { usage, timings, .. } = done;
    let mut line = format!(
        "[first token {:.0} ms, {} tokens",
        timings.first_token_us as f64 / 1e3,
        usage.completion_tokens
    );
    if let Some(speed) = timings.decode_tokens_per_s(usage.completion_tokens) {
        line += &format!(" at {speed:.1} tok/s");
    }
    line += &format!("; prompt {} tokens", usage.prompt_tokens);
    if usage.cached_tokens > 0 {
        line += &format!(", {} cached", usage.cached_tokens);
    }
    if timings.queue_us >= 1_000 {
        line += &format!("; waited {:.0} ms", timings.queue_us as f64 / 1e3);
    }
    line + &format!(
        "; {}, {}{}, {}]",
        done.model,
        done.origin.as_str(),
        if done.origin.is_late() { " (late)" } else { "" },
        done.finish.as_str()
    )
}

fn report(
    output: &mut Output,
    id: &RequestId,
    outcome: Result<Answer, Failure>,
) -> Result<(), Failure> {
    let (json, end) = match outcome {
        Ok(Answer { text, done }) => {
            let speed = done
                .timings
                .decode_tokens_per_s(done.usage.completion_tokens);
            let report = AnswerReport {
                text: &text,
                done: &done,
                decode_tokens_per_s: speed,
            };
            (serde_json::to_string(&report), finished(&done))
        }
        Err(Failure::Refused(refusal)) => {
            let error = Fault {
                id: Some(id.clone()),
                code: refusal.code,
                message: &refusal.message,
                retry_after_ms: refusal.retry_after_ms,
            };
            (
                serde_json::to_string(&ErrorReport { error }),
                Err(Failure::Refused(refusal)),
            )
        }
        Err(failure) => return Err(failure),
    };
    let json = json.map_err(|error| Failure::Output(error.into()))?;
    output.bytes(json.as_bytes())?;
    output.bytes(b"\n")?;
    end
}

/// The text to ask, or the input of the task.
fn question(options: &AskOptions) -> Result<String, Failure> {
    if let Some(input) = &options.input {
        let text = if input == "-" {
            standard_input()?
        } else {
            input.clone()
        };
        return match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(Failure::Usage(format!(
                "--input is no JSON object: {error}"
            ))),
        };
    }
    match options.text.as_slice() {
        [] if io::stdin().is_terminal() => Err(Failure::Usage(
            "nothing to ask: give a text, or - to read one".to_owned(),
        )),
        [] => standard_input(),
        [dash] if dash == "-" => standard_input(),
        words => Ok(words.join(" ")),
    }
}

pub(crate) fn standard_input() -> Result<String, Failure> {
    let bytes_max = limits::INPUT_BYTES_MAX as u64;
    let mut text = String::new();
    // One byte more than allowed, so that too much is told from just enough.
    io::stdin()
        .take(bytes_max + 1)
        .read_to_string(&mut text)
        .map_err(Failure::Input)?;
    andon_wire::check_input_bytes(text.len())?;
    Ok(text)
}

/// An id that this machine has not used before, short of a clock set back to the nanosecond.
pub(crate) fn fresh_id(turn: u32) -> Result<RequestId, Failure> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let id = format!("ctl-{:x}-{}-{turn}", now.as_nanos(), process::id());
    RequestId::new(&id).map_err(|error| Failure::Usage(format!("the id {id}: {error}")))
}
