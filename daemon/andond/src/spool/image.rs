//! A spool's file as bytes in memory: what a start of the daemon makes of them, for tests that send anything.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use redb::StorageBackend;

use super::book::begin_attempts;
use super::cipher::Secret;
use super::clock::Clock;
use super::error::SpoolError;
use super::record::Header;
use super::schema::{self, SCHEMA};
use super::store::{Change, Store, decode, encode};
use super::writer::Kept;

/// What no file of a test grows beyond, in bytes.
const BYTES_MAX: usize = 64 << 20;

/// The file of a spool with these records, whose numbers count from 1, sealed if there is a secret. Each is written by a
/// commit of its own, as they come.
///
/// # Errors
/// What the store says.
pub fn write(records: &[Kept], secret: Option<&Secret>) -> Result<Vec<u8>, SpoolError> {
    let memory = Memory::default();
    let mut store = Store::open(memory.clone(), secret)?;
    let seen = Clock::after(&store.seen()?).seen();
    for (number, kept) in (1..).zip(records) {
        let put = Change::Put {
            number,
            header: Box::new(kept.header.clone()),
            request: Some(kept.request.clone()),
            answer: kept.answer.clone(),
        };
        store.apply(&[put], &seen)?;
    }
    drop(store);
    Ok(std::mem::take(&mut *memory.lock()))
}

/// What a start finds in such a file, by number. As a start does, it then begins a new attempt at everything that has no
/// answer, and has that on the disk.
///
/// # Errors
/// Why the file is of no use.
pub fn read(file: Vec<u8>, secret: Option<&Secret>) -> Result<Vec<(u64, Kept)>, SpoolError> {
    let memory = Memory(Arc::new(Mutex::new(file)));
    let mut store = Store::open(memory, secret)?;
    let clock = Clock::after(&store.seen()?);
    let mut headers = store.headers()?;
    let mut found = Vec::new();
    for (number, header) in &headers {
        let kept = Kept {
            header: header.clone(),
            request: store.request(*number)?.unwrap_or_default(),
            answer: store.answer(*number)?,
        };
        found.push((*number, kept));
    }
    begin_attempts(&mut headers, clock.is_same_start());
    let puts = headers.iter().map(|(number, header)| Change::Put {
        number: *number,
        header: Box::new(header.clone()),
        request: None,
        answer: None,
    });
    store.apply(&puts.collect::<Vec<_>>(), &clock.seen())?;
    if store.headers()? == headers {
        Ok(found)
    } else {
        let why = "what was written to it is not there";
        Err(SpoolError::Storage(why.to_owned()))
    }
}

/// The header in the bytes of a record, written under a schema: what was noted of the clock is `seen`, which only counts
/// for schemas before 3.
///
/// # Errors
/// If they are none.
pub fn header(found: u32, bytes: &[u8], seen: &[u8]) -> Result<Header, SpoolError> {
    if found == SCHEMA {
        return decode(bytes);
    }
    decode(&schema::header(found, bytes.to_vec(), decode(seen)?)?)
}

/// A header as today's schema writes it.
///
/// # Errors
/// If it cannot be written.
pub fn header_bytes(header: &Header) -> Result<Bytes, SpoolError> {
    encode(header).map(Bytes::from)
}

/// The file.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // Every critical section leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(offset: u64, length: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    let end = start
        .checked_add(length)
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok(start..end)
}

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let place = place(offset, out.len())?;
        let file = self.lock();
        let bytes = file.get(place).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > BYTES_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.lock().resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let place = place(offset, data.len())?;
        let mut file = self.lock();
        if place.end > file.len() {
            if place.end > BYTES_MAX {
                return Err(io::ErrorKind::StorageFull.into());
            }
            file.resize(place.end, 0);
        }
        file[place].copy_from_slice(data);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        Ok(())
    }
}
