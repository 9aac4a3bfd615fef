//! One request on its way between here and upstream.
//!
//! A task for each, that writes to the stream which the front end reads. Whoever answers, the end is told once: by the worker
//! where a local answer is passed on as it is made, here for all others.

mod draft;

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_engine::calls::CallFormat;
use andon_policy::budget::Spend;
use andon_policy::route::{Decision, Facts, Policy, Reason, Route};
use tokio::time::{sleep, sleep_until, timeout_at};

use self::draft::{Draft, Drafting};
use super::judge::{milliseconds, who};
use super::line::Place;
use super::redact::{Restorer, Secrets};
use super::sent::{self, Kept};
use super::{Escalated, Inner, Key, cache, calls, question_bytes, refusal, stopping};
use crate::access::Caller;
use crate::fault::{Fault, FaultCode};
use crate::request::{Calling, Egress, Input, Part, Request};
use crate::upstream::{Answered, Answering, Permit, Piece, Question, ToolCall, UpstreamFault};
use crate::worker::{Account, Done, Feed, Finish, JobEvent, JobStream, Timings, Usage};

/// Most bytes of an answer that are held back.
pub(super) const HOLD_BYTES_MAX: usize = 128 * 1024;
/// The first pause after upstream failed with what waits for it, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// What waits is answered here so many milliseconds before that has to be begun: answers are made safe and delivered, too, and
/// others may be computing.
const MARGIN_MS: u64 = 1_000;
/// How often it is looked whether what waits may go, if nothing is heard: budgets begin anew by the clock.
const LOOK: Duration = Duration::from_secs(5);

/// Who is to answer first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Upstream.
    Cloud,
    /// The local model, and upstream if that is not sure of itself.
    Cascade,
    /// Upstream, once that can be had.
    Wait,
}

/// A request with a task of its own.
#[derive(Debug)]
pub(super) struct Driven {
    pub(super) router: Arc<Inner>,
    pub(super) key: Key,
    /// Among all requests, by when they came.
    pub(super) number: u64,
    pub(super) request: Request,
    pub(super) caller: Caller,
    /// How far its task may travel.
    pub(super) by_task: Option<Egress>,
    /// As it is sent, without the secrets.
    pub(super) question: Question,
    pub(super) secrets: Secrets,
    pub(super) facts: Facts,
    pub(super) deadline: Option<Instant>,
    /// Whether the client can be told that an answer begins again.
    pub(super) can_restart: bool,
    pub(super) account: Account,
    pub(super) feed: Feed,
    /// Whether it was said that the answer is being made.
    pub(super) begun: bool,
    /// Whether some of it was said.
    pub(super) said: bool,
    /// Whether it waited.
    pub(super) late: bool,
    /// The upstream that answered, and how many were asked.
    pub(super) answered_by: Option<(Arc<str>, u32)>,
}

/// How it ends.
#[derive(Debug)]
enum End {
    /// With this event, which is to be told.
    With(JobEvent),
    /// As the worker has told already.
    Told(JobEvent),
}

impl End {
    fn failed(fault: Fault) -> End {
        End::With(JobEvent::Failed(fault))
    }
}

/// What came of asking upstream.
#[derive(Debug)]
enum Asked {
    /// An end.
    End(End),
    /// No answer, and perhaps a local one that was made meanwhile.
    Fault(UpstreamFault, Option<Drafting>),
    /// Nothing was sent, since nothing may be spent now, or too much is under way.
    Cannot(Reason),
}

impl Driven {
    /// Sees the request to its end.
    pub(super) async fn run(mut self, plan: Plan, place: Option<Place>) {
        let (feed, router) = (self.feed.clone(), Arc::clone(&self.router));
        if !self.may_call() {
            // Of others it is not known yet how calls will be written.
            feed.post(JobEvent::Accepted {
                prompt_tokens: 0,
                calls: None,
            });
        }
        let end = tokio::select! {
            biased;
            () = feed.unwanted() => None,
            end = self.drive(plan, place) => Some(end),
            () = router.must_stop() => Some(End::failed(stopping())),
        };
        let end = end.unwrap_or_else(|| self.unwanted());
        let event = match end {
            End::With(event) => {
                if let JobEvent::Done(done) = &event {
                    router.telemetry.told(done);
                }
                self.account
                    .ended(&router.telemetry, &router.audit, &[], &event);
                event
            }
            End::Told(event) => event,
        };
        // The id is free before its end is heard of.
        router.open().remove(&self.key);
        self.feed.post(event);
    }

