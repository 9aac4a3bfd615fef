//! A disk that remembers what was written since it was last told to sync, and can lose any of it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::StorageBackend;

/// Writes are torn at these boundaries: what a disk writes whole.
const SECTOR: usize = 512;

/// Something done to the disk.
#[derive(Debug, Clone)]
enum Deed {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Debug, Default)]
struct Platter {
    /// As the last sync left it.
    safe: Vec<u8>,
    /// As whoever reads sees it.
    now: Vec<u8>,
    /// What was done since that sync.
    deeds: Vec<Deed>,
    syncs: u64,
    /// Operations until one fails, and with what; then all fail until it is mended.
    fails_in: Option<(u64, io::ErrorKind)>,
    /// Whether it is not done with syncing.
    hangs: bool,
    /// Largest length it can have.
    full_at: Option<u64>,
}

impl Platter {
    fn operate(&mut self) -> io::Result<()> {
        match &mut self.fails_in {
            None => Ok(()),
            Some((0, kind)) => Err(io::Error::from(*kind)),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

/// The disk; clones are the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    /// A disk with these contents, safe.
    pub(super) fn of(image: Vec<u8>) -> Disk {
        Disk(Arc::new(Mutex::new(Platter {
            safe: image.clone(),
            now: image,
            ..Platter::default()
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether syncs hang from now on.
    pub(super) fn hang(&self, hangs: bool) {
        self.lock().hangs = hangs;
    }

    /// How often it was synced.
    pub(super) fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// What the disk holds for whoever reads now: as a killed process leaves it.
    pub(super) fn now(&self) -> Vec<u8> {
        self.lock().now.clone()
    }

    /// What the disk holds if the power goes now: what was synced, and of what was done since each part or not, as
    /// `choose` says of every sector in the order of writing.
    pub(super) fn after_power_cut(&self, mut choose: impl FnMut() -> bool) -> Vec<u8> {
        let platter = self.lock();
        let mut image = platter.safe.clone();
        for deed in &platter.deeds {
            match deed {
                Deed::SetLen(len) => {
                    if choose() {
                        image.resize(usize::try_from(*len).unwrap(), 0);
                    }
                }
                Deed::Write(offset, data) => {
                    let mut at = usize::try_from(*offset).unwrap();
                    let mut rest = data.as_slice();
                    while !rest.is_empty() {
                        // Sectors end where the disk's do, not where the write began.
                        let (part, later) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                        if choose() {
                            let end = at + part.len();
                            if image.len() < end {
                                image.resize(end, 0);
                            }
                            image[at..end].copy_from_slice(part);
                        }
                        at += part.len();
                        rest = later;
                    }
                }
            }
        }
        image
    }

    /// Fails with every operation after so many.
    pub(super) fn fail_in(&self, operations: u64, kind: io::ErrorKind) {
        self.lock().fails_in = Some((operations, kind));
    }

    /// Has no room beyond this length.
    pub(super) fn fill_at(&self, bytes: u64) {
        self.lock().full_at = Some(bytes);
    }

    /// Works again.
    pub(super) fn mend(&self) {
        let mut platter = self.lock();
        platter.fails_in = None;
        platter.full_at = None;
    }

    /// How large it is.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().now.len() as u64
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        let mut platter = self.lock();
        platter.operate()?;
        Ok(platter.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut platter = self.lock();
        platter.operate()?;
        let from = usize::try_from(offset).unwrap();
        let found = platter.now.get(from..from + out.len());
        out.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.lock();
        platter.operate()?;
        platter.now.resize(usize::try_from(len).unwrap(), 0);
        platter.deeds.push(Deed::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        while self.lock().hangs {
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut platter = self.lock();
        platter.operate()?;
        platter.safe = platter.now.clone();
        platter.deeds.clear();
        platter.syncs += 1;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.lock();
        platter.operate()?;
        let from = usize::try_from(offset).unwrap();
        let to = from + data.len();
        // A file system lets a file grow and finds out later that there is no room for what is written.
        if platter.full_at.is_some_and(|full| to as u64 > full) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        if platter.now.len() < to {
            platter.now.resize(to, 0);
        }
        platter.now[from..to].copy_from_slice(data);
        platter.deeds.push(Deed::Write(offset, data.to_vec()));
        Ok(())
    }
}
