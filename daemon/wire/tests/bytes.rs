//! The exact bytes of every frame. A change here is a change of the protocol, and needs a new
//! version of it; clients in other languages are written against these bytes.
#![forbid(unsafe_code)]

use andon_wire::limits::{
    CHUNK_TEXT_BYTES_MAX, CLIENT_FRAME_BYTES_MAX, FAULT_MESSAGE_BYTES_MAX, LABEL_BYTES_MAX,
    MANIFEST_BYTES_MAX, MODEL_DATA_BYTES_MAX, MODELS_MAX, SERVER_FRAME_BYTES_MAX,
};
use andon_wire::manifest::Digest;
use andon_wire::{
    Accepted, AddModel, AddReady, AddSigned, Ask, BackendStatus, Backends, Bytes, Cancel,
    Cancelled, Chunk, ClientFrame, CorpusAction, CorpusErased, CorpusTask, Degraded, Done,
    DraftStatus, Egress, Embed, ErrorCode, Fault, Finish, HEADER_BYTES, HealthStatus, Hello, Input,
    KeptRequest, MemoryStatus, Message, ModelAction, ModelAdded, ModelData, ModelDone, ModelEntry,
    ModelName, ModelProgress, ModelResidence, ModelStage, ModelStatus, ModelTask, ModelText,
    Models, MqttLink, MqttStatus, Origin, PROTOCOL_VERSION, PageAction, PageTask, Priority,
    QueueStatus, Readiness, Reload, ReloadOutcome, Reloaded, RequestCounters, RequestId, Role,
    RouteExplained, RoutePart, Sampling, SandboxLayer, SandboxStatus, ServedModel, ServerFrame,
    ServiceStatus, SignatureState, Speed, SpoolAction, SpoolStatus, SpoolTask, Status,
    StoredCorpus, StoredModel, StoredPack, StoredPages, StoredSignature, SwapModel, TaskName,
    Timings, TokenCounters, Usage, VectorPiece, Welcome, checksum,
};
use serde::Serialize;

fn id(text: &str) -> RequestId {
    RequestId::new(text).unwrap()
}

fn model(text: &str) -> ModelName {
    ModelName::new(text).unwrap()
}

/// Splits a frame into what its length says, its value, and its checksum, having checked both.
fn value(frame: &[u8]) -> &[u8] {
    let (header, payload) = frame.split_first_chunk::<HEADER_BYTES>().unwrap();
    assert_eq!(u32::from_le_bytes(*header) as usize, payload.len());
    let (value, stored) = payload.split_last_chunk::<4>().unwrap();
    assert_eq!(u32::from_le_bytes(*stored), checksum(value));
    value
}

#[track_caller]
fn client(frame: &ClientFrame<'_>, parts: &[&[u8]]) {
    let mut buffer = vec![0; 4096];
    let bytes = frame.encode(&mut buffer).unwrap();
    assert_eq!(value(bytes), parts.concat());
    assert_eq!(&ClientFrame::decode(&bytes[HEADER_BYTES..]).unwrap(), frame);
}

#[track_caller]
fn server(frame: &ServerFrame<'_>, parts: &[&[u8]]) {
    let mut buffer = vec![0; 4096];
    let bytes = frame.encode(&mut buffer).unwrap();
    assert_eq!(value(bytes), parts.concat());
    assert_eq!(&ServerFrame::decode(&bytes[HEADER_BYTES..]).unwrap(), frame);
}

/// The number of a variant without fields, as it stands on the wire.
fn number(variant: impl Serialize) -> u8 {
    let mut buffer = [0; 1];
    postcard::to_slice(&variant, &mut buffer).unwrap();
    buffer[0]
}

#[test]
fn whole_frames() {
    // The checksums are those of Python's zlib.crc32.
    let mut buffer = [0; 64];
    let hello = ClientFrame::Hello(Hello {
        version: PROTOCOL_VERSION,
        software: "c 1",
    });
    assert_eq!(
        hello.encode(&mut buffer).unwrap(),
        b"\x0a\0\0\0\x00\x03\x03c 1\x7c\x25\x1c\x6a"
    );
    assert_eq!(
        ClientFrame::Status.encode(&mut buffer).unwrap(),
        b"\x05\0\0\0\x03\x37\xbe\x0b\x4b"
    );
}