    /// How it ends if nobody wants it any more.
    fn unwanted(&self) -> End {
        if self.said {
            return End::With(JobEvent::Done(self.done(
                Finish::Cancelled,
                Usage::default(),
                None,
            )));
        }
        let message = "the client ended the request";
        End::failed(Fault::new(FaultCode::Cancelled, message))
    }

    async fn drive(&mut self, plan: Plan, place: Option<Place>) -> End {
        match (plan, place) {
            (Plan::Wait, Some(place)) => self.wait(place).await,
            (Plan::Cascade, _) => self.cascade().await,
            (Plan::Cloud | Plan::Wait, _) => match self.ask(self.why()).await {
                Asked::End(end) => end,
                Asked::Fault(fault, draft) if self.said || draft.is_some() || !may_pass(&fault) => {
                    self.without_upstream(fault, draft).await
                }
                Asked::Fault(fault, draft) => match self.place() {
                    Some(place) => {
                        self.note_failed(&fault);
                        self.wait(place).await
                    }
                    None => self.without_upstream(fault, draft).await,
                },
                Asked::Cannot(reason) => match self.place() {
                    Some(place) => self.wait(place).await,
                    None if self.facts.policy == Policy::Cloud => End::failed(refusal(reason)),
                    None => self.local().await,
                },
            },
        }
    }

    /// A place in line, for one that may wait.
    fn place(&self) -> Option<Place> {
        let whose = (self.key.0, self.key.1.clone());
        let bytes = question_bytes(&self.question);
        let line = &self.router.line;
        self.facts
            .waits
            .then(|| line.enter(whose, self.number, bytes))
            .flatten()
    }

    fn why(&self) -> Reason {
        if self.facts.policy == Policy::Cloud {
            Reason::Policy
        } else {
            Reason::Hard
        }
    }

    /// Waits until upstream can be had, and asks it; or answers here when it can wait no longer.
    async fn wait(&mut self, place: Place) -> End {
        let mut link = self.router.upstreams.link();
        let mut moved = self.router.line.moved();
        self.router.telemetry.route_waiting(self.router.line.len());
        self.late = true;
        let mut pause = PAUSE.0;
        let mut place = Some(place);
        let end = loop {
            link.mark_unchanged();
            moved.mark_unchanged();
            let config = self.router.config.get();
            // It has waited long enough: it is answered here, or told that it has no answer.
            self.facts.waits &= self.account.submitted().elapsed() < config.router.wait_max();
            let router = Arc::clone(&self.router);
            router.look(
                &mut self.facts,
                who(&self.request),
                &self.question,
                self.deadline,
                &config,
            );
            // What is to be answered here in the end needs the time for that.
            self.facts.upstream_ms = self.facts.upstream_ms.max(self.facts.local_ms) + MARGIN_MS;
            let go = match self.router.judge.decide(&self.facts, &config) {
                Decision::Cloud(_) => place.as_ref().is_some_and(Place::is_first),
                Decision::Wait(_) => false,
                Decision::Refuse(reason) => break End::failed(refusal(reason)),
                Decision::Local(_) | Decision::Cascade | Decision::Fallback(_) => {
                    // Those behind it need not wait for this.
                    drop(place.take());
                    break self.local().await;
                }
            };
            if go {
                match self.ask(self.why()).await {
                    Asked::End(end) => break end,
                    Asked::Fault(fault, draft)
                        if self.said || draft.is_some() || !may_pass(&fault) =>
                    {
                        break self.without_upstream(fault, draft).await;
                    }
                    // Somebody else was first; that is looked at again.
                    Asked::Cannot(_) => {}
                    Asked::Fault(fault, _) => {
                        tracing::debug!(%fault, request_id = self.request.id, "it waits on");
                        let after = fault.retry_after.map_or(pause, |after| after.max(pause));
                        pause = (pause * 2).min(PAUSE.1);
                        let pause = sleep(self.at_most(after.min(PAUSE.1)));
                        tokio::select! {
                            () = router.stops() => break End::failed(stopping()),
                            () = pause => continue,
                        }
                    }
                }
            }
            let look = sleep(self.at_most(LOOK));
            tokio::select! {
                () = router.stops() => break End::failed(stopping()),
                // Neither sender goes before the router does.
                _ = link.changed() => {}
                _ = moved.changed() => {}
                () = look => {}
            }
        };
        drop(place);
        self.router.telemetry.route_waiting(self.router.line.len());
        end
    }

