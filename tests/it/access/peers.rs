//! Users of this machine, as the kernel knows them.

use std::time::{Duration, Instant};

use andon_tests::daemon::Daemon;
use andon_tests::tiny_model::TinyModel;
use andon_wire::{
    Cancel, ClientFrame, Egress, ErrorCode, Input, ModelName, Priority, RequestId, ServerFrame,
    TaskName,
};
use serde_json::json;

use super::TASKS;
use super::user::{Answer, User, can_be_others, daemon, started};
use crate::ctl::{andonctl, good};

/// The user and group `daemon`, which every Linux system has under this number.
const DAEMON: u32 = 1;
/// Numbers of users and groups that nobody has.
const CLERK: u32 = 4_000_000_011;
const STRANGER: u32 = 4_000_000_012;
const SHIFT: u32 = 4_000_000_021;
/// Tokens of an answer that takes a while.
const LONG: u32 = 8_000;

#[test]
fn two_users_get_different_rights() {
    if !can_be_others() {
        return;
    }
    let daemon = daemon(&format!(
        "{TASKS}[[access]]\nusers = [\"daemon\"]\npriority-max = \"batch\"\nmodels = [\"tiny\"]\negress = \"local\"\n\
         [[access]]\nusers = [{CLERK}]\n"
    ));
    let (batch, clerk) = (
        User::new(DAEMON, &[DAEMON]),
        User::new(CLERK, &[4_000_000_020]),
    );
    let stranger = User::new(STRANGER, &[4_000_000_020]);

    // Over HTTP. Whoever says no class gets one that it may have.
    for (user, body, status) in [
        (&batch, json!({}), 200),
        (&batch, json!({"priority": "batch"}), 200),
        (&batch, json!({"priority": "interactive"}), 403),
        (&batch, json!({"priority": "alarm"}), 403),
        (&batch, json!({"model": "tiny"}), 200),
        (&clerk, json!({"priority": "alarm"}), 200),
        (&stranger, json!({}), 403),
    ] {
        let reply = user.complete(&daemon, &body);
        assert_eq!(reply.status, status, "{body}: {reply:?}");
        if status == 403 {
            let error = &reply.body["error"];
            assert_eq!(error["code"], "not_allowed", "{reply:?}");
            assert_eq!(error["type"], "permission_error", "{reply:?}");
        }
    }
    let alarm = batch.complete(&daemon, &json!({"priority": "alarm"}));
    let error = &alarm.body["error"];
    assert_eq!(error["param"], "priority");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("alarm") && message.contains("batch"),
        "{message}"
    );
    assert_eq!(stranger.http(&daemon, "GET", "/v1/models", "").status, 403);
    assert_eq!(stranger.http(&daemon, "GET", "/healthz", "").status, 200);
    assert_eq!(clerk.http(&daemon, "GET", "/v1/models", "").status, 200);

    // Over the compact socket.
    assert_eq!(batch.ask(&daemon, |_| {}), Ok(()));
    let urgent = |ask: &mut andon_wire::Ask<'_>| ask.priority = Some(Priority::Alarm);
    assert_eq!(clerk.ask(&daemon, urgent), Ok(()));
    let denied = |answer: Answer, word: &str| {
        let (code, message) = answer.expect_err("it is denied");
        assert_eq!(code, ErrorCode::Denied, "{message}");
        assert!(message.contains(word), "{word} is not in {message}");
    };
    denied(batch.ask(&daemon, urgent), "batch");
    denied(
        batch.ask(&daemon, |ask| ask.egress = Some(Egress::Any)),
        "egress",
    );
    denied(
        batch.ask(&daemon, |ask| {
            ask.input = Input::Task {
                name: TaskName::new("urgent").unwrap(),
                input_json: r#"{"code": "E42"}"#,
            };
        }),
        "alarm",
    );
    denied(
        batch.ask(&daemon, |ask| {
            ask.model = Some(ModelName::new("big").unwrap());
        }),
        "tiny",
    );
    denied(stranger.ask(&daemon, |_| {}), "may ask nothing");
    let figures = clerk.http(&daemon, "GET", "/metrics", "").body;
    let figures = figures.as_str().unwrap();
    assert!(
        figures.contains(r#"andon_outcomes_total{origin="wire",outcome="not_allowed"} 4"#)
            || figures.contains(r#"andon_outcomes_total{outcome="not_allowed",origin="wire"} 4"#),
        "{figures}"
    );
}

#[test]
fn whoever_may_ask_nothing_any_more_is_told_nothing_on_an_open_connection() {
    if !can_be_others() {
        return;
    }
    let daemon = daemon(&format!("[[access]]\nusers = [{CLERK}]\n"));
    let mut talk = User::new(CLERK, &[SHIFT]).greet(&daemon);
    let welcome = talk.next();
    let welcome = ServerFrame::decode(&welcome).unwrap();
    assert!(matches!(welcome, ServerFrame::Welcome(_)), "{welcome:?}");
    let questions = [
        ClientFrame::Status,
        ClientFrame::Models,
        ClientFrame::Health,
        ClientFrame::Service,
        ClientFrame::Draft,
    ];
    for question in &questions {
        talk.send(question);
        let answer = talk.next();
        let answer = ServerFrame::decode(&answer).unwrap();
        assert!(!matches!(answer, ServerFrame::Error(_)), "{answer:?}");
    }
    daemon
        .configure(&format!("[[access]]\nusers = [{CLERK}]\ndeny = true\n"))
        .unwrap();
    good(&andonctl(&daemon, &["reload"]));
    for question in &questions {
        talk.send(question);
        let answer = talk.next();
        let answer = ServerFrame::decode(&answer).unwrap();
        let denied =
            matches!(&answer, ServerFrame::Error(fault) if fault.code == ErrorCode::Denied);
        assert!(denied, "{answer:?}");
    }
    // What it asked for before it may still end, and the connection is the same.
    let id = RequestId::new("1").unwrap();
    talk.send(&ClientFrame::Cancel(Cancel { id }));
    let answer = talk.next();
    let answer = ServerFrame::decode(&answer).unwrap();
    assert!(matches!(answer, ServerFrame::Cancelled(_)), "{answer:?}");
}

#[test]
fn groups_are_those_of_the_process() {
    if !can_be_others() {
        return;
    }
    let daemon = daemon(&format!("[[access]]\ngroups = [{SHIFT}]\n"));
    let status = |groups: &[u32]| {
        let user = User::new(STRANGER, groups);
        user.complete(&daemon, &json!({})).status
    };
    assert_eq!(status(&[SHIFT]), 200);
    assert_eq!(status(&[4_000_000_020, SHIFT]), 200);
    assert_eq!(status(&[4_000_000_020]), 403);
    // More than there is room for at first.
    let many: Vec<u32> = (4_000_001_000..4_000_001_300).collect();
    assert_eq!(status(&many), 403);
    assert_eq!(status(&[many, vec![SHIFT]].concat()), 200);
}

#[test]
fn a_users_rates_are_its_own() {
    if !can_be_others() {
        return;
    }
    let daemon = daemon(&format!(
        "[limits]\nclient-requests-per-minute = 3\n\
         [[access]]\nusers = [{CLERK}]\nrequests-per-minute = 1\n\
         [[access]]\nusers = [{STRANGER}]\ntokens-per-minute = 3\nrequests-per-minute = 100\n\
         [[access]]\nusers = [\"*\"]\n"
    ));
    let status = |user: &User| {
        let reply = user.complete(&daemon, &json!({}));
        if reply.status == 429 {
            assert!(reply.head.contains("retry-after:"), "{reply:?}");
            assert_eq!(reply.body["error"]["code"], "rate_limit_exceeded");
        }
        reply.status
    };
    let clerk = User::new(CLERK, &[SHIFT]);
    assert_eq!([status(&clerk), status(&clerk)], [200, 429]);
    // The tokens of the first are more than those of a minute.
    let stranger = User::new(STRANGER, &[SHIFT]);
    assert_eq!([status(&stranger), status(&stranger)], [200, 429]);
    // Without a word of its own a rule leaves it at the limits of all.
    let other = User::new(DAEMON, &[DAEMON]);
    let all: Vec<u16> = (0..4).map(|_| status(&other)).collect();
    assert_eq!(all, [200, 200, 200, 429]);
}

#[test]
fn where_tasks_are_listed_nothing_else_is_answered() {
    if !can_be_others() {
        return;
    }
    let daemon = daemon(&format!(
        "{TASKS}[[access]]\nusers = [{CLERK}]\ntasks = [\"explain\"]\n"
    ));
    let clerk = User::new(CLERK, &[SHIFT]);
    let task = |name| {
        clerk.ask(&daemon, |ask| {
            ask.input = Input::Task {
                name: TaskName::new(name).unwrap(),
                input_json: r#"{"code": "E42"}"#,
            };
        })
    };
    assert_eq!(task("explain"), Ok(()));
    let (code, message) = task("urgent").expect_err("not listed");
    assert_eq!(code, ErrorCode::Denied);
    assert!(message.contains("explain"), "{message}");
    assert!(clerk.ask(&daemon, |_| {}).is_err());
    for (path, body) in [
        ("/v1/completions", json!({"prompt": "x", "echo": true})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}]}),
        ),
        ("/v1/responses", json!({"input": "x"})),
        ("/v1/embeddings", json!({"input": "x"})),
        ("/infill", json!({"input_prefix": "a", "input_suffix": "b"})),
        ("/tokenize", json!({"content": "x"})),
        ("/detokenize", json!({"tokens": [1]})),
        (
            "/apply-template",
            json!({"messages": [{"role": "user", "content": "x"}]}),
        ),
    ] {
        let reply = clerk.http(&daemon, "POST", path, &format!("\n\n{body}"));
        assert_eq!(reply.status, 403, "{path}: {reply:?}");
    }
}