#[test]
fn client_frames() {
    client(
        &ClientFrame::Hello(Hello {
            version: PROTOCOL_VERSION,
            software: "andonctl 0.1.0",
        }),
        &[b"\x00", b"\x03", b"\x0eandonctl 0.1.0"],
    );
    client(
        &ClientFrame::Ask(Ask::new(id("17"), Input::Prompt("Hello"))),
        &[
            b"\x01",
            b"\x0217",
            b"\x01\x05Hello",
            b"\x00",                                 // model
            b"\x00\x00\x00\x00\x00\x00\x00\x00\x00", // sampling
            b"\x00",                                 // tokens_max
            b"\x00",                                 // stop
            b"\x00\x00\x00",                         // priority, deadline, egress
            b"\x01",                                 // stream
        ],
    );
    let mut messages = heapless::Vec::new();
    messages
        .push(Message {
            role: Role::System,
            content: "Be brief.",
        })
        .unwrap();
    messages
        .push(Message {
            role: Role::User,
            content: "Über?",
        })
        .unwrap();
    let mut stop = heapless::Vec::new();
    stop.push("\n").unwrap();
    stop.push("END").unwrap();
    client(
        &ClientFrame::Ask(Ask {
            id: id("a-1"),
            input: Input::Messages(messages),
            model: Some(model("org/m")),
            sampling: Sampling {
                temperature: Some(0.5),
                top_p: Some(0.95),
                top_k: Some(40),
                min_p: Some(0.0),
                repeat_penalty: Some(1.0),
                repeat_last_n: Some(64),
                presence_penalty: Some(-2.0),
                frequency_penalty: Some(2.0),
                seed: Some(u64::MAX),
            },
            tokens_max: Some(300),
            stop,
            priority: Some(Priority::Alarm),
            deadline_ms: Some(30_000),
            egress: Some(Egress::Any),
            stream: false,
        }),
        &[
            b"\x01",
            b"\x03a-1",
            b"\x00\x02\x00\x09Be brief.\x01\x06\xc3\x9cber?",
            b"\x01\x05org/m",
            b"\x01\x00\x00\x00\x3f",
            b"\x01\x33\x33\x73\x3f",
            b"\x01\x28",
            b"\x01\x00\x00\x00\x00",
            b"\x01\x00\x00\x80\x3f",
            b"\x01\x40",
            b"\x01\x00\x00\x00\xc0",
            b"\x01\x00\x00\x00\x40",
            b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x01\xac\x02",
            b"\x02\x01\n\x03END",
            b"\x01\x00",
            b"\x01\xb0\xea\x01",
            b"\x01\x01",
            b"\x00",
        ],
    );
    client(
        &ClientFrame::Ask(Ask::new(
            id("17"),
            Input::Task {
                name: TaskName::new("explain").unwrap(),
                input_json: r#"{"code":"E42"}"#,
            },
        )),
        &[
            b"\x01",
            b"\x0217",
            b"\x02\x07explain\x0e{\"code\":\"E42\"}",
            b"\x00",
            b"\x00\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x00\x00\x00\x00\x00\x01",
        ],
    );
    client(
        &ClientFrame::Cancel(Cancel { id: id("17") }),
        &[b"\x02", b"\x0217"],
    );
    client(&ClientFrame::Status, &[b"\x03"]);
    client(&ClientFrame::Models, &[b"\x04"]);
    client(
        &ClientFrame::Embed(Embed::new(id("17"), "Hello")),
        &[b"\x08", b"\x0217", b"\x05Hello", b"\x00\x00\x00\x00"],
    );
    client(
        &ClientFrame::Embed(Embed {
            id: id("17"),
            text: "Hello",
            model: Some(model("m")),
            dimensions: Some(256),
            priority: Some(Priority::Batch),
            deadline_ms: Some(300),
        }),
        &[
            b"\x08",
            b"\x0217",
            b"\x05Hello",
            b"\x01\x01m",
            b"\x01\x80\x02",
            b"\x01\x02",
            b"\x01\xac\x02",
        ],
    );
}

