//! From the configuration to what is served: a file by its path, or one of the models that are kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use andon_engine::LoadOptions;
use andon_engine::pack::Key;
use andon_engine::tokenizer::TemplateChoice;
use andon_wire::manifest::{Digest, Manifest, Role};

use super::{Known, Proof, Registry, RegistryError, packs, store};
use crate::config::models::SignaturePolicy;
use crate::config::speculation::DraftPlace;
use crate::config::task::TaskConfig;
use crate::config::{Config, Problems};

/// What is to be served.
#[derive(Debug, Clone)]
pub struct Served {
    /// The GGUF file.
    pub path: PathBuf,
    /// What the engine is told beyond the file.
    pub options: LoadOptions,
    /// The key of its pack; `None` for a file of which nobody knows the digest.
    pub key: Option<Key>,
    /// Digests of its files of weights, where a manifest has them.
    pub sha256: Vec<Digest>,
    /// What is known of its bytes.
    pub proof: Proof,
    /// What it is known to make.
    pub known: Option<Known>,
    /// The configuration's tasks, and the model's where those are wanted.
    pub tasks: BTreeMap<String, TaskConfig>,
    /// Those of them that are the model's.
    pub bundled: BTreeMap<String, TaskConfig>,
}

/// What the configuration has the daemon serve.
///
/// # Errors
/// [`RegistryError::Unknown`] when it names a model that is not kept here, which may change.
pub fn served(config: &Config, registry: &Registry) -> Result<Served, RegistryError> {
    let model = &config.model;
    if !model.is_kept() {
        return Ok(Served {
            path: model.path.clone(),
            options: model.load_options(),
            key: None,
            sha256: Vec::new(),
            proof: Proof::of_path(&registry.trust, &model.name())?,
            known: None,
            tasks: config.task.clone(),
            bundled: BTreeMap::new(),
        });
    }
    let stored = registry.find(&model.name())?;
    let folder = registry.config.dir.join(&stored.name);
    let policy = registry.trust.policy();
    // Before anything else of it is believed.
    let proof = registry.prove(&stored)?;
    let mut options = load_options(&folder, &stored.manifest, policy)?;
    // The configuration is nearer to the operator than the bundle.
    if model.pre_tokenizer.is_some() {
        options = options.with_pre_tokenizer(model.pre_tokenizer.clone());
    }
    if let Some(choice) = model.template_choice() {
        options = options.with_chat_template(Some(choice));
    }
    let bundled = if config.models.bundle_tasks {
        tasks_in(&folder, &stored.manifest, policy)?
    } else {
        BTreeMap::new()
    };
    let mut tasks = bundled.clone();
    tasks.extend(
        config
            .task
            .iter()
            .map(|(name, task)| (name.clone(), task.clone())),
    );
    Ok(Served {
        path: stored.weights(),
        options,
        key: Some(packs::key(&stored.manifest)),
        sha256: digests(&stored.manifest),
        proof,
        known: Known::read(&folder),
        tasks,
        bundled,
    })
}

/// The draft that the configuration names.
///
/// # Errors
/// [`RegistryError::Unknown`] when it names none, or a model that is not kept here.
pub fn served_draft(config: &Config, registry: &Registry) -> Result<Served, RegistryError> {
    let none = || RegistryError::Unknown(String::new());
    let name = match config.speculation.draft_place().ok_or_else(none)? {
        DraftPlace::Path(path) => {
            return Ok(Served {
                path: path.to_owned(),
                options: LoadOptions::default().for_draft(),
                key: None,
                sha256: Vec::new(),
                proof: Proof::of_path(&registry.trust, &path.display().to_string())?,
                known: None,
                tasks: BTreeMap::new(),
                bundled: BTreeMap::new(),
            });
        }
        DraftPlace::Kept(name) => name,
    };
    let stored = registry.find(name)?;
    let folder = registry.config.dir.join(&stored.name);
    Ok(Served {
        path: stored.weights(),
        proof: registry.prove(&stored)?,
        options: load_options(&folder, &stored.manifest, registry.trust.policy())?.for_draft(),
        key: Some(packs::key(&stored.manifest)),
        sha256: digests(&stored.manifest),
        known: None,
        tasks: BTreeMap::new(),
        bundled: BTreeMap::new(),
    })
}

fn digests(manifest: &Manifest) -> Vec<Digest> {
    manifest.weights().map(|member| member.sha256).collect()
}

/// What a manifest has the engine told beyond the file.
pub(super) fn load_options(
    folder: &Path,
    manifest: &Manifest,
    policy: SignaturePolicy,
) -> Result<LoadOptions, RegistryError> {
    let mut options = LoadOptions::default().with_pre_tokenizer(
        manifest
            .pre_tokenizer
            .as_ref()
            .map(|name| name.as_str().to_owned()),
    );
    if let Some(member) = manifest.of(Role::ChatTemplate).next() {
        let text = store::text_of(folder, member, policy)?;
        options = options.with_chat_template(Some(TemplateChoice::Source(text)));
    }
    Ok(options)
}

/// The tasks that come with a model, checked as those of the configuration are.
pub(super) fn tasks_in(
    folder: &Path,
    manifest: &Manifest,
    policy: SignaturePolicy,
) -> Result<BTreeMap<String, TaskConfig>, RegistryError> {
    let mut tasks = BTreeMap::new();
    for member in manifest.of(Role::Task) {
        let text = store::text_of(folder, member, policy)?;
        let name = member.task_name().unwrap_or_default();
        let task = task_of(name, &text)
            .map_err(|why| RegistryError::Rejected(format!("{}: {why}", member.path)))?;
        tasks.insert(name.to_owned(), task);
    }
    Ok(tasks)
}

/// The task in the text of a member of this name.
///
/// # Errors
/// What is wrong with it.
pub fn task_of(name: &str, text: &str) -> Result<TaskConfig, String> {
    let task: TaskConfig = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    if task.model.is_some() {
        return Err("a task that comes with a model names none".to_owned());
    }
    let mut problems = Problems::default();
    task.check(name, &mut problems);
    problems
        .into_result(task)
        .map_err(|problems| problems.to_string())
}
