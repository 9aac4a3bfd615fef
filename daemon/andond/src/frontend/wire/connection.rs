//! One connection of the compact socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use andon_os::Peer;
use andon_wire::limits::{
    CHUNK_TEXT_BYTES_MAX, CLIENT_FRAME_BYTES_MAX, FAULT_MESSAGE_BYTES_MAX, SERVER_FRAME_BYTES_MAX,
    VECTOR_PIECE_BYTES_MAX,
};
use andon_wire::{
    Accepted, AddModel, AddSigned, Cancelled, Chunk, ClientFrame, DecodeError, ELEMENT_BYTES,
    ErrorCode, Fault as WireFault, FrameReader, HEADER_BYTES, ModelData, ModelName, Models,
    PROTOCOL_VERSION, ReadError, RequestId, ServerFrame, VectorPiece, Welcome, shorten,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::backends;
use super::convert::{self, StatusTexts};
use super::models::ModelDesk;
use crate::access::Caller;
use crate::fault::{Fault, FaultCode};
use crate::frontend::Context;
use crate::health;
use crate::registry::may_change;
use crate::request::{Origin, Request};
use crate::worker::{JobEvent, JobStream};
use crate::workers::Named;

/// Frames that may wait for the writer; with the largest frames 512 KiB.
const FRAMES_WAITING_MAX: usize = 64;
/// Longest wait for a client that does not take its frames.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The way to a connection's writer.
#[derive(Debug, Clone)]
pub(super) struct Outgoing(mpsc::Sender<Box<[u8]>>);

impl Outgoing {
    /// Queues a frame. False when the connection is gone.
    pub(super) async fn send(&self, frame: &ServerFrame<'_>) -> bool {
        let mut buffer = [0; SERVER_FRAME_BYTES_MAX + HEADER_BYTES];
        match frame.encode(&mut buffer) {
            Ok(bytes) => self.0.send(bytes.into()).await.is_ok(),
            Err(error) => {
                // All texts are cut to their bounds before, so this is a fault of ours; the connection lives.
                crate::event!(Internal, %error, "a frame cannot be encoded");
                true
            }
        }
    }

    async fn fault(&self, id: Option<RequestId>, fault: &Fault) -> bool {
        let retry_after_ms = fault
            .retry_after
            .map(|after| u32::try_from(after.as_millis()).unwrap_or(u32::MAX));
        self.error(
            id,
            convert::code(fault.code),
            &fault.message,
            retry_after_ms,
        )
        .await
    }

    pub(super) async fn error(
        &self,
        id: Option<RequestId>,
        code: ErrorCode,
        message: &str,
        retry_after_ms: Option<u32>,
    ) -> bool {
        self.send(&ServerFrame::Error(WireFault {
            id,
            code,
            message: shorten(message, FAULT_MESSAGE_BYTES_MAX),
            retry_after_ms,
        }))
        .await
    }
}

/// Serves one connection until it ends.
pub(super) async fn serve(context: Context, stream: UnixStream, peer: Arc<Peer>) {
    let (reader, writer) = stream.into_split();
    let (sender, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
    let writer = write(writer, receiver);
    let reader = async {
        let outgoing = Outgoing(sender);
        let caller = Caller::User(Arc::clone(&peer));
        let mut connection = Connection {
            client: caller.name(),
            caller,
            models: ModelDesk::new(context.clone(), outgoing.clone(), Arc::clone(&peer)),
            peer,
            context,
            outgoing,
            asks: JoinSet::new(),
            welcomed: false,
        };
        connection.read(reader).await;
        // Dropping the tasks drops their jobs' streams, which cancels the jobs. Dropping the sender ends the
        // writer once it has written what is queued.
    };
    // When the writer ends first, its client is gone: dropping the reader cancels everything.
    tokio::pin!(writer);
    tokio::select! {
        () = reader => writer.await,
        () = &mut writer => {}
    }
}

async fn write(mut stream: OwnedWriteHalf, mut frames: mpsc::Receiver<Box<[u8]>>) {
    while let Some(frame) = frames.recv().await {
        match timeout(WRITE_TIMEOUT, stream.write_all(&frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

struct Connection {
    context: Context,
    peer: Arc<Peer>,
    caller: Caller,
    /// The caller's name.
    client: Arc<str>,
    outgoing: Outgoing,
    asks: JoinSet<()>,
    models: ModelDesk,
    welcomed: bool,
}

/// What reading brought.
enum Came {
    Bytes(usize),
    End,
    Late,
    Broken(io::Error),
    /// The daemon stops and nothing is in flight.
    Over,
}

impl Connection {
    async fn read(&mut self, mut stream: tokio::net::unix::OwnedReadHalf) {
        // The pages of the buffer are touched only as far as frames are long.
        let buffer = vec![0; CLIENT_FRAME_BYTES_MAX + HEADER_BYTES];
        let mut frames = FrameReader::new(buffer, CLIENT_FRAME_BYTES_MAX);
        let mut unread = 0usize;
        loop {
            match self.wait(&mut stream, frames.space(), unread > 0).await {
                Came::Bytes(count) => {
                    unread += count;
                    if let Err(error) = frames.filled(count) {
                        return self.broken(&error).await;
                    }
                }
                Came::End => {
                    if let Err(error) = frames.finish() {
                        self.broken(&error).await;
                    }
                    return;
                }
                Came::Late => {
                    self.malformed("late");
                    let message = "the frame did not arrive in time";
                    self.outgoing
                        .error(None, ErrorCode::InvalidRequest, message, None)
                        .await;
                    return;
                }
                Came::Broken(error) => {
                    tracing::debug!(%error, "a connection broke");
                    return;
                }
                Came::Over => return,
            }
            loop {
                match frames.next_payload() {
                    Ok(Some(payload)) => {
                        unread = unread.saturating_sub(payload.len() + HEADER_BYTES);
                        if !self.handle(payload).await {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return self.broken(&error).await,
                }
            }
        }
    }

    /// Waits for bytes. A frame that has begun, and the first one, must come in time.
    async fn wait(
        &mut self,
        stream: &mut tokio::net::unix::OwnedReadHalf,
        space: &mut [u8],
        begun: bool,
    ) -> Came {
        let limit = Duration::from_millis(self.context.config().wire.frame_timeout_ms);
        let hurried = begun || !self.welcomed;
        let late = tokio::time::sleep(limit);
        tokio::pin!(late);
        loop {
            let stopping = self.context.stopping.is_cancelled();
            if stopping && self.asks.is_empty() {
                return Came::Over;
            }
            tokio::select! {
                read = stream.read(space) => {
                    return match read {
                        Ok(0) => Came::End,
                        Ok(count) => Came::Bytes(count),
                        Err(error) => Came::Broken(error),
                    };
                }
                () = &mut late, if hurried => return Came::Late,
                _ = self.asks.join_next(), if !self.asks.is_empty() => {}
                () = self.context.stopping.cancelled(), if !stopping => {}
            }
        }
    }

    async fn broken(&self, error: &ReadError) {
        let code = match error {
            ReadError::Frame(error) => decode_code(error),
            ReadError::Truncated { .. } | ReadError::Overfilled => ErrorCode::InvalidRequest,
        };
        self.malformed("no frame");
        self.outgoing
            .error(None, code, &error.to_string(), None)
            .await;
    }

    /// Handles one payload. False when the connection is to be closed.
    async fn handle(&mut self, payload: &[u8]) -> bool {
        let frame = match ClientFrame::decode(payload) {
            Ok(frame) => frame,
            Err(error) => {
                self.malformed("no frame");
                let code = decode_code(&error);
                self.outgoing
                    .error(None, code, &error.to_string(), None)
                    .await;
                return false;
            }
        };
        // Rules may have changed since the hello. Requests are looked at where they are handed over; whoever may ask nothing
        // any more may still cancel, and finish what it was let begin.
        let goes_on = matches!(
            frame,
            ClientFrame::Hello(_)
                | ClientFrame::Ask(_)
                | ClientFrame::Embed(_)
                | ClientFrame::Cancel(_)
                | ClientFrame::ModelData(_)
        );
        if self.welcomed
            && !goes_on
            && let Err(fault) = self.let_in().await
        {
            // The connection stays for the answers to what was granted before.
            return self.outgoing.fault(id_of(&frame), &fault).await;
        }
        match frame {
            ClientFrame::Hello(_) if self.welcomed => self.out_of_order("a second hello").await,
            ClientFrame::Hello(_) => {
                if let Err(fault) = self.let_in().await {
                    self.outgoing.fault(None, &fault).await;
                    return false;
                }
                self.welcomed = true;
                let gateway = self.context.config().gateway.name();
                self.outgoing
                    .send(&ServerFrame::Welcome(Welcome {
                        version: PROTOCOL_VERSION,
                        software: convert::SOFTWARE,
                        gateway: &gateway,
                        frame_bytes_max: u32::try_from(CLIENT_FRAME_BYTES_MAX).unwrap_or(u32::MAX),
                        requests_max: u16::try_from(self.context.config().wire.requests_max)
                            .unwrap_or(u16::MAX),
                    }))
                    .await
            }
            _ if !self.welcomed => self.out_of_order("the first frame must be a hello").await,
            ClientFrame::Ask(ask) => {
                let request = convert::request(&ask, &self.client);
                self.ask(ask.id, request).await
            }
            ClientFrame::Embed(embed) => {
                let request = convert::embed(&embed, &self.client);
                self.ask(embed.id, request).await
            }
            ClientFrame::ExplainRoute(ask) => {
                let request = convert::request(&ask, &self.client);
                self.explain(ask.id, request).await
            }
            ClientFrame::Cancel(cancel) => {
                let found =
                    self.context
                        .router
                        .cancel(Origin::Wire, &self.client, cancel.id.as_str());
                self.outgoing
                    .send(&ServerFrame::Cancelled(Cancelled {
                        id: cancel.id,
                        found,
                    }))
                    .await
            }
            ClientFrame::Status => {
                let texts = StatusTexts::gather(&self.context);
                self.outgoing
                    .send(&ServerFrame::Status(texts.status(&self.context)))
                    .await
            }
            ClientFrame::Models => {
                let named = self.context.workers.list();
                let (loaded, kept): (Vec<&Named>, Vec<&Named>) =
                    named.iter().partition(|model| model.facts.is_some());
                let mut models = Models::default();
                for entry in loaded
                    .into_iter()
                    .chain(kept)
                    .filter_map(convert::model_entry)
                {
                    // As many as the frame has room for; `ModelAction::Served` tells of all.
                    if models.models.push(entry).is_err() {
                        break;
                    }
                }
                self.outgoing.send(&ServerFrame::Models(models)).await
            }
            ClientFrame::AddModel(ask) => self.models.add(&ask, None).await,
            ClientFrame::AddSigned(ask) => {
                let AddSigned {
                    id,
                    name,
                    manifest,
                    signatures,
                } = ask;
                let ask = AddModel { id, name, manifest };
                self.models.add(&ask, Some(signatures)).await
            }
            ClientFrame::ModelData(data) => self.model_data(&data).await,
            ClientFrame::ModelTask(task) => self.models.task(task).await,
            ClientFrame::CorpusTask(task) => self.models.corpora(&task).await,
            ClientFrame::SpoolTask(task) => self.models.spool(&task).await,
            ClientFrame::PageTask(task) => self.models.pages(task).await,
            ClientFrame::Reload(ask) => self.models.reload(ask.id).await,
            ClientFrame::Health => {
                let health = health::health(&self.context);
                self.outgoing.send(&ServerFrame::Health(health)).await
            }
            ClientFrame::Service => {
                let service = convert::service(&self.context);
                self.outgoing.send(&ServerFrame::Service(service)).await
            }
            ClientFrame::Backends => {
                let context = self.context.clone();
                // Opening a device takes a while.
                let described = tokio::task::spawn_blocking(move || backends::describe(&context));
                let described = described.await.unwrap_or_default();
                let frame = ServerFrame::Backends(backends::frame(&described));
                self.outgoing.send(&frame).await
            }
            ClientFrame::Draft => {
                let draft = self.context.workers.status().draft;
                let draft = draft.as_deref().map(convert::draft);
                self.outgoing.send(&ServerFrame::Draft(draft)).await
            }
        }
    }

    /// Whether the caller may ask for anything, or look after models.
    async fn let_in(&self) -> Result<(), Fault> {
        let Err(denied) = self.context.access.rights(&self.caller) else {
            return Ok(());
        };
        let (config, peer) = (self.context.config(), Arc::clone(&self.peer));
        let asked = tokio::task::spawn_blocking(move || may_change(&config.models, &peer).is_ok());
        if asked.await.unwrap_or(false) {
            return Ok(());
        }
        self.caller.note_denied(&denied);
        Err(denied.into())
    }

    async fn model_data(&mut self, data: &ModelData<'_>) -> bool {
        self.models.data(data).await
            || self
                .out_of_order("bytes of a model that is not being added")
                .await
    }

    /// Hands a request over and has its answer written as it comes.
    async fn ask(&mut self, id: RequestId, request: Result<Request, Fault>) -> bool {
        match request.and_then(|request| self.submit(request)) {
            Ok((job, stream, model)) => {
                let answer = Answer {
                    id,
                    outgoing: self.outgoing.clone(),
                    context: self.context.clone(),
                    stream,
                    model,
                    attempt: 1,
                    sent: 0,
                };
                self.asks.spawn(answer.run(job));
                true
            }
            Err(fault) => self.outgoing.fault(Some(id), &fault).await,
        }
    }

    /// Says where a request would be answered.
    async fn explain(&self, id: RequestId, request: Result<Request, Fault>) -> bool {
        let router = &self.context.router;
        let explained = request.and_then(|request| router.explain(request, &self.caller));
        match explained {
            Ok(explained) => {
                let frame = convert::explained(id, &explained);
                self.outgoing
                    .send(&ServerFrame::RouteExplained(frame))
                    .await
            }
            Err(fault) => self.outgoing.fault(Some(id), &fault).await,
        }
    }

    /// Counts and logs what no request can be made of.
    fn malformed(&self, fault: &'static str) {
        self.context.telemetry.malformed(Origin::Wire);
        tracing::info!(
            client = &*self.client,
            origin = Origin::Wire.name(),
            fault,
            "a request is refused"
        );
    }

    async fn out_of_order(&self, message: &str) -> bool {
        self.malformed("out of order");
        self.outgoing
            .error(None, ErrorCode::InvalidRequest, message, None)
            .await;
        false
    }

    fn submit(&mut self, request: Request) -> Result<(JobStream, bool, String), Fault> {
        while self.asks.try_join_next().is_some() {}
        let requests_max = self.context.config().wire.requests_max;
        if self.asks.len() >= requests_max {
            let message = format!(
                "{requests_max} requests are open on this connection, the most it may have"
            );
            return Err(Fault::new(FaultCode::Busy, message).retry_after(Duration::from_secs(1)));
        }
        let stream = request.stream;
        let model = self.context.workers.name_of(&request);
        Ok((
            self.context.router.submit(request, &self.caller)?,
            stream,
            model,
        ))
    }
}

/// The id that a frame's answer is to have.
fn id_of(frame: &ClientFrame<'_>) -> Option<RequestId> {
    let id = match frame {
        ClientFrame::Ask(ask) | ClientFrame::ExplainRoute(ask) => &ask.id,
        ClientFrame::Embed(embed) => &embed.id,
        ClientFrame::Cancel(cancel) => &cancel.id,
        ClientFrame::AddModel(ask) => &ask.id,
        ClientFrame::AddSigned(ask) => &ask.id,
        ClientFrame::ModelData(data) => &data.id,
        ClientFrame::ModelTask(task) => &task.id,
        ClientFrame::CorpusTask(task) => &task.id,
        ClientFrame::SpoolTask(task) => &task.id,
        ClientFrame::PageTask(task) => &task.id,
        ClientFrame::Reload(ask) => &ask.id,
        ClientFrame::Hello(_)
        | ClientFrame::Status
        | ClientFrame::Models
        | ClientFrame::Health
        | ClientFrame::Service
        | ClientFrame::Backends
        | ClientFrame::Draft => return None,
    };
    Some(id.clone())
}

fn decode_code(error: &DecodeError) -> ErrorCode {
    match error {
        DecodeError::TooLarge { .. } => ErrorCode::TooLarge,
        DecodeError::Version { .. } => ErrorCode::UnsupportedVersion,
        DecodeError::TooSmall { .. }
        | DecodeError::Checksum { .. }
        | DecodeError::Malformed(_)
        | DecodeError::Trailing { .. } => ErrorCode::InvalidRequest,
    }
}

/// One answer on its way to the writer.
struct Answer {
    id: RequestId,
    outgoing: Outgoing,
    context: Context,
    stream: bool,
    /// The name of the model that was asked.
    model: String,
    /// Which attempt at the answer this is, from 1.
    attempt: u16,
    /// Chunks of it sent.
    sent: u32,
}

impl Answer {
    async fn run(mut self, mut job: JobStream) {
        let mut gathered = String::new();
        while let Some(event) = job.next().await {
            let alive = match event {
                JobEvent::Accepted { .. } => self.accepted().await,
                // Requests that come this way have one answer.
                JobEvent::Started | JobEvent::ChoiceDone { .. } => true,
                JobEvent::Restarted => {
                    gathered.clear();
                    if self.sent > 0 {
                        (self.sent, self.attempt) = (0, self.attempt.saturating_add(1));
                    }
                    true
                }
                JobEvent::Vectors(vectors) => self.vector(&vectors.values).await,
                JobEvent::Chunk(chunk) if self.stream => self.text(&chunk.text).await,
                JobEvent::Chunk(chunk) => {
                    gathered.push_str(&chunk.text);
                    true
                }
                JobEvent::Done(done) => {
                    self.text(&gathered).await;
                    let name = done.model.as_deref().unwrap_or(&self.model);
                    match ModelName::new(shorten(name, ModelName::BYTES_MAX)) {
                        Ok(model) => {
                            let mut done = convert::done(self.id.clone(), model, self.sent, &done);
                            done.attempt = self.attempt;
                            self.outgoing.send(&ServerFrame::Done(done)).await
                        }
                        // The configuration's check lets no such name through.
                        Err(error) => {
                            let message = format!("the model's name: {error}");
                            self.outgoing
                                .fault(
                                    Some(self.id.clone()),
                                    &Fault::new(FaultCode::Internal, message),
                                )
                                .await
                        }
                    }
                }
                JobEvent::Failed(fault) => self.outgoing.fault(Some(self.id.clone()), &fault).await,
            };
            if !alive {
                return;
            }
        }
    }

    async fn accepted(&self) -> bool {
        let status = self.context.workers.status();
        // Itself is among those that wait, if it still does.
        let before = status.waiting.saturating_sub(1);
        self.outgoing
            .send(&ServerFrame::Accepted(Accepted {
                id: self.id.clone(),
                queue_position: u32::try_from(before).unwrap_or(u32::MAX),
            }))
            .await
    }

    /// The one vector that a frame can ask for.
    async fn vector(&mut self, values: &[f32]) -> bool {
        let dimensions = u32::try_from(values.len()).unwrap_or(u32::MAX);
        for piece in values.chunks(VECTOR_PIECE_BYTES_MAX / ELEMENT_BYTES) {
            let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
            let piece = VectorPiece {
                id: self.id.clone(),
                sequence: self.sent,
                dimensions,
                bytes: &bytes,
            };
            if !self.outgoing.send(&ServerFrame::Vector(piece)).await {
                return false;
            }
            self.sent = self.sent.saturating_add(1);
        }
        true
    }

    async fn text(&mut self, mut text: &str) -> bool {
        while !text.is_empty() {
            let piece = shorten(text, CHUNK_TEXT_BYTES_MAX);
            let chunk = Chunk {
                id: self.id.clone(),
                attempt: self.attempt,
                sequence: self.sent,
                text: piece,
            };
            if !self.outgoing.send(&ServerFrame::Chunk(chunk)).await {
                return false;
            }
            self.sent = self.sent.saturating_add(1);
            text = text.get(piece.len()..).unwrap_or_default();
        }
        true
    }
}
