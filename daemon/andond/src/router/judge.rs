//! What is known of a request when it is decided who answers it, and the bar for going up.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use andon_policy::budget::{Spend, Who};
use andon_policy::route::{
    Decision, Facts, Policy, Purse, Rules, Share, Upstream, decide, is_hard,
};
use andon_policy::router::weights::FILE_BYTES_MAX;
use andon_policy::router::{self, Estimate, Estimator, Vocabulary};

use super::Inner;
use crate::config::Config;
use crate::config::router::RouterConfig;
use crate::request::{Egress, Input, Origin, Request};
use crate::task::Resolved;
use crate::upstream::Question;
use crate::workers::Workers;

/// Bytes of text that make a token, as a guess for what was not tokenized yet.
const BYTES_PER_TOKEN: usize = 4;
/// Most parts of a question that are told of.
const PARTS_MAX: usize = andon_wire::limits::ROUTE_PARTS_MAX;
/// Tokens of an answer, as a guess for one whose limit is higher.
const ANSWER_TOKENS: usize = 256;

/// What is known of a request.
#[derive(Debug)]
pub(super) struct Known {
    /// What an upstream would be asked; `None` if it would not understand it.
    pub(super) question: Option<Question>,
    /// What the decision is made by.
    pub(super) facts: Facts,
    /// What is expected of the local answer, if that was estimated.
    pub(super) estimate: Option<Estimate>,
    /// When the answer is worthless.
    pub(super) deadline: Option<Instant>,
}

/// Judges requests.
#[derive(Debug)]
pub(super) struct Judge {
    weights: Estimator<'static>,
    /// Whether the configuration says whose answers they are of.
    is_set: bool,
    bar: Mutex<Bar>,
    site: Mutex<Option<Site>>,
}

/// What a configuration says of what the site talks about; `None` if it has no tasks.
type Site = (Arc<Config>, Option<Arc<Vocabulary>>);

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

/// What a key says that is wrong with the weights: the key, what it is, and what to do.
pub(super) type Wrong = (&'static str, String, &'static str);

/// The weights of the configuration, else those that are built in; with the entry of the model that it names.
pub(super) fn estimator(config: &Config) -> Result<Estimator<'static>, Wrong> {
    let wrong = |why: String| {
        let how = "name a file that andon-lab router train wrote";
        ("router.weights", why, how)
    };
    let weights = match &config.router.weights {
        None => Estimator::shipped(),
        Some(path) => {
            let of = |error: &dyn std::fmt::Display| wrong(format!("{}: {error}", path.display()));
            let bytes = read(path).map_err(|error| of(&error))?;
            Estimator::from_vec(bytes).map_err(|error| of(&error))?
        }
    };
    let Some(name) = &config.router.weights_model else {
        return Ok(weights);
    };
    weights.clone().for_model(name).ok_or_else(|| {
        let known: Vec<&str> = weights.models().collect();
        let why = format!(
            "the weights have no model {name:?}, but {}",
            known.join(", ")
        );
        ("router.weights-model", why, "name one of those")
    })
}

