use proptest::prelude::*;

use super::*;

const ALLOWED: &str = "<base>/response/<client>/#";

struct Bench {
    topics: Topics,
    allowed: Vec<String>,
    limits: LimitsConfig,
    task: Option<TaskName>,
    ids: Ids,
    properties: Properties,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            topics: Topics::with_base("andon/gw1").unwrap(),
            allowed: vec![ALLOWED.to_owned()],
            limits: LimitsConfig::default(),
            task: None,
            ids: Ids::default(),
            properties: Properties::default(),
        }
    }

    fn read(
        &mut self,
        payload: impl AsRef<[u8]>,
        now: Instant,
    ) -> (ReplyTo, Result<Parsed, Refusal>) {
        let message = Incoming {
            topic: String::new(),
            payload: Bytes::copy_from_slice(payload.as_ref()),
            retain: false,
            repeated: false,
            properties: self.properties.clone(),
            ack: None,
        };
        let place = Place {
            topics: &self.topics,
            own: &self.topics,
            client: ClientName::new("plc1").unwrap(),
            id: None,
            task: self.task.clone(),
            allowed: &self.allowed,
            limits: &self.limits,
            payload_bytes_max: 4096,
        };
        read(&message, &place, &mut self.ids, now)
    }

    fn good(&mut self, payload: impl AsRef<[u8]>) -> (ReplyTo, Parsed) {
        let (reply, outcome) = self.read(payload, Instant::now());
        (reply, outcome.unwrap())
    }

    fn bad(&mut self, payload: impl AsRef<[u8]>) -> (ReplyTo, Refusal) {
        let (reply, outcome) = self.read(payload, Instant::now());
        (reply, outcome.unwrap_err())
    }

    fn field(&mut self, payload: impl AsRef<[u8]>) -> String {
        self.bad(payload).1.field.unwrap_or_default()
    }
}

#[test]
fn a_payload_says_everything() {
    let payload = r#"{"id":"17","messages":[{"role":"user","content":"hi"}],"model":"m","temperature":0.5,
        "top_p":0.9,"top_k":40,"min_p":0.1,"repeat_penalty":1.1,"seed":7,"tokens_max":16,"stop":"\n",
        "priority":"alarm","deadline_ms":500,"egress":"any","stream":true}"#;
    let now = Instant::now();
    let (reply, outcome) = Bench::new().read(payload, now);
    let Parsed { request, id_source } = outcome.unwrap();
    assert_eq!(id_source, IdSource::Payload);
    assert_eq!(reply.topic, "andon/gw1/response/plc1/17");
    assert!(reply.stream && request.stream);
    assert_eq!(
        (request.id.as_str(), request.client.as_str()),
        ("17", "plc1")
    );
    assert_eq!(request.stop, ["\n"]);
    assert_eq!(request.priority, Some(Priority::Alarm));
    assert_eq!(request.egress, Some(Egress::Any));
    assert_eq!(request.deadline, Some(now + Duration::from_millis(500)));
    assert_eq!(
        (request.tokens_max, request.sampling.seed),
        (Some(16), Some(7))
    );
}

