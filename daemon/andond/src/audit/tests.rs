//! The stream as a whole, on real folders.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tempfile::TempDir;

use super::files::Files;
use super::{Audit, AuditError, Inner, Record, waiting_max};
use crate::config::Config;
use crate::config::audit::AuditConfig;
use crate::telemetry::Telemetry;

const DAY: Duration = Duration::from_secs(86_400);

fn config(folder: &TempDir) -> AuditConfig {
    AuditConfig {
        enabled: true,
        dir: folder.path().join("audit"),
        ..AuditConfig::default()
    }
}

fn whole(audit: AuditConfig) -> Config {
    Config {
        audit,
        ..Config::default()
    }
}

fn at(day: u32) -> SystemTime {
    UNIX_EPOCH + DAY * (20_000 + day) + DAY / 2
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name != "key").collect();
    names.sort();
    names
}

fn lines(folder: &Path) -> Vec<String> {
    let files = names(folder).into_iter().map(|name| folder.join(name));
    let texts = files.map(|path| fs::read_to_string(path).expect("text"));
    texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn record(id: &str) -> Record<'_> {
    Record {
        request_id: id,
        client: "uid-7",
        outcome: "stop",
        ..Record::default()
    }
}

fn last(folder: &Path) -> PathBuf {
    folder.join(names(folder).last().expect("a file"))
}

