//! Answers in OpenAI's objects: the whole reply and the chunks of a stream, for both endpoints.

use serde_json::{Value, json};

use super::calls::{Call, Part};
use crate::worker::{Done, TokenLogprob};

/// What stands for "impossible" where JSON has no infinity; OpenAI's choice.
const LOGPROB_MIN: f32 = -9999.0;

/// Which endpoint was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completion,
}

/// What the objects of one reply have in common.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) endpoint: Endpoint,
    pub(super) id: String,
    pub(super) created_s: u64,
    pub(super) model: String,
    /// Changes when what computes the answers does.
    pub(super) fingerprint: String,
    /// Whether log-probabilities were asked for.
    pub(super) logprobs: bool,
    pub(super) include_usage: bool,
    /// Answers to the request.
    pub(super) choices: usize,
}

/// Makes the objects of one reply.
#[derive(Debug)]
pub(super) struct Shape {
    frame: Frame,
    /// Characters of each answer so far; the older endpoint reports where each token begins.
    text_offsets: Vec<usize>,
}

/// One answer, gathered.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) calls: Vec<Call>,
    pub(super) tokens: Vec<TokenLogprob>,
    pub(super) finish: Option<&'static str>,
}

impl Shape {
    pub(super) fn new(frame: Frame) -> Shape {
        Shape {
            text_offsets: vec![0; frame.choices],
            frame,
        }
    }

    /// The id of the reply.
    pub(super) fn id(&self) -> &str {
        &self.frame.id
    }

    /// The whole reply.
    pub(super) fn whole(&mut self, answers: &[Answer], done: &Done) -> Value {
        let object = match self.frame.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completion => "text_completion",
        };
        let choices: Vec<Value> = answers
            .iter()
            .enumerate()
            .map(|(index, answer)| {
                let logprobs = self.logprobs(index, &answer.tokens);
                let finish = answer.finish;
                match self.frame.endpoint {
                    Endpoint::Chat => json!({
                        "index": index,
                        "message": message(answer),
                        "logprobs": logprobs,
                        "finish_reason": finish,
                    }),
                    Endpoint::Completion => json!({
                        "index": index,
                        "text": answer.text,
                        "logprobs": logprobs,
                        "finish_reason": finish,
                    }),
                }
            })
            .collect();
        json!({
            "id": self.frame.id,
            "object": object,
            "created": self.frame.created_s,
            "model": done.model.as_deref().unwrap_or(&self.frame.model),
            "system_fingerprint": self.frame.fingerprint,
            "choices": choices,
            "usage": usage(done),
            "timings": timings(done),
            "andon": whence(done),
        })
    }

    /// The chunk that opens an answer in a stream, if the endpoint has one.
    pub(super) fn first(&mut self, index: usize) -> Option<Value> {
        match self.frame.endpoint {
            Endpoint::Chat => Some(self.chunk_object(&json!([{
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": null,
                "finish_reason": null,
            }]))),
            Endpoint::Completion => None,
        }
    }

    /// A piece of an answer.
    pub(super) fn piece(&mut self, index: usize, text: &str, tokens: &[TokenLogprob]) -> Value {
        let logprobs = self.logprobs(index, tokens);
        let choice = match self.frame.endpoint {
            Endpoint::Chat => json!({
                "index": index,
                "delta": {"content": text},
                "logprobs": logprobs,
                "finish_reason": null,
            }),
            Endpoint::Completion => json!({
                "index": index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": null,
            }),
        };
        self.chunk_object(&json!([choice]))
    }

    /// A piece of a call, if there is something to say of it.
    pub(super) fn call_piece(&mut self, index: usize, part: &Part) -> Option<Value> {
        let call = match part {
            Part::Text(_) | Part::End { .. } => return None,
            Part::Begin { place, id, name } => json!({
                "index": place,
                "id": id,
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }),
            Part::Arguments { place, text } => {
                json!({"index": place, "function": {"arguments": text}})
            }
        };
        Some(self.chunk_object(&json!([{
            "index": index,
            "delta": {"tool_calls": [call]},
            "logprobs": null,
            "finish_reason": null,
        }])))
    }

    /// The chunk that says why an answer ended; with `done`, also where the time went.
    pub(super) fn last(&mut self, index: usize, finish: &str, done: Option<&Done>) -> Value {
        let choice = match self.frame.endpoint {
            Endpoint::Chat => {
                json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": finish})
            }
            Endpoint::Completion => {
                json!({"index": index, "text": "", "logprobs": null, "finish_reason": finish})
            }
        };
        let mut chunk = self.chunk_object(&json!([choice]));
        if let (Value::Object(chunk), Some(done)) = (&mut chunk, done) {
            chunk.insert("timings".to_owned(), timings(done));
            chunk.insert("andon".to_owned(), whence(done));
        }
        chunk
    }

    /// The chunk with what was spent, if it was asked for.
    pub(super) fn usage(&mut self, done: &Done) -> Option<Value> {
        if !self.frame.include_usage {
            return None;
        }
        let mut chunk = self.chunk_object(&json!([]));
        if let Value::Object(chunk) = &mut chunk {
            chunk.insert("usage".to_owned(), usage(done));
        }
        Some(chunk)
    }

    fn chunk_object(&self, choices: &Value) -> Value {
        let object = match self.frame.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completion => "text_completion",
        };
        let mut chunk = json!({
            "id": self.frame.id,
            "object": object,
            "created": self.frame.created_s,
            "model": self.frame.model,
            "system_fingerprint": self.frame.fingerprint,
            "choices": choices,
        });
        if self.frame.include_usage
            && let Value::Object(chunk) = &mut chunk
        {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        chunk
    }

    fn logprobs(&mut self, index: usize, tokens: &[TokenLogprob]) -> Value {
        let offset = match self.text_offsets.get_mut(index) {
            Some(offset) if self.frame.logprobs => offset,
            _ => return Value::Null,
        };
        match self.frame.endpoint {
            Endpoint::Chat => {
                let content: Vec<Value> = tokens
                    .iter()
                    .map(|token| {
                        let top: Vec<Value> = token
                            .top
                            .iter()
                            .map(|top| chat_token(&top.bytes, top.logprob))
                            .collect();
                        let mut object = chat_token(&token.bytes, token.logprob);
                        if let Value::Object(object) = &mut object {
                            object.insert("top_logprobs".to_owned(), Value::Array(top));
                        }
                        object
                    })
                    .collect();
                json!({"content": content, "refusal": null})
            }
            Endpoint::Completion => {
                let mut texts = Vec::with_capacity(tokens.len());
                let mut logprobs = Vec::with_capacity(tokens.len());
                let mut tops = Vec::with_capacity(tokens.len());
                let mut offsets = Vec::with_capacity(tokens.len());
                for token in tokens {
                    let text = String::from_utf8_lossy(&token.bytes).into_owned();
                    offsets.push(*offset);
                    *offset = offset.saturating_add(text.chars().count());
                    logprobs.push(finite(token.logprob));
                    let top: serde_json::Map<String, Value> = token
                        .top
                        .iter()
                        .map(|top| {
                            let text = String::from_utf8_lossy(&top.bytes).into_owned();
                            (text, json!(finite(top.logprob)))
                        })
                        .collect();
                    tops.push(Value::Object(top));
                    texts.push(text);
                }
                json!({
                    "tokens": texts,
                    "token_logprobs": logprobs,
                    "top_logprobs": tops,
                    "text_offset": offsets,
                })
            }
        }
    }
}