#[test]
fn reloads() {
    let reload = Reload { id: id("1") };
    client(&ClientFrame::Reload(reload), &[b"\x10", b"\x011"]);
    for (outcome, byte) in [
        (ReloadOutcome::Live, b"\x00"),
        (ReloadOutcome::Restart, b"\x01"),
        (ReloadOutcome::Problem, b"\x02"),
    ] {
        let word = Reloaded {
            id: id("1"),
            outcome,
            text: "a.b",
        };
        server(
            &ServerFrame::Reloaded(word),
            &[b"\x19", b"\x011", byte, b"\x03a.b"],
        );
    }
}

#[test]
fn routes_are_explained() {
    let ask = Ask::new(id("1"), Input::Prompt("x"));
    let mut frames = [[0; 128]; 2];
    let [plain, explain] = &mut frames;
    let plain = ClientFrame::Ask(ask.clone()).encode(plain).unwrap();
    let explained = ClientFrame::ExplainRoute(ask);
    let explain = explained.encode(explain).unwrap();
    let (plain, explain) = (value(plain), value(explain));
    assert_eq!((plain[0], explain[0]), (1, 17));
    assert_eq!(plain[1..], explain[1..]);
    let mut parts = heapless::Vec::new();
    parts
        .push(RoutePart {
            what: "why",
            moved: -1.0,
        })
        .expect("there is room");
    server(
        &ServerFrame::RouteExplained(RouteExplained {
            id: id("1"),
            decision: "cloud",
            reason: "hard",
            policy: "auto",
            up: true,
            shadow: false,
            will_do: Some(0.5),
            as_good: Some(0.75),
            judged_as: "any",
            threshold: 1.0,
            parts,
        }),
        &[
            b"\x1a",
            b"\x011",
            b"\x05cloud",
            b"\x04hard",
            b"\x04auto",
            b"\x01\x00",
            b"\x01\x00\x00\x00\x3f",
            b"\x01\x00\x00\x40\x3f",
            b"\x03any",
            b"\x00\x00\x80\x3f",
            b"\x01",
            b"\x03why\x00\x00\x80\xbf",
        ],
    );
}

