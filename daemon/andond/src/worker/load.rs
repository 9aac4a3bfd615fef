//! From a configuration to a generator that has proved itself.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use andon_engine::backend::Backend;
use andon_engine::embed::{Embedder, EmbedderOptions};
use andon_engine::generate::{Generator, GeneratorOptions};
use andon_engine::pack::Key;
use andon_engine::tokenizer::Special;
use andon_engine::{Executor, ExecutorOptions, Files, Isa, LoadError, Model};
use andon_os::may_pass;

use super::admit::scheduling;
use super::backend::Computes;
use super::device::{self, Made};
use super::draft::{self, DraftFacts};
use super::memory::Memory;
use super::pages::Pages;
use super::trying::{self, Proved};
use super::{ModelFacts, SHARE_FOR_ALARMS, Shared};
use crate::config::Config;
use crate::memory::Reservation;
use crate::registry::{Packs, Proof, Proven, RegistryError, Served};

/// A model ready to serve.
pub(super) struct Loaded {
    pub(super) model: Arc<Model>,
    pub(super) engine: Engine,
    pub(super) facts: ModelFacts,
    /// How its executor is to be made for the device that gets its weights while it is served.
    pub(super) moves: Option<ExecutorOptions>,
    /// The key of its pack, if it is to have one.
    pub(super) key: Option<Key>,
    /// What became of the draft that the configuration names.
    pub(super) draft: Option<DraftFacts>,
    /// What it and the rest may take, if it generates text.
    pub(super) memory: Option<Memory>,
    /// The draft that guesses, and the key of its pack.
    pub(super) draft_model: Option<(Arc<Model>, Option<Key>)>,
    /// What is kept of prompts.
    pub(super) pages: Pages,
    /// How it is known that the model's bytes are those of its manifest.
    pub(super) proven: Proven,
    /// What is to be compared with manifests while it is served: the model, and the draft.
    pub(super) unproven: Vec<(Arc<Model>, Proof)>,
    /// How it did when it was tried.
    pub(super) proved: Proved,
    /// The memory that all of it was promised.
    pub(super) promised: Vec<Reservation>,
}

/// What runs the model.
pub(super) enum Engine {
    /// It generates text.
    Generator(Box<Generator<Executor>>),
    /// It makes embeddings.
    Embedder(Box<Embedder>),
}

/// Why a model is not served, and what would put it right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoadFailure {
    pub(super) message: String,
    pub(super) fault: AtFault,
}

/// What is at fault where a model is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtFault {
    /// The file or the configuration: starting again will not help.
    Operator,
    /// The machine, or the daemon itself.
    Machine,
    /// There is no room for it now.
    Room,
}

impl LoadFailure {
    pub(super) fn operator(message: &impl ToString) -> LoadFailure {
        LoadFailure {
            message: message.to_string(),
            fault: AtFault::Operator,
        }
    }

    pub(super) fn machine(message: &impl ToString) -> LoadFailure {
        LoadFailure {
            message: message.to_string(),
            fault: AtFault::Machine,
        }
    }

    /// A model's files cannot be used.
    fn of_files(error: &LoadError) -> LoadFailure {
        match error {
            LoadError::Open { source, .. } if may_pass(source) => LoadFailure::machine(error),
            // Read again, it is what it is now.
            LoadError::Changed { .. } => LoadFailure::machine(error),
            _ => LoadFailure::operator(error),
        }
    }

    /// What is kept of a model cannot be used.
    pub(super) fn of_kept(error: &RegistryError) -> LoadFailure {
        match error {
            RegistryError::Io(_, _, source) if may_pass(source) => LoadFailure::machine(error),
            _ => LoadFailure::operator(error),
        }
    }

    /// Nobody wants the model any more.
    pub(super) fn given_up() -> LoadFailure {
        LoadFailure::machine(&"it was given up")
    }

    pub(super) fn room(message: &impl ToString) -> LoadFailure {
        LoadFailure {
            message: message.to_string(),
            fault: AtFault::Room,
        }
    }
}

