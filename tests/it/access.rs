//! Who may ask for what: the real daemon, asked by several users of this machine and clients of a real broker.

mod peers;
mod tcp;
mod user;

use std::time::Duration;

use andon_tests::broker::{Broker, Watcher, client, succeed};
use andon_tests::daemon::Daemon;
use serde_json::{Value, json};

use crate::ctl::{andonctl, bad, good};

const TASKS: &str = "[task.explain]\ninstructions = \"Explain fault {{ code }}.\"\ntokens-max = 4\n\
                     [task.urgent]\ninstructions = \"Explain fault {{ code }}.\"\ntokens-max = 4\npriority = \"alarm\"\n";

/// A configuration that cannot be served: the daemon ends as for any other that only a person can mend, and says why.
fn refused(config: &str, words: &[&str]) {
    let mut daemon = Daemon::builder().config(config).spawn().unwrap();
    let status = daemon.wait(Duration::from_secs(60)).unwrap();
    assert_eq!(status.code(), Some(78), "{}", daemon.log());
    for word in words {
        assert!(
            daemon.log().contains(word),
            "{word} is not in {}",
            daemon.log()
        );
    }
}

#[test]
fn names_that_nobody_has_are_problems_of_their_keys() {
    refused(
        "[[access]]\nusers = [\"no-such-user-here\"]\n[[access]]\ngroups = [\"no-such-group-here\"]\n",
        &[
            "access[1].users",
            "no-such-user-here",
            "access[2].groups",
            "no-such-group-here",
        ],
    );
    refused(
        "[[access]]\nclients = [\"*\"]\ntasks = [\"none\"]\n",
        &["access[1].tasks", "[task.none]"],
    );
}

/// What the broker brings to a client that asks something, under an id that no other request of it has.
fn ask(broker: &Broker, client_name: &str, task: &str, id: u32, payload: &Value) -> Value {
    let answers = format!("andon/test/response/{client_name}/{id}");
    let watcher = Watcher::start(broker.port(), &answers, "mqttv5").unwrap();
    let mut payload = payload.clone();
    payload["id"] = id.to_string().into();
    let topic = format!("andon/test/request/{client_name}{task}");
    let mut publisher = client("mosquitto_pub", broker.port());
    publisher.args(["-q", "1", "-t", &topic, "-m", &payload.to_string()]);
    succeed(&mut publisher).unwrap();
    let seen = watcher.wait_for(|seen| {
        let value = seen.json();
        value.is_ok_and(|value| value["type"] == "answer" || value["type"] == "error")
    });
    seen.unwrap().json().unwrap()
}

#[test]
fn clients_of_the_broker_get_the_rights_of_their_names() {
    let broker = Broker::start().unwrap();
    let config = format!(
        "{}{TASKS}[[access]]\nclients = [\"plc-9\"]\ndeny = true\n\
         [[access]]\nclients = [\"plc-*\"]\ntasks = [\"explain\"]\n\
         [[access]]\nclients = [\"hmi\"]\npriority-max = \"interactive\"\nmodels = [\"tiny\"]\n\
         requests-per-minute = 2\negress = \"local\"\n",
        broker.config()
    );
    let status = Watcher::start(broker.port(), "andon/test/status", "mqttv5").unwrap();
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let ready = status.wait_for(|seen| seen.json().is_ok_and(|value| value["ready"] == true));
    ready.unwrap();
    let explain = json!({"input": {"code": "E42"}});
    let prompt = |name: &str, value: &str| {
        let mut prompt = json!({"prompt": "The belt", "tokens_max": 2});
        prompt[name] = value.into();
        prompt
    };

    let answer = ask(&broker, "plc-1", "/explain", 1, &explain);
    assert_eq!(answer["type"], "answer", "{answer}");
    for (id, (name, task, payload, allowed)) in (2..).zip([
        ("plc-1", "/urgent", explain.clone(), "explain"),
        ("plc-1", "", prompt("priority", "batch"), "explain"),
        ("plc-9", "/explain", explain.clone(), "plc-9"),
        ("other", "/explain", explain.clone(), "other"),
        ("hmi", "/urgent", explain.clone(), "interactive"),
        ("hmi", "", prompt("priority", "alarm"), "interactive"),
        ("hmi", "", prompt("egress", "any"), "local"),
        ("hmi", "", prompt("model", "big"), "tiny"),
    ]) {
        let answer = ask(&broker, name, task, id, &payload);
        let error = &answer["error"];
        assert_eq!(error["code"], "not_allowed", "{id}: {answer}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(allowed), "{id}: {message}");
    }
    // What was refused did not count. The third of a minute is too much, for this client alone.
    let hmi = |id| ask(&broker, "hmi", "", id, &prompt("priority", "batch"));
    for id in [20, 21] {
        let answer = hmi(id);
        assert_eq!(answer["type"], "answer", "{answer}");
    }
    let answer = hmi(22);
    let error = &answer["error"];
    assert_eq!(error["code"], "busy", "{answer}");
    assert!(error["retry_after_ms"].as_u64().unwrap() > 0, "{answer}");
    let answer = ask(&broker, "plc-1", "/explain", 23, &explain);
    assert_eq!(answer["type"], "answer", "{answer}");
    // Local users are none of its clients: this test's own has no rule.
    let denied = daemon.http().get("/v1/models").unwrap();
    assert_eq!(denied.status, 403, "{}", denied.text());
}

#[test]
fn who_looks_after_models_may_do_so_without_a_rule_and_asks_nothing() {
    // No user has this number, so that no rule fits this test's.
    let daemon = Daemon::builder()
        .config("[[access]]\nusers = [4000000001]\n")
        .start()
        .unwrap();
    good(&andonctl(&daemon, &["model", "ls"]));
    good(&andonctl(&daemon, &["spool", "ls"]));
    let asked = andonctl(&daemon, &["ask", "--tokens-max", "2", "The belt"]);
    bad(&asked, 1, "may ask nothing here");
    for (path, status) in [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 403),
        ("/v1/models", 403),
    ] {
        let reply = daemon.http().get(path).unwrap();
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
    }
    assert!(
        daemon.log().contains("a request was not allowed"),
        "{}",
        daemon.log()
    );
}
