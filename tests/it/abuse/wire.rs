//! Over the compact socket: frames that are none, lie, or come in no order.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::mutate::Draw;
use andon_wire::{
    AddModel, AddSigned, Ask, Bytes, Cancel, ClientFrame, HEADER_BYTES, Hello, Input, ModelData,
    PROTOCOL_VERSION, RequestId, ServerFrame, TaskName, checksum,
};

use super::Campaign;

/// Longest wait for what comes back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that send a byte now and then, for as long as all others take.
const SLOW: usize = 24;

#[test]
fn hostile_frames_leave_nothing_behind() {
    let campaign = Campaign::asked();
    let mut config = super::CONFIG.to_owned();
    if !campaign.timed {
        config += "[wire]\nframe-timeout-ms = 500\n";
    }
    let mut daemon = campaign.daemon().config(&config).start().unwrap();
    let socket = daemon.wire_socket();
    let good = || {
        let mut stream = connect(&socket);
        let began = Instant::now();
        stream.write_all(&hello(PROTOCOL_VERSION)).unwrap();
        stream.write_all(&ask("good", "hello", 4)).unwrap();
        while !matches!(next(&mut stream).as_deref(), Some("done")) {
            assert!(began.elapsed() < PATIENCE);
        }
        began.elapsed()
    };
    // What the daemon opens for the first model that is added, it keeps open.
    let mut stream = connect(&socket);
    stream.write_all(&hello(PROTOCOL_VERSION)).unwrap();
    let (manifest, data) = sound();
    stream.write_all(&add(&manifest, None, &data)).unwrap();
    while next(&mut stream).expect("a word on the model") != "error Rejected" {}
    drop(stream);
    let answers = Answers::default();
    campaign.run(
        "over the compact socket",
        &mut daemon,
        good,
        |daemon, numbers| {
            let socket = daemon.wire_socket();
            let over = AtomicBool::new(false);
            thread::scope(|scope| {
                for number in 0..SLOW {
                    let (socket, over) = (&socket, &over);
                    scope.spawn(move || slow(socket, number, over));
                }
                let _over = super::Over(&over);
                campaign.send(numbers, |draw, _| hostile(&socket, draw, &answers));
            });
        },
    );
    let answers = answers.into_inner().unwrap();
    eprintln!("answers over the compact socket: {answers:?}");
    let count = |kind: &str| answers.get(kind).copied().unwrap_or_default();
    // They came, and were looked at.
    let read: usize = answers.values().sum();
    assert!(read > campaign.count / 4, "{answers:?}");
    for kind in ["error InvalidRequest", "error Rejected"] {
        assert!(count(kind) > 0, "{kind}: {answers:?}");
    }
    let models = std::fs::read_dir(daemon.folder().join("models"));
    let models = models.into_iter().flatten().flatten();
    let names: Vec<_> = models.map(|entry| entry.file_name()).collect();
    assert!(
        names
            .iter()
            .all(|name| name.to_string_lossy().starts_with('.')),
        "{names:?}"
    );
}

/// How many frames of each kind came back.
type Answers = Mutex<BTreeMap<String, usize>>;

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn encoded(frame: &ClientFrame<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 600_000];
    frame.encode(&mut buffer).unwrap().to_vec()
}

fn hello(version: u16) -> Vec<u8> {
    encoded(&ClientFrame::Hello(Hello {
        version,
        software: "hostile",
    }))
}

fn ask(id: &str, prompt: &str, tokens: u32) -> Vec<u8> {
    let mut ask = Ask::new(RequestId::new(id).unwrap(), Input::Prompt(prompt));
    ask.tokens_max = Some(tokens);
    encoded(&ClientFrame::Ask(ask))
}

/// A frame around any bytes, with a checksum that is right.
fn sealed(value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len() + 4).unwrap();
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(value);
    bytes.extend(checksum(value).to_le_bytes());
    bytes
}

/// What the next frame is; none when the daemon has closed.
fn next(stream: &mut UnixStream) -> Option<String> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let mut payload = vec![0; usize::try_from(u32::from_le_bytes(header)).unwrap()];
    stream.read_exact(&mut payload).ok()?;
    Some(match ServerFrame::decode(&payload).unwrap() {
        ServerFrame::Done(_) => "done".to_owned(),
        ServerFrame::Error(fault) => format!("error {:?}", fault.code),
        _ => "other".to_owned(),
    })
}

