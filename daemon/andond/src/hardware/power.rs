//! Power and energy: RAPL's counters on Intel and AMD, the INA3221 chips of Jetson boards, and how busy the graphics
//! processor of those is.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::files::{entries, number, numbered, text};

/// Channels of an INA3221 chip.
const CHANNELS: std::ops::RangeInclusive<u32> = 1..=3;
/// Most RAPL domains that are looked at: two for each of a few sockets.
const DOMAINS_MAX: usize = 16;
/// The rail that all others hang on, on Jetson Orin NX and Nano. AGX boards have none: theirs are added up.
const RAIL_OF_ALL: &str = "VDD_IN";
/// Longest name of a rail, in bytes: it becomes a label.
const NAME_BYTES_MAX: usize = 32;
/// Where the load of a Jetson's graphics processor is, which moved between releases of its kernel.
const GPU_LOADS: [&str; 4] = [
    "devices/platform/gpu.0/load",
    "devices/platform/bus@0/17000000.gpu/load",
    "devices/platform/17000000.gpu/load",
    "devices/gpu.0/load",
];
/// Its clock.
const GPU_CLOCKS: [&str; 2] = [
    "class/devfreq/17000000.gpu/cur_freq",
    "class/devfreq/17000000.ga10b/cur_freq",
];

/// A rail of the board at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Rail {
    /// Its label, such as `VDD_CPU_GPU_CV`.
    pub name: String,
    /// What it carries.
    pub watts: f64,
}

/// The graphics processor at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gpu {
    /// Share of the time that it works, of 1.
    pub load: f64,
    /// Its clock, in Hz.
    pub clock_hz: Option<u64>,
}

/// What a sample gives.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Power {
    pub(super) rails: Vec<Rail>,
    pub(super) watts: Option<f64>,
    pub(super) joules: Option<f64>,
}

#[derive(Debug)]
struct RailFiles {
    name: String,
    millivolts: PathBuf,
    milliamperes: PathBuf,
}

/// A counter of energy, in microjoules, that begins again at 0 when it is full.
#[derive(Debug)]
struct Domain {
    counter: PathBuf,
    full_uj: u64,
    last_uj: Option<u64>,
}

impl Domain {
    /// What was used since the last time, in microjoules; `None` where that cannot be told, as the first time.
    fn used_uj(&mut self) -> Option<u64> {
        let now: Option<u64> = number(&self.counter);
        let last = std::mem::replace(&mut self.last_uj, now);
        let (last, now) = (last?, now?);
        if let Some(used) = now.checked_sub(last) {
            return Some(used);
        }
        // It went round, once: at 200 W that takes many minutes. Or it began anew, as after the machine slept: then what was
        // used is not known.
        let round = self.full_uj.saturating_sub(last).saturating_add(now);
        (round <= self.full_uj / 2).then_some(round)
    }
}

/// The files that there are, and the energy counted so far.
#[derive(Debug)]
pub(super) struct Files {
    rails: Vec<RailFiles>,
    domains: Vec<Domain>,
    load: Option<PathBuf>,
    clock: Option<PathBuf>,
    /// When and at what power the last sample was.
    last: Option<(Instant, f64)>,
    last_at: Option<Instant>,
    joules: f64,
}

impl Files {
    pub(super) fn find(sys: &Path) -> Files {
        let first = |places: &[&str]| {
            let mut places = places.iter().map(|place| sys.join(place));
            places.find(|place| place.exists())
        };
        Files {
            rails: rails(sys),
            domains: domains(sys),
            load: first(&GPU_LOADS),
            clock: first(&GPU_CLOCKS),
            last: None,
            last_at: None,
            joules: 0.0,
        }
    }

    pub(super) fn sample(&mut self, now: Instant) -> Power {
        let rails: Vec<Rail> = self.rails.iter().filter_map(RailFiles::sample).collect();
        let of_all = rails.iter().find(|rail| rail.name == RAIL_OF_ALL);
        let board = match of_all {
            Some(rail) => Some(rail.watts),
            // Without one of them the sum would only look like the whole.
            None if rails.len() == self.rails.len() && !rails.is_empty() => {
                Some(rails.iter().map(|rail| rail.watts).sum())
            }
            None => None,
        };
        let (watts, joules) = match board {
            Some(watts) => (Some(watts), Some(self.add_power(now, watts))),
            None => self.add_energy(now),
        };
        Power {
            rails,
            watts,
            joules,
        }
    }

    pub(super) fn gpu(&self) -> Option<Gpu> {
        let permille: u32 = number(self.load.as_deref()?)?;
        Some(Gpu {
            load: f64::from(permille.min(1000)) / 1000.0,
            clock_hz: self.clock.as_deref().and_then(number),
        })
    }

    /// Adds up power over time, as if it had changed evenly between the samples.
    fn add_power(&mut self, now: Instant, watts: f64) -> f64 {
        if let Some((at, before)) = self.last.replace((now, watts)) {
            let seconds = now.saturating_duration_since(at).as_secs_f64();
            self.joules += (before + watts) / 2.0 * seconds;
        }
        self.joules
    }

