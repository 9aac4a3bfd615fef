//! Clients and how they ask; what the front end takes in, and takes in again.

use andon_policy::admission::{Phase, Reason};
use andon_policy::client::ClientId;
use andon_policy::rate::Bucket;
use andon_policy::scheduler::{Arrival, Scheduler, Ticket};
use andon_policy::throttle::Restraint;
use andon_wire::Priority;

use super::{Broken, Event, HOLD, LANES, World};
use crate::engine::{PAGE, Work};
use crate::ledger::{Alarm, Outcome, Request, State};

/// Most answers of one request.
const CHOICES_MAX: u64 = 4;

impl World {
    /// A request of a client.
    fn invent(&mut self, client: usize) -> Request {
        let random = &mut self.random;
        let who = &self.clients[client];
        let draw = random.below(100);
        let priority = if draw < who.mix[0] {
            Priority::Alarm
        } else if draw < who.mix[0] + who.mix[1] {
            Priority::Interactive
        } else {
            Priority::Batch
        };
        let alarm = priority == Priority::Alarm;
        let (prompt_max, tokens_max, deadlines) = match priority {
            Priority::Alarm if random.one_in(8) => (6_000, 400, (500, 20_000)),
            Priority::Alarm => (600, 120, (500, 20_000)),
            Priority::Interactive => (2_000, 400, (300, 60_000)),
            Priority::Batch => (4_000, 400, (5_000, 600_000)),
        };
        let shared = u64::from(self.config.places.shared);
        let mut choices = 1;
        if !alarm && random.one_in(12) {
            choices = random.within(1, CHOICES_MAX.min(shared));
        }
        let mut work = Work {
            alarm,
            prompt: random.spread(8, prompt_max),
            cached: 0,
            tokens_max: random.spread(1, tokens_max),
            lengths: [0; 4],
            choices: choices as usize,
        };
        // The front end refuses what never fits.
        while work.pages() > self.engine.pages() {
            work.choices -= 1;
        }
        if random.one_in(3) {
            work.cached = random.below(work.prompt) / PAGE * PAGE;
        }
        for length in &mut work.lengths[..work.choices] {
            *length = random.within(1, work.tokens_max);
        }
        // Shapes are compiled, which takes long, and texts are rendered and tokenized.
        let shape_us = if random.one_in(20) {
            random.spread(1_000, 500_000)
        } else {
            200
        };
        let prepare_us = shape_us + work.prompt * 2;
        let deadline_ms = (who.deadlines && random.one_in(2)).then(|| {
            let (soonest, latest) = deadlines;
            self.now_us / 1000 + random.spread(soonest, latest)
        });
        Request {
            client,
            priority,
            deadline_ms,
            work,
            prepare_us,
            ready: false,
            ticket: None,
            state: State::Waiting,
            given_up: false,
            since_us: self.now_us,
            restrained: self.restraint != Restraint::default(),
            computed_us: 0,
            alarm: Alarm::default(),
        }
    }

    pub(super) fn ask(&mut self, client: usize) -> Result<(), Broken> {
        let request = self.invent(client);
        let number = self.requests.len();
        let turned_away = self.restraint.refuses.turns_away(request.priority);
        self.requests.push(request);
        self.open.push(number);
        let arrival = self.arrival(number);
        match self.scheduler.arrived(self.now_ms(), &arrival) {
            Err(refusal) => {
                if refusal.reason == Reason::Pressed && !turned_away {
                    return Err(format!("refused without a lack of memory: {refusal:?}"));
                }
                if refusal.reason.code().may_retry() && refusal.retry_after_ms.is_none() {
                    return Err(format!("refused without a hint: {refusal:?}"));
                }
                self.end(number, Outcome::Refused);
            }
            Ok(_) if turned_away => return Err("taken in while memory is short".to_owned()),
            Ok(ticket) => {
                self.took_in(number, ticket)?;
                self.bounds(client)?;
                self.note_preparation(number);
                if self.random.one_in(15) {
                    let pause = self.random.pause(2_000_000);
                    self.after(pause, Event::GiveUp(number));
                }
                if self.random.one_in(20) {
                    let pause = self.random.pause(3_000_000);
                    self.after(pause, Event::Again(number));
                }
                if self.random.one_in(300) {
                    self.after(50_000, Event::Vanish(client));
                }
            }
        }
        Ok(())
    }

    fn arrival(&self, number: usize) -> Arrival {
        let request = &self.requests[number];
        Arrival {
            client: ClientId(request.client as u64),
            priority: request.priority,
            deadline_ms: request.deadline_ms,
            tokens_max: Some(request.work.tokens_max as u32),
            choices: request.work.choices as u32,
            rates: self.clients[request.client].rates,
        }
    }

