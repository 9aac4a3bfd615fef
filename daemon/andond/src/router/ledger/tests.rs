//! The ledger on real folders.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use futures_util::FutureExt as _;
use tempfile::TempDir;

use super::*;
use crate::config::budget::{BudgetConfig, LedgerConfig};

const ANYONE: Who<'static> = Who {
    client: "plc-7",
    task: None,
};

fn spend(tokens: u64) -> Spend {
    Spend { tokens, micros: 0 }
}

fn config(folder: &TempDir, tokens_per_month: u64) -> Config {
    Config {
        budget: vec![BudgetConfig {
            name: "plant".to_owned(),
            tokens_per_month: Some(tokens_per_month),
            slope_percent: 100,
            ..BudgetConfig::default()
        }],
        ledger: LedgerConfig {
            dir: folder.path().join("ledger"),
        },
        ..Config::default()
    }
}

fn open(config: Config) -> (Ledger, Current, Arc<Telemetry>) {
    let (current, telemetry) = (Current::new(Arc::new(config)), Arc::new(Telemetry::new()));
    let ledger = Ledger::open(current.clone(), Arc::clone(&telemetry));
    (ledger, current, telemetry)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn file(folder: &TempDir) -> std::path::PathBuf {
    folder.path().join("ledger/spent.json")
}

/// A copy of a ledger's folder as a power cut leaves it.
fn cut(folder: &TempDir) -> TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    fs::create_dir(copy.path().join("ledger")).expect("made");
    fs::copy(file(folder), file(&copy)).expect("a copy");
    copy
}

/// What is left of the month.
fn left(folder: &TempDir, month: u64) -> u64 {
    let (ledger, ..) = open(config(folder, month));
    // Beside another, so that nothing may go alone.
    let nothing = runtime().block_on(ledger.reserve(ANYONE, spend(0)));
    let _nothing = nothing.expect("no more than is left");
    let fits = |tokens: &u64| ledger.purse(ANYONE, spend(*tokens)).is_ok();
    (1..=month).take_while(fits).count() as u64
}

#[test]
fn what_was_spent_outlives_the_daemon_and_what_was_reserved_a_power_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = runtime();
    let (ledger, _, telemetry) = open(config(&folder, 100));
    let first = runtime
        .block_on(ledger.reserve(ANYONE, spend(40)))
        .expect("there is some");
    first.settle(spend(25));
    let _second = runtime
        .block_on(ledger.reserve(ANYONE, spend(50)))
        .expect("there is some");
    // 25 and 50 are on the disk.
    assert_eq!(left(&cut(&folder), 100), 25);
    let refused = runtime.block_on(ledger.reserve(ANYONE, spend(26)));
    assert!(matches!(refused, Err(Refusal::Spent(_))), "{refused:?}");
    drop(_second);
    ledger.close();
    assert!(
        telemetry
            .encode()
            .contains("andon_budget_spent_tokens{budget=\"plant\",span=\"month\"} 75")
    );
    drop(ledger);
    assert_eq!(left(&folder, 100), 25);
    let mode = fs::metadata(folder.path().join("ledger"))
        .expect("a folder")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_request_that_is_given_up_before_it_is_sent_costs_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ledger, ..) = open(config(&folder, 100));
    runtime().block_on(async {
        let mut asking = Box::pin(ledger.reserve(ANYONE, spend(60)));
        // It waits for the disk.
        assert!((&mut asking).now_or_never().is_none());
        assert!(ledger.purse(ANYONE, spend(50)).is_err());
        drop(asking);
        assert!(ledger.purse(ANYONE, spend(100)).is_ok());
        ledger
            .reserve(ANYONE, spend(100))
            .await
            .expect("all of it")
            .settle(spend(0));
    });
}

