//! Temperatures, by the system's thermal zones.

use std::path::{Path, PathBuf};

use super::files::{entries, number, numbered, text};

/// Most zones that are read; a Jetson has about ten.
const ZONES_MAX: usize = 32;
/// Most trip points of a zone that are looked at.
const TRIPS_MAX: u32 = 16;
/// Longest name of a zone, in bytes: it becomes a label.
const NAME_BYTES_MAX: usize = 32;
/// Where the system only says when it will switch itself off, work has to give way that much earlier, in thousandths of a
/// degree.
const BEFORE_CRITICAL_MC: i32 = 10_000;
/// Trip points beyond these say nothing: drivers have 0 or absurd values for ones that are not set.
const TRIP_MC: std::ops::RangeInclusive<i32> = 30_000..=150_000;
/// Readings beyond these come from sensors that are off; Jetson has -256 °C for a part without power.
const TEMPERATURE_MC: std::ops::RangeInclusive<i32> = -60_000..=200_000;

/// A zone at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Its type, such as `x86_pkg_temp` or `cpu-thermal`.
    pub name: String,
    /// In thousandths of a degree Celsius.
    pub temperature_mc: i32,
    /// Where the system itself begins to slow down, or a little before it switches off.
    pub limit_mc: Option<i32>,
}

impl Zone {
    /// By how much it is below its limit; negative above it.
    #[must_use]
    pub fn margin_mc(&self) -> Option<i32> {
        Some(self.limit_mc?.saturating_sub(self.temperature_mc))
    }
}

#[derive(Debug)]
struct ZoneFile {
    name: String,
    temperature: PathBuf,
    limit_mc: Option<i32>,
}

/// The zones that there are.
#[derive(Debug)]
pub(super) struct Files(Vec<ZoneFile>);

impl Files {
    pub(super) fn find(sys: &Path) -> Files {
        let zones = entries(&sys.join("class/thermal"), |name| {
            numbered(name, "thermal_zone")
        });
        let zones = zones.into_iter().take(ZONES_MAX).filter_map(|zone| {
            let mut name = text(&zone.join("type"))?;
            name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
            Some(ZoneFile {
                name,
                temperature: zone.join("temp"),
                limit_mc: limit_mc(&zone),
            })
        });
        Files(zones.collect())
    }

    pub(super) fn sample(&self) -> Vec<Zone> {
        let zones = self.0.iter().filter_map(|zone| {
            let temperature_mc = number(&zone.temperature)?;
            TEMPERATURE_MC.contains(&temperature_mc).then(|| Zone {
                name: zone.name.clone(),
                temperature_mc,
                limit_mc: zone.limit_mc,
            })
        });
        zones.collect()
    }
}

/// The lowest trip point at which the system slows its processors, else a little below the lowest at which it stops.
fn limit_mc(zone: &Path) -> Option<i32> {
    let mut slows: Option<i32> = None;
    let mut stops: Option<i32> = None;
    for index in 0..TRIPS_MAX {
        let Some(kind) = text(&zone.join(format!("trip_point_{index}_type"))) else {
            break;
        };
        let at: Option<i32> = number(&zone.join(format!("trip_point_{index}_temp")));
        let Some(at) = at.filter(|at| TRIP_MC.contains(at)) else {
            continue;
        };
        // `active` trips only start a fan.
        let lowest = match kind.as_str() {
            "passive" => &mut slows,
            "hot" | "critical" => &mut stops,
            _ => continue,
        };
        *lowest = Some(lowest.map_or(at, |lowest| lowest.min(at)));
    }
    slows.or(stops.map(|at| at - BEFORE_CRITICAL_MC))
}

#[cfg(test)]
mod tests {
    use super::{Files, Zone};
    use std::fs;
    use std::path::Path;

    fn zone(sys: &Path, index: u32, kind: &str, temperature: &str, trips: &[(&str, i32)]) {
        let folder = sys.join(format!("class/thermal/thermal_zone{index}"));
        fs::create_dir_all(&folder).expect("a folder");
        let write = |name: &str, text: &str| {
            fs::write(folder.join(name), format!("{text}\n")).expect("writable");
        };
        write("type", kind);
        write("temp", temperature);
        for (index, (kind, at)) in trips.iter().enumerate() {
            write(&format!("trip_point_{index}_type"), kind);
            write(&format!("trip_point_{index}_temp"), &at.to_string());
        }
    }

    #[test]
    fn zones_are_read_with_the_limit_at_which_the_system_slows_down() {
        let sys = tempfile::tempdir().expect("a folder");
        let sys = sys.path();
        let trips = [
            ("active", 51_000),
            ("passive", 99_000),
            ("critical", 104_000),
        ];
        zone(sys, 0, "cpu-thermal", "61250", &trips);
        zone(
            sys,
            10,
            "x86_pkg_temp",
            "70000",
            &[("critical", 100_000), ("passive", 0)],
        );
        zone(sys, 2, "acpitz", "27800", &[("active", 50_000)]);
        zone(sys, 3, "cv0-thermal", "-256000", &[]);
        zone(sys, 4, "broken", "hot", &[]);
        fs::create_dir_all(sys.join("class/thermal/cooling_device0")).expect("a folder");
        let files = Files::find(sys);
        let expected = |name: &str, temperature_mc, limit_mc| Zone {
            name: name.to_owned(),
            temperature_mc,
            limit_mc,
        };
        assert_eq!(
            files.sample(),
            [
                expected("cpu-thermal", 61_250, Some(99_000)),
                expected("acpitz", 27_800, None),
                expected("x86_pkg_temp", 70_000, Some(90_000)),
            ]
        );
        fs::remove_file(sys.join("class/thermal/thermal_zone0/temp")).expect("there");
        assert_eq!(files.sample().len(), 2, "one that is gone is left out");
    }

    #[test]
    fn a_machine_without_zones_has_none() {
        let sys = tempfile::tempdir().expect("a folder");
        assert_eq!(Files::find(sys.path()).sample(), []);
    }
}
