//! A world: everything that happens, in the order of its clock.

mod asks;
mod checks;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use andon_policy::admission::{Bounds, Phase, Refuses};
use andon_policy::client::Rates;
use andon_policy::rate::{Bucket, Rate};
use andon_policy::scheduler::{
    Cancelled, Config, Decision, HOLD_MS_MAX, Places, Scheduler, Size, Ticket,
};
use andon_policy::speed::Step;
use andon_policy::throttle::{Restraint, Throttle};
use andon_wire::Priority;

use crate::engine::{Engine, Happened, Pass};
use crate::ledger::{Outcome, Request, State};
use crate::random::Random;
use crate::report::Report;

/// What did not hold.
type Broken = String;

/// Pages of the KV cache, and those of them that are kept for alarms.
const PAGES: u64 = 256;
const PAGES_FOR_ALARMS: u64 = 32;

/// What a world may be under.
const RESTRAINTS: [Restraint; 5] = [
    Restraint {
        batch: Throttle::None,
        refuses: Refuses::Nothing,
    },
    Restraint {
        batch: Throttle::Slow,
        refuses: Refuses::Nothing,
    },
    Restraint {
        batch: Throttle::Hold,
        refuses: Refuses::Nothing,
    },
    Restraint {
        batch: Throttle::Hold,
        refuses: Refuses::Batch,
    },
    Restraint {
        batch: Throttle::Hold,
        refuses: Refuses::AllButAlarms,
    },
];

/// Layers of the model: a pass can be given up before any of them.
const LAYERS: u64 = 30;

/// Threads that prepare requests: one for alarms, and two for others.
const LANES: usize = 3;

/// Longest that a world may go on once nobody asks any more, in events.
const DRAIN_EVENTS_MAX: u64 = 5_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client asks, and will ask again.
    Ask(usize),
    /// The broker delivers a request another time.
    Again(usize),
    /// The daemon dies, and is started again.
    Restart,
    /// A lane has prepared its request.
    Prepared(usize, usize),
    /// The pass under way ends, if it is still this one.
    PassEnds(u64),
    /// A client gives a request up.
    GiveUp(usize),
    /// A client vanishes with all its requests.
    Vanish(usize),
    /// The machine is hot or memory short, or no longer.
    Restrain(usize),
    /// The scheduler asked to be asked.
    Wake,
}

#[derive(Clone, Debug)]
struct Client {
    /// How often it asks for what, in hundredths: alarms, interactive, batch.
    mix: [u64; 3],
    /// Mean time between two requests.
    pause_us: u64,
    deadlines: bool,
    /// How often it may ask, where that is not as for all.
    rates: Rates,
    /// When it was taken in within the last minute, alarms aside, in milliseconds.
    taken: VecDeque<u64>,
}

/// See the crate.
#[derive(Debug)]
pub struct World {
    random: Random,
    now_us: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    config: Config,
    scheduler: Scheduler,
    engine: Engine,
    clients: Vec<Client>,
    requests: Vec<Request>,
    tickets: BTreeMap<Ticket, usize>,
    open: Vec<usize>,
    /// The request in each lane.
    lanes: [Option<usize>; LANES],
    lanes_until_us: [u64; LANES],
    /// What the spool has and the scheduler does not, in the order in which it is handed over.
    backlog: Vec<usize>,
    pass: Option<Pass>,
    pass_number: u64,
    pass_began_us: u64,
    /// Whether the pass under way is given up.
    giving_up: bool,
    restraint: Restraint,
    /// Since when batch work has been restrained, and what it computed since, if it is.
    slow: Option<(u64, u64)>,
    /// Whether others than batch work found no room, and nothing has ended since.
    crowded: bool,
    /// For how long alarms may hold others up, at the least.
    hold: Bucket,
    longest_us: u64,
    asking: bool,
    report: Report,
    decisions: Vec<Decision>,
    readers: Vec<Ticket>,
    happened: Vec<Happened>,
}

/// As the scheduler's, see [`HOLD_MS_MAX`].
const HOLD: Rate = Rate {
    per_minute: 30_000,
    burst: (HOLD_MS_MAX / 2) as u32,
};

/// Which lane prepares a request.
fn lane_of(requests: &[Request], number: usize) -> usize {
    if requests[number].is_alarm() {
        LANES - 1
    } else {
        number % (LANES - 1)
    }
}