/// The instruction set a configuration forces.
pub(super) fn isa(config: &Config) -> Result<Option<Isa>, String> {
    match config.engine.isa.as_deref() {
        None => Ok(None),
        Some(name) => match Isa::from_name(name) {
            Some(isa) if isa.is_supported() => Ok(Some(isa)),
            Some(_) => Err(format!("this processor does not have {name}")),
            None => Err(format!("there is no instruction set {name}")),
        },
    }
}

/// Maps the model and its pack, makes its executor, and decodes a token with it.
pub(super) fn load(shared: &Shared, served: &Served) -> Result<Loaded, LoadFailure> {
    let (config, registry) = (&*shared.config, &*shared.registry);
    let path = &served.path;
    shared.goes_on()?;
    let files = Files::open(&served.path).map_err(|error| LoadFailure::of_files(&error))?;
    if served.proof.is_required() {
        // Before all of it is read and compared, again and again where somebody waits for room.
        drop(shared.promised_weights(&files)?);
    }
    let (model, proven) = shared.open(files, served)?;
    shared.goes_on()?;
    let mut unproven = left_to_prove(served, &model);
    let key = registry
        .packs()
        .and_then(|packs| find_pack(packs, served, &model));
    if model.info().pooling.is_some() {
        return Ok(Loaded {
            unproven,
            ..load_embedder(shared, path, (model, proven), key)?
        });
    }
    let places = scheduling(config).places;
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    let generating = GeneratorOptions {
        parallel_max: count(places.all()),
        parked_max: count(places.resident_max().saturating_sub(places.all())),
        kv_tokens_for_urgent: config.model.kv_tokens_max / SHARE_FOR_ALARMS,
        ..GeneratorOptions::default()
    };
    let options = ExecutorOptions {
        backend: Backend::Cpu,
        falls_back: config.engine.backend_fallback,
        threads: config.engine.threads,
        isa: isa(config).map_err(|error| LoadFailure::operator(&error))?,
        batch_tokens_max: config.engine.batch_tokens_max,
        output_rows_max: generating.output_rows_max(),
        kv_tokens_max: config.model.kv_tokens_max,
        kv_type: config.model.kv_type.into(),
        prefix_cache: config.engine.prefix_cache,
        ..ExecutorOptions::default()
    };
    let Made {
        executor,
        computes,
        memory,
        mut promised,
        moves,
    } = device::make(shared, &model, served.tasks.len(), options)?;
    let info = model.info();
    // One request must fit on its own, or it would wait for room that never comes.
    let context_tokens_max = info
        .context_tokens_max
        .min(config.model.kv_tokens_max)
        .min(config.model.context_tokens_max.unwrap_or(usize::MAX));
    let facts = ModelFacts {
        name: config.model.name(),
        architecture: info.architecture.clone(),
        context_tokens_max,
        embedding: None,
        file_bytes: info.file_bytes as u64,
        created_s: changed_s(path),
        isa: match computes.backend {
            Backend::Cpu => executor.isa().name(),
            device => device.name(),
        }
        .to_owned(),
        computes,
        threads: executor.threads(),
    };
    if executor.backend() == Backend::Cpu {
        shared.read_ahead(&model, proven)?;
    }
    let mut generator = Generator::new(executor, generating);
    let mut seat = shared.machine.seat();
    let known = served
        .known
        .as_ref()
        .filter(|known| known.fits(context_tokens_max, info.vocabulary_count))
        .map(|known| (known, config.model.kv_type.into()));
    let proved = trying::prove(shared, &model, &mut generator, known, &mut seat)?;
    let pages = match generator.executor_mut() {
        Some(executor) if memory.keeps_pages() => {
            Pages::open(shared, key.as_ref(), executor, &mut seat)
        }
        Some(_) if config.keeps_pages() => Pages::missing(config),
        _ => Pages::none(config),
    };
    drop(seat);
    shared.goes_on()?;
    let executor = generator.executor();
    let (draft, loaded) = draft::load(shared, executor, &memory).unzip();
    let (draft, loaded) = draft::promised(&shared.budget, draft, loaded.flatten(), &mut promised);
    let draft_model = loaded.map(|loaded| {
        generator.set_drafter(Box::new(loaded.draft), loaded.expected_cost);
        unproven.extend(loaded.unproven);
        (loaded.model, loaded.key)
    });
    // Others get what all of it leaves.
    shared.bytes.store(memory.bytes() as u64, Ordering::Relaxed);
    Ok(Loaded {
        model,
        engine: Engine::Generator(Box::new(generator)),
        facts,
        moves,
        key,
        draft,
        memory: Some(memory),
        draft_model,
        pages,
        proven,
        unproven,
        proved,
        promised,
    })
}

