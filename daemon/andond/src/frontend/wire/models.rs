//! The compact socket's part in looking after models: frames in, registry calls, frames out.
//!
//! What reads and writes gigabytes has a thread of its own, which gives way to answers where it computes; between it and the connection
//! there are a few frames at most, so that a slow disk slows the client down and nothing grows.
//!
//! Invariant: an operation ends with exactly one frame that says so. When the connection goes, so does
//! what was being received; what was whole already is tried and registered all the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_engine::kv::disk::StoreError;
use andon_os::Peer;
use andon_wire::limits::{CHUNK_TEXT_BYTES_MAX, FAULT_MESSAGE_BYTES_MAX, LABEL_BYTES_MAX};
use andon_wire::manifest::Digest;
use andon_wire::{
    AddModel, AddReady, CorpusAction, CorpusErased, CorpusTask, ErrorCode, ModelAction, ModelAdded,
    ModelData, ModelDone, ModelName, ModelProgress, ModelResidence, ModelStage, ModelTask,
    ModelText, PageAction, PageTask, ReloadOutcome, Reloaded as WireReloaded, RequestId,
    ServedModel, ServerFrame, SpoolTask, StoredCorpus, StoredModel, StoredPack, StoredPages,
    StoredSignature, shorten,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::Outgoing;
use super::convert::saturated;
use super::spool;
use crate::frontend::Context;
use crate::registry::{
    Begun, Judgement, Packed, Receipt, Registry, RegistryError, Stored, may_change,
};
use crate::reload::{Reload, Reloaded};
use crate::worker::{CorpusFacts, Erased};
use crate::workers::{Named, Residence, Workers};

/// Pieces of a model between the connection and the disk: a megabyte.
const PIECES_WAITING_MAX: usize = 4;
/// Words of a thread that wait for the connection.
const EVENTS_WAITING_MAX: usize = 16;
/// Longest pause of a client that is sending a model.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Time between two words about progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which the last word about progress is said again: one step on a slow machine, or bringing a large file
/// to a slow disk, may take longer than a client waits for a sign of life.
const REPEAT_INTERVAL: Duration = Duration::from_secs(15);

/// How much an operation computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Digests and the trial take whole processors, which belong to whoever waits for an answer.
    Heavy,
    /// Next to nothing. It holds what requests need for a moment, and must not be kept from letting go of it.
    Light,
}

/// What a thread has to say.
pub(super) enum Event {
    Ready {
        weights: bool,
    },
    Progress(ModelStage, u64, u64),
    Stored(Box<Stored>, bool),
    Packed(Packed),
    Signed {
        name: String,
        found: Judgement,
        /// Id of the key that this is about, or empty.
        key: String,
        verity: bool,
    },
    Served(Box<Named>),
    Corpus(CorpusFacts),
    Kept(Box<spool::Facts>),
    Pages(usize, u64),
    Reloaded(ReloadOutcome, String),
    Text(String),
    Added {
        name: String,
        bytes: u64,
        present: bool,
    },
    Erased(Erased),
    Done {
        count: u32,
    },
    Failed(RegistryError),
}

pub(super) type Events = mpsc::Sender<Event>;

/// The operations of one connection.
pub(super) struct ModelDesk {
    context: Context,
    outgoing: Outgoing,
    peer: Arc<Peer>,
    tasks: JoinSet<()>,
    /// The model that is being received, or was last.
    adding: Option<(RequestId, mpsc::Sender<Box<[u8]>>)>,
}

impl ModelDesk {
    pub(super) fn new(context: Context, outgoing: Outgoing, peer: Arc<Peer>) -> ModelDesk {
        ModelDesk {
            context,
            outgoing,
            peer,
            tasks: JoinSet::new(),
            adding: None,
        }
    }