#[test]
fn records_are_json_a_line_each_for_the_daemon_only() {
    let folder = TempDir::new().expect("a folder");
    let config = whole(config(&folder));
    let telemetry = Arc::new(Telemetry::new());
    let audit = Audit::open(&config, Arc::clone(&telemetry)).expect("it opens");
    assert!(audit.is_on() && audit.refuses().is_none());
    let digest = audit.mac().expect("a key").begin();
    for id in ["1", "2\n{}"] {
        audit.put(&Record {
            prompt_hmac: Some(digest.hex()),
            seed: Some(u64::MAX),
            ..record(id)
        });
    }
    audit.close();
    let dir = &config.audit.dir;
    let records: Vec<Value> = lines(dir)
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(records.len(), 2);
    assert_eq!(records[1]["request_id"], "2\n{}");
    assert_eq!(records[0]["seed"], u64::MAX);
    assert_eq!(records[0]["v"], 1);
    assert!(records[0]["time"].as_str().expect("a time").ends_with('Z'));
    // What is not known is not there.
    assert!(records[0].get("task").is_none() && records[0].get("sampler").is_none());
    for path in [dir.clone(), dir.join("key"), last(dir)] {
        let mode = fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
    assert!(telemetry.encode().contains("andon_audit_records_total 2"));

    // The next start goes on in the same file, with the same key.
    let audit = Audit::open(&config, telemetry).expect("it opens again");
    assert_eq!(audit.mac().expect("a key").begin().hex(), digest.hex());
    audit.put(&record("3"));
    audit.close();
    assert_eq!((names(dir).len(), lines(dir).len()), (1, 3));
}

#[test]
fn a_number_given_twice_counts_as_two_files() {
    let folder = TempDir::new().expect("a folder");
    let config = AuditConfig {
        files_max: 2,
        ..config(&folder)
    };
    fs::create_dir(&config.dir).expect("a folder");
    let names_of = |day: u32, number: u32| format!("audit-{number:08}-{}.jsonl", 20_241_001 + day);
    for name in [names_of(1, 1), names_of(2, 2), names_of(3, 2)] {
        fs::write(config.dir.join(name), "{}\n").expect("written");
    }
    let (mut files, _) = Files::open(&config).expect("it opens");
    // 2024-10-04, the day of the last: it is written to, and the oldest goes.
    files.look(at(0)).expect("looked");
    assert_eq!(names(&config.dir), [names_of(2, 2), names_of(3, 2)]);
}

#[test]
fn a_torn_last_line_goes_and_the_rest_stays() {
    let folder = TempDir::new().expect("a folder");
    let config = config(&folder);
    for (torn, left) in [
        ("{\"v\":1}\n{\"v\":", 1),
        ("{\"v\":1}\n", 1),
        ("{\"v\":1}\n\0\0\0\0", 1),
        (&format!("{{}}\n{{}}\n{}", "x".repeat(10_000)), 2),
        (&"x".repeat(10_000), 0),
        ("", 0),
    ] {
        drop(Files::open(&config).expect("a folder"));
        let path = config.dir.join("audit-00000007-20241004.jsonl");
        fs::write(&path, torn).expect("a file");
        let (mut files, _) = Files::open(&config).expect("it opens");
        assert_eq!(lines(&config.dir).len(), left, "{torn:.20}");
        // Its day is over.
        files.append("{\"v\":2}\n", at(1)).expect("it is written");
        files.sync().expect("it is safe");
        assert_eq!(lines(&config.dir).len(), left + 1);
        assert!(last(&config.dir).ends_with("audit-00000008-20241005.jsonl"));
        drop(files);
        fs::remove_dir_all(&config.dir).expect("it goes");
    }
}

#[test]
fn what_is_not_called_as_files_are_is_none_and_stays() {
    let folder = TempDir::new().expect("a folder");
    let config = whole(config(&folder));
    let dir = &config.audit.dir;
    fs::create_dir_all(dir).expect("a folder");
    let others = [
        "audit-7-20261101.jsonl",
        "audit-+0000007-20261101.jsonl",
        "audit-00000007-20260231.jsonl",
        "audit-18446744073709551615-20261101.jsonl",
    ];
    for name in others {
        fs::write(dir.join(name), "no whole line").expect("written");
    }
    let audit = Audit::open(&config, Arc::new(Telemetry::new())).expect("it opens");
    audit.put(&record("1"));
    audit.close();
    for name in others {
        let text = fs::read_to_string(dir.join(name)).expect("it is there");
        assert_eq!(text, "no whole line", "{name}");
    }
    let first = names(dir)
        .into_iter()
        .find(|name| name.starts_with("audit-00000001-"));
    assert!(first.is_some(), "{:?}", names(dir));
}

#[test]
fn files_are_of_one_day_and_bounded_and_the_oldest_go() {
    let folder = TempDir::new().expect("a folder");
    let line = format!("{}\n", "x".repeat(999));
    let config = AuditConfig {
        file_bytes_max: 2000,
        files_max: 4,
        bytes_max: 7000,
        days_max: 10,
        ..config(&folder)
    };
    let (mut files, _) = Files::open(&config).expect("it opens");
    let mut append = |day| files.append(&line, at(day)).expect("it is written");
    let count = || names(&config.dir).len();
    (0..2).for_each(|_| append(0));
    assert_eq!(count(), 1);
    append(0);
    append(1);
    assert_eq!(count(), 3, "one is full, one is of yesterday");
    // Files of less than they may have.
    append(2);
    append(3);
    assert_eq!(count(), 4);
    // Of the five, those that are more than ten days old go.
    append(8);
    append(14);
    let left = names(&config.dir);
    assert_eq!(left.len(), 2, "{left:?}");
    // The clock is set back: numbers go on.
    append(2);
    assert!(
        last(&config.dir)
            .display()
            .to_string()
            .contains("-00000008-")
    );
    // Bytes: three full ones are as much as there may be.
    (0..8).for_each(|_| append(2));
    let bytes: u64 = names(&config.dir)
        .iter()
        .map(|name| {
            fs::metadata(config.dir.join(name))
                .expect("it is there")
                .len()
        })
        .sum();
    assert!(bytes <= 7000, "{bytes}");
}

#[test]
fn a_clock_that_is_wrong_for_once_removes_nothing() {
    let folder = TempDir::new().expect("a folder");
    let config = AuditConfig {
        days_max: 10,
        ..config(&folder)
    };
    let (mut files, _) = Files::open(&config).expect("it opens");
    let mut append = |day| files.append("{}\n", at(day)).expect("it is written");
    // Far in the past before anything, right, far ahead, right again, and once more in the past.
    for day in [0, 2000, 2001, 9000, 2002, 1, 2003, 2004] {
        append(day);
    }
    assert_eq!(lines(&config.dir).len(), 8);
    // All of them grow old as the days pass.
    (2005..=2016).for_each(&mut append);
    let left = names(&config.dir);
    assert_eq!(left.len(), 11, "{left:?}");
}

#[test]
fn what_is_too_old_goes_also_while_nobody_asks() {
    let folder = TempDir::new().expect("a folder");
    let config = AuditConfig {
        days_max: 10,
        ..config(&folder)
    };
    let (mut files, _) = Files::open(&config).expect("it opens");
    files.append("{}\n", at(0)).expect("it is written");
    drop(files);
    // The daemon was off, and what it finds is as old as it was.
    let (mut files, _) = Files::open(&config).expect("it opens");
    for day in 1000..=1010 {
        files.look(at(day)).expect("it looks");
        assert_eq!(lines(&config.dir).len(), 1, "{day}");
    }
    files.look(at(1011)).expect("it looks");
    assert_eq!(lines(&config.dir).len(), 0, "{:?}", names(&config.dir));
    assert_eq!(names(&config.dir).len(), 1);
    drop(files);
    fs::remove_dir_all(&config.dir).expect("it goes");
    fs::create_dir(&config.dir).expect("a folder");

    // The thread looks when it starts, with no record.
    for number in 1..=12 {
        let name = format!("audit-{number:08}-{}.jsonl", 20_241_000 + number);
        fs::write(config.dir.join(name), "{}\n").expect("a file");
    }
    let audit = Audit::open(&whole(config.clone()), Arc::new(Telemetry::new())).expect("it opens");
    audit.close();
    let left = names(&config.dir);
    assert!(left.len() == 12 && left[0].contains("20241002"), "{left:?}");
}

#[test]
fn a_disk_that_hangs_refuses_requests_before_a_record_is_lost_and_is_not_waited_for() {
    let folder = TempDir::new().expect("a folder");
    let config = whole(AuditConfig {
        required: true,
        ..config(&folder)
    });
    let patience = Duration::from_millis(300);
    let telemetry = Arc::new(Telemetry::new());
    let start = || {
        let inner = Inner::new(&config, Arc::clone(&telemetry), patience);
        let mut files = inner.open_files().expect("a folder");
        files
            .append("{}\n", SystemTime::now())
            .expect("it is written");
        files.sync().expect("it is safe");
        // A full pipe blocks whoever writes to it.
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let size = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ);
        let size = usize::try_from(size.expect("a size")).expect("a size");
        writer.write_all(&vec![0; size]).expect("room");
        files.divert(File::from(OwnedFd::from(writer)));
        let audit = Audit::start(inner, Some(files)).expect("it starts");
        (audit, reader, size)
    };
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(30), "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let is_busy = |audit: &Audit| {
        audit
            .inner
            .as_ref()
            .expect("on")
            .queue()
            .busy
            .is_some_and(|busy| busy.records > 0)
    };

    // One record is enough, if it takes long.
    let (audit, mut reader, size) = start();
    audit.put(&record("1"));
    until("it is busy", &|| is_busy(&audit));
    until("it refuses", &|| audit.refuses().is_some());
    assert!(telemetry.encode().contains("andon_audit_failing 1"));
    // Those that are open have room, all of them.
    let open = config.limits.queue_max + config.engine.parallel_max;
    (0..open).for_each(|_| audit.put(&record("2")));
    assert!(telemetry.encode().contains("andon_audit_lost_total 0"));
    // It works again.
    let mut read = vec![0; size];
    reader.read_exact(&mut read).expect("what filled it");
    let rest = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    until("it works again", &|| audit.refuses().is_none());
    audit.close();
    drop(audit);
    rest.join().expect("it ends").expect("it reads");

    // Many are too many at once.
    let (audit, reader, _) = start();
    audit.put(&record("1"));
    until("it is busy", &|| is_busy(&audit));
    let half = waiting_max(&config) / 2;
    (0..half).for_each(|_| audit.put(&record("2")));
    assert!(audit.refuses().is_some());
    let began = Instant::now();
    audit.close();
    assert!(began.elapsed() >= 2 * patience && began.elapsed() < Duration::from_secs(20));
    drop(reader);
}

