//! HTTP/2 frame by frame, so that a server can say what no library lets it say.

use std::io;
use std::sync::Mutex;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_rustls::server::TlsStream;

use super::{Breakable as _, Seen, State, Step, forever, lock, next};

/// What a client begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// In place of the number of the stream that a script answers. No stream gets that far.
const THIS_STREAM: u32 = 0x7fff_fff1;

/// The types of frames that scripts are made of, as RFC 9113 numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// A piece of a body.
    Data = 0,
    /// A head, or trailers.
    Headers = 1,
    /// The end of a stream.
    Reset = 3,
    /// Settings.
    Settings = 4,
    /// A head of what was not asked for.
    Push = 5,
    /// Whether the other end is there.
    Ping = 6,
    /// The end of the connection.
    GoAway = 7,
    /// More may be sent.
    Window = 8,
    /// More of a head.
    Continuation = 9,
}

/// A frame with these flags, of the connection or of the stream that is answered.
#[must_use]
pub fn frame(kind: Frame, flags: u8, of_stream: bool, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    let stream = if of_stream { THIS_STREAM } else { 0 };
    [
        length.get(1..).unwrap_or_default(),
        &[kind as u8, flags],
        &stream.to_be_bytes(),
        payload,
    ]
    .concat()
}

/// The settings of a connection, and the head of a stream of events.
#[must_use]
pub fn head() -> Vec<u8> {
    // `:status 200` of the static table, and `content-type` (its number 31 there) with a value, each as RFC 7541 has it.
    let kind = b"text/event-stream";
    let length = u8::try_from(kind.len()).unwrap_or(0);
    let block = [&[0x88, 0x0f, 0x10, length], &kind[..]].concat();
    [
        frame(Frame::Settings, 0, false, &[]),
        frame(Frame::Headers, 0x4, true, &block),
    ]
    .concat()
}

/// A piece of a body, and whether it is the last.
#[must_use]
pub fn data(bytes: &[u8], is_last: bool) -> Vec<u8> {
    frame(Frame::Data, u8::from(is_last), true, bytes)
}

/// Does with each request what the scripts say, until a step ends the connection.
pub(super) async fn serve(stream: TlsStream<TcpStream>, number: usize, state: &Mutex<State>) {
    let (mut reading, mut writing) = split(stream);
    let (asked, mut asks) = mpsc::unbounded_channel();
    let answering = async {
        while let Some(id) = asks.recv().await {
            let id: u32 = id;
            let script = {
                let mut state = lock(state);
                state.seen.push(Seen {
                    connection: number,
                    line: format!("stream {id} HTTP/2"),
                    head: String::new(),
                    body: Value::Null,
                    certificate: None,
                });
                next(&mut state)
            };
            for step in script {
                match step {
                    Step::Wait(pause) => sleep(pause).await,
                    Step::Send(bytes) => writing.write_all(&on_stream(&bytes, id)).await?,
                    Step::Forever(bytes, pause) => {
                        return Err(forever(&mut writing, &on_stream(&bytes, id), pause).await);
                    }
                    Step::Hang => std::future::pending().await,
                    Step::Close => {
                        writing.flush().await?;
                        return writing.shutdown().await;
                    }
                    Step::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
                }
                writing.flush().await?;
            }
        }
        Ok(())
    };
    let hearing = async {
        while let Ok(id) = request(&mut reading).await {
            if asked.send(id).is_err() {
                return;
            }
        }
    };
    let outcome: io::Result<()> = tokio::select! {
        outcome = answering => outcome,
        () = hearing => Err(io::ErrorKind::UnexpectedEof.into()),
    };
    match outcome {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            reading.unsplit(writing).break_off();
        }
        Err(_) => lock(state).left += 1,
    }
}

/// Puts the number of the stream in its place.
fn on_stream(bytes: &[u8], id: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let place = THIS_STREAM.to_be_bytes();
    let mut from = 0;
    while let Some(at) =
        (bytes.get(from..)).and_then(|rest| rest.windows(4).position(|four| four == place))
    {
        if let Some(four) = bytes.get_mut(from + at..from + at + 4) {
            four.copy_from_slice(&id.to_be_bytes());
        }
        from += at + 4;
    }
    bytes
}

/// Reads frames until there is the head of a request, and says which stream it is.
async fn request(reading: &mut (impl AsyncRead + Unpin)) -> io::Result<u32> {
    loop {
        let mut head = [0; 9];
        reading.read_exact(&mut head).await?;
        if PREFACE.starts_with(&head) {
            reading.read_exact(&mut [0; PREFACE.len() - 9]).await?;
            continue;
        }
        let [a, b, c, kind, _, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        reading.read_exact(&mut payload).await?;
        if kind == Frame::Headers as u8 {
            return Ok(u32::from_be_bytes(stream));
        }
    }
}
