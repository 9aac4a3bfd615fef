//! Days of a gateway whose link flaps.
//!
//! A [`Day`] has clients, a local model that is always there, upstream servers behind a link, budgets, and a daemon that
//! dies and goes on with what its spool and its ledger have. It decides by what andond decides by: [`decide`](andon_policy::route::decide),
//! [`Budgets`], [`Line`] and [`Breaker`]s; what the router does with that is done here by events. After its 24 hours nobody asks any more, the
//! link is up, and all that is open has to end.
//!
//! What must hold: a request that was taken ends exactly once, by its deadline, and with an answer if it does not insist on
//! upstream; nothing that may not leave is sent; of a client nothing that may wait is sent before what waits; and no day or
//! month of a budget has more than is in it but for one request, by what the servers charge and not by what the daemon believes.

mod charge;
mod drive;
mod report;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use andon_policy::breaker::{Breaker, Settings, Ticket};
use andon_policy::budget::{Budgets, Cap, Kept, Moment, Price, Reservation, Rule, Slope, Spend};
use andon_policy::line::{Line, Place};
use andon_policy::route::{Policy, Rules, Share};

use crate::random::Random;
use charge::Charges;
pub use report::{End, LinkReport};

/// What did not hold.
type Broken = String;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// How long after a settlement the ledger is written.
const WRITE_AFTER: u64 = 5 * SECOND;
/// Longest that a day may go on once nobody asks any more, in events.
const DRAIN_EVENTS_MAX: u64 = 5_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client asks, and will ask again.
    Ask(usize),
    /// The link goes or comes.
    Link,
    /// A server becomes another kind of server.
    Mood(usize),
    /// A local answer is complete, of the daemon's life with this number.
    Local(usize, u64),
    /// Nothing more comes of this call.
    Call(u64),
    /// A request that waits looks whether it may go.
    Look(usize, u64),
    /// Its answer is worthless from now on.
    Deadline(usize),
    /// It has waited long enough.
    Patience(usize),
    /// The ledger is written.
    Write(u64),
    /// The daemon, or the machine, dies.
    Crash,
    /// It is there again.
    Start,
    /// The wall clock is set to some other time.
    Clock,
}

/// What a server does with questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// It answers.
    Good,
    /// It breaks off.
    Broken,
    /// It says that it has failed, and charges nothing.
    Failing,
    /// It says to come again later.
    Limited,
    /// It takes very long.
    Slow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Unreachable,
    Broken,
    Failed,
    Limited,
    Slow,
}

#[derive(Debug)]
struct Server {
    breaker: Breaker,
    mood: Mood,
    price: Price,
    answer_ms: u64,
}

#[derive(Clone, Debug)]
struct Client {
    pause_ms: u64,
    deadlines: bool,
    /// How often, in hundredths, a request may leave, may wait, insists on upstream, and insists on the local model.
    leaves: u64,
    waits: u64,
    insists: u64,
    stays: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The spool has it, and nobody sees to it.
    Kept,
    /// It is answered here.
    Local(End),
    /// It is answered here first, and perhaps upstream then.
    Draft,
    /// It is asked upstream.
    Asked(u64),
    /// It waits.
    Waiting,
    Ended,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    client: usize,
    number: u64,
    came_ms: u64,
    deadline_ms: Option<u64>,
    policy: Policy,
    leaves: bool,
    waits: bool,
    as_good: f32,
    prompt_tokens: u64,
    answer_tokens: u64,
    tokens_max: u64,
    state: State,
    /// In line, while it waits and is asked for after that.
    place: Option<Place>,
    /// Whether it waited.
    late: bool,
    /// Whether there is a local answer already.
    drafted: bool,
    /// Of waiting that has ended, so that no look counts twice.
    looks: u64,
    failures: u32,
}

