//! The two listeners that no file's mode protects: the loopback one, which wants a token, and the one for figures.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use andon_tests::daemon::Daemon;

use super::refused;
use crate::ctl::{andonctl, bad, good};

/// A port that was free a moment ago.
fn address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap()
}

/// Sends bytes, and reads what comes until the other side ends.
fn exchange(address: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    String::from_utf8_lossy(&reply).into_owned()
}

fn get(address: SocketAddr, path: &str, head: &str) -> String {
    exchange(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: andon\r\nconnection: close\r\n{head}\r\n"),
    )
}

/// A token that is made when it is needed.
fn token() -> String {
    let seed = std::time::SystemTime::now();
    format!("{seed:?}")
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect()
}

#[test]
fn the_loopback_listener_wants_its_token_for_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let token = token();
    fs::write(&path, format!("{token}\n")).unwrap();
    let listen = address();
    let config = format!(
        "[log]\nlevel = \"trace\"\n[http]\nlisten = \"{listen}\"\ntoken-file = \"{}\"\n",
        path.display()
    );
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let right = format!("Authorization: Bearer {token}\r\n");
    let wrong = format!("Authorization: Bearer {token}x\r\n");
    for path in ["/v1/models", "/healthz", "/metrics", "/nothing"] {
        for (head, code) in [
            ("", "\"code\":null"),
            (wrong.as_str(), "invalid_api_key"),
            ("Authorization: Basic eDp5\r\n", "invalid_api_key"),
        ] {
            let reply = get(listen, path, head);
            assert!(reply.starts_with("HTTP/1.1 401 "), "{path}: {reply}");
            let lower = reply.to_ascii_lowercase();
            assert!(lower.contains("www-authenticate: bearer realm="), "{reply}");
            assert_eq!(lower.contains("invalid_token"), !head.is_empty(), "{reply}");
            assert!(reply.contains(code), "{reply}");
            assert!(!reply.contains(&token), "{reply}");
        }
    }
    let reply = get(listen, "/v1/models", &right);
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    // The socket wants none, and takes no notice of one.
    assert_eq!(daemon.http().get("/v1/models").unwrap().status, 200);
    assert!(!daemon.log().contains(&token), "the log says the token");
    assert!(
        daemon.log().contains("this listener wants a token"),
        "{}",
        daemon.log()
    );

    // The rules hold for whoever has it, too.
    drop(daemon);
    let config = format!("{config}[[access]]\nusers = [\"*\"]\n");
    let daemon = Daemon::builder().config(&config).start().unwrap();
    let reply = get(listen, "/v1/models", &right);
    assert!(reply.starts_with("HTTP/1.1 403 "), "{reply}");
    assert!(reply.contains("not_allowed"), "{reply}");
    drop(daemon);
    let config = format!("{config}[[access]]\nloopback = true\n");
    let _daemon = Daemon::builder().config(&config).start().unwrap();
    let reply = get(listen, "/v1/models", &right);
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
}

#[test]
fn the_token_and_the_rules_are_read_again_while_the_daemon_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let (old, new) = (token(), token().repeat(2));
    fs::write(&path, &old).unwrap();
    let listen = address();
    let daemon = Daemon::builder()
        .config(&format!(
            "[http]\nlisten = \"{listen}\"\ntoken-file = \"{}\"\n",
            path.display()
        ))
        .start()
        .unwrap();
    let status = |token: &str| {
        let head = format!("Authorization: Bearer {token}\r\n");
        let reply = get(listen, "/v1/models", &head);
        reply.split(' ').nth(1).unwrap().to_owned()
    };
    let local = || daemon.http().get("/v1/models").unwrap().status;
    assert_eq!([status(&old), status(&new)], ["200", "401"]);
    fs::write(&path, &new).unwrap();
    good(&andonctl(&daemon, &["reload"]));
    assert_eq!([status(&old), status(&new)], ["401", "200"]);

    assert_eq!(local(), 200);
    let rules = |rules: &str| daemon.configure(rules).unwrap();
    rules("[[access]]\nloopback = true\n");
    good(&andonctl(&daemon, &["reload"]));
    assert_eq!((local(), status(&new).as_str()), (403, "200"));
    // With a name that nobody has the rules stay as they are; so does a token that cannot be read.
    rules("[[access]]\nusers = [\"*\", \"no-such-user-here\"]\n");
    bad(&andonctl(&daemon, &["reload"]), 1, "access[1].users");
    assert_eq!((local(), status(&new).as_str()), (403, "200"));
    rules("[[access]]\nusers = [\"*\"]\n");
    fs::write(&path, "short").unwrap();
    bad(&andonctl(&daemon, &["reload"]), 1, "http.token-file");
    assert_eq!((local(), status(&new).as_str()), (403, "200"));
    fs::write(&path, &new).unwrap();
    good(&andonctl(&daemon, &["reload"]));
    assert_eq!((local(), status(&new).as_str()), (200, "403"));
}