#[test]
fn frames_about_models_that_are_kept() {
    client(
        &ClientFrame::AddModel(AddModel {
            id: id("1"),
            name: Some(model("m")),
            manifest: "{}",
        }),
        &[b"\x05", b"\x011", b"\x01\x01m", b"\x02{}"],
    );
    client(
        &ClientFrame::AddSigned(AddSigned {
            id: id("1"),
            name: Some(model("m")),
            manifest: "{}",
            signatures: "s",
        }),
        &[b"\x0d", b"\x011", b"\x01\x01m", b"\x02{}", b"\x01s"],
    );
    server(
        &ServerFrame::StoredSignature(StoredSignature {
            id: id("1"),
            name: model("m"),
            state: SignatureState::Good,
            key: "k",
            verity: true,
        }),
        &[b"\x15", b"\x011", b"\x01m", b"\x03", b"\x01k", b"\x01"],
    );
    client(
        &ClientFrame::ModelData(ModelData {
            id: id("1"),
            bytes: Bytes(b"GGUF\xff"),
        }),
        &[b"\x06", b"\x011", b"\x05GGUF\xff"],
    );
    for (action, bytes) in [
        (ModelAction::List, &b"\x00"[..]),
        (ModelAction::Show(model("m")), b"\x01\x01m"),
        (ModelAction::Remove(model("m")), b"\x02\x01m"),
        (ModelAction::Verify(model("m")), b"\x03\x01m"),
        (ModelAction::Pack(model("m")), b"\x04\x01m"),
        (ModelAction::Unpack(model("m")), b"\x05\x01m"),
        (ModelAction::Packs, b"\x06"),
        (ModelAction::Signatures, b"\x07"),
        (ModelAction::Load(model("m")), b"\x08\x01m"),
        (ModelAction::Unload(model("m")), b"\x09\x01m"),
        (
            ModelAction::Swap(SwapModel {
                model: model("m"),
                name: Some(model("n")),
                unload_first: true,
            }),
            b"\x0a\x01m\x01\x01n\x01",
        ),
        (ModelAction::Rollback(None), b"\x0b\x00"),
        (ModelAction::Served, b"\x0c"),
    ] {
        let task = ModelTask {
            id: id("1"),
            action,
        };
        client(&ClientFrame::ModelTask(task), &[b"\x07", b"\x011", bytes]);
    }
    server(
        &ServerFrame::AddReady(AddReady {
            id: id("1"),
            weights: true,
        }),
        &[b"\x08", b"\x011", b"\x01"],
    );
    server(
        &ServerFrame::ModelProgress(ModelProgress {
            id: id("1"),
            stage: ModelStage::Testing,
            bytes: 1,
            bytes_total: 300,
        }),
        &[b"\x09", b"\x011", b"\x02", b"\x01", b"\xac\x02"],
    );
    server(
        &ServerFrame::ModelProgress(ModelProgress {
            id: id("1"),
            stage: ModelStage::Packing,
            bytes: 1,
            bytes_total: 300,
        }),
        &[b"\x09", b"\x011", b"\x04", b"\x01", b"\xac\x02"],
    );
    server(
        &ServerFrame::StoredPack(StoredPack {
            id: id("1"),
            name: model("m"),
            bytes: 300,
        }),
        &[b"\x0f", b"\x011", b"\x01m", b"\xac\x02"],
    );
    for (action, bytes) in [
        (CorpusAction::List, &b"\x00"[..]),
        (
            CorpusAction::Erase {
                task: Some(TaskName::new("t").unwrap()),
                client: None,
            },
            b"\x01\x01\x01t\x00",
        ),
        (
            CorpusAction::Erase {
                task: None,
                client: Some("plc1"),
            },
            b"\x01\x00\x01\x04plc1",
        ),
    ] {
        let task = CorpusTask {
            id: id("1"),
            action,
        };
        client(&ClientFrame::CorpusTask(task), &[b"\x09", b"\x011", bytes]);
    }
    client(&ClientFrame::Draft, &[b"\x0a"]);
    for (action, bytes) in [
        (
            SpoolAction::List {
                task: None,
                client: Some("plc1"),
            },
            b"\x00\x00\x01\x04plc1".as_slice(),
        ),
        (SpoolAction::Show(300), b"\x01\xac\x02"),
        (SpoolAction::Retry(1), b"\x02\x01"),
        (SpoolAction::Drop(1), b"\x03\x01"),
        (
            SpoolAction::Erase {
                task: Some(TaskName::new("t").unwrap()),
                client: None,
            },
            b"\x04\x01\x01t\x00",
        ),
    ] {
        let task = SpoolTask {
            id: id("1"),
            action,
        };
        client(&ClientFrame::SpoolTask(task), &[b"\x0b", b"\x011", bytes]);
    }
    server(
        &ServerFrame::KeptRequest(KeptRequest {
            id: id("1"),
            number: 300,
            origin: "mqtt",
            client: "plc1",
            request: "7",
            task: "",
            state: "running",
            attempt: 2,
            age_ms: 1,
            left_ms: Some(2),
            request_bytes: 3,
            answer_bytes: 0,
            fault: "",
        }),
        &[
            b"\x13",
            b"\x011",
            b"\xac\x02",
            b"\x04mqtt",
            b"\x04plc1",
            b"\x017",
            b"\x00",
            b"\x07running",
            b"\x02",
            b"\x01",
            b"\x01\x02",
            b"\x03",
            b"\x00",
            b"\x00",
        ],
    );
    for (action, byte) in [(PageAction::Show, b"\x00"), (PageAction::Erase, b"\x01")] {
        let task = PageTask {
            id: id("1"),
            action,
        };
        client(&ClientFrame::PageTask(task), &[b"\x0c", b"\x011", byte]);
    }
    let pages = StoredPages {
        id: id("1"),
        pages: 300,
        bytes: 300,
    };
    server(
        &ServerFrame::StoredPages(pages),
        &[b"\x14", b"\x011", b"\xac\x02", b"\xac\x02"],
    );
    server(
        &ServerFrame::ServedModel(ServedModel {
            id: id("1"),
            name: "n",
            model: "m",
            former: "",
            residence: ModelResidence::Loaded,
            default: true,
            pinned: false,
            probation: true,
            memory_bytes: 300,
        }),
        &[
            b"\x17",
            b"\x011",
            b"\x01n",
            b"\x01m",
            b"\x00",
            b"\x02",
            b"\x01",
            b"\x00",
            b"\x01",
            b"\xac\x02",
        ],
    );
    server(
        &ServerFrame::StoredCorpus(StoredCorpus {
            id: id("1"),
            task: "t",
            client: "plc1",
            local: false,
            tokens: 300,
        }),
        &[
            b"\x10",
            b"\x011",
            b"\x01t",
            b"\x04plc1",
            b"\x00",
            b"\xac\x02",
        ],
    );
    client(&ClientFrame::Health, &[b"\x0e"]);
    let health = HealthStatus {
        degraded: [Degraded::Throttled, Degraded::BrokerLost]
            .into_iter()
            .collect(),
        memory: MemoryStatus {
            budget_bytes: Some(300),
            promised_bytes: 1,
            left_bytes: None,
        },
    };
    server(
        &ServerFrame::Health(health),
        &[b"\x16", b"\x02\x02\x09", b"\x01\xac\x02", b"\x01", b"\x00"],
    );
    client(&ClientFrame::Backends, &[b"\x12"]);
    let backend = BackendStatus {
        name: "cuda",
        built: true,
        available: false,
        chosen: false,
        device: "",
        reason: "no driver",
    };
    server(
        &ServerFrame::Backends(Backends {
            backends: [backend].into_iter().collect(),
        }),
        &[
            b"\x1b",
            b"\x01",
            b"\x04cuda\x01\x00\x00\x00",
            b"\x09no driver",
        ],
    );
    client(&ClientFrame::Service, &[b"\x0f"]);
    server(
        &ServerFrame::Service(ServiceStatus {
            sandbox: SandboxStatus {
                landlock: SandboxLayer::On { level: 7 },
                seccomp: SandboxLayer::Missing { why: "old" },
            },
            spool: SpoolStatus {
                durable: true,
                accepted: 1,
                running: 2,
                answered: 300,
                delivered: 4,
                bytes: 5,
            },
        }),
        &[
            b"\x18",
            b"\x01\x07",
            b"\x02\x03old",
            b"\x01",
            b"\x01\x02\xac\x02\x04",
            b"\x05",
        ],
    );
    server(&ServerFrame::Draft(None), &[b"\x11", b"\x00"]);
    server(
        &ServerFrame::Draft(Some(DraftStatus {
            name: "small",
            used: true,
            bytes: 300,
            reason: "",
            translated: true,
        })),
        &[
            b"\x11",
            b"\x01",
            b"\x05small",
            b"\x01",
            b"\xac\x02",
            b"\x00",
            b"\x01",
        ],
    );
    server(
        &ServerFrame::CorpusErased(CorpusErased {
            id: id("1"),
            count: 300,
            shared: 2,
        }),
        &[b"\x12", b"\x011", b"\xac\x02", b"\x02"],
    );
    server(
        &ServerFrame::ModelAdded(ModelAdded {
            id: id("1"),
            name: model("m"),
            bytes: 300,
            present: false,
        }),
        &[b"\x0a", b"\x011", b"\x01m", b"\xac\x02", b"\x00"],
    );
    server(
        &ServerFrame::StoredModel(StoredModel {
            id: id("1"),
            name: model("m"),
            architecture: "llama",
            quantization: "Q4_1",
            license: "",
            bytes: 300,
            added_s: 1,
            sha256: Digest([0xab; 32]),
            active: true,
        }),
        &[
            b"\x0b",
            b"\x011",
            b"\x01m",
            b"\x05llama",
            b"\x04Q4_1",
            b"\x00",
            b"\xac\x02",
            b"\x01",
            b"\x40",
            "ab".repeat(32).as_bytes(),
            b"\x01",
        ],
    );
    server(
        &ServerFrame::ModelText(ModelText {
            id: id("1"),
            text: "{}",
        }),
        &[b"\x0c", b"\x011", b"\x02{}"],
    );
    server(
        &ServerFrame::ModelDone(ModelDone {
            id: id("1"),
            count: 2,
        }),
        &[b"\x0d", b"\x011", b"\x02"],
    );
}

