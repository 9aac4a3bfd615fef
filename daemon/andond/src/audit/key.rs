//! Keyed digests of texts.
//!
//! A plain digest of a short prompt can be guessed, by trying prompts. These are HMAC-SHA-256 under a random key that lies beside
//! the records, readable by the daemon only: who has both can tell whether a text is the one of a record, who has the records alone
//! cannot. Removing the key makes the digests mean nothing.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::AuditError;

/// Bytes of the key.
pub(super) const BYTES: usize = 32;
/// The key's file.
const NAME: &str = "key";

/// Makes keyed digests.
#[derive(Clone)]
pub struct Mac(hmac::Key);

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mac")
    }
}

impl Mac {
    /// One with this key.
    #[must_use]
    pub fn new(key: &[u8]) -> Mac {
        Mac(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Begins a digest.
    #[must_use]
    pub fn begin(&self) -> Digest {
        Digest(hmac::Context::with_key(&self.0))
    }
}

/// A digest that is being made.
#[derive(Clone)]
pub struct Digest(hmac::Context);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest")
    }
}

impl Digest {
    /// Goes on with these bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of what there was, in hexadecimal.
    #[must_use]
    pub fn hex(&self) -> String {
        hex(self.0.clone().sign().as_ref())
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the key of a folder, making one if there is none, and takes the folder for this process: the file is locked as long as it
/// is open.
pub(super) fn read(folder: &Path) -> Result<(Mac, File), AuditError> {
    let path = folder.join(NAME);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
    let mut file = options.open(&path).map_err(AuditError::io(&path, "open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(AuditError::InUse(folder.to_path_buf())),
        Err(TryLockError::Error(error)) => return Err(AuditError::io(&path, "lock")(error)),
    }
    let mut key = Zeroizing::new(Vec::with_capacity(BYTES + 1));
    (&mut file)
        .take(BYTES as u64 + 1)
        .read_to_end(&mut key)
        .map_err(AuditError::io(&path, "read"))?;
    if key.is_empty() {
        key.resize(BYTES, 0);
        SystemRandom::new()
            .fill(&mut key)
            .map_err(|_| AuditError::System("no random bytes for the key of the audit stream"))?;
        file.write_all(&key)
            .and_then(|()| file.sync_all())
            .and_then(|()| File::open(folder)?.sync_all())
            .inspect_err(|_| {
                // Half a key would be taken for a wrong one.
                drop(file.set_len(0));
            })
            .map_err(AuditError::io(&path, "write"))?;
    }
    if key.len() != BYTES {
        return Err(AuditError::Key(path));
    }
    Ok((Mac::new(&key), file))
}

#[cfg(test)]
mod tests {
    use super::Mac;

    #[test]
    fn digests_are_those_of_rfc_4231() {
        // Test case 2.
        let mut digest = Mac::new(b"Jefe").begin();
        digest.add(b"what do ya want ");
        digest.add(b"for nothing?");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(digest.hex(), expected);
        assert_eq!(digest.hex(), expected, "asked again");
    }
}