    /// Begins to add a model. False when the connection is gone.
    pub(super) async fn add(&mut self, ask: &AddModel<'_>, signatures: Option<&str>) -> bool {
        let id = ask.id.clone();
        if !self.free(&id).await {
            return true;
        }
        let (pieces, incoming) = mpsc::channel(PIECES_WAITING_MAX);
        self.adding = Some((id.clone(), pieces));
        let name = ask.name.as_ref().map(|name| name.as_str().to_owned());
        let manifest = ask.manifest.to_owned();
        let signatures = signatures.map(str::to_owned);
        let (registry, peer) = (Arc::clone(&self.context.registry), Arc::clone(&self.peer));
        let config = self.context.config().models.clone();
        let runtime = Handle::current();
        self.run(id, Work::Heavy, move |events| {
            may_change(&config, &peer)?;
            add(
                &registry,
                name.as_deref(),
                (&manifest, signatures.as_deref()),
                &runtime,
                incoming,
                events,
            )
        })
        .await
    }

    /// Takes in bytes of the model that is being added. False when there is none.
    pub(super) async fn data(&mut self, data: &ModelData<'_>) -> bool {
        match &self.adding {
            Some((id, pieces)) if *id == data.id => {
                // It has ended, and the client will read so; until then it may send what it likes.
                drop(pieces.send(data.bytes.0.into()).await);
                true
            }
            _ => false,
        }
    }

    /// Does something with the models that are kept.
    pub(super) async fn task(&mut self, task: ModelTask) -> bool {
        if !self.free(&task.id).await {
            return true;
        }
        let (registry, peer) = (Arc::clone(&self.context.registry), Arc::clone(&self.peer));
        let workers = self.context.workers.clone();
        let config = self.context.config().models.clone();
        let work = match task.action {
            ModelAction::Pack(_) | ModelAction::Verify(_) => Work::Heavy,
            _ => Work::Light,
        };
        self.run(task.id, work, move |events| match task.action {
            ModelAction::List => list(&registry, events),
            ModelAction::Show(name) => show(&registry, name.as_str(), events),
            ModelAction::Remove(name) => {
                may_change(&config, &peer)?;
                workers.remove(name.as_str())?;
                send(events, Event::Done { count: 1 });
                Ok(())
            }
            ModelAction::Packs => packs(&registry, events),
            ModelAction::Signatures => signatures(&registry, events),
            ModelAction::Pack(name) => {
                may_change(&config, &peer)?;
                let mut pace = Pace::default();
                registry.pack(name.as_str(), &mut |bytes, total| {
                    pace.say(events, ModelStage::Packing, bytes, total);
                })?;
                send(events, Event::Done { count: 1 });
                Ok(())
            }
            ModelAction::Unpack(name) => {
                may_change(&config, &peer)?;
                let count = u32::from(registry.unpack(name.as_str())?);
                send(events, Event::Done { count });
                Ok(())
            }
            ModelAction::Load(name) => {
                may_change(&config, &peer)?;
                let mut pace = Pace::default();
                workers.load(name.as_str(), &mut |stage| pace.say(events, stage, 0, 0))?;
                send(events, Event::Done { count: 1 });
                Ok(())
            }
            ModelAction::Unload(name) => {
                may_change(&config, &peer)?;
                let mut pace = Pace::default();
                let gone = workers.unload(name.as_str(), &mut |stage| {
                    pace.say(events, stage, 0, 0);
                })?;
                let count = u32::from(gone);
                send(events, Event::Done { count });
                Ok(())
            }
            ModelAction::Swap(swap) => {
                may_change(&config, &peer)?;
                let mut pace = Pace::default();
                let name = swap.name.as_ref().map(ModelName::as_str);
                let said = &mut |stage| pace.say(events, stage, 0, 0);
                workers.swap(swap.model.as_str(), name, swap.unload_first, said)?;
                send(events, Event::Done { count: 1 });
                Ok(())
            }
            ModelAction::Rollback(name) => {
                may_change(&config, &peer)?;
                let mut pace = Pace::default();
                let name = name.as_ref().map(ModelName::as_str);
                workers.roll_back(name, &mut |stage| pace.say(events, stage, 0, 0))?;
                send(events, Event::Done { count: 1 });
                Ok(())
            }
            ModelAction::Served => {
                let models = workers.list();
                let count = saturated(models.len());
                for model in models {
                    send(events, Event::Served(Box::new(model)));
                }
                send(events, Event::Done { count });
                Ok(())
            }
            ModelAction::Verify(name) => {
                may_change(&config, &peer)?;
                let mut pace = Pace::default();
                registry.verify(name.as_str(), &mut |bytes, total| {
                    pace.say(events, ModelStage::Verifying, bytes, total);
                })?;
                send(events, Event::Done { count: 1 });
                Ok(())
            }
        })
        .await
    }

