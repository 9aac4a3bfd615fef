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
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::daemon::{Builder, Daemon};
use andon_tests::mutate::Draw;
use andon_tests::vitals::Vitals;

/// Who sends at a time.
const SENDERS: usize = 8;

/// Good requests that are timed before and after.
const GOOD: usize = 20;

/// How much memory may be left taken: buffers of connections and of the allocator, and what is kept of requests.
const GROWTH_MAX: u64 = 96 << 20;

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

    /// Has everybody send, each by chance of its own; `send` gets the number of the request.
    fn send(&self, send: impl Fn(&mut Draw, usize) + Sync) {
        let next = Mutex::new(0);
        thread::scope(|scope| {
            for _ in 0..SENDERS {
                scope.spawn(|| {
                    loop {
                        let number = {
                            let mut next = next.lock().unwrap();
                            *next += 1;
                            *next - 1
                        };
                        if number >= self.count {
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

    /// Sends hostile requests and judges the daemon by what it was before.
    fn run(
        &self,
        what: &str,
        daemon: &mut Daemon,
        good: impl Fn() -> Duration,
        hostile: impl FnOnce(&Daemon),
    ) {
        let timed = || {
            let mut times: Vec<Duration> = (0..GOOD).map(|_| good()).collect();
            let first = times[0];
            times.sort();
            (first, times[times.len() / 2], times[times.len() - 1])
        };
        timed();
        let (_, before, slowest) = timed();
        let held = Vitals::of(daemon.pid()).unwrap();
        let began = Instant::now();
        hostile(daemon);
        let took = began.elapsed();
        assert!(daemon.is_running(), "{}", daemon.log());
        let (first, after, _) = timed();
        let mut holds = Vitals::of(daemon.pid()).unwrap();
        let began = Instant::now();
        while holds.descriptors > held.descriptors && began.elapsed() < SETTLE_MAX {
            thread::sleep(Duration::from_millis(50));
            holds = Vitals::of(daemon.pid()).unwrap();
        }
        eprintln!(
            "{} hostile requests {what} in {:.1} s, seed {}: the next good one took {:.1} ms, later ones {:.1} ms, before {:.1} ms \
             (at most {:.1}); of memory {:.1} MiB more, {} descriptors before and {} now, {} threads before and {} now",
            self.count,
            took.as_secs_f64(),
            self.seed,
            first.as_secs_f64() * 1e3,
            after.as_secs_f64() * 1e3,
            before.as_secs_f64() * 1e3,
            slowest.as_secs_f64() * 1e3,
            (holds.anonymous as f64 - held.anonymous as f64) / f64::from(1 << 20),
            held.descriptors,
            holds.descriptors,
            held.threads,
            holds.threads,
        );
        let log = || daemon.log();
        assert!(holds.descriptors <= held.descriptors, "{}", log());
        assert!(
            holds.anonymous <= held.anonymous + GROWTH_MAX,
            "{held:?} became {holds:?}"
        );
        assert!(holds.threads <= held.threads + THREADS_MAX, "{holds:?}");
        if self.timed {
            let normal = (2 * before).max(slowest) + Duration::from_millis(20);
            assert!(first <= normal && after <= normal, "slower than {normal:?}");
        }
    }
}
