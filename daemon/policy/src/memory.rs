//! One budget of memory: who has been promised how much, what there is left, and who gives way when it gets short.
//!
//! Everything that the daemon keeps beyond a few fixed megabytes is promised here before it is taken, and counts in full from
//! then on, whether it has been touched or not. Two things bound promises: the budget, which does not change, and what the
//! system has left, by the last [`Reading`]. The daemon cannot do without its first model, so that is held against the budget
//! only ([`Budget::require`]); what comes later is held against both ([`Budget::reserve`]).
//!
//! Files that are mapped, such as weights, count like memory of the daemon's own. The system may take their pages back at any
//! time and so counts them among what is left; but a model whose pages are read again from the disk for every token decodes no
//! more. So they are taken off what the system says it has left.
//!
//! Where a graphics processor has no memory but the machine's, what is held there counts like any other, and once: its driver
//! takes it in full at once, so that the system has it left no longer, and none of it is among what is resident of the
//! daemon. A processor's own memory is promised by nobody.
//!
//! When memory gets short, whatever else the machine does, the daemon gives way in the order of [`Shortage`].
//!
//! Invariant: promises never exceed the budget; each is given back once, by whoever has it.

use crate::admission::Refuses;
use crate::throttle::Throttle;

/// At this share of time in which some task waited for memory caches give way, in thousandths.
pub const CACHES_STALL_PERMILLE: u16 = 100;
/// At this share idle models do.
pub const IDLE_STALL_PERMILLE: u16 = 400;
/// How long it must have been less short before the daemon goes back a step.
pub const RELEASE_MS: u64 = 10_000;
/// Most bytes that are kept of the machine's memory for others, unless that is configured.
pub const RESERVE_BYTES_MAX: u64 = 512 << 20;
/// Where nothing is kept for others: how much has to be missing for each further step.
const STEP_BYTES: i64 = 32 << 20;
/// Which share of the memory that is, if that is less.
const RESERVE_SHARE: u64 = 16;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Weights of models, in their own file or packed.
    Weights,
    /// Activations and KV caches.
    Working,
    /// What models have in the memory of a graphics processor that has none but the machine's.
    Device,
    /// Draft models, with their weights and caches.
    Draft,
    /// Vocabularies and compiled shapes of answers.
    Shapes,
    /// Earlier answers, from which guesses come.
    Answers,
    /// Pages of KV caches on their way to the disk.
    Pages,
    /// The cache of the spool's store.
    Spool,
    /// What was asked and is not answered.
    Requests,
    /// Records of answers on their way to the disk.
    Audit,
}

impl Part {
    /// How many there are.
    pub const COUNT: usize = 10;

    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Weights,
        Self::Working,
        Self::Device,
        Self::Draft,
        Self::Shapes,
        Self::Answers,
        Self::Pages,
        Self::Spool,
        Self::Requests,
        Self::Audit,
    ];

    /// The word for it in the status and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Working => "working",
            Self::Device => "device",
            Self::Draft => "draft",
            Self::Shapes => "shapes",
            Self::Answers => "answers",
            Self::Pages => "pages",
            Self::Spool => "spool",
            Self::Requests => "requests",
            Self::Audit => "audit",
        }
    }
}

/// How memory is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// A file's pages, which the system may take back.
    Mapped,
    /// The daemon's own; resident once it is touched.
    Private,
    /// The machine's, which a graphics processor's driver has taken in full.
    Device,
}

/// What does not change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of all promises together; `None` if nothing says how many there may be.
    pub bytes_max: Option<u64>,
    /// Bytes that are to be left for others.
    pub reserve_bytes: u64,
}

impl Limits {
    /// For a machine, or a group of processes, of `all` bytes, with what is configured.
    #[must_use]
    pub fn new(all: Option<u64>, budget: Option<u64>, reserve: Option<u64>) -> Self {
        let reserve_bytes = reserve.unwrap_or_else(|| {
            let share = all.map_or(0, |all| all / RESERVE_SHARE);
            share.min(RESERVE_BYTES_MAX)
        });
        let there = all.map(|all| all.saturating_sub(reserve_bytes));
        Self {
            bytes_max: match (budget, there) {
                (Some(budget), Some(there)) => Some(budget.min(there)),
                (budget, there) => budget.or(there),
            },
            reserve_bytes,
        }
    }
}

