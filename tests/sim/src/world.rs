//! A world: everything that happens, in the order of its clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;

use andon_policy::admission::{Bounds, Phase, Reason, Refuses};
use andon_policy::client::{ClientId, Rates};
use andon_policy::rate::{Bucket, Rate};
use andon_policy::scheduler::{
    Arrival, Cancelled, Config, DUTY_MS_MAX, Decision, HOLD_MS_MAX, Places, Scheduler, Size, Ticket,
};
use andon_policy::speed::Step;
use andon_policy::throttle::{Restraint, Throttle};
use andon_wire::Priority;

use crate::engine::{Engine, Happened, PAGE, Pass, Work};
use crate::ledger::{Alarm, Outcome, Request, State};
use crate::random::Random;

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

/// Most answers of one request.
const CHOICES_MAX: u64 = 4;

/// Layers of the model: a pass can be given up before any of them.
const LAYERS: u64 = 30;

/// Threads that prepare requests.
const LANES: usize = 2;

/// Longest that the prompt of an alarm takes on the slowest machine.
const ALARM_READ_MS_MAX: u32 = 6_000;

/// Longest that a world may go on once nobody asks any more, in events.
const DRAIN_EVENTS_MAX: u64 = 5_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client asks, and will ask again.
    Ask(usize),
    /// The broker delivers a request another time.
    Again(usize),
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
}

/// What happened in worlds.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Events in all.
    pub events: u64,
    /// Worlds.
    pub worlds: u64,
    /// Requests by how they ended.
    pub ended: [u64; Outcome::ALL.len()],
    /// How often a request was parked.
    pub parked: u64,
    /// Passes.
    pub passes: u64,
    /// Passes that were given up for an alarm.
    pub interrupted: u64,
    /// Requests that found no room when they were to start.
    pub no_room: u64,
    /// Requests that were delivered again.
    pub again: u64,
    /// Alarms whose start was held to its bound, and how long the worst waited for its first pass, in thousandths of
    /// a step.
    pub alarms: u64,
    /// See `alarms`.
    pub alarm_wait: u64,
    /// Longest wait of another request between two passes, in thousandths of what is promised.
    pub starved: u64,
}