/// A question that was sent.
#[derive(Debug)]
struct Call {
    request: usize,
    server: usize,
    ticket: Option<Ticket>,
    held: Reservation,
    expected: Spend,
    /// What the server charges.
    charged: Spend,
    outcome: Outcome,
    /// The wall clock when it was sent.
    sent_wall_ms: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Day {
    random: Random,
    now_ms: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    scheduled: u64,
    clients: Vec<Client>,
    requests: Vec<Request>,
    open: Vec<usize>,
    servers: Vec<Server>,
    link_up: bool,
    link_up_ms: u64,
    link_down_ms: u64,
    budget_rules: Vec<Rule>,
    budgets: Budgets,
    /// What the disk has of it.
    disk: Kept,
    write_due: bool,
    charges: Charges,
    line: Line<usize>,
    line_max: (usize, u64),
    /// Longest that a request waits.
    wait_max_ms: u64,
    calls: BTreeMap<u64, Call>,
    called: u64,
    share: Share,
    cascade: bool,
    /// Most questions at a time.
    calls_max: usize,
    /// Which life of the daemon this is, and whether it is one.
    life: u64,
    alive: bool,
    /// Between two deaths of it, in the mean.
    crash_ms: u64,
    /// When the wall clock began, and how far it is off since.
    wall_ms: u64,
    clock_off_ms: i64,
    clock_is_right: bool,
    starts: u32,
    /// For how long the machine was off.
    off_ms: u64,
    asking: bool,
    report: LinkReport,
}

fn server(random: &mut Random) -> Server {
    let mut price = || random.spread(1, 20_000_000);
    let price = Price {
        prompt_micros_per_million: price(),
        answer_micros_per_million: price(),
    };
    let settings = Settings {
        failures_max: random.within(1, 5) as u32,
        ..Settings::default()
    };
    Server {
        breaker: Breaker::new(settings),
        mood: Mood::Good,
        price,
        answer_ms: random.spread(200, 20_000),
    }
}

fn client(random: &mut Random) -> Client {
    let mut share = || [0, 10, 50, 100][random.below(4) as usize];
    let (leaves, waits, insists, stays) = (share().max(10), share(), share() / 2, share() / 4);
    Client {
        pause_ms: random.spread(20 * SECOND, 20 * MINUTE),
        deadlines: random.one_in(2),
        leaves,
        waits,
        insists,
        stays,
    }
}

fn rule(random: &mut Random, number: usize, clients: usize) -> Rule {
    let mut cap = |scale: u64| Cap {
        tokens: (!random.one_in(3)).then(|| random.spread(200, 200_000) * scale),
        micros: random
            .one_in(2)
            .then(|| random.spread(10, 1_000_000) * scale),
    };
    let (day, month) = (cap(1), cap(3));
    let names = |random: &mut Random| -> Vec<String> {
        if random.one_in(2) {
            return Vec::new();
        }
        let some = random.within(1, clients as u64);
        (0..some).map(|client| format!("client-{client}")).collect()
    };
    Rule {
        name: format!("budget-{number}"),
        clients: names(random),
        tasks: Vec::new(),
        each_client: random.one_in(3),
        day,
        month,
        slope: Slope {
            from_percent: random.within(0, 100) as u8,
            raise: random.below(100) as f32 / 100.0,
        },
    }
}

impl Day {
    /// The day of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let clients: Vec<Client> = (0..random.within(1, 10))
            .map(|_| client(&mut random))
            .collect();
        let servers: Vec<Server> = (0..random.within(1, 3))
            .map(|_| server(&mut random))
            .collect();
        let rules: Vec<Rule> = (0..random.below(4) as usize)
            .map(|number| rule(&mut random, number, clients.len()))
            .collect();
        // Some begin shortly before a month ends.
        let day = if random.one_in(3) {
            20_423
        } else {
            random.within(20_000, 21_000)
        };
        let wall_ms = day * DAY + random.below(DAY);
        let moment = Moment {
            wall_ms,
            ran_ms: 0,
            starts: 1,
        };
        let budgets = Budgets::new(rules.clone(), moment);
        let line_max = (
            random.within(1, 200) as usize,
            random.spread(2_000, 2_000_000),
        );
        let target = random.one_in(2).then(|| random.below(60) as f32 / 100.0);
        let mut world = Self {
            now_ms: 0,
            events: BinaryHeap::new(),
            scheduled: 0,
            requests: Vec::new(),
            open: Vec::new(),
            servers,
            link_up: true,
            link_up_ms: random.spread(5 * SECOND, 3 * HOUR),
            link_down_ms: random.spread(SECOND, HOUR),
            budget_rules: rules,
            disk: budgets.kept(),
            budgets,
            write_due: false,
            charges: Charges::default(),
            line: Line::new(line_max.0, line_max.1),
            line_max,
            wait_max_ms: random.spread(10 * MINUTE, 3 * DAY),
            calls: BTreeMap::new(),
            called: 0,
            share: Share::new(random.within(20, 90) as f32 / 100.0, target),
            cascade: random.one_in(3),
            calls_max: random.spread(1, 32) as usize,
            life: 0,
            alive: true,
            crash_ms: random.spread(MINUTE, 4 * HOUR),
            wall_ms,
            clock_off_ms: 0,
            clock_is_right: !random.one_in(3),
            starts: 1,
            off_ms: 0,
            asking: true,
            report: LinkReport {
                days: 1,
                ..LinkReport::default()
            },
            clients,
            random,
        };
        for client in 0..world.clients.len() {
            let pause = world.random.pause(world.clients[client].pause_ms);
            world.after(pause, Event::Ask(client));
        }
        let pause = world.random.pause(world.link_up_ms);
        world.after(pause, Event::Link);
        for server in 0..world.servers.len() {
            let pause = world.random.pause(HOUR);
            world.after(pause, Event::Mood(server));
        }
        // Each start of the machine excuses a wrong clock for a day.
        if world
            .random
            .one_in(if world.clock_is_right { 2 } else { 8 })
        {
            let pause = world.random.pause(world.crash_ms);
            world.after(pause, Event::Crash);
        }
        if !world.clock_is_right {
            world.after(30 * MINUTE, Event::Clock);
        }
        world
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.scheduled += 1;
        let at_ms = self.now_ms + ms.max(1);
        self.events.push(Reverse((at_ms, self.scheduled, event)));
    }