/// What the system says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Bytes that it could still give, with all pages of files counted as free; `None` if it does not say.
    pub left_bytes: Option<u64>,
    /// Bytes of the daemon's own that are resident.
    pub resident_bytes: u64,
    /// Time in which some task waited for memory, in thousandths of the last ten seconds.
    pub stall_permille: Option<u16>,
}

/// How short memory is, and so who has given way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    /// It is not.
    #[default]
    None,
    /// What can be made again: remembered pages of KV caches, compiled shapes, earlier answers in memory, pages of files that
    /// nobody reads.
    Caches,
    /// Also models that nobody asks.
    Idle,
    /// Also batch work, which neither begins nor goes on, and is refused.
    Batch,
    /// Also interactive work, which is refused and does not begin. Alarms are served.
    Interactive,
}

impl Shortage {
    /// The word for it in the status and in metrics: who gives way last of those that do.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Caches => "caches",
            Self::Idle => "idle",
            Self::Batch => "batch",
            Self::Interactive => "interactive",
        }
    }

    /// How far batch work gives way.
    #[must_use]
    pub const fn throttle(self) -> Throttle {
        match self {
            Self::None | Self::Caches | Self::Idle => Throttle::None,
            Self::Batch | Self::Interactive => Throttle::Hold,
        }
    }

    /// What is turned away.
    #[must_use]
    pub const fn refuses(self) -> Refuses {
        match self {
            Self::None | Self::Caches | Self::Idle => Refuses::Nothing,
            Self::Batch => Refuses::Batch,
            Self::Interactive => Refuses::AllButAlarms,
        }
    }

    const fn less(self) -> Self {
        match self {
            Self::None | Self::Caches => Self::None,
            Self::Idle => Self::Caches,
            Self::Batch => Self::Idle,
            Self::Interactive => Self::Batch,
        }
    }
}

/// Memory is not promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} of {bytes} bytes would be beyond {}, of which {left} bytes are left",
    .part.as_str(),
    .bound.as_str()
)]
pub struct Refusal {
    /// What it was to be for.
    pub part: Part,
    /// How much was asked for.
    pub bytes: u64,
    /// How much there is.
    pub left: u64,
    /// What stands in the way.
    pub bound: Bound,
}

/// What bounds promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The budget.
    Budget,
    /// What the system has left now, which may change.
    System,
}

impl Bound {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Budget => "the budget of memory",
            Self::System => "the memory that the system has left for andond",
        }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    limits: Limits,
    parts: [u64; Part::COUNT],
    mapped: u64,
    private: u64,
    device: u64,
    /// Of the device's, what was taken since the last reading.
    device_since: u64,
    reading: Reading,
    shortage: Shortage,
    /// When memory was last at least as short as `shortage` says.
    short_ms: u64,
    /// Whether an idle model is to go for the last reading, and none has.
    idle_due: bool,
}

