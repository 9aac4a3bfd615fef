//! Passing an answer of upstream on as it comes, or one made here beside it, if that is complete before upstream begins.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_engine::calls::CallFormat;
use andon_policy::budget::Spend;
use andon_policy::route::Route;

use super::ask::{Asked, unusable};
use super::draft::{self, Drafting};
use super::{Driven, HOLD_BYTES_MAX, at};
use crate::fault::{Fault, FaultCode};
use crate::router::redact::{Restorer, Secrets, TooLarge};
use crate::router::sent::{self, Kept};
use crate::router::{cache, calls};
use crate::upstream::{Answered, Answering, FaultKind, Piece, Question, ToolCall, UpstreamFault};
use crate::worker::{Done, Finish, JobEvent, Timings, Usage};

/// An answer that is being passed on.
pub(super) struct Relaying<'a> {
    answering: Answering,
    secrets: &'a Secrets,
    restorer: Restorer,
    /// Whether an answer may be made here beside it, if it is late.
    may_hedge: bool,
    /// Who answers, once it has begun.
    upstream: Option<Arc<str>>,
    began: Instant,
    first: Option<Instant>,
    /// As it came, as far as it is kept.
    text: String,
    tools: Vec<ToolCall>,
}

impl<'a> Relaying<'a> {
    /// One that begins now.
    pub(super) fn new(
        answering: Answering,
        question: &Question,
        secrets: &'a Secrets,
        may_hedge: bool,
    ) -> Relaying<'a> {
        Relaying {
            answering,
            secrets,
            may_hedge,
            restorer: sent::restorer(question, secrets),
            upstream: None,
            began: Instant::now(),
            first: None,
            text: String::new(),
            tools: Vec::new(),
        }
    }
}

/// What came of it, and what it came to as far as that is known.
pub(super) struct Relayed {
    pub(super) asked: Asked,
    pub(super) cost: Option<Spend>,
}

impl Relayed {
    fn unknown(asked: Asked) -> Relayed {
        Relayed { asked, cost: None }
    }
}

impl Driven {
    /// Passes an answer on to its end, and keeps it under the key if it is complete.
    pub(super) async fn relay(
        &mut self,
        mut relaying: Relaying<'_>,
        cached: Option<cache::Key>,
    ) -> Relayed {
        // How calls are written is said before the answer, so that one that may have some is passed on when it is complete.
        let holds = self.may_call();
        let hedge_ms = self.terms.config.router.hedge_ms;
        let hedge_ms = hedge_ms.filter(|_| relaying.may_hedge);
        let mut hedge =
            hedge_ms.and_then(|after| relaying.began.checked_add(Duration::from_millis(after)));
        let mut draft: Option<Drafting> = None;
        loop {
            let piece = tokio::select! {
                biased;
                piece = relaying.answering.next() => piece,
                made = draft::made(&mut draft), if relaying.first.is_none() => match made {
                    // Upstream has not begun, and this is the answer.
                    Ok(made) => {
                        return Relayed::unknown(Asked::Instead(made, Route::LocalFallback));
                    }
                    Err(unmade) => {
                        tracing::debug!(?unmade, "no answer is made here beside upstream");
                        draft = None;
                        continue;
                    }
                },
                () = at(hedge), if relaying.first.is_none() => {
                    hedge = None;
                    self.router.telemetry.hedged();
                    let stream = self.router.draft(&self.request, self.deadline, &self.caller, false);
                    draft = stream.ok().map(Drafting::new);
                    continue;
                }
            };
            let said = match piece {
                Some(Ok(Piece::First { upstream })) => {
                    relaying.upstream = Some(upstream);
                    relaying.first.get_or_insert_with(Instant::now);
                    if !holds {
                        self.begin(None);
                    }
                    Ok(())
                }
                Some(Ok(Piece::Text(piece))) => {
                    relaying.first.get_or_insert_with(Instant::now);
                    let room = HOLD_BYTES_MAX.saturating_sub(relaying.text.len());
                    let kept = &piece[..piece.floor_char_boundary(room)];
                    relaying.text.push_str(kept);
                    if holds && relaying.text.len() >= HOLD_BYTES_MAX {
                        let what = "its answer is longer than is held back";
                        let fault = unusable(FaultKind::Endless, relaying.upstream, what);
                        return Relayed::unknown(Asked::Fault(fault, draft));
                    }
                    if holds {
                        Ok(())
                    } else {
                        match relaying.restorer.feed(&piece) {
                            Ok(restored) => self.say(&restored),
                            Err(TooLarge) => {
                                let fault = swollen(relaying.upstream);
                                return Relayed::unknown(Asked::Fault(fault, draft));
                            }
                        }
                    }
                }
                Some(Ok(Piece::ToolCalls(calls))) => {
                    relaying.tools.extend(calls);
                    Ok(())
                }
                Some(Ok(Piece::Done(answered))) => {
                    return self.complete(relaying, answered, holds, draft, cached);
                }
                Some(Err(fault)) => {
                    let cost = Some(fault.cost);
                    let asked = Asked::Fault(fault, draft);
                    return Relayed { asked, cost };
                }
                None => {
                    let message = "upstream's answer broke off";
                    Err(Fault::new(FaultCode::Internal, message))
                }
            };
            if let Err(fault) = said {
                return Relayed::unknown(Asked::Failed(fault));
            }
        }
    }

