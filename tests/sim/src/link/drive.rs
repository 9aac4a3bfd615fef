//! What the router does with a request, by what is decided of it.

use andon_policy::balance::{Candidate, choose};
use andon_policy::budget::{Reservation, Spend, Stop, Verdict, Who};
use andon_policy::route::{Decision, Facts, Policy, Purse, Upstream, decide, is_hard};

use super::{
    Broken, Call, Day, End, Event, MINUTE, Mood, Outcome, Request, SECOND, State, WRITE_AFTER,
};

/// What a local answer is taken to take.
const LOCAL_MS: u64 = 3 * SECOND;
/// How long a server is waited for, at most.
const PATIENCE_MS: u64 = MINUTE;

impl Day {
    /// A client asks.
    pub(super) fn ask(&mut self, number: usize) -> Result<(), Broken> {
        let client = self.clients[number].clone();
        let (random, line) = (&mut self.random, &mut self.line);
        let mut is_so = |share: u64| random.below(100) < share;
        let policy = if is_so(client.insists) {
            Policy::Cloud
        } else if is_so(client.stays) {
            Policy::Local
        } else {
            Policy::Auto
        };
        let (leaves, waits) = (is_so(client.leaves), is_so(client.waits));
        let deadline_ms = (client.deadlines && !random.one_in(4))
            .then(|| self.now_ms + random.spread(5 * SECOND, 60 * MINUTE));
        let tokens_max = random.spread(16, 4_000);
        let request = Request {
            client: number,
            number: line.number(),
            came_ms: self.now_ms,
            deadline_ms,
            policy,
            leaves,
            waits,
            as_good: random.below(1000) as f32 / 1000.0,
            prompt_tokens: random.spread(10, 4_000),
            answer_tokens: random.within(1, tokens_max),
            tokens_max,
            state: State::Kept,
            place: None,
            late: false,
            drafted: false,
            looks: 0,
            failures: 0,
        };
        let number = self.requests.len();
        self.requests.push(request);
        self.open.push(number);
        if let Some(at_ms) = deadline_ms {
            self.after(at_ms - self.now_ms, Event::Deadline(number));
        }
        self.after(self.wait_max_ms, Event::Patience(number));
        self.submit(number)
    }

    /// What the request may come to with the dearest server.
    fn expected(&self, request: &Request) -> Spend {
        let all = self.servers.iter().map(|server| {
            // The tokens of a prompt are not known before.
            let prompt = request.prompt_tokens + request.prompt_tokens / 4;
            server.price.spend(prompt, request.tokens_max)
        });
        all.fold(Spend::default(), |most, one| Spend {
            tokens: most.tokens.max(one.tokens),
            micros: most.micros.max(one.micros),
        })
    }

    fn facts(&mut self, request: &Request) -> Facts {
        let lets = |now_ms| move |server: &super::Server| server.breaker.lets(now_ms);
        let mut upstream = if !self.servers.iter().any(lets(self.now_ms)) {
            Upstream::Down
        } else if self.calls.len() >= self.calls_max {
            Upstream::Busy
        } else {
            Upstream::Up
        };
        // What may wait does not go before what waits.
        let has_place = request.place.is_some();
        if request.waits && !has_place && self.line.has(&request.client) && upstream == Upstream::Up
        {
            upstream = Upstream::Busy;
            self.report.behind += 1;
        }
        let (moment, expected) = (self.moment(), self.expected(request));
        let name = format!("client-{}", request.client);
        let who = Who {
            client: &name,
            task: None,
        };
        let purse = match self.budgets.verdict(moment, who, expected) {
            Verdict::Allow => Purse::Open,
            Verdict::Slope(raise) => Purse::Slope(raise),
            Verdict::Stop(_) => {
                self.report.stopped += 1;
                Purse::Shut
            }
        };
        let answers = self.servers.iter().map(|server| server.answer_ms * 3 / 2);
        Facts {
            policy: request.policy,
            may_leave: request.leaves,
            can_leave: true,
            upstream,
            as_good: request.as_good,
            purse,
            waits: request.waits,
            left_ms: request
                .deadline_ms
                .map(|at_ms| at_ms.saturating_sub(self.now_ms)),
            upstream_ms: answers.min().unwrap_or(0),
            local_ms: LOCAL_MS,
        }
    }

