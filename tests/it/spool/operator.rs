//! `andonctl spool`.

use std::process::Output;

use andon_tests::broker::Broker;
use andon_tests::daemon::Daemon;
use serde_json::Value;

use crate::ctl;

use super::ledger::Publisher;
use super::started;

fn andonctl(daemon: &Daemon, arguments: &[&str]) -> Output {
    ctl::andonctl(daemon, &[&["spool"], arguments].concat())
}

fn said(daemon: &Daemon, arguments: &[&str]) -> String {
    ctl::good(&andonctl(daemon, arguments))
}

fn listed(daemon: &Daemon, arguments: &[&str]) -> Vec<Value> {
    let said = said(daemon, &[&["ls", "--json"], arguments].concat());
    said.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn requests_are_shown_retried_dropped_and_erased() {
    let broker = Broker::start().unwrap();
    let task = "[task.explain]\ninstructions = \"Explain {{ code }}.\"\ntokens-max = 3\n";
    let builder = Daemon::builder().config(&(broker.config() + task));
    let daemon = started(&broker, builder);
    let publisher = Publisher::start(broker.port(), "plc1");
    publisher.ask("a", r#""prompt":"alpha-one","tokens_max":2"#);
    publisher.ask("b", r#""prompt":"second","tokens_max":2"#);
    broker
        .publish(
            "andon/test/request/plc2/explain",
            r#"{"id":"c","input":{"code":"E42"}}"#,
        )
        .unwrap();
    publisher.settled();
    let began = std::time::Instant::now();
    while listed(&daemon, &[])
        .iter()
        .any(|line| line["state"] != "delivered")
    {
        assert!(began.elapsed().as_secs() < 60, "{:?}", listed(&daemon, &[]));
    }
    let all = listed(&daemon, &[]);
    assert_eq!(all.len(), 3);
    let of = |id: &str| all.iter().find(|line| line["id"] == id).unwrap();
    assert_eq!(of("a")["client"], "plc1");
    assert_eq!(of("c")["task"], "explain");
    assert_eq!(listed(&daemon, &["--task", "explain"]).len(), 1);
    let number = of("a")["number"].to_string();
    let shown: Value = serde_json::from_str(&said(&daemon, &["show", &number, "--json"])).unwrap();
    assert_eq!(shown["request"]["prompt"], "alpha-one");
    assert_eq!(shown["answer"][0]["id"], "a");
    assert!(said(&daemon, &["ls"]).contains("mqtt/plc1/a"));

    said(&daemon, &["retry", &number]);
    let began = std::time::Instant::now();
    while publisher.settled()["a"].ends.len() < 2 {
        assert!(began.elapsed().as_secs() < 60, "it is not sent again");
    }
    said(&daemon, &["drop", &number]);
    assert!(!andonctl(&daemon, &["show", &number]).status.success());
    assert!(!andonctl(&daemon, &["drop", &number]).status.success());
    assert!(
        !andonctl(&daemon, &["erase"]).status.success(),
        "what is to be said"
    );
    assert_eq!(said(&daemon, &["erase", "--client", "plc2"]), "1 erased\n");
    let file = std::fs::read(daemon.folder().join("spool/spool.redb")).unwrap();
    let told = |word: &[u8]| file.windows(word.len()).any(|bytes| bytes == word);
    assert!(told(b"second") && !told(b"E42") && !told(b"alpha-one"));
    assert_eq!(said(&daemon, &["erase", "--all"]), "1 erased\n");
    assert!(listed(&daemon, &[]).is_empty());
}
