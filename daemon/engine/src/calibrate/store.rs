//! What was measured, kept for the next start: a small file for each machine, model format and build.
//!
//! What is read is trusted no more than any input: its size is bounded, it names the key it was made for, and every
//! figure is one that a machine can have. A file that is not so is as good as none.

use super::Calibration;
use crate::Executor;
use crate::temporary::Temporary;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// A number for each change of what is measured or how it is written.
const VERSION: u32 = 2;

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 4096;

/// Longest name of a processor that goes into a key.
const CPU_BYTES_MAX: usize = 256;

/// What a measurement holds for: processor, caches, threads, instruction set, build, weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    key: String,
    calibration: Calibration,
}

impl Key {
    /// The key of `executor` on this machine; `None` if something else than its processor computes.
    #[must_use]
    pub fn of(executor: &mut Executor) -> Option<Key> {
        let (threads, isa) = (executor.threads(), executor.isa().name());
        let weights = executor.probe()?.weights_name();
        let build = env!("CARGO_PKG_VERSION");
        let cpu = cpu();
        Some(Key(format!(
            "{VERSION}; {build}; {cpu}; {threads} threads; {isa}; {weights}"
        )))
    }

    fn path(&self, folder: &Path) -> PathBuf {
        // FNV-1a: the same on every machine and in every build.
        let hash = self
            .0
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        folder.join(format!("calibration-{hash:016x}.json"))
    }
}

/// The processor's name, family and model, and its largest cache.
fn cpu() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |name: &str| {
        let lines = information.lines().filter_map(|line| line.split_once(':'));
        let mut found = lines.filter(|(key, _)| key.trim() == name);
        found.next().map(|(_, value)| value.trim())
    };
    let names = [
        "model name",
        "cpu family",
        "model",
        "stepping",
        "CPU implementer",
        "CPU part",
    ];
    let mut parts: Vec<&str> = names.into_iter().filter_map(value).collect();
    let cache = fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size");
    let cache = cache.unwrap_or_default();
    parts.push(cache.trim());
    let mut cpu = parts.join(" ");
    let end = cpu.floor_char_boundary(CPU_BYTES_MAX);
    cpu.truncate(end);
    cpu
}

/// What is kept under `key` in `folder`, if there is such and it is sound.
#[must_use]
pub fn read(folder: &Path, key: &Key) -> Option<Calibration> {
    let mut text = String::new();
    let file = File::open(key.path(folder)).ok()?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .ok()?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return None;
    }
    let stored: Stored = serde_json::from_str(&text).ok()?;
    (stored.key == key.0 && stored.calibration.is_plausible()).then_some(stored.calibration)
}

/// Keeps `calibration` under `key`; a reader sees the old file or the new one, never a part. What a killed program left
/// is cleared away with half-written packs ([`crate::pack::Cache`]), which lie in the same folder.
///
/// # Errors
/// If the file cannot be written.
pub fn write(folder: &Path, key: &Key, calibration: &Calibration) -> io::Result<()> {
    let stored = Stored {
        key: key.0.clone(),
        calibration: *calibration,
    };
    let text = serde_json::to_string(&stored).map_err(io::Error::other)?;
    fs::create_dir_all(folder)?;
    let mut file = Temporary::new(folder)?;
    file.file().write_all(text.as_bytes())?;
    file.keep(&key.path(folder))
}

#[cfg(test)]
mod tests {
    use super::{FILE_BYTES_MAX, Key, read, write};
    use crate::calibrate::{Calibration, HugePages};
    use std::fs;

    fn calibration() -> Calibration {
        Calibration {
            read_bytes_per_s: 3e10,
            multiply_adds_per_s: 4e11,
            column_cost: [1.0, 1.01, 1.02, 1.1, 1.3, 1.5, 1.7, 1.9],
            wake_s: 5e-5,
            spin_s: 1e-4,
            huge_pages: HugePages::OnRequest,
        }
    }

    #[test]
    fn what_is_written_is_read_under_its_key_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let (key, other) = (Key("a".to_owned()), Key("b".to_owned()));
        assert_eq!(read(folder.path(), &key), None);
        write(folder.path(), &key, &calibration()).expect("written");
        assert_eq!(read(folder.path(), &key), Some(calibration()));
        assert_eq!(read(folder.path(), &other), None);
        let files = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(files, 1, "nothing else is left");
        // A file of another key under this one's name.
        fs::copy(key.path(folder.path()), other.path(folder.path())).expect("copied");
        assert_eq!(read(folder.path(), &other), None);
    }

    #[test]
    fn what_no_machine_has_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = Key("a".to_owned());
        let path = key.path(folder.path());
        write(folder.path(), &key, &calibration()).expect("written");
        let good = fs::read_to_string(&path).expect("readable");
        let long = format!("{good}{}", " ".repeat(FILE_BYTES_MAX as usize));
        for bad in [
            good.replace("30000000000.0", "-1.0"),
            good.replace("30000000000.0", "1e99"),
            good.replace("[1.0", "[2.0"),
            good.replace("1.9]", "1.9,2.0]"),
            good.replace("1.9]", "1e9]"),
            good.replace("on-request", "sometimes"),
            good.replace("\"key\"", "\"more\":1,\"key\""),
            good[..good.len() / 2].to_owned(),
            long,
            String::new(),
        ] {
            assert_ne!(bad, good);
            fs::write(&path, &bad).expect("written");
            assert_eq!(read(folder.path(), &key), None, "{bad}");
        }
    }
}