    /// Does something with the earlier answers that guesses come from. What clients asked is nobody else's business.
    pub(super) async fn corpora(&mut self, task: &CorpusTask<'_>) -> bool {
        if !self.free(&task.id).await {
            return true;
        }
        let (workers, peer) = (self.context.workers.clone(), Arc::clone(&self.peer));
        let config = self.context.config().models.clone();
        let erase = match &task.action {
            CorpusAction::List => None,
            CorpusAction::Erase { task, client } => Some((
                task.as_ref().map(|task| task.as_str().to_owned()),
                client.map(str::to_owned),
            )),
        };
        self.run(task.id.clone(), Work::Light, move |events| {
            may_change(&config, &peer)?;
            corpora(&workers, erase, events)
        })
        .await
    }

    /// Does something with the requests that are kept.
    pub(super) async fn spool(&mut self, task: &SpoolTask<'_>) -> bool {
        if !self.free(&task.id).await {
            return true;
        }
        let (spool, peer) = (self.context.spool.clone(), Arc::clone(&self.peer));
        let config = self.context.config().models.clone();
        let wanted = spool::Wanted::new(&task.action);
        self.run(task.id.clone(), Work::Light, move |events| {
            may_change(&config, &peer)?;
            spool::operate(&spool, wanted, events)
        })
        .await
    }

    /// Does something with what is kept of prompts.
    pub(super) async fn pages(&mut self, task: PageTask) -> bool {
        if !self.free(&task.id).await {
            return true;
        }
        let (workers, peer) = (self.context.workers.clone(), Arc::clone(&self.peer));
        let config = self.context.config().models.clone();
        self.run(task.id, Work::Light, move |events| {
            may_change(&config, &peer)?;
            pages(&workers, task.action, events)
        })
        .await
    }

    /// Has the configuration read again.
    pub(super) async fn reload(&mut self, id: RequestId) -> bool {
        if !self.free(&id).await {
            return true;
        }
        let (reload, peer) = (Arc::clone(&self.context.reload), Arc::clone(&self.peer));
        let config = self.context.config().models.clone();
        self.run(id, Work::Light, move |events| {
            may_change(&config, &peer)?;
            read_again(&reload, events)
        })
        .await
    }

    /// Whether the connection has no operation; says so if it has.
    async fn free(&mut self, id: &RequestId) -> bool {
        while self.tasks.try_join_next().is_some() {}
        if self.tasks.is_empty() {
            return true;
        }
        self.outgoing
            .error(
                Some(id.clone()),
                ErrorCode::Busy,
                "this connection has an operation on a model already",
                None,
            )
            .await;
        false
    }

    /// Runs an operation in a thread and passes on what it says.
    async fn run(
        &mut self,
        id: RequestId,
        work: Work,
        operation: impl FnOnce(&Events) -> Result<(), RegistryError> + Send + 'static,
    ) -> bool {
        let (events, said) = mpsc::channel(EVENTS_WAITING_MAX);
        let started = std::thread::Builder::new()
            .name("model".to_owned())
            .spawn(move || {
                // Where the system does not let a thread give way, it takes its share like any other.
                if work == Work::Heavy
                    && let Err(error) = andon_os::give_way()
                {
                    tracing::debug!(%error, "work on a model has the rank of an answer");
                }
                if let Err(error) = operation(&events) {
                    send(&events, Event::Failed(error));
                }
            });
        if let Err(error) = started {
            let message = format!("cannot start a thread: {error}");
            return self
                .outgoing
                .error(Some(id), ErrorCode::Internal, &message, None)
                .await;
        }
        let outgoing = self.outgoing.clone();
        self.tasks.spawn(pass_on(id, outgoing, said));
        true
    }
}

