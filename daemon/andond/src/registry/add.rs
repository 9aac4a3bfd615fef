//! Adding a model: bytes come in, are compared with the manifest, tried, and registered.
//!
//! Invariant: no more bytes are kept than the manifest announces, and none without their digest; memory does
//! not grow with the model.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use andon_os::verity;
use andon_wire::ModelStage;
use andon_wire::limits::{MANIFEST_BYTES_MAX, SIGNATURES_MAX};
use andon_wire::manifest::{Digest, MANIFEST_PATH, Manifest, Member, Role, TASKS_FOLDER};
use andon_wire::signature::Signatures;

use super::{
    Claim, REGISTERED_MAX, Registry, RegistryError, Staging, Stored, proof, same_model, store,
    trial,
};
use crate::config::models::SignaturePolicy;

/// What became of the wish to add a model.
#[derive(Debug)]
pub enum Begun {
    /// It is there already under this name, the same byte for byte.
    Present(Added),
    /// Its bytes are to come.
    Receive(Box<Receipt>),
}

/// A model that is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Its name.
    pub name: String,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A model that is being received. Dropped before its end, nothing of it stays.
#[derive(Debug)]
pub struct Receipt {
    // In this order: the folder is removed before the name is free again.
    staging: Staging,
    claim: Claim,
    manifest: Box<Manifest>,
    /// Whether the weights are to come, rather than being here already.
    weights: bool,
    /// The member that comes next.
    index: usize,
    open: Option<Incoming>,
    received: u64,
    expected: u64,
}

/// The member that is coming.
#[derive(Debug)]
struct Incoming {
    path: PathBuf,
    file: File,
    comparison: store::Comparison,
    left: u64,
}

