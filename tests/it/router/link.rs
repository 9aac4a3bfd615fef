//! End to end over MQTT, with a link that is cut and comes back.

use std::time::Duration;

use andon_tests::broker::{Broker, MESSAGE_TIMEOUT, Watcher};
use andon_tests::daemon::Daemon;
use andon_tests::link::{Link, Weather};
use serde_json::{Value, json};

use super::{Above, EASY, HARD, between};
use crate::ctl::{andonctl, good};

/// A daemon at a broker with a second one above, by a link that can be cut.
struct Plant {
    broker: Broker,
    daemon: Daemon,
    link: Link,
    answers: Watcher,
    status: Watcher,
    _above: Above,
}

fn plant() -> Plant {
    let above = Above::start();
    let link = Link::to(above.port).unwrap();
    let broker = Broker::start().unwrap();
    let answers = Watcher::start(broker.port(), "andon/test/response/#", "mqttv311").unwrap();
    let status = Watcher::start(broker.port(), "andon/test/status", "mqttv311").unwrap();
    let config = broker.config() + &above.config(link.port());
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let plant = Plant {
        broker,
        daemon,
        link,
        answers,
        status,
        _above: above,
    };
    plant.wait_for_status(|value| value["ready"] == true && value["upstream"]["up"] == true);
    let threshold = between(&plant.daemon);
    let router = format!("[router]\nthreshold = {threshold}\n");
    plant.daemon.configure(&router).unwrap();
    good(&andonctl(&plant.daemon, &["reload"]));
    plant
}

impl Plant {
    fn send(&self, client: &str, id: &str, text: &str, extra: &Value) {
        let mut request = json!({
            "id": id, "egress": "any", "tokens_max": 3,
            "messages": [{"role": "user", "content": text}],
        });
        if let (Value::Object(request), Value::Object(extra)) = (&mut request, extra) {
            request.extend(extra.clone());
        }
        let topic = format!("andon/test/request/{client}");
        self.broker.publish(&topic, &request.to_string()).unwrap();
    }

    fn answer(&self) -> Value {
        let answer = self.answers.next(MESSAGE_TIMEOUT).unwrap();
        answer.json().unwrap()
    }

    /// Asks, and gives where that was answered.
    fn origin(&self, id: &str, text: &str, extra: &Value) -> String {
        self.send("plc", id, text, extra);
        let answer = self.answer();
        assert_eq!(
            (&answer["type"], &answer["id"]),
            (&json!("answer"), &json!(id)),
            "{answer}"
        );
        answer["origin"].as_str().unwrap().to_owned()
    }

    fn wait_for_status(&self, wanted: impl Fn(&Value) -> bool) {
        self.status
            .wait_for(|seen| seen.json().is_ok_and(|value| wanted(&value)))
            .unwrap();
    }
}

#[test]
fn simple_stays_hard_goes_up_a_cut_link_falls_back_and_what_waited_goes_up_in_order() {
    let plant = plant();
    let events = Watcher::start(plant.broker.port(), "andon/test/event/#", "mqttv311").unwrap();
    assert_eq!(plant.origin("1", EASY, &json!({})), "local");
    assert_eq!(plant.origin("2", HARD, &json!({})), "cloud");
    let event = events
        .wait_for(|seen| seen.topic.ends_with("/escalated"))
        .unwrap();
    let event = event.json().unwrap();
    assert_eq!(
        (&event["client"], &event["id"], &event["reason"]),
        (&json!("plc"), &json!("2"), &json!("hard"))
    );
    assert_eq!(
        plant.origin("3", HARD, &json!({"egress": "local"})),
        "local"
    );
    assert_eq!(
        plant.origin("4", HARD, &json!({"policy": "local"})),
        "local"
    );

    // The link is cut: what may not wait is answered here, or not at all.
    plant.link.set(Weather::Down);
    assert_eq!(plant.origin("5", HARD, &json!({})), "local-fallback");
    plant.send("plc", "6", EASY, &json!({"policy": "cloud"}));
    let error = plant.answer();
    assert_eq!(
        (&error["type"], &error["id"]),
        (&json!("error"), &json!("6")),
        "{error}"
    );
    assert_eq!(error["error"]["code"], "upstream_unavailable", "{error}");
    assert_eq!(plant.origin("7", EASY, &json!({})), "local");

    // What may wait does, also if it only then learns that there is no link.
    let waits = json!({"wait": true});
    for number in 0..4 {
        plant.send("plc", &format!("w{number}"), HARD, &waits);
        plant.send(
            "scada",
            &format!("s{number}"),
            HARD,
            &json!({"wait": true, "policy": "cloud"}),
        );
    }
    plant.wait_for_status(|value| value["upstream"]["waiting"] == 8);
    // One that can wait no longer is answered here in time.
    let hurry = json!({"wait": true, "deadline_ms": 4000});
    assert_eq!(plant.origin("hurry", HARD, &hurry), "local-fallback");
    // One that has no time to wait is answered here at once: of five, one is on a machine that has a second for each.
    let hurry = json!({"wait": true, "deadline_ms": 1000});
    let in_time = (0..5).any(|number| {
        plant.send("plc", &format!("at once {number}"), HARD, &hurry);
        plant.answer()["origin"] == "local-fallback"
    });
    assert!(in_time);
    assert!(plant.answers.next(Duration::from_millis(300)).is_err());

    plant.link.set(Weather::Fair);
    let answers: Vec<Value> = (0..8).map(|_| plant.answer()).collect();
    for answer in &answers {
        assert_eq!(
            (&answer["type"], &answer["origin"], &answer["late"]),
            (&json!("answer"), &json!("cloud"), &json!(true)),
            "{answer}"
        );
    }
    for client in ["w", "s"] {
        let ids = answers.iter().filter_map(|answer| answer["id"].as_str());
        let ids: Vec<&str> = ids.filter(|id| id.starts_with(client)).collect();
        let expected: Vec<String> = (0..4).map(|number| format!("{client}{number}")).collect();
        assert_eq!(ids, expected, "in the order of the client");
    }
    plant.wait_for_status(|value| value["upstream"]["waiting"] == 0);
    assert_eq!(plant.origin("8", HARD, &json!({})), "cloud");
}

#[test]
fn what_waits_is_there_after_a_restart_and_goes_up_then() {
    let mut plant = plant();
    plant.link.set(Weather::Down);
    let waits = json!({"wait": true, "policy": "cloud"});
    for number in 0..3 {
        plant.send("plc", &format!("w{number}"), HARD, &waits);
    }
    plant.wait_for_status(|value| value["upstream"]["waiting"] == 3);
    plant.daemon.terminate().unwrap();
    plant.daemon.wait(Duration::from_secs(60)).unwrap();
    assert!(plant.answers.next(Duration::from_millis(300)).is_err());
    plant.link.set(Weather::Fair);
    plant.daemon.restart().unwrap();
    let ids: Vec<Value> = (0..3)
        .map(|_| {
            let answer = plant.answer();
            assert_eq!(answer["origin"], "cloud", "{answer}");
            answer["id"].clone()
        })
        .collect();
    let mut sorted = ids.clone();
    sorted.sort_by_key(Value::to_string);
    assert_eq!(sorted, [json!("w0"), json!("w1"), json!("w2")], "{ids:?}");
}