impl Budget {
    /// One of which nothing is promised.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            parts: [0; Part::COUNT],
            mapped: 0,
            private: 0,
            device: 0,
            device_since: 0,
            reading: Reading::default(),
            shortage: Shortage::None,
            short_ms: 0,
            idle_due: false,
        }
    }

    /// What does not change.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Bytes promised for a part.
    #[must_use]
    pub const fn part(&self, part: Part) -> u64 {
        self.parts[part as usize]
    }

    /// Bytes promised in all.
    #[must_use]
    pub fn promised(&self) -> u64 {
        self.mapped + self.private + self.device
    }

    /// Bytes of the budget that are not promised; `None` if it has no bound.
    #[must_use]
    pub fn left_of_budget(&self) -> Option<u64> {
        let most = self.limits.bytes_max?;
        Some(most.saturating_sub(self.promised()))
    }

    /// What the system has left beside the files that are mapped and what is kept for others; `None` if it does not say.
    /// Below zero, others have taken of it.
    #[must_use]
    pub fn spare(&self) -> Option<i64> {
        let left = signed(self.reading.left_bytes?);
        Some(left - signed(self.mapped) - signed(self.limits.reserve_bytes))
    }

    /// Bytes that the system has left for more promises: what those there are have not taken yet is not. `None` if it does
    /// not say.
    #[must_use]
    pub fn left_of_system(&self) -> Option<u64> {
        let untouched = self.private.saturating_sub(self.reading.resident_bytes);
        let owed = signed(untouched) + signed(self.device_since);
        Some(u64::try_from(self.spare()? - owed).unwrap_or(0))
    }

    /// Bytes that could be promised now; `None` if nothing bounds them.
    #[must_use]
    pub fn left(&self) -> Option<u64> {
        match (self.left_of_budget(), self.left_of_system()) {
            (Some(budget), Some(system)) => Some(budget.min(system)),
            (budget, system) => budget.or(system),
        }
    }

    /// Promises memory, if the budget and the system have it.
    ///
    /// # Errors
    /// Which does not.
    pub fn reserve(&mut self, part: Part, held: Held, bytes: u64) -> Result<(), Refusal> {
        if let Some(left) = self.left_of_system().filter(|&left| bytes > left) {
            return Err(Refusal {
                part,
                bytes,
                left,
                bound: Bound::System,
            });
        }
        self.require(part, held, bytes)
    }

    /// Promises memory, if the budget has it, whatever the system says.
    ///
    /// # Errors
    /// It has not.
    pub fn require(&mut self, part: Part, held: Held, bytes: u64) -> Result<(), Refusal> {
        let promised = self.promised();
        let left = self.left_of_budget().unwrap_or(u64::MAX);
        // Numbers that large are no memory of any machine; leaving room keeps sums exact.
        let left = left.min(COUNTED_MAX.saturating_sub(promised));
        if bytes > left {
            return Err(Refusal {
                part,
                bytes,
                left,
                bound: Bound::Budget,
            });
        }
        self.parts[part as usize] += bytes;
        *self.of(held) += bytes;
        if held == Held::Device {
            self.device_since += bytes;
        }
        Ok(())
    }

    /// Takes a promise back. More than was promised is not.
    pub fn give_back(&mut self, part: Part, held: Held, bytes: u64) {
        let bytes = bytes.min(self.parts[part as usize]).min(*self.of(held));
        self.parts[part as usize] -= bytes;
        *self.of(held) -= bytes;
        if held == Held::Device {
            self.device_since = self.device_since.saturating_sub(bytes);
        }
    }

    /// What was promised as [`Held::Private`], and not taken, is [`Held::Device`] from now on: a driver has all of it. Says how
    /// much that is: no more than there was.
    pub fn take_for_device(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.min(self.private);
        self.private -= bytes;
        self.device += bytes;
        self.device_since += bytes;
        bytes
    }

    /// How short memory is.
    #[must_use]
    pub const fn shortage(&self) -> Shortage {
        self.shortage
    }

    /// Takes in what the system says; times do not run backwards. Says whether anything changed about who is to give way:
    /// that happens at once, and is taken back step by step, [`RELEASE_MS`] after the last moment at which there was a reason.
    pub fn read(&mut self, reading: Reading, now_ms: u64) -> bool {
        let before = self.shortage;
        self.reading = reading;
        self.device_since = 0;
        let wanted = self.wanted();
        self.idle_due = wanted >= Shortage::Idle;
        if wanted >= self.shortage {
            self.shortage = wanted;
            self.short_ms = now_ms;
        } else if now_ms.saturating_sub(self.short_ms) >= RELEASE_MS {
            self.shortage = self.shortage.less().max(wanted);
            self.short_ms = now_ms;
        }
        self.shortage != before
    }

    /// Whether an idle model is to go now: one for each reading that finds memory that short, since only the next one tells
    /// what its going has brought.
    pub fn take_idle(&mut self) -> bool {
        core::mem::take(&mut self.idle_due)
    }

    /// Takes in what the system has left by now, between two readings; who is to give way does not change by it.
    pub fn refresh(&mut self, left_bytes: Option<u64>, resident_bytes: u64) {
        self.reading.left_bytes = left_bytes;
        self.reading.resident_bytes = resident_bytes;
        self.device_since = 0;
    }

    /// How short memory is by the last reading: how much of what is kept for others is gone, in quarters; where nothing is
    /// kept for them, how much is missing, in steps of a fixed size.
    fn wanted(&self) -> Shortage {
        let step = match self.limits.reserve_bytes {
            0 => STEP_BYTES,
            reserve => signed(reserve) / 4,
        };
        let short = match self.spare() {
            Some(spare) if spare < -(step * 3) => Shortage::Interactive,
            Some(spare) if spare < -(step * 2) => Shortage::Batch,
            Some(spare) if spare < -step => Shortage::Idle,
            Some(spare) if spare < 0 => Shortage::Caches,
            _ => Shortage::None,
        };
        let stalled = match self.reading.stall_permille {
            Some(stall) if stall >= IDLE_STALL_PERMILLE => Shortage::Idle,
            Some(stall) if stall >= CACHES_STALL_PERMILLE => Shortage::Caches,
            _ => Shortage::None,
        };
        short.max(stalled)
    }

    const fn of(&mut self, held: Held) -> &mut u64 {
        match held {
            Held::Mapped => &mut self.mapped,
            Held::Private => &mut self.private,
            Held::Device => &mut self.device,
        }
    }
}