/// A client sends the largest pieces of a model, and a manifest, in frames that a server takes.
#[test]
fn the_largest_frames_about_models_fit() {
    let data = vec![0xff; MODEL_DATA_BYTES_MAX];
    let manifest = "m".repeat(MANIFEST_BYTES_MAX);
    let longest_id = id(&"i".repeat(RequestId::BYTES_MAX));
    for frame in [
        ClientFrame::ModelData(ModelData {
            id: longest_id.clone(),
            bytes: Bytes(&data),
        }),
        ClientFrame::AddModel(AddModel {
            id: longest_id,
            name: Some(model(&"m".repeat(ModelName::BYTES_MAX))),
            manifest: &manifest,
        }),
    ] {
        let mut buffer = vec![0; HEADER_BYTES + CLIENT_FRAME_BYTES_MAX];
        let bytes = frame.encode(&mut buffer).unwrap();
        assert_eq!(ClientFrame::decode(&bytes[HEADER_BYTES..]).unwrap(), frame);
    }
}

#[test]
fn server_frames() {
    server(
        &ServerFrame::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            software: "andond 0.1.0",
            gateway: "gw1",
            frame_bytes_max: 589_824,
            requests_max: 8,
        }),
        &[
            b"\x00",
            b"\x03",
            b"\x0candond 0.1.0",
            b"\x03gw1",
            b"\x80\x80\x24",
            b"\x08",
        ],
    );
    server(
        &ServerFrame::Accepted(Accepted {
            id: id("17"),
            queue_position: 3,
        }),
        &[b"\x01", b"\x0217", b"\x03"],
    );
    server(
        &ServerFrame::Chunk(Chunk {
            id: id("17"),
            attempt: 1,
            sequence: 200,
            text: " the",
        }),
        &[b"\x02", b"\x0217", b"\x01", b"\xc8\x01", b"\x04 the"],
    );
    server(
        &ServerFrame::Done(Done {
            id: id("17"),
            attempt: 1,
            chunks: 9,
            finish: Finish::Length,
            model: model("m"),
            usage: Usage {
                prompt_tokens: 40,
                cached_tokens: 32,
                completion_tokens: 128,
            },
            timings: Timings {
                queue_us: 5,
                prefill_us: 20_000,
                decode_us: 400_000,
                first_token_us: 20_100,
            },
            origin: Origin::Local,
        }),
        &[
            b"\x03",
            b"\x0217",
            b"\x01\x09",
            b"\x01",
            b"\x01m",
            b"\x28\x20\x80\x01",
            b"\x05\xa0\x9c\x01\x80\xb5\x18\x84\x9d\x01",
            b"\x00",
        ],
    );
    server(
        &ServerFrame::Error(Fault {
            id: Some(id("17")),
            code: ErrorCode::Busy,
            message: "full",
            retry_after_ms: Some(250),
        }),
        &[
            b"\x04",
            b"\x01\x0217",
            b"\x09",
            b"\x04full",
            b"\x01\xfa\x01",
        ],
    );
    server(
        &ServerFrame::Error(Fault {
            id: None,
            code: ErrorCode::UnsupportedVersion,
            message: "",
            retry_after_ms: None,
        }),
        &[b"\x04", b"\x00", b"\x02", b"\x00", b"\x00"],
    );
    server(
        &ServerFrame::Cancelled(Cancelled {
            id: id("17"),
            found: true,
        }),
        &[b"\x07", b"\x0217", b"\x01"],
    );
    server(
        &ServerFrame::Vector(VectorPiece {
            id: id("17"),
            sequence: 1,
            dimensions: 384,
            bytes: &[0, 0, 128, 63, 0, 0, 0, 191],
        }),
        &[
            b"\x0e",
            b"\x0217",
            b"\x01",
            b"\x80\x03",
            b"\x08\x00\x00\x80\x3f\x00\x00\x00\xbf",
        ],
    );
}