/// Dribbles a frame until the connection is closed, and begins again.
fn slow(socket: &Path, number: usize, over: &AtomicBool) {
    let mut bytes = hello(PROTOCOL_VERSION);
    let whole = if number.is_multiple_of(2) {
        2
    } else {
        bytes.len()
    };
    bytes.extend(ask("slow", &"y".repeat(4000), 1));
    while !over.load(Ordering::Relaxed) {
        let Ok(mut stream) = UnixStream::connect(socket) else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        if stream.write_all(&bytes[..whole]).is_err() {
            continue;
        }
        for byte in &bytes[whole..] {
            thread::sleep(Duration::from_millis(100));
            if over.load(Ordering::Relaxed) || stream.write_all(&[*byte]).is_err() {
                break;
            }
        }
    }
}

/// What one hostile client does.
fn hostile(socket: &Path, draw: &mut Draw, answers: &Answers) {
    let mut stream = connect(socket);
    let mut bytes = hello(PROTOCOL_VERSION);
    // Whether the answers are read: most are left unread.
    let mut reads = draw.below(2) == 0;
    let mut lingers = false;
    let random = |draw: &mut Draw, most: usize| -> Vec<u8> {
        (0..1 + draw.below(most))
            .map(|_| draw.number().to_le_bytes()[0])
            .collect()
    };
    match draw.below(14) {
        0 => bytes = random(draw, 3000),
        1 => bytes = hello([0, 1, PROTOCOL_VERSION + 1, u16::MAX][draw.below(4)]),
        2 => bytes.extend([0, 4, 5, 589_825, 1 << 31, u32::MAX][draw.below(6)].to_le_bytes()),
        3 => {
            let mut frame = ask("1", "x", 1);
            let at = HEADER_BYTES + draw.below(frame.len() - HEADER_BYTES);
            frame[at] ^= 1 << draw.below(8);
            bytes.extend(frame);
        }
        4 => bytes.extend(sealed(&random(draw, 400))),
        // A frame that is right in form, and wrong inside.
        5 | 6 => {
            let frame = ask("1", "a few words", 2);
            let mut value = frame[HEADER_BYTES..frame.len() - 4].to_vec();
            for _ in 0..=draw.below(3) {
                let at = 1 + draw.below(value.len() - 1);
                value[at] = draw.number().to_le_bytes()[0];
            }
            value.truncate(1 + draw.below(2 * value.len()));
            bytes.extend(sealed(&value));
        }
        7 => {
            let same = ask("same", "x", 1 + u32::try_from(draw.below(3)).unwrap());
            bytes.extend(same.repeat(2 + draw.below(3)));
        }
        8 => {
            for number in 0..40 {
                bytes.extend(ask(&number.to_string(), "x", 1));
            }
            reads = false;
        }
        9 => {
            bytes.extend(ask("long", &"word ".repeat(draw.below(100_000)), 1));
        }
        10 => {
            let id = RequestId::new("nobody").unwrap();
            bytes.extend(encoded(&ClientFrame::Cancel(Cancel { id })).repeat(50));
        }
        11 => {
            let (manifest, data) = manifest(draw);
            bytes.extend(add(&manifest, signatures(draw).as_deref(), &data));
            // Who hangs up at once is told nothing of what became of it.
            (reads, lingers) = (true, true);
        }
        12 => {
            let deep;
            let mut wrong = Ask::new(RequestId::new("t").unwrap(), Input::Prompt("x"));
            match draw.below(4) {
                0 => wrong.sampling.temperature = Some(f32::NAN),
                1 => wrong.deadline_ms = Some(0),
                2 => wrong.tokens_max = Some(0),
                _ => {
                    deep = "[".repeat(1 + draw.below(100_000));
                    wrong.input = Input::Task {
                        name: TaskName::new("none").unwrap(),
                        input_json: &deep,
                    };
                }
            }
            // Some of these a sound client cannot even say.
            let mut buffer = vec![0; 600_000];
            if let Ok(frame) = ClientFrame::Ask(wrong).encode(&mut buffer) {
                bytes.extend(frame);
            }
        }
        _ => {
            let all = ask("1", "x", 4);
            bytes.extend(&all[..1 + draw.below(all.len())]);
            reads = false;
        }
    }
    drop(stream.write_all(&bytes));
    if lingers {
        thread::sleep(Duration::from_millis(30));
    }
    if reads {
        drop(stream.shutdown(Shutdown::Write));
        let began = Instant::now();
        while let Some(frame) = next(&mut stream) {
            assert!(!frame.starts_with("error Internal"), "{frame}");
            *answers.lock().unwrap().entry(frame).or_default() += 1;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "no end of the answers to {bytes:?}"
        );
    }
}

