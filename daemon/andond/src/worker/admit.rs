//! What becomes of a request that is handed over: refused at once with a reason, or put on the board.
//!
//! The decision is [`andon_policy::admission`]'s; here it is given what it looks at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::admission::{self, Bounds, Decision, Demand, Load, Reason};
use andon_policy::queue::{self, Waiting};

use super::board::{Board, Job, Key, Phase, Queued};
use super::job::Mailbox;
use super::{ModelFacts, QUEUE_SHARE_FOR_ALARMS, Shared};
use crate::fault::{Fault, FaultCode};
use crate::request::{Input, Priority, Request};

impl Shared {
    /// Takes a request in, or says why not.
    pub(super) fn admit(&self, request: Request) -> Result<Arc<Mailbox>, Fault> {
        request.check(&self.config.limits)?;
        if let Some(name) = &request.model
            && *name != self.config.model.name()
        {
            let shown: String = name.chars().take(128).collect();
            let message = format!("the model {shown} is not served here");
            return Err(Fault {
                param: Some("model"),
                ..Fault::new(FaultCode::UnknownModel, message)
            });
        }
        if let Some(facts) = self.facts.get() {
            check_kind(facts, &request.input)?;
        }
        if usize::try_from(request.choices)
            .map_or(true, |count| count > self.config.engine.parallel_max)
        {
            let message = format!(
                "at most {} answers can be computed at once",
                self.config.engine.parallel_max
            );
            return Err(Fault::invalid("n", message));
        }
        let submitted = Instant::now();
        let (mut priority, mut deadline) = (None, None);
        if let Input::Task { name, .. } = &request.input {
            let Some(defaults) = self.tasks()?.defaults(name) else {
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
        let priority = request
            .priority
            .or(priority)
            .unwrap_or(Priority::Interactive);
        let deadline_ms = request
            .deadline
            .or(deadline)
            .map(|deadline| self.at_ms(deadline));

        let now_ms = self.now_ms();
        let mut board = self.board();
        if board.phase == Phase::Failed {
            return Err(self.closed());
        }
        let key = Key::new(request.origin, &request.client, &request.id);
        if board.open.contains_key(&key) {
            return Err(Fault {
                param: Some("id"),
                ..Fault::new(
                    FaultCode::DuplicateId,
                    "a request of this client and id is in flight",
                )
            });
        }
        let order = Waiting {
            priority: priority.into(),
            deadline_ms,
            arrival_ms: now_ms,
            ticket: board.ticket,
        };
        let demand = Demand {
            priority: priority.into(),
            tokens_max: request.tokens_max.map(saturated),
            deadline_ms,
        };
        let load = self.load(&board, &order, &key, now_ms);
        if let Decision::Refuse {
            reason,
            retry_after_ms,
            ..
        } = admission::admit(&self.bounds(), &load, &demand, now_ms)
        {
            drop(board);
            return Err(refusal(reason, retry_after_ms));
        }
        board.ticket += 1;
        let mailbox = Arc::new(Mailbox::default());
        let job = Arc::new(Job {
            key: key.clone(),
            origin: request.origin,
            submitted,
            mailbox: Arc::clone(&mailbox),
        });
        board.open.insert(key, Arc::clone(&job));
        board.raw.push_back(Queued {
            job,
            order,
            payload: request,
        });
        drop(board);
        self.changed.notify_all();
        Ok(mailbox)
    }

    fn bounds(&self) -> Bounds {
        let limits = &self.config.limits;
        Bounds {
            waiting_max: saturated(limits.queue_max),
            waiting_kept_for_alarms: saturated(limits.queue_max / QUEUE_SHARE_FOR_ALARMS),
            client_open_max: saturated(limits.client_requests_max),
            tokens_max: limits.tokens_max.map_or(u32::MAX, saturated),
        }
    }

    fn load(&self, board: &Board, order: &Waiting, key: &Key, now_ms: u64) -> Load {
        Load {
            phase: match board.phase {
                Phase::Loading => admission::Phase::Starting,
                Phase::Serving => admission::Phase::Serving,
                Phase::Stopping(_) | Phase::Failed => admission::Phase::Draining,
            },
            waiting: saturated(board.waiting()),
            ahead: saturated(queue::ahead(board.orders(), order, now_ms)),
            active_max: saturated(self.config.engine.parallel_max),
            client_open: saturated(
                board
                    .open
                    .keys()
                    .filter(|open| open.same_client(key))
                    .count(),
            ),
            service_ms: board
                .service
                .map(|service| u32::try_from(service.as_millis()).unwrap_or(u32::MAX)),
        }
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

fn refusal(reason: Reason, retry_after_ms: Option<u32>) -> Fault {
    let (code, param) = match reason {
        Reason::Starting | Reason::Draining => (FaultCode::Unavailable, None),
        Reason::TokensMax => (FaultCode::InvalidRequest, Some("max_tokens")),
        Reason::DeadlinePassed | Reason::DeadlineTooShort => (FaultCode::DeadlineExceeded, None),
        Reason::ClientFull | Reason::QueueFull => (FaultCode::Busy, None),
    };
    Fault {
        code,
        message: reason.to_string(),
        param,
        retry_after: retry_after_ms.map(|ms| Duration::from_millis(u64::from(ms))),
    }
}

fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
