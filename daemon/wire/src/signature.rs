//! Signatures over a manifest: what `manifest.sig` says, and how keys are written.
//!
//! ```text
//! andon-signatures-v1
//! ed25519 <key> <signature>
//! ```
//!
//! A line is an Ed25519 signature (RFC 8032) of the bytes of [`CONTEXT`] and then of `manifest.json` as they are, in
//! hexadecimal. The key's id is the beginning of the SHA-256 of its 32 bytes; it says which key to try, and proves
//! nothing. Since a manifest has the digests of all files, and those have the digests of tensors, whoever trusts the key
//! knows the whole model.
//!
//! Keys are files as other programs make them (`openssl genpkey -algorithm ed25519`): PEM of PKCS #8 and of
//! SubjectPublicKeyInfo, which for this algorithm are the prefixes here and 32 bytes. Making and checking signatures is
//! not done here: this crate has no use for the arithmetic.

use core::fmt;
use core::str::FromStr;

use heapless::Vec;

use crate::limits::{SIGNATURES_BYTES_MAX, SIGNATURES_MAX};
use crate::manifest::hexadecimal;

/// What stands before the manifest's bytes when they are signed, so that a signature for another purpose is none here.
pub const CONTEXT: &[u8] = b"andon-manifest-v1\n";
/// The first line.
pub const FIRST_LINE: &str = "andon-signatures-v1";
/// The only algorithm.
const ALGORITHM: &str = "ed25519";
/// Before the 32 bytes of a public key, in DER.
pub const PUBLIC_KEY_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// Before the 32 bytes of a private key, in DER.
pub const PRIVATE_KEY_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The beginning of the SHA-256 of a public key, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 8]);

/// One signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Which key is said to have made it.
    pub key: KeyId,
    /// The signature.
    pub bytes: [u8; 64],
}

/// All signatures of a manifest; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signatures(pub Vec<Signature, SIGNATURES_MAX>);

/// Why a text is no list of signatures. Lines are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignaturesError {
    /// It has more than [`SIGNATURES_BYTES_MAX`] bytes.
    #[error("it has {0} bytes, at most {SIGNATURES_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// It does not begin as it should.
    #[error("its first line is not {FIRST_LINE}")]
    FirstLine,
    /// A line is of another algorithm.
    #[error("line {0} is of another algorithm than {ALGORITHM}")]
    Algorithm(usize),
    /// A line is not whole, or not hexadecimal.
    #[error("line {0} is not an algorithm, a key's id and a signature")]
    Line(usize),
    /// There are too many.
    #[error("there are more than {SIGNATURES_MAX} signatures")]
    TooMany,
    /// There is none.
    #[error("there is no signature in it")]
    None,
}

impl FromStr for Signatures {
    type Err = SignaturesError;

    fn from_str(text: &str) -> Result<Self, SignaturesError> {
        if text.len() > SIGNATURES_BYTES_MAX {
            return Err(SignaturesError::TooLarge(text.len()));
        }
        let mut lines = text.split_terminator('\n');
        if lines.next() != Some(FIRST_LINE) {
            return Err(SignaturesError::FirstLine);
        }
        let mut signatures = Vec::new();
        for (number, line) in (2..).zip(lines) {
            let mut fields = line.split(' ');
            if fields.next() != Some(ALGORITHM) {
                return Err(SignaturesError::Algorithm(number));
            }
            let signature = fields
                .next()
                .and_then(hexadecimal)
                .zip(fields.next().and_then(hexadecimal))
                .filter(|_| fields.next().is_none())
                .map(|(key, bytes)| Signature {
                    key: KeyId(key),
                    bytes,
                })
                .ok_or(SignaturesError::Line(number))?;
            signatures
                .push(signature)
                .map_err(|_| SignaturesError::TooMany)?;
        }
        if signatures.is_empty() {
            return Err(SignaturesError::None);
        }
        Ok(Self(signatures))
    }
}

impl fmt::Display for Signatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}")?;
        for signature in &self.0 {
            write!(f, "{ALGORITHM} {} ", signature.key)?;
            for byte in signature.bytes {
                write!(f, "{byte:02x}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
