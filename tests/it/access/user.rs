//! What another user of this machine says over the daemon's sockets.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use andon_tests::daemon::{Builder, Daemon};
use andon_wire::limits::SERVER_FRAME_BYTES_MAX;
use andon_wire::{
    Ask, ClientFrame, ErrorCode, HEADER_BYTES, Hello, Input, PROTOCOL_VERSION, RequestId,
    ServerFrame,
};
use serde_json::{Value, json};

/// A user, by its number and those of its groups.
#[derive(Clone)]
pub(super) struct User {
    uid: u32,
    groups: Vec<u32>,
}

/// Whether this test can be several users.
pub(super) fn can_be_others() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can become other users");
    }
    root
}

/// A daemon that every user can reach.
pub(super) fn daemon(config: &str) -> Daemon {
    started(Daemon::builder().config(config))
}

/// Starts it so that every user can reach it.
pub(super) fn started(builder: Builder) -> Daemon {
    let daemon = builder
        .config("[http]\nsocket-mode = \"0666\"\n[wire]\nsocket-mode = \"0666\"\n")
        .start()
        .unwrap();
    fs::set_permissions(daemon.folder(), Permissions::from_mode(0o755)).unwrap();
    daemon
}

/// What is answered over HTTP.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Value,
}

/// What is answered to a request over the compact socket: `Ok` if it was.
pub(super) type Answer = Result<(), (ErrorCode, String)>;

impl User {
    pub(super) fn new(uid: u32, groups: &[u32]) -> User {
        User {
            uid,
            groups: groups.to_vec(),
        }
    }

    fn connect(&self, daemon: &Daemon, socket: &str) -> (Child, ChildStdin, ChildStdout) {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let mut child = Command::new(env!("CARGO_BIN_EXE_andon-as"))
            .args(["--user", &self.uid.to_string()])
            .args(["--groups", &groups.join(",")])
            .arg(socket)
            // The user need not reach what this folder is in.
            .current_dir(daemon.folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        (child, stdin, stdout)
    }

    /// Any request over HTTP.
    pub(super) fn http(&self, daemon: &Daemon, method: &str, path: &str, more: &str) -> Reply {
        let (head, body) = more.split_once("\n\n").unwrap_or((more, ""));
        let head: String = head.lines().map(|line| format!("{line}\r\n")).collect();
        // What is answered in this version is not in chunks.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nhost: andon\r\n{head}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (mut child, mut stdin, mut stdout) = self.connect(daemon, "andon.sock");
        stdin.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stdout.read_to_string(&mut reply).unwrap();
        assert!(child.wait().unwrap().success(), "{reply}");
        let (head, body) = reply.split_once("\r\n\r\n").expect("a whole reply");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Reply {
            status: status.expect("a status"),
            head: head.to_ascii_lowercase(),
            body: serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())),
        }
    }

    /// A short completion, with what else is in its body.
    pub(super) fn complete(&self, daemon: &Daemon, more: &Value) -> Reply {
        let mut body = json!({"prompt": "The belt", "max_tokens": 2});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        self.http(daemon, "POST", "/v1/completions", &format!("\n\n{body}"))
    }

    /// A connection to the compact socket that has said hello.
    pub(super) fn greet(&self, daemon: &Daemon) -> Talk {
        let (child, stdin, stdout) = self.connect(daemon, "wire.sock");
        let mut talk = Talk {
            child,
            stdin,
            stdout,
        };
        talk.send(&ClientFrame::Hello(Hello {
            version: PROTOCOL_VERSION,
            software: "test",
        }));
        talk
    }

    /// A short request over the compact socket.
    pub(super) fn ask(&self, daemon: &Daemon, change: impl FnOnce(&mut Ask<'_>)) -> Answer {
        let mut talk = self.greet(daemon);
        let mut ask = Ask::new(RequestId::new("1").unwrap(), Input::Prompt("The belt"));
        ask.tokens_max = Some(2);
        change(&mut ask);
        talk.send(&ClientFrame::Ask(ask));
        loop {
            match ServerFrame::decode(&talk.next()).unwrap() {
                ServerFrame::Error(fault) => break Err((fault.code, fault.message.to_owned())),
                ServerFrame::Done(_) => break Ok(()),
                _ => {}
            }
        }
    }
}

/// A connection of a user to the compact socket.
pub(super) struct Talk {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Talk {
    pub(super) fn send(&mut self, frame: &ClientFrame<'_>) {
        let mut buffer = vec![0; 64 << 10];
        let bytes = frame.encode(&mut buffer).unwrap();
        self.stdin.write_all(bytes).unwrap();
    }

    /// The payload of the next frame.
    pub(super) fn next(&mut self) -> Vec<u8> {
        let mut header = [0; HEADER_BYTES];
        self.stdout.read_exact(&mut header).unwrap();
        let bytes = usize::try_from(u32::from_le_bytes(header)).unwrap();
        assert!(bytes <= SERVER_FRAME_BYTES_MAX);
        let mut payload = vec![0; bytes];
        self.stdout.read_exact(&mut payload).unwrap();
        payload
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
