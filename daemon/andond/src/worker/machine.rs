//! Who computes, where several models are loaded: one at a time, so that their threads never get into each other's way.
//!
//! A worker takes the machine before a pass and keeps it from pass to pass while nobody else wants it, which costs a look
//! at a number. Who goes first is for [`Turns`] to say.
//!
//! Invariant: at most one seat has the machine. One that waits for it is woken when it gets it and when an alarm comes, and
//! looks at its own requests again every [`LOOK_AGAIN`], so that neither a deadline nor a client that goes away waits for
//! another model.
//!
//! The machine notes when whoever has it began with a pass: those who wait for it hang if that one does, and not else.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use andon_policy::turns::{SeatId, Turns};
use andon_wire::Priority;

/// How long one waits for the machine before it looks at its own requests again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long the machine is left free for an alarm that has become ready: its model's thread has to wake up before it can ask.
const ALARM_COMES: Duration = Duration::from_millis(2);

/// The machine, which one model computes on at a time.
#[derive(Debug)]
pub(crate) struct Machine {
    state: Mutex<State>,
    changed: Condvar,
    /// How urgent the most urgent is of those that wait, see [`urgency`]; [`NOBODY`] if none does.
    wanted: AtomicU8,
    /// How many alarms have become ready.
    alarms: AtomicU64,
    /// Until when one of them is waited for, in microseconds since `epoch`; 0 if none is.
    alarm_until_us: AtomicU64,
    /// When whoever has it last took it, in milliseconds since `epoch`.
    taken_ms: AtomicU64,
    epoch: Instant,
}

#[derive(Debug, Default)]
struct State {
    turns: Turns,
    holder: Option<SeatId>,
    seats: u32,
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// More than any [`urgency`].
const NOBODY: u8 = u8::MAX;

/// Less is more urgent.
const fn urgency(priority: Priority) -> u8 {
    match priority {
        Priority::Alarm => 0,
        Priority::Interactive => 1,
        Priority::Batch => 2,
    }
}

/// How urgent the most urgent of some is; of none as little as can be.
pub(super) fn most_urgent(all: impl Iterator<Item = Priority>) -> Priority {
    all.min_by_key(|&priority| urgency(priority))
        .unwrap_or(Priority::Batch)
}

impl Default for Machine {
    fn default() -> Machine {
        Machine {
            state: Mutex::default(),
            changed: Condvar::new(),
            wanted: AtomicU8::new(NOBODY),
            alarms: AtomicU64::new(0),
            alarm_until_us: AtomicU64::new(0),
            taken_ms: AtomicU64::new(0),
            epoch: Instant::now(),
        }
    }
}

impl Machine {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place among those that may have the machine.
    pub(crate) fn seat(self: &Arc<Machine>) -> Seat {
        let mut state = self.state();
        state.seats = state.seats.wrapping_add(1);
        Seat {
            id: SeatId(state.seats),
            machine: Arc::clone(self),
            has: false,
            wishes: false,
            alarms_seen: 0,
        }
    }

    /// An alarm has become ready: whoever waits looks again at how urgent it is, and nothing else is begun for a moment.
    pub(crate) fn alarm(&self) {
        let until_us = self.now_us().saturating_add(micros(ALARM_COMES));
        self.alarm_until_us.store(until_us, Ordering::Relaxed);
        self.alarms.fetch_add(1, Ordering::Relaxed);
        if self.is_wanted() {
            drop(self.state());
            self.changed.notify_all();
        }
    }

    /// How many alarms have become ready. One more than before a pass ends that pass, if it reads a prompt.
    pub(crate) fn alarms(&self) -> u64 {
        self.alarms.load(Ordering::Relaxed)
    }

    fn now_us(&self) -> u64 {
        micros(self.epoch.elapsed())
    }

    /// For how long an alarm is waited for that has become ready; `None` if none is.
    fn alarm_comes(&self) -> Option<Duration> {
        let until_us = self.alarm_until_us.load(Ordering::Relaxed);
        if until_us == 0 {
            return None;
        }
        let left = until_us.checked_sub(self.now_us()).filter(|left| *left > 0);
        left.map(Duration::from_micros)
    }

    /// Whether nobody computes.
    pub(crate) fn is_idle(&self) -> bool {
        self.state().holder.is_none()
    }

    /// How long ago whoever has it began with the pass that it makes.
    pub(crate) fn taken(&self) -> Duration {
        let taken = Duration::from_millis(self.taken_ms.load(Ordering::Relaxed));
        self.epoch.elapsed().saturating_sub(taken)
    }

    fn note_taken(&self) {
        let now_ms = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.taken_ms.store(now_ms, Ordering::Relaxed);
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) != NOBODY
    }

