//! Frames: how a value becomes bytes on the socket and back.
//!
//! A frame is a `u32`, little-endian, with the number of bytes that follow; then the value in
//! postcard's encoding; then the CRC-32 of that encoding (the one of zlib and Ethernet),
//! little-endian. What follows the length is called the payload.
//!
//! Invariant: no byte is interpreted before the length was held against the bound of its
//! direction and the checksum was right; a payload that decodes was used up to its last byte.
//! Decoding copies names and borrows all longer texts from the payload.

use crc::{CRC_32_ISO_HDLC, Crc, Table};
use serde::{Deserialize, Serialize};

use crate::PROTOCOL_VERSION;
use crate::ask::Ask;
use crate::backend::Backends;
use crate::embed::{Embed, VectorPiece};
use crate::guess::{CorpusErased, CorpusTask, DraftStatus, StoredCorpus};
use crate::health::HealthStatus;
use crate::kept::{KeptRequest, SpoolTask};
use crate::limits::{CLIENT_FRAME_BYTES_MAX, SERVER_FRAME_BYTES_MAX};
use crate::model::{
    AddModel, AddReady, AddSigned, ModelAdded, ModelData, ModelDone, ModelProgress, ModelTask,
    ModelText, ServedModel, StoredModel, StoredPack, StoredSignature,
};
use crate::name::RequestId;
use crate::page::{PageTask, StoredPages};
use crate::reload::{Reload, Reloaded};
use crate::reply::{Accepted, Cancelled, Chunk, Done, Fault, Models, Welcome};
use crate::route::RouteExplained;
use crate::service::ServiceStatus;
use crate::status::Status;

/// Bytes of the length that a frame begins with.
pub const HEADER_BYTES: usize = 4;

/// Bytes of the checksum that a frame ends with.
pub const CHECKSUM_BYTES: usize = 4;

/// Fewest bytes in a payload: the number of the variant and the checksum.
const PAYLOAD_BYTES_MIN: usize = 1 + CHECKSUM_BYTES;

static CRC: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISO_HDLC);

/// First frame of a client on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello<'a> {
    /// Version of the protocol that the client speaks, [`PROTOCOL_VERSION`].
    pub version: u16,
    /// Name and version of the program that asks, such as `andonctl 0.1.0`; may be empty.
    pub software: &'a str,
}

/// Wish to end a request of the same client, on this connection or another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Id of the request.
    pub id: RequestId,
}

