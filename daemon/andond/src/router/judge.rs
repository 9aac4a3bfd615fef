//! What is known of a request when it is decided who answers it, and the bar for going up.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use andon_policy::route::{
    Decision, Facts, Policy, Purse, Rules, Share, Upstream, decide, is_hard,
};

use super::Inner;
use crate::config::Config;
use crate::config::router::RouterConfig;
use crate::request::{Egress, Origin, Request};
use crate::task::Resolved;
use crate::upstream::Question;

/// Bytes of text that make a token, as a guess for what was not tokenized yet.
const BYTES_PER_TOKEN: usize = 4;
/// Tokens of an answer, as a guess for one whose limit is higher.
const ANSWER_TOKENS: usize = 256;

/// What is known of a request.
#[derive(Debug)]
pub(super) struct Known {
    /// What an upstream would be asked; `None` if it would not understand it.
    pub(super) question: Option<Question>,
    /// What the decision is made by.
    pub(super) facts: Facts,
    /// When the answer is worthless.
    pub(super) deadline: Option<Instant>,
}

impl Known {
    /// Probability that the local answer will do, if that was estimated.
    pub(super) fn will_do(&self) -> Option<f32> {
        Some(self.facts.will_do).filter(|will_do| will_do.is_finite())
    }
}

/// Judges requests.
#[derive(Debug)]
pub(super) struct Judge {
    bar: Mutex<Bar>,
}

/// The threshold, and what it was made of.
#[derive(Debug)]
struct Bar {
    threshold: f64,
    target: Option<f64>,
    share: Share,
}

impl Bar {
    fn of(config: &RouterConfig) -> Bar {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "both are between 0 and 1, and a few digits do"
        )]
        let share = Share::new(
            config.threshold as f32,
            config.target_share.map(|share| share as f32),
        );
        Bar {
            threshold: config.threshold,
            target: config.target_share,
            share,
        }
    }
}

impl Judge {
    pub(super) fn new(config: &Config) -> Judge {
        Judge {
            bar: Mutex::new(Bar::of(&config.router)),
        }
    }

    /// Below which probability a request goes up now.
    pub(super) fn threshold(&self) -> f32 {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        bar.share.threshold()
    }

    /// Goes by another configuration, if it says something else.
    fn follow(&self, config: &RouterConfig) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if bar.threshold.to_bits() != config.threshold.to_bits()
            || bar.target != config.target_share
        {
            *bar = Bar::of(config);
        }
    }

    /// What is to be done.
    pub(super) fn decide(&self, facts: &Facts, config: &Config) -> Decision {
        self.follow(&config.router);
        let rules = Rules {
            threshold: self.threshold(),
            cascade: config.router.cascade,
        };
        decide(facts, &rules)
    }

    /// Moves the threshold after a request that could have gone up by what it asks.
    pub(super) fn note(&self, facts: &Facts) {
        if facts.policy != Policy::Auto || !facts.may_leave || !facts.can_leave {
            return;
        }
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        let hard = is_hard(facts.will_do, bar.share.threshold(), Purse::Open);
        bar.share.note(hard);
    }

    /// What is known of a request, but for the moment.
    pub(super) fn known(
        &self,
        request: &Request,
        task: Option<&Resolved>,
        config: &Config,
    ) -> Known {
        let question = Question::of(request, task, config.limits.tokens_max_default);
        let question = question
            .inspect_err(|why| tracing::debug!(%why, "a request stays here"))
            .ok();
        let policy = request.policy.or(task.and_then(|task| task.policy));
        let policy = policy.or(request.rights.policy);
        let waits = request.waits.or(task.and_then(|task| task.waits));
        let since = Instant::now();
        let by_task = task.and_then(|task| since.checked_add(task.deadline?));
        let may_leave = request.travels(task.and_then(|task| task.egress)) == Egress::Any;
        Known {
            facts: Facts {
                policy: policy.unwrap_or(config.router.policy),
                may_leave,
                can_leave: question.is_some(),
                upstream: Upstream::Absent,
                will_do: f32::NAN,
                purse: Purse::Open,
                waits: waits.unwrap_or(config.router.wait),
                left_ms: None,
                upstream_ms: 0,
                local_ms: 0,
            },
            question,
            deadline: request.deadline.or(by_task),
        }
    }
}

impl Inner {
    /// What is known of the moment, in what is known of a request.
    pub(super) fn at_this_moment(&self, known: &mut Known, request: &Request, config: &Config) {
        let Some(question) = &known.question else {
            return;
        };
        let whose = (request.origin == Origin::Mqtt, request.client.clone());
        // What may wait does not go before what waits.
        let behind = known.facts.waits && self.line.has(&whose);
        self.look(&mut known.facts, question, known.deadline, config);
        if behind && known.facts.upstream == Upstream::Up {
            known.facts.upstream = Upstream::Busy;
        }
    }

    /// The same for a question that has no place yet.
    pub(super) fn look(
        &self,
        facts: &mut Facts,
        question: &Question,
        deadline: Option<Instant>,
        config: &Config,
    ) {
        facts.upstream = if self.upstreams.is_empty() {
            // Who only watches wants to know what would be done if there were one.
            if config.router.shadow {
                Upstream::Up
            } else {
                Upstream::Absent
            }
        } else if !self.upstreams.link().borrow().up {
            Upstream::Down
        } else if self.places.available_permits() == 0 {
            Upstream::Busy
        } else {
            Upstream::Up
        };
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        facts.left_ms = left.map(milliseconds);
        let tokens = (question.tokens_max.unwrap_or(ANSWER_TOKENS)).min(ANSWER_TOKENS);
        let expected = self
            .upstreams
            .expected(u32::try_from(tokens).unwrap_or(u32::MAX));
        facts.upstream_ms = expected.map_or(0, |expected| milliseconds(expected.whole));
        facts.local_ms = self.local_ms(question, tokens);
    }

    /// What a local answer takes, by what others took of late; 0 before there were any.
    fn local_ms(&self, question: &Question, tokens: usize) -> u64 {
        let (_, _, speed) = self.telemetry.totals();
        let bytes: usize = question
            .messages
            .iter()
            .map(|message| message.content.len())
            .sum();
        let takes = |tokens: usize, per_second: f32| {
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let seconds = tokens as f32 / per_second;
            if per_second > 0.0 && seconds.is_finite() {
                Duration::from_secs_f32(seconds.min(3600.0))
            } else {
                Duration::ZERO
            }
        };
        let prompt = takes(bytes / BYTES_PER_TOKEN, speed.prefill_tokens_per_s);
        milliseconds(prompt + takes(tokens, speed.decode_tokens_per_s))
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