    /// A pause, but no longer than until it has to be answered here.
    fn at_most(&self, pause: Duration) -> Duration {
        let Some(deadline) = self.deadline else {
            return pause;
        };
        let takes = Duration::from_millis(self.facts.upstream_ms);
        let left = deadline.saturating_duration_since(Instant::now());
        // A moment more, so that it is over then.
        pause.min(left.saturating_sub(takes) + Duration::from_millis(1))
    }

    /// Has the local model answer, and upstream if that is not sure of itself, or fails.
    async fn cascade(&mut self) -> End {
        let made = match self.draft(true) {
            Ok(mut drafting) => drafting.made().await,
            Err(fault) => Err(fault),
        };
        let config = self.router.config.get();
        let (threshold, confidence) = (config.router.cascade_threshold, config.router.confidence());
        let sure = |draft: &Draft| f64::from(draft.confidence(&confidence, self.prior()));
        let made = match made {
            Ok(draft) if sure(&draft) >= threshold => {
                return self.keep(draft, Route::Local);
            }
            made => made,
        };
        self.router.telemetry.doubted();
        match self.ask(Reason::Hard).await {
            Asked::End(end) => return end,
            Asked::Fault(fault, _) => self.note_failed(&fault),
            Asked::Cannot(_) => {}
        }
        if self.said
            && let Err(end) = self.begin_again()
        {
            return end;
        }
        match made {
            // Such as it is, it is an answer.
            Ok(draft) => self.keep(draft, Route::LocalFallback),
            Err(fault) => End::failed(taken_before(fault)),
        }
    }

    /// What was thought of a local answer before there is one.
    fn prior(&self) -> f32 {
        let will_do = self.facts.will_do;
        if will_do.is_finite() { will_do } else { 0.5 }
    }

    fn note_failed(&self, fault: &UpstreamFault) {
        tracing::info!(
            request_id = self.request.id,
            client = self.request.client,
            fault = fault.kind.name(),
            why = %fault,
            said = self.said,
            "upstream did not answer"
        );
    }

    /// What becomes of the request when upstream has failed with it.
    async fn without_upstream(&mut self, fault: UpstreamFault, draft: Option<Drafting>) -> End {
        self.note_failed(&fault);
        if self.facts.policy == Policy::Cloud {
            return End::failed(fault.into_fault());
        }
        if self.said
            && let Err(end) = self.begin_again()
        {
            return end;
        }
        if let Some(mut drafting) = draft
            && let Ok(draft) = drafting.made().await
        {
            return self.keep(draft, Route::LocalFallback);
        }
        self.local().await
    }

    /// Takes back what was said of the answer; the end, if that cannot be told.
    fn begin_again(&mut self) -> Result<(), End> {
        if !self.can_restart {
            let message = "upstream broke off in the middle of the answer; ask again";
            let fault = Fault::new(FaultCode::UpstreamUnavailable, message);
            return Err(End::failed(fault.retry_after(Duration::from_secs(1))));
        }
        self.router.telemetry.restarted();
        self.account.restarted(self.router.audit.mac());
        self.feed.post(JobEvent::Restarted);
        self.said = false;
        Ok(())
    }