#[test]
fn nobody_reads_what_another_user_asked() {
    if !can_be_others() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("long.gguf");
    TinyModel {
        context_tokens_max: 65_536,
        ..TinyModel::default()
    }
    .write(&model)
    .unwrap();
    let builder = Daemon::builder().model(&model).config(&format!(
        "[[access]]\nusers = [{CLERK}]\ngroups = [{SHIFT}]\n"
    ));
    let mut daemon = started(builder);
    let clerk = User::new(CLERK, &[4_000_000_020]);
    let (one, other) = (
        User::new(STRANGER, &[4_000_000_020, SHIFT]),
        User::new(4_000_000_013, &[SHIFT]),
    );
    let stored = one.http(
        &daemon,
        "POST",
        "/v1/responses",
        &format!("\n\n{}", json!({"input": "x", "max_output_tokens": 2})),
    );
    assert_eq!(stored.status, 200, "{stored:?}");
    let stored = format!("/v1/responses/{}", stored.body["id"].as_str().unwrap());
    // Long enough that it is not answered when the daemon ends.
    let body = json!({"prompt": "The belt", "max_tokens": LONG});
    let later = format!("idempotency-key: night\nprefer: respond-async\n\n{body}");
    let taken = one.http(&daemon, "POST", "/v1/completions", &later);
    assert_eq!(taken.status, 202, "{taken:?}");
    let kept = "/v1/requests/night";
    for user in [&clerk, &other] {
        for path in [stored.as_str(), kept] {
            for method in ["GET", "DELETE"] {
                let reply = user.http(&daemon, method, path, "");
                assert_eq!(reply.status, 404, "{method} {path}: {reply:?}");
            }
        }
        let on = json!({"input": "x", "previous_response_id": stored.rsplit('/').next()});
        let on = user.http(&daemon, "POST", "/v1/responses", &format!("\n\n{on}"));
        assert_eq!(on.status, 400, "{on:?}");
    }
    assert_eq!(one.http(&daemon, "GET", &stored, "").status, 200);

    // The same key is another request of another user.
    let theirs = json!({"prompt": "The belt", "max_tokens": 2});
    let theirs = format!("idempotency-key: night\n\n{theirs}");
    let theirs = other.http(&daemon, "POST", "/v1/completions", &theirs);
    assert_eq!(theirs.status, 200, "{theirs:?}");
    assert!(!theirs.head.contains("idempotent-replayed"), "{theirs:?}");
    let open = one.http(&daemon, "GET", kept, "");
    assert!(open.body["response"].is_null(), "{open:?}");
    // The groups of who asked outlive the daemon: it is answered by the rule that they fit.
    daemon.restart().unwrap();
    let began = Instant::now();
    loop {
        let found = one.http(&daemon, "GET", kept, "");
        assert_eq!(found.status, 200, "{found:?}");
        if found.body["response"].is_object() {
            assert_eq!(found.body["status"], 200, "{found:?}");
            assert_eq!(found.body["attempt"], 2, "{found:?}");
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "{found:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let nobody = User::new(STRANGER, &[4_000_000_020]);
    assert_eq!(nobody.http(&daemon, "GET", kept, "").status, 403);
}
