//! Encryption at rest: every value is sealed, and names stand in values only.
//!
//! Keys of the tables are numbers in the order of arrival, so the file shows how many requests there are, how large
//! they are and when they change, and nothing of who asked what. A value is bound to its table and number: one put in
//! another's place does not open. Who can put back a whole older file is not kept from doing so.

use std::fmt;
use std::io::Read as _;
use std::path::Path;

use chacha20poly1305::aead::{Aead as _, Generate as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::error::SpoolError;

/// Fewest bytes of a key file: it holds random bytes, not a password.
const KEY_BYTES_MIN: usize = 32;
/// Most bytes of a key file.
const KEY_BYTES_MAX: usize = 4096;
/// Bytes of the nonce before each value: long enough to be drawn at random for ever.
const NONCE_BYTES: usize = 24;
/// Bytes of the salt.
pub(super) const SALT_BYTES: usize = 16;

/// What the key file holds.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Reads a key file.
    ///
    /// # Errors
    /// If it cannot be read or is too short to be a key.
    pub fn read(path: &Path) -> Result<Secret, SpoolError> {
        let failed = |why: String| SpoolError::Key(path.to_path_buf(), why);
        let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
        // As large as it may become: what is moved on the way would be left behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES_MAX + 1));
        file.take(KEY_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| failed(error.to_string()))?;
        if bytes.len() > KEY_BYTES_MAX {
            return Err(failed(format!(
                "more than {KEY_BYTES_MAX} bytes are no key"
            )));
        }
        Secret::kept(bytes)
            .ok_or_else(|| failed(format!("fewer than {KEY_BYTES_MIN} bytes are no key")))
    }

    /// A secret of these bytes, if they are enough.
    #[cfg(test)]
    pub(super) fn new(bytes: Vec<u8>) -> Option<Secret> {
        Secret::kept(Zeroizing::new(bytes))
    }

    fn kept(bytes: Zeroizing<Vec<u8>>) -> Option<Secret> {
        (bytes.len() >= KEY_BYTES_MIN).then_some(Secret(bytes))
    }
}

/// Seals and opens values.
#[derive(Clone)]
pub(super) struct Cipher(XChaCha20Poly1305);

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    /// The cipher of a file with this salt.
    pub(super) fn new(secret: &Secret, salt: &[u8]) -> Cipher {
        let mut hash = Sha256::new();
        hash.update(b"andon spool, values, 1");
        hash.update(salt);
        hash.update(&*secret.0);
        let key = Zeroizing::new(<[u8; 32]>::from(hash.finalize()));
        Cipher(XChaCha20Poly1305::new((&*key).into()))
    }

    /// Seals a value of a table, of a number.
    pub(super) fn seal(&self, table: u8, number: u64, value: &[u8]) -> Result<Vec<u8>, SpoolError> {
        let unsealable = || SpoolError::Storage("no random bytes to encrypt with".to_owned());
        let nonce = XNonce::try_generate().map_err(|_| unsealable())?;
        let aad = place(table, number);
        let payload = Payload {
            msg: value,
            aad: &aad,
        };
        let sealed = self.0.encrypt(&nonce, payload).map_err(|_| unsealable())?;
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&sealed);
        Ok(bytes)
    }

    /// Opens one.
    pub(super) fn open(
        &self,
        table: u8,
        number: u64,
        sealed: &[u8],
    ) -> Result<Vec<u8>, SpoolError> {
        let damaged = || SpoolError::Damaged("an encrypted value does not open".to_owned());
        let (nonce, sealed) = sealed.split_at_checked(NONCE_BYTES).ok_or_else(damaged)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| damaged())?;
        let aad = place(table, number);
        let payload = Payload {
            msg: sealed,
            aad: &aad,
        };
        self.0.decrypt(&nonce, payload).map_err(|_| damaged())
    }
}

fn place(table: u8, number: u64) -> [u8; 9] {
    let mut place = [table; 9];
    place[1..].copy_from_slice(&number.to_le_bytes());
    place
}

/// Random bytes for a new file.
pub(super) fn salt() -> Result<[u8; SALT_BYTES], SpoolError> {
    <[u8; SALT_BYTES]>::try_generate()
        .map_err(|_| SpoolError::Storage("no random bytes for a salt".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_in_its_own_place_with_its_own_key_only() {
        let secret = Secret::new(vec![7; 32]).expect("a key");
        let cipher = Cipher::new(&secret, b"salt");
        let sealed = cipher.seal(1, 5, b"plc-7 asks").expect("sealed");
        assert!(!sealed.windows(5).any(|bytes| bytes == b"plc-7"));
        assert_eq!(cipher.open(1, 5, &sealed).expect("opens"), b"plc-7 asks");
        assert!(cipher.open(2, 5, &sealed).is_err());
        assert!(cipher.open(1, 6, &sealed).is_err());
        assert!(Cipher::new(&secret, b"pepper").open(1, 5, &sealed).is_err());
        let mut cut = sealed.clone();
        cut.truncate(NONCE_BYTES - 1);
        assert!(cipher.open(1, 5, &cut).is_err());
        assert_ne!(sealed, cipher.seal(1, 5, b"plc-7 asks").expect("sealed"));
        assert!(Secret::new(vec![7; 31]).is_none());
    }
}
