//! A position in the file and the fields that can be read from there. Nothing is read past the end, and
//! a length is compared with a limit and with what is left before it is used.

use super::error::GgufError;

#[derive(Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.position)
    }

    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let end = usize::try_from(count)
            .ok()
            .and_then(|count| self.position.checked_add(count));
        let taken =
            end.and_then(|end| self.bytes.get(self.position..end).map(|taken| (taken, end)));
        let Some((taken, end)) = taken else {
            return Err(GgufError::Truncated {
                offset: self.position,
                what,
                needed: count,
                left: self.left(),
            });
        };
        self.position = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let (offset, left) = (self.position, self.left());
        let taken = self.take(N as u64, what)?;
        taken.try_into().map_err(|_| GgufError::Truncated {
            offset,
            what,
            needed: N as u64,
            left,
        })
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length, then that many bytes of UTF-8. `too_long` makes the error for a length over `max`.
    pub(super) fn text(
        &mut self,
        max: usize,
        what: &'static str,
        too_long: fn(offset: usize, bytes: u64, max: usize) -> GgufError,
    ) -> Result<&'a str, GgufError> {
        let offset = self.position;
        let length = self.u64(what)?;
        if length > max as u64 {
            return Err(too_long(offset, length, max));
        }
        let start = self.position;
        let bytes = self.take(length, what)?;
        core::str::from_utf8(bytes).map_err(|error| GgufError::NotUtf8 {
            offset: start.saturating_add(error.valid_up_to()),
            what,
        })
    }
}