/// Says something, unless the connection is gone.
pub(super) fn send(events: &Events, event: Event) {
    drop(events.blocking_send(event));
}

/// Not every step is worth a frame.
#[derive(Default)]
struct Pace {
    said: Option<(Instant, ModelStage)>,
}

impl Pace {
    fn say(&mut self, events: &Events, stage: ModelStage, bytes: u64, total: u64) {
        let due = self
            .said
            .is_none_or(|(at, last)| last != stage || at.elapsed() >= PROGRESS_INTERVAL);
        if due {
            self.said = Some((Instant::now(), stage));
            send(events, Event::Progress(stage, bytes, total));
        }
    }
}

fn add(
    registry: &Arc<Registry>,
    name: Option<&str>,
    (manifest, signatures): (&str, Option<&str>),
    runtime: &Handle,
    mut incoming: mpsc::Receiver<Box<[u8]>>,
    events: &Events,
) -> Result<(), RegistryError> {
    let mut pace = Pace::default();
    let begun = registry.begin(name, manifest, signatures, &mut |stage, bytes, total| {
        pace.say(events, stage, bytes, total);
    })?;
    let mut receipt: Box<Receipt> = match begun {
        Begun::Present(added) => {
            send(
                events,
                Event::Added {
                    name: added.name,
                    bytes: added.bytes,
                    present: true,
                },
            );
            return Ok(());
        }
        Begun::Receive(receipt) => receipt,
    };
    send(
        events,
        Event::Ready {
            weights: receipt.weights(),
        },
    );
    while !receipt.complete() {
        // The timer is made inside, where the runtime that drives it is known.
        let piece = runtime.block_on(async { timeout(PAUSE_MAX, incoming.recv()).await });
        match piece {
            Ok(Some(piece)) => receipt.push(&piece)?,
            Ok(None) => {
                tracing::info!("a client went away while it was sending a model");
                return Ok(());
            }
            Err(_) => {
                return Err(RegistryError::Invalid(format!(
                    "no bytes of the model came for {} s",
                    PAUSE_MAX.as_secs()
                )));
            }
        }
        let (bytes, total) = receipt.progress();
        pace.say(events, ModelStage::Receiving, bytes, total);
    }
    let added = receipt.finish(&mut |stage, bytes, total| pace.say(events, stage, bytes, total))?;
    send(
        events,
        Event::Added {
            name: added.name,
            bytes: added.bytes,
            present: false,
        },
    );
    Ok(())
}

fn list(registry: &Registry, events: &Events) -> Result<(), RegistryError> {
    let mut count = 0;
    for model in registry.list()? {
        let active = registry.is_active(&model.name);
        send(events, Event::Stored(Box::new(model), active));
        count += 1;
    }
    send(events, Event::Done { count });
    Ok(())
}

fn signatures(registry: &Registry, events: &Events) -> Result<(), RegistryError> {
    let mut count = 0;
    for model in registry.list()? {
        let found = registry.judge(&model);
        let event = Event::Signed {
            verity: model.has_verity(),
            key: found.key.map_or_else(String::new, |key| key.to_string()),
            found,
            name: model.name,
        };
        send(events, event);
        count += 1;
    }
    send(events, Event::Done { count });
    Ok(())
}

fn packs(registry: &Registry, events: &Events) -> Result<(), RegistryError> {
    let mut count = 0;
    for packed in registry.packed()? {
        send(events, Event::Packed(packed));
        count += 1;
    }
    send(events, Event::Done { count });
    Ok(())
}

