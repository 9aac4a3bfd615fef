//! A model of the engine: what it keeps of each answer, and how long its passes take.
//!
//! It takes what the generator of andon-engine takes and refuses what that refuses; it computes
//! nothing. Its speed drifts, as that of a machine that is warm and shared does.

use std::collections::BTreeMap;

use andon_policy::scheduler::Ticket;

use crate::random::Random;

/// Tokens of a page of the KV cache.
pub const PAGE: u64 = 64;

/// How often a request gives its pages to alarms, and then not any more.
const ASIDES_MAX: u32 = 3;

/// A request as the engine is given it.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Whether it is an alarm.
    pub alarm: bool,
    /// Tokens of the prompt, and those of them that are remembered.
    pub prompt: u64,
    /// See `prompt`.
    pub cached: u64,
    /// Tokens promised to each answer.
    pub tokens_max: u64,
    /// Tokens that the answers will have.
    pub lengths: [u64; 4],
    /// How many answers.
    pub choices: usize,
}

impl Work {
    /// Pages that it may come to take.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let whole = (self.prompt + self.tokens_max).div_ceil(PAGE);
        let own = whole - self.prompt / PAGE;
        whole + own * (self.choices as u64 - 1)
    }
}

#[derive(Clone, Copy, Debug)]
struct Job {
    work: Work,
    read: u64,
    done: [u64; 4],
    parked: bool,
    /// Its pages were given away; and, once it has some again, the tokens that are still to be read again.
    aside: bool,
    again: u64,
    /// How often they were.
    asides: u32,
}

impl Job {
    fn reads(&self) -> bool {
        self.unread() > 0
    }

    /// Tokens to read before it answers.
    fn unread(&self) -> u64 {
        if self.again > 0 {
            self.again
        } else {
            self.work.prompt - self.read
        }
    }

    /// Pages that hold what it has come to.
    fn held(&self) -> u64 {
        let work = &self.work;
        let done = &self.done[..work.choices];
        match done.iter().max() {
            _ if self.aside => 0,
            // One answer has all of the prompt, the others what it has behind the prompt's last whole page.
            Some(&most) if self.read == work.prompt => {
                let own = |done: &u64| (work.prompt + done).div_ceil(PAGE) - work.prompt / PAGE;
                let all = (work.prompt + most).div_ceil(PAGE);
                all + done.iter().map(own).sum::<u64>() - own(&most)
            }
            _ => self.read.div_ceil(PAGE),
        }
    }

    fn open(&self) -> u64 {
        let answers = self.work.lengths.iter().zip(&self.done);
        let open = answers
            .take(self.work.choices)
            .filter(|(all, done)| done < all);
        open.count() as u64
    }
}

/// What a pass did to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// Its prompt is read.
    Read(Ticket),
    /// What it had lost is read again.
    Again(Ticket),
    /// One of its answers got a token.
    Token(Ticket),
    /// One of its answers, not the last, is complete.
    Choice(Ticket),
    /// It is over.
    Over(Ticket),
}

/// A pass under way.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// Tokens of each prompt that it reads.
    pub reads: Vec<(Ticket, u64)>,
    /// Answers that get a token, by their requests.
    pub decodes: Vec<Ticket>,
    /// Answers that get a token.
    pub answers: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// What it takes.
    pub took_us: u64,
    /// Whether an alarm may end it before it is done.
    pub patient: bool,
}

/// The engine.
#[derive(Clone, Debug)]
pub struct Engine {
    jobs: BTreeMap<Ticket, Job>,
    pages: u64,
    pages_for_alarms: u64,
    answers_max: u64,
    /// Of a pass, of an answer in it and of a token of a prompt, in nanoseconds.
    costs: [u64; 3],
    /// Its slowness now, in percent.
    drift: u64,
    given_up: bool,
}