impl World {
    /// The world of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let shared = random.within(1, 8) as u32;
        let waiting_max = random.spread(4, 64) as u32;
        let limited = random.one_in(3);
        let mut rate =
            |count: u64| limited.then(|| Rate::per_minute(random.within(1, count) as u32));
        let rates = Rates {
            requests: rate(600),
            alarms: rate(60),
            tokens: rate(100_000),
        };
        let config = Config {
            bounds: Bounds {
                waiting_max,
                waiting_kept_for_alarms: waiting_max / 8,
                client_open_max: random.within(1, 64) as u32,
                tokens_max: 400,
            },
            places: Places {
                shared,
                for_alarms: 1,
            },
            pass_tokens_max: 512,
            rates,
        };
        let answers_max = u64::from(config.places.resident_max());
        let engine = Engine::new(&mut random, PAGES, PAGES_FOR_ALARMS, answers_max);
        // From idle to several times too much.
        let pause_us = random.spread(50_000, 20_000_000);
        let alarms = [0, 1, 3, 30, 90][random.below(5) as usize];
        let clients = (0..random.within(1, 12))
            .map(|_| {
                let batch = random.below(101 - alarms);
                let mut own = |count: u64| {
                    let said = random.one_in(6);
                    said.then(|| Rate::per_minute(random.within(1, count) as u32))
                };
                let rates = Rates {
                    requests: own(120),
                    alarms: own(60),
                    tokens: own(100_000),
                };
                Client {
                    mix: [alarms, 100 - alarms - batch, batch],
                    pause_us: random.spread(pause_us, pause_us * 16),
                    deadlines: random.one_in(2),
                    rates,
                    taken: VecDeque::new(),
                }
            })
            .collect();
        let mut scheduler = Scheduler::new(config, 0);
        scheduler.set_phase(Phase::Serving);
        let mut world = Self {
            random,
            now_us: 0,
            events: BinaryHeap::new(),
            scheduled: 0,
            config,
            scheduler,
            engine,
            clients,
            requests: Vec::new(),
            tickets: BTreeMap::new(),
            open: Vec::new(),
            lanes: [None; LANES],
            lanes_until_us: [0; LANES],
            backlog: Vec::new(),
            pass: None,
            pass_number: 0,
            pass_began_us: 0,
            giving_up: false,
            restraint: Restraint::default(),
            slow: None,
            crowded: false,
            hold: Bucket::full(HOLD, 0),
            longest_us: 0,
            asking: true,
            report: Report {
                worlds: 1,
                ..Report::default()
            },
            decisions: Vec::new(),
            readers: Vec::new(),
            happened: Vec::new(),
        };
        for client in 0..world.clients.len() {
            let pause = world.random.pause(world.clients[client].pause_us);
            world.after(pause, Event::Ask(client));
        }
        if world.random.one_in(3) {
            world.after(1_000_000, Event::Restrain(1));
        }
        if world.random.one_in(2) {
            world.after(30_000_000, Event::Restart);
        }
        world
    }

    fn now_ms(&self) -> u64 {
        self.now_us / 1000
    }

    fn after(&mut self, us: u64, event: Event) {
        self.scheduled += 1;
        self.events
            .push(Reverse((self.now_us + us, self.scheduled, event)));
    }

    /// Lets so many events happen, and then whatever is left to end.
    ///
    /// # Errors
    /// What did not hold.
    pub fn run(mut self, events: u64) -> Result<Report, Broken> {
        let mut most = events;
        while self.report.events < most {
            let Some(Reverse((at_us, _, event))) = self.events.pop() else {
                break;
            };
            self.now_us = at_us;
            self.report.events += 1;
            self.happen(event)
                .and_then(|()| self.turn())
                .map_err(|broken| self.at(&broken))?;
            if self.report.events == most && self.asking {
                self.asking = false;
                most += DRAIN_EVENTS_MAX;
                self.restrain(Restraint::default());
                if self.random.one_in(2) {
                    self.close();
                }
                self.turn().map_err(|broken| self.at(&broken))?;
            }
        }
        match self.open.first() {
            Some(&request) => {
                let request = &self.requests[request];
                Err(self.at(&format!("never ended: {request:?}")))
            }
            None if self.engine.jobs() > 0 => Err(self.at("the engine has requests left")),
            None => Ok(self.report),
        }
    }

    fn at(&self, broken: &str) -> Broken {
        let (events, now_ms) = (self.report.events, self.now_ms());
        format!("after {events} events, at {now_ms} ms: {broken}")
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Ask(client) if self.asking => {
                let count = if self.random.one_in(40) {
                    self.random.within(5, 40)
                } else {
                    1
                };
                for _ in 0..count {
                    self.ask(client)?;
                }
                let pause = self.random.pause(self.clients[client].pause_us);
                self.after(pause, Event::Ask(client));
            }
            Event::Again(request) => self.again(request)?,
            Event::Restart if self.asking => {
                self.restart();
                let pause = self.random.pause(60_000_000);
                self.after(pause, Event::Restart);
            }
            Event::Prepared(lane, request) if self.lanes[lane] == Some(request) => {
                self.prepared(lane, request)?;
            }
            Event::PassEnds(number) if number == self.pass_number => self.pass_ends()?,
            Event::GiveUp(request) => self.requests[request].given_up = true,
            Event::Vanish(client) => {
                for &request in &self.open {
                    let request = &mut self.requests[request];
                    request.given_up |= request.client == client;
                }
            }
            Event::Restrain(_) if !self.asking => {}
            Event::Restrain(level) => {
                self.restrain(RESTRAINTS[level]);
                let level = self.random.below(RESTRAINTS.len() as u64) as usize;
                let pause = self.random.pause(10_000_000);
                self.after(pause, Event::Restrain(level));
            }
            Event::Ask(_)
            | Event::Prepared(..)
            | Event::PassEnds(_)
            | Event::Restart
            | Event::Wake => {}
        }
        Ok(())
    }

    fn restrain(&mut self, restraint: Restraint) {
        self.restraint = restraint;
        self.scheduler.restrain(restraint);
        let restrained = restraint != Restraint::default();
        for &request in &self.open {
            self.requests[request].restrained |= restrained;
        }
        if restraint.batch == Throttle::None {
            self.slow = None;
        } else {
            self.slow.get_or_insert((self.now_us, 0));
        }
    }

    /// The daemon is told to stop: what waits is told so, what runs may end.
    fn close(&mut self) {
        self.scheduler.set_phase(Phase::Draining);
        for ticket in self.scheduler.clear(self.now_us / 1000) {
            let request = self.tickets[&ticket];
            self.end(request, Outcome::Closed);
        }
        // The spool keeps it for the next start.
        for request in std::mem::take(&mut self.backlog) {
            self.end(request, Outcome::Closed);
        }
    }

    fn prepared(&mut self, lane: usize, number: usize) -> Result<(), Broken> {
        self.lanes[lane] = None;
        let request = &mut self.requests[number];
        if request.ended() {
            return Ok(());
        }
        let ticket = request.ticket.ok_or("prepared without being taken in")?;
        let size = Size {
            prompt_tokens: request.work.prompt as u32,
            tokens_max: request.work.tokens_max as u32,
        };
        let alarm = request.is_alarm();
        let prepared_by_us = request.alarm.prepared_by_us;
        if prepared_by_us.is_some_and(|by_us| self.now_us > by_us) {
            return Err(format!("{request:?} was prepared after others"));
        }
        if self
            .scheduler
            .prepared(self.now_us / 1000, ticket, size)
            .is_err()
        {
            self.end(number, Outcome::RefusedLate);
            return Ok(());
        }
        self.requests[number].ready = true;
        if alarm {
            self.alarm_ready(number);
        }
        Ok(())
    }

    fn end(&mut self, number: usize, outcome: Outcome) {
        let request = &mut self.requests[number];
        assert!(!request.ended(), "a request ended twice");
        request.state = State::Ended(outcome);
        self.longest_us = self.longest_us.max(request.computed_us);
        self.crowded &= request.ticket.is_none();
        self.open.retain(|&open| open != number);
        self.report.ended[outcome as usize] += 1;
    }

    /// Whatever is to be done between two passes, if there is none under way; and lanes get work.
    fn turn(&mut self) -> Result<(), Broken> {
        let now_ms = self.now_ms();
        self.fetch()?;
        for lane in 0..LANES {
            if self.lanes[lane].is_none() {
                let (tickets, requests) = (&self.tickets, &self.requests);
                let mine = |ticket: Ticket| lane_of(requests, tickets[&ticket]) == lane;
                if let Some(ticket) = self.scheduler.prepare_next(now_ms, mine) {
                    let number = self.tickets[&ticket];
                    let us = self.requests[number].prepare_us;
                    self.lanes[lane] = Some(number);
                    self.lanes_until_us[lane] = self.now_us + us;
                    self.after(us, Event::Prepared(lane, number));
                }
            }
        }
        if self.pass.is_some() {
            return Ok(());
        }
        self.give_up()?;
        let mut rounds = 0;
        while self.decide()? {
            rounds += 1;
            if rounds > self.open.len() + 1 {
                return Err("decisions never end".to_owned());
            }
        }
        self.check()?;
        let mut chunk = self.scheduler.pass(now_ms, &mut self.readers);
        if self.engine.goes_through() && self.engine.running().0 == 0 {
            // An alarm cannot end it.
            chunk = self.scheduler.speeds().chunk_tokens(1, chunk).min(chunk);
        }
        let chunk = u64::from(chunk);
        self.pass = self.engine.begin(&self.readers, chunk, &mut self.random);
        match &self.pass {
            Some(pass) => {
                let took_us = pass.took_us;
                self.pass_began_us = self.now_us;
                self.giving_up = false;
                self.pass_number += 1;
                let number = self.pass_number;
                self.began()?;
                self.after(took_us, Event::PassEnds(number));
            }
            None => {
                if let Some(wake_ms) = self.scheduler.wake_ms() {
                    let wait_us = (wake_ms * 1000).saturating_sub(self.now_us);
                    self.after(wait_us.max(1), Event::Wake);
                }
            }
        }
        Ok(())
    }

    /// Ends what clients gave up.
    fn give_up(&mut self) -> Result<(), Broken> {
        let now_ms = self.now_ms();
        for number in self.open.clone() {
            let request = &self.requests[number];
            let Some(ticket) = request.ticket.filter(|_| request.given_up) else {
                continue;
            };
            match (self.scheduler.cancelled(now_ms, ticket), request.state) {
                (Cancelled::Waiting, State::Waiting) => {}
                (Cancelled::Resident, State::Resident) => {
                    self.engine.end(ticket);
                    self.scheduler.finished(now_ms, ticket);
                }
                (cancelled, state) => {
                    return Err(format!("{ticket:?} is {cancelled:?} and {state:?}"));
                }
            }
            self.end(number, Outcome::Cancelled);
        }
        Ok(())
    }

    /// Asks the scheduler and does what it says. True if it is to be asked again.
    fn decide(&mut self) -> Result<bool, Broken> {
        let now_ms = self.now_ms();
        let mut decisions = std::mem::take(&mut self.decisions);
        decisions.clear();
        self.scheduler.decide(now_ms, &mut decisions);
        let mut full = false;
        // As the daemon: what is there comes first.
        decisions.sort_by_key(|decision| matches!(decision, Decision::Start(_)));
        for decision in &decisions {
            match *decision {
                Decision::Expire(ticket, _) => {
                    let number = self.tickets[&ticket];
                    self.starves(number, self.now_us)?;
                    self.end(number, Outcome::Expired);
                }
                Decision::Stop(ticket) => {
                    let number = self.tickets[&ticket];
                    let deadline_ms = self.requests[number].deadline_ms;
                    if deadline_ms.is_none_or(|deadline| deadline > now_ms) {
                        return Err(format!("{ticket:?} was stopped in time"));
                    }
                    self.engine.end(ticket);
                    self.scheduler.finished(now_ms, ticket);
                    self.end(number, Outcome::Stopped);
                }
                Decision::Park(ticket) => {
                    self.report.parked += 1;
                    self.engine.park(ticket, true);
                }
                Decision::Resume(ticket) => {
                    if !self.engine.resume(ticket) {
                        self.scheduler.no_room(ticket);
                    }
                }
                Decision::Start(ticket) => {
                    let number = self.tickets[&ticket];
                    if !full {
                        self.overtakes(number)?;
                    }
                    let may = !full || self.requests[number].is_alarm();
                    if may && self.start(ticket, number)? {
                        self.requests[number].state = State::Resident;
                    } else {
                        self.report.no_room += 1;
                        let request = &mut self.requests[number];
                        request.alarm.wait_us_max = None;
                        self.crowded |= request.priority != Priority::Batch;
                        self.scheduler.no_room(ticket);
                        full = true;
                    }
                }
            }
        }
        // As the daemon, which computes once there is nothing to do.
        let again = !decisions.is_empty();
        self.decisions = decisions;
        Ok(again)
    }

    /// Gives a request to the engine; false if there is no room, which an alarm makes others give.
    fn start(&mut self, ticket: Ticket, number: usize) -> Result<bool, Broken> {
        let request = &self.requests[number];
        let (work, alarm) = (request.work, request.is_alarm());
        while !self.engine.start(ticket, work) {
            let mut givers: Vec<(bool, Ticket, u64)> = Vec::new();
            for &other in &self.open {
                let request = &self.requests[other];
                if let (State::Resident, Some(ticket)) = (request.state, request.ticket) {
                    let batch = request.priority == Priority::Batch;
                    givers.push((batch, ticket, self.engine.can_give(ticket)));
                }
            }
            let most: u64 = givers.iter().map(|(_, _, pages)| pages).sum();
            let giver = givers.iter().filter(|(_, _, pages)| *pages > 0).max();
            match giver {
                Some(&(_, giver, _)) if alarm && self.engine.free() + most >= work.pages() => {
                    self.report.aside += 1;
                    self.engine.set_aside(giver);
                    self.scheduler.set_aside(giver);
                }
                _ if self.engine.all_aside() => {
                    return Err("no room in an engine that is empty".to_owned());
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn pass_ends(&mut self) -> Result<(), Broken> {
        let Some(pass) = self.pass.take() else {
            return Ok(());
        };
        let now_ms = self.now_ms();
        if self.giving_up {
            self.giving_up = false;
            self.report.interrupted += 1;
            self.engine.give_up();
            return Ok(());
        }
        self.report.passes += 1;
        let mut happened = std::mem::take(&mut self.happened);
        happened.clear();
        self.engine.finish(&pass, &mut happened);
        let reads = pass.reads.iter().map(|(ticket, _)| ticket);
        let mut batch = false;
        for ticket in reads.chain(&pass.decodes) {
            let request = &mut self.requests[self.tickets[ticket]];
            batch |= request.priority == Priority::Batch;
            self.scheduler.took_part(*ticket);
            request.since_us = self.now_us;
            request.restrained = self.restraint != Restraint::default();
            request.computed_us += pass.took_us;
            self.longest_us = self.longest_us.max(request.computed_us);
        }
        if let Some((_, computed_us)) = &mut self.slow
            && batch
        {
            *computed_us += pass.took_us;
        }
        let mut tokens = 0;
        for happened in &happened {
            match *happened {
                Happened::Read(ticket) => {
                    let work = &self.requests[self.tickets[&ticket]].work;
                    let computed = work.prompt - work.cached;
                    self.scheduler.prompt_read(now_ms, ticket, computed as u32);
                }
                Happened::Again(ticket) => self.scheduler.read_again(ticket),
                Happened::Token(ticket) => {
                    tokens += 1;
                    self.scheduler.decoded(now_ms, ticket, 1);
                }
                Happened::Choice(ticket) => {
                    self.crowded = false;
                    self.scheduler.choice_ended(ticket);
                }
                Happened::Over(ticket) => {
                    let number = self.tickets[&ticket];
                    let in_time = self.scheduler.finished(now_ms, ticket);
                    let deadline_ms = self.requests[number].deadline_ms;
                    let late = deadline_ms.is_some_and(|deadline| deadline <= now_ms);
                    if in_time == late {
                        return Err(format!("{ticket:?} is late: {late}"));
                    }
                    let outcome = if in_time {
                        Outcome::Answered
                    } else {
                        Outcome::Stopped
                    };
                    self.end(number, outcome);
                }
            }
        }
        self.happened = happened;
        self.scheduler.stepped(
            now_ms,
            &Step {
                took_us: pass.took_us,
                answers: pass.answers as u32,
                answer_tokens: tokens,
                prompt_tokens: pass.prompt_tokens as u32,
            },
        );
        Ok(())
    }
}
