//! What a request is asked upstream by, as the configuration in force has it: whether it may leave, what is sent, and under which
//! key an answer to it is kept.

use std::sync::Arc;

use andon_policy::route::Facts;

use super::judge::Known;
use super::redact::Secrets;
use super::{Inner, cache, sent};
use crate::config::Config;
use crate::request::{Egress, Request};
use crate::upstream::Question;

/// The terms of one request by one configuration.
#[derive(Debug)]
pub(super) struct Terms {
    /// The configuration.
    pub(super) config: Arc<Config>,
    /// What decisions are made by.
    pub(super) facts: Facts,
    /// What was thought of a local answer before there is one: the probability that it will do.
    pub(super) prior: f32,
    /// As it is sent, without its secrets, and these; `None` if upstream would not understand it, or they cannot be taken out.
    pub(super) sent: Option<(Question, Secrets)>,
}

impl Terms {
    /// Bytes that are kept while its request waits, of that and of what is sent, as far as they can be many.
    pub(super) fn bytes(&self, request: &Request) -> usize {
        let sent = self.sent.as_ref();
        let sent = sent.map_or(0, |(question, _)| question.bytes());
        request.bytes().saturating_add(sent)
    }
}

impl Inner {
    /// The terms of a request of which this is known.
    pub(super) fn terms(&self, request: &Request, known: Known, config: &Arc<Config>) -> Terms {
        self.terms_with(None, request, known, config)
    }

    /// Those that follow others, of which this is still sent. To take secrets out again would keep all who wait for this thread,
    /// for each request that waits.
    pub(super) fn terms_with(
        &self,
        kept: Option<(Question, Secrets)>,
        request: &Request,
        known: Known,
        config: &Arc<Config>,
    ) -> Terms {
        let prior = known.estimate.map_or(0.5, |estimate| estimate.will_do);
        let sent = known
            .question
            .and_then(|question| kept.or_else(|| self.sent(request, question, config)));
        let mut facts = known.facts;
        // A question whose secrets stay is as good as none.
        facts.can_leave &= sent.is_some();
        Terms {
            config: Arc::clone(config),
            facts,
            prior,
            sent,
        }
    }

    /// The key of a request among the answers that are kept; `None` if it has none, as all that may not leave.
    pub(super) fn cache_key(&self, request: &Request, terms: &Terms) -> Option<cache::Key> {
        let (question, _) = terms.sent.as_ref()?;
        if request.travels(self.egress_by_task(request)) != Egress::Any {
            return None;
        }
        let scope = cache::Scope {
            client: &request.client,
            upstream: &self.upstreams.identity(),
        };
        self.cache.key(scope, &sent::determining(question))
    }
}
