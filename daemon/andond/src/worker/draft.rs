//! The draft model beside the served one: found, loaded within its bounds, and what became of it.
//!
//! Invariant: nothing here keeps the model from being served. What stands in the way of a draft is said in the journal and
//! in the status, and the model answers without.

use std::fmt;
use std::sync::Arc;

use andon_engine::kv::PAGE;
use andon_engine::pack::Key;
use andon_engine::speculate::DraftModel;
use andon_engine::{Executor, ExecutorOptions, Files, Model};

use super::Shared;
use super::load::{LoadFailure, find_pack, left_to_prove};
use super::memory::Memory;
use crate::memory::{Budget, Held, Part, Reservation};
use crate::registry::{self, Proof, Served};

/// Most tokens of one of its passes: a piece of a prompt, or what several answers lack.
const BATCH_TOKENS_MAX: usize = 128;

/// A KV cache of fewer tokens is of no use.
const KV_TOKENS_MIN: usize = 256;

/// What became of the draft that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftFacts {
    /// Its name.
    pub name: String,
    /// What it is like, or why there are no guesses of it.
    pub state: Result<DraftUse, String>,
}

/// What a draft that guesses is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftUse {
    /// Bytes of its weights, activations and KV cache.
    pub bytes: u64,
    /// Whether its vocabulary is another than the model's, so that its guesses are taken by their text.
    pub translated: bool,
}

/// A draft that is ready to guess.
pub(super) struct Loaded {
    pub(super) draft: DraftModel,
    /// Its passes, relative to one of the served model over one token, as far as their weights tell.
    pub(super) expected_cost: f32,
    pub(super) model: Arc<Model>,
    /// The key of its pack, if it is to have one.
    pub(super) key: Option<Key>,
    /// The same model, if it is to be compared while it is used.
    pub(super) unproven: Vec<(Arc<Model>, Proof)>,
    bytes: u64,
}

/// Loads the draft that the configuration names, for what `target` runs; `None` if it names none.
pub(super) fn load(
    shared: &Shared,
    target: &Executor,
    memory: &Memory,
) -> Option<(DraftFacts, Option<Loaded>)> {
    let (config, registry) = (&*shared.config, &*shared.registry);
    let name = config.speculation.draft_name()?;
    let loaded = registry::served_draft(config, registry)
        .map_err(|error| error.to_string())
        .and_then(|served| load_served(shared, &served, target, memory));
    let (state, loaded) = match loaded {
        Ok(loaded) => {
            tracing::info!(
                draft = name,
                bytes = loaded.bytes,
                kv_tokens = loaded.draft.executor().kv_tokens_max(),
                expected_cost = loaded.expected_cost,
                packed = loaded.model.pack().is_some(),
                translated = !loaded.draft.has_same_vocabulary(),
                "a draft model guesses"
            );
            let facts = DraftUse {
                bytes: loaded.bytes,
                translated: !loaded.draft.has_same_vocabulary(),
            };
            (Ok(facts), Some(loaded))
        }
        Err(why) => {
            tracing::warn!(draft = name, why, "there are no guesses of the draft model");
            (Err(why), None)
        }
    };
    Some((DraftFacts { name, state }, loaded))
}

/// The draft, if the budget has what it takes.
pub(super) fn promised(
    budget: &Arc<Budget>,
    facts: Option<DraftFacts>,
    loaded: Option<Loaded>,
    promised: &mut Vec<Reservation>,
) -> (Option<DraftFacts>, Option<Loaded>) {
    let Some(draft) = loaded else {
        return (facts, None);
    };
    match budget.reserve(Part::Draft, Held::Private, draft.bytes) {
        Ok(reservation) => {
            promised.push(reservation);
            (facts, Some(draft))
        }
        Err(refusal) => {
            tracing::warn!(why = %refusal, "there are no guesses of the draft model");
            let refused = |facts: DraftFacts| DraftFacts {
                state: Err(refusal.to_string()),
                ..facts
            };
            (facts.map(refused), None)
        }
    }
}

fn load_served(
    shared: &Shared,
    served: &Served,
    target: &Executor,
    memory: &Memory,
) -> Result<Loaded, String> {
    let (config, registry) = (&*shared.config, &*shared.registry);
    let message = |failure: LoadFailure| failure.message;
    let files = Files::open(&served.path).map_err(|error| error.to_string())?;
    let (model, proven) = shared.open(files, served).map_err(message)?;
    let key = registry
        .packs()
        .and_then(|packs| find_pack(packs, served, &model));
    shared.read_ahead(&model, proven).map_err(message)?;
    let options = ExecutorOptions {
        batch_tokens_max: BATCH_TOKENS_MAX.min(config.engine.batch_tokens_max),
        kv_type: config.model.kv_type.into(),
        prefix_cache: config.engine.prefix_cache,
        ..ExecutorOptions::default()
    };
    let draft = |kv_tokens_max| {
        let options = ExecutorOptions {
            kv_tokens_max,
            ..options.clone()
        };
        DraftModel::new(Arc::clone(&model), target, &options).map_err(|error| error.to_string())
    };
    let least = KV_TOKENS_MIN.min(config.model.kv_tokens_max);
    let smallest = draft(least)?;
    let fixed = model.info().file_bytes.saturating_add(smallest.bytes());
    let left = left(fixed, config.speculation.draft_bytes_max, memory)?;
    // Others may have taken of that since, and the system may have less.
    let now = shared.budget.left().map(usize::try_from);
    let now = now.and_then(Result::ok).unwrap_or(usize::MAX);
    let left = left.min(now.saturating_sub(fixed));
    // Pages of the cache are taken when they are first used.
    let more = left / smallest.executor().kv_bytes_per_token().max(1) / PAGE * PAGE;
    let kv_tokens = least.saturating_add(more).min(config.model.kv_tokens_max);
    drop(smallest);
    let draft = draft(kv_tokens)?;
    let bytes = model.info().file_bytes.saturating_add(draft.bytes());
    Ok(Loaded {
        expected_cost: draft.expected_cost(target.model()),
        draft,
        unproven: left_to_prove(served, &model),
        model,
        key,
        bytes: bytes as u64,
    })
}

/// Bytes that are left for the KV cache of a draft that needs `fixed` bytes beside: of `most`, and of what the served model
/// and what goes with it leave of the memory that there is.
pub(super) fn left(fixed: usize, most: usize, memory: &Memory) -> Result<usize, String> {
    let too_many = |room: usize, why: &dyn fmt::Display| {
        format!("it needs {fixed} bytes of memory, and gets {room}: {why}")
    };
    let room = memory.left().unwrap_or(usize::MAX);
    let of_memory = room
        .checked_sub(fixed)
        .ok_or_else(|| too_many(room, memory))?;
    let configured = most
        .checked_sub(fixed)
        .ok_or_else(|| too_many(most, &"that is [speculation] draft-bytes-max"))?;
    Ok(of_memory.min(configured))
}
