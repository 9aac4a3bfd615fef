//! Servers that are asked over OpenAI's chat API: andond at its Unix socket, llama-server at a port.
//!
//! Both are asked in the same words and read in the same way. What is timed begins with the connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::daemon::PATIENCE;

/// Far more than the longest answer that is asked for.
const ANSWER_BYTES_MAX: u64 = 1 << 26;

/// Where a server listens.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Socket(PathBuf),
    /// On 127.0.0.1.
    Port(u16),
}

/// What is said to a model: who says it, and what.
pub(super) type Conversation = Vec<(&'static str, String)>;

/// What one answer came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// Milliseconds to the first text of it.
    pub(super) first_ms: f64,
    /// Tokens of the prompt, those among them that were known already, and tokens of the answer.
    pub(super) prompt: usize,
    pub(super) cached: usize,
    pub(super) completion: usize,
}

impl Answer {
    /// Tokens that had to be computed before the first of the answer.
    pub(super) fn new_tokens(&self) -> usize {
        self.prompt.saturating_sub(self.cached)
    }
}

trait Connection: Read + Write {}
impl Connection for UnixStream {}
impl Connection for TcpStream {}

impl Address {
    fn connect(&self) -> Result<Box<dyn Connection>> {
        Ok(match self {
            Address::Socket(path) => {
                let stream = UnixStream::connect(path).context("andond does not listen")?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Address::Port(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))
                    .context("llama-server does not listen")?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }

    /// Sends a request and returns its status and where its body begins.
    fn send(&self, path: &str, body: &str) -> Result<(String, impl BufRead + use<>)> {
        let mut stream = self.connect()?;
        let method = if body.is_empty() { "GET" } else { "POST" };
        // In one piece, as a careful client does.
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut lines = BufReader::new(stream.take(ANSWER_BYTES_MAX));
        let mut status = String::new();
        lines.read_line(&mut status)?;
        let mut line = String::new();
        while lines.read_line(&mut line)? > 2 {
            line.clear();
        }
        Ok((status.trim().to_owned(), lines))
    }

    /// Whether the server answers that it is well.
    pub(super) fn is_healthy(&self) -> bool {
        self.send("/health", "")
            .is_ok_and(|(status, _)| status.contains(" 200"))
    }

    /// Asks, reads the answer as it comes, and says when it began.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) fn stream(&self, conversation: &Conversation, tokens: usize) -> Result<Answer> {
        let mut body = body(conversation, tokens);
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        let began = Instant::now();
        let (status, mut lines) = self.send("/v1/chat/completions", &body.to_string())?;
        ensure!(status.contains(" 200"), "refused: {status}");
        let mut answer = Answer::default();
        let mut first = None;
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            if let Some(data) = line.strip_prefix("data: {") {
                let at = Instant::now();
                let event: Value = serde_json::from_str(&format!("{{{data}"))?;
                ensure!(event["error"].is_null(), "{}", event["error"]);
                let text = event["choices"][0]["delta"]["content"].as_str();
                if text.is_some_and(|text| !text.is_empty()) {
                    first.get_or_insert(at);
                }
                read_usage(&event, &mut answer);
            }
            line.clear();
        }
        ensure!(answer.prompt > 0, "the answer does not say what it took");
        // An answer may be empty: then its end is what came first.
        let first = first.unwrap_or_else(Instant::now);
        answer.first_ms = (first - began).as_secs_f64() * 1e3;
        Ok(answer)
    }

    /// Asks for the whole answer at once.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) fn whole(&self, conversation: &Conversation, tokens: usize) -> Result<Answer> {
        let body = body(conversation, tokens).to_string();
        let (status, mut rest) = self.send("/v1/chat/completions", &body)?;
        let mut text = String::new();
        rest.read_to_string(&mut text)?;
        if !status.contains(" 200") {
            bail!("refused: {status}: {}", text.trim());
        }
        let mut answer = Answer::default();
        let reply = serde_json::from_str(&text).context("the answer is no JSON")?;
        read_usage(&reply, &mut answer);
        ensure!(answer.prompt > 0, "the answer does not say what it took");
        Ok(answer)
    }
}

/// The body of a request for the likeliest answer.
fn body(conversation: &Conversation, tokens: usize) -> Value {
    let messages: Vec<Value> = conversation
        .iter()
        .map(|(role, content)| json!({ "role": role, "content": content }))
        .collect();
    json!({ "messages": messages, "max_tokens": tokens, "temperature": 0 })
}

/// Takes what a reply says of tokens. llama-server tells of cached ones beside its times.
fn read_usage(reply: &Value, answer: &mut Answer) {
    let number = |value: &Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
    let usage = &reply["usage"];
    if let Some(prompt) = number(&usage["prompt_tokens"]) {
        answer.prompt = prompt;
        answer.completion = number(&usage["completion_tokens"]).unwrap_or(0);
    }
    let cached = number(&usage["prompt_tokens_details"]["cached_tokens"]);
    if let Some(cached) = cached.or_else(|| number(&reply["timings"]["cache_n"])) {
        answer.cached = cached;
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, read_usage};
    use serde_json::json;

    #[test]
    fn what_an_answer_took_is_read_from_either_server() {
        let mut ours = Answer::default();
        read_usage(
            &json!({"usage": {"prompt_tokens": 90, "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 64}}}),
            &mut ours,
        );
        let mut theirs = Answer::default();
        read_usage(
            &json!({"usage": {"prompt_tokens": 90, "completion_tokens": 4},
                "timings": {"cache_n": 64}}),
            &mut theirs,
        );
        assert_eq!(ours, theirs);
        assert_eq!(ours.new_tokens(), 26);
        // An event without figures changes nothing.
        read_usage(&json!({"choices": []}), &mut ours);
        assert_eq!(ours, theirs);
    }
}
