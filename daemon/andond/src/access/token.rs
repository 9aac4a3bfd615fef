//! The token of the loopback listener.
//!
//! Invariant: nothing here says it. The token itself is forgotten once it has been read; a digest stays, and what is shown
//! is compared by digest in a time that tells nothing.

use std::fmt;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Fewest characters of a token: 96 bits, in base64.
const BYTES_MIN: usize = 16;
/// Most.
const BYTES_MAX: usize = 512;

/// A token, as far as it is remembered.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// Reads a file with a token and one line end at most.
    ///
    /// # Errors
    /// If it cannot be read, or has no token in it: nothing of what it has is in the text.
    pub fn read(path: &Path) -> Result<Token, String> {
        let failed = |error: std::io::Error| format!("cannot be read: {error}");
        let file = std::fs::File::open(path).map_err(failed)?;
        // As long as it may be from the start, so that no part of it is left behind by growing.
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MAX + 3));
        file.take(BYTES_MAX as u64 + 3)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        Token::new(text).ok_or_else(|| {
            format!(
                "has no token: {BYTES_MIN} to {BYTES_MAX} letters, digits and any of -._~+/=, in one line"
            )
        })
    }

    fn new(text: &[u8]) -> Option<Token> {
        // Those that RFC 6750 lets stand in a header.
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte);
        let fits = (BYTES_MIN..=BYTES_MAX).contains(&text.len()) && text.iter().all(good);
        fits.then(|| Token(Sha256::digest(text).into()))
    }

    /// Whether it is what is shown.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.0.ct_eq(&shown).into()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_token_is_a_line_and_nothing_says_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        // Made here, so that none is in the repository.
        let secret = "Zq~".repeat(8);
        for end in ["", "\n", "\r\n"] {
            fs::write(&path, format!("{secret}{end}")).expect("writable");
            let token = Token::read(&path).expect("a token");
            assert!(token.is(secret.as_bytes()));
            assert!(!token.is(&secret.as_bytes()[1..]) && !token.is(b""));
            assert!(!format!("{token:?}").contains("Zq"));
        }
        for bad in [
            String::new(),
            "short".to_owned(),
            format!("{secret}\n\n"),
            format!("{secret} {secret}"),
            secret.repeat(40),
        ] {
            fs::write(&path, &bad).expect("writable");
            let why = Token::read(&path).expect_err("no token");
            assert!(!why.contains("Zq") && !why.contains("short"), "{why}");
        }
        fs::remove_file(&path).expect("it is there");
        assert!(Token::read(&path).is_err());
    }
}
