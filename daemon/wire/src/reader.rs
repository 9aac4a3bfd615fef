//! Takes frames out of a stream that delivers bytes in pieces of any size.
//!
//! The reader does no input itself: the caller reads into [`FrameReader::space`], reports how much
//! came with [`FrameReader::filled`], and takes payloads with [`FrameReader::next_payload`] until
//! there is none.
//!
//! Invariant: the buffer never grows, and a frame that could not fit is refused when its length
//! has arrived, before any of it is stored. After an error the stream has no known frame border,
//! so every later call returns the same error.

use crate::frame::{DecodeError, HEADER_BYTES, payload_bytes};

/// Why a stream of frames cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A frame's length is out of bounds.
    #[error(transparent)]
    Frame(#[from] DecodeError),
    /// The stream ended inside a frame.
    #[error("the connection ended inside a frame: {missing} more bytes were announced")]
    Truncated {
        /// Bytes that are missing at least.
        missing: usize,
    },
    /// The caller reported more bytes than there was space for.
    #[error("more bytes were reported than there was space for")]
    Overfilled,
}

/// Takes frames out of a stream, in a buffer of the caller's.
#[derive(Debug)]
pub struct FrameReader<B> {
    buffer: B,
    /// Most bytes in a payload: the caller's bound or what the buffer can hold, whichever is less.
    bytes_max: usize,
    /// First byte not yet taken.
    start: usize,
    /// First byte not yet filled; `start <= end <= buffer.len()`.
    end: usize,
    failed: Option<ReadError>,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> FrameReader<B> {
    /// A reader for payloads of at most `bytes_max` bytes. A smaller buffer lowers that bound: it
    /// has to hold a whole frame with its length.
    pub fn new(buffer: B, bytes_max: usize) -> Self {
        let room = buffer.as_ref().len().saturating_sub(HEADER_BYTES);
        Self {
            buffer,
            bytes_max: bytes_max.min(room),
            start: 0,
            end: 0,
            failed: None,
        }
    }

    /// Where to read the next bytes into. Not empty, if the buffer is not, as long as
    /// [`Self::next_payload`] was called until it returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.as_mut().copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.buffer.as_mut().get_mut(self.end..).unwrap_or_default()
    }

    /// Reports that the first `count` bytes of [`Self::space`] hold new data.
    ///
    /// # Errors
    /// [`ReadError::Overfilled`] when there was less space than that.
    pub fn filled(&mut self, count: usize) -> Result<(), ReadError> {
        match self.end.checked_add(count) {
            Some(end) if end <= self.buffer.as_ref().len() => {
                self.end = end;
                Ok(())
            }
            _ => Err(self.fail(ReadError::Overfilled)),
        }
    }

    /// Whether a whole payload is there for [`Self::next_payload`], without borrowing it: for loops
    /// that read until one is and then return it.
    ///
    /// # Errors
    /// As [`Self::next_payload`].
    pub fn ready(&mut self) -> Result<bool, ReadError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let announced = self.announced()?;
        Ok(announced.is_some_and(|bytes| HEADER_BYTES + bytes <= self.end - self.start))
    }

    /// The next whole payload, or `None` when more bytes are needed. It is neither verified nor
    /// decoded yet: give it to `ClientFrame::decode` or `ServerFrame::decode`.
    ///
    /// # Errors
    /// [`ReadError::Frame`] when a frame announces a length out of bounds.
    pub fn next_payload(&mut self) -> Result<Option<&[u8]>, ReadError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let Some(bytes) = self.announced()? else {
            return Ok(None);
        };
        // Both sums stay within the buffer's length plus `bytes_max`, which it bounds.
        let from = self.start + HEADER_BYTES;
        let to = from + bytes;
        if to > self.end {
            return Ok(None);
        }
        self.start = to;
        Ok(self.buffer.as_ref().get(from..to))
    }

    /// Reports the end of the stream.
    ///
    /// # Errors
    /// [`ReadError::Truncated`] when it ended inside a frame.
    pub fn finish(&mut self) -> Result<(), ReadError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let have = self.end - self.start;
        let need = match self.announced()? {
            Some(bytes) => HEADER_BYTES + bytes,
            None => HEADER_BYTES,
        };
        if have == 0 || have >= need {
            return Ok(());
        }
        Err(self.fail(ReadError::Truncated {
            missing: need - have,
        }))
    }

    /// The length of the frame that begins at `start`, once it has arrived.
    fn announced(&mut self) -> Result<Option<usize>, ReadError> {
        let waiting = self
            .buffer
            .as_ref()
            .get(self.start..self.end)
            .unwrap_or_default();
        let Some(header) = waiting.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        match payload_bytes(*header, self.bytes_max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(self.fail(error.into())),
        }
    }

    fn fail(&mut self, error: ReadError) -> ReadError {
        self.failed = Some(error);
        error
    }
}