    /// A request comes, or comes back from the spool.
    pub(super) fn submit(&mut self, number: usize) -> Result<(), Broken> {
        let request = self.requests[number];
        let facts = self.facts(&request);
        let decision = decide(&facts, &self.rules());
        if facts.policy == Policy::Auto && facts.may_leave {
            let hard = is_hard(facts.as_good, self.share.threshold(), Purse::Open);
            self.share.note(hard);
        }
        match decision {
            Decision::Local(_) => self.local(number, End::Local),
            Decision::Fallback(_) => self.local(number, End::Fallback),
            Decision::Cascade => {
                self.requests[number].state = State::Draft;
                self.compute(number);
                Ok(())
            }
            Decision::Cloud(_) => self.send(number),
            Decision::Wait(_) => self.wait(number, End::Refused),
            Decision::Refuse(_) => self.end(number, End::Refused),
        }
    }

    /// Has the local model answer.
    fn local(&mut self, number: usize, end: End) -> Result<(), Broken> {
        self.leave(number);
        self.requests[number].state = State::Local(end);
        self.compute(number);
        Ok(())
    }

    fn compute(&mut self, number: usize) {
        let takes_ms = self.random.spread(100, 10 * SECOND);
        self.after(takes_ms, Event::Local(number, self.life));
    }

    pub(super) fn local_ends(&mut self, number: usize) -> Result<(), Broken> {
        let request = self.requests[number];
        match request.state {
            State::Local(end) => self.end(number, end),
            State::Draft => {
                self.requests[number].drafted = true;
                let is_sure = !self.random.one_in(3);
                if is_sure {
                    self.end(number, End::Local)
                } else if request.waits && self.line.has(&request.client) {
                    self.end(number, End::Fallback)
                } else {
                    self.send(number)
                }
            }
            // It has ended.
            _ => Ok(()),
        }
    }

    /// Stands in line, or ends like this where there is no room and nobody here may answer.
    fn wait(&mut self, number: usize, end: End) -> Result<(), Broken> {
        let request = self.requests[number];
        let may = self.now_ms < request.came_ms + self.wait_max_ms;
        let bytes = request.prompt_tokens * 4;
        let place = may
            .then(|| self.line.enter(request.client, request.number, bytes))
            .flatten();
        if place.is_none() {
            return if request.policy == Policy::Cloud {
                self.end(number, end)
            } else {
                self.local(number, End::Fallback)
            };
        }
        let request = &mut self.requests[number];
        (request.place, request.state, request.late) = (place, State::Waiting, true);
        let looks = request.looks;
        self.after(SECOND, Event::Look(number, looks));
        Ok(())
    }

    /// Leaves the line, and has those behind look.
    pub(super) fn leave(&mut self, number: usize) {
        let request = &mut self.requests[number];
        request.looks += 1;
        let Some(place) = request.place.take() else {
            return;
        };
        let client = request.client;
        self.line.leave(&client, place);
        for other in self.open.clone() {
            let request = &self.requests[other];
            if request.client == client && request.state == State::Waiting {
                let looks = request.looks;
                self.after(1, Event::Look(other, looks));
            }
        }
    }

    /// Looks whether what waits may go.
    pub(super) fn look(&mut self, number: usize) -> Result<(), Broken> {
        let request = self.requests[number];
        if request.state != State::Waiting {
            return Ok(());
        }
        // Others that were scheduled are this one.
        self.requests[number].looks += 1;
        let looks = self.requests[number].looks;
        let mut facts = self.facts(&request);
        // What is to be answered here in the end needs the time for that.
        facts.upstream_ms = facts.upstream_ms.max(facts.local_ms);
        let is_first = request
            .place
            .is_some_and(|place| self.line.is_first(&request.client, place));
        match decide(&facts, &self.rules()) {
            Decision::Cloud(_) if is_first => return self.send(number),
            Decision::Cloud(_) | Decision::Wait(_) => {}
            Decision::Refuse(_) => return self.end(number, End::Failed),
            Decision::Local(_) | Decision::Cascade | Decision::Fallback(_) => {
                return self.local(number, End::Fallback);
            }
        }
        let mut pause = self.random.within(5 * SECOND, MINUTE);
        if let Some(left_ms) = facts.left_ms {
            pause = pause.min(left_ms.saturating_sub(facts.upstream_ms) + 1);
        }
        self.after(pause, Event::Look(number, looks));
        Ok(())
    }

