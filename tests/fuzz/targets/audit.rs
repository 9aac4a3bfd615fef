//! The folder of the audit stream as a start of the daemon finds it, and what is recorded then. A byte of settings, then pairs
//! of a name and the contents of a file of that name, then the texts of a record, each ended by a byte that no text has. `@` in
//! a name stands for today.
//!
//! What is recorded is there in its order, each a line of its own whatever its texts are; of what was there, only a torn last line
//! goes. Where files are too many, the oldest go whole, be they from before or of records just written: a file here has room for
//! few. A file is begun only where the last has no room, and nothing goes that is no file of the stream.

use andon_os::heap;
use andond::audit::{Audit, AuditError, Record};
use andond::config::Config;
use andond::request::{CLIENT_BYTES_MAX, ID_BYTES_MAX, NAME_BYTES_MAX};
use andond::telemetry::Telemetry;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// Ends every part.
pub(crate) const BREAK: u8 = 0xff;
/// Files that are there, at most.
pub(crate) const FILES: usize = 4;
/// Bytes of a file of the stream after which another is begun.
const FILE_BYTES_MAX: u64 = 2000;
/// Records that are written: one attempt after another.
const RECORDS: u16 = 3;
const KEY: &str = "key";
const KEY_BYTES: usize = 32;

/// Today, as it stands in names: what the stream calls its first file.
static TODAY: LazyLock<String> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let audit = open(folder.path(), 9).expect("an empty folder");
    audit.put(&Record::default());
    audit.close();
    let files = files(folder.path());
    let mut names = files.keys().filter(|name| *name != KEY);
    let name = names.next().expect("a file");
    let day = name.split(['-', '.']).nth(2).expect("a day");
    day.to_owned()
});

type Files = BTreeMap<String, Vec<u8>>;

pub(crate) fn run(data: &[u8]) {
    let [settings, data @ ..] = data else {
        return;
    };
    let mut parts = data.split(|&byte| byte == BREAK);
    let mut pairs = Vec::new();
    for _ in 0..FILES {
        let (Some(name), Some(contents)) = (parts.next(), parts.next()) else {
            break;
        };
        pairs.push((name, contents));
    }
    let mut texts = parts.filter_map(|text| std::str::from_utf8(text).ok());
    // As long as front ends let them be, and with characters that none of them lets through.
    let mut text = |bytes_max: usize| {
        let text = texts.next().unwrap_or_default();
        &text[..text.floor_char_boundary(bytes_max)]
    };
    let (request_id, client) = (text(ID_BYTES_MAX), text(CLIENT_BYTES_MAX));
    let task = text(NAME_BYTES_MAX);
    let record = |attempt| Record {
        request_id,
        client,
        task: (!task.is_empty()).then_some(task),
        origin: "mqtt",
        outcome: "stop",
        attempt,
        ..Record::default()
    };

    let folder = tempfile::tempdir().expect("a folder");
    for (name, contents) in pairs {
        let name = std::str::from_utf8(name).unwrap_or_default();
        let name = name.replace('@', &TODAY);
        if is_name(&name) {
            fs::write(folder.path().join(name), contents).expect("written");
        }
    }
    let before = files(folder.path());
    let files_max = 2 + usize::from(settings % 4);
    let limit = (2 << 20) + 8 * data.len();
    heap::measure(limit, data.len() as u64, || {
        match open(folder.path(), files_max) {
            Ok(audit) => {
                (1..=RECORDS).for_each(|attempt| audit.put(&record(attempt)));
                audit.close();
                let after = files(folder.path());
                check(&before, &after, &record(RECORDS), files_max);
            }
            Err(error) => {
                let key = before.get(KEY).map_or(0, Vec::len);
                assert!(
                    matches!(error, AuditError::Key(_)) && ![0, KEY_BYTES].contains(&key),
                    "{error}"
                );
                assert!(
                    files(folder.path()) == before,
                    "a refused folder is as it was"
                );
            }
        }
    });
}

/// Whether a file may be called so.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 100
        && !name.contains(['/', '\0'])
        && ![".", ".."].contains(&name)
}

