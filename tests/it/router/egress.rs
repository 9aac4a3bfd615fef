//! What leaves the gateway, looked at where it arrives.

use std::collections::BTreeSet;
use std::env;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use andon_tests::broker::{Broker, MESSAGE_TIMEOUT, Publisher, Watcher};
use andon_tests::daemon::Daemon;
use serde_json::{Value, json};

use super::{Scripted, ask, body};

/// Requests of the randomized test: so many, or as the variable says.
const COUNT: usize = 400;
const COUNT_VARIABLE: &str = "ANDON_EGRESS_REQUESTS";
/// Connections by which it asks over HTTP at once, and requests that are open over MQTT: fewer than upstream is asked at once, so
/// that none stays for want of a place.
const CONNECTIONS: usize = 4;
const TASKS_OPEN_MAX: usize = 3;

/// Xorshift: any spread of cases does, and a failure is found again by its number.
struct Draw(u64);

impl Draw {
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        all[usize::try_from(self.0 % all.len() as u64).unwrap()]
    }
}

/// The numbers that stand between `<` and `>` in what was asked.
fn marks(asked: &[Value]) -> BTreeSet<usize> {
    let texts: Vec<String> = asked.iter().map(Value::to_string).collect();
    let marks = texts.iter().flat_map(|text| {
        let after = text.split('<').skip(1);
        after.filter_map(|rest| rest.split_once('>')?.0.parse().ok())
    });
    marks.collect()
}

/// One request of the randomized test.
struct Case {
    number: usize,
    /// Its body, or its message.
    says: Value,
    /// The task that it asks, over MQTT; over HTTP it is a conversation.
    task: Option<&'static str>,
    /// Whether it may leave, and must.
    may: bool,
    must: bool,
}

fn cases(count: usize) -> Vec<Case> {
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    let one = |number| {
        let egress = draw.of(&[None, Some("local"), Some("any")]);
        let policy = draw.of(&[None, Some("local"), Some("auto"), Some("cloud")]);
        let wait = draw.of(&[None, Some(true), Some(false)]);
        let mut says = json!({});
        for (key, value) in [("egress", egress), ("policy", policy)] {
            if let Some(value) = value {
                says[key] = value.into();
            }
        }
        if let Some(wait) = wait {
            says["wait"] = wait.into();
        }
        let task = draw.of(&["", "", "", "", "", "", "", "", "home", "up", "shut"]);
        let by_task = match task {
            "up" => Some(("any", "cloud")),
            "shut" => Some(("local", "cloud")),
            _ => None,
        };
        if task.is_empty() {
            let filler = draw.of(&["", "why? ", "Prove it, step by step, for every n. "]);
            says["messages"] = json!([{"role": "user", "content": format!("{filler}<{number}>")}]);
            says["max_tokens"] = 1.into();
        } else {
            says["id"] = format!("r{number}").into();
            says["input"] = json!({ "n": number });
        }
        // Either may say that it stays.
        let said = [egress, by_task.map(|(egress, _)| egress)];
        let is_open = said.contains(&Some("any")) && !said.contains(&Some("local"));
        let may = is_open && policy != Some("local");
        let insists = policy.or(by_task.map(|(_, policy)| policy)) == Some("cloud");
        Case {
            number,
            says,
            task: (!task.is_empty()).then_some(task),
            may,
            must: may && insists,
        }
    };
    (0..count).map(one).collect()
}

/// Has all cases of tasks answered over MQTT, a few at once.
fn ask_tasks(broker: &Broker, cases: &[Case]) {
    let watcher = Watcher::start(broker.port(), "andon/test/response/#", "mqttv311").unwrap();
    let mut publishers = ["home", "up", "shut"].map(|task| {
        let topic = format!("andon/test/request/plc/{task}");
        (task, Publisher::start(broker.port(), &topic).unwrap())
    });
    let mut open = BTreeSet::new();
    let answered = |open: &mut BTreeSet<String>| {
        let seen = watcher.next(MESSAGE_TIMEOUT).unwrap();
        let value = seen.json().unwrap();
        assert_eq!(value["type"], "answer", "{seen:?}");
        assert!(open.remove(value["id"].as_str().unwrap()), "{seen:?}");
    };
    for case in cases {
        let Some(task) = case.task else { continue };
        let of_task = publishers.iter_mut().find(|(name, _)| *name == task);
        let (_, publisher) = of_task.unwrap();
        publisher.send(&case.says.to_string()).unwrap();
        open.insert(format!("r{}", case.number));
        while open.len() >= TASKS_OPEN_MAX {
            answered(&mut open);
        }
    }
    while !open.is_empty() {
        answered(&mut open);
    }
}