impl Report {
    /// Takes in those of other worlds.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.worlds += other.worlds;
        for (mine, theirs) in self.ended.iter_mut().zip(other.ended) {
            *mine += theirs;
        }
        self.parked += other.parked;
        self.passes += other.passes;
        self.interrupted += other.interrupted;
        self.no_room += other.no_room;
        self.again += other.again;
        self.alarms += other.alarms;
        self.alarm_wait = self.alarm_wait.max(other.alarm_wait);
        self.starved = self.starved.max(other.starved);
    }

    /// How many requests ended how.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let words = Outcome::ALL.iter().map(|outcome| outcome.word());
        words.zip(self.ended)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} events in {} worlds", self.events, self.worlds)?;
        let requests: u64 = self.ended.iter().sum();
        write!(f, "{requests} requests:")?;
        for (word, count) in self.outcomes() {
            write!(f, " {count} {word};")?;
        }
        writeln!(f, " {} delivered again", self.again)?;
        writeln!(
            f,
            "{} passes, {} given up for an alarm; {} times parked, {} times no room",
            self.passes, self.interrupted, self.parked, self.no_room
        )?;
        write!(
            f,
            "{} alarms began at once: the latest after {:.3} steps; others waited for at most {:.3} of what is promised",
            self.alarms,
            self.alarm_wait as f64 / 1000.0,
            self.starved as f64 / 1000.0
        )
    }
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
                Client {
                    mix: [alarms, 100 - alarms - batch, batch],
                    pause_us: random.spread(pause_us, pause_us * 16),
                    deadlines: random.one_in(2),
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
            Event::Again(request) => {
                // The front end knows what it has been given, and answers from its record.
                self.report.again += 1;
                let request = &self.requests[request];
                if request.ticket.is_none() && !request.ended() {
                    return Err("a request was taken in and forgotten".to_owned());
                }
            }
            Event::Prepared(lane, request) => self.prepared(lane, request)?,
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
            Event::Ask(_) | Event::PassEnds(_) | Event::Wake => {}
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
    }

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
        while work.pages() > PAGES - PAGES_FOR_ALARMS {
            work.choices -= 1;
        }
        if random.one_in(3) {
            work.cached = random.below(work.prompt) / PAGE * PAGE;
        }
        for length in &mut work.lengths[..work.choices] {
            *length = random.within(1, work.tokens_max);
        }
        let deadline_ms = (who.deadlines && random.one_in(2)).then(|| {
            let (soonest, latest) = deadlines;
            self.now_us / 1000 + random.spread(soonest, latest)
        });
        Request {
            client,
            priority,
            deadline_ms,
            work,
            ticket: None,
            state: State::Waiting,
            given_up: false,
            since_us: self.now_us,
            restrained: self.restraint != Restraint::default(),
            computed_us: 0,
            alarm: Alarm::default(),
        }
    }

    fn ask(&mut self, client: usize) -> Result<(), Broken> {
        let request = self.invent(client);
        let arrival = Arrival {
            client: ClientId(client as u64),
            priority: request.priority,
            deadline_ms: request.deadline_ms,
            tokens_max: Some(request.work.tokens_max as u32),
            choices: request.work.choices as u32,
        };
        let number = self.requests.len();
        let turned_away = self.restraint.refuses.turns_away(request.priority);
        self.requests.push(request);
        self.open.push(number);
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
                self.requests[number].ticket = Some(ticket);
                if self.tickets.insert(ticket, number).is_some() {
                    return Err(format!("{ticket:?} was given twice"));
                }
                self.bounds(client)?;
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
            .filter(|&&request| self.requests[request].client == client);
        let most = bounds.client_open_max + bounds.waiting_kept_for_alarms;
        if of_client.count() as u32 > most {
            return Err("a client has more open than it may".to_owned());
        }
        Ok(())
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
        if self
            .scheduler
            .prepared(self.now_us / 1000, ticket, size)
            .is_err()
        {
            self.end(number, Outcome::RefusedLate);
            return Ok(());
        }
        if alarm {
            self.alarm_ready(number);
        }
        Ok(())
    }

    /// Notes what an alarm may wait for, and interrupts the pass under way if it can be.
    fn alarm_ready(&mut self, number: usize) {
        let others = self.open.iter().filter(|&&other| {
            let other_request = &self.requests[other];
            other != number && other_request.is_alarm()
        });
        let alone = others.count() == 0;
        for &other in &self.open {
            self.requests[other].alarm.wait_us_max = None;
        }
        let now_ms = self.now_us / 1000;
        let mut wait_us_max = Some(0);
        if let Some(pass) = &self.pass {
            if self.giving_up {
                wait_us_max = Some(self.engine.step_us_max(0) / LAYERS + pass.took_us);
            } else if self.engine.may_give_up(pass) {
                self.giving_up = true;
                self.pass_number += 1;
                let left_us = self.pass_began_us + pass.took_us - self.now_us;
                let layer_us = left_us.min(pass.took_us / LAYERS);
                wait_us_max = Some(layer_us);
                let number = self.pass_number;
                self.after(layer_us, Event::PassEnds(number));
            } else if pass.prompt_tokens == 0 {
                wait_us_max = Some(self.engine.step_us_max(pass.answers));
            } else {
                // It may be given up only every other time.
                wait_us_max = None;
            }
        }
        let may_hold = self.hold.wait_ms(HOLD, ALARM_READ_MS_MAX, now_ms) == 0;
        let alarm = &mut self.requests[number].alarm;
        alarm.ready_us = self.now_us;
        alarm.wait_us_max = wait_us_max.filter(|_| alone && may_hold);
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
        for lane in 0..LANES {
            if self.lanes[lane].is_none() {
                // One lane is for every second request.
                let mine = |ticket: Ticket| self.tickets[&ticket] % LANES == lane;
                if let Some(ticket) = self.scheduler.prepare_next(now_ms, mine) {
                    let number = self.tickets[&ticket];
                    let us = 200 + self.requests[number].work.prompt * 2;
                    self.lanes[lane] = Some(number);
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
        let chunk = u64::from(self.scheduler.pass(now_ms, &mut self.readers));
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
                Decision::Resume(ticket) => self.engine.park(ticket, false),
                Decision::Start(ticket) => {
                    let number = self.tickets[&ticket];
                    let request = &mut self.requests[number];
                    if !full && self.engine.start(ticket, request.work) {
                        request.state = State::Resident;
                    } else if self.engine.jobs() == 0 {
                        return Err("no room in an engine that is empty".to_owned());
                    } else {
                        self.report.no_room += 1;
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

    /// What holds between any two passes.
    fn check(&self) -> Result<(), Broken> {
        let (alarms, others) = self.engine.running();
        let places = self.config.places;
        if others > u64::from(places.shared) || alarms + others > u64::from(places.all()) {
            return Err(format!("{alarms} alarms and {others} others in a pass"));
        }
        if !self.engine.fits() {
            return Err("the engine has more than fits".to_owned());
        }
        let waiting = self
            .open
            .iter()
            .filter(|&&request| self.requests[request].state == State::Waiting);
        if waiting.count() as u32 != self.scheduler.waiting() {
            return Err("the scheduler counts other requests".to_owned());
        }
        if self.engine.jobs() != self.scheduler.resident() {
            return Err("the scheduler has other residents".to_owned());
        }
        let restrained = self.restraint.batch != Throttle::None;
        let may_compute = |request: &&usize| {
            let request = &self.requests[**request];
            let restrained = restrained && request.priority == Priority::Batch;
            request.state == State::Resident && !restrained
        };
        if alarms + others == 0 && self.open.iter().any(|request| may_compute(&request)) {
            return Err("everyone is parked".to_owned());
        }
        Ok(())
    }

    /// What holds of a pass as it begins.
    fn began(&mut self) -> Result<(), Broken> {
        let Some(pass) = &self.pass else {
            return Ok(());
        };
        let (now_us, now_ms) = (self.now_us, self.now_us / 1000);
        let requests = &mut self.requests;
        let of = |ticket: &Ticket| self.tickets[ticket];
        let all: Vec<usize> = pass
            .reads
            .iter()
            .map(|(ticket, _)| of(ticket))
            .chain(pass.decodes.iter().map(of))
            .collect();
        let batch = |&number: &usize| requests[number].priority == Priority::Batch;
        if all.iter().any(batch) {
            if self.restraint.batch == Throttle::Hold && !self.crowded {
                return Err("batch work computes that is held".to_owned());
            }
            if let Some((since_us, computed_us)) = self.slow
                && computed_us > (now_us - since_us) / 2 + DUTY_MS_MAX * 1000 / 2 + 2_000
            {
                return Err(format!(
                    "slow work computed for {computed_us} us of {since_us}.."
                ));
            }
        }
        let held = all.iter().all(|&number| requests[number].is_alarm());
        if all.iter().any(|&number| requests[number].is_alarm()) {
            let ms = u32::try_from(pass.took_us / 1000 + 1).unwrap_or(u32::MAX);
            self.hold.take(HOLD, ms, now_ms);
        }
        for (ticket, _) in &pass.reads {
            let number = self.tickets[ticket];
            let alarm = &mut requests[number].alarm;
            if let Some(most_us) = alarm.wait_us_max {
                let waited_us = now_us - alarm.ready_us;
                if alarm.first_us.is_none() {
                    if waited_us > most_us {
                        return Err(format!(
                            "an alarm waited {waited_us} us for its first pass, not {most_us} us"
                        ));
                    }
                    let shared = u64::from(self.config.places.shared);
                    let step_us = self.engine.step_us_max(shared);
                    self.report.alarms += 1;
                    self.report.alarm_wait = self.report.alarm_wait.max(waited_us * 1000 / step_us);
                } else if alarm.first_us.map(|first_us| first_us + alarm.read_us) != Some(now_us) {
                    return Err("something came between two passes over an alarm".to_owned());
                }
                if !held {
                    return Err("others are in the passes that read an alarm".to_owned());
                }
            }
            alarm.first_us.get_or_insert(now_us);
            alarm.read_us += pass.took_us;
        }
        for number in all {
            self.starves(number, now_us)?;
        }
        Ok(())
    }

    /// Whether a request has waited for longer than is promised.
    fn starves(&mut self, number: usize, now_us: u64) -> Result<(), Broken> {
        let request = &self.requests[number];
        if request.is_alarm() || request.restrained {
            return Ok(());
        }
        let waited_ms = (now_us - request.since_us) / 1000;
        let longest_ms = self.longest_us.div_ceil(1000);
        let most_ms = Scheduler::starved_ms_max(&self.config, request.priority, longest_ms);
        self.report.starved = self.report.starved.max(waited_ms * 1000 / most_ms);
        if waited_ms > most_ms {
            return Err(format!(
                "{request:?} has waited {waited_ms} ms, not {most_ms} ms"
            ));
        }
        Ok(())
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
