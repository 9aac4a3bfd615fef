//! What the machine says of itself: temperatures, power, energy, and how short memory is.
//!
//! All of it comes from small files of sysfs and procfs, whose places are in `README.md` beside this file. What is there
//! is found once, at the start; a file that cannot be read later leaves its reading out and nothing else.
//!
//! Invariant: a sample reads a bounded number of files, of each a bounded number of bytes, and never fails.

mod files;
mod memory;
mod power;
mod thermal;
mod watch;

use std::path::Path;
use std::time::Instant;

pub use memory::{Memory, Stall};
pub use power::{Gpu, Rail};
pub use thermal::Zone;
pub use watch::watch;

use crate::config::hardware::HardwareConfig;

/// Everything that was read at one moment. What the machine does not have is empty or `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readings {
    /// Temperatures.
    pub zones: Vec<Zone>,
    /// Power of the board's rails.
    pub rails: Vec<Rail>,
    /// What the whole machine takes, in watts, as far as it can tell: over the time since the last sample where an energy
    /// counter says so, else at this moment.
    pub watts: Option<f64>,
    /// Energy taken since the first sample, in joules.
    pub joules: Option<f64>,
    /// The graphics processor, where the system tells of it.
    pub gpu: Option<Gpu>,
    /// Memory and the lack of it.
    pub memory: Memory,
}

impl Readings {
    /// By how much the hottest zone, relative to its own limit, is below that limit, in thousandths of a degree; negative
    /// above it. `None` if no zone has a limit.
    #[must_use]
    pub fn margin_mc(&self) -> Option<i32> {
        self.zones.iter().filter_map(Zone::margin_mc).min()
    }
}

/// How much memory there is just now.
#[must_use]
pub fn memory_of(config: &HardwareConfig) -> Memory {
    memory::Files::find(&config.sys_dir, &config.proc_dir).sample()
}

/// The files that there are to read of temperatures and power.
#[derive(Debug)]
pub struct Sensors {
    thermal: thermal::Files,
    power: power::Files,
}

impl Sensors {
    /// Finds out what there is below `sys`, which is `/sys` unless a container sees that of its host elsewhere.
    #[must_use]
    pub fn find(sys: &Path) -> Sensors {
        Sensors {
            thermal: thermal::Files::find(sys),
            power: power::Files::find(sys),
        }
    }

    /// Reads all of it, all but the memory. Some sensors are on slow buses, so this takes some milliseconds, or does not end
    /// where one hangs.
    pub fn sample(&mut self, now: Instant) -> Readings {
        let power = self.power.sample(now);
        Readings {
            zones: self.thermal.sample(),
            rails: power.rails,
            watts: power.watts,
            joules: power.joules,
            gpu: self.power.gpu(),
            memory: Memory::default(),
        }
    }
}
