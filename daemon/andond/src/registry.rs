//! The models that the daemon keeps: a folder each, with its manifest and the files that it lists.
//!
//! ```text
//! <dir>/.lock              held by the one daemon that may change what is here
//! <dir>/.staging/<number>  models that are being added or removed; emptied at every start
//! <dir>/.names.json        the names that another model answers to than the one of that name
//! <dir>/.names.damaged.json  such a file that could not be read, for a person to look at
//! <dir>/<name>/            a model: manifest.json as it came, its members at their paths, manifest.sig if it is signed, .known.json
//! ```
//!
//! Invariant: what has a name is whole. A model is received, verified, tried and brought to the disk in the
//! staging folder, and gets its name by one rename; it loses it the same way. So at any moment, after
//! `kill -9` or a power cut too, a model is there entirely or not at all.
//!
//! Files are compared with their digests when a model is added, and when `verify` is asked to. What is done at every start
//! is for `proof` to say.

mod add;
mod admin;
mod known;
mod packs;
mod proof;
mod serve;
mod store;
mod trial;
mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use andon_wire::ErrorCode;
use andon_wire::manifest::{Manifest, Role, is_model_name};

use crate::config::models::ModelsConfig;

pub use add::{Added, Begun, Receipt};
pub use admin::may_change;
pub use known::Known;
pub use packs::{Packed, Packs};
pub use proof::{Proof, Proven};
pub use serve::{Served, served, served_draft, task_of};
pub use store::Stored;
pub use trust::{Judgement, Trust};

/// Name of the lock in the models' folder.
const LOCK: &str = ".lock";
/// Name of the folder of what has no name yet.
const STAGING: &str = ".staging";
/// Name of the file of names that another model answers to.
const NAMES: &str = ".names.json";
/// Its name once it was found damaged.
const NAMES_DAMAGED: &str = ".names.damaged.json";
/// Most bytes of it.
const NAMES_BYTES_MAX: u64 = 256 * 1024;
/// Most models that are kept.
pub const REGISTERED_MAX: usize = 256;
/// Most models that are added or verified at once; each reads or writes gigabytes.
pub const OPERATIONS_MAX: usize = 2;

/// Why something was not done with a model, and whose affair it is.
#[derive(Debug)]
pub enum RegistryError {
    /// What was asked makes no sense.
    Invalid(String),
    /// The model is damaged, or none that this daemon can serve.
    Rejected(String),
    /// There is no model of that name.
    Unknown(String),
    /// Another model, or another operation, is in the way.
    Conflict(String),
    /// Too much is being done already.
    Busy(String),
    /// It is larger than the daemon takes.
    TooLarge(String),
    /// The disk has no room.
    NoSpace(String),
    /// The caller may not do this.
    Denied(String),
    /// A file or folder cannot be used.
    Io(PathBuf, &'static str, io::Error),
}

impl std::fmt::Display for RegistryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RegistryError::Invalid(what)
            | RegistryError::Rejected(what)
            | RegistryError::Conflict(what)
            | RegistryError::Busy(what)
            | RegistryError::TooLarge(what)
            | RegistryError::NoSpace(what)
            | RegistryError::Denied(what) => f.write_str(what),
            RegistryError::Unknown(name) => write!(f, "no model {name} is kept here"),
            RegistryError::Io(path, action, error) => {
                write!(f, "cannot {action} {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for RegistryError {}

impl RegistryError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> RegistryError {
        let path = path.to_owned();
        move |error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                RegistryError::NoSpace(format!("the disk of {} is full", path.display()))
            }
            _ => RegistryError::Io(path, action, error),
        }
    }

    /// The compact protocol's word for it.
    pub fn code(&self) -> ErrorCode {
        match self {
            RegistryError::Invalid(_) => ErrorCode::InvalidRequest,
            RegistryError::Rejected(_) => ErrorCode::Rejected,
            RegistryError::Unknown(_) => ErrorCode::UnknownModel,
            RegistryError::Conflict(_) => ErrorCode::Conflict,
            RegistryError::Busy(_) => ErrorCode::Busy,
            RegistryError::TooLarge(_) => ErrorCode::TooLarge,
            RegistryError::NoSpace(_) => ErrorCode::NoSpace,
            RegistryError::Denied(_) => ErrorCode::Denied,
            RegistryError::Io(..) => ErrorCode::Internal,
        }
    }
}

