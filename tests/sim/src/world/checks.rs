//! What must hold.

use andon_policy::scheduler::{DUTY_MS_MAX, HOLD_MS_MAX, Scheduler, Ticket};
use andon_policy::throttle::{Restraint, Throttle};
use andon_wire::Priority;

use super::{Broken, Event, HOLD, LAYERS, World, lane_of};
use crate::ledger::State;

impl World {
    /// Notes by when an alarm is to be prepared that is the only one: when its lane is through with what it has in hand.
    pub(super) fn note_preparation(&mut self, number: usize) {
        let alarms = self.open.iter().filter(|&&other| {
            let other_request = &self.requests[other];
            other_request.is_alarm()
        });
        let alone = alarms.count() == 1 && self.requests[number].is_alarm();
        let lane = lane_of(&self.requests, number);
        // An alarm before it may have been given up in hand.
        let lane_us = match self.lanes[lane] {
            Some(_) => self.lanes_until_us[lane],
            None => self.now_us,
        };
        let request = &mut self.requests[number];
        request.alarm.prepared_by_us = alone.then_some(lane_us + request.prepare_us);
    }

    /// Notes what an alarm may wait for, and interrupts the pass under way if it can be.
    pub(super) fn alarm_ready(&mut self, number: usize) {
        let others = self.open.iter().filter(|&&other| {
            let other_request = &self.requests[other];
            other != number && other_request.is_alarm()
        });
        let alone = others.count() == 0;
        for &other in &self.open {
            let alarm = &mut self.requests[other].alarm;
            (alarm.wait_us_max, alarm.prepared_by_us) = (None, None);
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
                // One that is made whoever interrupts: the one before was given up.
                wait_us_max = Some(self.pass_began_us + pass.took_us - self.now_us);
            }
        }
        let read_ms = self
            .engine
            .read_us_max(self.requests[number].work.prompt)
            .div_ceil(1000);
        let may_hold =
            read_ms <= HOLD_MS_MAX / 2 && self.hold.wait_ms(HOLD, read_ms as u32, now_ms) == 0;
        let alarm = &mut self.requests[number].alarm;
        alarm.ready_us = self.now_us;
        alarm.wait_us_max = wait_us_max.filter(|_| alone && may_hold);
    }

    /// What holds between any two passes.
    pub(super) fn check(&self) -> Result<(), Broken> {
        let (alarms, others) = self.engine.running();
        let places = self.config.places;
        if others > u64::from(places.shared) || alarms + others > u64::from(places.all()) {
            return Err(format!("{alarms} alarms and {others} others in a pass"));
        }
        let now_ms = self.now_ms();
        for &number in &self.open {
            let request = &self.requests[number];
            let late = request
                .deadline_ms
                .is_some_and(|deadline| deadline <= now_ms);
            if late && request.ticket.is_some() {
                return Err(format!("{request:?} goes on beyond its deadline"));
            }
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
    pub(super) fn began(&mut self) -> Result<(), Broken> {
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

    /// Whether a request that is to be started goes before one that has waited for its turn as long as it is to wait.
    pub(super) fn overtakes(&self, number: usize) -> Result<(), Broken> {
        let request = &self.requests[number];
        let (alarms, _) = self.engine.running();
        // Work that is to give way, to heat or to alarms, is waited for by nobody.
        if request.is_alarm() || self.restraint != Restraint::default() || alarms > 0 {
            return Ok(());
        }
        // The scheduler's clock is in milliseconds.
        let long_ago_us = self.now_us.saturating_sub(2_000);
        let by_us = request.patient_until_us();
        let by_us = if by_us > long_ago_us { u64::MAX } else { by_us };
        let deadline_us = request.deadline_ms.map_or(u64::MAX, |ms| ms * 1000);
        let by_us = by_us.min(deadline_us);
        for &other in &self.open {
            let waits = &self.requests[other];
            let until_us = waits.patient_until_us();
            if waits.state == State::Waiting
                && waits.ready
                && until_us < long_ago_us
                && until_us + 2_000 < by_us
            {
                return Err(format!("{request:?} overtakes {waits:?}"));
            }
        }
        Ok(())
    }

    /// Whether a request has waited for longer than is promised.
    pub(super) fn starves(&mut self, number: usize, now_us: u64) -> Result<(), Broken> {
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
}