    /// It has waited long enough.
    pub(super) fn patience_ends(&mut self, number: usize) -> Result<(), Broken> {
        let request = self.requests[number];
        match request.state {
            State::Waiting if request.policy == Policy::Cloud => self.end(number, End::GivenUp),
            State::Waiting => self.local(number, End::Fallback),
            _ => Ok(()),
        }
    }

    /// Asks a server.
    fn send(&mut self, number: usize) -> Result<(), Broken> {
        let request = self.requests[number];
        if !request.leaves || request.policy == Policy::Local {
            return Err(format!("sent though it may not leave: {request:?}"));
        }
        let before = self.open.iter().map(|other| &self.requests[*other]);
        let mut before =
            before.filter(|other| other.client == request.client && other.number < request.number);
        if request.waits
            && let Some(other) = before.find(|other| other.place.is_some())
        {
            return Err(format!("{request:?} is sent before {other:?}"));
        }
        let expected = self.expected(&request);
        let Ok(held) = self.reserve(&request, expected) else {
            self.report.stopped += 1;
            return self.without(number);
        };
        let candidates: Vec<Candidate> = (self.servers.iter().zip(0..))
            .map(|(server, priority)| Candidate {
                priority: priority / 2,
                weight: 1,
                may: server.breaker.lets(self.now_ms),
            })
            .collect();
        let noise = self.random.next() as u32;
        let chosen = choose(&candidates, noise);
        let asked = chosen.and_then(|server| {
            let ticket = self.servers[server].breaker.ask(self.now_ms)?;
            Some((server, ticket))
        });
        let Some((server, ticket)) = asked else {
            let moment = self.moment();
            self.budgets.settle(moment, &held, Spend::default());
            return self.without(number);
        };
        self.report.sent += 1;
        let (mut takes_ms, mut outcome) = self.outcome(server);
        // What is answered here in the end needs time for that.
        if let Some(at_ms) = request.deadline_ms
            && request.policy != Policy::Cloud
            && self.now_ms + takes_ms + LOCAL_MS > at_ms
            && outcome != Outcome::Unreachable
        {
            takes_ms = at_ms.saturating_sub(self.now_ms + LOCAL_MS).max(1);
            outcome = Outcome::Slow;
        }
        let call = Call {
            request: number,
            server,
            ticket: Some(ticket),
            held,
            expected,
            charged: self.price(&request, server, outcome),
            outcome,
            sent_wall_ms: self.moment().wall_ms,
        };
        self.call(call, takes_ms);
        Ok(())
    }

    fn reserve(&mut self, request: &Request, expected: Spend) -> Result<Reservation, Stop> {
        let name = format!("client-{}", request.client);
        let who = Who {
            client: &name,
            task: None,
        };
        let moment = self.moment();
        let held = self.budgets.reserve(moment, who, expected)?;
        // Before a byte of it is sent.
        self.disk = self.budgets.kept();
        Ok(held)
    }

    /// What comes of a question to a server, and when.
    fn outcome(&mut self, server: usize) -> (u64, Outcome) {
        let answer_ms = self.servers[server].answer_ms;
        let answer_ms = self.random.within(answer_ms / 2, answer_ms * 2);
        if !self.link_up {
            return (self.random.spread(10, 10 * SECOND), Outcome::Unreachable);
        }
        match self.servers[server].mood {
            Mood::Good => (answer_ms.min(PATIENCE_MS), Outcome::Answered),
            Mood::Broken => (self.random.within(1, answer_ms), Outcome::Broken),
            Mood::Failing => (300, Outcome::Failed),
            Mood::Limited => (100, Outcome::Limited),
            Mood::Slow => (PATIENCE_MS, Outcome::Slow),
        }
    }

    /// What a server charges.
    fn price(&mut self, request: &Request, server: usize, outcome: Outcome) -> Spend {
        let answer_tokens = match outcome {
            Outcome::Answered => request.answer_tokens,
            Outcome::Broken | Outcome::Slow => self.random.within(0, request.tokens_max),
            Outcome::Unreachable | Outcome::Failed | Outcome::Limited => return Spend::default(),
        };
        let price = self.servers[server].price;
        price.spend(request.prompt_tokens, answer_tokens)
    }

