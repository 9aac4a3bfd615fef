//! Over the HTTP socket: raw bytes on connections of their own.

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
use serde_json::json;

use super::{Campaign, json};

/// Longest wait for what comes back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that send a byte now and then, for as long as all others take.
const SLOW: usize = 48;

const PATHS: [&str; 14] = [
    "/v1/chat/completions",
    "/v1/chat/completions",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/infill",
    "/v1/requests/x",
    "/v1/models",
    "/metrics",
    "/..%2f..%00/%ff",
];

/// Statuses of what was answered.
type Statuses = Mutex<BTreeMap<u16, usize>>;

#[test]
fn hostile_requests_over_http_leave_nothing_behind() {
    let campaign = Campaign::asked();
    let mut config = super::CONFIG.to_owned();
    if !campaign.timed {
        config += "[http]\nheader-timeout-ms = 500\nbody-timeout-ms = 500\n";
    }
    let mut daemon = campaign.daemon().config(&config).start().unwrap();
    let http = daemon.http();
    let good = || {
        let body = json!({ "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 4, "temperature": 0 });
        let began = Instant::now();
        let reply = http.post("/v1/chat/completions", &body).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        began.elapsed()
    };
    let statuses = Statuses::default();
    campaign.run("over HTTP", &mut daemon, good, |daemon, numbers| {
        let socket = daemon.http_socket();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for number in 0..SLOW {
                let (socket, over) = (&socket, &over);
                scope.spawn(move || slow(socket, number, over));
            }
            let _over = super::Over(&over);
            campaign.send(numbers, |draw, number| {
                hostile(&socket, draw, number, &statuses);
            });
        });
    });
    let statuses = statuses.into_inner().unwrap();
    eprintln!("statuses over HTTP: {statuses:?}");
    assert!(!statuses.contains_key(&500), "{}", daemon.log());
    // They came, and were looked at: some were requests, most were refused by name, few by hanging up.
    let read: usize = statuses.values().sum();
    let count =
        |of: std::ops::Range<u16>| statuses.range(of).map(|(_, count)| count).sum::<usize>();
    assert!(read > campaign.count / 2, "{statuses:?}");
    assert!(count(200..300) > 0, "{statuses:?}");
    assert!(count(400..500) > read / 4, "{statuses:?}");
    assert!(count(0..1) < read / 4, "{statuses:?}");
}

