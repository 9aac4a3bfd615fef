//! The command `model`: hands models to the daemon and looks after those it keeps.
//!
//! The daemon may not read users' folders, so the bytes go over its socket. One thread sends while this one
//! listens: a daemon that finds the model wanting says so in the middle, and then the sending ends.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use andon_wire::limits::{CLIENT_FRAME_BYTES_MAX, MODEL_DATA_BYTES_MAX};
use andon_wire::manifest::Role;
use andon_wire::{
    AddModel, AddSigned, Bytes, ClientFrame, HEADER_BYTES, ModelAction, ModelAdded, ModelData,
    ModelName, ModelStage, ModelTask, RequestId, ServerFrame, SignatureState, SwapModel,
};
use serde::Serialize;

use crate::arguments::models::{ModelAdd, ModelCommand, StoredName};
use crate::ask::fresh_id;
use crate::connection::{Connection, unexpected, write};
use crate::failure::Failure;
use crate::output::Output;
use crate::parcel::{Extras, Parcel};
use crate::progress::Progress;
use crate::report::{json, size};

/// Longest silence of a daemon that is at work on a model; it gives a sign of life every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// The command `model`.
pub(crate) fn run(
    socket: &Path,
    command: &ModelCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        ModelCommand::Add(options) => add(socket, options, output),
        ModelCommand::Ls(options) => ls(socket, options.json, output),
        ModelCommand::Show(options) => show(socket, &options.name, output),
        ModelCommand::Rm(options) => {
            named(socket, ModelAction::Remove(name(&options.name)?), "remove")
        }
        ModelCommand::Verify(options) => {
            named(socket, ModelAction::Verify(name(&options.name)?), "verify")
        }
        ModelCommand::Pack(options) => {
            named(socket, ModelAction::Pack(name(&options.name)?), "pack")
        }
        ModelCommand::Unpack(options) => {
            named(socket, ModelAction::Unpack(name(&options.name)?), "unpack")
        }
        ModelCommand::Load(options) => {
            named(socket, ModelAction::Load(name(&options.name)?), "load")
        }
        ModelCommand::Unload(options) => {
            named(socket, ModelAction::Unload(name(&options.name)?), "unload")
        }
        ModelCommand::Swap(options) => {
            let swap = SwapModel {
                model: name(&options.name)?,
                name: options.place.as_ref().map(name).transpose()?,
                unload_first: options.unload_first,
            };
            named(socket, ModelAction::Swap(swap), "swap")
        }
        ModelCommand::Rollback(options) => {
            let place = options.place.as_ref().map(name).transpose()?;
            named(socket, ModelAction::Rollback(place), "roll back")
        }
    }
}

fn name(name: &StoredName) -> Result<ModelName, Failure> {
    ModelName::new(&name.0).map_err(|error| Failure::Usage(format!("the name: {error}")))
}

fn add(socket: &Path, options: &ModelAdd, output: &mut Output) -> Result<(), Failure> {
    let extras = Extras {
        name: options.name.as_ref().map(|name| name.0.clone()),
        ..Extras::default()
    };
    // The daemon is asked only when there is something to hand over.
    let parcel = Parcel::open(&options.model, extras)?;
    let id = fresh_id(0)?;
    let mut connection = Connection::open(socket)?;
    connection.wait_at_most(Some(SILENCE_MAX))?;
    let named = options.name.as_ref().map(name).transpose()?;
    match parcel.signatures.as_ref().map(ToString::to_string) {
        Some(signatures) => connection.send(&ClientFrame::AddSigned(AddSigned {
            id: id.clone(),
            name: named,
            manifest: &parcel.text,
            signatures: &signatures,
        }))?,
        None => connection.send(&ClientFrame::AddModel(AddModel {
            id: id.clone(),
            name: named,
            manifest: &parcel.text,
        }))?,
    }
    let begun = loop {
        match connection.receive()? {
            ServerFrame::AddReady(ready) if ready.id == id => break Ok(ready.weights),
            ServerFrame::ModelProgress(progress) if progress.id == id => {}
            ServerFrame::ModelAdded(added) if added.id == id => break Err(added),
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("model")),
        }
    };
    let weights = match begun {
        Ok(weights) => weights,
        Err(present) => return said(&mut connection, &present, output),
    };
    let mut stream = connection.stream()?;
    let stop = AtomicBool::new(false);
    let added = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let outcome = send(&mut stream, &parcel, &id, weights, &stop);
            if outcome.is_err() {
                // The daemon sees the end and drops what it has; the listening thread sees it too. Nothing
                // is left to be done where it fails.
                drop(stream.shutdown(Shutdown::Both));
            }
            outcome
        });
        let heard = listen(&mut connection, &id, &parcel.manifest.name);
        stop.store(true, Ordering::Relaxed);
        if matches!(heard, Err(Failure::Lost(_))) {
            // A daemon that refuses the model takes what is still on its way; one that hangs takes nothing any more,
            // and the sending thread would wait for it for ever.
            connection.close();
        }
        let sent = sending
            .join()
            .unwrap_or_else(|_| Err(Failure::Lost("the sending thread failed".to_owned())));
        match (heard, sent) {
            // A file that cannot be read is the reason; the lost connection is what followed.
            (Err(Failure::Lost(_)), Err(sent)) => Err(sent),
            (heard, _) => heard,
        }
    })?;
    said(&mut connection, &added, output)
}

