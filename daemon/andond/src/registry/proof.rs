//! Whether what is computed with is what was signed, or at least what was added: at every start, by the manifest.
//!
//! A signature vouches for the manifest, the manifest for files whole, for what fs-verity measures of them, and for the
//! digests of their tensors. Of a file that is under fs-verity the kernel is asked for its measure, which takes no time,
//! and the kernel compares every page that is read from then on. Of any other file the pieces (its head, its tensors) are
//! read and compared: before anything is computed where signatures are required, beside the service where they are wished
//! for. Packed weights are compared with the file that they were made of, and made only of one that was compared.
//!
//! Bytes are read from the very file that is mapped. Nothing here trusts anything else that lies beside the models: no note
//! of an earlier look, which whoever can change a model could write as well.

use std::fmt::Display;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use andon_engine::Model;
use andon_os::Mapping;
use andon_wire::limits::TENSOR_DIGESTS_BYTES_MAX;
use andon_wire::manifest::{Digest, Member};
use andon_wire::tensors;
use sha2::{Digest as _, Sha256};

use super::trust::{Judgement, Trust};
use super::{RegistryError, Stored, store};
use crate::config::models::SignaturePolicy;

/// Bytes read and hashed at a time; fewer than any cache of the second level.
const PIECE_BYTES: usize = 256 * 1024;

/// What is known of the bytes of a model that is served.
#[derive(Debug, Clone)]
pub struct Proof {
    policy: SignaturePolicy,
    name: String,
    /// `None` for a file that is served by its path, of which no manifest says anything.
    kept: Option<Box<Stored>>,
    /// Whether [`Proof::beside`] found the model to be what its manifest says, once it has looked.
    sound: Arc<OnceLock<bool>>,
}

/// How it is known that a model's bytes are those of its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proven {
    /// The kernel says so of all of its files, and goes on doing so.
    Verity,
    /// They were read and compared.
    Compared {
        /// Bytes that were.
        bytes: u64,
    },
    /// It is not known: nobody looked, or there is nothing to compare them with.
    No,
}

/// A piece of a file that is to be compared.
struct Piece {
    file: usize,
    range: Range<u64>,
    sha256: Digest,
    name: String,
}

impl Proof {
    /// For a model that is kept, of whose signatures `found` was found.
    ///
    /// # Errors
    /// If it may not be served.
    pub(super) fn of_kept(
        trust: &Trust,
        stored: Stored,
        found: &Judgement,
    ) -> Result<Proof, RegistryError> {
        trust.serve(&stored.name, found)?;
        Ok(Proof {
            policy: trust.policy(),
            name: stored.name.clone(),
            kept: Some(Box::new(stored)),
            sound: Arc::default(),
        })
    }

    /// For a file that is served by its path.
    ///
    /// # Errors
    /// If it may not be served.
    pub(super) fn of_path(trust: &Trust, name: &str) -> Result<Proof, RegistryError> {
        if trust.policy() == SignaturePolicy::Require {
            return Err(RegistryError::Rejected(format!(
                "{name} is served by its path and so has no signature, which [models] signature = \"require\" asks \
                 for; add it by `andonctl model add` and give its name"
            )));
        }
        Ok(Proof {
            policy: trust.policy(),
            name: name.to_owned(),
            kept: None,
            sound: Arc::default(),
        })
    }

    /// Whether nothing may be computed from bytes that were not compared, those of packs included.
    pub fn is_required(&self) -> bool {
        self.policy == SignaturePolicy::Require
    }