    fn took_in(&mut self, number: usize, ticket: Ticket) -> Result<(), Broken> {
        self.within_rate(number)?;
        let request = &mut self.requests[number];
        (request.ticket, request.state) = (Some(ticket), State::Waiting);
        match self.tickets.insert(ticket, number) {
            Some(_) => Err(format!("{ticket:?} was given twice")),
            None => Ok(()),
        }
    }

    /// What was taken in of a client within the last minute is no more than a full bucket and what flows into it.
    fn within_rate(&mut self, number: usize) -> Result<(), Broken> {
        let now_ms = self.now_ms();
        let request = &self.requests[number];
        let client = &mut self.clients[request.client];
        let rate = client.rates.or(self.config.rates).requests;
        let Some(rate) = rate.filter(|_| !request.is_alarm()) else {
            return Ok(());
        };
        client.taken.push_back(now_ms);
        while client.taken.front().is_some_and(|at| at + 60_000 < now_ms) {
            client.taken.pop_front();
        }
        let most = rate.burst as usize + rate.per_minute as usize;
        if client.taken.len() > most {
            let count = client.taken.len();
            return Err(format!(
                "{count} requests of a client in a minute that may ask {rate:?}"
            ));
        }
        Ok(())
    }

    /// The broker delivers a request another time. What is known is not taken in again: it was answered, or will be.
    pub(super) fn again(&mut self, number: usize) -> Result<(), Broken> {
        self.report.again += 1;
        let request = &self.requests[number];
        let waits_in_spool = self.backlog.contains(&number);
        let open = self.open.contains(&number);
        match (request.ended(), request.ticket) {
            (true, _) if !open && !waits_in_spool => Ok(()),
            (false, Some(ticket)) if open && self.tickets.get(&ticket) == Some(&number) => Ok(()),
            (false, None) if open && waits_in_spool => Ok(()),
            _ => Err(format!("{request:?} was taken in and is nowhere")),
        }
    }

    /// What was just taken in is within the bounds of the queue.
    fn bounds(&self, client: usize) -> Result<(), Broken> {
        let bounds = &self.config.bounds;
        let waiting = |alarm: bool| {
            let waiting = self.open.iter().filter(|&&request| {
                let request = &self.requests[request];
                request.state == State::Waiting && (alarm || !request.is_alarm())
            });
            waiting.count() as u32
        };
        if waiting(true) > bounds.waiting_max {
            return Err("more wait than may".to_owned());
        }
        if waiting(false) > bounds.waiting_max - bounds.waiting_kept_for_alarms {
            return Err("others wait in the places of alarms".to_owned());
        }
        let of_client = self
            .open
            .iter()
            .map(|&request| &self.requests[request])
            .filter(|request| request.client == client && request.state != State::Spooled);
        let most = bounds.client_open_max + bounds.waiting_kept_for_alarms;
        if of_client.count() as u32 > most {
            return Err("a client has more open than it may".to_owned());
        }
        Ok(())
    }

    /// The daemon dies, and is started again with what its spool has.
    pub(super) fn restart(&mut self) {
        self.report.restarts += 1;
        let mut scheduler = Scheduler::new(self.config, self.now_ms());
        scheduler.set_phase(Phase::Serving);
        scheduler.restrain(self.restraint);
        self.scheduler = scheduler;
        // It remembers nobody.
        for client in &mut self.clients {
            client.taken.clear();
        }
        self.engine.clear();
        self.tickets.clear();
        self.lanes = [None; LANES];
        (self.pass, self.giving_up, self.crowded) = (None, false, false);
        self.pass_number += 1;
        self.hold = Bucket::full(HOLD, self.now_ms());
        if self.slow.is_some() {
            self.slow = Some((self.now_us, 0));
        }
        for &number in &self.open {
            let request = &mut self.requests[number];
            (request.ticket, request.state) = (None, State::Spooled);
            request.ready = false;
            request.alarm = Alarm::default();
        }
        self.backlog.clone_from(&self.open);
        let requests = &self.requests;
        self.backlog
            .sort_by_key(|&number| (!requests[number].is_alarm(), number));
    }

    /// Hands over what the spool has, as far as it is taken.
    pub(super) fn fetch(&mut self) -> Result<(), Broken> {
        while let Some(&number) = self.backlog.first() {
            let arrival = self.arrival(number);
            match self.scheduler.arrived(self.now_ms(), &arrival) {
                Ok(ticket) => {
                    self.report.respooled += 1;
                    self.took_in(number, ticket)?;
                    self.requests[number].since_us = self.now_us;
                }
                Err(refusal) if refusal.reason.code().may_retry() => {
                    let pause_ms = refusal.retry_after_ms.unwrap_or(1).clamp(1, 1000);
                    self.after(u64::from(pause_ms) * 1000, Event::Wake);
                    return Ok(());
                }
                Err(_) => self.end(number, Outcome::RefusedLate),
            }
            self.backlog.remove(0);
        }
        Ok(())
    }
}