#[test]
fn no_byte_of_a_request_leaves_that_may_not() {
    let count = env::var(COUNT_VARIABLE).map_or(COUNT, |count| count.parse().unwrap());
    let above = Scripted::good();
    let config = above.config()
        + "[router]\nthreshold = 0.6\ncascade = true\n\
           [task.home]\ninstructions = \"<{{ n }}>\"\ntokens-max = 1\n\
           [task.up]\ninstructions = \"<{{ n }}>\"\ntokens-max = 1\negress = \"any\"\npolicy = \"cloud\"\n\
           [task.shut]\ninstructions = \"<{{ n }}>\"\ntokens-max = 1\negress = \"local\"\npolicy = \"cloud\"\n";
    let broker = Broker::start().unwrap();
    let status = Watcher::start(broker.port(), "andon/test/status", "mqttv311").unwrap();
    let daemon = Daemon::builder()
        .config(&(broker.config() + &config))
        .start()
        .unwrap();
    status
        .wait_for(|seen| seen.json().is_ok_and(|value| value["ready"] == true))
        .unwrap();
    let cases = cases(count);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| ask_tasks(&broker, &cases));
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut connection = daemon.http().connect().unwrap();
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if case.task.is_some() {
                        continue;
                    }
                    let reply = connection.post("/v1/chat/completions", &case.says).unwrap();
                    assert_eq!(reply.status, 200, "{}: {}", case.number, reply.text());
                }
            });
        }
    });
    let of = |is: fn(&Case) -> bool| -> BTreeSet<usize> {
        let cases = cases.iter().filter(|case| is(case));
        cases.map(|case| case.number).collect()
    };
    let (must_stay, must_go) = (of(|case| !case.may), of(|case| case.must));
    let left = marks(&above.asked());
    let wrong: Vec<_> = left.intersection(&must_stay).collect();
    assert!(wrong.is_empty(), "left and may not: {wrong:?}");
    let missing: Vec<_> = must_go.difference(&left).collect();
    assert!(missing.is_empty(), "should have left: {missing:?}");
    assert!(!must_stay.is_empty() && !must_go.is_empty());
}

#[test]
fn whose_rule_keeps_it_here_is_kept_here_whatever_it_says() {
    let above = Scripted::good();
    let config = above.config()
        + "[[access]]\nusers = [\"*\"]\negress = \"local\"\npolicy = \"cloud\"\n\
           [task.up]\ninstructions = \"{{ a }}\"\negress = \"any\"\npolicy = \"cloud\"\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let reply = daemon
        .http()
        .post("/v1/chat/completions", &body("x", &json!({})))
        .unwrap();
    assert_eq!(reply.status, 403, "{}", reply.text());
    let silent = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1});
    assert_eq!(ask(&daemon, &silent).0, "local");
    assert_eq!(above.fake.connections(), 0);
}

#[test]
fn secrets_stay_and_are_back_in_the_answer() {
    // The answer says the first secret that there is, by what stands for it.
    let above = Scripted::start(vec![andon_tests::upstream::good(&[
        "Ask [STA",
        "FF_1] about it.",
    ])]);
    let config = above.config()
        + "[[redact]]\nname = \"staff\"\npattern = \"\\\\bP-[0-9]{4}\\\\b\"\nfields = [\"operator\"]\n\
           [task.up]\ninstructions = \"{{ operator }} saw {{ fault }}\"\negress = \"any\"\npolicy = \"cloud\"\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let text = "Who is P-1234, and where was P-9876?";
    let (route, answer, _) = ask(&daemon, &body(text, &json!({"policy": "cloud"})));
    assert_eq!(
        (route.as_str(), answer.as_str()),
        ("cloud", "Ask P-1234 about it.")
    );
    let stream = body(text, &json!({"policy": "cloud", "stream": true}));
    let events = daemon
        .http()
        .events("/v1/chat/completions", &stream)
        .unwrap();
    let events = events.rest().unwrap();
    assert!(
        events.contains("P-1234") && !events.contains("STAFF"),
        "{events}"
    );
    let asked = Value::Array(above.asked()).to_string();
    assert!(
        !asked.contains("1234") && !asked.contains("9876"),
        "{asked}"
    );
    assert!(
        asked.contains("[STAFF_1]") && asked.contains("[STAFF_2]"),
        "{asked}"
    );
}