    /// Asks upstream, and passes its answer on as it comes.
    async fn ask(&mut self, why: Reason) -> Asked {
        let router = Arc::clone(&self.router);
        let cached = router.cache_key(&self.request, self.by_task, &self.question);
        if let Some(kept) = cached.and_then(|key| router.cache.get(&key, Instant::now())) {
            return Asked::End(self.again(&kept));
        }
        let Some(permit) = Permit::of(&self.request, self.by_task) else {
            let fault = Fault::new(FaultCode::Denied, "this may not leave the gateway");
            return Asked::End(End::failed(fault));
        };
        // Until when it would be of use; others are done by then, or it is answered here.
        let place = router.places.acquire();
        let place = match self.upstream_until() {
            Some(until) => timeout_at(until.into(), place).await.ok(),
            None => Some(place.await),
        };
        let Some(Ok(_place)) = place else {
            return Asked::Cannot(Reason::Busy);
        };
        let most = router.most(&self.question);
        let held = match router.ledger.reserve(who(&self.request), most).await {
            Ok(held) => held,
            Err(why) => {
                tracing::info!(%why, request_id = self.request.id, "nothing is spent on it");
                return Asked::Cannot(Reason::Budget);
            }
        };
        // A word for who listens; nobody may.
        let _ = router.escalations.send(Escalated {
            client: self.request.client.clone(),
            id: self.request.id.clone(),
            task: match &self.request.input {
                Input::Task { name, .. } => Some(name.clone()),
                _ => None,
            },
            why: why.as_str(),
        });
        let began = Instant::now();
        let until = self.upstream_until();
        let answering = (router.upstreams).ask(permit, self.question.clone(), until);
        let asked = self.pass_on(answering, began, cached).await;
        match &asked {
            Asked::End(End::With(JobEvent::Done(Done {
                route: Route::Cloud,
                usage,
                ..
            }))) => {
                held.settle(self.spent(usage.prompt_tokens, usage.completion_tokens));
            }
            Asked::Fault(fault, _) if is_free(fault) => held.settle(Spend::default()),
            // What is not known may be all of it.
            Asked::End(_) | Asked::Fault(..) | Asked::Cannot(_) => drop(held),
        }
        asked
    }

    /// What so many tokens came to at whoever answered.
    fn spent(&self, prompt: usize, answer: usize) -> Spend {
        let upstreams = &self.router.upstreams;
        let answered_by = self.answered_by.as_ref();
        let price = answered_by.and_then(|(name, _)| upstreams.price(name));
        // Those that were asked before may have read the prompt, too.
        let asked = answered_by.map_or(1, |(_, asked)| u64::from(*asked));
        let count = |tokens: usize| u64::try_from(tokens).unwrap_or(u64::MAX);
        let price = price.unwrap_or_else(|| upstreams.dearest());
        price.spend(count(prompt).saturating_mul(asked), count(answer))
    }

    /// Gives an answer that was kept.
    fn again(&mut self, kept: &Kept) -> End {
        let now = Instant::now();
        let mut restorer = sent::restorer(&self.question, &self.secrets);
        let said = if self.may_call() {
            self.say_restored(restorer, &kept.text, &kept.tools)
        } else {
            let text = restorer.whole(&kept.text).map_err(Fault::from);
            text.and_then(|text| self.say(&text))
        };
        if let Err(fault) = said {
            return End::failed(fault);
        }
        let mut done = self.answered(&kept.answered, now, now);
        done.usage.cached_tokens = done.usage.prompt_tokens;
        End::With(JobEvent::Done(done))
    }

    /// Until when upstream may take: an earlier end than the request's leaves time for an answer made here.
    fn upstream_until(&self) -> Option<Instant> {
        let deadline = self.deadline?;
        let insists = self.facts.policy == Policy::Cloud;
        let local = Duration::from_millis(if insists { 0 } else { self.facts.local_ms });
        let takes = Instant::now() + Duration::from_millis(self.facts.upstream_ms);
        let early = deadline.checked_sub(local);
        let until = early.map_or(takes, |early| early.max(takes));
        Some(until.min(deadline))
    }