impl Engine {
    /// An engine of some speed, whose cache has so many pages, some of them for alarms.
    pub fn new(random: &mut Random, pages: u64, pages_for_alarms: u64, answers_max: u64) -> Self {
        let factor = random.spread(1, 16);
        Self {
            jobs: BTreeMap::new(),
            pages,
            pages_for_alarms,
            answers_max,
            costs: [3_000_000 * factor, 900_000 * factor, 350_000 * factor],
            drift: 100,
            given_up: false,
        }
    }

    /// Time of a pass with so many answers and no prompt, as slow as it can be.
    #[must_use]
    pub fn step_us_max(&self, answers: u64) -> u64 {
        (self.costs[0] + self.costs[1] * answers) / 1000 * 150 * 115 / 10_000
    }

    /// Pages that may be taken.
    fn pages_due(&self) -> u64 {
        let jobs = self.jobs.values().filter(|job| !job.aside);
        jobs.map(|job| job.work.pages()).sum()
    }

    /// Whether there is room for what a request may come to take. Some is kept for alarms, as long as it would fit without.
    fn has_room(&self, work: &Work) -> bool {
        let kept = match work.alarm {
            true => 0,
            false => self.pages_for_alarms.min(self.pages - work.pages()),
        };
        self.pages_due() + work.pages() + kept <= self.pages
    }

    /// Takes a request; false if there is no room for it.
    pub fn start(&mut self, ticket: Ticket, work: Work) -> bool {
        if !self.has_room(&work) || self.resident() + work.choices as u64 > self.answers_max {
            return false;
        }
        let job = Job {
            work,
            read: work.cached,
            done: [0; 4],
            parked: false,
            aside: false,
            again: 0,
            asides: 0,
        };
        assert!(self.jobs.insert(ticket, job).is_none(), "started twice");
        true
    }

    /// Leaves a request out, or lets it take part again.
    pub fn park(&mut self, ticket: Ticket, parked: bool) {
        let job = self.jobs.get_mut(&ticket).expect("a resident request");
        assert_ne!(job.parked, parked, "it was so already");
        job.parked = parked;
    }

    /// Gives away the pages of a request, if it has some of its own.
    pub fn set_aside(&mut self, ticket: Ticket) {
        let job = self.jobs.get_mut(&ticket).expect("a resident request");
        assert!(!job.aside && job.work.choices == 1, "it has none to give");
        (job.aside, job.parked) = (true, true);
        job.asides += 1;
        if job.read < job.work.prompt {
            job.read = 0;
        } else {
            job.again = job.work.prompt + job.done[0].saturating_sub(1);
        }
    }

    /// Whether nobody has pages.
    #[must_use]
    pub fn all_aside(&self) -> bool {
        self.jobs.values().all(|job| job.aside)
    }

    /// Lets a parked request take part again; false if there is no room for what it gave away.
    pub fn resume(&mut self, ticket: Ticket) -> bool {
        let job = &self.jobs[&ticket];
        if job.aside && !self.has_room(&job.work) {
            return false;
        }
        self.park(ticket, false);
        if let Some(job) = self.jobs.get_mut(&ticket) {
            job.aside = false;
        }
        true
    }

    /// Whether a request has pages that it could give to an alarm.
    #[must_use]
    pub fn can_give(&self, ticket: Ticket) -> u64 {
        let job = &self.jobs[&ticket];
        let may = !job.work.alarm && job.work.choices == 1 && job.asides < ASIDES_MAX;
        let gives = may && !job.aside;
        if gives { job.work.pages() } else { 0 }
    }