    fn note_wishes(&self, state: &State) {
        let wanted = state.turns.most_urgent().map_or(NOBODY, urgency);
        self.wanted.store(wanted, Ordering::Relaxed);
    }
}

/// A worker's place. Dropped, it lets go of the machine.
#[derive(Debug)]
pub(crate) struct Seat {
    id: SeatId,
    machine: Arc<Machine>,
    has: bool,
    wishes: bool,
    /// How many alarms there had been when it was last told to wait.
    alarms_seen: u64,
}

impl Seat {
    /// Takes the machine for something as urgent as this, or keeps it. False if another goes first; then
    /// [`Seat::wait`] waits.
    pub(crate) fn take(&mut self, priority: Priority) -> bool {
        let machine = &self.machine;
        if priority == Priority::Alarm {
            machine.alarm_until_us.store(0, Ordering::Relaxed);
        }
        let alarm_comes = machine.alarm_comes().is_some();
        if self.has && !machine.is_wanted() && !alarm_comes {
            machine.note_taken();
            return true;
        }
        let mut state = machine.state();
        let had = std::mem::take(&mut self.has);
        if !had && state.holder.is_some() {
            if state.holder != Some(self.id) {
                state.turns.wish(self.id, priority);
                machine.note_wishes(&state);
            }
        } else {
            // Nobody has it, or this one is through with a pass.
            state.turns.wish(self.id, priority);
            state.holder = if alarm_comes {
                None
            } else {
                state.turns.pass_on()
            };
            machine.note_wishes(&state);
        }
        self.has = state.holder == Some(self.id);
        self.wishes = !self.has;
        if self.has {
            machine.note_taken();
        }
        // Whoever asks has just looked at its requests: an alarm that comes from here on is to be seen at once.
        self.alarms_seen = machine.alarms();
        drop(state);
        if had && !self.has {
            machine.changed.notify_all();
        }
        self.has
    }

    /// Takes the machine, or keeps it, if nobody else has it or wants it.
    pub(crate) fn take_idle(&mut self) -> bool {
        let mut state = self.machine.state();
        let free = state.holder.is_none_or(|holder| holder == self.id);
        if !free || state.turns.waiting() > 0 {
            drop(state);
            self.release();
            return false;
        }
        state.holder = Some(self.id);
        self.machine.note_taken();
        drop(state);
        self.has = true;
        self.wishes = false;
        true
    }

