//! What policy decides, in worlds made of numbers.
//!
//! [`link`] has days of a gateway whose link to upstream servers flaps; all else here is about the scheduler. A [`World`] has its own clock, a model of the engine, clients that ask in bursts, give up and
//! vanish, a broker that delivers twice, and a daemon that dies and goes on with what its spool has. Everything in it follows from a seed. What must hold is
//! looked at after every event, and what does not hold is an error that says after how many events.

#![forbid(unsafe_code)]

pub mod engine;
pub mod ledger;
pub mod link;
pub mod random;
pub mod report;
pub mod world;

pub use report::Report;
pub use world::World;

/// Events of one world; a campaign is made of many, since a world that has been found sound for
/// long has seen what it can show.
pub const EVENTS_OF_A_WORLD: u64 = 50_000;

/// Runs worlds from `seed` on until there have been so many events.
///
/// # Errors
/// What did not hold, and in which world.
pub fn campaign(seed: u64, events: u64) -> Result<Report, String> {
    let mut all = Report::default();
    let mut seed = seed;
    while all.events < events {
        let most = EVENTS_OF_A_WORLD.min(events - all.events);
        let report = World::new(seed).run(most).map_err(|broken| {
            format!("seed {seed}: {broken}\nagain: cargo xtask sim --seed {seed} --events {EVENTS_OF_A_WORLD}")
        })?;
        all.add(&report);
        seed = seed.wrapping_add(1);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::{World, campaign};

    #[test]
    fn nothing_is_lost_late_or_over_its_bounds() {
        let report = campaign(1, 2_000_000).unwrap_or_else(|broken| panic!("{broken}"));
        println!("{report}");
        // What never happens is not tested.
        for (what, count) in report.outcomes() {
            assert!(count > 0, "no request {what}");
        }
        assert!(report.parked > 0 && report.interrupted > 0 && report.no_room > 0);
        assert!(report.aside > 0 && report.again > 0 && report.respooled > 0);
    }

    #[test]
    fn a_seed_says_everything() {
        let run = || {
            World::new(7)
                .run(20_000)
                .expect("a sound world")
                .to_string()
        };
        assert_eq!(run(), run());
    }
}