#[test]
fn a_folder_has_one_daemon_and_a_key_of_the_right_size() {
    let folder = TempDir::new().expect("a folder");
    let config = AuditConfig {
        required: true,
        ..config(&folder)
    };
    let telemetry = || Arc::new(Telemetry::new());
    let first = Audit::open(&whole(config.clone()), telemetry()).expect("it opens");
    let second = Audit::open(&whole(config.clone()), telemetry());
    assert!(matches!(second, Err(AuditError::InUse(_))), "{second:?}");
    first.close();
    drop(first);
    fs::write(config.dir.join("key"), "short").expect("a key");
    let error = Audit::open(&whole(config), telemetry()).expect_err("no key");
    assert!(
        error.needs_a_person() && error.to_string().contains("32 bytes"),
        "{error}"
    );
}

#[test]
fn with_no_folder_answers_go_on_or_not_as_it_is_asked_and_nothing_grows() {
    let folder = TempDir::new().expect("a folder");
    let mut audit_config = config(&folder);
    fs::write(&audit_config.dir, "in the way").expect("a file");
    audit_config.required = true;
    let telemetry = Arc::new(Telemetry::new());
    let refused = Audit::open(&whole(audit_config.clone()), Arc::clone(&telemetry));
    assert!(matches!(refused, Err(AuditError::Io(..))), "{refused:?}");

    audit_config.required = false;
    let config = whole(audit_config);
    let audit = Audit::open(&config, Arc::clone(&telemetry)).expect("it goes on without");
    assert!(audit.mac().is_none() && audit.refuses().is_none());
    assert!(telemetry.encode().contains("andon_audit_failing 1"));
    let most = waiting_max(&config);
    let began = Instant::now();
    for index in 0..3 * most {
        audit.put(&record(&index.to_string()));
    }
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "nobody waits for the disk"
    );
    // As much as may wait is written once the folder can be made.
    fs::remove_file(&config.audit.dir).expect("it goes");
    let start = Instant::now();
    while !telemetry.encode().contains("andon_audit_failing 0") {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "it never recovers"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    audit.close();
    let written = lines(&config.audit.dir).len();
    // What was taken out of the queue before it filled up waits beside it.
    assert!((most..=2 * most).contains(&written), "{written} of {most}");
    let counted = format!("andon_audit_lost_total {}", 3 * most - written);
    assert!(
        telemetry.encode().contains(&counted),
        "{}",
        telemetry.encode()
    );
}