/// Most bytes that are counted.
const COUNTED_MAX: u64 = 1 << 60;

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes.min(COUNTED_MAX)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Bound, Budget, Held, Limits, Part, RELEASE_MS, Reading, Shortage};

    fn budget(bytes_max: u64, reserve_bytes: u64) -> Budget {
        Budget::new(Limits {
            bytes_max: Some(bytes_max),
            reserve_bytes,
        })
    }

    fn left(left_bytes: u64, resident_bytes: u64) -> Reading {
        Reading {
            left_bytes: Some(left_bytes),
            resident_bytes,
            stall_permille: None,
        }
    }

    #[test]
    fn the_budget_is_what_is_configured_and_what_there_is() {
        let limits = Limits::new(Some(1600), None, None);
        assert_eq!((limits.bytes_max, limits.reserve_bytes), (Some(1500), 100));
        let limits = Limits::new(Some(1600), Some(4000), Some(0));
        assert_eq!(limits.bytes_max, Some(1600));
        let limits = Limits::new(None, Some(4000), None);
        assert_eq!((limits.bytes_max, limits.reserve_bytes), (Some(4000), 0));
        assert_eq!(Limits::new(None, None, None), Limits::default());
    }

    #[test]
    fn where_nothing_is_kept_for_others_work_gives_way_step_by_step_too() {
        let mut budget = budget(1 << 40, 0);
        budget
            .require(Part::Weights, Held::Mapped, 1 << 30)
            .expect("there is room");
        let short = |missing: u64| {
            let mut budget = budget;
            budget.read(left((1 << 30) - missing, 0), 0);
            budget.shortage()
        };
        assert_eq!(short(0), Shortage::None);
        assert_eq!(short(1), Shortage::Caches);
        assert_eq!(short(33 << 20), Shortage::Idle);
        assert_eq!(short(65 << 20), Shortage::Batch);
        assert_eq!(short(97 << 20), Shortage::Interactive);
    }

    #[test]
    fn what_has_been_given_back_is_there_when_the_system_is_asked_anew() {
        let mut budget = budget(1 << 20, 0);
        budget.read(left(50, 100), 0);
        budget
            .reserve(Part::Weights, Held::Mapped, 60)
            .expect_err("the other is not gone yet");
        budget.refresh(Some(150), 0);
        budget.reserve(Part::Weights, Held::Mapped, 60).expect("60");
        assert_eq!(budget.shortage(), Shortage::None);
    }

    #[test]
    fn promises_end_where_the_budget_does() {
        let mut budget = budget(100, 10);
        budget.require(Part::Weights, Held::Mapped, 60).expect("60");
        budget
            .reserve(Part::Working, Held::Private, 40)
            .expect("40");
        let refusal = budget
            .require(Part::Draft, Held::Private, 1)
            .expect_err("full");
        assert_eq!((refusal.left, refusal.bound), (0, Bound::Budget));
        budget.give_back(Part::Weights, Held::Mapped, 60);
        assert_eq!(budget.left(), Some(60));
        assert_eq!((budget.part(Part::Weights), budget.promised()), (0, 40));
    }

    #[test]
    fn what_is_promised_and_not_yet_taken_is_not_there_for_others() {
        let mut budget = budget(10_000, 100);
        budget
            .require(Part::Weights, Held::Mapped, 300)
            .expect("mapped");
        budget
            .require(Part::Working, Held::Private, 500)
            .expect("private");
        // The weights' pages are among those that the system has left, whether they are resident or not.
        budget.read(left(1_000, 200), 0);
        assert_eq!(budget.spare(), Some(600));
        assert_eq!(budget.left(), Some(300));
        let refusal = budget
            .reserve(Part::Draft, Held::Private, 301)
            .expect_err("too much");
        assert_eq!((refusal.left, refusal.bound), (300, Bound::System));
        budget
            .require(Part::Draft, Held::Private, 301)
            .expect("needed");
        assert_eq!(budget.left(), Some(0));
        budget.read(left(700, 801), 1);
        assert_eq!(budget.left(), Some(300));
    }

    #[test]
    fn memory_of_a_graphics_processor_counts_once() {
        let mut budget = budget(100, 0);
        budget.read(left(90, 0), 0);
        budget.reserve(Part::Device, Held::Device, 60).expect("60");
        assert_eq!((budget.promised(), budget.left()), (60, Some(30)));
        // From the next reading on the system does not have it any more, and it is not taken off once more.
        budget.read(left(30, 0), 1);
        assert_eq!(budget.left(), Some(30));
        budget.give_back(Part::Device, Held::Device, 60);
        assert_eq!(budget.promised(), 0);
    }

    #[test]
    fn what_a_driver_is_about_to_take_is_owed_until_it_has() {
        let mut budget = budget(100, 0);
        budget.read(left(90, 0), 0);
        budget.reserve(Part::Device, Held::Private, 60).expect("60");
        // Some of it is taken, which is nothing of the daemon's: all is owed still.
        budget.read(left(70, 0), 1);
        assert_eq!(budget.left(), Some(10));
        budget.read(left(30, 0), 2);
        assert_eq!(budget.left(), Some(0));
        assert_eq!(budget.take_for_device(60), 60);
        assert_eq!(budget.left(), Some(0), "the reading may be older");
        budget.read(left(30, 0), 3);
        assert_eq!((budget.left(), budget.promised()), (Some(30), 60));
        assert_eq!(budget.part(Part::Device), 60);
        assert_eq!(budget.take_for_device(1), 0);
        budget.give_back(Part::Device, Held::Device, 60);
        assert_eq!(budget.promised(), 0);
    }

    #[test]
    fn who_can_be_spared_gives_way_first_and_comes_back_last() {
        let mut budget = budget(10_000, 1_000);
        budget
            .require(Part::Weights, Held::Mapped, 500)
            .expect("500");
        for (bytes, shortage) in [
            (1_500, Shortage::None),
            (1_499, Shortage::Caches),
            (1_249, Shortage::Idle),
            (999, Shortage::Batch),
            (749, Shortage::Interactive),
        ] {
            budget.read(left(bytes, 0), 0);
            assert_eq!(budget.shortage(), shortage, "{bytes}");
        }
        assert!(!budget.read(left(9_000, 0), RELEASE_MS - 1));
        let mut now_ms = 0;
        for shortage in [
            Shortage::Batch,
            Shortage::Idle,
            Shortage::Caches,
            Shortage::None,
        ] {
            now_ms += RELEASE_MS;
            assert!(budget.read(left(9_000, 0), now_ms));
            assert_eq!(budget.shortage(), shortage);
        }
    }

    #[test]
    fn waiting_for_memory_takes_caches_and_idle_models() {
        let mut budget = Budget::new(Limits::default());
        for (stall, shortage) in [
            (99, Shortage::None),
            (100, Shortage::Caches),
            (400, Shortage::Idle),
            (1000, Shortage::Idle),
        ] {
            let reading = Reading {
                stall_permille: Some(stall),
                ..Reading::default()
            };
            budget.read(reading, 0);
            assert_eq!(budget.shortage(), shortage, "{stall}");
        }
        assert_eq!(budget.left(), None);
    }

    #[test]
    fn one_idle_model_goes_for_each_reading_that_asks_for_it() {
        let mut budget = budget(1_000, 100);
        budget
            .require(Part::Weights, Held::Mapped, 500)
            .expect("there is room");
        assert!(!budget.take_idle());
        budget.read(left(560, 0), 0);
        assert!(budget.shortage() >= Shortage::Idle);
        assert!(budget.take_idle() && !budget.take_idle());
        // The step is held for a while after the dip, and nobody goes for that.
        budget.read(left(900, 0), 1_000);
        assert!(budget.shortage() >= Shortage::Idle && !budget.take_idle());
        budget.read(left(560, 0), 2_000);
        assert!(budget.take_idle());
    }
}