#[test]
fn an_answer_may_be_held_to_a_shape() {
    let mut bench = Bench::new();
    let (_, parsed) = bench.good(
        r#"{"prompt":"hi","schema":{"type":"object","properties":{"b":true,"a":{"type":"null"}}}}"#,
    );
    let format = parsed.request.format.expect("a shape");
    let Constraint::JsonSchema(schema) = &format.constraint else {
        panic!("not a schema: {format:?}");
    };
    // Properties of the answer come in the order of the schema.
    let names = schema["properties"].as_object().unwrap().keys();
    assert!(names.eq(["b", "a"]));
    assert_eq!(format.param, "schema");
    let (_, parsed) = bench.good(r#"{"prompt":"hi","regex":"yes|no"}"#);
    let format = parsed.request.format.expect("a shape");
    assert_eq!(format.constraint, Constraint::Regex("yes|no".to_owned()));
    for (payload, field) in [
        (r#"{"prompt":"hi","regex":"a","schema":{}}"#, "regex"),
        (r#"{"prompt":"hi","regex":7}"#, "regex"),
        (
            r#"{"prompt":"hi","schema":{"type":"object","type":"null"}}"#,
            "schema",
        ),
    ] {
        assert_eq!(bench.field(payload), field, "{payload}");
    }
    bench.task = Some(TaskName::new("rate").unwrap());
    assert!(
        bench
            .field(r#"{"input":{"a":1,"a":2}}"#)
            .starts_with("input")
    );
    let (_, parsed) = bench.good(r#"{"input":{"a":1},"schema":{"type":"null"}}"#);
    assert!(parsed.request.format.is_some());
}

#[test]
fn properties_say_the_same_and_the_payload_holds() {
    let mut bench = Bench::new();
    let user = [
        ("priority", "alarm"),
        ("model", "m"),
        ("egress", "any"),
        ("stream", "true"),
        ("trace", "x"),
    ];
    bench.properties.user = user
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec();
    bench.properties.expiry_s = Some(30);
    let now = Instant::now();
    let request = bench.read(r#"{"prompt":"a"}"#, now).1.unwrap().request;
    assert_eq!(request.priority, Some(Priority::Alarm));
    assert_eq!(request.model.as_deref(), Some("m"));
    assert!(request.stream);
    assert_eq!(request.deadline, Some(now + Duration::from_secs(30)));
    let said =
        r#"{"prompt":"a","priority":"batch","model":"n","stream":false,"deadline_ms":60000}"#;
    let request = bench.read(said, now).1.unwrap().request;
    assert_eq!(request.priority, Some(Priority::Batch));
    assert_eq!(request.model.as_deref(), Some("n"));
    assert!(!request.stream);
    assert_eq!(
        request.deadline,
        Some(now + Duration::from_secs(30)),
        "the earlier deadline holds"
    );
}

#[test]
fn what_is_wrong_is_named() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.field(r#"{"prompt":"a","tokens_maximum":3}"#),
        "tokens_maximum"
    );
    assert_eq!(
        bench.field(r#"{"prompt":"a","temperature":"hot"}"#),
        "temperature"
    );
    assert_eq!(
        bench.field(r#"{"messages":[{"role":"user"}]}"#),
        "messages[0]"
    );
    assert_eq!(
        bench.field(r#"{"messages":[{"role":1,"content":""}]}"#),
        "messages[0].role"
    );
    assert_eq!(
        bench.field(r#"{"prompt":"a","priority":"soon"}"#),
        "priority"
    );
    assert_eq!(
        bench.field(r#"{"prompt":"a","tokens_max":0}"#),
        "tokens_max"
    );
    assert_eq!(
        bench.field(r#"{"prompt":"a","deadline_ms":0}"#),
        "deadline_ms"
    );
    assert_eq!(bench.field(r#"{"prompt":"a","id":"a/b"}"#), "id");
    assert_eq!(bench.field(r#"{"prompt":"a","model":""}"#), "model");
    assert_eq!(bench.field(r#"{"prompt":"a","stop":[""]}"#), "stop");
    assert_eq!(
        bench.field(r#"{"prompt":"a","temperature":9}"#),
        "temperature"
    );
    assert_eq!(bench.field(r#"{"prompt":"","messages":[]}"#), "messages");
    assert_eq!(bench.field(r#"{"prompt":""}"#), "prompt");
    assert_eq!(bench.field(r#"{}"#), "messages");
    assert_eq!(bench.field(r#"{"input":{}}"#), "input");
    for (key, value) in [("priority", "soon"), ("egress", "world"), ("stream", "yes")] {
        bench.properties.user = vec![(key.to_owned(), value.to_owned())];
        assert_eq!(bench.field(r#"{"prompt":"a"}"#), key);
    }
}

#[test]
fn whatever_comes_is_answered_and_nothing_panics() {
    let mut bench = Bench::new();
    let deep = "[".repeat(4000);
    for payload in [
        b"".as_slice(),
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{}{}",
        deep.as_bytes(),
        &[b'x'; 5000],
    ] {
        let (reply, refusal) = bench.bad(payload);
        assert!(
            reply.topic.starts_with("andon/gw1/response/plc1/"),
            "{}",
            reply.topic
        );
        assert!(!refusal.fault.message.is_empty());
    }
    assert_eq!(
        bench.bad(vec![b'x'; 5000]).1.fault.code,
        FaultCode::TooLarge
    );
}

#[test]
fn a_refusal_reaches_the_id_it_belongs_to() {
    let mut bench = Bench::new();
    assert_eq!(bench.bad(r#"{"id":"9","nonsense":1}"#).0.id.as_str(), "9");
    assert_eq!(
        bench.bad(r#"{"id":9,"prompt":"a"} more"#).0.id.as_str(),
        "9"
    );
    bench.properties.correlation = Some(Bytes::from_static(&[0xc0, 0xff, 0xee]));
    assert_eq!(bench.bad("nonsense").0.id.as_str(), "c0ffee");
}

#[test]
fn ids_come_from_the_payload_the_correlation_or_here() {
    let mut bench = Bench::new();
    let (one, parsed) = bench.good(r#"{"prompt":"a"}"#);
    assert_eq!(parsed.id_source, IdSource::Made);
    assert_ne!(one.id, bench.good(r#"{"prompt":"a"}"#).0.id);
    assert_eq!(bench.good(r#"{"id":17,"prompt":"a"}"#).0.id.as_str(), "17");
    bench.properties.correlation = Some(Bytes::from_static(&[1, 0xab]));
    let (reply, parsed) = bench.good(r#"{"prompt":"a"}"#);
    assert_eq!(
        (reply.id.as_str(), parsed.id_source),
        ("01ab", IdSource::Correlation)
    );
    bench.properties.correlation = Some(Bytes::from(vec![1; 33]));
    assert_eq!(bench.good(r#"{"prompt":"a"}"#).1.id_source, IdSource::Made);
}

#[test]
fn answers_go_only_where_they_may() {
    let mut bench = Bench::new();
    let own = "andon/gw1/response/plc1/x";
    for (wanted, allowed) in [
        ("andon/gw1/response/plc1/y/z", true),
        ("andon/gw1/response/plc2/y", false),
        ("andon/gw1/request/plc1", false),
        ("andon/gw1/status", false),
        ("$SYS/x", false),
        ("andon/gw1/response/plc1/#", false),
        ("", false),
    ] {
        bench.properties.response_topic = Some(wanted.to_owned());
        let (reply, _) = bench.good(r#"{"id":"x","prompt":"a"}"#);
        assert_eq!(reply.topic, if allowed { wanted } else { own });
    }
    bench.allowed = vec!["#".to_owned()];
    for (wanted, allowed) in [
        ("reply/plc1/42", true),
        ("andon/gw1/request/plc1", false),
        ("andon/gw1/status", false),
    ] {
        bench.properties.response_topic = Some(wanted.to_owned());
        let (reply, _) = bench.good(r#"{"id":"x","prompt":"a"}"#);
        assert_eq!(reply.topic, if allowed { wanted } else { own });
    }
}

#[test]
fn a_task_takes_its_input_and_nothing_else() {
    let mut bench = Bench::new();
    bench.task = Some(TaskName::new("explain").unwrap());
    let (reply, parsed) = bench.good(r#"{"id":"1","input":{"code":"E42"}}"#);
    assert_eq!(reply.task.as_deref(), Some("explain"));
    assert!(matches!(parsed.request.input, Input::Task { ref name, .. } if name == "explain"));
    assert_eq!(bench.field(r#"{"prompt":"a"}"#), "input");
    assert_eq!(bench.field(r#"{}"#), "input");
    bench.properties.content_type = Some("text/plain".to_owned());
    assert_eq!(bench.field("a"), "content-type");
}

#[test]
fn plain_text_is_a_question_only_if_it_says_so() {
    let mut bench = Bench::new();
    assert!(
        bench
            .bad("What is E42?")
            .1
            .fault
            .message
            .contains("not JSON")
    );
    bench.properties.content_type = Some("Text/Plain; charset=utf-8".to_owned());
    let (reply, parsed) = bench.good("What is E42?");
    assert_eq!(reply.format, Format::Text);
    assert!(
        matches!(parsed.request.input, Input::Messages(ref messages) if messages[0].content == "What is E42?")
    );
    bench.bad(" ");
    bench.bad([0xff]);
    bench.properties.content_type = Some("application/xml".to_owned());
    assert_eq!(bench.field("<a/>"), "content-type");
}

#[test]
fn postcard_is_the_wire_protocol_without_its_length() {
    let mut bench = Bench::new();
    bench.properties.content_type = Some("application/postcard".to_owned());
    let mut ask = andon_wire::Ask::new(
        RequestId::new("5").unwrap(),
        andon_wire::Input::Prompt("hello"),
    );
    ask.deadline_ms = Some(5);
    let mut buffer = [0; 512];
    let frame =
        ClientFrame::Ask(ask).encode(&mut buffer).unwrap()[andon_wire::HEADER_BYTES..].to_vec();
    let (reply, parsed) = bench.good(&frame);
    assert_eq!((reply.id.as_str(), reply.format), ("5", Format::Postcard));
    assert!(matches!(parsed.request.input, Input::Prompt(ref prompt) if prompt == "hello"));
    let mut broken = frame.clone();
    broken[3] ^= 1;
    assert!(bench.bad(&broken).1.fault.message.contains("checksum"));
    let status =
        ClientFrame::Status.encode(&mut buffer).unwrap()[andon_wire::HEADER_BYTES..].to_vec();
    bench.bad(&status);
}

#[test]
fn a_cancel_names_its_id_in_several_ways() {
    for payload in [r#"{"id":"17"}"#, r#"{"id":17}"#, r#""17""#, "17", " 17\n"] {
        assert_eq!(
            cancel_id(payload.as_bytes()).unwrap().as_str(),
            "17",
            "{payload}"
        );
    }
    for payload in [b"".as_slice(), b"a/b", b"\xff", &[b'1'; 65]] {
        assert!(cancel_id(payload).is_none());
    }
}

/// Something like what clients send, seldom quite right.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        Just("1".to_owned()),
        Just("-1e99".to_owned()),
        Just("null".to_owned()),
        Just("[]".to_owned()),
        Just(r#"[{"role":"user","content":"x"}]"#.to_owned()),
        "\"[ -~é]{0,70}\"",
    ];
    let key = prop_oneof![
        Just("id"),
        Just("messages"),
        Just("prompt"),
        Just("input"),
        Just("stop"),
        Just("tokens_max"),
        Just("temperature"),
        Just("priority"),
        Just("deadline_ms"),
        Just("x"),
    ];
    let object = prop::collection::vec((key, value), 0..6).prop_map(|fields| {
        let fields: Vec<String> = fields
            .iter()
            .map(|(key, value)| format!("\"{key}\":{value}"))
            .collect();
        format!("{{{}}}", fields.join(",")).into_bytes()
    });
    prop_oneof![object, prop::collection::vec(any::<u8>(), 0..64)]
}

proptest! {
    #[test]
    fn whatever_comes_has_an_address_for_its_answer(
        payload in payload(),
        content_type in prop::option::of(prop_oneof![
            Just("application/json".to_owned()), Just("application/postcard".to_owned()), Just("text/plain".to_owned()), ".{0,20}",
        ]),
        response_topic in prop::option::of(".{0,40}"),
        correlation in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
    ) {
        let mut bench = Bench::new();
        bench.properties = Properties {
            response_topic,
            correlation: correlation.map(Bytes::from),
            content_type,
            ..Properties::default()
        };
        let (reply, outcome) = bench.read(&payload, Instant::now());
        prop_assert!(reply.topic.starts_with("andon/gw1/response/plc1/"));
        prop_assert!(topic::check_response(&reply.topic).is_ok());
        if let Ok(parsed) = outcome {
            prop_assert_eq!(parsed.request.id.as_str(), reply.id.as_str());
            prop_assert!(parsed.request.check(&bench.limits).is_ok());
        }
    }
}
