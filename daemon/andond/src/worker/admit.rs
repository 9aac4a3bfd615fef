//! What becomes of a request that is handed over: refused at once with a reason, or put on the board.
//!
//! The decision is the scheduler's.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use andon_policy::admission::{Bounds, Reason, Refusal};
use andon_policy::client::{ClientId, Rates};
use andon_policy::rate::Rate;
use andon_policy::scheduler::{self, Arrival, Places};

use super::account::Account;
use super::board::{Job, Key, Phase, Stage, Waiting};
use super::job::Mailbox;
use super::life::Handed;
use super::{ModelFacts, PLACES_FOR_ALARMS, SHARE_FOR_ALARMS, Shared, WorkerState};
use crate::config::Config;
use crate::config::limits::LimitsConfig;
use crate::fault::{Fault, FaultCode};
use crate::request::{Input, Priority, Request};

impl Shared {
    /// Takes a request in whose values are within bounds, or says why not.
    /// With `before` it is one that had no worker, or another.
    pub(super) fn admit(
        self: &Arc<Self>,
        request: Arc<Request>,
        before: Option<&Handed>,
    ) -> Result<Arc<Mailbox>, Fault> {
        self.check_kind(&request.input)?;
        if usize::try_from(request.choices)
            .map_or(true, |count| count > self.config.engine.parallel_max)
        {
            let message = format!(
                "at most {} answers can be computed at once",
                self.config.engine.parallel_max
            );
            return Err(Fault::invalid("n", message));
        }
        let submitted = before.map_or_else(Instant::now, |handed| handed.submitted);
        let terms = self.in_force.get();
        let (mut priority, mut deadline) = (None, None);
        if let Input::Task { name, .. } = &request.input {
            let Some(defaults) = terms.tasks().defaults(name) else {
                // It may be among those that come with the model.
                if terms.all_tasks().is_none() && self.config.models.bundle_tasks {
                    return Err(Shared::loading());
                }
                return Err(Fault::new(
                    FaultCode::UnknownTask,
                    "no task of this name is configured",
                ));
            };
            priority = defaults.0;
            deadline = defaults
                .1
                .and_then(|deadline| submitted.checked_add(deadline));
        }
        // Where nobody asks for a class, the usual one is not asked for either.
        let usual = Priority::Interactive.min(request.rights.priority_max);
        let priority = request.priority.or(priority).unwrap_or(usual);
        // Of tasks that come with a model the class was not known before.
        request.rights.may_be(priority)?;
        let deadline_ms = request
            .deadline
            .or(deadline)
            .map(|deadline| self.at_ms(deadline));

        let now_ms = self.now_ms();
        let mut board = self.board();
        let closed = match board.phase {
            Phase::Failed | Phase::Draining | Phase::Stopping(_) => true,
            Phase::Loading => matches!(*self.state.borrow(), WorkerState::Waiting(_)),
            Phase::Serving => false,
        };
        if closed {
            return Err(self.closed());
        }
        let key = Key::of(&request);
        if board.open.contains_key(&key) {
            return Err(Fault {
                param: Some("id"),
                ..Fault::new(
                    FaultCode::DuplicateId,
                    "a request of this client and id is in flight",
                )
            });
        }
        let account = Account::new(
            &request,
            Some(priority),
            self.config.model.name(),
            submitted,
            self.config.log.text,
        );
        let priority = priority.into();
        let arrival = Arrival {
            // Nobody can choose a name that is taken for another's: the hash is keyed.
            client: ClientId(self.seeds.hash_one((key.local, &key.client))),
            priority,
            deadline_ms,
            tokens_max: request.tokens_max.map(saturated),
            choices: request.choices,
            rates: request.rights.rates,
        };
        let ticket = board
            .scheduler
            .arrived(now_ms, &arrival)
            .map_err(|refusal| fault_of(&refusal))?;
        let mailbox = before.map_or_else(Arc::default, |handed| Arc::clone(&handed.mailbox));
        mailbox.goes_to(self);
        let job = Arc::new(Job {
            key: key.clone(),
            ticket,
            origin: request.origin,
            priority,
            submitted,
            terms,
            mailbox: Arc::clone(&mailbox),
            account,
        });
        board.open.insert(key, Arc::clone(&job));
        if priority == andon_wire::Priority::Alarm {
            self.hurries.store(true, Ordering::Relaxed);
        }
        let waiting = Waiting {
            job,
            request,
            stage: Stage::Submitted,
        };
        board.waiting.insert(ticket, waiting);
        drop(board);
        self.changed.notify_all();
        Ok(mailbox)
    }