/// The frames that add a model.
fn add(manifest: &str, signatures: Option<&str>, data: &[u8]) -> Vec<u8> {
    let id = RequestId::new("add").unwrap();
    let mut bytes = encoded(&match signatures {
        Some(signatures) => ClientFrame::AddSigned(AddSigned {
            id: id.clone(),
            name: None,
            manifest,
            signatures,
        }),
        None => ClientFrame::AddModel(AddModel {
            id: id.clone(),
            name: None,
            manifest,
        }),
    });
    bytes.extend(encoded(&ClientFrame::ModelData(ModelData {
        id,
        bytes: Bytes(data),
    })));
    bytes
}

/// The digest of `abc`.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn member(path: &str, role: &str, bytes: u64, sha256: &str) -> String {
    format!(r#"{{"path":"{path}","role":"{role}","bytes":{bytes},"sha256":"{sha256}"}}"#)
}

fn whole(format: u64, name: &str, members: &str) -> String {
    format!(
        r#"{{"format":{format},"name":"{name}","architecture":"llama","quantization":"F32","created-s":0,"members":{members}}}"#
    )
}

/// A manifest that is right, and bytes that are those of its digest, and no model.
fn sound() -> (String, Vec<u8>) {
    let weights = member("m.gguf", "weights", 3, ABC);
    (whole(2, "evil", &format!("[{weights}]")), b"abc".to_vec())
}

/// A manifest that is right but for something, and bytes that may be those of its one file.
fn manifest(draw: &mut Draw) -> (String, Vec<u8>) {
    let weights = member("m.gguf", "weights", 3, ABC);
    let (sound, mut data) = sound();
    let text = match draw.below(14) {
        0 => sound,
        // They are others, fewer, or more.
        1 => {
            data = [&b"abd"[..], b"a", b"abcd"][draw.below(3)].to_vec();
            sound
        }
        2 => {
            let path = [
                "../m.gguf",
                "/m.gguf",
                "a/../../m.gguf",
                ".gguf",
                "m.gguf\\u0000",
            ][draw.below(5)];
            whole(2, "evil", &format!("[{}]", member(path, "weights", 3, ABC)))
        }
        3 => {
            let (path, role) = [
                ("tasks/../../x.toml", "task"),
                ("manifest.json", "license"),
                ("tensors.sha256", "tensor-digests"),
                ("LICENSE", "root"),
                ("x.jinja", "chat-template"),
            ][draw.below(5)];
            let other = member(path, role, 3, ABC);
            whole(2, "evil", &format!("[{weights},{other}]"))
        }
        4 => whole(2, "evil", &format!("[{weights},{weights}]")),
        5 => {
            let bytes = [0, 1 << 40, 1 << 63, u64::MAX][draw.below(4)];
            whole(
                2,
                "evil",
                &format!("[{}]", member("m.gguf", "weights", bytes, ABC)),
            )
        }
        6 => {
            let count = 1 + draw.below(400);
            let parts: Vec<String> = (1..=count)
                .map(|part| {
                    let path = format!("m-{part:05}-of-{:05}.gguf", count + draw.below(2));
                    member(&path, "weights", u64::MAX / 2, ABC)
                })
                .collect();
            whole(2, "evil", &format!("[{}]", parts.join(",")))
        }
        7 => {
            let name = ["..", "", "a/b", "-x", &"n".repeat(300)][draw.below(5)].to_owned();
            whole(2, &name, &format!("[{weights}]"))
        }
        8 => whole(
            [0, 1, 3, 65_536][draw.below(4)],
            "evil",
            &format!("[{weights}]"),
        ),
        9 => {
            let digest = [&ABC[1..], &ABC.replace('b', "g"), &ABC.to_uppercase(), ""]
                [draw.below(4)]
            .to_owned();
            whole(
                2,
                "evil",
                &format!("[{}]", member("m.gguf", "weights", 3, &digest)),
            )
        }
        10 => whole(
            2,
            "evil",
            ["{}", "null", "[]", "[[]]", "\"x\""][draw.below(5)],
        ),
        // What fs-verity measures is not that.
        11 => sound.replace(r#"","bytes""#, &format!(r#"","verity":"{ABC}","bytes""#)),
        _ => {
            let mut bytes = sound.into_bytes();
            for _ in 0..=draw.below(3) {
                let at = draw.below(bytes.len());
                bytes[at] = draw.number().to_le_bytes()[0];
            }
            String::from_utf8_lossy(&bytes).into_owned()
        }
    };
    (text, data)
}

/// What may be signatures, or none.
fn signatures(draw: &mut Draw) -> Option<String> {
    let whole = format!(
        "andon-signatures-v1\ned25519 {} {}\n",
        "0".repeat(16),
        "0".repeat(128)
    );
    match draw.below(8) {
        0 => Some(String::new()),
        1 => Some("x".repeat(draw.below(5000))),
        2 => Some(whole[..draw.below(whole.len())].to_owned()),
        3 => Some(whole),
        _ => None,
    }
}