#[test]
fn a_loopback_listener_without_a_token_is_none() {
    let listen = address();
    refused(
        &format!("[http]\nlisten = \"{listen}\"\n"),
        &["http.listen", "http.token-file"],
    );
    refused(
        &format!("[http]\nlisten = \"{listen}\"\ntoken-file = \"/nowhere/token\"\n"),
        &["http.token-file", "/nowhere/token"],
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let guess = "pass word";
    fs::write(&path, guess).unwrap();
    let config = format!(
        "[http]\nlisten = \"{listen}\"\ntoken-file = \"{}\"\n",
        path.display()
    );
    refused(&config, &["http.token-file", "has no token"]);
    let mut daemon = Daemon::builder().config(&config).spawn().unwrap();
    daemon.wait(Duration::from_secs(60)).unwrap();
    assert!(!daemon.log().contains(guess), "{}", daemon.log());
}

#[test]
fn the_listener_for_figures_serves_figures_and_nothing_else() {
    let listen = address();
    let daemon = Daemon::builder()
        .config(&format!(
            "[metrics]\nlisten = \"{listen}\"\nconnections-max = 2\ntimeout-ms = 2000\n\
             [[access]]\nusers = [\"*\"]\n"
        ))
        .start()
        .unwrap();
    let names = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("# TYPE"));
        lines.map(str::to_owned).collect()
    };
    // Some figures are there once there was a connection, others once the machine was looked at.
    let start = Instant::now();
    loop {
        let socket = daemon.http().get("/metrics").unwrap().text();
        let reply = get(listen, "/metrics", "");
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        assert!(reply.contains("application/openmetrics-text"), "{reply}");
        assert!(reply.trim_end().ends_with("# EOF"), "{reply}");
        if names(&reply) == names(&socket) {
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{reply}\n{socket}"
        );
    }
    for path in [
        "/",
        "/v1/models",
        "/healthz",
        "/props",
        "/metrics/",
        "/v1/requests/1",
    ] {
        let reply = get(listen, path, "");
        assert!(reply.starts_with("HTTP/1.1 404 "), "{path}: {reply}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let reply = exchange(
            listen,
            &format!("{method} /metrics HTTP/1.1\r\nhost: andon\r\ncontent-length: 0\r\n\r\n"),
        );
        assert!(reply.starts_with("HTTP/1.1 405 "), "{method}: {reply}");
    }
    // A connection serves one request, though the client would keep it.
    let twice = "GET /metrics HTTP/1.1\r\nhost: andon\r\n\r\n".repeat(2);
    assert_eq!(exchange(listen, &twice).matches("HTTP/1.1 200").count(), 1);

    // Those who say nothing, or no end of a head, take all places for no longer than is stated.
    let idle: Vec<TcpStream> = (0..2)
        .map(|_| TcpStream::connect(listen).unwrap())
        .collect();
    let mut slow = TcpStream::connect(listen).unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nx: ").unwrap();
    let reply = get(listen, "/metrics", "");
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    drop((idle, slow));
    let endless = format!("GET /metrics HTTP/1.1\r\nx: {}", "y".repeat(64 << 10));
    let mut stream = TcpStream::connect(listen).unwrap();
    // It may be closed before all of it is sent.
    let _ = stream.write_all(endless.as_bytes());
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    assert!(!reply.starts_with("HTTP/1.1 200"), "{reply}");
}
