//! What becomes of a request in every state that it can be in between here and upstream.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::broker::{Broker, MESSAGE_TIMEOUT, Watcher};
use andon_tests::daemon::Daemon;
use andon_tests::http::Reply;
use andon_tests::link::{Link, Weather};
use andon_tests::upstream::{Step, event, events_head, good, status, text};
use serde_json::{Value, json};

use super::{Above, Scripted, ask, body, metric, upstream};
use crate::ctl::{andonctl, good as well};

/// Everything that may goes up.
const ALL: &str = "[router]\nthreshold = 1.0\n";

fn post(daemon: &Daemon, body: &Value) -> Reply {
    daemon.http().post("/v1/chat/completions", body).unwrap()
}

/// The status of a reply, and the word for what is wrong.
fn refused(daemon: &Daemon, body: &Value) -> (u16, String) {
    let reply = post(daemon, body);
    let error = reply.json().unwrap();
    let code = error["error"]["code"].as_str().unwrap_or_default();
    (reply.status, code.to_owned())
}

/// A whole answer that says that it took so many tokens.
fn taking(prompt: u64, completion: u64) -> Vec<Step> {
    let finish = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let usage = json!({"choices": [], "usage": {
        "prompt_tokens": prompt, "completion_tokens": completion,
    }});
    let done = b"data: [DONE]\n\n".to_vec();
    let bytes = [
        events_head(),
        text("abcd"),
        event(&finish),
        event(&usage),
        done,
    ];
    vec![Step::Send(bytes.concat()), Step::Close]
}

/// A ledger with a budget of so many tokens in a month.
fn budget(folder: &tempfile::TempDir, tokens: u64) -> String {
    format!(
        "[ledger]\ndir = \"{}\"\n[[budget]]\nname = \"plant\"\ntokens-per-month = {tokens}\nslope-percent = 100\n",
        folder.path().join("ledger").display()
    )
}

const SPENT: &str = "andon_budget_spent_tokens{budget=\"plant\",span=\"month\"}";

/// What `body("why?", …)` comes to at most: no token is less than a byte, 16 stand around a message, and 4 are the answer's.
const MOST: u64 = 4 + 4 + 16 + 4;

#[test]
fn where_nothing_can_be_made_here_in_time_upstream_has_all_of_it() {
    let above = Scripted::good();
    let daemon = Daemon::builder()
        .config(&(above.config() + ALL))
        .start()
        .unwrap();
    // From now on it is known how fast answers are made here, and nothing of upstream.
    let some = "why? ".repeat(20);
    ask(
        &daemon,
        &body(&some, &json!({"policy": "local", "max_tokens": 16})),
    );
    let long = "why? ".repeat(200_000);
    let (route, said, _) = ask(&daemon, &body(&long, &json!({"deadline_ms": 2_500})));
    assert_eq!((route.as_str(), said.as_str()), ("cloud", "from above"));
}

#[test]
fn upstream_leaves_time_for_an_answer_made_here_before_it_is_known_how_long_one_takes() {
    let hangs = Scripted::start(vec![vec![Step::Hang]]);
    let daemon = Daemon::builder()
        .config(&(hangs.config() + ALL))
        .start()
        .unwrap();
    let hurry = body("why?", &json!({"deadline_ms": 6_000}));
    assert_eq!(ask(&daemon, &hurry).0, "local-fallback");
    assert_eq!(hangs.asked().len(), 1);
}

#[test]
fn what_failed_is_paid_for_and_another_is_asked_only_if_that_is_there() {
    for (tokens, route, spent) in [(1_000, "cloud", MOST + 16), (MOST, "local-fallback", MOST)] {
        let (hangs, answers) = (Scripted::start(vec![vec![Step::Hang]]), Scripted::good());
        let folder = tempfile::tempdir().unwrap();
        let first = hangs.config() + "priority = 0\nfirst-token-timeout-ms = 300\n";
        let second = answers.config().replace("\"fake\"", "\"other\"") + "priority = 1\n";
        let config = first + &second + ALL + &budget(&folder, tokens);
        let daemon = Daemon::builder().config(&config).start().unwrap();
        assert_eq!(ask(&daemon, &body("why?", &json!({}))).0, route);
        assert_eq!(metric(&daemon, SPENT), spent);
        assert_eq!(hangs.asked().len(), 1);
        assert_eq!(answers.asked().len(), usize::from(route == "cloud"));
    }
}