/// The message of an answer: without calls as it always was, with calls alone without a content.
fn message(answer: &Answer) -> Value {
    let mut message = json!({"role": "assistant", "content": answer.text, "refusal": null});
    if answer.calls.is_empty() {
        return message;
    }
    message["tool_calls"] = answer.calls.iter().map(Call::object).collect();
    if answer.text.is_empty() {
        message["content"] = Value::Null;
    }
    message
}

fn chat_token(bytes: &[u8], logprob: f32) -> Value {
    json!({
        "token": String::from_utf8_lossy(bytes),
        "logprob": finite(logprob),
        "bytes": bytes,
    })
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob.max(LOGPROB_MIN)
    } else {
        LOGPROB_MIN
    }
}

/// What was spent, in the shape of both endpoints.
fn usage(done: &Done) -> Value {
    let usage = &done.usage;
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        // Of all guesses, wherever they came from. Those that were wrong are no tokens of the answer.
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.guessed_tokens.saturating_sub(usage.accepted_tokens),
        },
    })
}

/// An extension: where the answer was made, whether it waited for upstream to be there, and by which model if not by the
/// served one.
pub(super) fn whence(done: &Done) -> Value {
    let mut whence = json!({"route": done.route.as_str()});
    if done.late {
        whence["late"] = true.into();
    }
    if let Some(model) = &done.model {
        whence["model"] = (**model).into();
    }
    whence
}

/// The header of a reply that says where its answer was made.
pub(super) const ROUTE_HEADER: &str = "andon-route";

