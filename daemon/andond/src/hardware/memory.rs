//! Memory that is left, and how long the machine waits for it.

use std::path::{Component, Path, PathBuf};

use super::files::{number, text};

/// Control groups within control groups that are looked at.
const DEPTH_MAX: usize = 64;

/// Memory at one moment. `None` where the system does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    /// What the machine could give without swapping, in bytes.
    pub available_bytes: Option<u64>,
    /// What the tightest control group around the daemon leaves before it holds it back or ends it, in bytes.
    pub group_left_bytes: Option<u64>,
    /// What the daemon itself has of the memory that is not a file's, in bytes.
    pub resident_bytes: Option<u64>,
    /// How long tasks waited for memory.
    pub stall: Option<Stall>,
}

impl Memory {
    /// What the daemon could still take if no page of any file were needed, those of weights included.
    #[must_use]
    pub fn left_bytes(&self) -> Option<u64> {
        match (self.available_bytes, self.group_left_bytes) {
            (Some(machine), Some(group)) => Some(machine.min(group)),
            (machine, group) => machine.or(group),
        }
    }
}

/// Pressure on memory: shares of the last ten seconds, of 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// In which at least one task waited.
    pub some: f64,
    /// In which all did.
    pub full: f64,
}

/// The files that there are.
#[derive(Debug)]
pub(super) struct Files {
    machine: PathBuf,
    own: PathBuf,
    /// Of the daemon's group and those around it.
    groups: Vec<PathBuf>,
    /// Of the daemon's own group if it has that, else of the machine.
    pressure: Option<PathBuf>,
}

impl Files {
    pub(super) fn find(sys: &Path, proc: &Path) -> Files {
        let groups = text(&proc.join("self/cgroup")).map_or_else(Vec::new, |groups| {
            self::groups(&sys.join("fs/cgroup"), &groups)
        });
        let own = groups.last().map(|group| group.join("memory.pressure"));
        let places = own.into_iter().chain([proc.join("pressure/memory")]);
        Files {
            machine: proc.join("meminfo"),
            own: proc.join("self/status"),
            pressure: places.into_iter().find(|place| stall(place).is_some()),
            groups,
        }
    }

    pub(super) fn sample(&self) -> Memory {
        let left = self.groups.iter().filter_map(|group| {
            let limits = ["memory.high", "memory.max"].map(|name| number(&group.join(name)));
            let limit: u64 = limits.into_iter().flatten().min()?;
            let used: u64 = number(&group.join("memory.current"))?;
            // Pages of files go first when the group is full, as they do where the machine is, whose MemAvailable has them
            // among what is left.
            let counts = text(&group.join("memory.stat"))?;
            let of = |name| field(&counts, name).unwrap_or(0);
            let files = of("inactive_file").saturating_add(of("active_file"));
            Some(limit.saturating_sub(used.saturating_sub(files)))
        });
        let kib = |text: &str, name| field(text, name).map(|kib| kib.saturating_mul(1024));
        let resident = text(&self.own).and_then(|text| {
            let shared = kib(&text, "RssShmem:").unwrap_or(0);
            Some(kib(&text, "RssAnon:")?.saturating_add(shared))
        });
        Memory {
            available_bytes: text(&self.machine).and_then(|text| kib(&text, "MemAvailable:")),
            group_left_bytes: left.min(),
            resident_bytes: resident,
            stall: self.pressure.as_deref().and_then(stall),
        }
    }
}

/// The group of version 2 that `text` names and those around it, outermost first.
fn groups(root: &Path, text: &str) -> Vec<PathBuf> {
    let Some(group) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    // Groups outside of what this process may see are shown as a way up.
    let names: Vec<Component<'_>> = Path::new(group)
        .components()
        .take_while(|name| matches!(name, Component::Normal(_)))
        .take(DEPTH_MAX)
        .collect();
    (0..=names.len())
        .map(|depth| {
            let mut folder = root.to_path_buf();
            folder.extend(&names[..depth]);
            folder
        })
        .collect()
}

/// The number in the line that begins with `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    lines.find_map(|mut words| {
        if words.next() == Some(name) {
            words.next()?.parse().ok()
        } else {
            None
        }
    })
}

fn stall(path: &Path) -> Option<Stall> {
    let text = text(path)?;
    let share = |kind: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.starts_with(kind))?;
        let mut words = line.split_ascii_whitespace();
        let percent: f64 = words
            .find_map(|word| word.strip_prefix("avg10="))?
            .parse()
            .ok()?;
        (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
    };
    Some(Stall {
        some: share("some")?,
        full: share("full")?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Files, Memory, Stall};
    use std::fs;
    use std::path::Path;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        fs::write(path, text).expect("writable");
    }

    #[test]
    fn the_tightest_group_and_its_pressure_count() {
        let (sys, proc) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        let (sys, proc) = (sys.path(), proc.path());
        write(
            proc,
            "meminfo",
            "MemTotal:  900 kB\nMemFree: 100 kB\nMemAvailable:  700 kB\n",
        );
        write(proc, "self/cgroup", "0::/system.slice/andond.service\n");
        write(
            proc,
            "self/status",
            "Name:\tandond\nRssAnon:\t      4 kB\nRssFile:\t 99 kB\nRssShmem:\t3 kB\n",
        );
        let group = |folder: &str, max: &str, current: &str, idle: u64| {
            let folder = format!("fs/cgroup/{folder}");
            write(sys, &format!("{folder}/memory.max"), max);
            write(sys, &format!("{folder}/memory.current"), current);
            write(
                sys,
                &format!("{folder}/memory.stat"),
                &format!("anon 5\ninactive_file {idle}\nactive_file 500\n"),
            );
        };
        group("system.slice", "9000\n", "4000\n", 1000);
        group("system.slice/andond.service", "max\n", "3000\n", 0);
        // It is held back before it reaches the limit of the slice.
        write(
            sys,
            "fs/cgroup/system.slice/andond.service/memory.high",
            "8500\n",
        );
        let pressure = "some avg10=12.50 avg60=1.00 avg300=0.00 total=9\nfull avg10=2.00 avg60=0.00 avg300=0.00 total=1\n";
        write(
            sys,
            "fs/cgroup/system.slice/andond.service/memory.pressure",
            pressure,
        );
        let memory = Files::find(sys, proc).sample();
        let stall = Some(Stall {
            some: 0.125,
            full: 0.02,
        });
        let expected = Memory {
            available_bytes: Some(700 * 1024),
            group_left_bytes: Some(6000),
            resident_bytes: Some(7 * 1024),
            stall,
        };
        assert_eq!(memory, expected);
        assert_eq!(memory.left_bytes(), Some(6000));
    }

    #[test]
    fn without_groups_the_machine_counts() {
        let (sys, proc) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        write(proc.path(), "meminfo", "MemAvailable: 2 kB\n");
        write(proc.path(), "self/cgroup", "4:memory:/x\n0::/../y\n");
        write(proc.path(), "pressure/memory", "some avg10=nan\n");
        let memory = Files::find(sys.path(), proc.path()).sample();
        assert_eq!((memory.left_bytes(), memory.stall), (Some(2048), None));
    }
}