/// The models that are kept. Shared by reference; all of it may be called from any thread, and blocks.
#[derive(Debug)]
pub struct Registry {
    config: ModelsConfig,
    trust: Trust,
    /// The name of the draft in use, if it is one of ours.
    draft: Option<String>,
    packs: Option<Packs>,
    state: Mutex<State>,
    /// Held while the folder is taken, which may take long, before `state` is.
    taking: Mutex<()>,
    /// A model was registered.
    registered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Held while the daemon lives, once there is a folder.
    lock: Option<File>,
    /// Names with an operation under way.
    busy: BTreeSet<String>,
    /// Largest model that is taken, and room on the disk that none may take, in bytes.
    room: (u64, u64),
    /// Bytes promised to models that are being received.
    promised: u64,
    /// Number of the next staging folder.
    next: u64,
    /// How often a model was registered.
    registrations: u64,
    /// The names of those that are kept, as they were last seen.
    kept: BTreeSet<String>,
    /// Those in use, which are not removed, and what for.
    used: BTreeMap<String, Use>,
}

/// What a model that is kept is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It answers to the configured name.
    Served,
    /// It answers to another name than its own.
    Named,
    /// It takes a name back, should the one on probation fail that has it now.
    Former,
    /// It is loaded.
    Loaded,
}

impl Registry {
    /// A registry of the configured folder. `draft` is what guesses for the served model, which is not removed; models are
    /// packed into `packs`.
    pub fn new(config: ModelsConfig, draft: Option<String>, packs: Option<Packs>) -> Arc<Registry> {
        Arc::new(Registry {
            trust: Trust::of(&config),
            draft,
            packs,
            state: Mutex::new(State {
                room: (config.bytes_max, config.free_bytes_min),
                ..State::default()
            }),
            config,
            taking: Mutex::default(),
            registered: Condvar::new(),
        })
    }

    /// Takes models of another size, and leaves other room on the disk, from the next one on that is added.
    pub fn set_room(&self, config: &ModelsConfig) {
        self.state().room = (config.bytes_max, config.free_bytes_min);
    }

    /// Clears away what an earlier daemon left half done. Without a folder there is nothing to do: it is made
    /// when the first model is added.
    pub fn start(&self) {
        if !self.config.dir.is_dir() {
            return;
        }
        match self.names() {
            Ok(names) => self.state().kept = names,
            Err(error) => tracing::warn!(%error, "it is not known which models are kept"),
        }
        if let Err(error) = self.locked() {
            tracing::warn!(%error, "models can be served, but not added or removed");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, once this daemon is the one that may change the folder.
    fn locked(&self) -> Result<MutexGuard<'_, State>, RegistryError> {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state().lock.is_none() {
            let lock = self.take_folder()?;
            self.state().lock = Some(lock);
        }
        Ok(self.state())
    }

    /// Takes the folder for this daemon alone, and clears away what an earlier one left half done, which may be gigabytes.
    fn take_folder(&self) -> Result<File, RegistryError> {
        let folder = &self.config.dir;
        fs::create_dir_all(folder).map_err(RegistryError::io(folder, "make"))?;
        let path = folder.join(LOCK);
        let lock = File::create(&path).map_err(RegistryError::io(&path, "make"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RegistryError::Conflict(format!(
                    "another daemon looks after the models in {}",
                    folder.display()
                )));
            }
            Err(TryLockError::Error(error)) => {
                return Err(RegistryError::io(&path, "lock")(error));
            }
        }
        let staging = folder.join(STAGING);
        match fs::remove_dir_all(&staging) {
            Ok(()) => tracing::info!("removed what was left of models that were being added"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(RegistryError::io(&staging, "clear")(error)),
        }
        fs::create_dir(&staging).map_err(RegistryError::io(&staging, "make"))?;
        Ok(lock)
    }

    /// Takes a name for an operation; it is free again when the claim is dropped.
    fn claim(self: &Arc<Self>, name: &str) -> Result<Claim, RegistryError> {
        if !is_model_name(name) {
            return Err(RegistryError::Invalid(format!(
                "{name:?} is not a model's name: letters, digits, '.', '-' and '_', not beginning with '.' or '-'"
            )));
        }
        let mut state = self.locked()?;
        if state.busy.contains(name) {
            return Err(RegistryError::Conflict(format!(
                "something is being done with {name} already"
            )));
        }
        if state.busy.len() >= OPERATIONS_MAX {
            return Err(RegistryError::Busy(format!(
                "{OPERATIONS_MAX} models are being added or verified, the most at once"
            )));
        }
        state.busy.insert(name.to_owned());
        drop(state);
        Ok(Claim {
            registry: Arc::clone(self),
            name: name.to_owned(),
            promised: 0,
        })
    }

    /// A new empty folder for what has no name yet.
    fn staging(&self) -> Result<Staging, RegistryError> {
        let mut state = self.locked()?;
        let number = state.next;
        state.next += 1;
        drop(state);
        let path = self.config.dir.join(STAGING).join(number.to_string());
        fs::create_dir(&path).map_err(RegistryError::io(&path, "make"))?;
        Ok(Staging { path })
    }