impl Shared {
    /// The model, whose bytes were compared before anything of them was used, where that is required; else what is wrong.
    pub(super) fn open(
        &self,
        files: Files,
        served: &Served,
    ) -> Result<(Arc<Model>, Proven), LoadFailure> {
        let proven = self.aside(&|threads, goes_on| {
            let proven = served.proof.before_use(files.maps(), threads, goes_on);
            proven.transpose()
        })?;
        let proven = proven.map_err(|error| LoadFailure::of_kept(&error))?;
        let model = Model::from_files(files, &served.options)
            .map_err(|error| LoadFailure::of_files(&error))?;
        Ok((Arc::new(model), proven))
    }

    /// Before a model is tried while others answer: has it read from the disk. Its first pass reads all of it, and nobody
    /// else computes during a pass.
    pub(super) fn read_ahead(&self, model: &Model, proven: Proven) -> Result<(), LoadFailure> {
        let is_read = matches!(proven, Proven::Compared { .. }) && model.pack().is_none();
        if !self.around.asked || is_read {
            return Ok(());
        }
        self.aside(&|_, goes_on| {
            model.read_ahead(goes_on);
            goes_on().then_some(())
        })
    }

    /// Does what takes long while others answer with other models: on one thread that they have the processors before, since
    /// their threads wait for each other in each pass. As the daemon starts, or once an alarm waits for the model, that is
    /// as urgent as an answer; what was begun is begun again then. `work` is told how many threads it may have and asks now
    /// and then whether to go on; where it did not it gives nothing.
    pub(super) fn aside<T: Send>(&self, work: &Aside<'_, T>) -> Result<T, LoadFailure> {
        let hurries = || !self.around.asked || self.hurries.load(Ordering::Relaxed);
        let goes_on = || self.goes_on().is_ok();
        let done = if hurries() {
            None
        } else {
            giving_way(|| work(1, &|| goes_on() && !hurries()))
        };
        if let Some(done) = done {
            return Ok(done);
        }
        let threads = self.config.engine.threads;
        let threads = threads.unwrap_or_else(andon_os::available_threads);
        work(threads, &goes_on).ok_or_else(LoadFailure::given_up)
    }
}

/// See [`Shared::aside`].
pub(super) type Aside<'a, T> = dyn Fn(usize, &(dyn Fn() -> bool + Sync)) -> Option<T> + Sync + 'a;

/// Does something on a thread of the lowest rank.
pub(super) fn giving_way<T: Send>(work: impl Fn() -> T + Sync) -> T {
    let aside = || {
        if let Err(error) = andon_os::give_way() {
            tracing::debug!(%error, "loading has the rank of an answer");
        }
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("load".to_owned());
        match thread.spawn_scoped(scope, aside) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => work(),
        }
    })
}

/// A model that is to be compared while it is served.
pub(super) fn left_to_prove(served: &Served, model: &Arc<Model>) -> Vec<(Arc<Model>, Proof)> {
    let proof = Some(&served.proof).filter(|proof| proof.is_left());
    let left = proof.map(|proof| (Arc::clone(model), proof.clone()));
    left.into_iter().collect()
}

