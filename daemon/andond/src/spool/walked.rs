//! A backend whose file is walked whole, checksums and all, whenever it is opened.
//!
//! redb does that with a file that was not closed; one that was closed in order it takes at its word, and what a worn memory card
//! made of it since then is read as records that nobody wrote, or ends the process. What is kept for others is not taken at
//! anybody's word, so every file looks as if it had not been closed. The spool's bounds keep the walk short.

use std::io;

use redb::StorageBackend;

/// Where redb's header says how the file was left: behind the nine bytes of its magic number (`docs/design.md` of redb, "God byte").
const STATE_AT: u64 = 9;
/// The file was not closed.
const NOT_CLOSED: u8 = 2;
/// What was written last was on the disk before it was made what counts, and the pages in use were noted: nobody has to look.
const NOTED: u8 = 4;

/// The backend, whose file never looks closed.
#[derive(Debug)]
pub(super) struct Walked<B>(pub(super) B);

impl<B: StorageBackend> StorageBackend for Walked<B> {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)?;
        let state = STATE_AT.checked_sub(offset).and_then(|at| {
            let at = usize::try_from(at).ok()?;
            out.get_mut(at)
        });
        if let Some(state) = state {
            // The last commit of a file that is closed notes no more than its pages: the one before it holds all that was kept.
            *state = (*state | NOT_CLOSED) & !NOTED;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}
