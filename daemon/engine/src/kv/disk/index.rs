//! Which files there are, how large they are, and in which order they were used.

use crate::kv::name::{NAME_BYTES, PageName};
use core::fmt;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const ENDING: &str = ".page";

/// Which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    pub(super) root: PageName,
    /// The page's number in its text, from 0.
    pub(super) depth: u32,
    pub(super) name: PageName,
}

impl FileId {
    /// What the name of a file says; `None` if it is no page's.
    pub(super) fn of(name: &str) -> Option<FileId> {
        let mut parts = name.strip_suffix(ENDING)?.split('-');
        let id = FileId {
            root: parts.next().and_then(page_name)?,
            depth: u32::from_str_radix(parts.next()?, 16).ok()?,
            name: parts.next().and_then(page_name)?,
        };
        // There is one way to write it.
        (id.to_string() == name).then_some(id)
    }

    pub(super) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(self.to_string())
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileId { root, depth, name } = self;
        write!(f, "{root}-{depth:06x}-{name}{ENDING}")
    }
}

fn page_name(digits: &str) -> Option<PageName> {
    let mut name = [0; NAME_BYTES];
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if pairs.len() != NAME_BYTES || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in name.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(PageName(name))
}

/// A file that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) bytes: u64,
    /// When it was last used: microseconds since 1970, but always more than those of uses before. Clocks of gateways
    /// are set back.
    pub(super) used: u64,
    /// Whether the disk does not know that yet.
    pub(super) noted: bool,
}

/// All files.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<FileId, Entry>,
    bytes: u64,
    clock: u64,
}

impl Index {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains(&self, id: &FileId) -> bool {
        self.entries.contains_key(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&FileId, &Entry)> {
        self.entries.iter()
    }

    /// Takes in a file that was last used at `used`.
    pub(super) fn insert(&mut self, id: FileId, bytes: u64, used: u64) {
        self.clock = self.clock.max(used);
        let entry = Entry {
            bytes,
            used,
            noted: true,
        };
        self.bytes += bytes;
        if let Some(before) = self.entries.insert(id, entry) {
            self.bytes = self.bytes.saturating_sub(before.bytes);
        }
    }

    pub(super) fn remove(&mut self, id: &FileId) {
        if let Some(entry) = self.entries.remove(id) {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
        }
    }

    /// The time of a use now.
    fn tick(&mut self, now: u64) -> u64 {
        self.clock = now.max(self.clock.saturating_add(1));
        self.clock
    }

    /// The time of a use of a page now, or at `at`: that of the page before it in the text, so that both give way together.
    pub(super) fn time(&mut self, before: Option<&FileId>, now: u64, at: Option<u64>) -> u64 {
        let before = before.and_then(|before| self.entries.get(before));
        match (before, at) {
            (Some(entry), _) => entry.used,
            (None, Some(at)) => at,
            (None, None) => self.tick(now),
        }
    }

    /// Notes that a page is used now, behind the one before it.
    pub(super) fn follow(&mut self, id: &FileId, before: Option<&FileId>, now: u64) {
        let used = self.time(before, now, None);
        if let Some(entry) = self.entries.get_mut(id) {
            entry.used = used;
            entry.noted = false;
        }
    }

    /// Notes that files are used now, those of one text at once.
    pub(super) fn touch(&mut self, ids: impl IntoIterator<Item = FileId>, now: u64) {
        let used = self.tick(now);
        for id in ids {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.used = used;
                entry.noted = false;
            }
        }
    }

    /// The file that gives way first.
    pub(super) fn oldest(&self) -> Option<FileId> {
        let order = |(id, entry): &(&FileId, &Entry)| (entry.used, std::cmp::Reverse(id.depth));
        self.entries.iter().min_by_key(order).map(|(id, _)| *id)
    }

    /// What the disk does not know yet of when files were used; it is taken for known from then on.
    pub(super) fn take_unnoted(&mut self) -> Vec<(FileId, u64)> {
        let unnoted = self.entries.iter_mut().filter(|(_, entry)| !entry.noted);
        unnoted
            .map(|(id, entry)| {
                entry.noted = true;
                (*id, entry.used)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{FileId, Index};
    use crate::kv::name::PageName;

    fn id(depth: u32, name: u8) -> FileId {
        FileId {
            root: PageName([7; 16]),
            depth,
            name: PageName([name; 16]),
        }
    }

    #[test]
    fn a_name_says_which_file_it_is() {
        let id = id(300, 0xab);
        let name = id.to_string();
        assert_eq!(FileId::of(&name), Some(id));
        for other in [
            "",
            ".page",
            "a.page",
            &name.to_uppercase(),
            &name.replace("-00012c-", "-12c-"),
            &name.replace("-00012c-", "-+0012c-"),
            &name.replacen('7', "é", 1),
            &format!("{name}.page"),
            &name[1..],
        ] {
            assert_eq!(FileId::of(other), None, "{other}");
        }
    }

    #[test]
    fn what_was_not_used_longest_goes_first_and_of_a_text_its_end() {
        let mut index = Index::default();
        for (depth, name, used) in [(0, 1, 50), (1, 2, 50), (2, 3, 50), (0, 4, 40)] {
            index.insert(id(depth, name), 10, used);
        }
        assert_eq!((index.bytes(), index.len()), (40, 4));
        // The clock was set back: a use is later than those before all the same.
        index.touch([id(0, 4), id(0, 9)], 3);
        assert_eq!(index.take_unnoted(), [(id(0, 4), 51)]);
        assert!(index.take_unnoted().is_empty());
        assert_eq!(index.time(Some(&id(0, 4)), 99, None), 51);
        assert_eq!(index.time(None, 99, None), 99);
        for (depth, name) in [(2, 3), (1, 2), (0, 1), (0, 4)] {
            assert_eq!(index.oldest(), Some(id(depth, name)));
            index.remove(&id(depth, name));
        }
        assert_eq!((index.oldest(), index.bytes()), (None, 0));
    }
}