fn open(folder: &Path, files_max: usize) -> Result<Audit, AuditError> {
    let mut config = Config::default();
    config.audit.enabled = true;
    config.audit.required = true;
    config.audit.dir = folder.to_owned();
    config.audit.file_bytes_max = FILE_BYTES_MAX;
    config.audit.files_max = files_max;
    Audit::open(&config, Arc::new(Telemetry::new()))
}

fn files(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).expect("a folder");
    let file = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("a text");
        let contents = fs::read(entry.path()).expect("a file");
        (name, contents)
    };
    entries.map(|entry| file(entry.expect("a file"))).collect()
}

/// Number and day of a file of the stream, by which they are in order; none if it has not the name of one.
fn place(name: &str) -> Option<(u64, &str)> {
    let middle = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?;
    let (number, day) = middle.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_number =
        digits(number) && (number.len() == 8 || number.len() > 8 && !number.starts_with('0'));
    let is_day = digits(day) && day.len() == 8 && is_day(day);
    let number = number.parse().ok().filter(|&number| number <= u64::MAX / 2);
    number
        .filter(|_| is_number && is_day)
        .map(|number| (number, day))
}

fn is_day(digits: &str) -> bool {
    let number = |range| {
        digits
            .get(range)
            .and_then(|part: &str| part.parse::<u32>().ok())
    };
    let (Some(year), Some(month), Some(day)) = (number(0..4), number(4..6), number(6..8)) else {
        return false;
    };
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(is_leap),
        _ => 0,
    };
    year >= 1970 && (1..=days).contains(&day)
}

/// The files of the stream, the oldest first.
fn stream(files: &Files) -> BTreeMap<(u64, &str), &[u8]> {
    files
        .iter()
        .filter_map(|(name, contents)| Some((place(name)?, &**contents)))
        .collect()
}

/// Up to the end of the last whole line.
fn whole_lines(contents: &[u8]) -> &[u8] {
    let end = contents.iter().rposition(|&byte| byte == b'\n');
    &contents[..end.map_or(0, |at| at + 1)]
}

fn check(before: &Files, after: &Files, record: &Record<'_>, files_max: usize) {
    // A key was made if there was none.
    let others = |files: &Files| {
        let mut others = files.clone();
        others.retain(|name, _| name != KEY && place(name).is_none());
        others
    };
    assert!(
        others(before) == others(after),
        "another's file was touched"
    );

    let (was, is) = (stream(before), stream(after));
    let last = was.keys().next_back();
    let mut written = Vec::new();
    let mut previous: Option<(&str, usize)> = None;
    for (file, contents) in &is {
        let kept = match was.get(file) {
            Some(was) if Some(file) == last => whole_lines(was),
            Some(was) => *was,
            None => &[],
        };
        let new = contents.strip_prefix(kept).expect("a whole line is lost");
        let lines: Vec<&[u8]> = new.split_inclusive(|&byte| byte == b'\n').collect();
        if let Some(first) = lines.first() {
            assert!(Some(file) >= last, "{file:?} is out of order");
            assert!(contents.len() as u64 <= FILE_BYTES_MAX, "{file:?} is long");
            let had_room = |(day, bytes): (&str, usize)| {
                day == file.1 && (bytes + first.len()) as u64 <= FILE_BYTES_MAX
            };
            assert!(
                was.contains_key(file) || !previous.is_some_and(had_room),
                "{file:?} was begun early"
            );
        }
        written.extend(lines);
        previous = Some((file.1, contents.len()));
    }

    assert!(is.len() <= files_max, "too many files");
    let gone: Vec<_> = was.keys().filter(|file| !is.contains_key(*file)).collect();
    let oldest = is.keys().next();
    assert!(gone.last().copied() < oldest, "a newer file went first");
    let first = usize::from(RECORDS) + 1 - written.len();
    if first > 1 || !gone.is_empty() {
        assert!(is.len() == files_max, "a file went too early");
    }
    // A record went with its file: all that is older did as well.
    assert!(first == 1 || oldest > last, "a record is lost");
    for (attempt, line) in (first..).zip(&written) {
        assert_eq!(line.last(), Some(&b'\n'));
        let line: Value = serde_json::from_slice(line).expect("JSON");
        assert_eq!(line["attempt"], attempt);
        assert_eq!(line["request_id"], record.request_id);
        assert_eq!(line["client"], record.client);
        assert_eq!(line.get("task").and_then(Value::as_str), record.task);
    }
}
