//! A server to talk to: the wire protocol over a real Unix socket, saying what a test tells it to.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use andon_wire::limits::CLIENT_FRAME_BYTES_MAX;
use andon_wire::{
    Accepted, Chunk, ClientFrame, Done, Finish, HEADER_BYTES, ModelName, Origin, PROTOCOL_VERSION,
    RequestId, ServerFrame, Timings, Usage, Welcome, payload_bytes,
};

/// Long enough for a loaded machine; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server on a socket in a directory of its own, both gone when it is dropped.
pub(crate) struct Server {
    directory: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves every connection with `serve`, one after the other; the hello is not answered yet.
    pub(crate) fn start(serve: impl FnMut(&mut Peer) + Send + 'static) -> Self {
        let mut serve = serve;
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("wire.sock")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                serve(&mut Peer {
                    stream,
                    buffer: Vec::new(),
                });
            }
        });
        Self {
            directory,
            stop,
            thread: Some(thread),
        }
    }

    /// Serves every connection with `serve`, after a proper welcome.
    pub(crate) fn welcoming(serve: impl FnMut(&mut Peer) + Send + 'static) -> Self {
        let mut serve = serve;
        Self::start(move |peer| {
            peer.welcome();
            serve(peer);
        })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("wire.sock")
    }

    /// The program, told to use this server.
    pub(crate) fn andonctl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_andonctl"));
        command
            .env_remove("ANDON_SOCKET")
            .arg("--socket")
            .arg(self.socket())
            .args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        Outcome::from(self.andonctl(arguments).output().unwrap())
    }

    /// Runs the program to its end with `input` on its standard input.
    pub(crate) fn run_with<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Outcome {
        let mut child = self
            .andonctl(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have ended without reading, which is for the test to judge by its outcome.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Outcome::from(child.wait_with_output().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread from waiting for a connection.
        let _ = UnixStream::connect(self.socket());
        let served = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(
                matches!(served, Some(Ok(()))),
                "the server of the test failed"
            );
        }
    }
}

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The other end of a connection.
pub(crate) struct Peer {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Peer {
    /// The next frame, or `None` when the program closed the connection.
    pub(crate) fn receive(&mut self) -> Option<ClientFrame<'_>> {
        let mut header = [0; HEADER_BYTES];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                return None;
            }
            Err(error) => panic!("{error}"),
        }
        let bytes = payload_bytes(header, CLIENT_FRAME_BYTES_MAX).unwrap();
        self.buffer.resize(bytes, 0);
        self.stream.read_exact(&mut self.buffer).unwrap();
        Some(ClientFrame::decode(&self.buffer).unwrap())
    }

    /// Sends bytes as they are. Whether the program still listens is for the test to judge.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub(crate) fn send(&mut self, frame: &ServerFrame<'_>) -> bool {
        let bytes = sealed(frame);
        self.raw(&bytes)
    }

    /// Takes the hello and answers it.
    pub(crate) fn welcome(&mut self) {
        match self.receive() {
            Some(ClientFrame::Hello(hello)) => {
                assert_eq!(hello.version, PROTOCOL_VERSION);
                assert!(hello.software.starts_with("andonctl "));
            }
            other => panic!("{other:?} in place of a hello"),
        }
        self.send(&ServerFrame::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            software: "andond test",
            gateway: "gw1",
            frame_bytes_max: 589_824,
            requests_max: 8,
        }));
    }

    /// Takes a request, gives it to `check`, accepts it, and returns its id.
    pub(crate) fn accept(&mut self, check: impl FnOnce(&andon_wire::Ask<'_>)) -> RequestId {
        let id = match self.receive() {
            Some(ClientFrame::Ask(ask)) => {
                ask.check().unwrap();
                check(&ask);
                ask.id
            }
            other => panic!("{other:?} in place of a request"),
        };
        self.send(&ServerFrame::Accepted(Accepted {
            id: id.clone(),
            queue_position: 0,
        }));
        id
    }

    pub(crate) fn chunk(&mut self, id: &RequestId, sequence: u32, text: &str) -> bool {
        self.send(&ServerFrame::Chunk(Chunk {
            id: id.clone(),
            attempt: 1,
            sequence,
            text,
        }))
    }

    /// Answers request `id` with `pieces`.
    pub(crate) fn answer(&mut self, id: &RequestId, pieces: &[&str]) {
        for (sequence, piece) in (0..).zip(pieces) {
            self.chunk(id, sequence, piece);
        }
        let chunks = u32::try_from(pieces.len()).unwrap();
        self.send(&ServerFrame::Done(done(id, chunks)));
    }
}

/// A frame as it goes over the socket.
pub(crate) fn sealed(frame: &ServerFrame<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 16 * 1024];
    frame.encode(&mut buffer).unwrap().to_vec()
}

/// The end of an answer of `chunks` chunks and as many tokens.
pub(crate) fn done(id: &RequestId, chunks: u32) -> Done {
    Done {
        id: id.clone(),
        attempt: 1,
        chunks,
        finish: Finish::Stop,
        model: ModelName::new("tiny").unwrap(),
        usage: Usage {
            prompt_tokens: 12,
            cached_tokens: 8,
            completion_tokens: chunks,
        },
        timings: Timings {
            queue_us: 10,
            prefill_us: 20_000,
            decode_us: 10_000,
            first_token_us: 21_000,
        },
        origin: Origin::Local,
    }
}
