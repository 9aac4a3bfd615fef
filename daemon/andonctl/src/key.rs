//! Keys that sign models, and signatures made and checked with them.
//!
//! A private key is a file of its own, PEM of PKCS #8 as other programs make it too, readable to its owner only. A public
//! key is the one line between the lines of its PEM, which is what `[models] trusted-keys` of a gateway takes.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::str::FromStr;

use andon_wire::signature::{CONTEXT, KeyId, PRIVATE_KEY_PREFIX, PUBLIC_KEY_PREFIX, Signature};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::arguments::models::KeyCommand;
use crate::failure::Failure;
use crate::output::Output;
use crate::parcel::damaged;
use crate::pull::sync_folder;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// Most bytes of a file with a key: one has some 120.
const FILE_BYTES_MAX: u64 = 4096;
/// Permissions of others than a file's owner.
const OTHERS: u32 = 0o077;

/// The command `key`.
pub(crate) fn run(command: &KeyCommand, output: &mut Output) -> Result<(), Failure> {
    let key = match command {
        KeyCommand::New(options) => Private::make(&options.file)?,
        KeyCommand::Show(options) => Private::read(&options.file)?,
    };
    let public = key.public();
    output.text(&format!("{public}\n"))?;
    eprintln!("andonctl: that is the public key {}", public.id());
    eprintln!(
        "andonctl: a gateway trusts it with trusted-keys = [\"{public}\"] in [models] of andond.toml"
    );
    Ok(())
}

/// What signs. It is erased from memory when it is dropped, and so is what it was made or read from.
pub(crate) struct Private(SigningKey);

/// What signatures are checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Public(VerifyingKey);

impl Private {
    /// Makes a key from the system's randomness and writes it to a file that is not there yet.
    fn make(path: &Path) -> Result<Self, Failure> {
        let failed = |error| Failure::file("write", path, error);
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|error| failed(error.into()))?;
        let key = Self(SigningKey::from_bytes(&seed));
        let bytes = Zeroizing::new([&PRIVATE_KEY_PREFIX[..], &*seed].concat());
        let text = Zeroizing::new(STANDARD.encode(&*bytes));
        let text = Zeroizing::new(format!("{BEGIN}\n{}\n{END}\n", *text));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        sync_folder(path)?;
        Ok(key)
    }

    /// The key in a file.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |error| Failure::file("read", path, error);
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        if mode & OTHERS != 0 {
            eprintln!(
                "andonctl: {} is a private key that others than its owner may use; `chmod 600` keeps it from them",
                path.display()
            );
        }
        // With room for all of it: a text that grows leaves its beginnings behind.
        let mut text = Zeroizing::new(String::with_capacity(2 * FILE_BYTES_MAX as usize));
        file.take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let seed = (|| {
            let (_, rest) = text.split_once(BEGIN)?;
            let (inside, _) = rest.split_once(END)?;
            let mut line = Zeroizing::new(String::with_capacity(inside.len()));
            line.extend(inside.split_whitespace());
            let key = Zeroizing::new(STANDARD.decode(&*line).ok()?);
            let seed = key.strip_prefix(&PRIVATE_KEY_PREFIX)?;
            <[u8; 32]>::try_from(seed).ok().map(Zeroizing::new)
        })();
        match seed {
            Some(seed) => Ok(Self(SigningKey::from_bytes(&seed))),
            None => Err(damaged(
                path,
                "it is no Ed25519 private key in PEM; `andonctl key new` makes one",
            )),
        }
    }

    pub(crate) fn public(&self) -> Public {
        Public(self.0.verifying_key())
    }

    /// Signs a manifest.
    pub(crate) fn sign(&self, manifest: &str) -> Signature {
        Signature {
            key: self.public().id(),
            bytes: self.0.sign(&message(manifest)).to_bytes(),
        }
    }
}

impl Public {
    /// The id by which signatures say that it is of this key.
    pub(crate) fn id(&self) -> KeyId {
        let digest: [u8; 32] = Sha256::digest(self.0.as_bytes()).into();
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        KeyId(id)
    }

    /// Whether a signature is of this key and of this manifest.
    pub(crate) fn signed(&self, manifest: &str, signature: &Signature) -> bool {
        let found = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        signature.key == self.id() && self.0.verify_strict(&message(manifest), &found).is_ok()
    }
}

/// What is signed.
fn message(manifest: &str) -> Vec<u8> {
    [CONTEXT, manifest.as_bytes()].concat()
}

impl fmt::Display for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&PUBLIC_KEY_PREFIX[..], self.0.as_bytes()].concat();
        f.write_str(&STANDARD.encode(bytes))
    }
}

impl FromStr for Public {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = (|| {
            let bytes = STANDARD.decode(text).ok()?;
            let bytes = <[u8; 32]>::try_from(bytes.strip_prefix(&PUBLIC_KEY_PREFIX)?).ok()?;
            let key = VerifyingKey::from_bytes(&bytes).ok()?;
            // Of a weak one, signatures can be made that fit anything.
            (!key.is_weak()).then_some(Self(key))
        })();
        key.ok_or_else(|| {
            "it is no Ed25519 public key; `andonctl key show` prints that of a private one"
                .to_owned()
        })
    }
}
