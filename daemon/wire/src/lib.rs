//! The words andon's programs exchange: requests, replies, limits, frames, topics.
//!
//! Everything here is data and the rules of that data. The crate opens no socket, reads no clock,
//! allocates nothing and needs no standard library, so a client on a small machine can use it as
//! it is. `README.md` beside the sources describes the same protocol byte by byte for clients
//! written in other languages.
//!
//! Invariant: a value that decoded, or that a constructor returned, keeps the limits of
//! [`limits`] that its type states; the limits that span several fields of a request are checked
//! by [`Ask::check`].
#![no_std]
#![forbid(unsafe_code)]

pub mod limits;
pub mod manifest;
pub mod signature;
pub mod tensors;
pub mod topic;
pub mod verity;

mod ask;
mod backend;
mod embed;
mod frame;
mod guess;
mod health;
mod kept;
mod model;
mod name;
mod page;
mod reader;
mod reload;
mod reply;
mod route;
mod service;
mod status;

pub use ask::{
    Ask, AskError, Egress, Input, Message, Priority, Role, Sampling, check_deadline_ms,
    check_input_bytes, check_stops, check_tokens_max,
};
pub use backend::{BackendStatus, Backends};
pub use embed::{ELEMENT_BYTES, Embed, VectorPiece};
pub use frame::{
    CHECKSUM_BYTES, Cancel, ClientFrame, DecodeError, EncodeError, HEADER_BYTES, Hello, Malformed,
    ServerFrame, checksum, payload_bytes, unseal,
};
pub use guess::{CorpusAction, CorpusErased, CorpusTask, DraftStatus, StoredCorpus};
pub use health::{Degraded, HealthStatus, MemoryStatus};
pub use kept::{KeptRequest, SpoolAction, SpoolTask};
pub use model::{
    AddModel, AddReady, AddSigned, Bytes, ModelAction, ModelAdded, ModelData, ModelDone,
    ModelProgress, ModelResidence, ModelStage, ModelTask, ModelText, ServedModel, SignatureState,
    StoredModel, StoredPack, StoredSignature, SwapModel,
};
pub use name::{ClientName, GatewayName, ModelName, NameError, RequestId, TaskName};
pub use page::{PageAction, PageTask, StoredPages};
pub use reader::{FrameReader, ReadError};
pub use reload::{Reload, ReloadOutcome, Reloaded};
pub use reply::{
    Accepted, Cancelled, Chunk, Done, ErrorCode, Fault, Finish, ModelEntry, Models, Origin,
    Timings, Usage, Welcome, shorten,
};
pub use route::{RouteExplained, RoutePart};
pub use service::{SandboxLayer, SandboxStatus, ServiceStatus, SpoolStatus};
pub use status::{
    ModelStatus, MqttLink, MqttStatus, QueueStatus, Readiness, RequestCounters, Speed, Status,
    TokenCounters,
};

/// Version of the protocol that this crate speaks. A change of any frame's bytes raises it.
pub const PROTOCOL_VERSION: u16 = 3;