/// Lists the earlier answers, or erases those of a task and a client.
fn corpora(
    workers: &Workers,
    erase: Option<(Option<String>, Option<String>)>,
    events: &Events,
) -> Result<(), RegistryError> {
    let failed = |error: std::io::Error| {
        RegistryError::Io("the folder of earlier answers".into(), "use", error)
    };
    let loading = || RegistryError::Busy("the model is not loaded yet".to_owned());
    match erase {
        Some((task, client)) => {
            let erased = workers.erase_corpora(task.as_deref(), client.as_deref());
            let erased = erased.ok_or_else(loading)?.map_err(failed)?;
            let Erased { count, shared } = erased;
            crate::event!(
                DataErased,
                task,
                client,
                erased = count,
                shared,
                "earlier answers erased"
            );
            send(events, Event::Erased(erased));
        }
        None => {
            let listed = workers
                .list_corpora()
                .ok_or_else(loading)?
                .map_err(failed)?;
            let count = saturated(listed.len());
            for facts in listed {
                send(events, Event::Corpus(facts));
            }
            send(events, Event::Done { count });
        }
    }
    Ok(())
}

/// Says how much is kept of prompts, or erases it.
fn pages(workers: &Workers, action: PageAction, events: &Events) -> Result<(), RegistryError> {
    let loading = || RegistryError::Busy("the model is not loaded yet".to_owned());
    let failed = |error: StoreError| {
        let error = std::io::Error::other(error);
        RegistryError::Io("the folder of kept pages".into(), "use", error)
    };
    let count = match action {
        PageAction::Show => {
            let (pages, bytes) = workers.kept_pages().ok_or_else(loading)?.map_err(failed)?;
            send(events, Event::Pages(pages, bytes));
            pages
        }
        PageAction::Erase => {
            let erased = workers.erase_pages().ok_or_else(loading)?;
            let erased = erased.map_err(failed)?;
            crate::event!(DataErased, erased, "pages of keys and values erased");
            erased
        }
    };
    let count = saturated(count);
    send(events, Event::Done { count });
    Ok(())
}

/// Has the configuration read again, and says what became of each key.
fn read_again(reload: &Reload, events: &Events) -> Result<(), RegistryError> {
    let say = |outcome, text: String| send(events, Event::Reloaded(outcome, text));
    match reload.run() {
        Ok(Reloaded { live, restart }) => {
            let count = saturated(live.len());
            for key in live {
                say(ReloadOutcome::Live, key);
            }
            for key in restart {
                say(ReloadOutcome::Restart, key);
            }
            send(events, Event::Done { count });
            Ok(())
        }
        Err(problems) => {
            for problem in problems.iter() {
                say(ReloadOutcome::Problem, problem.to_string());
            }
            Err(RegistryError::Invalid(format!(
                "the configuration has problems ({}); nothing was changed",
                problems.len()
            )))
        }
    }
}

fn show(registry: &Registry, name: &str, events: &Events) -> Result<(), RegistryError> {
    let mut model = registry.find(name)?;
    let mut text = std::mem::take(&mut model.text);
    let active = registry.is_active(&model.name);
    send(events, Event::Stored(Box::new(model), active));
    while !text.is_empty() {
        let rest = text.split_off(shorten(&text, CHUNK_TEXT_BYTES_MAX).len());
        send(events, Event::Text(text));
        text = rest;
    }
    send(events, Event::Done { count: 1 });
    Ok(())
}

/// Turns what a thread says into frames.
async fn pass_on(id: RequestId, outgoing: Outgoing, mut said: mpsc::Receiver<Event>) {
    let mut last = None;
    loop {
        let event = match timeout(REPEAT_INTERVAL, said.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(_) => match last {
                Some((stage, bytes, total)) => Event::Progress(stage, bytes, total),
                None => continue,
            },
        };
        if let Event::Progress(stage, bytes, total) = event {
            last = Some((stage, bytes, total));
        }
        let alive = match &event {
            Event::Failed(error) => {
                tracing::info!(%error, "an operation on a model failed");
                let message = error.to_string();
                outgoing
                    .error(Some(id.clone()), error.code(), &message, None)
                    .await
            }
            event => match frame(&id, event) {
                Some(frame) => outgoing.send(&frame).await,
                None => {
                    let message = "a name that is none";
                    outgoing
                        .error(Some(id.clone()), ErrorCode::Internal, message, None)
                        .await
                }
            },
        };
        let over = matches!(
            event,
            Event::Failed(_) | Event::Added { .. } | Event::Erased(_) | Event::Done { .. }
        );
        // What comes next from the client may begin another operation.
        if over || !alive {
            return;
        }
    }
    // A client that went away in the middle hears nothing; anybody else is told that there is no more to come.
    outgoing
        .error(Some(id), ErrorCode::Internal, "it was left undone", None)
        .await;
}