    /// The answer is complete.
    fn complete(
        &mut self,
        mut relaying: Relaying<'_>,
        answered: Answered,
        holds: bool,
        draft: Option<Drafting>,
        cached: Option<cache::Key>,
    ) -> Relayed {
        let cost = Some(answered.cost);
        let first = relaying.first.unwrap_or_else(Instant::now);
        let upstream = Some(Arc::clone(&answered.upstream));
        let secrets = relaying.secrets;
        let rest = if holds {
            with_calls(
                relaying.restorer,
                secrets,
                &relaying.text,
                &relaying.tools,
                upstream,
            )
        } else {
            let rest = relaying.restorer.finish();
            rest.map_err(|TooLarge| swollen(upstream))
        };
        let rest = match rest {
            Ok(rest) => rest,
            Err(fault) => {
                let asked = Asked::Fault(fault, draft);
                return Relayed { asked, cost };
            }
        };
        let said = if holds {
            self.say_with_calls(&rest)
        } else {
            self.say(&rest)
        };
        if let Err(fault) = said {
            let asked = Asked::Failed(fault);
            return Relayed { asked, cost };
        }
        let done = self.answered(&answered, relaying.began, first);
        let usage = &done.usage;
        let tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
        self.entry.had(tokens);
        if let Some(key) = cached
            && relaying.text.len() < HOLD_BYTES_MAX
        {
            let kept = Kept {
                text: relaying.text,
                tools: relaying.tools,
                answered,
            };
            let bytes = kept.bytes();
            let cache = &self.router.cache;
            cache.put(key, Arc::new(kept), bytes, Instant::now());
        }
        let asked = Asked::Done(done);
        Relayed { asked, cost }
    }

    /// Gives an answer that was kept.
    pub(super) fn again(&mut self, question: &Question, secrets: &Secrets, kept: &Kept) -> Asked {
        let now = Instant::now();
        let mut restorer = sent::restorer(question, secrets);
        let (holds, upstream) = (self.may_call(), None);
        // With other secrets in it than before it may be of no use.
        let text = if holds {
            with_calls(restorer, secrets, &kept.text, &kept.tools, upstream)
        } else {
            let text = restorer.whole(&kept.text);
            text.map_err(|TooLarge| swollen(upstream))
        };
        let said = match text {
            Ok(text) if holds => self.say_with_calls(&text),
            Ok(text) => self.say(&text),
            Err(fault) => return Asked::Fault(fault, None),
        };
        if let Err(fault) = said {
            return Asked::Failed(fault);
        }
        let mut done = self.answered(&kept.answered, now, now);
        done.usage.cached_tokens = done.usage.prompt_tokens;
        Asked::Done(done)
    }

    /// Says once that the answer is being made.
    pub(super) fn begin(&mut self, calls: Option<CallFormat>) {
        if !std::mem::replace(&mut self.begun, true) {
            let feed = self.entry.feed();
            feed.post(JobEvent::Accepted {
                prompt_tokens: 0,
                calls,
            });
            feed.post(JobEvent::Started);
        }
    }

    /// A piece of the answer.
    pub(super) fn say(&mut self, text: &str) -> Result<(), Fault> {
        self.begin(None);
        self.said |= !text.is_empty();
        self.account.said(0, text);
        self.entry.feed().post_chunk(0, text, Vec::new())
    }

    /// A whole answer that may have calls of tools.
    fn say_with_calls(&mut self, answer: &str) -> Result<(), Fault> {
        self.begin(Some(calls::format()));
        self.say(answer)
    }

    pub(super) fn done(&self, finish: Finish, usage: Usage, model: Option<Arc<str>>) -> Done {
        Done {
            route: Route::Cloud,
            late: self.late,
            model,
            ..Done::new(finish, usage, Timings::default())
        }
    }

    /// The end of upstream's answer.
    fn answered(&self, answered: &Answered, began: Instant, first: Instant) -> Done {
        let count = |tokens: u32| usize::try_from(tokens).unwrap_or(usize::MAX);
        let usage = Usage {
            prompt_tokens: count(answered.spent.prompt_tokens),
            completion_tokens: count(answered.spent.completion_tokens),
            ..Usage::default()
        };
        let since = |from: Instant, to: Instant| {
            let took = to.saturating_duration_since(from);
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
        };
        let submitted = self.account.submitted();
        Done {
            timings: Timings {
                queue_us: since(submitted, began),
                prefill_us: since(began, first),
                decode_us: since(first, Instant::now()),
                first_token_us: since(submitted, first),
            },
            ..self.done(answered.finish, usage, Some(Arc::clone(&answered.model)))
        }
    }
}

/// A whole answer that may have calls, with its secrets put back, as front ends read it.
fn with_calls(
    mut restorer: Restorer,
    secrets: &Secrets,
    text: &str,
    tools: &[ToolCall],
    upstream: Option<Arc<str>>,
) -> Result<String, UpstreamFault> {
    let restored = (restorer.whole(text))
        .and_then(|text| Ok((text, sent::restored(tools, secrets)?)))
        .map_err(|TooLarge| swollen(upstream.clone()))?;
    let (text, tools) = restored;
    calls::with(&text, &tools).ok_or_else(|| {
        let what = "its answer has calls in its text, where nobody has checked them";
        unusable(FaultKind::Misshapen, upstream, what)
    })
}

/// An answer that is too long with its secrets put back.
fn swollen(upstream: Option<Arc<str>>) -> UpstreamFault {
    let what = "its answer is too long with what was taken out of the question";
    unusable(FaultKind::Misshapen, upstream, what)
}
