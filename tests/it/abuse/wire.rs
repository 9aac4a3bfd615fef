//! Over the compact socket: frames that are none, lie, or come in no order.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use andon_tests::mutate::Draw;
use andon_wire::{
    AddModel, Ask, Bytes, Cancel, ClientFrame, HEADER_BYTES, Hello, Input, ModelData,
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
    let mut config = String::new();
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
    campaign.run("over the compact socket", &mut daemon, good, |daemon| {
        let socket = daemon.wire_socket();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for number in 0..SLOW {
                let (socket, over) = (&socket, &over);
                scope.spawn(move || slow(socket, number, over));
            }
            campaign.send(|draw, _| hostile(&socket, draw));
            over.store(true, Ordering::Relaxed);
        });
    });
}

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
        ServerFrame::Error(fault) => format!("error {:?} {}", fault.code, fault.message),
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
fn hostile(socket: &Path, draw: &mut Draw) {
    let mut stream = connect(socket);
    let mut bytes = hello(PROTOCOL_VERSION);
    // Whether the answers are read: most are left unread.
    let mut reads = draw.below(2) == 0;
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
            let manifest = [
                "{",
                "{}",
                "[1]",
                "{\"version\":1,\"files\":[{\"path\":\"../x\"}]}",
            ][draw.below(4)];
            let id = RequestId::new("add").unwrap();
            bytes.extend(encoded(&ClientFrame::AddModel(AddModel {
                id: id.clone(),
                name: None,
                manifest,
            })));
            bytes.extend(encoded(&ClientFrame::ModelData(ModelData {
                id,
                bytes: Bytes(&random(draw, 2000)),
            })));
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
    if reads {
        drop(stream.shutdown(Shutdown::Write));
        let began = Instant::now();
        while let Some(frame) = next(&mut stream) {
            assert!(!frame.starts_with("error Internal"), "{frame}");
        }
        assert!(
            began.elapsed() < PATIENCE,
            "no end of the answers to {bytes:?}"
        );
    }
}
