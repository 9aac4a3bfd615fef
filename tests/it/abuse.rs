//! Requests that mean harm, by the hundred thousand, over every front end: the daemon lives, holds no more than before, and the
//! next good request is answered as ever.
//!
//! Every day there are a few hundred on a tiny model. `cargo xtask hostile` sends many to a real one, each made from a seed, and
//! also holds the time of a good request against that of before.

mod http;
mod json;
mod mqtt;
mod wire;

use std::env;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::daemon::{Builder, Daemon};
use andon_tests::mutate::Draw;
use andon_tests::vitals::Vitals;

/// Who sends at a time.
const SENDERS: usize = 8;

/// Good requests that are timed before and after.
const GOOD: usize = 20;

/// How much memory the first half may leave taken: buffers of connections and of the allocator, and what is kept of requests
/// up to its bound.
const FILL_MAX: u64 = 96 << 20;

/// How much the second half may add to that: with everything filled that has a bound, nothing is left to grow.
const GROWTH_MAX: u64 = 16 << 20;

/// Private memory that no part of the budget is promised: programs, stacks, what the allocator holds.
const UNPROMISED_MAX: u64 = 40 << 20;

/// Tokens of the KV cache: few, so that it is full early. And of an answer: what of this can be answered at all is to be
/// answered soon.
const CONFIG: &str =
    "[model]\nkv-tokens-max = 2048\n[limits]\ntokens-max = 16\ntokens-max-default = 16\n";

/// Threads that may be there for a while to do what blocks.
const THREADS_MAX: u64 = 24;

/// Longest wait until what was left open is closed: more than the longest patience of the daemon.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// How large the campaign is.
struct Campaign {
    count: usize,
    seed: u64,
    model: Option<PathBuf>,
    /// Whether times are judged.
    timed: bool,
}

impl Campaign {
    fn asked() -> Campaign {
        let number = |name: &str| env::var(name).ok()?.parse().ok();
        let count = number("ANDON_HOSTILE_COUNT");
        Campaign {
            timed: count.is_some(),
            count: usize::try_from(count.unwrap_or(300)).unwrap(),
            seed: number("ANDON_HOSTILE_SEED").unwrap_or(1),
            model: env::var_os("ANDON_HOSTILE_MODEL").map(PathBuf::from),
        }
    }

    fn daemon(&self) -> Builder {
        let builder = Daemon::builder();
        match &self.model {
            Some(model) => builder.model(model),
            None => builder,
        }
    }

    /// Has everybody send these requests, each by chance of its own; `send` gets the number of the request.
    fn send(&self, numbers: Range<usize>, send: impl Fn(&mut Draw, usize) + Sync) {
        let next = Mutex::new(numbers.start);
        thread::scope(|scope| {
            for _ in 0..SENDERS {
                scope.spawn(|| {
                    loop {
                        let number = {
                            let mut next = next.lock().unwrap();
                            *next += 1;
                            *next - 1
                        };
                        if number >= numbers.end {
                            return;
                        }
                        // What a request is depends on its number, not on who sends it.
                        let mut draw = Draw::new(self.seed ^ ((number as u64) << 20));
                        send(&mut draw, number);
                    }
                });
            }
        });
    }

