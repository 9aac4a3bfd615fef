//! Whatever can be said comes back as it was said, and bytes that say nothing do no harm.
#![forbid(unsafe_code)]

use andon_wire::{
    Ask, Chunk, ClientFrame, Done, Egress, ErrorCode, Fault, Finish, FrameReader, HEADER_BYTES,
    Input, Message, ModelName, Origin, Priority, RequestId, Role, Sampling, ServerFrame, TaskName,
    Timings, Usage, checksum,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

const BUFFER_BYTES: usize = 16 * 1024;

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._ éß-]{1,32}"
}

fn id() -> impl Strategy<Value = RequestId> {
    name().prop_map(|text| RequestId::new(&text).unwrap())
}

fn model() -> impl Strategy<Value = ModelName> {
    name().prop_map(|text| ModelName::new(&text).unwrap())
}

/// What an input is made of, before it is borrowed.
#[derive(Clone, Debug)]
enum Owned {
    Messages(Vec<(Role, String)>),
    Prompt(String),
    Task(String, String),
}

fn input() -> impl Strategy<Value = Owned> {
    let role = select(vec![Role::System, Role::User, Role::Assistant, Role::Tool]);
    prop_oneof![
        vec((role, any::<String>()), 0..8).prop_map(Owned::Messages),
        any::<String>().prop_map(Owned::Prompt),
        (name(), any::<String>()).prop_map(|(name, json)| Owned::Task(name, json)),
    ]
}

fn borrow(input: &Owned) -> Input<'_> {
    match input {
        Owned::Messages(messages) => Input::Messages(
            messages
                .iter()
                .map(|(role, text)| Message {
                    role: *role,
                    content: text,
                })
                .collect(),
        ),
        Owned::Prompt(text) => Input::Prompt(text),
        Owned::Task(name, json) => Input::Task {
            name: TaskName::new(name).unwrap(),
            input_json: json,
        },
    }
}

fn number() -> impl Strategy<Value = Option<f32>> {
    of(-1e9..1e9f32)
}

prop_compose! {
    fn sampling()(
        temperature in number(),
        top_p in number(),
        top_k in of(any::<u32>()),
        min_p in number(),
        repeat_penalty in number(),
        repeat_last_n in of(any::<u32>()),
        presence_penalty in number(),
        frequency_penalty in number(),
        seed in of(any::<u64>()),
    ) -> Sampling {
        Sampling {
            temperature, top_p, top_k, min_p, repeat_penalty, repeat_last_n, presence_penalty,
            frequency_penalty, seed,
        }
    }
}

prop_compose! {
    fn done()(
        id in id(),
        model in model(),
        (attempt, chunks) in any::<(u16, u32)>(),
        finish in select(vec![Finish::Stop, Finish::Length, Finish::Cancelled]),
        origin in select(Origin::ALL.to_vec()),
        (prompt_tokens, cached_tokens, completion_tokens) in any::<(u32, u32, u32)>(),
        (queue_us, prefill_us, decode_us, first_token_us) in any::<(u64, u64, u64, u64)>(),
    ) -> Done {
        Done {
            id, attempt, chunks, finish, model,
            usage: Usage { prompt_tokens, cached_tokens, completion_tokens },
            timings: Timings { queue_us, prefill_us, decode_us, first_token_us },
            origin,
        }
    }
}

proptest! {
    #[test]
    fn requests(
        (id, input, model, sampling) in (id(), input(), of(model()), sampling()),
        tokens_max in of(any::<u32>()),
        stop in vec(any::<String>(), 0..8),
        priority in of(select(Priority::ALL.to_vec())),
        deadline_ms in of(any::<u32>()),
        egress in of(select(vec![Egress::Local, Egress::Any])),
        stream in any::<bool>(),
    ) {
        let stop = stop.iter().map(String::as_str).collect();
        let input = borrow(&input);
        let frame = ClientFrame::Ask(Ask {
            id, input, model, sampling, tokens_max, stop, priority, deadline_ms, egress, stream,
        });
        let mut buffer = vec![0; BUFFER_BYTES];
        let bytes = frame.encode(&mut buffer).unwrap();
        prop_assert_eq!(ClientFrame::decode(&bytes[HEADER_BYTES..]), Ok(frame));
    }

    #[test]
    fn chunks(id in id(), (attempt, sequence, text) in any::<(u16, u32, String)>()) {
        let frame = ServerFrame::Chunk(Chunk { id, attempt, sequence, text: &text });
        let mut buffer = vec![0; BUFFER_BYTES];
        let bytes = frame.encode(&mut buffer).unwrap();
        prop_assert_eq!(ServerFrame::decode(&bytes[HEADER_BYTES..]), Ok(frame.clone()));
    }

    #[test]
    fn ends(done in done()) {
        let frame = ServerFrame::Done(done);
        let mut buffer = vec![0; BUFFER_BYTES];
        let bytes = frame.encode(&mut buffer).unwrap();
        prop_assert_eq!(ServerFrame::decode(&bytes[HEADER_BYTES..]), Ok(frame));
    }

    #[test]
    fn faults(
        id in of(id()),
        code in select(ErrorCode::ALL.to_vec()),
        (message, retry_after_ms) in any::<(String, Option<u32>)>(),
    ) {
        let frame = ServerFrame::Error(Fault { id, code, message: &message, retry_after_ms });
        let mut buffer = vec![0; BUFFER_BYTES];
        let bytes = frame.encode(&mut buffer).unwrap();
        prop_assert_eq!(ServerFrame::decode(&bytes[HEADER_BYTES..]), Ok(frame.clone()));
    }

    /// Bytes with a right checksum decode or are refused; what decodes is what encodes to them.
    #[test]
    fn any_value_is_survived(value in vec(any::<u8>(), 1..256), variant in 0..14u8) {
        let mut payload = value;
        payload[0] = variant;
        payload.extend(checksum(&payload).to_le_bytes());
        let mut buffer = vec![0; BUFFER_BYTES];
        if let Ok(frame) = ClientFrame::decode(&payload) {
            let bytes = frame.encode(&mut buffer).unwrap();
            let again = ClientFrame::decode(&bytes[HEADER_BYTES..]);
            // Compared as text because a NaN differs from itself.
            prop_assert_eq!(format!("{again:?}"), format!("{:?}", Ok::<_, ()>(frame)));
        }
        if let Ok(frame) = ServerFrame::decode(&payload) {
            let bytes = frame.encode(&mut buffer).unwrap();
            let again = ServerFrame::decode(&bytes[HEADER_BYTES..]);
            prop_assert_eq!(format!("{again:?}"), format!("{:?}", Ok::<_, ()>(frame)));
        }
    }

    /// A reader takes any stream in any pieces without a panic and without growing.
    #[test]
    fn any_stream_is_survived(pieces in vec(vec(any::<u8>(), 0..24), 0..16)) {
        let mut reader = FrameReader::new([0; 32], 32);
        'stream: for piece in pieces {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let space = reader.space();
                let count = space.len().min(rest.len());
                prop_assert!(count > 0);
                space[..count].copy_from_slice(&rest[..count]);
                reader.filled(count).unwrap();
                rest = &rest[count..];
                loop {
                    match reader.next_payload() {
                        Ok(Some(payload)) => { let _ = ClientFrame::decode(payload); }
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
        }
        let _ = reader.finish();
    }
}
