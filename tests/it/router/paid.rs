//! What upstream costs and what it may know: budgets, secrets that stay here, and answers that are kept.

use std::fs;
use std::time::Duration;

use andon_tests::broker::{Broker, Watcher};
use andon_tests::daemon::Daemon;
use andon_tests::upstream::{Step, good};
use serde_json::{Value, json};

use super::{Scripted, ask, body, metric};

/// Everything that may goes up.
const ALL: &str = "[router]\nthreshold = 1.0\n";

const SECRETS: &str =
    "[[redact]]\nname = \"serial\"\npattern = 'SN-[0-9]{4,}'\nfields = [\"machine.serial\"]\n";

#[test]
fn what_is_spent_stays_spent_and_nothing_is_sent_that_is_not_paid_for() {
    let above = Scripted::good();
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    // The server says that each answer takes 11 tokens and 5.
    let config = format!(
        "{}{ALL}[ledger]\ndir = \"{}\"\n[[budget]]\nname = \"plant\"\ntokens-per-month = 40\nslope-percent = 100\n",
        above.config(),
        ledger.display()
    );
    let mut daemon = Daemon::builder().config(&config).start().unwrap();
    let why = body("why?", &json!({}));
    for asked in 1..=3 {
        assert_eq!(ask(&daemon, &why).0, "cloud");
        assert_eq!(above.asked().len(), asked);
    }
    let is_used_up = |daemon: &Daemon| {
        assert_eq!(ask(daemon, &why).0, "local-fallback");
        let insists = body("why?", &json!({"policy": "cloud"}));
        let reply = daemon
            .http()
            .post("/v1/chat/completions", &insists)
            .unwrap();
        let text = reply.text();
        assert_eq!(reply.status, 502, "{text}");
        assert!(
            text.contains("upstream_unavailable") && text.contains("spent"),
            "{text}"
        );
        assert_eq!(above.asked().len(), 3);
    };
    is_used_up(&daemon);
    let spent = "andon_budget_spent_tokens{budget=\"plant\",span=\"month\"}";
    assert_eq!(metric(&daemon, spent), 48);
    // It is written down before it is sent.
    daemon.kill().unwrap();
    daemon.relaunch(&[]).unwrap();
    daemon.wait_ready().unwrap();
    is_used_up(&daemon);
    // What is not known is not nothing.
    daemon.terminate().unwrap();
    daemon.wait(Duration::from_secs(20)).unwrap();
    let file = ledger.join("spent.json");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, whole.replacen("\"tokens\":", "\"tokens\":1", 1)).unwrap();
    daemon.relaunch(&[]).unwrap();
    daemon.wait_ready().unwrap();
    is_used_up(&daemon);
    assert_eq!(metric(&daemon, "andon_ledger_failing"), 1);
    let log = daemon.log();
    assert!(
        log.contains("spent.json: does not hold what was written to it"),
        "{log}"
    );
    // Nor is it once somebody has seen to it.
    daemon.terminate().unwrap();
    daemon.wait(Duration::from_secs(20)).unwrap();
    fs::remove_file(&file).unwrap();
    daemon.relaunch(&[]).unwrap();
    daemon.wait_ready().unwrap();
    assert_eq!(ask(&daemon, &why).0, "cloud");
}

#[test]
fn money_is_counted_by_the_price_of_who_answers_and_more_budgets_hold_when_they_are_configured() {
    let above = Scripted::good();
    let folder = tempfile::tempdir().unwrap();
    // 5 tokens of an answer are 1.00, and prompts cost nothing.
    let config = |money: &str, client: &str| {
        format!(
            "{}answer-price = \"200000\"\n{ALL}[ledger]\ndir = \"{}\"\n\
             [[budget]]\nname = \"plant\"\nmoney-per-month = \"{money}\"\nclients = [\"{client}\"]\nslope-percent = 100\n",
            above.config(),
            folder.path().join("ledger").display()
        )
    };
    let mut daemon = Daemon::builder()
        .config(&config("1.5", "uid-*"))
        .start()
        .unwrap();
    let why = body("why?", &json!({}));
    let routes = |daemon: &Daemon| [(); 3].map(|()| ask(daemon, &why).0);
    assert_eq!(routes(&daemon), ["cloud", "cloud", "local-fallback"]);
    let spent = "andon_budget_spent_micros{budget=\"plant\",span=\"month\"}";
    assert_eq!(metric(&daemon, spent), 2_000_000);
    let reload = |daemon: &Daemon, config: &str| {
        daemon.configure(config).unwrap();
        crate::ctl::good(&crate::ctl::andonctl(daemon, &["reload"]));
    };
    reload(&daemon, &config("3.5", "uid-*"));
    assert_eq!(routes(&daemon), ["cloud", "cloud", "local-fallback"]);
    // It is another's.
    reload(&daemon, &config("3.5", "press-*"));
    assert_eq!(routes(&daemon), ["cloud"; 3]);
    assert!(daemon.is_running());
}