    /// Before anything of a model's files is used, be it their metadata: compares them, on so many threads, where that is
    /// required. `None` if `goes_on` answered with false before that was done: nothing may be used then.
    ///
    /// # Errors
    /// What differs, or cannot be read.
    pub fn before_use(
        &self,
        maps: &[Mapping],
        threads: usize,
        goes_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Proven>, RegistryError> {
        match &self.kept {
            Some(stored) if self.is_required() => {
                let proven = check(stored, maps, threads, Which::Unprotected, &|_| goes_on())?;
                self.say(proven);
                Ok(Some(proven).filter(|proven| *proven != Proven::No))
            }
            _ => Ok(Some(Proven::No)),
        }
    }

    /// Whether [`Proof::beside`] has anything to do.
    pub fn is_left(&self) -> bool {
        self.policy == SignaturePolicy::Warn && self.kept.is_some()
    }

    /// While `model` is served: compares it on this thread, until `goes_on` answers with false; it may wait.
    ///
    /// # Errors
    /// What differs, or cannot be read.
    pub fn beside(
        &self,
        model: &Model,
        goes_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Proven, RegistryError> {
        let Some(stored) = self.kept.as_ref().filter(|_| self.is_left()) else {
            return Ok(Proven::No);
        };
        let proven = check(stored, model.maps(), 1, Which::Unprotected, &|_| goes_on());
        if !matches!(proven, Ok(Proven::No)) {
            self.sound.get_or_init(|| proven.is_ok());
        }
        self.say(*proven.as_ref().unwrap_or(&Proven::No));
        proven
    }

    /// What [`Proof::beside`] found; `None` until it has.
    pub fn is_sound(&self) -> Option<bool> {
        self.sound.get().copied()
    }

    fn say(&self, proven: Proven) {
        let name = &self.name;
        match proven {
            Proven::Verity => tracing::info!(name, "the kernel vouches for the weights"),
            Proven::Compared { bytes } => {
                tracing::info!(name, bytes, "the weights are those of the manifest");
            }
            Proven::No => {}
        }
    }
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// The files that the kernel does not vouch for.
    Unprotected,
    /// All, whoever else vouches for it.
    All,
}

/// Compares the files of a model, as they are mapped, with the manifest of `stored`. `goes_on` is told bytes done and ends it by false.
pub(super) fn check(
    stored: &Stored,
    maps: &[Mapping],
    threads: usize,
    which: Which,
    goes_on: &(dyn Fn(u64) -> bool + Sync),
) -> Result<Proven, RegistryError> {
    let members: Vec<&Member> = stored.manifest.weights().collect();
    let differs = |what: &dyn Display| {
        RegistryError::Rejected(format!(
            "the model {} is not what its manifest says: {what}; remove its folder and add it again",
            stored.name
        ))
    };
    if maps.len() != members.len() {
        return Err(differs(&format!("it has {} files", maps.len())));
    }
    let mut verity = Vec::new();
    for (member, map) in members.iter().zip(maps) {
        if map.len() as u64 != member.bytes {
            return Err(differs(&format!("{} has {} bytes", member.path, map.len())));
        }
        let measured = map
            .verity()
            .map_err(RegistryError::io(&stored.path(member), "measure"))?
            .map(Digest);
        match (measured, member.verity) {
            (Some(found), Some(said)) if found != said => {
                return Err(differs(&format!("{} measures {found}", member.path)));
            }
            (found, said) => verity.push(found.is_some() && said.is_some()),
        }
    }
    if which == Which::Unprotected && verity.iter().all(|on| *on) {
        return Ok(Proven::Verity);
    }
    let mut pieces = pieces(stored)?;
    if which == Which::Unprotected {
        pieces.retain(|piece| !verity.get(piece.file).is_some_and(|on| *on));
    }
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new(Ok::<_, RegistryError>(Some(0)));
    let work = || {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let read = digest(maps, piece, &mut buffer, goes_on);
            let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
            let member = members.get(piece.file);
            let path = member.map_or("", |member| &member.path);
            match read {
                Ok(Some(found)) if found == piece.sha256 => {
                    if let Ok(Some(bytes)) = &mut *outcome {
                        *bytes += piece.range.end - piece.range.start;
                        continue;
                    }
                }
                // What another thread found stands.
                Ok(None) => {
                    if let Ok(done) = &mut *outcome {
                        *done = None;
                    }
                }
                Ok(Some(_)) => {
                    let (start, end) = (piece.range.start, piece.range.end);
                    *outcome = Err(differs(&format!(
                        "{} differs in {} (bytes {start} to {end})",
                        path, piece.name
                    )));
                }
                Err(error) => {
                    let path = member.map_or_else(Default::default, |member| stored.path(member));
                    *outcome = Err(RegistryError::io(&path, "read")(error));
                }
            }
            // Whatever else there is, it does not matter any more.
            next.store(pieces.len(), Ordering::Relaxed);
            return;
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(pieces.len()) {
            // Where there is no thread to be had, those that there are do its work.
            drop(thread::Builder::new().spawn_scoped(scope, work));
        }
        work();
    });
    let bytes = outcome
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)?;
    Ok(bytes.map_or(Proven::No, |bytes| Proven::Compared { bytes }))
}

/// The pieces that a model's files consist of: those of its digests of tensors or, without, each file as one.
fn pieces(stored: &Stored) -> Result<Vec<Piece>, RegistryError> {
    let Some(member) = stored.manifest.tensor_digests() else {
        let whole = stored.manifest.weights().enumerate();
        return Ok(whole
            .map(|(file, member)| Piece {
                file,
                range: 0..member.bytes,
                sha256: member.sha256,
                name: "its bytes".to_owned(),
            })
            .collect());
    };
    let path = stored.path(member);
    let text = store::text(&path, TENSOR_DIGESTS_BYTES_MAX)?;
    let rejected = |why: &dyn Display| {
        RegistryError::Rejected(format!("{} of {}: {why}", member.path, stored.name))
    };
    if Digest(Sha256::digest(text.as_bytes()).into()) != member.sha256 {
        return Err(rejected(&"it is not the one of the manifest"));
    }
    let mut pieces = Vec::new();
    tensors::read(&text, &stored.manifest, &mut |piece| {
        pieces.push(Piece {
            file: piece.file,
            range: piece.offset..piece.offset.saturating_add(piece.bytes),
            sha256: piece.sha256,
            name: piece.name.to_owned(),
        });
    })
    .map_err(|error| rejected(&error))?;
    Ok(pieces)
}

/// The digest of a piece as its file has it; `None` if it is not to go on.
fn digest(
    maps: &[Mapping],
    piece: &Piece,
    buffer: &mut [u8],
    goes_on: &(dyn Fn(u64) -> bool + Sync),
) -> std::io::Result<Option<Digest>> {
    let Some(map) = maps.get(piece.file) else {
        return Err(std::io::ErrorKind::NotFound.into());
    };
    let mut hasher = Sha256::new();
    let mut at = piece.range.start;
    while at < piece.range.end {
        let left = usize::try_from(piece.range.end - at).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        let (bytes, _) = buffer.split_at_mut(count);
        let place = usize::try_from(at).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
        map.read_at(place, bytes)?;
        hasher.update(&*bytes);
        at += count as u64;
        if !goes_on(count as u64) {
            return Ok(None);
        }
    }
    Ok(Some(Digest(hasher.finalize().into())))
}