#[test]
fn server_reports() {
    server(
        &ServerFrame::Status(Status {
            software: "andond 0.1.0",
            gateway: "gw1",
            uptime_s: 3600,
            readiness: Readiness::Ready,
            model: Some(ModelStatus {
                name: model("m"),
                architecture: "llama",
                file_bytes: 98_304_000,
                context_tokens_max: 2048,
                isa: "avx2",
                threads: 2,
            }),
            requests: RequestCounters {
                accepted: 1,
                answered: 2,
                refused: 3,
                failed: 4,
                cancelled: 5,
            },
            tokens: TokenCounters {
                prompt: 1000,
                completion: 2000,
            },
            queue: QueueStatus {
                waiting: 0,
                waiting_max: 64,
                active: 1,
                active_max: 8,
            },
            speed: Speed {
                prefill_tokens_per_s: 2.0,
                decode_tokens_per_s: 1.0,
            },
            mqtt: MqttStatus {
                link: MqttLink::Connected5,
                broker: "b:1883",
                reconnects: 7,
            },
        }),
        &[
            b"\x05",
            b"\x0candond 0.1.0",
            b"\x03gw1",
            b"\x90\x1c",
            b"\x01",
            b"\x01\x01m\x05llama\x80\x80\xf0\x2e\x80\x10\x04avx2\x02",
            b"\x01\x02\x03\x04\x05",
            b"\xe8\x07\xd0\x0f",
            b"\x00\x40\x01\x08",
            b"\x00\x00\x00\x40\x00\x00\x80\x3f",
            b"\x03\x06b:1883\x07",
        ],
    );
    let mut models = Models::default();
    models
        .models
        .push(ModelEntry {
            name: model("m"),
            architecture: "llama",
            context_tokens_max: 2048,
            file_bytes: 1,
            loaded: true,
            default: false,
        })
        .unwrap();
    server(
        &ServerFrame::Models(models),
        &[b"\x06", b"\x01", b"\x01m\x05llama\x80\x10\x01\x01\x00"],
    );
}