    fn moment(&self) -> Moment {
        let right_ms = self.wall_ms + self.now_ms;
        Moment {
            wall_ms: right_ms.saturating_add_signed(self.clock_off_ms),
            ran_ms: self.now_ms - self.off_ms,
            starts: self.starts,
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            threshold: self.share.threshold(),
            cascade: self.cascade,
        }
    }

    /// Has the day happen.
    ///
    /// # Errors
    /// What did not hold.
    pub fn run(mut self) -> Result<LinkReport, Broken> {
        let mut left = DRAIN_EVENTS_MAX;
        while let Some(Reverse((at_ms, _, event))) = self.events.pop() {
            if self.asking && at_ms >= DAY {
                self.rest();
            }
            self.now_ms = at_ms;
            self.report.events += 1;
            self.happen(event).map_err(|broken| self.at(&broken))?;
            if !self.asking {
                left -= 1;
                if left == 0 {
                    return Err(self.at("it never ends"));
                }
            }
        }
        let at = |broken: &str| Err(self.at(broken));
        match self.open.first() {
            Some(&request) => at(&format!("never ended: {:?}", self.requests[request])),
            None if !self.calls.is_empty() => at("questions are left"),
            None if !self.line.is_empty() => at("places in line are left"),
            None => Ok(self.report),
        }
    }

    fn at(&self, broken: &str) -> Broken {
        let hours = self.now_ms as f64 / HOUR as f64;
        format!(
            "after {} events, at {hours:.3} h: {broken}",
            self.report.events
        )
    }

    /// The 24 hours are over: everything works, and nobody asks any more.
    fn rest(&mut self) {
        self.asking = false;
        self.link_up = true;
        for server in &mut self.servers {
            server.mood = Mood::Good;
            server.breaker.network_changed(self.now_ms);
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Ask(client) if self.asking => {
                let burst = self.random.one_in(20);
                let count = if burst { self.random.within(5, 30) } else { 1 };
                for _ in 0..count {
                    if self.alive {
                        self.ask(client)?;
                    }
                }
                let pause = self.random.pause(self.clients[client].pause_ms);
                self.after(pause, Event::Ask(client));
            }
            Event::Link if self.asking => {
                self.link_up = !self.link_up;
                let mean = if self.link_up {
                    // The routes have changed, which andond is told.
                    for server in &mut self.servers {
                        server.breaker.network_changed(self.now_ms);
                    }
                    self.link_up_ms
                } else {
                    self.report.link_downs += 1;
                    self.break_calls();
                    self.link_down_ms
                };
                let pause = self.random.pause(mean);
                self.after(pause, Event::Link);
            }
            Event::Mood(server) if self.asking => {
                let moods = [
                    Mood::Good,
                    Mood::Good,
                    Mood::Broken,
                    Mood::Failing,
                    Mood::Limited,
                    Mood::Slow,
                ];
                let mood = moods[self.random.below(moods.len() as u64) as usize];
                self.servers[server].mood = mood;
                let mean = if mood == Mood::Good {
                    HOUR
                } else {
                    10 * MINUTE
                };
                let pause = self.random.pause(mean);
                self.after(pause, Event::Mood(server));
            }
            Event::Local(request, life) if life == self.life => self.local_ends(request)?,
            Event::Call(number) => self.call_ends(number)?,
            Event::Look(request, looks) if looks == self.requests[request].looks => {
                self.look(request)?;
            }
            Event::Deadline(request) if self.requests[request].state != State::Ended => {
                self.drop_call(request)?;
                self.end(request, End::Expired)?;
            }
            Event::Patience(request) => self.patience_ends(request)?,
            Event::Write(life) if life == self.life => {
                self.write_due = false;
                self.disk = self.budgets.kept();
            }
            Event::Crash if self.asking => self.crash()?,
            Event::Start => self.start()?,
            Event::Clock if self.asking => {
                let most = [MINUTE, HOUR, DAY, 60 * DAY][self.random.below(4) as usize];
                let off_ms = self.random.below(2 * most) as i64 - most as i64;
                self.clock_off_ms = if self.random.one_in(4) { 0 } else { off_ms };
                let pause = self.random.pause(2 * HOUR);
                self.after(pause, Event::Clock);
            }
            Event::Ask(_)
            | Event::Link
            | Event::Mood(_)
            | Event::Local(..)
            | Event::Look(..)
            | Event::Deadline(_)
            | Event::Write(_)
            | Event::Crash
            | Event::Clock => {}
        }
        Ok(())
    }