impl Registry {
    /// Begins to add a model under `name`, or under its manifest's, with signatures if it has some. `progress` hears of
    /// weights that are read since they may be shared.
    ///
    /// # Errors
    /// Whatever can be said before its bytes are here.
    pub fn begin(
        self: &Arc<Self>,
        name: Option<&str>,
        text: &str,
        signatures: Option<&str>,
        progress: &mut dyn FnMut(ModelStage, u64, u64),
    ) -> Result<Begun, RegistryError> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(RegistryError::TooLarge(format!(
                "the manifest has {} bytes, at most {MANIFEST_BYTES_MAX} are taken",
                text.len()
            )));
        }
        let manifest = store::manifest(text)?;
        let name = name.unwrap_or(&manifest.name).to_owned();
        let mut claim = self.claim(&name)?;
        let found = self.trust.judge(text, signatures);
        self.trust.admit(&name, &found, "added")?;
        // Whoever looks at them or not.
        let parsed = signatures.map(str::parse::<Signatures>).transpose();
        let parsed = parsed.map_err(|error| {
            RegistryError::Rejected(format!("the signatures of {name} are none: {error}"))
        })?;
        match self.find(&name) {
            Ok(there) if same_model(&there.manifest, &manifest) => {
                if let Some(signatures) = &parsed {
                    self.sign(&there, text, signatures)?;
                }
                return Ok(Begun::Present(Added {
                    name,
                    bytes: manifest.bytes(),
                }));
            }
            Err(RegistryError::Unknown(_)) if !self.config.dir.join(&name).exists() => {}
            _ => {
                return Err(RegistryError::Conflict(format!(
                    "there is another model {name}; give this one another name, or remove that one"
                )));
            }
        }
        if self.list()?.count() >= REGISTERED_MAX {
            return Err(RegistryError::Conflict(format!(
                "{REGISTERED_MAX} models are kept, the most there may be"
            )));
        }
        let shared = self.shared(&manifest, progress)?;
        let weights = shared.is_none();
        let expected = manifest
            .members
            .iter()
            .filter(|member| weights || member.role != Role::Weights)
            .fold(0u64, |sum, member| sum.saturating_add(member.bytes));
        self.promise(&mut claim, expected)?;
        let staging = self.staging()?;
        if manifest.of(Role::Task).next().is_some() {
            let tasks = staging.path.join(TASKS_FOLDER);
            fs::create_dir(&tasks).map_err(RegistryError::io(&tasks, "make"))?;
        }
        for (member, path) in manifest.weights().zip(shared.iter().flatten()) {
            store::link(path, &staging.path.join(member.path.as_str()))?;
        }
        if let Some(signatures) = signatures {
            store::put_signatures(&staging.path, signatures)?;
        }
        let path = staging.path.join(MANIFEST_PATH);
        let mut file = File::create_new(&path).map_err(RegistryError::io(&path, "make"))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(RegistryError::io(&path, "write"))?;
        let mut receipt = Receipt {
            staging,
            claim,
            manifest,
            weights,
            index: 0,
            open: None,
            received: 0,
            expected,
        };
        receipt.advance()?;
        Ok(Begun::Receive(Box::new(receipt)))
    }

    /// Puts signatures beside the manifest of a model that is kept already, and beside those that it has.
    fn sign(&self, there: &Stored, text: &str, new: &Signatures) -> Result<(), RegistryError> {
        let kept = there.signatures.as_deref();
        if there.text != text {
            if kept == Some(&new.to_string()) {
                return Ok(());
            }
            return Err(RegistryError::Conflict(format!(
                "{} is kept with a manifest of its own, which these signatures are not of; remove it, or add this under \
                 another name",
                there.name
            )));
        }
        let Some(all) = self.trust.joined(text, kept, new) else {
            return Err(RegistryError::Conflict(format!(
                "{} would have more than {SIGNATURES_MAX} signatures",
                there.name
            )));
        };
        let all = all.to_string();
        if kept == Some(&all) {
            return Ok(());
        }
        store::put_signatures(&self.config.dir.join(&there.name), &all)?;
        tracing::info!(name = there.name, "the model has other signatures now");
        Ok(())
    }

    /// Has the kernel keep weights from changing, and compare them as they are read, where the file system can.
    fn protect(&self, folder: &Path, manifest: &Manifest) -> Result<(), RegistryError> {
        if self.trust.policy() == SignaturePolicy::Off {
            return Ok(());
        }
        for member in manifest.weights() {
            let path = folder.join(member.path.as_str());
            let file = File::open(&path).map_err(RegistryError::io(&path, "read"))?;
            match verity::protect(&file) {
                Ok(true) => {}
                Ok(false) => {
                    tracing::info!(
                        "the file system of {} has no fs-verity: weights are read and compared at every start",
                        self.config.dir.display()
                    );
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(path = %member.path, %error, "fs-verity cannot be turned on");
                    continue;
                }
            }
            let measured = verity::measured(&file)
                .map_err(RegistryError::io(&path, "measure"))?
                .map(Digest);
            if let (Some(found), Some(said)) = (measured, member.verity)
                && found != said
            {
                return Err(RegistryError::Rejected(format!(
                    "{} measures {found} where the manifest says {said}",
                    member.path
                )));
            }
        }
        Ok(())
    }

    /// The files of a model that has the same weights under another name: they are shared, not copied. `None` if
    /// there is no such model, or if the disk lost some of it: then a sound copy is asked for, which mends the model
    /// once the damaged one is removed.
    fn shared(
        &self,
        manifest: &Manifest,
        progress: &mut dyn FnMut(ModelStage, u64, u64),
    ) -> Result<Option<Vec<PathBuf>>, RegistryError> {
        let content = |member: &Member| (member.sha256, member.bytes);
        let Some(model) = self.list()?.find(|model| {
            let theirs = model.manifest.weights().map(content);
            manifest.weights().map(content).eq(theirs)
        }) else {
            return Ok(None);
        };
        let (mut done, total) = (0, model.manifest.bytes());
        let mut paths = Vec::new();
        for (member, wanted) in model.manifest.weights().zip(manifest.weights()) {
            let path = model.path(member);
            let differs = store::compare(&path, wanted, &mut |bytes| {
                progress(ModelStage::Verifying, done + bytes, total);
            });
            if !matches!(differs, Ok(None)) {
                tracing::warn!(
                    name = model.name,
                    path = %member.path,
                    "is not shared since its bytes are others; `andonctl model verify` says more"
                );
                return Ok(None);
            }
            done += member.bytes;
            paths.push(path);
        }
        Ok(Some(paths))
    }
}

impl Receipt {
    /// Whether the weights are to be sent.
    pub fn weights(&self) -> bool {
        self.weights
    }