    /// Pages in all.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.jobs.clear();
        self.given_up = false;
    }

    /// Whether the next pass over prompts that are not urgent is made whoever interrupts.
    #[must_use]
    pub fn goes_through(&self) -> bool {
        self.given_up
    }

    /// Time of reading a prompt of so many tokens alone, as slow as it can be: in passes of 32 tokens and more.
    #[must_use]
    pub fn read_us_max(&self, tokens: u64) -> u64 {
        let passes = tokens / 32 + 1;
        (self.costs[0] * passes + self.costs[2] * tokens) / 1000 * 150 * 115 / 10_000
    }

    /// Pages that are not promised to anyone.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.pages - self.pages_due()
    }

    /// Forgets a request.
    pub fn end(&mut self, ticket: Ticket) {
        self.jobs.remove(&ticket).expect("a resident request");
    }

    /// Requests under way.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// Answers under way.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.jobs.values().map(Job::open).sum()
    }

    /// Answers that take part in passes: of alarms, and of others.
    #[must_use]
    pub fn running(&self) -> (u64, u64) {
        let running = || self.jobs.values().filter(|job| !job.parked);
        let of = |alarm: bool| -> u64 {
            let jobs = running().filter(|job| job.work.alarm == alarm);
            jobs.map(Job::open).sum()
        };
        (of(true), of(false))
    }

    /// Whether what there is of every request, whatever it was promised, is within bounds.
    #[must_use]
    pub fn fits(&self) -> bool {
        let held: u64 = self.jobs.values().map(Job::held).sum();
        held <= self.pages && self.resident() <= self.answers_max
    }

    /// Begins a pass; `None` if nobody takes part.
    pub fn begin(&mut self, readers: &[Ticket], chunk: u64, random: &mut Random) -> Option<Pass> {
        let mut pass = Pass::default();
        let mut left = chunk;
        let mut urgent = false;
        for ticket in readers {
            let job = self.jobs.get(ticket).expect("a resident request");
            assert!(!job.parked && job.reads(), "it reads nothing");
            if left == 0 {
                break;
            }
            let tokens = left.min(job.unread());
            left -= tokens;
            urgent |= job.work.alarm;
            pass.reads.push((*ticket, tokens));
            pass.prompt_tokens += tokens;
        }
        for (&ticket, job) in &self.jobs {
            if !job.parked && !job.reads() {
                pass.decodes.push(ticket);
                pass.answers += job.open();
            }
        }
        if pass.answers == 0 && pass.prompt_tokens == 0 {
            return None;
        }
        pass.patient = pass.prompt_tokens > 0 && !urgent;
        self.drift = (self.drift + random.within(0, 2))
            .saturating_sub(1)
            .clamp(70, 150);
        let slow = self.drift * random.within(90, 115);
        let ns = self.costs[0] + self.costs[1] * pass.answers + self.costs[2] * pass.prompt_tokens;
        pass.took_us = (ns / 1000 * slow / 10_000).max(1);
        Some(pass)
    }

    /// Whether a pass under way can be ended for an alarm.
    #[must_use]
    pub fn may_give_up(&self, pass: &Pass) -> bool {
        pass.patient && !self.given_up
    }

    /// Gives a pass up; nothing has happened.
    pub fn give_up(&mut self) {
        self.given_up = true;
    }

    /// Ends a pass, and says what happened.
    pub fn finish(&mut self, pass: &Pass, happened: &mut Vec<Happened>) {
        if pass.patient {
            self.given_up = false;
        }
        for &(ticket, tokens) in &pass.reads {
            let job = self.jobs.get_mut(&ticket).expect("a resident request");
            if job.again > 0 {
                job.again -= tokens;
                if job.again == 0 {
                    happened.push(Happened::Again(ticket));
                }
                continue;
            }
            job.read += tokens;
            if !job.reads() {
                happened.push(Happened::Read(ticket));
                self.token(ticket, happened);
            }
        }
        for &ticket in &pass.decodes {
            self.token(ticket, happened);
        }
    }

    /// Gives each open answer of a request a token.
    fn token(&mut self, ticket: Ticket, happened: &mut Vec<Happened>) {
        let job = self.jobs.get_mut(&ticket).expect("a resident request");
        for choice in 0..job.work.choices {
            if job.done[choice] < job.work.lengths[choice] {
                job.done[choice] += 1;
                happened.push(Happened::Token(ticket));
                let over = job.done[choice] == job.work.lengths[choice];
                if job.open() == 0 {
                    happened.push(Happened::Over(ticket));
                } else if over {
                    happened.push(Happened::Choice(ticket));
                }
            }
        }
        if job.open() == 0 {
            self.jobs.remove(&ticket);
        }
    }
}