    /// What is not on the disk is gone: what the servers charge for what is under way, nobody will hear of.
    fn crash(&mut self) -> Result<(), Broken> {
        self.report.crashes += 1;
        self.alive = false;
        self.life += 1;
        for (_, call) in std::mem::take(&mut self.calls) {
            self.charge(&call)?;
        }
        self.line = Line::new(self.line_max.0, self.line_max.1);
        for &request in &self.open {
            let request = &mut self.requests[request];
            (request.state, request.place) = (State::Kept, None);
            (request.drafted, request.failures) = (false, 0);
            request.looks += 1;
        }
        self.write_due = false;
        let down_ms = if self.random.one_in(3) {
            // It is the machine that was off.
            self.starts += 1;
            let off_ms = self.random.spread(10 * SECOND, HOUR);
            self.off_ms += off_ms;
            off_ms
        } else {
            self.random.spread(100, 10 * SECOND)
        };
        self.after(down_ms, Event::Start);
        Ok(())
    }

    /// The daemon goes on with what was kept, in the order in which it came.
    fn start(&mut self) -> Result<(), Broken> {
        self.alive = true;
        self.budgets = Budgets::restored(self.budget_rules.clone(), self.disk.clone());
        for server in &mut self.servers {
            server.breaker = Breaker::new(Settings::default());
        }
        let mut kept = self.open.clone();
        kept.sort_by_key(|request| self.requests[*request].number);
        for request in kept {
            self.report.respooled += 1;
            self.requests[request].number = self.line.number();
            self.submit(request)?;
        }
        if self.asking {
            let pause = self.random.pause(self.crash_ms);
            self.after(pause, Event::Crash);
        }
        Ok(())
    }

    fn end(&mut self, number: usize, end: End) -> Result<(), Broken> {
        if self.requests[number].state == State::Ended {
            let request = &self.requests[number];
            return Err(format!("ended twice: {request:?}"));
        }
        self.requests[number].state = State::Ended;
        self.leave(number);
        self.open.retain(|open| *open != number);
        let request = self.requests[number];
        self.report.ended[end as usize] += 1;
        if request.late && end == End::Cloud {
            self.report.late += 1;
        }
        let is_answer = matches!(end, End::Local | End::Cloud | End::Fallback);
        if request.policy != Policy::Cloud && !is_answer && end != End::Expired {
            return Err(format!(
                "{end:?} though it could be answered here: {request:?}"
            ));
        }
        if end == End::Cloud && (!request.leaves || request.policy == Policy::Local) {
            return Err(format!("answered where it may not go: {request:?}"));
        }
        let too_late = request.deadline_ms.is_some_and(|at_ms| self.now_ms > at_ms);
        if too_late && is_answer {
            return Err(format!("answered after its deadline: {request:?}"));
        }
        Ok(())
    }
}

/// Has days happen from `seed` on.
///
/// # Errors
/// What did not hold, and on which day.
pub fn campaign(seed: u64, days: u64) -> Result<LinkReport, String> {
    let mut all = LinkReport::default();
    for seed in seed..seed + days {
        let report = Day::new(seed).run().map_err(|broken| {
            format!(
                "seed {seed}: {broken}\nagain: cargo xtask sim --seed {seed} --days 1 --events 0"
            )
        })?;
        all.add(&report);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::{Day, campaign};

    #[test]
    fn days_lose_nothing_spend_no_more_and_keep_the_order() {
        let report = campaign(1, 60).unwrap_or_else(|broken| panic!("{broken}"));
        println!("{report}");
        // What never happens is not tested.
        for (what, count) in report.outcomes() {
            assert!(count > 0, "no request {what}");
        }
        assert!(report.late > 0 && report.stopped > 0 && report.respooled > 0);
        assert!(report.over > 0 && report.behind > 0 && report.broken > 0);
    }

    #[test]
    fn a_seed_says_everything() {
        let run = || Day::new(7).run().expect("a sound day").to_string();
        assert_eq!(run(), run());
    }
}