    fn call(&mut self, call: Call, takes_ms: u64) {
        self.called += 1;
        let number = self.called;
        self.requests[call.request].state = State::Asked(number);
        self.calls.insert(number, call);
        self.after(takes_ms, Event::Call(number));
    }

    /// The link goes, and what is under way with it, which is noticed sooner or later.
    pub(super) fn break_calls(&mut self) {
        for (number, mut call) in std::mem::take(&mut self.calls) {
            if call.outcome == Outcome::Unreachable || self.random.one_in(10) {
                self.calls.insert(number, call);
                continue;
            }
            self.report.broken += 1;
            let request = self.requests[call.request];
            call.outcome = Outcome::Broken;
            call.charged = self.price(&request, call.server, Outcome::Broken);
            let left_ms = request.deadline_ms.map_or(u64::MAX, |at_ms| {
                at_ms.saturating_sub(self.now_ms + LOCAL_MS).max(1)
            });
            let notices_ms = self.random.within(1, 20 * SECOND).min(left_ms);
            self.call(call, notices_ms);
        }
    }

    /// Nothing more comes of a question.
    pub(super) fn call_ends(&mut self, call: u64) -> Result<(), Broken> {
        // It broke off before.
        let Some(mut call) = self.calls.remove(&call) else {
            return Ok(());
        };
        let known = match call.outcome {
            Outcome::Answered => call.charged,
            Outcome::Unreachable | Outcome::Failed | Outcome::Limited => Spend::default(),
            // As far as anybody here knows it is charged whole.
            Outcome::Broken | Outcome::Slow => call.expected,
        };
        let noise = self.random.next() as u32;
        let breaker = &mut self.servers[call.server].breaker;
        if let Some(ticket) = call.ticket.take() {
            match call.outcome {
                Outcome::Answered => breaker.succeeded(ticket),
                Outcome::Limited => breaker.limited(ticket, self.now_ms, 30 * SECOND),
                _ => breaker.failed(ticket, self.now_ms, noise),
            }
        }
        self.settle(&call, known)?;
        let number = call.request;
        if call.outcome == Outcome::Answered {
            return self.end(number, End::Cloud);
        }
        let request = &mut self.requests[number];
        if request.place.is_none() {
            return self.without(number);
        }
        request.state = State::Waiting;
        request.failures += 1;
        let pause = (SECOND << request.failures.min(6)).min(MINUTE);
        let looks = request.looks;
        self.after(pause, Event::Look(number, looks));
        Ok(())
    }

    /// Its question is given up, if it was asked.
    pub(super) fn drop_call(&mut self, number: usize) -> Result<(), Broken> {
        let State::Asked(call) = self.requests[number].state else {
            return Ok(());
        };
        let Some(mut call) = self.calls.remove(&call) else {
            return Ok(());
        };
        if let Some(ticket) = call.ticket.take() {
            self.servers[call.server].breaker.gave_up(ticket);
        }
        let expected = call.expected;
        self.settle(&call, expected)
    }

    fn settle(&mut self, call: &Call, known: Spend) -> Result<(), Broken> {
        let moment = self.moment();
        self.budgets.settle(moment, &call.held, known);
        if !std::mem::replace(&mut self.write_due, true) {
            self.after(WRITE_AFTER, Event::Write(self.life));
        }
        self.charge(call)
    }

    /// Upstream has failed with it, and it does not stand in line.
    fn without(&mut self, number: usize) -> Result<(), Broken> {
        let request = self.requests[number];
        if request.place.is_some() {
            self.requests[number].state = State::Waiting;
            let pause = self.random.within(5 * SECOND, MINUTE);
            let looks = self.requests[number].looks;
            self.after(pause, Event::Look(number, looks));
            return Ok(());
        }
        if request.drafted {
            return self.end(number, End::Fallback);
        }
        let facts = self.facts(&request);
        match decide(&facts, &self.rules()) {
            Decision::Wait(_) | Decision::Cloud(_) if request.waits => {
                self.wait(number, End::Failed)
            }
            _ if request.policy == Policy::Cloud => self.end(number, End::Failed),
            _ => self.local(number, End::Fallback),
        }
    }
}