/// Takes in what the daemon says until the model is registered or refused.
fn listen(connection: &mut Connection, id: &RequestId, name: &str) -> Result<ModelAdded, Failure> {
    let progress = Progress::bytes(name, Some(0));
    let mut stage = None;
    loop {
        match connection.receive()? {
            ServerFrame::ModelProgress(now) if now.id == *id => {
                if stage != Some(now.stage) {
                    stage = Some(now.stage);
                    progress.now(&format!("{name} ({})", now.stage.as_str()));
                }
                if now.stage == ModelStage::Receiving {
                    progress.length(now.bytes_total);
                }
                progress.at(now.bytes);
            }
            ServerFrame::ModelAdded(added) if added.id == *id => return Ok(added),
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("model")),
        }
    }
}

/// Sends the members' bytes, one after the other.
fn send(
    stream: &mut UnixStream,
    parcel: &Parcel,
    id: &RequestId,
    weights: bool,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let mut piece = vec![0; MODEL_DATA_BYTES_MAX];
    let mut buffer = vec![0; HEADER_BYTES + CLIENT_FRAME_BYTES_MAX];
    for (member, place) in parcel.manifest.members.iter().zip(&parcel.places) {
        if member.role == Role::Weights && !weights {
            continue;
        }
        let mut reader = place.open()?;
        let mut left = member.bytes;
        while left > 0 {
            let count = match reader.read(&mut piece) {
                Ok(0) => return Err(crate::parcel::damaged(&place.path, "it became shorter")),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::file("read", &place.path, error)),
            };
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let data = ModelData {
                id: id.clone(),
                bytes: Bytes(piece.get(..count).unwrap_or_default()),
            };
            write(stream, &ClientFrame::ModelData(data), &mut buffer)?;
            left = left.saturating_sub(count as u64);
        }
    }
    Ok(())
}

fn said(
    connection: &mut Connection,
    added: &ModelAdded,
    output: &mut Output,
) -> Result<(), Failure> {
    let name = &added.name;
    let what = if added.present {
        "was there before, with the same digests"
    } else {
        "checked, tried and registered"
    };
    output.text(&format!("{name}\n"))?;
    eprintln!("andonctl: {name} ({}) {what}", size(added.bytes));
    if is_active(connection, name)? {
        eprintln!("andonctl: it is the one that [model] of andond.toml names");
    } else {
        eprintln!(
            "andonctl: to have it answer in place of the present one: andonctl model swap {name}; or write name = \"{name}\" and no path into [model] of andond.toml, and restart \
             andond"
        );
    }
    Ok(())
}

/// Whether the daemon serves, or is about to serve, the model `name`.
fn is_active(connection: &mut Connection, name: &ModelName) -> Result<bool, Failure> {
    let id = fresh_id(1)?;
    let task = ModelTask {
        id: id.clone(),
        action: ModelAction::Show(name.clone()),
    };
    connection.send(&ClientFrame::ModelTask(task))?;
    match connection.receive()? {
        ServerFrame::StoredModel(model) if model.id == id => Ok(model.active),
        ServerFrame::Error(fault) => Err(Failure::from(&fault)),
        _ => Err(unexpected("question for a model")),
    }
}