#[test]
fn numbers_of_variants() {
    assert_eq!(
        [Role::System, Role::User, Role::Assistant, Role::Tool].map(number),
        [0, 1, 2, 3]
    );
    assert_eq!(Priority::ALL.map(number), [0, 1, 2]);
    assert_eq!([Egress::Local, Egress::Any].map(number), [0, 1]);
    assert_eq!(
        [Finish::Stop, Finish::Length, Finish::Cancelled].map(number),
        [0, 1, 2]
    );
    assert_eq!(Origin::ALL.map(number), [0, 1, 2, 3, 4]);
    assert_eq!(
        [
            Readiness::Starting,
            Readiness::Ready,
            Readiness::Draining,
            Readiness::Failed
        ]
        .map(number),
        [0, 1, 2, 3]
    );
    assert_eq!(
        [
            MqttLink::Off,
            MqttLink::Connecting,
            MqttLink::Connected311,
            MqttLink::Connected5
        ]
        .map(number),
        [0, 1, 2, 3]
    );
    let words = ErrorCode::ALL.map(|code| (number(code), code.as_str()));
    assert_eq!(
        words,
        [
            (0, "invalid_request"),
            (1, "too_large"),
            (2, "unsupported_version"),
            (3, "unknown_model"),
            (4, "unknown_task"),
            (5, "unsupported"),
            (6, "context_full"),
            (7, "duplicate_id"),
            (8, "denied"),
            (9, "busy"),
            (10, "deadline_exceeded"),
            (11, "cancelled"),
            (12, "unavailable"),
            (13, "internal"),
            (14, "rejected"),
            (15, "conflict"),
            (16, "no_space"),
        ]
    );
}

/// A client's buffer of the documented size holds every frame that keeps the documented limits.
#[test]
fn the_largest_server_frames_fit() {
    let label = "l".repeat(LABEL_BYTES_MAX);
    let longest_id = id(&"i".repeat(RequestId::BYTES_MAX));
    let longest_model = model(&"m".repeat(ModelName::BYTES_MAX));
    let mut models = Models::default();
    for _ in 0..MODELS_MAX {
        models
            .models
            .push(ModelEntry {
                name: longest_model.clone(),
                architecture: &label,
                context_tokens_max: u32::MAX,
                file_bytes: u64::MAX,
                loaded: true,
                default: true,
            })
            .unwrap();
    }
    let text = "t".repeat(CHUNK_TEXT_BYTES_MAX);
    let message = "m".repeat(FAULT_MESSAGE_BYTES_MAX);
    let frames = [
        ServerFrame::Models(models),
        ServerFrame::Chunk(Chunk {
            id: longest_id.clone(),
            attempt: u16::MAX,
            sequence: u32::MAX,
            text: &text,
        }),
        ServerFrame::Error(Fault {
            id: Some(longest_id),
            code: ErrorCode::Internal,
            message: &message,
            retry_after_ms: Some(u32::MAX),
        }),
    ];
    for frame in &frames {
        let mut buffer = vec![0; HEADER_BYTES + SERVER_FRAME_BYTES_MAX];
        let bytes = frame.encode(&mut buffer).unwrap();
        assert_eq!(&ServerFrame::decode(&bytes[HEADER_BYTES..]).unwrap(), frame);
    }
}