#[test]
fn secrets_stay_here_and_come_back_in_the_answer() {
    let pieces = ["It is [SER", "IAL_1] (SERIAL", "_2), [SERIAL_3", "]."];
    let above = Scripted::start(vec![good(&pieces)]);
    let daemon = Daemon::builder()
        .config(&(above.config() + ALL + SECRETS))
        .start()
        .unwrap();
    // What only looks like a placeholder is a secret like any other.
    let text = "Which of SN-1234 and SN-56789, where SERIAL_7 and SN-1234 stand?";
    let sent = "Which of [SERIAL_1] and [SERIAL_2], where [SERIAL_3] and [SERIAL_1] stand?";
    let answer = "It is SN-1234 (SN-56789), SERIAL_7.";
    let (route, said, _) = ask(&daemon, &body(text, &json!({})));
    assert_eq!((route.as_str(), said.as_str()), ("cloud", answer));
    let stream = body(text, &json!({"stream": true}));
    let events = daemon
        .http()
        .events("/v1/chat/completions", &stream)
        .unwrap();
    let mut streamed = String::new();
    for line in events.rest().unwrap().lines() {
        let data = line.strip_prefix("data: ").unwrap_or_default();
        let Ok(data) = serde_json::from_str::<Value>(data) else {
            continue;
        };
        streamed += data["choices"][0]["delta"]["content"]
            .as_str()
            .unwrap_or_default();
    }
    assert_eq!(streamed, answer);
    // Inside JSON they are escaped.
    above.fake.now(good(&["{\"which\":\"[SERIAL_1]", "\"}"]));
    let quoted = body(
        "Which, SN-1234?",
        &json!({"response_format": {"type": "json_object"}}),
    );
    let (_, said, _) = ask(&daemon, &quoted);
    assert_eq!(
        serde_json::from_str::<Value>(&said).unwrap(),
        json!({"which": "SN-1234"})
    );
    let asked = above.asked();
    assert_eq!(asked[0]["messages"][0]["content"], sent);
    assert!(!json!(asked).to_string().contains("SN-"), "{asked:?}");
}

#[test]
fn fields_of_tasks_stay_here_whatever_the_task_makes_of_them() {
    let above = Scripted::start(vec![good(&["Ask who knows [SERIAL_2]."])]);
    let broker = Broker::start().unwrap();
    let watcher = Watcher::start(broker.port(), "andon/test/response/#", "mqttv311").unwrap();
    let status = Watcher::start(broker.port(), "andon/test/status", "mqttv311").unwrap();
    let task = "[task.explain]\negress = \"any\"\ntokens-max = 4\n\
        instructions = \"{{ note }} {{ machine.serial }} {{ machine.serial | lower }}\"\n";
    let daemon = Daemon::builder()
        .config(&(broker.config() + &above.config() + ALL + SECRETS + task))
        .start()
        .unwrap();
    status
        .wait_for(|seen| seen.json().is_ok_and(|value| value["ready"] == true))
        .unwrap();
    let request = json!({
        "id": "1",
        "input": {"machine": {"serial": "Press Seven"}, "note": "Press Seven stands, as does SN-4711."},
    });
    broker
        .publish("andon/test/request/plc/explain", &request.to_string())
        .unwrap();
    let mut all = Vec::new();
    let answer = watcher.wait_for(|seen| {
        let value = seen.json().unwrap();
        all.push(value.to_string());
        value["type"] == "answer"
    });
    let answer = answer.unwrap_or_else(|error| panic!("{error}: {all:?}\n{}", daemon.log()));
    let answer = answer.json().unwrap();
    assert_eq!(answer["answer"], "Ask who knows SN-4711.", "{answer}");
    assert_eq!(answer["origin"], "cloud", "{answer}");
    let asked = json!(above.asked()).to_string();
    for secret in ["Press", "press", "Seven", "seven", "4711"] {
        assert!(!asked.contains(secret), "{secret} in {asked}");
    }
}

#[test]
fn the_same_question_is_asked_once_whatever_its_secrets_are() {
    let above = Scripted::start(vec![good(&["Look at [SERIAL_1]."])]);
    let cache = "[upstream-cache]\nenabled = true\n";
    let daemon = Daemon::builder()
        .config(&(above.config() + ALL + SECRETS + cache))
        .start()
        .unwrap();
    let said = |text: &str, extra: &Value| {
        let (route, said, _) = ask(&daemon, &body(text, extra));
        assert_eq!(route, "cloud");
        said
    };
    assert_eq!(said("Why SN-1234?", &json!({})), "Look at SN-1234.");
    assert_eq!(said("Why SN-99999?", &json!({})), "Look at SN-99999.");
    assert_eq!(above.asked().len(), 1);
    said("Why SN-1234?", &json!({"seed": 1}));
    said("Why SN-1234, then?", &json!({}));
    assert_eq!(above.asked().len(), 3);
    // Off is the default.
    let daemon = Daemon::builder()
        .config(&(above.config() + ALL))
        .start()
        .unwrap();
    for asked in 4..=5 {
        ask(&daemon, &body("Why?", &json!({})));
        assert_eq!(above.asked().len(), asked);
    }
}

#[test]
fn a_kept_answer_is_given_where_no_other_can_be_had_in_time_and_not_where_it_is_of_no_use() {
    let above = Scripted::start(vec![good(&[&"[SERIAL_1] ".repeat(40)])]);
    let config = above.config() + ALL + SECRETS + "[upstream-cache]\nenabled = true\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let said = |text: &str, extra: &Value| ask(&daemon, &body(text, extra));
    assert_eq!(said("Why SN-1234?", &json!({})).0, "cloud");
    // So often it is too long with this one in it.
    above.fake.now(good(&["It is old."]));
    let long = format!("Why SN-{}?", "1".repeat(4_000));
    let (route, text, _) = said(&long, &json!({}));
    assert_eq!((route.as_str(), text.as_str()), ("cloud", "It is old."));
    assert_eq!(above.asked().len(), 2);

    // Upstream takes three seconds from now on, as far as is known.
    let slow = [
        vec![Step::Wait(Duration::from_secs(3))],
        good(&["from above"]),
    ];
    above.fake.now(slow.concat());
    for other in ["slow", "slower", "slowest"] {
        assert_eq!(said(other, &json!({})).0, "cloud");
    }
    let hurry = json!({"deadline_ms": 1_200});
    assert_eq!(said("Another?", &hurry).0, "local-fallback");
    assert_eq!(said("slow", &hurry).0, "cloud");
    assert_eq!(above.asked().len(), 5);
}
