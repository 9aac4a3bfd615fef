//! One model's folder: what is read from it and how it is brought to the disk.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use andon_wire::limits::{MANIFEST_BYTES_MAX, SIGNATURES_BYTES_MAX, TEXT_MEMBER_BYTES_MAX};
use andon_wire::manifest::{
    Digest, FORMAT, FORMAT_MIN, MANIFEST_PATH, Manifest, Member, SIGNATURES_PATH,
};
use andon_wire::verity::Measurement;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::RegistryError;
use crate::config::models::SignaturePolicy;

/// Bytes read at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// Bytes between two words about progress.
const PROGRESS_BYTES: u64 = 64 << 20;

/// A model that is kept.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The name it is registered under.
    pub name: String,
    /// Its manifest.
    pub manifest: Box<Manifest>,
    /// The manifest as it came.
    pub text: String,
    /// The signatures over it as they came; empty where what is there cannot be such.
    pub signatures: Option<String>,
    /// When it was added, in seconds since 1970.
    pub added_s: u64,
    folder: PathBuf,
}

impl Stored {
    pub(super) fn read(folder: &Path, name: &str) -> Result<Stored, RegistryError> {
        let path = folder.join(MANIFEST_PATH);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RegistryError::Unknown(name.to_owned()));
            }
            Err(error) => return Err(RegistryError::io(&path, "read")(error)),
        };
        // The folder's own time of change is that of the last hand in it.
        let added_s = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_secs());
        let text = text(&path, MANIFEST_BYTES_MAX as u64)?;
        Ok(Stored {
            name: name.to_owned(),
            manifest: manifest(&text)?,
            text,
            signatures: signatures(folder)?,
            added_s,
            folder: folder.to_owned(),
        })
    }

    /// Where a member lies.
    pub fn path(&self, member: &Member) -> PathBuf {
        self.folder.join(member.path.as_str())
    }

    /// The file that the engine is given: the weights, or the first part of them.
    pub fn weights(&self) -> PathBuf {
        self.manifest
            .weights()
            .next()
            .map_or_else(PathBuf::new, |member| self.path(member))
    }

    /// Whether the kernel vouches for its weights.
    pub fn has_verity(&self) -> bool {
        self.manifest.weights().all(|member| {
            let measured = File::open(self.path(member))
                .and_then(|file| andon_os::verity::measured(&file))
                .unwrap_or_default();
            measured.is_some() && measured == member.verity.map(|digest| digest.0)
        })
    }

    pub(super) fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), RegistryError> {
        let total = self.manifest.bytes();
        let mut done = 0;
        progress(0, total);
        for member in &self.manifest.members {
            let differs = compare(&self.path(member), member, &mut |bytes| {
                progress(done + bytes, total);
            })?;
            done += member.bytes;
            if let Some(what) = differs {
                return Err(RegistryError::Rejected(format!(
                    "{} of {} has {what}; remove the model and add it again",
                    member.path, self.name
                )));
            }
        }
        Ok(())
    }
}

/// All that a manifest says of a file as a whole, being compared with its bytes: the digest, and what fs-verity measures,
/// which the kernel is believed at every start once the file lies where there is fs-verity.
#[derive(Debug)]
pub(super) struct Comparison {
    sha256: Sha256,
    said: Digest,
    verity: Option<(Box<Measurement>, Digest)>,
}

