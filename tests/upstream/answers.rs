//! What goes well: answers, further questions by the same connection, shapes, calls, and who is asked.

use std::time::Duration;

use andon_tests::upstream::{Step, end, event, events_head, good, status, text};
use andond::request::{Calling, ToolChoice};
use andond::upstream::{FaultKind, Piece, Question, Shape};
use serde_json::json;

use super::{ask, ask_for, at, question, server, until, upstreams};

#[tokio::test]
async fn an_answer_comes_in_pieces_and_the_connection_is_used_again() {
    let fake = server(good(&["It is ", "overheated."])).await;
    let all = upstreams(vec![at("plant", &fake)]);
    for _ in 0..3 {
        let outcome = ask(&all).await;
        assert_eq!(outcome.text, "It is overheated.");
        assert!(matches!(&outcome.pieces[0], Piece::First { upstream } if &**upstream == "plant"));
        assert_eq!(outcome.pieces.len(), 3);
        let answered = outcome.answered();
        assert_eq!(
            (
                answered.spent.prompt_tokens,
                answered.spent.completion_tokens
            ),
            (11, 5)
        );
        assert!(answered.spent.is_exact && answered.attempts == 1);
        assert_eq!((&*answered.model, &*answered.upstream), ("large", "plant"));
    }
    assert_eq!((fake.connections(), fake.seen().len()), (1, 3));
    let seen = &fake.seen()[0];
    assert_eq!(seen.line, "POST /v1/chat/completions HTTP/1.1");
    assert_eq!(
        seen.body["messages"],
        json!([{"role": "user", "content": "What does E42 mean?"}])
    );
    assert_eq!(
        (&seen.body["model"], &seen.body["max_tokens"]),
        (&json!("large"), &json!(100))
    );
    assert!(!seen.head.to_ascii_lowercase().contains("authorization"));
    let expected = all.expected(100).expect("it has answered");
    assert!(expected.first < Duration::from_secs(1) && expected.whole >= expected.first);
}

#[tokio::test]
async fn an_answer_that_comes_whole_is_one_too() {
    let body = json!({"choices": [{"message": {"role": "assistant", "content": "Yes."},
        "finish_reason": "length"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}});
    let fake = server(status("200 OK", "", &body.to_string())).await;
    let outcome = ask(&upstreams(vec![at("plant", &fake)])).await;
    assert_eq!(outcome.text, "Yes.");
    assert_eq!(outcome.answered().finish.name(), "length");
}

#[tokio::test]
async fn tokens_are_counted_where_nobody_says_how_many() {
    let stop = || event(&json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}));
    let usage = |prompt, completion| {
        event(
            &json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}),
        )
    };
    let thought = event(&json!({"choices": [{"delta": {"reasoning": "x".repeat(100)}}]}));
    for (name, thoughts, said, prompt, completion) in [
        ("says nothing of it", Vec::new(), Vec::new(), 6, 4),
        ("says nothing in all", Vec::new(), usage(0, 0), 6, 4),
        (
            "says nothing of the answer",
            Vec::new(),
            usage(30, 0),
            30,
            4,
        ),
        (
            "says nothing of the prompt",
            Vec::new(),
            usage(0, 40),
            6,
            40,
        ),
        ("says nothing of its thoughts", thought, Vec::new(), 6, 54),
    ] {
        let script = vec![
            Step::Send([events_head(), thoughts, text("Yes, it is."), stop(), said].concat()),
            Step::Close,
        ];
        let fake = server(script).await;
        let outcome = ask(&upstreams(vec![at("plant", &fake)])).await;
        let spent = outcome.answered().spent;
        assert!(!spent.is_exact, "{name}: {spent:?}");
        assert!(
            spent.prompt_tokens >= prompt && spent.completion_tokens >= completion,
            "{name}: {spent:?}"
        );
        assert!(
            spent.prompt_tokens <= 2 * prompt && spent.completion_tokens <= 2 * completion,
            "{name}: {spent:?}"
        );
    }
}

#[tokio::test]
async fn who_does_not_wait_for_the_answer_ends_it_at_the_server_too() {
    let script = vec![
        Step::Send([events_head(), text("a")].concat()),
        Step::Forever(text("b"), Duration::from_millis(20)),
    ];
    let fake = server(script).await;
    let all = upstreams(vec![at("plant", &fake)]);
    let mut answering = all.ask(super::permit(), question(), None);
    assert!(matches!(
        answering.next().await,
        Some(Ok(Piece::First { .. }))
    ));
    drop(answering);
    until("the server is left", || fake.left() == 1).await;
    // Nothing is held against it.
    assert!(all.link().borrow().up);
}

fn shaped() -> Question {
    Question {
        shape: Some(Shape::Schema(
            json!({"type": "object", "properties": {"cause": {"type": "string"}},
            "required": ["cause"], "additionalProperties": false}),
        )),
        ..question()
    }
}