#[test]
fn a_damaged_file_is_named_and_is_not_an_empty_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = runtime();
    let (ledger, ..) = open(config(&folder, 100));
    runtime
        .block_on(ledger.reserve(ANYONE, spend(40)))
        .expect("there is some")
        .settle(spend(40));
    ledger.close();
    drop(ledger);
    let good = fs::read(file(&folder)).expect("a file");
    let text = String::from_utf8(good.clone()).expect("text");
    for damaged in [
        String::new(),
        text[..text.len() / 2].to_owned(),
        text.replacen("40", "10", 1),
        text.replace("\"format\":1", "\"format\":2"),
        "{}\n".to_owned(),
    ] {
        fs::write(file(&folder), &damaged).expect("writable");
        let (ledger, _, telemetry) = open(config(&folder, 100));
        let refused = runtime.block_on(ledger.reserve(ANYONE, spend(1)));
        let Err(Refusal::Unknown(why)) = refused else {
            panic!("{damaged}: {refused:?}");
        };
        assert!(why.contains("spent.json"), "{why}");
        assert!(ledger.purse(ANYONE, spend(1)).is_err());
        ledger.close();
        assert!(telemetry.encode().contains("andon_ledger_failing 1"));
        // It is as it was found, for whoever sees to it.
        assert_eq!(fs::read(file(&folder)).expect("a file"), damaged.as_bytes());
    }
    fs::write(file(&folder), good).expect("writable");
    assert_eq!(left(&folder, 100), 60);
}

#[test]
fn what_cannot_be_written_down_is_not_spent() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = runtime();
    let (ledger, _, telemetry) = open(config(&folder, 100));
    let dir = folder.path().join("ledger");
    // The folder is gone, as on a disk that is.
    let away = folder.path().join("away");
    fs::rename(&dir, &away).expect("moved");
    let refused = runtime.block_on(ledger.reserve(ANYONE, spend(40)));
    assert!(matches!(refused, Err(Refusal::Unwritten(_))), "{refused:?}");
    assert!(telemetry.encode().contains("andon_ledger_failing 1"));
    fs::rename(&away, &dir).expect("moved back");
    let held = runtime.block_on(ledger.reserve(ANYONE, spend(100)));
    held.expect("all of it is left").settle(spend(100));
    assert!(telemetry.encode().contains("andon_ledger_failing 0"));
}

#[test]
fn two_daemons_do_not_share_a_ledger() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_one, ..) = open(config(&folder, 100));
    let (other, ..) = open(config(&folder, 100));
    let refused = other.purse(ANYONE, spend(1));
    assert!(
        matches!(&refused, Err(Refusal::Unknown(why)) if why.contains("another daemon")),
        "{refused:?}"
    );
}

#[test]
fn other_budgets_hold_once_they_are_configured_and_none_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = runtime();
    let (ledger, current, _) = open(config(&folder, 100));
    runtime
        .block_on(ledger.reserve(ANYONE, spend(90)))
        .expect("there is some")
        .settle(spend(90));
    current.replace(Arc::new(config(&folder, 90)));
    assert!(matches!(
        ledger.purse(ANYONE, spend(1)),
        Err(Refusal::Spent(_))
    ));
    current.replace(Arc::new(Config::default()));
    assert_eq!(ledger.purse(ANYONE, spend(1 << 40)), Ok(Purse::Open));

    let bare = tempfile::tempdir().expect("a folder");
    let none = Config {
        budget: Vec::new(),
        ..config(&bare, 1)
    };
    let (ledger, ..) = open(none);
    runtime
        .block_on(ledger.reserve(ANYONE, spend(1 << 40)))
        .expect("no limit")
        .settle(spend(1));
    ledger.close();
    assert!(!Path::new(&bare.path().join("ledger")).exists());
}

#[test]
fn many_at_once_exceed_nothing_and_share_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ledger, ..) = open(config(&folder, 1000));
    let spent = runtime().block_on(async {
        let asks = (0..64).map(|_| ledger.reserve(ANYONE, spend(90)));
        let held: Vec<_> = futures_util::future::join_all(asks)
            .await
            .into_iter()
            .flatten()
            .collect();
        let count = held.len() as u64;
        held.into_iter().for_each(|held| held.settle(spend(90)));
        count * 90
    });
    assert_eq!(spent, 990);
    ledger.close();
    drop(ledger);
    assert_eq!(left(&folder, 1000), 10);
}