/// Dribbles the head or the body of a request until it is closed, and begins again.
fn slow(socket: &Path, number: usize, over: &AtomicBool) {
    let text = if number.is_multiple_of(2) {
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ".to_owned() + &"y".repeat(4000)
    } else {
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n{\"prompt\":\""
            .to_owned()
            + &"y".repeat(3900)
    };
    let head = if number.is_multiple_of(2) {
        8
    } else {
        text.find('{').unwrap()
    };
    while !over.load(Ordering::Relaxed) {
        let Ok(mut stream) = UnixStream::connect(socket) else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        if stream.write_all(&text.as_bytes()[..head]).is_err() {
            continue;
        }
        for byte in &text.as_bytes()[head..] {
            thread::sleep(Duration::from_millis(100));
            if over.load(Ordering::Relaxed) || stream.write_all(&[*byte]).is_err() {
                break;
            }
        }
    }
}

/// One hostile request.
fn hostile(socket: &Path, draw: &mut Draw, number: usize, statuses: &Statuses) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let path = PATHS[draw.below(PATHS.len())];
    let sound = json::chat(draw);
    let head = |method: &str, more: &str, length: usize| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n"
        )
    };
    let mut bytes;
    // What is done once it was sent: read everything, some of it, nothing, or only close one direction.
    let mut then = Then::Read;
    match draw.below(16) {
        0 => {
            bytes = (0..1 + draw.below(2000))
                .map(|_| draw.number().to_le_bytes()[0])
                .collect();
            then = Then::HalfClose;
        }
        1 => {
            bytes = format!(
                "GET /{} HTTP/1.1\r\nHost: x\r\n\r\n",
                "a/".repeat(draw.below(60_000))
            )
            .into_bytes();
        }
        2 => {
            let header = format!("X-Long: {}\r\n", "z".repeat(draw.below(200_000)));
            bytes = head("POST", &header, 2).into_bytes();
            bytes.extend(b"{}");
        }
        3 => {
            let headers: String = (0..draw.below(1000))
                .map(|index| format!("X-{index}: y\r\n"))
                .collect();
            bytes = head("GET", &headers, 0).into_bytes();
        }
        // Says more than it sends, or more than is taken.
        4 => {
            bytes = head("POST", "", [3_000_000, usize::MAX, 5000][draw.below(3)]).into_bytes();
            bytes.extend(sound.bytes());
            then = Then::Leave;
        }
        5 if number % 16 == 5 => {
            let body = "x".repeat(1_400_000 + draw.below(200_000));
            bytes = head("POST", "", body.len()).into_bytes();
            bytes.extend(body.bytes());
        }
        6 => {
            let size = ["ffffffffffffffff", "-1", "zz", "5;x=y", "0"][draw.below(5)];
            bytes = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 7\r\n\r\n{size}\r\nabc\r\n0\r\n\r\n"
            )
            .into_bytes();
            then = Then::HalfClose;
        }
        7 => {
            let one = head("POST", "", sound.len()) + &sound;
            bytes = one.repeat(2 + draw.below(6)).into_bytes();
            then = Then::Leave;
        }
        8 => {
            bytes = (head("POST", "", sound.len()) + &sound).into_bytes();
            bytes.truncate(1 + draw.below(bytes.len()));
            then = Then::Leave;
        }
        // Right, but for its reader.
        9 => {
            bytes = (head("POST", "", sound.len()) + &sound).into_bytes();
            then = [Then::Leave, Then::Taste, Then::HalfClose][draw.below(3)];
        }
        10 => {
            let key = ["same", "", "x\u{e9}y", &"k".repeat(200)][draw.below(4)].to_owned();
            let more = format!("Idempotency-Key: {key}\r\nPrefer: respond-async\r\n");
            bytes = (head("POST", &more, sound.len()) + &sound).into_bytes();
        }
        11 => {
            let method = [
                "DELETE", "PUT", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "",
            ][draw.below(8)];
            bytes = (head(method, "Expect: 100-continue\r\n", 2) + "{}").into_bytes();
            then = Then::HalfClose;
        }
        _ => {
            let body = json::wrong(draw, &sound);
            bytes = head("POST", "Connection: close\r\n", body.len()).into_bytes();
            bytes.extend(body);
        }
    }
    // The daemon may close before it has read everything; that is an answer too.
    drop(stream.write_all(&bytes));
    let limit = match then {
        Then::Leave => return,
        Then::Taste => 20,
        Then::HalfClose => {
            drop(stream.shutdown(Shutdown::Write));
            1 << 20
        }
        Then::Read => {
            // So that a connection that is kept open ends.
            drop(
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            );
            1 << 20
        }
    };
    let mut reply = Vec::new();
    let began = Instant::now();
    drop(stream.take(limit).read_to_end(&mut reply));
    assert!(
        began.elapsed() < PATIENCE,
        "no end of an answer to {:?}",
        String::from_utf8_lossy(&bytes[..bytes.len().min(300)])
    );
    let status = reply
        .strip_prefix(b"HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    let mut status = status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    // Of several in a row any may be wrong.
    let broken = b"HTTP/1.1 500";
    if reply.windows(broken.len()).any(|window| window == broken) {
        status = Some(500);
    }
    if status == Some(500) {
        eprintln!(
            "500: {}\n{}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]),
            String::from_utf8_lossy(&reply)
        );
    }
    *statuses
        .lock()
        .unwrap()
        .entry(status.unwrap_or(0))
        .or_default() += 1;
}

#[derive(Clone, Copy)]
enum Then {
    Read,
    Taste,
    HalfClose,
    Leave,
}
