//! Requests between the local model and upstream: the real daemon, real brokers, and upstream a second andond on another
//! socket, or a server that does what the test says.
//!
//! The tiny models never end their answers by themselves, so the token limit decides how long one is.

mod egress;
mod fails;
mod link;
mod paid;
mod redacted;
mod states;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use andon_tests::daemon::Daemon;
use andon_tests::upstream::{Fake, Greeting, Step, good};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::ctl::{andonctl, good as well};

/// A question that weights trained on anything take for easy, and one that they take for hard.
const EASY: &str = "What does E42 mean?";
const HARD: &str = "A tank of 1200 l is filled by two pumps of 35 l/min and 20 l/min while a valve leaks 4 l/min. If the first \
pump stops after 12 minutes, and the second is throttled to half when the level passes 60 %, how long does it take in all? \
Derive it step by step, compare it with the case without the leak, and prove that the order of the steps does not matter.";

/// A second andond, to be asked over loopback TCP with a token.
struct Above {
    _daemon: Daemon,
    port: u16,
    token: PathBuf,
    _folder: TempDir,
}

impl Above {
    fn start() -> Above {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        let secret = format!("{:?}", std::time::SystemTime::now());
        let secret: String = secret.chars().filter(char::is_ascii_alphanumeric).collect();
        fs::write(&token, secret).unwrap();
        let port = free();
        let config = format!(
            "[model]\nname = \"above\"\n[http]\nlisten = \"127.0.0.1:{port}\"\ntoken-file = \"{}\"\n",
            token.display()
        );
        Above {
            _daemon: Daemon::builder().config(&config).start().unwrap(),
            port,
            token,
            _folder: folder,
        }
    }

    /// Lines that have it asked by way of a port.
    fn config(&self, port: u16) -> String {
        format!(
            "[[upstream]]\nname = \"above\"\nurl = \"http://127.0.0.1:{port}/v1\"\nmodel = \"above\"\n\
             api-key-file = \"{}\"\nconnect-timeout-ms = 2000\nretries-max = 0\nopen-ms = 300\nopen-max-ms = 600\n",
            self.token.display()
        )
    }
}

/// A port that was free a moment ago.
fn free() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A server that does with each request what the scripts say, on a thread of its own.
struct Scripted {
    fake: Fake,
    /// Dropped, it ends the thread.
    _life: oneshot::Sender<()>,
}

impl Scripted {
    fn start(scripts: Vec<Vec<Step>>) -> Scripted {
        let (life, end) = oneshot::channel();
        let (started, fake) = mpsc::channel();
        thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let fake = Fake::start(Greeting::Plain, scripts).await.unwrap();
                started.send(fake).unwrap();
                drop(end.await);
            });
        });
        Scripted {
            fake: fake.recv().unwrap(),
            _life: life,
        }
    }

    /// One that answers everything.
    fn good() -> Scripted {
        Scripted::start(vec![good(&["from ", "above"])])
    }

    fn config(&self) -> String {
        upstream(self.fake.address())
    }

    /// The bodies of what it was asked.
    fn asked(&self) -> Vec<Value> {
        let seen = self.fake.seen();
        let posts = seen
            .into_iter()
            .filter(|seen| seen.line.starts_with("POST"));
        posts.map(|seen| seen.body).collect()
    }
}

fn upstream(address: SocketAddr) -> String {
    format!(
        "[[upstream]]\nname = \"fake\"\nurl = \"http://{address}/v1\"\nmodel = \"big\"\nretries-max = 0\nfailures-max = 100\n"
    )
}

/// A chat body with these fields beside.
fn body(text: &str, extra: &Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 4,
        "egress": "any",
    });
    if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
        body.extend(extra.clone());
    }
    body
}

/// Asks by HTTP, and gives the route, the text and the whole reply.
#[track_caller]
fn ask(daemon: &Daemon, body: &Value) -> (String, String, Value) {
    let reply = daemon.http().post("/v1/chat/completions", body).unwrap();
    let value = reply.json().unwrap();
    assert_eq!(reply.status, 200, "{value}");
    let route = value["andon"]["route"].as_str().unwrap().to_owned();
    assert_eq!(reply.headers["andon-route"], route.as_str());
    let text = value["choices"][0]["message"]["content"].as_str();
    (route, text.unwrap_or_default().to_owned(), value)
}

