//! A local answer that is held back until it is known whether it is wanted.

use andon_engine::calls::CallFormat;
use andon_policy::confidence::{Confidence, Gauge, Signals, entropy};

use super::HOLD_BYTES_MAX;
use crate::fault::{Fault, FaultCode};
use crate::worker::{Done, Finish, JobEvent, JobStream, TokenLogprob};

/// A local answer, complete.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) text: String,
    /// How it writes calls, if it may have some.
    pub(super) calls: Option<CallFormat>,
    pub(super) done: Done,
    signals: Signals,
}

impl Draft {
    /// The probability that it is right by `confidence`, of which this was thought before it was made.
    pub(super) fn confidence(&self, confidence: &Confidence, prior: f32) -> f32 {
        confidence.of(&Signals {
            prior,
            ..self.signals
        })
    }
}

/// Why there is no local answer.
#[derive(Debug)]
pub(super) enum Unmade {
    /// It is longer than is held back.
    TooLong,
    /// The worker says so.
    Failed(Fault),
}

/// One that is being made. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Drafting {
    stream: JobStream,
    text: String,
    calls: Option<CallFormat>,
    gauge: Gauge,
}

impl Drafting {
    /// One of which this is read.
    pub(super) fn new(stream: JobStream) -> Drafting {
        Drafting {
            stream,
            text: String::new(),
            calls: None,
            gauge: Gauge::new(),
        }
    }

    /// The answer, once it is complete. Cancel safe: it goes on where it was.
    pub(super) async fn made(&mut self) -> Result<Draft, Unmade> {
        while let Some(event) = self.stream.next().await {
            match event {
                JobEvent::Accepted { calls, .. } => self.calls = calls,
                JobEvent::Chunk(chunk) => {
                    self.text.push_str(&chunk.text);
                    if self.text.len() > HOLD_BYTES_MAX {
                        return Err(Unmade::TooLong);
                    }
                    chunk.logprobs.iter().for_each(|token| self.hear(token));
                }
                JobEvent::Done(done) => {
                    let signals = Signals {
                        ended: done.finish == Finish::Stop,
                        ..self.gauge.signals()
                    };
                    return Ok(Draft {
                        text: std::mem::take(&mut self.text),
                        calls: self.calls.take(),
                        done,
                        signals,
                    });
                }
                JobEvent::Failed(fault) => return Err(Unmade::Failed(fault)),
                // It is one text, by one who does not begin again.
                JobEvent::Started
                | JobEvent::Restarted
                | JobEvent::ChoiceDone { .. }
                | JobEvent::Vectors(_) => {}
            }
        }
        let fault = Fault::new(FaultCode::Internal, "the draft broke off");
        Err(Unmade::Failed(fault))
    }

    fn hear(&mut self, token: &TokenLogprob) {
        // The same bytes are the same token but for a few that no answer tells apart.
        let id = fnv(&token.bytes);
        let top = token.top.iter().map(|top| top.logprob);
        self.gauge.token(id, token.logprob, entropy(top));
    }
}

/// The answer of one that may not be there; never, if it is not.
pub(super) async fn made(drafting: &mut Option<Drafting>) -> Result<Draft, Unmade> {
    match drafting {
        Some(drafting) => drafting.made().await,
        None => std::future::pending().await,
    }
}

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