#[test]
fn where_it_is_off_nothing_happens() {
    let folder = TempDir::new().expect("a folder");
    let config = whole(AuditConfig {
        enabled: false,
        ..config(&folder)
    });
    let audit = Audit::open(&config, Arc::new(Telemetry::new())).expect("nothing to open");
    audit.put(&record("1"));
    audit.close();
    assert!(!config.audit.dir.exists() && audit.mac().is_none());
    assert_eq!(Audit::memory_bytes_max(&config), 0);
}

#[test]
fn the_longest_names_fit_into_a_record() {
    let names = "\u{7f}".repeat(256);
    let digest = "0".repeat(64);
    let record = Record {
        request_id: &"\"".repeat(128),
        client: &"\"".repeat(64),
        task: Some(&"\"".repeat(64)),
        model: &names[..128],
        schema_sha256: Some(&digest),
        prompt_hmac: Some(digest.clone()),
        answer_hmac: vec![digest.clone(); crate::request::CHOICES_MAX as usize],
        weights_sha256: &vec![digest.clone(); 8],
        seed: Some(u64::MAX),
        sampler: Some((&andon_engine::sample::SamplingOptions::default()).into()),
        ..record("")
    };
    assert!(
        record.line().len() < super::RECORD_BYTES_MAX,
        "{}",
        record.line().len()
    );
}