#[test]
fn what_an_answer_took_is_believed_within_reason() {
    let above = Scripted::good();
    let folder = tempfile::tempdir().unwrap();
    let config = above.config() + ALL + &budget(&folder, 1_000_000_000);
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let why = body("why?", &json!({}));
    let mut before = 0;
    let mut spends = |script| {
        above.fake.now(script);
        assert_eq!(ask(&daemon, &why).0, "cloud");
        let spent = metric(&daemon, SPENT);
        spent - std::mem::replace(&mut before, spent)
    };
    assert_eq!(spends(taking(11, 3)), 14);
    // 8 bytes of a prompt are 4 tokens or fewer, 4 of an answer 2.
    assert_eq!(spends(taking(0, 0)), 4 + 2);
    assert_eq!(spends(taking(4_000_000_000, 4_000_000_000)), MOST);
    // What the model says to itself counts where nobody else counts.
    let thought =
        json!({"choices": [{"index": 0, "delta": {"reasoning_content": "x".repeat(200)}}]});
    let mut script = taking(11, 0);
    if let Some(Step::Send(bytes)) = script.first_mut() {
        let head = events_head().len();
        bytes.splice(head..head, event(&thought));
    }
    assert_eq!(spends(script), 11 + 102);
}

#[test]
fn what_a_server_adds_to_prompts_is_reserved_once_it_is_known() {
    let above = Scripted::start(vec![vec![Step::Hang]]);
    let folder = tempfile::tempdir().unwrap();
    let each = MOST + 2_000;
    let config = above.config() + ALL + &budget(&folder, 3 * each + 1);
    let daemon = Daemon::builder().config(&config).start().unwrap();
    above.fake.now(taking(each - 4, 4));
    let insists = json!({"policy": "cloud", "deadline_ms": 5_000});
    assert_eq!(ask(&daemon, &body("why?", &insists)).0, "cloud");
    assert_eq!(metric(&daemon, SPENT), each);
    // Of eight at once so many are sent as there is room for: what each of them may come to is known now.
    above.fake.now(vec![Step::Hang]);
    let codes: Vec<(u16, String)> = thread::scope(|scope| {
        let asked = [(); 8].map(|()| scope.spawn(|| refused(&daemon, &body("why?", &insists))));
        asked.map(|asked| asked.join().unwrap()).into()
    });
    let late = codes.iter().filter(|(status, _)| *status == 504).count();
    let unpaid = codes.iter().filter(|(status, _)| *status == 502).count();
    assert_eq!((late, unpaid), (2, 6), "{codes:?}");
    assert_eq!(above.asked().len(), 3);
    // Nobody knows what those came to that had no answer.
    assert_eq!(metric(&daemon, SPENT), 3 * each);
}

#[test]
fn calls_that_a_text_writes_are_no_answer() {
    let call = "<tool_call>\n{\"name\": \"stop_belt\", \"arguments\": {\"belt\": 3}}\n</tool_call>";
    let above = Scripted::start(vec![good(&["Well. ", call])]);
    let daemon = Daemon::builder()
        .config(&(above.config() + ALL))
        .start()
        .unwrap();
    let tools = json!([{"type": "function", "function": {"name": "tell", "parameters": {"type": "object"}}}]);
    let asks = |policy: &str| body("tell", &json!({"policy": policy, "tools": tools}));
    assert_eq!(
        refused(&daemon, &asks("cloud")),
        (502, "upstream_unavailable".to_owned())
    );
    let (route, said, value) = ask(&daemon, &asks("auto"));
    assert_eq!(route, "local-fallback");
    assert!(
        !said.contains("Well") && !value.to_string().contains("stop_belt"),
        "{value}"
    );
}

