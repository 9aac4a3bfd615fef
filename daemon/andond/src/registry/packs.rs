//! Packed weights of the models: made when one is added, found when one is served, gone when one is removed.
//!
//! Nothing here keeps a model from being added or served: without its pack it is read from its own files.

use std::sync::Arc;

use andon_engine::Model;
use andon_engine::pack::{Cache, CacheOptions, Key, Pack, PackError};
use andon_wire::ModelStage;
use andon_wire::manifest::Manifest;
use sha2::{Digest as _, Sha256};

use super::{Registry, RegistryError, proof, serve};
use crate::config::cache::{CacheConfig, PackWhen};

/// One thread: whoever is being served has the others.
const THREADS: usize = 1;

/// A model that is packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Its name.
    pub name: String,
    /// Bytes of the pack.
    pub bytes: u64,
}

/// The cache of packs, as the configuration has it.
#[derive(Debug)]
pub struct Packs {
    cache: Cache,
    when: PackWhen,
}

impl Packs {
    /// The configured cache. Where nothing is to be packed it is there all the same, for what was packed before.
    pub fn new(config: &CacheConfig) -> Packs {
        let options = CacheOptions {
            dir: config.dir.clone(),
            bytes_max: config.bytes_max,
            free_bytes_min: config.free_bytes_min,
        };
        Packs {
            cache: Cache::new(options),
            when: config.pack,
        }
    }

    /// The folder of packs.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The pack of a model whose files were compared with its manifest: the one that is there, if that is what packing the
    /// model gives, or a new one.
    fn ensure(
        &self,
        model: &Model,
        key: &Key,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Pack, PackError> {
        let mut on = |done, total| {
            progress(done, total);
            true
        };
        if let Ok(Some(pack)) = self.cache.find(key) {
            match pack.compare(model, &mut on) {
                Ok(()) => return Ok(pack),
                Err(error) => tracing::warn!(%error, "the pack is made anew"),
            }
        }
        self.cache.make(model, key, THREADS, &mut on)
    }

    /// The key of a model that is served: of one that is kept the one it is known by, of one that is served by its path
    /// one of its own, if such models are packed.
    pub fn key(&self, known: Option<&Key>, model: &Model) -> Option<Key> {
        if known.is_some() || self.when != PackWhen::Idle {
            return known.cloned();
        }
        model
            .pack_key()
            .inspect_err(|error| tracing::warn!(%error, "the model is not packed"))
            .ok()
    }
}

/// The key of a model by its manifest's digests.
pub(super) fn key(manifest: &Manifest) -> Key {
    let mut digests = manifest.weights().map(|member| member.sha256.0);
    match (digests.next(), digests.next()) {
        (Some(only), None) => Key::of_digest(only),
        _ => {
            let mut hasher = Sha256::new();
            for member in manifest.weights() {
                hasher.update(member.sha256.0);
            }
            Key::of_digest(hasher.finalize().into())
        }
    }
}

fn rejected(error: &PackError) -> RegistryError {
    match error {
        PackError::NoSpace { .. } | PackError::TooLarge { .. } => {
            RegistryError::NoSpace(error.to_string())
        }
        _ => RegistryError::Rejected(error.to_string()),
    }
}

impl Registry {
    /// The cache of packs; `None` if nothing is to be packed.
    pub fn packs(&self) -> Option<&Packs> {
        self.packs
            .as_ref()
            .filter(|packs| packs.when != PackWhen::Never)
    }

    fn packs_or_refuse(&self) -> Result<&Packs, RegistryError> {
        self.packs().ok_or_else(|| {
            RegistryError::Conflict("nothing is packed here ([cache] pack is \"never\")".to_owned())
        })
    }

    /// Packs a model that was just tried. That it cannot be packed is no reason not to keep it.
    pub(super) fn pack_tried(
        &self,
        manifest: &Manifest,
        model: &Model,
        progress: &mut dyn FnMut(ModelStage, u64, u64),
    ) {
        let Some(packs) = self.packs() else { return };
        progress(ModelStage::Packing, 0, 0);
        let made = packs.ensure(model, &key(manifest), &mut |done, total| {
            progress(ModelStage::Packing, done, total);
        });
        match made {
            Ok(pack) => tracing::info!(bytes = pack.bytes(), "the model's weights are packed"),
            Err(PackError::Nothing) => {}
            Err(error) => {
                tracing::warn!(%error, "the model is served from its own file, which is slower");
            }
        }
    }

    /// Packs a model that is kept, if it is not; it is used from the next start on. Its files are compared with its manifest
    /// before: packed from damaged ones, weights would look sound ever after.
    ///
    /// # Errors
    /// If there is no such model, it is not what its manifest says, or there is no room for its pack.
    pub fn pack(
        self: &Arc<Self>,
        name: &str,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), RegistryError> {
        let packs = self.packs_or_refuse()?;
        let _claim = self.claim(name)?;
        let stored = self.find(name)?;
        let options = serve::load_options(
            &self.config.dir.join(name),
            &stored.manifest,
            self.trust.policy(),
        )?;
        let model = Model::load_with(&stored.weights(), &options.for_draft())
            .map_err(|error| RegistryError::Rejected(error.to_string()))?;
        proof::check(&stored, model.maps(), THREADS, proof::Which::All, &|_| true)?;
        let made = packs.ensure(&model, &key(&stored.manifest), progress);
        made.map(drop).map_err(|error| rejected(&error))
    }

    /// Removes the pack of a model that is kept, also where nothing is packed any more; false if there was none.
    ///
    /// # Errors
    /// If there is no such model, or its pack cannot be removed.
    pub fn unpack(self: &Arc<Self>, name: &str) -> Result<bool, RegistryError> {
        let _claim = self.claim(name)?;
        let key = key(&self.find(name)?.manifest);
        let Some(packs) = &self.packs else {
            return Ok(false);
        };
        packs.cache.remove(&key).map_err(|error| rejected(&error))
    }

    /// The models that are kept and packed.
    ///
    /// # Errors
    /// When the folder of models cannot be read.
    pub fn packed(&self) -> Result<impl Iterator<Item = Packed>, RegistryError> {
        let packs = self.packs();
        Ok(self.list()?.filter_map(move |model| {
            let bytes = packs?.cache.bytes(&key(&model.manifest))?;
            Some(Packed {
                name: model.name,
                bytes,
            })
        }))
    }

    /// Removes the pack of a model that was removed, unless another has the same weights.
    pub(super) fn forget_pack(&self, manifest: &Manifest) {
        let Some(packs) = &self.packs else { return };
        let gone = key(manifest);
        let shared = self
            .list()
            .is_ok_and(|mut models| models.any(|model| key(&model.manifest) == gone));
        if shared {
            return;
        }
        if let Err(error) = packs.cache.remove(&gone) {
            tracing::warn!(%error, "the pack of a removed model stays until another needs its room");
        }
    }
}