impl Comparison {
    pub(super) fn with(member: &Member) -> Comparison {
        let measurement = |said| {
            let sha256 = |bytes: &[u8]| Sha256::digest(bytes).into();
            (Box::new(Measurement::new(sha256)), said)
        };
        Comparison {
            sha256: Sha256::new(),
            said: member.sha256,
            verity: member.verity.map(measurement),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some((measurement, _)) = &mut self.verity {
            measurement.update(bytes);
        }
    }

    /// What differs, if something does.
    pub(super) fn finish(self) -> Option<String> {
        let found = Digest(self.sha256.finalize().into());
        if found != self.said {
            let said = self.said;
            return Some(format!("the digest {found} where the manifest says {said}"));
        }
        let (measurement, said) = self.verity?;
        let found = measurement.finish();
        (found != said)
            .then(|| format!("the fs-verity digest {found} where the manifest says {said}"))
    }
}

/// Compares a file with what its manifest says, and says what differs, if something does; `progress` is told the bytes read.
pub(super) fn compare(
    path: &Path,
    member: &Member,
    progress: &mut dyn FnMut(u64),
) -> Result<Option<String>, RegistryError> {
    let mut file = File::open(path).map_err(RegistryError::io(path, "read"))?;
    let mut comparison = Comparison::with(member);
    let (mut done, mut said) = (0, 0);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = match file.read(&mut piece) {
            Ok(0) => return Ok(comparison.finish()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(RegistryError::io(path, "read")(error)),
        };
        comparison.update(piece.get(..count).unwrap_or_default());
        done += count as u64;
        if done - said >= PROGRESS_BYTES {
            said = done;
            progress(done);
        }
    }
}

/// The signatures in a model's folder.
fn signatures(folder: &Path) -> Result<Option<String>, RegistryError> {
    match text(&folder.join(SIGNATURES_PATH), SIGNATURES_BYTES_MAX as u64) {
        Ok(text) => Ok(Some(text)),
        Err(RegistryError::Rejected(_)) => Ok(Some(String::new())),
        Err(RegistryError::Io(_, _, error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts signatures beside a manifest: those that were there, or these, and never half of them.
pub(super) fn put_signatures(folder: &Path, text: &str) -> Result<(), RegistryError> {
    let path = folder.join(SIGNATURES_PATH);
    let part = folder.join(format!(".{SIGNATURES_PATH}"));
    File::create(&part)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&part, &path))
        .map_err(RegistryError::io(&path, "write"))?;
    sync_folder(folder)
}

/// The text of a small member, compared with the manifest's digest as far as the policy asks for it.
pub(super) fn text_of(
    folder: &Path,
    member: &Member,
    policy: SignaturePolicy,
) -> Result<String, RegistryError> {
    let text = text(&folder.join(member.path.as_str()), TEXT_MEMBER_BYTES_MAX)?;
    let is_same = || Digest(Sha256::digest(text.as_bytes()).into()) == member.sha256;
    if policy != SignaturePolicy::Off && !is_same() {
        let why = format!("{} is not what the manifest says", member.path);
        if policy == SignaturePolicy::Require {
            return Err(RegistryError::Rejected(why));
        }
        // The folder of a model that is kept has its name.
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        crate::event!(SignatureBad, name = &*name, "{why}, and is used");
    }
    Ok(text)
}

/// Reads a manifest; a newer format is named as such, whatever else it holds.
pub(super) fn manifest(text: &str) -> Result<Box<Manifest>, RegistryError> {
    #[derive(Deserialize)]
    struct Format {
        format: u16,
    }
    let rejected =
        |error: &dyn std::fmt::Display| RegistryError::Rejected(format!("the manifest: {error}"));
    let Format { format } = serde_json::from_str(text).map_err(|error| rejected(&error))?;
    if !(FORMAT_MIN..=FORMAT).contains(&format) {
        return Err(rejected(&format!(
            "its format is {format}, this daemon reads {FORMAT_MIN} to {FORMAT}"
        )));
    }
    let manifest: Box<Manifest> = serde_json::from_str(text).map_err(|error| rejected(&error))?;
    manifest.check().map_err(|error| rejected(&error))?;
    Ok(manifest)
}

/// A text file of bounded size.
pub(super) fn text(path: &Path, bytes_max: u64) -> Result<String, RegistryError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(bytes_max + 1).read_to_end(&mut text))
        .map_err(RegistryError::io(path, "read"))?;
    if text.len() as u64 > bytes_max {
        return Err(RegistryError::Rejected(format!(
            "{} has more than {bytes_max} bytes",
            path.display()
        )));
    }
    String::from_utf8(text)
        .map_err(|_| RegistryError::Rejected(format!("{} is not UTF-8", path.display())))
}

/// Makes the names in a folder survive a power cut.
pub(super) fn sync_folder(folder: &Path) -> Result<(), RegistryError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(RegistryError::io(folder, "write"))
}

/// Bytes that the folder's disk has for this user.
pub(super) fn free_bytes(folder: &Path) -> Result<u64, RegistryError> {
    let room = nix::sys::statvfs::statvfs(folder)
        .map_err(|error| RegistryError::io(folder, "ask for the room of")(error.into()))?;
    // The types of the fields differ between platforms.
    #[allow(clippy::useless_conversion)]
    let (blocks, bytes) = (
        u64::from(room.blocks_available()),
        u64::from(room.fragment_size()),
    );
    Ok(blocks.saturating_mul(bytes))
}

/// Gives `to` the bytes that `from` has, without copying them.
pub(super) fn link(from: &Path, to: &Path) -> Result<(), RegistryError> {
    fs::hard_link(from, to).map_err(RegistryError::io(to, "link"))
}
