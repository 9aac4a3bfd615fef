//! A connection to the daemon: hello, then frames out and frames in.
//!
//! Invariant: after [`Connection::open`] both sides have agreed on the version; a frame that is
//! returned had a right checksum and decoded whole. Anything else ends the connection with
//! [`Failure::Lost`].

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use andon_wire::limits::{CLIENT_FRAME_BYTES_MAX, SERVER_FRAME_BYTES_MAX};
use andon_wire::{
    ClientFrame, EncodeError, FrameReader, HEADER_BYTES, Hello, PROTOCOL_VERSION, ServerFrame,
};

use crate::failure::Failure;

/// How long the daemon may take for what needs no model: hello, status, models, cancel.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

const SOFTWARE: &str = concat!("andonctl ", env!("CARGO_PKG_VERSION"));

pub(crate) struct Connection {
    stream: UnixStream,
    reader: FrameReader<Vec<u8>>,
}

impl Connection {
    /// Connects and says hello.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).map_err(|error| Failure::Connect {
            path: path.to_owned(),
            error,
        })?;
        let buffer = vec![0; HEADER_BYTES + SERVER_FRAME_BYTES_MAX];
        let mut connection = Self {
            stream,
            reader: FrameReader::new(buffer, SERVER_FRAME_BYTES_MAX),
        };
        connection.wait_at_most(Some(REPLY_TIMEOUT))?;
        let hello = Hello {
            version: PROTOCOL_VERSION,
            software: SOFTWARE,
        };
        connection.send(&ClientFrame::Hello(hello))?;
        match connection.receive()? {
            ServerFrame::Welcome(_) => {}
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("hello")),
        }
        Ok(connection)
    }

    /// Sets how long to wait for the next bytes; `None` waits for ever.
    pub(crate) fn wait_at_most(&self, timeout: Option<Duration>) -> Result<(), Failure> {
        self.stream
            .set_read_timeout(timeout)
            .map_err(|error| Failure::Lost(error.to_string()))
    }

    /// A second handle on the stream, for a cancel from another thread.
    pub(crate) fn stream(&self) -> Result<UnixStream, Failure> {
        self.stream
            .try_clone()
            .map_err(|error| Failure::Lost(error.to_string()))
    }

    /// Ends the connection, also for a thread that waits on a second handle.
    pub(crate) fn close(&self) {
        // It fails only where the connection has ended already.
        drop(self.stream.shutdown(Shutdown::Both));
    }

    pub(crate) fn send(&mut self, frame: &ClientFrame<'_>) -> Result<(), Failure> {
        send(&mut self.stream, frame)
    }

    /// The next frame. It borrows the connection's buffer, so it has to be used up before the one
    /// after it is read.
    pub(crate) fn receive(&mut self) -> Result<ServerFrame<'_>, Failure> {
        while !self
            .reader
            .ready()
            .map_err(|error| Failure::Lost(error.to_string()))?
        {
            let count = match self.stream.read(self.reader.space()) {
                Ok(0) => {
                    let end = match self.reader.finish() {
                        Ok(()) => "the daemon closed it".to_owned(),
                        Err(error) => error.to_string(),
                    };
                    return Err(Failure::Lost(end));
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Err(Failure::Lost(
                        "the daemon did not answer in time".to_owned(),
                    ));
                }
                Err(error) => return Err(Failure::Lost(error.to_string())),
            };
            self.reader
                .filled(count)
                .map_err(|error| Failure::Lost(error.to_string()))?;
        }
        match self.reader.next_payload() {
            Ok(Some(payload)) => {
                ServerFrame::decode(payload).map_err(|error| Failure::Lost(error.to_string()))
            }
            Ok(None) => Err(Failure::Lost("a frame vanished".to_owned())),
            Err(error) => Err(Failure::Lost(error.to_string())),
        }
    }
}

/// Sends one frame.
pub(crate) fn send(stream: &mut UnixStream, frame: &ClientFrame<'_>) -> Result<(), Failure> {
    let mut small = [0; 1024];
    let mut large;
    let bytes = match frame.encode(&mut small) {
        Ok(bytes) => bytes,
        Err(EncodeError::BufferFull { .. }) => {
            large = vec![0; HEADER_BYTES + CLIENT_FRAME_BYTES_MAX];
            frame
                .encode(&mut large)
                .map_err(|error| Failure::Usage(error.to_string()))?
        }
        Err(error) => return Err(Failure::Usage(error.to_string())),
    };
    stream
        .write_all(bytes)
        .map_err(|error| Failure::Lost(error.to_string()))
}

/// Sends one frame, encoded into a buffer of the caller's: for many frames after one another.
pub(crate) fn write(
    stream: &mut UnixStream,
    frame: &ClientFrame<'_>,
    buffer: &mut [u8],
) -> Result<(), Failure> {
    let bytes = frame
        .encode(buffer)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    stream
        .write_all(bytes)
        .map_err(|error| Failure::Lost(error.to_string()))
}

/// The daemon sent a frame that answers nothing.
pub(crate) fn unexpected(what: &str) -> Failure {
    Failure::Lost(format!("an answer to the {what} came that is none"))
}