/// A file of weights, of which no more is read than one may have.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = FILE_BYTES_MAX as u64 + 1;
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Judge {
    /// One by this configuration.
    ///
    /// # Errors
    /// What is wrong with the file of weights that it names.
    pub(super) fn new(config: &Config) -> Result<Judge, String> {
        let weights = estimator(config).map_err(|(key, why, _)| format!("{key}: {why}"))?;
        Ok(Judge {
            weights,
            is_set: config.router.weights_model.is_some(),
            bar: Mutex::new(Bar::of(&config.router)),
            site: Mutex::default(),
        })
    }

    /// The words of the site's tasks.
    fn vocabulary(&self, config: &Arc<Config>) -> Option<Arc<Vocabulary>> {
        let mut site = self.site.lock().unwrap_or_else(PoisonError::into_inner);
        match &*site {
            Some((of, vocabulary)) if Arc::ptr_eq(of, config) => vocabulary.clone(),
            _ => {
                let tasks = config.task.values();
                let texts = tasks
                    .flat_map(|task| [Some(task.instructions.as_str()), task.system.as_deref()]);
                let vocabulary = Vocabulary::of(texts.flatten());
                let vocabulary = (!vocabulary.is_empty()).then(|| Arc::new(vocabulary));
                *site = Some((Arc::clone(config), vocabulary.clone()));
                vocabulary
            }
        }
    }

    /// What judges by the answers of the model that a request is for, if the weights know that, else of any.
    pub(super) fn estimator(&self, request: &Request, workers: &Workers) -> Estimator<'static> {
        if self.is_set {
            return self.weights.clone();
        }
        let names = workers.names_of(request);
        self.weights.for_any_of(names.iter().map(String::as_str))
    }

    /// Has a question judged that a request asks.
    fn estimated<T>(
        &self,
        request: &Request,
        question: &Question,
        workers: &Workers,
        config: &Arc<Config>,
        judge: impl FnOnce(&Estimator<'static>, &router::Question<'_>) -> T,
    ) -> Option<T> {
        let messages = &question.messages;
        // What is asked is said last; what came before was answered before.
        let asked = messages.iter().rfind(|message| message.role == "user");
        let vocabulary = self.vocabulary(config);
        let asked = router::Question {
            text: &asked.or(messages.last())?.content,
            task: task_name(request),
            vocabulary: vocabulary.as_deref(),
        };
        Some(judge(&self.estimator(request, workers), &asked))
    }

    /// What moves the estimate of a question, the most first.
    pub(super) fn parts(
        &self,
        request: &Request,
        question: &Question,
        workers: &Workers,
        config: &Arc<Config>,
    ) -> Vec<(String, f32)> {
        let parts = self.estimated(request, question, workers, config, |estimator, asked| {
            let explained = estimator.explain(asked);
            let parts = explained.parts.iter().take(PARTS_MAX);
            parts
                .map(|part| (part.what.to_owned(), part.moved))
                .collect()
        });
        parts.unwrap_or_default()
    }

    /// Below which probability that the local answer is as good as upstream's a request goes up now.
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
        let hard = is_hard(facts.as_good, bar.share.threshold(), Purse::Open);
        bar.share.note(hard);
    }

    /// What is known of a request, but for the moment.
    pub(super) fn known(
        &self,
        request: &Request,
        task: Option<&Resolved>,
        workers: &Workers,
        config: &Arc<Config>,
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
        let policy = policy.unwrap_or(config.router.policy);
        let counts = may_leave && policy == Policy::Auto;
        let estimate = question.as_ref().filter(|_| counts).and_then(|question| {
            self.estimated(request, question, workers, config, Estimator::estimate)
        });
        Known {
            facts: Facts {
                policy,
                may_leave,
                can_leave: question.is_some(),
                upstream: Upstream::Absent,
                as_good: estimate.map_or(f32::NAN, |estimate| estimate.as_good()),
                purse: Purse::Open,
                waits: waits.unwrap_or(config.router.wait),
                left_ms: None,
                upstream_ms: 0,
                local_ms: 0,
            },
            question,
            estimate,
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
        let who = who(request);
        self.look(&mut known.facts, who, question, known.deadline, config);
        if behind && known.facts.upstream == Upstream::Up {
            known.facts.upstream = Upstream::Busy;
        }
    }

    /// The same for a question that has no place yet.
    pub(super) fn look(
        &self,
        facts: &mut Facts,
        who: Who<'_>,
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
        facts.purse = match self.ledger.purse(who, self.most(question)) {
            Ok(purse) => purse,
            Err(why) => {
                tracing::debug!(%why, client = who.client, "nothing may be spent");
                Purse::Shut
            }
        };
    }

    /// What a question comes to at most, whoever answers it, as far as it is known what servers add to a prompt.
    pub(super) fn most(&self, question: &Question) -> Spend {
        let (prompt, answer) = (question.prompt_tokens_max(), question.answer_tokens_max());
        let prompt = prompt.saturating_add(self.upstreams.added());
        (self.upstreams.dearest()).spend(prompt, answer)
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

/// The task that a request names.
fn task_name(request: &Request) -> Option<&str> {
    match &request.input {
        Input::Task { name, .. } => Some(name),
        _ => None,
    }
}

/// Who spends what a request costs.
pub(super) fn who(request: &Request) -> Who<'_> {
    Who {
        client: &request.client,
        task: task_name(request),
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_the_weights_do_not_have_is_a_problem() {
        let mut config = Config::default();
        config.router.weights_model = Some("none".to_owned());
        let (key, why, _) = estimator(&config).expect_err("refused");
        assert_eq!(key, "router.weights-model");
        assert!(why.contains("\"none\"") && why.contains("any, "), "{why}");
        config.router.weights_model = Some("hint".to_owned());
        assert_eq!(estimator(&config).expect("known").model(), "hint");
        config.router.weights = Some("/nowhere/router.weights".into());
        let (key, why, _) = estimator(&config).expect_err("refused");
        assert_eq!(key, "router.weights");
        assert!(why.contains("/nowhere/router.weights"), "{why}");
    }
}