/// Has the model use its pack if there is a sound one; the key of the pack, if it is to have one. Where everything has to be
/// compared before it is computed with, that is left to the thread that packs.
pub(super) fn find_pack(packs: &Packs, served: &Served, model: &Model) -> Option<Key> {
    let key = packs.key(served.key.as_ref(), model)?;
    let cache = packs.cache();
    cache.hold(&key);
    if served.proof.is_required() {
        return Some(key);
    }
    let found = cache.find(&key).and_then(|pack| match pack {
        Some(pack) => model.attach_pack(pack),
        None => Ok(()),
    });
    if let Err(error) = found {
        tracing::warn!(%error, "the weights are read from the model's own file, which is slower");
    }
    Some(key)
}

/// Makes the model's embedder, and a vector with it.
fn load_embedder(
    shared: &Shared,
    path: &Path,
    (model, proven): (Arc<Model>, Proven),
    key: Option<Key>,
) -> Result<Loaded, LoadFailure> {
    let config = &*shared.config;
    let options = EmbedderOptions {
        threads: config.engine.threads,
        isa: isa(config).map_err(|error| LoadFailure::operator(&error))?,
        context_tokens_max: config.model.context_tokens_max,
    };
    let mut embedder = Embedder::new(Arc::clone(&model), &options)
        .map_err(|error| LoadFailure::machine(&error))?;
    // Before anything of it is touched.
    let promised = shared.promised_encoder(&embedder)?;
    let mut input = model.tokenizer().encode_prompt("Hello", Special::Plain);
    input.truncate(embedder.context_tokens_max());
    if input.is_empty() {
        // A vocabulary without these letters still has a first token.
        input.push(0);
    }
    shared.read_ahead(&model, proven)?;
    let mut seat = shared.machine.seat();
    shared.take_to_load(&mut seat)?;
    embedder
        .embed(&[&input])
        .map_err(|error| LoadFailure::operator(&format!("the self-test failed: {error}")))?;
    drop(seat);
    let info = model.info();
    let facts = ModelFacts {
        name: config.model.name(),
        architecture: info.architecture.clone(),
        context_tokens_max: embedder.context_tokens_max(),
        embedding: Some(embedder.dimensions()),
        file_bytes: info.file_bytes as u64,
        created_s: changed_s(path),
        computes: Computes {
            backend: Backend::Cpu,
            why_not: Some("embeddings are computed by the processor".to_owned()),
        },
        isa: embedder.isa().name().to_owned(),
        threads: embedder.threads(),
    };
    Ok(Loaded {
        model,
        engine: Engine::Embedder(Box::new(embedder)),
        facts,
        moves: None,
        key,
        draft: config.speculation.draft_name().map(|name| DraftFacts {
            name,
            state: Err(
                "the served model makes embeddings, for which nothing is guessed".to_owned(),
            ),
        }),
        memory: None,
        draft_model: None,
        pages: Pages::none(config),
        proven,
        unproven: Vec::new(),
        proved: Proved::default(),
        promised,
    })
}

fn changed_s(path: &Path) -> u64 {
    std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|changed| changed.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::io;

    use andon_engine::LoadError;

    use super::{AtFault, LoadFailure};
    use crate::registry::RegistryError;

    #[test]
    fn what_passes_by_itself_is_not_the_operators_fault() {
        let error = |code| io::Error::from_raw_os_error(code);
        // Too many files are open; there is no such file.
        for (code, fault) in [(24, AtFault::Machine), (2, AtFault::Operator)] {
            let open = LoadError::Open {
                path: "m.gguf".into(),
                source: error(code),
            };
            assert_eq!(LoadFailure::of_files(&open).fault, fault);
            let kept = RegistryError::Io("m".into(), "read", error(code));
            assert_eq!(LoadFailure::of_kept(&kept).fault, fault);
        }
        let changed = LoadError::Changed {
            path: "m.gguf".into(),
        };
        assert_eq!(LoadFailure::of_files(&changed).fault, AtFault::Machine);
        let damaged = RegistryError::Rejected("it is damaged".to_owned());
        assert_eq!(LoadFailure::of_kept(&damaged).fault, AtFault::Operator);
    }
}