    /// Adds up what the counters say; a sample in which one of them cannot be read gives no power.
    fn add_energy(&mut self, now: Instant) -> (Option<f64>, Option<f64>) {
        if self.domains.is_empty() {
            return (None, None);
        }
        let used: Vec<Option<u64>> = self.domains.iter_mut().map(Domain::used_uj).collect();
        let at = self.last_at.replace(now);
        let used: Option<u64> = used.into_iter().sum();
        let Some(used) = used else {
            let readable = self.domains.iter().all(|domain| domain.last_uj.is_some());
            return (None, readable.then_some(self.joules));
        };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53 between samples")]
        let joules = used as f64 / 1e6;
        self.joules += joules;
        let seconds = at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        let watts = seconds
            .filter(|&seconds| seconds > 0.0)
            .map(|seconds| joules / seconds);
        (watts, Some(self.joules))
    }
}

impl RailFiles {
    fn sample(&self) -> Option<Rail> {
        let millivolts: u32 = number(&self.millivolts)?;
        let milliamperes: i32 = number(&self.milliamperes)?;
        Some(Rail {
            name: self.name.clone(),
            watts: f64::from(millivolts) * f64::from(milliamperes) / 1e6,
        })
    }
}

/// The rails of every INA3221 chip.
fn rails(sys: &Path) -> Vec<RailFiles> {
    let chips = entries(&sys.join("bus/i2c/drivers/ina3221"), |name| {
        // The chips are named by bus and address; the driver's own files are not.
        name.contains('-').then(|| name.to_owned())
    });
    let monitors = chips
        .iter()
        .flat_map(|chip| entries(&chip.join("hwmon"), |name| numbered(name, "hwmon")));
    let channels =
        monitors.flat_map(|monitor| CHANNELS.map(move |channel| (monitor.clone(), channel)));
    let rails = channels.filter_map(|(monitor, channel)| {
        let mut name = text(&monitor.join(format!("in{channel}_label")))?;
        name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
        let rail = RailFiles {
            name,
            millivolts: monitor.join(format!("in{channel}_input")),
            milliamperes: monitor.join(format!("curr{channel}_input")),
        };
        // A channel that the board does not use has a label and no current.
        (rail.name != "NC" && rail.milliamperes.exists()).then_some(rail)
    });
    rails.collect()
}

/// RAPL's counters that together are the machine: of the whole platform if there is one, else of each package.
fn domains(sys: &Path) -> Vec<Domain> {
    // Domains within domains have a second number.
    let zones = entries(&sys.join("class/powercap"), |name| {
        numbered(name, "intel-rapl:")
    });
    let named: Vec<(String, PathBuf)> = zones
        .into_iter()
        .take(DOMAINS_MAX)
        .filter_map(|zone| Some((text(&zone.join("name"))?, zone)))
        .collect();
    let whole: Vec<&PathBuf> = of(&named, |name| name == "psys");
    let chosen = if whole.is_empty() {
        of(&named, |name| name.starts_with("package"))
    } else {
        whole
    };
    let domains = chosen.into_iter().filter_map(|zone| {
        let counter = zone.join("energy_uj");
        // Only root may read it unless a rule says otherwise.
        number::<u64>(&counter)?;
        Some(Domain {
            counter,
            full_uj: number(&zone.join("max_energy_range_uj"))?,
            last_uj: None,
        })
    });
    domains.collect()
}

fn of(named: &[(String, PathBuf)], chosen: impl Fn(&str) -> bool) -> Vec<&PathBuf> {
    let zones = named.iter().filter(|(name, _)| chosen(name));
    zones.map(|(_, zone)| zone).collect()
}