    /// Bytes that have come, and bytes that are to come in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.received, self.expected)
    }

    /// Whether every byte is here.
    pub fn complete(&self) -> bool {
        self.open.is_none()
    }

    /// Opens the file of the next member that is to come.
    fn advance(&mut self) -> Result<(), RegistryError> {
        while let Some(member) = self.manifest.members.get(self.index) {
            if member.role == Role::Weights && !self.weights {
                self.index += 1;
                continue;
            }
            let path = self.staging.path.join(member.path.as_str());
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(RegistryError::io(&path, "make"))?;
            self.open = Some(Incoming {
                path,
                file,
                comparison: store::Comparison::with(member),
                left: member.bytes,
            });
            return Ok(());
        }
        self.open = None;
        Ok(())
    }

    /// Takes in the next bytes.
    ///
    /// # Errors
    /// A digest that is wrong, more bytes than were announced, and what the disk says. Nothing else may
    /// be done with the receipt then.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), RegistryError> {
        while !bytes.is_empty() {
            let Some(incoming) = &mut self.open else {
                return Err(RegistryError::Rejected(
                    "more bytes came than the manifest announces".to_owned(),
                ));
            };
            let count = usize::try_from(incoming.left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let (now, later) = bytes.split_at(count);
            incoming
                .file
                .write_all(now)
                .map_err(RegistryError::io(&incoming.path, "write"))?;
            incoming.comparison.update(now);
            incoming.left -= count as u64;
            self.received += count as u64;
            self.claim.kept(count as u64);
            bytes = later;
            if incoming.left == 0 {
                self.close()?;
            }
        }
        Ok(())
    }

    /// Compares and stores the member that is whole.
    fn close(&mut self) -> Result<(), RegistryError> {
        let (Some(incoming), Some(member)) =
            (self.open.take(), self.manifest.members.get(self.index))
        else {
            return Ok(());
        };
        if let Some(what) = incoming.comparison.finish() {
            return Err(RegistryError::Rejected(format!(
                "{} came with {what}",
                member.path
            )));
        }
        incoming
            .file
            .sync_all()
            .map_err(RegistryError::io(&incoming.path, "write"))?;
        self.index += 1;
        self.advance()
    }

    /// Tries the model and registers it. `progress` hears what is being done.
    ///
    /// # Errors
    /// Why it is none that this daemon can serve, and what the disk says.
    pub fn finish(
        self,
        progress: &mut dyn FnMut(ModelStage, u64, u64),
    ) -> Result<Added, RegistryError> {
        if !self.complete() {
            return Err(RegistryError::Rejected("bytes are missing".to_owned()));
        }
        // The last is dropped first: the name is free again when nothing of this is left.
        let Receipt {
            claim,
            staging,
            manifest,
            weights,
            ..
        } = self;
        let registry = &claim.registry;
        progress(ModelStage::Verifying, 0, 0);
        registry.protect(&staging.path, &manifest)?;
        let (model, known) = trial::run(&staging.path, &manifest, progress)?;
        if let Some(known) = known {
            known.write(&staging.path)?;
        }
        // What came was compared on its way. What is shared was, too, but by a name that may have been given to other bytes.
        if manifest.tensor_digests().is_some() || !weights {
            progress(ModelStage::Verifying, 0, 0);
            let stored = Stored::read(&staging.path, &claim.name)?;
            proof::check(&stored, model.maps(), 1, proof::Which::All, &|_| true)?;
        }
        registry.pack_tried(&manifest, &model, progress);
        drop(model);
        let tasks = staging.path.join(TASKS_FOLDER);
        if tasks.exists() {
            store::sync_folder(&tasks)?;
        }
        store::sync_folder(&staging.path)?;
        let folder = registry.config.dir.join(&claim.name);
        // A folder that has something in it is not replaced by this.
        fs::rename(&staging.path, &folder).map_err(RegistryError::io(&folder, "name"))?;
        let bytes = manifest.bytes();
        crate::event!(
            ModelAdded,
            name = claim.name,
            bytes,
            architecture = manifest.architecture.as_str(),
            "model registered"
        );
        {
            let mut state = registry.state();
            state.registrations += 1;
            state.kept.insert(claim.name.clone());
        }
        registry.registered.notify_all();
        store::sync_folder(&registry.config.dir)?;
        Ok(Added {
            name: claim.name.clone(),
            bytes,
        })
    }
}