/// What `ls --json` prints.
#[derive(Serialize)]
struct Line {
    name: String,
    architecture: String,
    quantization: String,
    license: String,
    bytes: u64,
    added_s: u64,
    sha256: String,
    active: bool,
    /// Bytes of its packed weights, which are beside those of the model.
    packed_bytes: Option<u64>,
    /// What the daemon finds of its signatures: unsigned, unchecked, unknown, good or bad.
    signature: Option<&'static str>,
    /// Id of the key that this is about.
    key: Option<String>,
    /// Whether the kernel keeps its weights from changing (fs-verity).
    verity: Option<bool>,
    /// Whether it is loaded: `kept` if it is not.
    state: Option<String>,
    /// The other names that it answers to.
    answers_to: Vec<String>,
}

fn ls(socket: &Path, as_json: bool, output: &mut Output) -> Result<(), Failure> {
    let mut connection = Connection::open(socket)?;
    let mut lines = models(&mut connection)?;
    // A daemon that is older than a question ends the connection, and does nothing of what that is about.
    let packs = packs(&mut connection).unwrap_or_default();
    let signed = signatures(&mut connection).unwrap_or_default();
    let served = served(&mut connection).ok();
    for line in &mut lines {
        line.packed_bytes = packs.get(&line.name).copied();
        if let Some((state, key, verity)) = signed.get(&line.name) {
            line.signature = Some(state.as_str());
            line.key = Some(key.clone()).filter(|key| !key.is_empty());
            line.verity = Some(*verity);
        }
        line.state = served.as_ref().map(|_| "kept".to_owned());
        for (name, model, state) in served.iter().flatten() {
            if *model == line.name {
                line.state = Some(state.clone());
                if name != model {
                    line.answers_to.push(name.clone());
                }
            }
        }
        if as_json {
            json(output, line)?;
        } else {
            output.text(&line.to_string())?;
        }
    }
    if lines.is_empty() && !as_json {
        output.text("no models are kept\n")?;
    }
    Ok(())
}

/// The models that are kept.
fn models(connection: &mut Connection) -> Result<Vec<Line>, Failure> {
    let id = fresh_id(0)?;
    let task = ModelTask {
        id: id.clone(),
        action: ModelAction::List,
    };
    connection.send(&ClientFrame::ModelTask(task))?;
    let mut lines = Vec::new();
    loop {
        match connection.receive()? {
            ServerFrame::StoredModel(model) if model.id == id => lines.push(Line {
                name: model.name.as_str().to_owned(),
                architecture: model.architecture.to_owned(),
                quantization: model.quantization.to_owned(),
                license: model.license.to_owned(),
                bytes: model.bytes,
                added_s: model.added_s,
                sha256: model.sha256.to_string(),
                active: model.active,
                packed_bytes: None,
                signature: None,
                key: None,
                verity: None,
                state: None,
                answers_to: Vec::new(),
            }),
            ServerFrame::ModelDone(done) if done.id == id => return Ok(lines),
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("question for the models")),
        }
    }
}

/// The names that requests may say, each with the model that answers and whether that is loaded.
fn served(connection: &mut Connection) -> Result<Vec<(String, String, String)>, Failure> {
    let id = fresh_id(2)?;
    let task = ModelTask {
        id: id.clone(),
        action: ModelAction::Served,
    };
    connection.send(&ClientFrame::ModelTask(task))?;
    let mut served = Vec::new();
    loop {
        match connection.receive()? {
            ServerFrame::ServedModel(model) if model.id == id => {
                let answers = match model.model {
                    "" => model.name,
                    other => other,
                };
                served.push((
                    model.name.to_owned(),
                    answers.to_owned(),
                    model.residence.as_str().to_owned(),
                ));
            }
            ServerFrame::ModelDone(done) if done.id == id => return Ok(served),
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("question for the models")),
        }
    }
}