    /// The models that are kept, in the order of their names. Each is read when it is asked for, so that they are
    /// never in memory together.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<impl Iterator<Item = Stored>, RegistryError> {
        let names = self.names()?;
        self.state().kept.clone_from(&names);
        Ok(names.into_iter().filter_map(|name| {
            self.find(&name)
                .inspect_err(|error| {
                    tracing::warn!(name, %error, "a folder among the models is none");
                })
                .ok()
        }))
    }

    /// The names of folders that may be models.
    fn names(&self) -> Result<BTreeSet<String>, RegistryError> {
        let folder = &self.config.dir;
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(RegistryError::io(folder, "read")(error)),
        };
        let mut names = BTreeSet::new();
        // The lock and the staging folder are two more; what else lies here was put by hand.
        for entry in entries.take(4 * REGISTERED_MAX) {
            let entry = entry.map_err(RegistryError::io(folder, "read"))?;
            if let Some(name) = entry
                .file_name()
                .to_str()
                .filter(|name| is_model_name(name))
            {
                names.insert(name.to_owned());
            }
        }
        Ok(names)
    }

    /// One of them.
    pub fn find(&self, name: &str) -> Result<Stored, RegistryError> {
        if !is_model_name(name) {
            return Err(RegistryError::Unknown(name.chars().take(128).collect()));
        }
        Stored::read(&self.config.dir.join(name), name)
    }

    /// Whether `name` is the model that answers to the configured name.
    pub fn is_active(&self, name: &str) -> bool {
        self.state().used.get(name) == Some(&Use::Served)
    }

    /// Whether a model of this name is kept, as far as is known without asking the disk.
    pub fn is_kept(&self, name: &str) -> bool {
        self.state().kept.contains(name)
    }

    /// Whether it is certain that no model of this name is kept. Asks the disk.
    pub fn is_gone(&self, name: &str) -> bool {
        matches!(self.config.dir.join(name).try_exists(), Ok(false))
    }

    /// Whether a model is known to have made text when it was added. Asks the disk.
    pub fn makes_text(&self, name: &str) -> bool {
        is_model_name(name) && Known::read(&self.config.dir.join(name)).is_some()
    }

    /// The names of those that are kept, as far as is known without asking the disk.
    pub fn kept(&self) -> BTreeSet<String> {
        self.state().kept.clone()
    }

    /// Sets which are in use.
    pub fn set_used(&self, used: BTreeMap<String, Use>) {
        self.state().used = used;
    }

    /// The names that another model answers to, as they were written; `None` if there are none.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read_names(&self) -> Result<Option<String>, RegistryError> {
        let path = self.config.dir.join(NAMES);
        if !path.exists() {
            return Ok(None);
        }
        store::text(&path, NAMES_BYTES_MAX).map(Some)
    }

    /// Sets aside a file of names that is damaged, before another is written: a person may tell from it what was meant.
    pub fn set_names_aside(&self) {
        if self.state().lock.is_none() {
            // It is another daemon's.
            return;
        }
        let path = self.config.dir.join(NAMES);
        let aside = self.config.dir.join(NAMES_DAMAGED);
        match fs::rename(&path, &aside) {
            Ok(()) => {
                crate::event!(ModelNamesLost, path = %aside.display(), "the damaged file is kept");
            }
            Err(error) => {
                crate::event!(ModelNamesLost, path = %path.display(), %error, "cannot be set aside");
            }
        }
    }

    /// Writes them, so that after a power cut the former or these are there.
    ///
    /// # Errors
    /// If they cannot be brought to the disk.
    pub fn write_names(&self, text: &str) -> Result<(), RegistryError> {
        // Another daemon's names are not written over.
        drop(self.locked()?);
        let staging = self.staging()?;
        let new = staging.path.join(NAMES);
        File::create(&new)
            .and_then(|mut file| {
                io::Write::write_all(&mut file, text.as_bytes())?;
                file.sync_all()
            })
            .map_err(RegistryError::io(&new, "write"))?;
        let path = self.config.dir.join(NAMES);
        fs::rename(&new, &path).map_err(RegistryError::io(&path, "write"))?;
        store::sync_folder(&self.config.dir)
    }

    /// Removes one that is not served.
    pub fn remove(self: &Arc<Self>, name: &str) -> Result<(), RegistryError> {
        let _claim = self.claim(name)?;
        let used = self.state().used.get(name).copied();
        let why = match used {
            Some(Use::Served) => {
                Some("is being served; name another in [model], or swap it, first")
            }
            Some(Use::Named) => Some("answers to another name; swap or roll back that first"),
            Some(Use::Former) => Some(
                "takes its name back should the one on probation fail; wait until that is over",
            ),
            Some(Use::Loaded) => Some("is loaded; unload it first"),
            None => None,
        };
        if let Some(why) = why {
            return Err(RegistryError::Conflict(format!("{name} {why}")));
        }
        if self.draft.as_deref() == Some(name) {
            return Err(RegistryError::Conflict(format!(
                "{name} guesses for the served model; name another draft in [speculation] first"
            )));
        }
        let folder = self.config.dir.join(name);
        if !folder.is_dir() {
            return Err(RegistryError::Unknown(name.to_owned()));
        }
        // One whose manifest cannot be read any more is removed all the same.
        let manifest = self.find(name).ok().map(|stored| stored.manifest);
        let staging = self.staging()?;
        let gone = staging.path.join("removed");
        fs::rename(&folder, &gone).map_err(RegistryError::io(&folder, "remove"))?;
        self.state().kept.remove(name);
        store::sync_folder(&self.config.dir)?;
        if let Some(manifest) = manifest {
            self.forget_pack(&manifest);
        }
        crate::event!(ModelRemoved, name, "model removed");
        Ok(())
    }

    /// Reads one and compares its digests; `progress` is told the bytes done.
    pub fn verify(
        self: &Arc<Self>,
        name: &str,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), RegistryError> {
        let _claim = self.claim(name)?;
        let stored = self.find(name)?;
        stored.verify(progress)?;
        self.trust.admit(name, &self.judge(&stored), "verified")
    }

    /// What is to be said of the signatures of a model that is kept.
    pub fn judge(&self, stored: &Stored) -> Judgement {
        self.trust.judge(&stored.text, stored.signatures.as_deref())
    }

    /// What is known of the bytes of a model that is to be served.
    fn prove(&self, stored: &Stored) -> Result<Proof, RegistryError> {
        Proof::of_kept(&self.trust, stored.clone(), &self.judge(stored))
    }

    /// Waits until a model is registered, but not longer than `most`.
    pub fn wait(&self, most: Duration) {
        let state = self.state();
        let seen = state.registrations;
        drop(
            self.registered
                .wait_timeout_while(state, most, |state| state.registrations == seen)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Room for `bytes` more: within the configured bound, and on the disk.
    fn promise(&self, claim: &mut Claim, bytes: u64) -> Result<(), RegistryError> {
        let (bytes_max, free_bytes_min) = self.state().room;
        if bytes > bytes_max {
            return Err(RegistryError::TooLarge(format!(
                "the model has {bytes} bytes, at most {bytes_max} are taken ([models] bytes-max)"
            )));
        }
        // Before: a disk that hangs is to hold up nobody else.
        let free = store::free_bytes(&self.config.dir)?;
        let mut state = self.locked()?;
        let left = free
            .saturating_sub(state.promised)
            .saturating_sub(free_bytes_min);
        if bytes > left {
            return Err(RegistryError::NoSpace(format!(
                "the model needs {bytes} bytes, {} has {left} to give",
                self.config.dir.display()
            )));
        }
        state.promised += bytes;
        claim.promised += bytes;
        Ok(())
    }
}

/// A name that an operation has for itself, and the room that was promised to it.
#[derive(Debug)]
struct Claim {
    registry: Arc<Registry>,
    name: String,
    promised: u64,
}

impl Claim {
    /// Bytes that are on the disk now need no promise any more.
    fn kept(&mut self, bytes: u64) {
        let bytes = bytes.min(self.promised);
        self.promised -= bytes;
        let mut state = self.registry.state();
        state.promised = state.promised.saturating_sub(bytes);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.registry.state();
        state.busy.remove(&self.name);
        state.promised = state.promised.saturating_sub(self.promised);
    }
}

/// A folder without a name of its own; removed with all that is in it.
#[derive(Debug)]
struct Staging {
    path: PathBuf,
}

impl Drop for Staging {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The next start tries again.
                tracing::warn!(path = %self.path.display(), %error, "cannot be removed");
            }
            _ => {}
        }
    }
}

/// Whether two manifests have the same files and say the same of how to use them. Digests of tensors are no more than what
/// can be made of the rest.
fn same_model(a: &Manifest, b: &Manifest) -> bool {
    let files = |manifest: &Manifest| -> Vec<_> {
        let members = manifest.members.iter();
        let files = members.filter(|member| member.role != Role::TensorDigests);
        files
            .map(|member| {
                (
                    member.path.clone(),
                    member.role,
                    member.bytes,
                    member.sha256,
                )
            })
            .collect()
    };
    files(a) == files(b) && a.pre_tokenizer == b.pre_tokenizer
}