/// The frame for an event; `None` when a name is none, which the registry's own rules exclude.
fn frame<'a>(id: &RequestId, event: &'a Event) -> Option<ServerFrame<'a>> {
    let id = id.clone();
    Some(match event {
        Event::Ready { weights } => ServerFrame::AddReady(AddReady {
            id,
            weights: *weights,
        }),
        Event::Progress(stage, bytes, total) => ServerFrame::ModelProgress(ModelProgress {
            id,
            stage: *stage,
            bytes: *bytes,
            bytes_total: *total,
        }),
        Event::Stored(model, active) => {
            let manifest = &model.manifest;
            ServerFrame::StoredModel(StoredModel {
                id,
                name: ModelName::new(&model.name).ok()?,
                architecture: &manifest.architecture,
                quantization: &manifest.quantization,
                license: manifest
                    .license
                    .as_ref()
                    .map_or("", |text| shorten(text, LABEL_BYTES_MAX)),
                bytes: manifest.bytes(),
                added_s: model.added_s,
                sha256: manifest
                    .weights()
                    .next()
                    .map_or(Digest([0; 32]), |member| member.sha256),
                active: *active,
            })
        }
        Event::Packed(packed) => ServerFrame::StoredPack(StoredPack {
            id,
            name: ModelName::new(&packed.name).ok()?,
            bytes: packed.bytes,
        }),
        Event::Signed {
            name,
            found,
            key,
            verity,
        } => ServerFrame::StoredSignature(StoredSignature {
            id,
            name: ModelName::new(name).ok()?,
            state: found.state,
            key,
            verity: *verity,
        }),
        Event::Served(model) => ServerFrame::ServedModel(ServedModel {
            id,
            name: shorten(&model.name, LABEL_BYTES_MAX),
            model: shorten(model.model.as_deref().unwrap_or_default(), LABEL_BYTES_MAX),
            former: shorten(model.former.as_deref().unwrap_or_default(), LABEL_BYTES_MAX),
            residence: match model.state {
                Residence::Kept => ModelResidence::Kept,
                Residence::Loading => ModelResidence::Loading,
                Residence::Loaded => ModelResidence::Loaded,
                Residence::Leaving => ModelResidence::Leaving,
                Residence::Failed => ModelResidence::Failed,
            },
            default: model.default,
            pinned: model.pinned,
            probation: model.probation,
            memory_bytes: model.bytes,
        }),
        Event::Corpus(facts) => ServerFrame::StoredCorpus(StoredCorpus {
            id,
            task: shorten(&facts.task, LABEL_BYTES_MAX),
            client: shorten(&facts.client, CHUNK_TEXT_BYTES_MAX),
            local: facts.local,
            tokens: saturated(facts.tokens),
        }),
        Event::Erased(erased) => ServerFrame::CorpusErased(CorpusErased {
            id,
            count: saturated(erased.count),
            shared: saturated(erased.shared),
        }),
        Event::Kept(facts) => ServerFrame::KeptRequest(facts.frame(id)),
        Event::Pages(pages, bytes) => ServerFrame::StoredPages(StoredPages {
            id,
            pages: saturated(*pages),
            bytes: *bytes,
        }),
        Event::Reloaded(outcome, text) => ServerFrame::Reloaded(WireReloaded {
            id,
            outcome: *outcome,
            text: shorten(text, FAULT_MESSAGE_BYTES_MAX),
        }),
        Event::Text(text) => ServerFrame::ModelText(ModelText { id, text }),
        Event::Added {
            name,
            bytes,
            present,
        } => ServerFrame::ModelAdded(ModelAdded {
            id,
            name: ModelName::new(name).ok()?,
            bytes: *bytes,
            present: *present,
        }),
        Event::Done { count } => ServerFrame::ModelDone(ModelDone { id, count: *count }),
        Event::Failed(_) => return None,
    })
}