    /// Sends hostile requests, in two halves, and judges the daemon by what it was before.
    fn run(
        &self,
        what: &str,
        daemon: &mut Daemon,
        good: impl Fn() -> Duration,
        hostile: impl Fn(&Daemon, Range<usize>),
    ) {
        let timed = || {
            let mut times: Vec<Duration> = (0..GOOD).map(|_| good()).collect();
            let first = times[0];
            times.sort();
            (first, times[times.len() / 2])
        };
        timed();
        let (_, before) = timed();
        let held = settled(daemon, None);
        let open_before = open(daemon.pid());
        let began = Instant::now();
        let peak = AtomicU64::new(held.anonymous);
        let mut half = held;
        let over = AtomicBool::new(false);
        let pid = daemon.pid();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // A daemon that is gone is noticed elsewhere.
                    let anonymous = Vitals::of(pid).map_or(0, |now| now.anonymous);
                    peak.fetch_max(anonymous, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(50));
                }
            });
            // Also where something fails.
            let _over = Over(&over);
            hostile(daemon, 0..self.count / 2);
            half = settled(daemon, Some(&held));
            hostile(daemon, self.count / 2..self.count);
        });
        let took = began.elapsed();
        assert!(daemon.is_running(), "{}", daemon.log());
        let (first, after) = timed();
        let holds = settled(daemon, Some(&held));
        let promised = promised(daemon);
        let peak = peak.into_inner();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let more = |now: &Vitals, then: &Vitals| mib(now.anonymous) - mib(then.anonymous);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        eprintln!(
            "{} hostile requests {what} in {:.1} s, seed {}: the next good one took {:.1} ms, later ones {:.1} ms, before {:.1} ms; \
             of memory {:.1} MiB more after half of them and {:.1} MiB after the others, {:.1} MiB at most where {:.1} are promised \
             beside weights; {} descriptors before and {} now, {} threads before and {} now",
            self.count,
            took.as_secs_f64(),
            self.seed,
            ms(first),
            ms(after),
            ms(before),
            more(&half, &held),
            more(&holds, &half),
            mib(peak),
            mib(promised),
            held.descriptors,
            holds.descriptors,
            held.threads,
            holds.threads,
        );
        let log = || daemon.log();
        assert!(
            holds.descriptors <= held.descriptors,
            "{open_before:?} became {:?}\n{}",
            open(daemon.pid()),
            log()
        );
        assert!(
            half.anonymous <= held.anonymous + FILL_MAX,
            "{held:?} became {half:?}"
        );
        assert!(
            holds.anonymous <= half.anonymous + GROWTH_MAX,
            "{half:?} became {holds:?}"
        );
        assert!(
            peak <= promised + UNPROMISED_MAX,
            "{peak} bytes, {promised} promised"
        );
        assert!(holds.threads <= held.threads + THREADS_MAX, "{holds:?}");
        if self.timed {
            let normal = before.mul_f64(1.5) + Duration::from_millis(5);
            assert!(after <= normal, "{after:?} is slower than {normal:?}");
            // It is one, and may come beside the last of the hostile ones.
            let normal = 2 * before + Duration::from_millis(20);
            assert!(first <= normal, "{first:?} is slower than {normal:?}");
        }
    }
}

/// What a process has open.
fn open(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let targets = entries.flatten().map(|entry| fs::read_link(entry.path()));
    let mut open: Vec<PathBuf> = targets.flatten().collect();
    open.sort();
    open
}

/// Says that it is over when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the daemon holds once it has closed what was left open, by what it held before: of a few looks the least, since
/// connections and memory come and go.
fn settled(daemon: &Daemon, before: Option<&Vitals>) -> Vitals {
    let look = || {
        thread::sleep(Duration::from_millis(50));
        Vitals::of(daemon.pid()).unwrap()
    };
    let began = Instant::now();
    let mut now = look();
    while before.is_some_and(|before| now.descriptors > before.descriptors)
        && began.elapsed() < SETTLE_MAX
    {
        now = look();
    }
    for _ in 0..10 {
        let again = look();
        now.anonymous = now.anonymous.min(again.anonymous);
        now.descriptors = now.descriptors.min(again.descriptors);
    }
    now
}

/// Bytes that the daemon's memory budget has promised for anything but weights, which are the files'.
fn promised(daemon: &Daemon) -> u64 {
    let metrics = daemon.http().get("/metrics").unwrap().text();
    let parts = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("andon_memory_promised_bytes{part=\"")?;
        let (part, bytes) = rest.split_once("\"} ")?;
        (part != "weights").then(|| bytes.parse::<u64>().unwrap())
    });
    parts.sum()
}