fn metric(daemon: &Daemon, line: &str) -> u64 {
    let text = daemon.http().get("/metrics").unwrap().text();
    let found = text.lines().find_map(|one| one.strip_prefix(line));
    found.map_or(0, |value| value.trim().parse().unwrap())
}

/// What `andonctl route explain` says.
fn explain(daemon: &Daemon, arguments: &[&str]) -> Value {
    let mut all = vec!["route", "explain", "--json"];
    all.extend(arguments);
    serde_json::from_str(&well(&andonctl(daemon, &all))).unwrap()
}

/// A threshold between what is thought of the easy question and of the hard one.
fn between(daemon: &Daemon) -> f64 {
    let as_good = |text| explain(daemon, &[text])["as_good"].as_f64().unwrap();
    let (easy, hard) = (as_good(EASY), as_good(HARD));
    assert!(easy > hard, "{EASY:?} {easy}, {HARD:?} {hard}");
    f64::midpoint(easy, hard)
}

#[test]
fn a_route_is_explained_and_nothing_leaves() {
    let above = Scripted::good();
    let config = above.config()
        + "[task.home]\ninstructions = \"{{ a }}\"\n[task.up]\ninstructions = \"{{ a }}\"\negress = \"any\"\npolicy = \"cloud\"\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let threshold = between(&daemon);
    daemon
        .configure(&format!("[router]\nthreshold = {threshold}\n"))
        .unwrap();
    well(&andonctl(&daemon, &["reload"]));
    let said = explain(&daemon, &[HARD]);
    assert_eq!(
        (&said["decision"], &said["reason"]),
        (&json!("cloud"), &json!("hard"))
    );
    assert!(!said["parts"].as_array().unwrap().is_empty(), "{said}");
    let said = explain(&daemon, &[EASY]);
    assert_eq!(
        (&said["decision"], &said["reason"]),
        (&json!("local"), &json!("easy"))
    );
    let said = explain(&daemon, &[HARD, "--egress", "local"]);
    assert_eq!(
        (&said["decision"], &said["reason"]),
        (&json!("local"), &json!("egress"))
    );
    for (task, decision, reason) in [("home", "local", "egress"), ("up", "cloud", "policy")] {
        let said = explain(&daemon, &["--task", task, r#"{"a": "b"}"#]);
        assert_eq!(
            (&said["decision"], &said["reason"]),
            (&json!(decision), &json!(reason))
        );
    }
    let plain = well(&andonctl(&daemon, &["route", "explain", HARD]));
    assert!(plain.starts_with("cloud (hard)\n"), "{plain}");
    let as_good = explain(&daemon, &[HARD])["as_good"].as_f64().unwrap();
    let line = format!("{as_good:.2} as upstream's; below {threshold:.2} it goes up\n");
    assert!(plain.contains(&line), "{plain}");
    assert_eq!(above.asked(), Vec::<Value>::new());
}

#[test]
fn an_estimate_is_of_the_model_that_answers() {
    let above = Scripted::good();
    let name = "[model]\nname = \"SmolLM2-135M-Instruct.Q4_1\"\n";
    let config = above.config() + name;
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let said = explain(&daemon, &[HARD]);
    assert_eq!(said["judged_as"], "smollm2-135m-instruct", "{said}");
    let number = |said: &Value, name: &str| said[name].as_f64().unwrap();
    assert!(
        number(&said, "as_good") > number(&said, "will_do"),
        "{said}"
    );
    let config = config + "[router]\nweights-model = \"any\"\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let any = explain(&daemon, &[HARD]);
    assert_eq!(any["judged_as"], "any", "{any}");
    assert_ne!(number(&any, "will_do"), number(&said, "will_do"));
    // The tiny model's own name is one that the weights do not know.
    let daemon = Daemon::builder().config(&above.config()).start().unwrap();
    assert_eq!(explain(&daemon, &[HARD])["judged_as"], "any");
}

#[test]
fn without_an_upstream_everything_is_answered_here_and_only_who_insists_is_refused() {
    let daemon = Daemon::builder().start().unwrap();
    for extra in [json!({}), json!({"policy": "auto"}), json!({"wait": true})] {
        assert_eq!(ask(&daemon, &body(HARD, &extra)).0, "local");
    }
    let reply = daemon
        .http()
        .post(
            "/v1/chat/completions",
            &body(HARD, &json!({"policy": "cloud"})),
        )
        .unwrap();
    assert_eq!(reply.status, 502);
    assert_eq!(
        reply.json().unwrap()["error"]["code"],
        "upstream_unavailable"
    );
    let wrong = body(HARD, &json!({"policy": "sky"}));
    let reply = daemon.http().post("/v1/chat/completions", &wrong).unwrap();
    assert_eq!(
        (reply.status, &reply.json().unwrap()["error"]["param"]),
        (400, &json!("policy"))
    );
}

#[test]
fn a_shadow_sends_nothing_and_says_what_it_would_have() {
    let above = Scripted::good();
    let config = above.config() + "[router]\nshadow = true\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    for _ in 0..3 {
        assert_eq!(
            ask(&daemon, &body(HARD, &json!({"policy": "cloud"}))).0,
            "local"
        );
    }
    assert_eq!(above.fake.connections(), 0);
    let line = "andon_route_shadow_total{decision=\"cloud\",reason=\"policy\"}";
    assert_eq!(metric(&daemon, line), 3);
    assert_eq!(ask(&daemon, &body(HARD, &json!({}))).0, "local");
    let log = daemon.log();
    let shadow: Vec<&str> = (log.lines())
        .filter(|line| line.contains("would be routed"))
        .collect();
    assert_eq!(shadow.len(), 4, "{log}");
    // Who says where it goes is asked for no estimate.
    assert!(shadow[3].contains("as_good"), "{log}");
    assert!(!shadow[0].contains("as_good"), "{log}");
}

#[test]
fn what_a_local_answer_is_not_sure_of_goes_up() {
    let above = Scripted::good();
    let config =
        above.config() + "[router]\nthreshold = 0.0\ncascade = true\ncascade-threshold = 1.0\n";
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let (route, text, _) = ask(&daemon, &body(EASY, &json!({})));
    assert_eq!((route.as_str(), text.as_str()), ("cloud", "from above"));
    assert_eq!(metric(&daemon, "andon_route_doubted_total"), 1);
    daemon
        .configure("[router]\ncascade-threshold = 0.0\n")
        .unwrap();
    well(&andonctl(&daemon, &["reload"]));
    let (route, text, value) = ask(&daemon, &body(EASY, &json!({})));
    assert_eq!(route, "local");
    assert!(!text.is_empty());
    assert_eq!(value["usage"]["completion_tokens"], 4);
    // Nobody sees half of one and half of the other.
    let events = daemon
        .http()
        .events(
            "/v1/chat/completions",
            &body(EASY, &json!({"stream": true})),
        )
        .unwrap()
        .rest()
        .unwrap();
    assert!(events.contains("\"route\":\"local\""), "{events}");
    assert!(!events.contains("from above"), "{events}");
    assert_eq!(above.asked().len(), 1);
}

#[test]
fn budgets_are_kept_and_an_answer_that_is_kept_costs_nothing() {
    let above = Scripted::good();
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "{}[ledger]\ndir = \"{}\"\n[[budget]]\nname = \"all\"\ntokens-per-day = 10\n\
         [upstream-cache]\nenabled = true\n[router]\npolicy = \"cloud\"\n",
        above.config(),
        folder.path().display()
    );
    let daemon = Daemon::builder().config(&config).start().unwrap();
    assert_eq!(ask(&daemon, &body("once", &json!({}))).0, "cloud");
    // More than there was is spent: only what is kept already has an answer from above.
    let (route, text, _) = ask(&daemon, &body("once", &json!({"policy": "cloud"})));
    assert_eq!(
        (route.as_str(), text.as_str()),
        ("cloud", "from above"),
        "from the cache"
    );
    let (route, ..) = ask(&daemon, &body("again", &json!({"policy": "auto"})));
    assert_ne!(route, "cloud");
    let reply = daemon
        .http()
        .post("/v1/chat/completions", &body("more", &json!({})))
        .unwrap();
    assert_eq!(
        reply.json().unwrap()["error"]["code"],
        "upstream_unavailable"
    );
    assert_eq!(above.asked().len(), 1);
}
