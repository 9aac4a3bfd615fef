//! `[models]`: the models that the daemon keeps, who may change them, and whose it trusts.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};

use super::Problems;
use andon_wire::limits::MODEL_BYTES_MAX;
use andon_wire::manifest::is_model_name;
use andon_wire::signature::PUBLIC_KEY_PREFIX;

/// Most groups that may be named.
const GROUPS_MAX: usize = 16;
/// Most keys that may be trusted.
const KEYS_MAX: usize = 16;
/// Most models that may be loaded at once.
const LOADED_MAX: usize = 16;
/// A week.
const SECONDS_MAX: u64 = 604_800;

/// What is done about models that are not signed, or not as they were signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignaturePolicy {
    /// They are neither added nor served: no weights are computed with that were not compared.
    Require,
    /// They are served, and it is said. What is served is compared while it is served.
    Warn,
    /// Nothing: bytes are compared when a model is added, and not again.
    Off,
}

/// The public key that a line of base64 is: what stands between the first and the last line of its PEM. None that is weak:
/// signatures can be made that fit it and anything.
pub fn public_key(text: &str) -> Option<VerifyingKey> {
    let bytes = STANDARD.decode(text).ok()?;
    let bytes = <[u8; 32]>::try_from(bytes.strip_prefix(&PUBLIC_KEY_PREFIX)?).ok()?;
    let key = VerifyingKey::from_bytes(&bytes).ok()?;
    (!key.is_weak()).then_some(key)
}

/// `[models]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelsConfig {
    /// Where they are kept.
    pub dir: PathBuf,
    /// Groups whose members may add, remove and verify models, beside root and the daemon's own user.
    pub admin_groups: Vec<String>,
    /// Largest model that is taken, all its files together.
    pub bytes_max: u64,
    /// Room on the disk that no model may take.
    pub free_bytes_min: u64,
    /// Whether tasks that come with the served model are served too; those of this file win.
    pub bundle_tasks: bool,
    /// What is done about models that are not signed.
    pub signature: SignaturePolicy,
    /// The public keys whose signatures count, a line of base64 each.
    pub trusted_keys: Vec<String>,
    /// Most models that are loaded at once: with 1 only the one of `[model]`.
    pub loaded_max: usize,
    /// Models that are loaded at the start and stay.
    pub preload: Vec<String>,
    /// After this time without a request a model is unloaded, if it is neither that of `[model]` nor one of `preload`; 0
    /// is never.
    pub idle_unload_s: u64,
    /// A model that makes fewer tokens in a second takes no other's place; 0 asks for nothing.
    pub tokens_per_second_min: f32,
    /// For this time after a model took another's place the other is ready to take it back, should the new one fail.
    pub probation_s: u64,
}

impl Default for ModelsConfig {
    fn default() -> Self {
        ModelsConfig {
            dir: PathBuf::from("/var/lib/andon/models"),
            admin_groups: Vec::new(),
            bytes_max: 64 << 30,
            free_bytes_min: 256 << 20,
            bundle_tasks: false,
            signature: SignaturePolicy::Warn,
            trusted_keys: Vec::new(),
            loaded_max: 4,
            preload: Vec::new(),
            idle_unload_s: 600,
            tokens_per_second_min: 0.0,
            probation_s: 60,
        }
    }
}

impl ModelsConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            self.dir.is_absolute(),
            "models.dir",
            "is not an absolute path",
            "begin it with /",
        );
        problems.require(
            self.admin_groups.len() <= GROUPS_MAX
                && self.admin_groups.iter().all(|name| !name.is_empty()),
            "models.admin-groups",
            "is not a list of groups",
            "name at most 16",
        );
        problems.require(
            self.trusted_keys.len() <= KEYS_MAX,
            "models.trusted-keys",
            "are too many",
            "name at most 16",
        );
        for (number, key) in (1..).zip(&self.trusted_keys) {
            if public_key(key).is_none() {
                problems.add(
                    "models.trusted-keys",
                    format!("number {number} is no Ed25519 public key"),
                    "`andonctl key show FILE` prints that of a private one",
                );
            }
        }
        problems.require(
            self.signature != SignaturePolicy::Require || !self.trusted_keys.is_empty(),
            "models.signature",
            "asks for signatures, and no key is trusted",
            "name one in trusted-keys",
        );
        problems.within("models.bytes-max", self.bytes_max, 1..=MODEL_BYTES_MAX);
        problems.within(
            "models.free-bytes-min",
            self.free_bytes_min,
            0..=MODEL_BYTES_MAX,
        );
        problems.within("models.loaded-max", self.loaded_max, 1..=LOADED_MAX);
        problems.require(
            self.preload.len() < self.loaded_max
                && self.preload.iter().all(|name| is_model_name(name)),
            "models.preload",
            "is not a list of fewer models than loaded-max",
            "name models of `andonctl model ls`, or raise loaded-max",
        );
        problems.within("models.idle-unload-s", self.idle_unload_s, 0..=SECONDS_MAX);
        problems.within(
            "models.tokens-per-second-min",
            self.tokens_per_second_min,
            0.0..=1e6,
        );
        problems.within("models.probation-s", self.probation_s, 0..=SECONDS_MAX);
    }
}