/// What a client sends.
// A request lies inside the value because there is no heap to put it on.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ClientFrame<'a> {
    /// Opens the connection; answered by [`ServerFrame::Welcome`].
    #[serde(borrow)]
    Hello(Hello<'a>),
    /// Asks; answered by [`ServerFrame::Accepted`], chunks and [`ServerFrame::Done`].
    Ask(Ask<'a>),
    /// Cancels; answered by [`ServerFrame::Cancelled`].
    Cancel(Cancel),
    /// Asks how the daemon is; answered by [`ServerFrame::Status`].
    Status,
    /// Asks for the models; answered by [`ServerFrame::Models`].
    Models,
    /// Adds a model; answered by [`ServerFrame::AddReady`] or a fault.
    AddModel(AddModel<'a>),
    /// Bytes of the model that is being added; not answered.
    ModelData(ModelData<'a>),
    /// Does something with the models that are kept; [`crate::ModelAction`] says how each is
    /// answered.
    ModelTask(ModelTask),
    /// Asks for the vector of a text; answered by [`ServerFrame::Accepted`], pieces of the vector and
    /// [`ServerFrame::Done`].
    Embed(Embed<'a>),
    /// Does something with the earlier answers that guesses come from; [`crate::CorpusAction`] says how each is answered.
    CorpusTask(CorpusTask<'a>),
    /// Asks for the draft model; answered by [`ServerFrame::Draft`].
    Draft,
    /// Does something with the requests that are kept; [`crate::SpoolAction`] says how each is answered.
    SpoolTask(SpoolTask<'a>),
    /// Does something with what is kept on the disk of prompts; [`crate::PageAction`] says how each is answered.
    PageTask(PageTask),
    /// Adds a model with signatures over its manifest; answered as [`ClientFrame::AddModel`] is.
    AddSigned(AddSigned<'a>),
    /// Asks what is not as it should be; answered by [`ServerFrame::Health`].
    Health,
    /// Asks for the sandbox and the spool; answered by [`ServerFrame::Service`].
    Service,
    /// Has the configuration read again; [`Reload`] says how that is answered.
    Reload(Reload),
    /// Asks where this would be answered, without an answer to it; answered by [`ServerFrame::RouteExplained`] or a fault.
    ExplainRoute(Ask<'a>),
    /// Asks what could compute models and what does; answered by [`ServerFrame::Backends`].
    Backends,
}

/// What a server sends.
// A list of models lies inside the value because there is no heap to put it on.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServerFrame<'a> {
    /// Answers the hello.
    #[serde(borrow)]
    Welcome(Welcome<'a>),
    /// A request was taken.
    Accepted(Accepted),
    /// A piece of an answer.
    Chunk(Chunk<'a>),
    /// The end of an answer.
    Done(Done),
    /// A request or the connection failed.
    Error(Fault<'a>),
    /// How the daemon is.
    Status(Status<'a>),
    /// The models served.
    Models(Models<'a>),
    /// The outcome of a cancel.
    Cancelled(Cancelled),
    /// The bytes of a model may be sent.
    AddReady(AddReady),
    /// An operation on a model goes on.
    ModelProgress(ModelProgress),
    /// A model is registered.
    ModelAdded(ModelAdded),
    /// One of the models that are kept.
    StoredModel(StoredModel<'a>),
    /// A piece of a model's manifest.
    ModelText(ModelText<'a>),
    /// An operation on models is done.
    ModelDone(ModelDone),
    /// A piece of a vector.
    Vector(VectorPiece<'a>),
    /// The packed weights of a model that is kept.
    StoredPack(StoredPack),
    /// Whose earlier answers are kept.
    StoredCorpus(StoredCorpus<'a>),
    /// The draft model; none if the configuration names none, or the model is not loaded yet.
    Draft(Option<DraftStatus<'a>>),
    /// Earlier answers are erased.
    CorpusErased(CorpusErased),
    /// One of the requests that are kept.
    KeptRequest(KeptRequest<'a>),
    /// What is kept on the disk of prompts.
    StoredPages(StoredPages),
    /// What is to be said of the signatures of a model that is kept.
    StoredSignature(StoredSignature<'a>),
    /// What is not as it should be, and memory.
    Health(HealthStatus),
    /// A name that requests may say.
    ServedModel(ServedModel<'a>),
    /// The sandbox and the spool.
    Service(ServiceStatus<'a>),
    /// What became of a key when the configuration was read again.
    Reloaded(Reloaded<'a>),
    /// Where a request would be answered.
    RouteExplained(RouteExplained<'a>),
    /// What could compute models and what does.
    Backends(Backends<'a>),
}

/// Why a frame could not be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The caller's buffer is too small for the frame.
    #[error("the frame does not fit into a buffer of {bytes} bytes")]
    BufferFull {
        /// Bytes of the buffer.
        bytes: usize,
    },
    /// The frame would be larger than the other side takes.
    #[error("the frame would have {bytes} bytes where at most {bytes_max} are allowed")]
    TooLarge {
        /// Bytes of the payload.
        bytes: usize,
        /// Bytes allowed.
        bytes_max: usize,
    },
}

/// What is wrong with an encoding whose checksum was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It ends inside a value.
    Ended,
    /// A number runs on, or is too large for its place.
    Number,
    /// A text is no UTF-8.
    Text,
    /// An unknown variant, an option or truth value that is neither 0 nor 1, too many elements, or
    /// a name that is none.
    Value,
}

impl Malformed {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "it ends inside a value",
            Self::Number => "a number is not well encoded",
            Self::Text => "a text is not UTF-8",
            Self::Value => "a value is unknown or outside its limits",
        }
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The payload is announced, or is, larger than its direction allows.
    #[error("a frame of {bytes} bytes where at most {bytes_max} are allowed")]
    TooLarge {
        /// Bytes announced.
        bytes: usize,
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// The payload is too small to hold a value and its checksum.
    #[error("a frame of {bytes} bytes where at least {PAYLOAD_BYTES_MIN} are needed")]
    TooSmall {
        /// Bytes announced.
        bytes: usize,
    },
    /// The checksum is wrong.
    #[error("the frame's checksum is {found:#010x}, its bytes make {computed:#010x}")]
    Checksum {
        /// The checksum in the frame.
        found: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The value does not decode.
    #[error("the frame does not decode: {}", .0.as_str())]
    Malformed(Malformed),
    /// Bytes remain after the value.
    #[error("{bytes} bytes follow the frame's value")]
    Trailing {
        /// Bytes that remain.
        bytes: usize,
    },
    /// The other side speaks another version of the protocol.
    #[error("the other side speaks version {version} of the protocol, this one {PROTOCOL_VERSION}")]
    Version {
        /// The version of the other side.
        version: u16,
    },
}

/// CRC-32 of `bytes` as frames carry it: polynomial 0x04C11DB7 reflected, start and final xor all
/// ones; the same as zlib's `crc32`.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes)
}

/// Reads the length that a frame begins with and holds it against `bytes_max`, so that a reader
/// knows whether to read the rest at all.
///
/// # Errors
/// [`DecodeError::TooLarge`] or [`DecodeError::TooSmall`].
pub fn payload_bytes(header: [u8; HEADER_BYTES], bytes_max: usize) -> Result<usize, DecodeError> {
    // A length that does not fit a usize is too large whatever the bound.
    let bytes = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if bytes > bytes_max {
        return Err(DecodeError::TooLarge { bytes, bytes_max });
    }
    if bytes < PAYLOAD_BYTES_MIN {
        return Err(DecodeError::TooSmall { bytes });
    }
    Ok(bytes)
}

/// Checks a payload's size and checksum and returns the encoded value inside.
///
/// # Errors
/// [`DecodeError::TooLarge`], [`DecodeError::TooSmall`] or [`DecodeError::Checksum`].
pub fn unseal(payload: &[u8], bytes_max: usize) -> Result<&[u8], DecodeError> {
    let bytes = payload.len();
    if bytes > bytes_max {
        return Err(DecodeError::TooLarge { bytes, bytes_max });
    }
    let (value, stored) = match payload.split_last_chunk::<CHECKSUM_BYTES>() {
        Some((value, stored)) if !value.is_empty() => (value, stored),
        _ => return Err(DecodeError::TooSmall { bytes }),
    };
    let (found, computed) = (u32::from_le_bytes(*stored), checksum(value));
    if found != computed {
        return Err(DecodeError::Checksum { found, computed });
    }
    Ok(value)
}

impl<'a> ClientFrame<'a> {
    /// Most bytes in the payload of a client's frame.
    pub const PAYLOAD_BYTES_MAX: usize = CLIENT_FRAME_BYTES_MAX;

    /// Encodes the frame, length and checksum included, into the beginning of `buffer` and returns
    /// the bytes to send.
    ///
    /// # Errors
    /// [`EncodeError`] when `buffer` is too small or the frame larger than allowed.
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], EncodeError> {
        encode(self, buffer, Self::PAYLOAD_BYTES_MAX)
    }

    /// Decodes a payload: what follows a frame's length.
    ///
    /// # Errors
    /// [`DecodeError`]; [`DecodeError::Version`] only for a hello.
    pub fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        decode(payload, Self::PAYLOAD_BYTES_MAX)
    }
}

impl<'a> ServerFrame<'a> {
    /// Most bytes in the payload of a server's frame.
    pub const PAYLOAD_BYTES_MAX: usize = SERVER_FRAME_BYTES_MAX;

    /// Encodes the frame, length and checksum included, into the beginning of `buffer` and returns
    /// the bytes to send.
    ///
    /// # Errors
    /// [`EncodeError`] when `buffer` is too small or the frame larger than allowed.
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], EncodeError> {
        encode(self, buffer, Self::PAYLOAD_BYTES_MAX)
    }

    /// Decodes a payload: what follows a frame's length.
    ///
    /// # Errors
    /// [`DecodeError`]; [`DecodeError::Version`] only for a welcome.
    pub fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        decode(payload, Self::PAYLOAD_BYTES_MAX)
    }
}

fn encode<'b, T: Serialize>(
    value: &T,
    buffer: &'b mut [u8],
    bytes_max: usize,
) -> Result<&'b [u8], EncodeError> {
    let full = EncodeError::BufferFull {
        bytes: buffer.len(),
    };
    let (header, rest) = buffer.split_at_mut_checked(HEADER_BYTES).ok_or(full)?;
    let value_bytes = postcard::to_slice(value, rest).map_err(|_| full)?.len();
    let (value, rest) = rest.split_at_mut_checked(value_bytes).ok_or(full)?;
    let sealed = rest.first_chunk_mut::<CHECKSUM_BYTES>().ok_or(full)?;
    *sealed = checksum(value).to_le_bytes();

    let bytes = value_bytes.saturating_add(CHECKSUM_BYTES);
    let too_large = EncodeError::TooLarge { bytes, bytes_max };
    if bytes > bytes_max {
        return Err(too_large);
    }
    let length = u32::try_from(bytes).map_err(|_| too_large)?;
    header.copy_from_slice(&length.to_le_bytes());
    buffer.get(..HEADER_BYTES + bytes).ok_or(full)
}

fn decode<'a, T: Deserialize<'a>>(payload: &'a [u8], bytes_max: usize) -> Result<T, DecodeError> {
    let value = unseal(payload, bytes_max)?;
    check_version(value)?;
    let (frame, rest) = postcard::take_from_bytes(value).map_err(|error| malformed(&error))?;
    if rest.is_empty() {
        Ok(frame)
    } else {
        Err(DecodeError::Trailing { bytes: rest.len() })
    }
}

/// Looks at the version before anything else of a hello or a welcome, so that a later version may
/// change whatever comes after it. Both are variant 0 and have the version first, for ever. A number may be written
/// in more bytes than it takes, so the variant is read as one, not compared as a byte.
fn check_version(value: &[u8]) -> Result<(), DecodeError> {
    let Ok((0, rest)) = postcard::take_from_bytes::<u32>(value) else {
        return Ok(());
    };
    let (version, _) = postcard::take_from_bytes::<u16>(rest).map_err(|error| malformed(&error))?;
    if version == PROTOCOL_VERSION {
        Ok(())
    } else {
        Err(DecodeError::Version { version })
    }
}

fn malformed(error: &postcard::Error) -> DecodeError {
    use postcard::Error;
    DecodeError::Malformed(match error {
        Error::DeserializeUnexpectedEnd => Malformed::Ended,
        Error::DeserializeBadVarint => Malformed::Number,
        Error::DeserializeBadUtf8 | Error::DeserializeBadChar => Malformed::Text,
        _ => Malformed::Value,
    })
}