#[test]
fn a_client_asks_upstream_no_oftener_than_it_may_and_has_no_more_open() {
    let above = Scripted::good();
    let limits = |lines: &str| above.config() + ALL + "[limits]\n" + lines;
    let insists = body("why?", &json!({"policy": "cloud"}));
    let full = (429, "rate_limit_exceeded".to_owned());

    let daemon = Daemon::builder()
        .config(&limits("client-requests-per-minute = 2\n"))
        .start()
        .unwrap();
    for _ in 0..2 {
        assert_eq!(ask(&daemon, &insists).0, "cloud");
    }
    assert_eq!(refused(&daemon, &insists), full);
    assert_eq!(above.asked().len(), 2);
    drop(daemon);

    above.fake.now(vec![Step::Hang]);
    let daemon = Daemon::builder()
        .config(&limits("client-requests-max = 1\n"))
        .start()
        .unwrap();
    let stream = body(
        "why?",
        &json!({"policy": "cloud", "stream": true, "deadline_ms": 3_000}),
    );
    thread::scope(|scope| {
        let open = scope.spawn(|| post(&daemon, &stream));
        while above.asked().len() < 3 {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(refused(&daemon, &insists), full);
        // Of upstream comes nothing, and the deadline passes.
        let reply = open.join().unwrap();
        assert!(
            reply.text().contains("deadline_exceeded"),
            "{}",
            reply.text()
        );
    });
    assert_eq!(above.asked().len(), 3);
}

#[test]
fn a_draft_that_is_refused_here_is_refused_and_not_sent_up() {
    let above = Scripted::good();
    let config = above.config()
        + "[router]\nthreshold = 0.0\ncascade = true\ncascade-threshold = 1.0\n[limits]\nclient-requests-max = 1\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let endless =
        json!({"policy": "local", "max_tokens": 4_000, "stream": true, "ignore_eos": true});
    let mut running = daemon
        .http()
        .events("/v1/chat/completions", &body("why?", &endless))
        .unwrap();
    running.next().unwrap().unwrap();
    let full = (429, "rate_limit_exceeded".to_owned());
    assert_eq!(refused(&daemon, &body("why?", &json!({}))), full);
    assert_eq!(above.asked(), Vec::<Value>::new());
    drop(running);
    let free = Instant::now();
    while metric(&daemon, "andon_running") > 0 && free.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ask(&daemon, &body("why?", &json!({}))).0, "cloud");
}

#[test]
fn what_waits_outlasts_whatever_passes() {
    let login = status("200 OK", "", "<html>Log in</html>");
    let scripts = [
        status("401 Unauthorized", "", "{}"),
        login,
        status("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
        vec![Step::Close],
    ];
    let waits = body("why?", &json!({"policy": "cloud", "wait": true}));
    thread::scope(|scope| {
        for script in scripts {
            let waits = &waits;
            scope.spawn(move || {
                let above = Scripted::start(vec![script, good(&["from above"])]);
                let daemon = Daemon::builder().config(&above.config()).start().unwrap();
                let (route, said, value) = ask(&daemon, waits);
                assert_eq!((route.as_str(), said.as_str()), ("cloud", "from above"));
                assert_eq!(value["andon"]["late"], true, "{value}");
                assert_eq!(above.asked().len(), 2);
            });
        }
    });
}

#[test]
fn who_waits_behind_another_ends_by_its_deadline() {
    // The first fails, waits, and then has no answer while the second stands behind it.
    let failed = status("500 Internal Server Error", "", "{}");
    let above = Scripted::start(vec![failed, vec![Step::Hang]]);
    let daemon = Daemon::builder().config(&above.config()).start().unwrap();
    let waits = json!({"policy": "cloud", "wait": true, "deadline_ms": 20_000});
    thread::scope(|scope| {
        let first = scope.spawn(|| refused(&daemon, &body("first", &waits)));
        while above.asked().len() < 2 {
            thread::sleep(Duration::from_millis(10));
        }
        let began = Instant::now();
        let late = (504, "deadline_exceeded".to_owned());
        let behind = json!({"policy": "cloud", "wait": true, "deadline_ms": 1_500});
        assert_eq!(refused(&daemon, &body("second", &behind)), late);
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(1_400), "{took:?}");
        assert!(took < Duration::from_secs(8), "{took:?}");
        assert_eq!(first.join().unwrap(), late);
    });
    assert_eq!(above.asked().len(), 2);
}