    /// Refuses what the model is not made for, once it is known what that is.
    pub(super) fn check_kind(&self, input: &Input) -> Result<(), Fault> {
        self.facts
            .get()
            .map_or(Ok(()), |facts| check_kind(facts, input))
    }
}

/// What the scheduler goes by.
pub(super) fn scheduling(config: &Config) -> scheduler::Config {
    let limits = &config.limits;
    scheduler::Config {
        bounds: Bounds {
            waiting_max: saturated(limits.queue_max),
            waiting_kept_for_alarms: saturated(limits.queue_max / SHARE_FOR_ALARMS),
            client_open_max: saturated(limits.client_requests_max),
            tokens_max: limits.tokens_max.map_or(u32::MAX, saturated),
        },
        places: Places {
            shared: saturated(config.engine.parallel_max),
            for_alarms: PLACES_FOR_ALARMS,
        },
        pass_tokens_max: saturated(config.engine.batch_tokens_max),
        rates: rates(limits),
    }
}

/// How often, and for how much, one client may ask.
pub(crate) fn rates(limits: &LimitsConfig) -> Rates {
    let rate = |count: Option<u32>| count.map(Rate::per_minute);
    Rates {
        requests: rate(limits.client_requests_per_minute),
        alarms: rate(limits.client_alarms_per_minute),
        tokens: rate(limits.client_tokens_per_minute),
    }
}

/// Refuses what the model is not made for, and vectors longer than it makes.
fn check_kind(facts: &ModelFacts, input: &Input) -> Result<(), Fault> {
    let unsupported = |param, message: String| {
        Err(Fault {
            param: Some(param),
            ..Fault::new(FaultCode::Unsupported, message)
        })
    };
    let name = &facts.name;
    match (input, facts.embedding) {
        (Input::Embeddings { dimensions, .. }, Some(most)) => match dimensions {
            Some(dimensions) if *dimensions > most => Err(Fault::invalid(
                "dimensions",
                format!("{dimensions} dimensions; the model {name} makes vectors of {most}"),
            )),
            _ => Ok(()),
        },
        (Input::Embeddings { .. }, None) => unsupported(
            "model",
            format!("the model {name} generates text; it makes no embeddings"),
        ),
        (_, Some(_)) => unsupported(
            "model",
            format!("the model {name} makes embeddings; it generates no text"),
        ),
        (_, None) => Ok(()),
    }
}

/// A refusal, in the daemon's words.
pub(crate) fn fault_of(refusal: &Refusal) -> Fault {
    let (code, param) = match refusal.reason {
        Reason::Starting => (FaultCode::ModelUnavailable, None),
        Reason::Draining => (FaultCode::Unavailable, None),
        Reason::TokensMax => (FaultCode::InvalidRequest, Some("max_tokens")),
        Reason::DeadlinePassed | Reason::DeadlineTooShort | Reason::TooSlow => {
            (FaultCode::DeadlineExceeded, None)
        }
        Reason::ClientFull
        | Reason::RequestRate
        | Reason::AlarmRate
        | Reason::TokenRate
        | Reason::QueueFull
        | Reason::Pressed => (FaultCode::Busy, None),
    };
    Fault {
        code,
        message: refusal.reason.to_string(),
        param,
        retry_after: refusal
            .retry_after_ms
            .map(|ms| Duration::from_millis(u64::from(ms))),
    }
}

pub(super) fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