    /// Passes an answer of upstream on as it comes; or one made here beside it, if that is complete before upstream begins.
    async fn pass_on(
        &mut self,
        mut answering: Answering,
        began: Instant,
        cached: Option<cache::Key>,
    ) -> Asked {
        let mut draft = None;
        let hedge_ms = self.router.config.get().router.hedge_ms;
        let may_hedge = self.facts.policy != Policy::Cloud && !self.begun;
        let mut hedge = hedge_ms
            .filter(|_| may_hedge)
            .and_then(|hedge_ms| began.checked_add(Duration::from_millis(hedge_ms)));
        // How calls are written is said before the answer, so that one that may have some is passed on when it is complete.
        let holds = self.may_call();
        let mut restorer = sent::restorer(&self.question, &self.secrets);
        let mut first_at = None;
        let mut text = String::new();
        let mut tools: Vec<ToolCall> = Vec::new();
        loop {
            let late = async {
                match hedge {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let piece = tokio::select! {
                biased;
                piece = answering.next() => piece,
                made = draft::made(&mut draft), if first_at.is_none() => match made {
                    // Upstream has not begun, and this is the answer.
                    Ok(made) => return Asked::End(self.keep(made, Route::LocalFallback)),
                    Err(fault) => {
                        tracing::debug!(%fault, "no answer is made here beside upstream");
                        draft = None;
                        continue;
                    }
                },
                () = late, if first_at.is_none() => {
                    hedge = None;
                    self.router.telemetry.hedged();
                    draft = self.draft(false).ok();
                    continue;
                }
            };
            match piece {
                Some(Ok(Piece::First { .. })) => {
                    first_at.get_or_insert_with(Instant::now);
                    if !holds {
                        self.begin(None);
                    }
                }
                Some(Ok(Piece::Text(piece))) => {
                    first_at.get_or_insert_with(Instant::now);
                    let room = HOLD_BYTES_MAX.saturating_sub(text.len());
                    text.push_str(&piece[..piece.floor_char_boundary(room)]);
                    if !holds {
                        let restored = restorer.feed(&piece).map_err(Fault::from);
                        if let Err(fault) = restored.and_then(|restored| self.say(&restored)) {
                            return Asked::End(End::failed(fault));
                        }
                    }
                    if holds && text.len() >= HOLD_BYTES_MAX {
                        let message = "upstream's answer is longer than is held back";
                        let fault = Fault::new(FaultCode::TooLarge, message);
                        return Asked::End(End::failed(fault));
                    }
                }
                Some(Ok(Piece::ToolCalls(calls))) => tools.extend(calls),
                Some(Ok(Piece::Done(answered))) => {
                    let first = first_at.unwrap_or_else(Instant::now);
                    let said = if holds {
                        self.say_restored(restorer, &text, &tools)
                    } else {
                        let rest = restorer.finish().map_err(Fault::from);
                        rest.and_then(|rest| self.say(&rest))
                    };
                    if let Err(fault) = said {
                        return Asked::End(End::failed(fault));
                    }
                    let done = self.answered(&answered, began, first);
                    self.answered_by = Some((Arc::clone(&answered.upstream), answered.attempts));
                    if let Some(key) = cached
                        && text.len() < HOLD_BYTES_MAX
                    {
                        let kept = Kept {
                            text,
                            tools,
                            answered,
                        };
                        let bytes = kept.bytes();
                        let cache = &self.router.cache;
                        cache.put(key, Arc::new(kept), bytes, Instant::now());
                    }
                    return Asked::End(End::With(JobEvent::Done(done)));
                }
                Some(Err(fault)) => return Asked::Fault(fault, draft),
                None => {
                    let fault = Fault::new(FaultCode::Internal, "upstream's answer broke off");
                    return Asked::End(End::failed(fault));
                }
            }
        }
    }

    /// Whether the answer may call tools: then it is passed on when it is complete, since how calls are written is said before.
    fn may_call(&self) -> bool {
        self.request.tool_choice.calling != Calling::Never
    }

    /// Says once that the answer is being made.
    fn begin(&mut self, calls: Option<CallFormat>) {
        if !std::mem::replace(&mut self.begun, true) {
            self.feed.post(JobEvent::Accepted {
                prompt_tokens: 0,
                calls,
            });
            self.feed.post(JobEvent::Started);
        }
    }

    /// A piece of the answer.
    fn say(&mut self, text: &str) -> Result<(), Fault> {
        self.begin(None);
        self.said |= !text.is_empty();
        self.account.said(0, text);
        self.feed.post_chunk(0, text, Vec::new())
    }

    /// A whole answer with calls of tools, with its secrets put back.
    fn say_restored(
        &mut self,
        mut restorer: Restorer,
        text: &str,
        tools: &[ToolCall],
    ) -> Result<(), Fault> {
        let text = restorer.whole(text)?;
        let tools = sent::restored(tools, &self.secrets)?;
        self.begin(Some(calls::format()));
        self.say(&text)?;
        self.say(&calls::written(&tools))
    }

    fn done(&self, finish: Finish, usage: Usage, model: Option<Arc<str>>) -> Done {
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

    /// The same request for a worker.
    fn part(&self, part: Part) -> Request {
        Request {
            part,
            deadline: self.deadline,
            ..self.request.clone()
        }
    }

    /// Begins a local answer that is held back.
    fn draft(&self, is_judged: bool) -> Result<Drafting, Fault> {
        let mut request = self.part(Part::Draft);
        if is_judged {
            request.logprobs = Some(andon_policy::confidence::ALTERNATIVES);
        }
        let stream = self.router.workers.submit(request, &self.caller)?;
        Ok(Drafting::new(stream, HOLD_BYTES_MAX))
    }

    /// A local answer that was held back is the answer.
    fn keep(&mut self, draft: Draft, route: Route) -> End {
        self.begin(draft.calls.clone());
        if let Err(fault) = self.say(&draft.text) {
            return End::failed(fault);
        }
        End::With(JobEvent::Done(Done {
            route,
            late: self.late,
            ..draft.done
        }))
    }

    /// Has the request answered here in place of upstream, and passes that on as it is made.
    async fn local(&mut self) -> End {
        let waited = self.account.submitted().elapsed();
        let request = self.part(Part::Fallback);
        let stream: JobStream = match self.router.workers.submit(request, &self.caller) {
            Ok(stream) => stream,
            Err(fault) => return End::failed(taken_before(fault)),
        };
        let mut stream = stream;
        while let Some(event) = stream.next().await {
            match event {
                JobEvent::Accepted { calls, .. } if !self.begun => {
                    self.feed.post(JobEvent::Accepted {
                        prompt_tokens: 0,
                        calls,
                    });
                }
                JobEvent::Accepted { .. } => {}
                JobEvent::Started => {
                    self.begun = true;
                    self.feed.post(JobEvent::Started);
                }
                JobEvent::Chunk(chunk) => {
                    self.said = true;
                    let posted = self
                        .feed
                        .post_chunk(chunk.choice, &chunk.text, chunk.logprobs);
                    if let Err(fault) = posted {
                        return End::Told(JobEvent::Failed(fault));
                    }
                }
                JobEvent::Done(mut done) => {
                    done.late = self.late;
                    let waited_us = milliseconds(waited).saturating_mul(1000);
                    let timings = &mut done.timings;
                    timings.queue_us = timings.queue_us.saturating_add(waited_us);
                    timings.first_token_us = timings.first_token_us.saturating_add(waited_us);
                    return End::Told(JobEvent::Done(done));
                }
                JobEvent::Failed(fault) => return End::Told(JobEvent::Failed(fault)),
                JobEvent::Restarted | JobEvent::ChoiceDone { .. } | JobEvent::Vectors(_) => {}
            }
        }
        End::failed(Fault::new(FaultCode::Internal, "the answer broke off"))
    }
}

impl Inner {
    /// Waits until the daemon stops.
    async fn stops(&self) {
        let mut stopping = self.stopping.subscribe();
        if stopping.wait_for(Option::is_some).await.is_err() {
            // The sender lives as long as this.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until what is under way has to end since the daemon does.
    async fn must_stop(&self) {
        self.stops().await;
        let until = *self.stopping.borrow();
        if let Some(until) = until {
            sleep_until(until.into()).await;
        }
    }
}

/// Whether upstream may answer the same question later.
fn may_pass(fault: &UpstreamFault) -> bool {
    use crate::upstream::FaultKind;
    match fault.kind {
        FaultKind::Unavailable
        | FaultKind::Busy
        | FaultKind::Unreachable
        | FaultKind::Slow
        | FaultKind::Broken
        | FaultKind::Failed => true,
        FaultKind::Untrusted
        | FaultKind::Deadline
        | FaultKind::Garbled
        | FaultKind::Endless
        | FaultKind::Redirected
        | FaultKind::Denied
        | FaultKind::Rejected
        | FaultKind::Misshapen
        | FaultKind::Withheld => false,
    }
}

/// Whether a question that failed so cost nothing: nobody took it.
fn is_free(fault: &UpstreamFault) -> bool {
    use crate::upstream::FaultKind;
    !fault.sent_text
        && matches!(
            fault.kind,
            FaultKind::Unavailable
                | FaultKind::Busy
                | FaultKind::Unreachable
                | FaultKind::Untrusted
                | FaultKind::Redirected
                | FaultKind::Denied
                | FaultKind::Rejected
                | FaultKind::Failed
        )
}

/// What the client is told of a refusal here: it was taken before, so that whoever keeps it tries again.
fn taken_before(mut fault: Fault) -> Fault {
    if fault.code == FaultCode::Busy {
        fault.code = FaultCode::ModelUnavailable;
    }
    fault
}