#[test]
fn another_configuration_holds_for_what_waits_and_for_what_is_kept() {
    let above = Scripted::good();
    let link = Link::to(above.fake.address().port()).unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], link.port()));
    let config =
        upstream(address) + "[upstream-cache]\nenabled = true\n[router]\npolicy = \"cloud\"\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let reload = |lines: &str| {
        daemon.configure(lines).unwrap();
        well(&andonctl(&daemon, &["reload"]));
    };
    // What another model said is no answer of this one.
    for asked in [1, 1] {
        assert_eq!(ask(&daemon, &body("once", &json!({}))).0, "cloud");
        assert_eq!(above.asked().len(), asked);
    }
    reload(&upstream(address).replace("\"big\"", "\"bigger\""));
    assert_eq!(ask(&daemon, &body("once", &json!({}))).0, "cloud");
    let asked = above.asked();
    assert_eq!((asked.len(), &asked[1]["model"]), (2, &json!("bigger")));

    // What may not leave any more does not, however long it waited to.
    link.set(Weather::Down);
    let waits = body("later", &json!({"wait": true}));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| refused(&daemon, &waits));
        let began = Instant::now();
        while metric(&daemon, "andon_route_waiting") == 0 && began.elapsed() < MESSAGE_TIMEOUT {
            thread::sleep(Duration::from_millis(20));
        }
        reload("[[access]]\nusers = [\"*\"]\negress = \"local\"\n");
        link.set(Weather::Fair);
        assert_eq!(waiting.join().unwrap(), (403, "not_allowed".to_owned()));
    });
    assert_eq!(above.asked().len(), 2);
}

#[test]
fn a_client_that_leaves_a_fallback_is_told_of_once_and_as_that() {
    let above = Scripted::start(vec![status("500 Internal Server Error", "", "{}")]);
    let folder = tempfile::tempdir().unwrap();
    let audit = folder.path().join("audit");
    let config = format!(
        "{}{ALL}[audit]\nenabled = true\ndir = \"{}\"\n",
        above.config(),
        audit.display()
    );
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let endless = json!({"max_tokens": 4_000, "stream": true});
    let mut events = daemon
        .http()
        .events("/v1/chat/completions", &body("why?", &endless))
        .unwrap();
    for _ in 0..3 {
        events.next().unwrap().unwrap();
    }
    drop(events);
    let cancelled = "andon_outcomes_total{origin=\"http\",outcome=\"cancelled\"}";
    let began = Instant::now();
    while metric(&daemon, cancelled) == 0 && began.elapsed() < MESSAGE_TIMEOUT {
        thread::sleep(Duration::from_millis(20));
    }
    // A second record would come right behind the first.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(metric(&daemon, cancelled), 1);
    let records: String = fs::read_dir(&audit)
        .unwrap()
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap_or_default())
        .collect();
    let ends: Vec<&str> = records
        .lines()
        .filter(|line| line.contains("\"outcome\":\"cancelled\""))
        .collect();
    assert_eq!(ends.len(), 1, "{records}");
    assert!(
        ends[0].contains("\"route\":\"local-fallback\""),
        "{}",
        ends[0]
    );
}

#[test]
fn what_finds_no_place_in_line_waits_in_the_spool() {
    let above = Above::start();
    let link = Link::to(above.port).unwrap();
    let broker = Broker::start().unwrap();
    let answers = Watcher::start(broker.port(), "andon/test/response/#", "mqttv311").unwrap();
    let states = Watcher::start(broker.port(), "andon/test/status", "mqttv311").unwrap();
    let config = broker.config() + &above.config(link.port()) + "[router]\nwaiting-max = 1\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let state = |wanted: &dyn Fn(&Value) -> bool| {
        states
            .wait_for(|seen| seen.json().is_ok_and(|value| wanted(&value)))
            .unwrap();
    };
    state(&|value| value["ready"] == true && value["upstream"]["up"] == true);
    link.set(Weather::Down);
    for number in 0..4 {
        let request = json!({
            "id": format!("w{number}"), "egress": "any", "policy": "cloud", "wait": true, "tokens_max": 3,
            "messages": [{"role": "user", "content": "why?"}],
        });
        broker
            .publish("andon/test/request/plc", &request.to_string())
            .unwrap();
    }
    state(&|value| value["upstream"]["waiting"] == 1);
    assert!(answers.next(Duration::from_millis(500)).is_err());
    link.set(Weather::Fair);
    let mut ids: Vec<String> = (0..4)
        .map(|_| {
            let answer = answers.next(MESSAGE_TIMEOUT).unwrap().json().unwrap();
            assert_eq!(
                (&answer["type"], &answer["origin"]),
                (&json!("answer"), &json!("cloud")),
                "{answer}"
            );
            answer["id"].as_str().unwrap().to_owned()
        })
        .collect();
    ids.sort();
    assert_eq!(ids, ["w0", "w1", "w2", "w3"]);
    drop(daemon);
}
