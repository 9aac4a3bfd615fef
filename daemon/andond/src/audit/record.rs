//! One record, and its line.

use std::time::SystemTime;

use andon_engine::sample::SamplingOptions;
use serde::Serialize;

use super::date::rfc3339;

/// The version of the records' form. It grows when a field changes its meaning or goes; new ones may come without.
const VERSION: u32 = 1;

/// How an answer was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sampler {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Tokens kept; 0 is all.
    pub top_k: u32,
    /// Probability mass kept.
    pub top_p: f32,
    /// Least probability relative to the most probable token.
    pub min_p: f32,
    /// Mass of the tokens whose surprise is nearest to the expected one.
    pub typical_p: f32,
    /// Penalty of tokens seen lately.
    pub repeat_penalty: f32,
    /// How many of the last tokens that looks at.
    pub repeat_last_n: u32,
    /// Penalty of tokens that the answer has.
    pub presence_penalty: f32,
    /// Penalty for each time that it has them.
    pub frequency_penalty: f32,
}

impl From<&SamplingOptions> for Sampler {
    fn from(options: &SamplingOptions) -> Sampler {
        Sampler {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            typical_p: options.typical_p,
            repeat_penalty: options.repeat_penalty,
            repeat_last_n: options.repeat_last_n,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
        }
    }
}

/// What is recorded of a request when it ends. Fields of which nothing is known are left out of the line.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Record<'a> {
    /// The client's name for the request.
    pub request_id: &'a str,
    /// Who asked, as the front end knows it.
    pub client: &'a str,
    /// The user behind a Unix socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The front end.
    pub origin: &'a str,
    /// The task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<&'a str>,
    /// The class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<&'a str>,
    /// Which attempt at an answer it was, from 1.
    pub attempt: u16,
    /// The model.
    pub model: &'a str,
    /// SHA-256 of each of its files of weights, as its manifest has them, or of the lines of these where they are more than eight;
    /// none of a model that is served by its path.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub weights_sha256: &'a [String],
    /// Where it was answered.
    pub route: &'a str,
    /// The seed of the draws.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How they were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Sampler>,
    /// Most tokens of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_max: Option<usize>,
    /// Answers asked for.
    pub choices: u32,
    /// SHA-256 of the shape that answers were held to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_sha256: Option<&'a str>,
    /// Tokens of the prompt, of them from the cache, and of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<usize>,
    /// Those that were not computed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<usize>,
    /// Tokens of the answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<usize>,
    /// Until the computation began, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_us: Option<u64>,
    /// Until the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_us: Option<u64>,
    /// Until the end.
    pub total_us: u64,
    /// How it ended: `stop`, `length`, `cancelled`, or the code of what went wrong.
    pub outcome: &'a str,
    /// Keyed digest of the prompt's tokens, each as four bytes, the lowest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_hmac: Option<String>,
    /// Keyed digests of the answers' texts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answer_hmac: Vec<String>,
}

/// The line's own fields before those of the record.
#[derive(Serialize)]
struct Line<'a> {
    v: u32,
    time: String,
    andond: &'static str,
    #[serde(flatten)]
    record: &'a Record<'a>,
}

impl Record<'_> {
    /// The record as a line, with the time now.
    pub(super) fn line(&self) -> String {
        let line = Line {
            v: VERSION,
            time: rfc3339(SystemTime::now()),
            andond: env!("CARGO_PKG_VERSION"),
            record: self,
        };
        // Numbers that JSON does not have are written as null; there is nothing else that could fail.
        let mut line = serde_json::to_string(&line).unwrap_or_default();
        line.push('\n');
        line
    }
}
