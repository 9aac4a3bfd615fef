//! Small files of sysfs and procfs, read with bounds.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Most bytes of a file that are looked at; `/proc/meminfo` has about 1500.
const FILE_BYTES_MAX: u64 = 4096;
/// Most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 256;

/// The text of a file without the space around it; `None` if it cannot be read or is no text.
pub(super) fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.truncate(text.trim_end().len());
    Some(text)
}

/// The number that a file holds.
pub(super) fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.trim().parse().ok()
}

/// The number that follows `prefix` in a name, as in `thermal_zone3`.
pub(super) fn numbered(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.parse().ok()
}

/// The entries of a folder whose names `chosen` gives a key for, in the order of the keys.
pub(super) fn entries<K: Ord>(folder: &Path, chosen: impl Fn(&str) -> Option<K>) -> Vec<PathBuf> {
    let Ok(listing) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<(K, PathBuf)> = listing
        .take(ENTRIES_MAX)
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((chosen(entry.file_name().to_str()?)?, entry.path()))
        })
        .collect();
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found.into_iter().map(|(_, path)| path).collect()
}