/// An extension: where the time went.
pub(super) fn timings(done: &Done) -> Value {
    let timings = &done.timings;
    let computed = done
        .usage
        .prompt_tokens
        .saturating_sub(done.usage.cached_tokens);
    // The first token comes out of the prompt's pass; the rest are what decoding took time for.
    let decoded = done.usage.completion_tokens.saturating_sub(1);
    json!({
        "queue_ms": milliseconds(timings.queue_us),
        "prompt_ms": milliseconds(timings.prefill_us),
        "first_token_ms": milliseconds(timings.first_token_us),
        "decode_ms": milliseconds(timings.decode_us),
        "prompt_tokens_per_second": rate(computed, timings.prefill_us),
        "tokens_per_second": rate(decoded, timings.decode_us),
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds of an answer are far below 2^52"
)]
fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e3
}

#[expect(
    clippy::cast_precision_loss,
    reason = "tokens of an answer are far below 2^52"
)]
fn rate(tokens: usize, microseconds: u64) -> Option<f64> {
    if microseconds == 0 || tokens == 0 {
        return None;
    }
    Some((tokens as f64 * 1e9 / microseconds as f64).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{Finish, Timings, TopLogprob, Usage};

    fn done() -> Done {
        let usage = Usage {
            prompt_tokens: 10,
            cached_tokens: 4,
            completion_tokens: 5,
            guessed_tokens: 3,
            accepted_tokens: 2,
        };
        let timings = Timings {
            queue_us: 100,
            prefill_us: 2000,
            decode_us: 8000,
            first_token_us: 2100,
        };
        Done::new(Finish::Stop, usage, timings)
    }

    fn shape(endpoint: Endpoint) -> Shape {
        Shape::new(Frame {
            endpoint,
            id: "x-1".to_owned(),
            created_s: 7,
            model: "m".to_owned(),
            fingerprint: "f".to_owned(),
            logprobs: true,
            include_usage: true,
            choices: 2,
        })
    }

    fn token(bytes: &[u8], logprob: f32) -> TokenLogprob {
        TokenLogprob {
            bytes: bytes.to_vec(),
            logprob,
            top: vec![TopLogprob {
                bytes: bytes.to_vec(),
                logprob,
            }],
        }
    }

    #[test]
    fn a_whole_chat_answer_has_openai_fields() {
        let value = shape(Endpoint::Chat).whole(
            &[Answer {
                text: "hi".to_owned(),
                tokens: vec![token(b"hi", -0.5)],
                finish: Some("stop"),
                ..Answer::default()
            }],
            &done(),
        );
        assert_eq!(value["object"], "chat.completion");
        assert_eq!(value["choices"][0]["message"]["content"], "hi");
        assert_eq!(value["choices"][0]["finish_reason"], "stop");
        assert_eq!(
            value["choices"][0]["logprobs"]["content"][0]["bytes"][1],
            b'i'
        );
        assert_eq!(value["usage"]["total_tokens"], 15);
        assert_eq!(value["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
        let details = &value["usage"]["completion_tokens_details"];
        assert_eq!(details["accepted_prediction_tokens"], 2);
        assert_eq!(details["rejected_prediction_tokens"], 1);
        assert_eq!(value["timings"]["tokens_per_second"], 500.0);
        assert_eq!(value["timings"]["prompt_tokens_per_second"], 3000.0);
    }

    #[test]
    fn a_stream_opens_with_the_role_and_closes_with_reason_and_usage() {
        let mut shape = shape(Endpoint::Chat);
        let first = shape.first(0).expect("chat streams open with a role");
        assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(first["usage"], Value::Null);
        let last = shape.last(0, "stop", Some(&done()));
        assert_eq!(last["choices"][0]["delta"], json!({}));
        assert_eq!(last["choices"][0]["finish_reason"], "stop");
        let usage = shape.usage(&done()).expect("it was asked for");
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["completion_tokens"], 5);
    }

    #[test]
    fn offsets_count_characters_over_the_chunks_of_each_answer() {
        let mut shape = shape(Endpoint::Completion);
        let mut piece = |index, text: &str| {
            let tokens = [token(text.as_bytes(), f32::NEG_INFINITY)];
            shape.piece(index, text, &tokens)
        };
        let first = piece(0, "né");
        let other = piece(1, "a");
        let second = piece(0, "x");
        assert_eq!(other["choices"][0]["index"], 1);
        assert_eq!(other["choices"][0]["logprobs"]["text_offset"][0], 0);
        assert_eq!(first["choices"][0]["logprobs"]["text_offset"][0], 0);
        assert_eq!(second["choices"][0]["logprobs"]["text_offset"][0], 2);
        assert_eq!(
            second["choices"][0]["logprobs"]["token_logprobs"][0],
            -9999.0
        );
    }
}