    /// Waits until the machine is there, or it is time to look at the requests again.
    pub(crate) fn wait(&mut self) {
        let machine = &self.machine;
        let state = machine.state();
        if state.holder == Some(self.id) || machine.alarms() != self.alarms_seen {
            return;
        }
        // Where the machine is left free for an alarm that does not come, whoever looks first has it.
        let wait = machine.alarm_comes().unwrap_or(LOOK_AGAIN);
        drop(
            machine
                .changed
                .wait_timeout(state, wait.min(LOOK_AGAIN))
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Takes the machine, however long that takes, for something as urgent as `wanted` says whenever it is asked; false once
    /// that says that nothing is.
    pub(crate) fn take_waiting(&mut self, mut wanted: impl FnMut() -> Option<Priority>) -> bool {
        while let Some(priority) = wanted() {
            if self.take(priority) {
                return true;
            }
            self.wait();
        }
        self.release();
        false
    }

    /// Lets go of the machine, or of the wish for it.
    pub(crate) fn release(&mut self) {
        if !self.has && !self.wishes {
            return;
        }
        let mut state = self.machine.state();
        state.turns.withdraw(self.id);
        if state.holder == Some(self.id) {
            state.holder = state.turns.pass_on();
        }
        self.machine.note_wishes(&state);
        drop(state);
        self.machine.changed.notify_all();
        self.has = false;
        self.wishes = false;
    }

    /// Whether others wait for the machine with something at least as urgent.
    pub(crate) fn is_wanted(&self, priority: Priority) -> bool {
        self.machine.wanted.load(Ordering::Relaxed) <= urgency(priority)
    }

    /// See [`Machine::alarms`].
    pub(crate) fn alarms(&self) -> u64 {
        self.machine.alarms()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.release();
        self.machine.state().turns.forget(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::{Machine, Seat};
    use andon_wire::Priority;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    fn seats() -> (Arc<Machine>, Seat, Seat) {
        let machine = Arc::new(Machine::default());
        let (one, two) = (machine.seat(), machine.seat());
        (machine, one, two)
    }

    #[test]
    fn one_alone_keeps_it() {
        let (machine, mut one, two) = seats();
        for _ in 0..3 {
            assert!(one.take(Priority::Batch) && !one.is_wanted(Priority::Batch));
        }
        assert!(!machine.is_idle());
        one.release();
        assert!(machine.is_idle());
        drop(two);
    }

    #[test]
    fn equals_pass_it_to_and_fro_and_the_more_urgent_keeps_it() {
        let (_, mut one, mut two) = seats();
        assert!(one.take(Priority::Interactive));
        assert!(!two.take(Priority::Interactive));
        assert!(one.is_wanted(Priority::Interactive) && one.is_wanted(Priority::Batch));
        // For what is more urgent nobody is waited for.
        assert!(!one.is_wanted(Priority::Alarm));
        assert!(!one.take(Priority::Interactive));
        assert!(two.take(Priority::Interactive));
        // Now the first waits; what is more urgent goes on before it.
        for _ in 0..4 {
            assert!(two.take(Priority::Alarm));
        }
        two.release();
        assert!(one.take(Priority::Batch) && !two.is_wanted(Priority::Batch));
    }

    #[test]
    fn who_goes_away_holds_nobody_up() {
        let (machine, mut one, mut two) = seats();
        assert!(one.take(Priority::Batch) && !two.take(Priority::Batch));
        drop(one);
        two.wait();
        assert!(two.take(Priority::Batch));
        drop(two);
        assert!(machine.is_idle());
        let mut three = machine.seat();
        assert!(three.take(Priority::Batch));
        let mut four = machine.seat();
        let mut asked = 0;
        assert!(!four.take_waiting(|| {
            asked += 1;
            (asked < 3).then_some(Priority::Batch)
        }));
        assert!(!three.is_wanted(Priority::Batch));
        // What it has to do may become urgent while it waits.
        let mut priorities = [Priority::Batch, Priority::Alarm].into_iter();
        assert!(!four.take_waiting(|| priorities.next()));
        assert!(!four.take(Priority::Batch) && !four.take(Priority::Alarm));
        assert!(three.is_wanted(Priority::Alarm));
        three.release();
        assert!(four.take_waiting(|| Some(Priority::Batch)));
    }

    #[test]
    fn an_alarm_between_asking_and_waiting_is_seen_at_once() {
        let (machine, mut one, mut two) = seats();
        assert!(one.take(Priority::Batch) && !two.take(Priority::Batch));
        machine.alarm();
        // Were it slept through, this would never come to its end: each look would come after the whole time.
        let began = std::time::Instant::now();
        (0..1000).for_each(|_| two.wait());
        assert!(began.elapsed() < super::LOOK_AGAIN * 1000);
        // Until it asks again.
        assert!(!two.take(Priority::Batch));
        assert_eq!(two.alarms_seen, machine.alarms());
    }

    #[test]
    fn what_an_alarm_ended_is_not_begun_again_before_that_alarm_has_come() {
        let (machine, mut one, mut two) = seats();
        assert!(one.take(Priority::Batch));
        // As if there were all the time.
        let comes = |machine: &Machine| {
            machine.alarm();
            machine.alarm_until_us.store(u64::MAX, Ordering::Relaxed);
        };
        comes(&machine);
        assert!(!one.take(Priority::Batch) && machine.is_idle());
        assert!(two.take(Priority::Alarm));
        two.release();
        assert!(one.take(Priority::Batch));
        // One that does not come is not waited for.
        comes(&machine);
        assert!(!one.take(Priority::Batch) && !two.take(Priority::Interactive));
        machine.alarm_until_us.store(1, Ordering::Relaxed);
        one.wait();
        assert!(two.take(Priority::Interactive) && !one.take(Priority::Batch));
    }

    #[test]
    fn who_has_it_begins_anew_with_each_pass() {
        let (machine, mut one, mut two) = seats();
        let rest = || thread::sleep(Duration::from_millis(3));
        assert!(one.take(Priority::Batch));
        rest();
        let before = machine.taken();
        assert!(before >= Duration::from_millis(2));
        // Who is refused it changes nothing.
        assert!(!two.take(Priority::Batch) && machine.taken() >= before);
        one.release();
        assert!(two.take(Priority::Batch) && machine.taken_ms.load(Ordering::Relaxed) >= 3);
        two.release();
        rest();
        let at = machine.taken_ms.load(Ordering::Relaxed);
        assert!(one.take_idle() && machine.taken_ms.load(Ordering::Relaxed) > at);
    }

    #[test]
    fn never_do_two_have_it() {
        let machine = Arc::new(Machine::default());
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for number in 0..4 {
                let (machine, inside) = (&machine, &inside);
                scope.spawn(move || {
                    let mut seat = machine.seat();
                    let priorities = [Priority::Alarm, Priority::Interactive, Priority::Batch];
                    for turn in 0..300 {
                        assert!(seat.take_waiting(|| Some(priorities[(turn + number) % 3])));
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        if turn % 7 == number {
                            seat.release();
                        }
                    }
                });
            }
        });
        assert!(machine.is_idle());
    }
}
