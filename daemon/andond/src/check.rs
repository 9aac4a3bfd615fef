//! What `andond check` looks at beyond the file's text: the machine the configuration is for. A reload looks at as much of it
//! as takes no more than a moment and no memory to speak of, and as a daemon in its sandbox can see.

use andon_engine::LoadError;
use andon_engine::speculate::Corpus;
use andon_engine::tokenizer::{TokenizerError, pre_tokenizers};

use crate::access::Rules;
use crate::config::sandbox::Demand;
use crate::config::{Config, Problems};
use crate::frontend;
use crate::registry::{self, Registry};
use crate::router;
use crate::spool::cipher::Secret;
use crate::task::Tasks;

/// Adds what stands in the way of serving this configuration on this machine.
pub fn environment(config: &Config, problems: &mut Problems) {
    let registry = Registry::new(config.models.clone(), None, None);
    let served = (!config.model.is_kept() || config.model.name.is_some())
        .then(|| registry::served(config, &registry));
    if let Some(Ok(served)) = &served
        && let Err(found) = Tasks::new(&served.bundled)
    {
        problems.extend(found);
    }
    match served {
        None => {}
        Some(Err(error)) => problems.add(
            "model.name",
            error.to_string(),
            "`andonctl model add` adds models, `andonctl model ls` shows them",
        ),
        Some(Ok(served)) => match andon_engine::Model::load_with(&served.path, &served.options) {
            Err(LoadError::Tokenizer {
                source: source @ TokenizerError::UnknownPreTokenizer { .. },
                ..
            }) => problems.add(
                "model.pre-tokenizer",
                source.to_string(),
                format!("known here: {}", pre_tokenizers().join(", ")),
            ),
            Err(error) => problems.add(
                "model.path",
                error.to_string(),
                "name a GGUF file that andond can read",
            ),
            Ok(model) => {
                let made_for = model.info().context_tokens_max;
                if config
                    .model
                    .context_tokens_max
                    .is_some_and(|tokens| tokens > made_for)
                {
                    problems.add(
                        "model.context-tokens-max",
                        format!("is more than the {made_for} tokens the model was made for"),
                        "lower it or leave it out",
                    );
                }
                let speculation = &config.speculation;
                let answers = speculation
                    .corpora(served.tasks.len())
                    .saturating_mul(Corpus::bytes_max(speculation.corpus_tokens_max));
                let memory = andon_os::memory_bytes().unwrap_or(u64::MAX);
                if model.info().file_bytes.saturating_add(answers) as u64 > memory {
                    problems.add(
                        "speculation.corpora-max",
                        format!(
                            "earlier answers may take {answers} bytes, which are not there beside the model: there \
                             are {memory} bytes of memory"
                        ),
                        "lower it or corpus-tokens-max",
                    );
                }
            }
        },
    }
    if let Err(error) = crate::worker::check_backend(config) {
        problems.add(
            "engine.backend",
            error,
            "\"auto\" takes what there is; `andonctl backends` shows it",
        );
    }
    if config.speculation.draft_place().is_some() {
        let loaded = registry::served_draft(config, &registry)
            .map_err(|error| error.to_string())
            .and_then(|draft| {
                let model = andon_engine::Model::load_with(&draft.path, &draft.options);
                model.map(drop).map_err(|error| error.to_string())
            });
        if let Err(error) = loaded {
            problems.add(
                "speculation.draft",
                error,
                "leave it out, or name a small model that generates text",
            );
        }
    }
    let sandbox = [
        (
            "sandbox.landlock",
            config.sandbox.landlock,
            andon_confine::files::available as fn() -> _,
        ),
        (
            "sandbox.seccomp",
            config.sandbox.seccomp,
            andon_confine::calls::available,
        ),
    ];
    for (key, demand, available) in sandbox {
        if demand == Demand::Require
            && let Err(why) = available()
        {
            problems.add(key, why.to_string(), "set it to \"best-effort\"");
        }
    }
    if let Some((key, why, how)) = router::problem(config) {
        problems.add(key, why, how);
    }
    if let Some(path) = &config.spool.key_file
        && let Err(error) = Secret::read(path)
    {
        problems.add(
            "spool.key-file",
            error.to_string(),
            "make one: `head -c 32 /dev/urandom > FILE`, readable to the daemon's user only",
        );
    }
    if let Err(found) = Rules::resolve(config) {
        problems.extend(found);
    }
    link(config, problems);
    upstream(config, problems);
    small(config, problems);
}

/// The part of it that is about whom the daemon talks to: passwords and certificates.
pub fn link(config: &Config, problems: &mut Problems) {
    if config.mqtt.enabled
        && let Err(error) = frontend::mqtt::check(&config.mqtt)
    {
        problems.add(
            error.key,
            error.what,
            "give a file that the daemon's user can read and that holds what it should",
        );
    }
}

/// The part of it that is about upstreams: keys and authorities.
pub fn upstream(config: &Config, problems: &mut Problems) {
    crate::upstream::check_files(config, problems);
}

/// The part of it that is about tasks, the processor and groups.
pub fn small(config: &Config, problems: &mut Problems) {
    if let Err(found) = Tasks::new(&config.task) {
        problems.extend(found);
    }
    if let Err(error) = crate::worker::check_isa(config) {
        problems.add(
            "engine.isa",
            error,
            "leave it out to take the best there is",
        );
    }
    for name in &config.models.admin_groups {
        if !matches!(nix::unistd::Group::from_name(name), Ok(Some(_))) {
            problems.add(
                "models.admin-groups",
                format!("there is no group {name}"),
                "create it or leave it out",
            );
        }
    }
    let groups = [
        ("http.socket-group", &config.http.socket_group),
        ("wire.socket-group", &config.wire.socket_group),
    ];
    for (key, group) in groups {
        if let Some(name) = group
            && !matches!(nix::unistd::Group::from_name(name), Ok(Some(_)))
        {
            problems.add(
                key,
                format!("there is no group {name}"),
                "create it or leave it out",
            );
        }
    }
}