#[cfg(test)]
mod tests {
    use super::{Files, Gpu, Rail};
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, Instant};

    fn write(sys: &Path, name: &str, text: &str) {
        let path = sys.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        fs::write(path, format!("{text}\n")).expect("writable");
    }

    fn rail(sys: &Path, chip: &str, channel: u32, label: &str, millivolts: u32, milliamperes: u32) {
        let monitor = format!("bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon3");
        write(sys, &format!("{monitor}/in{channel}_label"), label);
        write(
            sys,
            &format!("{monitor}/in{channel}_input"),
            &millivolts.to_string(),
        );
        write(
            sys,
            &format!("{monitor}/curr{channel}_input"),
            &milliamperes.to_string(),
        );
    }

    #[test]
    fn the_rail_of_all_is_the_whole() {
        let sys = tempfile::tempdir().expect("a folder");
        let sys = sys.path();
        rail(sys, "1-0040", 1, "VDD_IN", 5000, 1200);
        rail(sys, "1-0040", 2, "VDD_CPU_GPU_CV", 5000, 400);
        rail(sys, "1-0040", 3, "NC", 0, 0);
        write(sys, "bus/i2c/drivers/ina3221/bind", "");
        let mut files = Files::find(sys);
        let start = Instant::now();
        let power = files.sample(start);
        assert_eq!(
            power.rails[1],
            Rail {
                name: "VDD_CPU_GPU_CV".to_owned(),
                watts: 2.0
            }
        );
        assert_eq!(
            (power.rails.len(), power.watts, power.joules),
            (2, Some(6.0), Some(0.0))
        );
        rail(sys, "1-0040", 1, "VDD_IN", 5000, 2000);
        let power = files.sample(start + Duration::from_secs(2));
        assert_eq!((power.watts, power.joules), (Some(10.0), Some(16.0)));
    }

    #[test]
    fn rails_without_one_of_all_are_added_up_and_only_whole() {
        let sys = tempfile::tempdir().expect("a folder");
        let sys = sys.path();
        rail(sys, "1-0040", 1, "VDD_GPU_SOC", 10_000, 500);
        rail(sys, "1-0041", 2, "VDDQ_VDD2_1V8AO", 5000, 200);
        let mut files = Files::find(sys);
        let start = Instant::now();
        assert_eq!(files.sample(start).watts, Some(6.0));
        write(
            sys,
            "bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon3/curr2_input",
            "error",
        );
        let power = files.sample(start + Duration::from_secs(1));
        assert_eq!((power.rails.len(), power.watts), (1, None));
    }

    #[test]
    fn a_counter_that_begins_anew_is_no_power() {
        let sys = tempfile::tempdir().expect("a folder");
        let sys = sys.path();
        domain(sys, "intel-rapl:0", "package-0", 90_000_000_000);
        let mut files = Files::find(sys);
        let start = Instant::now();
        files.sample(start);
        // The machine slept.
        domain(sys, "intel-rapl:0", "package-0", 1_000_000);
        let power = files.sample(start + Duration::from_secs(1));
        assert_eq!((power.watts, power.joules), (None, Some(0.0)));
        domain(sys, "intel-rapl:0", "package-0", 6_000_000);
        let power = files.sample(start + Duration::from_secs(2));
        assert_eq!((power.watts, power.joules), (Some(5.0), Some(5.0)));
    }

    fn domain(sys: &Path, zone: &str, name: &str, energy_uj: u64) {
        let zone = format!("class/powercap/{zone}");
        write(sys, &format!("{zone}/name"), name);
        write(sys, &format!("{zone}/energy_uj"), &energy_uj.to_string());
        write(sys, &format!("{zone}/max_energy_range_uj"), "262143328850");
    }

    #[test]
    fn energy_is_counted_over_packages_and_round_the_counters_end() {
        let sys = tempfile::tempdir().expect("a folder");
        let sys = sys.path();
        domain(
            sys,
            "intel-rapl:0",
            "package-0",
            262_143_328_850 - 1_000_000,
        );
        domain(sys, "intel-rapl:0:0", "core", 7);
        domain(sys, "intel-rapl:1", "package-1", 5_000_000);
        let mut files = Files::find(sys);
        let start = Instant::now();
        let first = files.sample(start);
        assert_eq!((first.watts, first.joules), (None, Some(0.0)));
        domain(sys, "intel-rapl:0", "package-0", 2_000_000);
        domain(sys, "intel-rapl:1", "package-1", 12_000_000);
        let second = files.sample(start + Duration::from_secs(2));
        assert_eq!((second.watts, second.joules), (Some(5.0), Some(10.0)));
        fs::remove_file(sys.join("class/powercap/intel-rapl:1/energy_uj")).expect("there");
        let third = files.sample(start + Duration::from_secs(3));
        assert_eq!((third.watts, third.joules), (None, None));
    }

    #[test]
    fn the_platform_counter_is_all_there_is_to_count() {
        let sys = tempfile::tempdir().expect("a folder");
        let sys = sys.path();
        domain(sys, "intel-rapl:0", "package-0", 0);
        domain(sys, "intel-rapl:1", "psys", 0);
        let mut files = Files::find(sys);
        let start = Instant::now();
        files.sample(start);
        domain(sys, "intel-rapl:0", "package-0", 3_000_000);
        domain(sys, "intel-rapl:1", "psys", 9_000_000);
        assert_eq!(
            files.sample(start + Duration::from_secs(1)).joules,
            Some(9.0)
        );
    }

    #[test]
    fn the_load_of_the_graphics_processor_is_found_where_it_is() {
        let sys = tempfile::tempdir().expect("a folder");
        let sys = sys.path();
        assert_eq!(Files::find(sys).gpu(), None);
        write(sys, "devices/platform/17000000.gpu/load", "375");
        write(sys, "class/devfreq/17000000.gpu/cur_freq", "612000000");
        let gpu = Gpu {
            load: 0.375,
            clock_hz: Some(612_000_000),
        };
        assert_eq!(Files::find(sys).gpu(), Some(gpu));
    }
}