/// Bytes of the packed weights, by the names of their models.
fn packs(connection: &mut Connection) -> Result<BTreeMap<String, u64>, Failure> {
    let id = fresh_id(1)?;
    let task = ModelTask {
        id: id.clone(),
        action: ModelAction::Packs,
    };
    connection.send(&ClientFrame::ModelTask(task))?;
    let mut packs = BTreeMap::new();
    loop {
        match connection.receive()? {
            ServerFrame::StoredPack(pack) if pack.id == id => {
                packs.insert(pack.name.as_str().to_owned(), pack.bytes);
            }
            ServerFrame::ModelDone(done) if done.id == id => return Ok(packs),
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("question for the packs")),
        }
    }
}

/// What the daemon finds of signatures, by the names of models: state, key, and whether fs-verity is on.
fn signatures(
    connection: &mut Connection,
) -> Result<BTreeMap<String, (SignatureState, String, bool)>, Failure> {
    let id = fresh_id(2)?;
    let task = ModelTask {
        id: id.clone(),
        action: ModelAction::Signatures,
    };
    connection.send(&ClientFrame::ModelTask(task))?;
    let mut signed = BTreeMap::new();
    loop {
        match connection.receive()? {
            ServerFrame::StoredSignature(found) if found.id == id => {
                let what = (found.state, found.key.to_owned(), found.verity);
                signed.insert(found.name.as_str().to_owned(), what);
            }
            ServerFrame::ModelDone(done) if done.id == id => return Ok(signed),
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("question for signatures")),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let license = match self.license.as_str() {
            "" => "license not stated",
            license => license,
        };
        writeln!(
            f,
            "{:<32}  {:<8}  {:<8}  {:>10}  {license}{}{}{}{}{}{}",
            self.name,
            self.architecture,
            self.quantization,
            size(self.bytes),
            self.packed_bytes.map_or("", |_| "  packed"),
            match (self.signature, &self.key) {
                (Some("good"), Some(key)) => format!("  signed by {key}"),
                (Some("unknown"), Some(key)) => format!("  signed by {key}, which is not trusted"),
                (Some("bad"), _) => "  SIGNATURE IS BAD".to_owned(),
                (Some("unchecked"), _) => "  signed, unchecked".to_owned(),
                _ => String::new(),
            },
            self.verity.filter(|on| *on).map_or("", |_| "  verity"),
            match self.state.as_deref() {
                None | Some("kept") => String::new(),
                Some(state) => format!("  {state}"),
            },
            if self.active { "  active" } else { "" },
            match self.answers_to.as_slice() {
                [] => String::new(),
                names => format!("  answers to {}", names.join(", ")),
            },
        )
    }
}

fn show(socket: &Path, stored: &StoredName, output: &mut Output) -> Result<(), Failure> {
    let id = fresh_id(0)?;
    let mut connection = Connection::open(socket)?;
    let task = ModelTask {
        id: id.clone(),
        action: ModelAction::Show(name(stored)?),
    };
    connection.send(&ClientFrame::ModelTask(task))?;
    loop {
        match connection.receive()? {
            // The manifest says all of it, and more.
            ServerFrame::StoredModel(model) if model.id == id => {}
            ServerFrame::ModelText(piece) if piece.id == id => output.text(piece.text)?,
            ServerFrame::ModelDone(done) if done.id == id => return output.end_line(),
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("question for a model")),
        }
    }
}

/// An action that is answered by its end only.
fn named(socket: &Path, action: ModelAction, what: &str) -> Result<(), Failure> {
    let id = fresh_id(0)?;
    let mut connection = Connection::open(socket)?;
    connection.wait_at_most(Some(SILENCE_MAX))?;
    let task = ModelTask {
        id: id.clone(),
        action,
    };
    connection.send(&ClientFrame::ModelTask(task))?;
    let progress = Progress::bytes(what, Some(0));
    loop {
        match connection.receive()? {
            ServerFrame::ModelProgress(now) if now.id == id => {
                progress.length(now.bytes_total);
                progress.at(now.bytes);
            }
            ServerFrame::ModelDone(done) if done.id == id => return Ok(()),
            ServerFrame::Error(fault) => return Err(Failure::from(&fault)),
            _ => return Err(unexpected("model")),
        }
    }
}