#[tokio::test]
async fn an_answer_with_a_shape_comes_whole_or_not_at_all() {
    let right = ["{\"cause\":", " \"heat\"}\n"];
    let fake = server(good(&right)).await;
    let all = upstreams(vec![at("plant", &fake)]);
    let outcome = ask_for(&all, shaped(), None).await;
    assert_eq!(outcome.text, "{\"cause\": \"heat\"}");
    assert_eq!(outcome.pieces.len(), 2, "{:?}", outcome.pieces);
    assert_eq!(
        fake.seen()[0].body["response_format"]["json_schema"]["strict"],
        true
    );
    for wrong in [
        "The cause is heat.",
        "{\"cause\": 5}",
        "{\"reason\": \"heat\"}",
        "{\"cause\": \"a\"} {}",
    ] {
        fake.now(good(&[wrong]));
        let outcome = ask_for(&all, shaped(), None).await;
        assert_eq!(outcome.fault().kind, FaultKind::Misshapen, "{wrong}");
        assert!(!outcome.fault().sent_text && outcome.text.is_empty());
    }
    // The server itself is in order.
    assert!(all.link().borrow().up);
    // Another may know better.
    let other = server(good(&right)).await;
    let all = upstreams(vec![
        at("plant", &fake),
        andond::config::upstream::UpstreamConfig {
            priority: 1,
            ..at("other", &other)
        },
    ]);
    let outcome = ask_for(&all, shaped(), None).await;
    assert_eq!(&*outcome.answered().upstream, "other");
    assert_eq!(outcome.answered().attempts, 2);
}

#[tokio::test]
async fn calls_come_checked() {
    let calls = |name: &str, arguments: &str| {
        let delta =
            json!([{"index": 0, "id": "c1", "function": {"name": name, "arguments": arguments}}]);
        let calls = event(&json!({"choices": [{"delta": {"tool_calls": delta}}]}));
        vec![
            Step::Send([events_head(), calls, end("tool_calls")].concat()),
            Step::Close,
        ]
    };
    let fake = server(calls("stop_press", "{\"press\": 3}")).await;
    let all = upstreams(vec![at("plant", &fake)]);
    let with_tools = Question {
        tools: vec![
            json!({"type": "function", "function": {"name": "stop_press", "parameters":
            {"type": "object", "properties": {"press": {"type": "integer"}}, "required": ["press"]}}}),
        ],
        tool_choice: ToolChoice {
            calling: Calling::Maybe,
            only: None,
            single: false,
        },
        ..question()
    };
    let outcome = ask_for(&all, with_tools.clone(), None).await;
    let Piece::ToolCalls(made) = &outcome.pieces[1] else {
        panic!("{:?}", outcome.pieces);
    };
    assert_eq!(
        (
            made[0].id.as_str(),
            made[0].name.as_str(),
            made[0].arguments.as_str()
        ),
        ("c1", "stop_press", "{\"press\": 3}")
    );
    outcome.answered();
    for (name, arguments) in [
        ("start_press", "{\"press\": 3}"),
        ("stop_press", "{\"press\": \"3\"}"),
        ("stop_press", "{\"press\":"),
    ] {
        fake.now(calls(name, arguments));
        let outcome = ask_for(&all, with_tools.clone(), None).await;
        assert_eq!(
            outcome.fault().kind,
            FaultKind::Misshapen,
            "{name} {arguments}"
        );
        assert_eq!(outcome.pieces.len(), 1, "{:?}", outcome.pieces);
    }
}

#[tokio::test]
async fn the_first_in_rank_is_asked_and_the_next_when_it_fails() {
    let first = server(good(&["first"])).await;
    let second = server(good(&["second"])).await;
    let ranked = |fake, name: &str, priority| andond::config::upstream::UpstreamConfig {
        priority,
        ..at(name, fake)
    };
    let all = upstreams(vec![
        ranked(&second, "second", 2),
        ranked(&first, "first", 1),
    ]);
    for _ in 0..5 {
        assert_eq!(ask(&all).await.text, "first");
    }
    assert!(second.seen().is_empty());
    // It breaks off before it has said anything: nobody has to know.
    first.now(vec![Step::Reset]);
    let outcome = ask(&all).await;
    assert_eq!(
        (outcome.text.as_str(), outcome.answered().attempts),
        ("second", 2)
    );
    // Whom the question is to avoid is not asked.
    first.now(good(&["first"]));
    let avoiding = Question {
        avoid: vec!["first".into()],
        ..question()
    };
    assert_eq!(ask_for(&all, avoiding, None).await.text, "second");
    // After it has said something it is not replaced: that would be half an answer and another.
    first.now(vec![
        Step::Send([events_head(), text("fir")].concat()),
        Step::Reset,
    ]);
    let outcome = ask(&all).await;
    assert_eq!(outcome.text, "fir");
    assert!(outcome.fault().sent_text && outcome.fault().kind == FaultKind::Broken);
    assert_eq!(outcome.fault().upstream.as_deref(), Some("first"));
}

#[tokio::test]
async fn no_more_is_asked_at_once_than_it_may_have() {
    let fake = server(vec![Step::Hang]).await;
    let one = andond::config::upstream::UpstreamConfig {
        requests_max: 2,
        ..at("plant", &fake)
    };
    let all = upstreams(vec![one]);
    let open: Vec<_> = (0..2)
        .map(|_| all.ask(super::permit(), question(), None))
        .collect();
    until("both are there", || fake.seen().len() == 2).await;
    let outcome = ask(&all).await;
    assert_eq!(outcome.fault().kind, FaultKind::Busy);
    assert!(outcome.took < Duration::from_millis(300));
    drop(open);
    until("both have gone", || fake.left() == 2).await;
    fake.now(good(&["now"]));
    assert_eq!(ask(&all).await.text, "now");
}
