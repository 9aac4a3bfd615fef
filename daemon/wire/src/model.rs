//! Keeping models: adding one, listing, showing, removing and verifying those a daemon has.
//!
//! To add a model a client sends [`AddModel`] or [`AddSigned`] with the manifest, waits for [`AddReady`], and sends
//! the bytes of the members it was asked for, one after the other in the manifest's order, as
//! [`ModelData`]. Nothing marks the borders between members: the manifest has their sizes. The
//! stream's own back-pressure is the flow control; a daemon reads no faster than it stores.
//!
//! Every operation has an id and ends with exactly one [`ModelAdded`], [`ModelDone`] or fault.

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::MODEL_DATA_BYTES_MAX;
use crate::manifest::Digest;
use crate::name::{ModelName, RequestId};

/// Wish to add a model. Answered by [`AddReady`] or a fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddModel<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// The name to register it under; unset, the manifest's.
    pub name: Option<ModelName>,
    /// The manifest as JSON, byte for byte as it is to be kept.
    pub manifest: &'a str,
}

/// Wish to add a model with signatures over its manifest. Answered as [`AddModel`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddSigned<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// The name to register it under; unset, the manifest's.
    pub name: Option<ModelName>,
    /// The manifest as JSON, byte for byte as it was signed and is to be kept.
    pub manifest: &'a str,
    /// The signatures, as [`crate::signature`] writes them.
    pub signatures: &'a str,
}

/// The next bytes of a model that is being added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelData<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// At most [`MODEL_DATA_BYTES_MAX`] bytes.
    #[serde(borrow)]
    pub bytes: Bytes<'a>,
}

/// Bytes as they are: a count and then the bytes; at most [`MODEL_DATA_BYTES_MAX`] are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<'a>(pub &'a [u8]);

/// What is to be done with the models that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelTask {
    /// Id of the operation.
    pub id: RequestId,
    /// What to do.
    pub action: ModelAction,
}

/// An operation on the models that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelAction {
    /// List them: a [`StoredModel`] each, then [`ModelDone`].
    List,
    /// Show one: its [`StoredModel`], its manifest as [`ModelText`]s, then [`ModelDone`].
    Show(ModelName),
    /// Remove one: [`ModelDone`].
    Remove(ModelName),
    /// Read one and compare its digests: [`ModelProgress`] from time to time, then [`ModelDone`].
    Verify(ModelName),
    /// Pack the weights of one, so that it runs faster: [`ModelProgress`] from time to time, then [`ModelDone`].
    Pack(ModelName),
    /// Remove the packed weights of one: [`ModelDone`].
    Unpack(ModelName),
    /// List what is packed: a [`StoredPack`] each, then [`ModelDone`].
    Packs,
    /// List who signed what: a [`StoredSignature`] for each model, then [`ModelDone`].
    Signatures,
    /// Load one, which then stays loaded: [`ModelProgress`] from time to time, then [`ModelDone`].
    Load(ModelName),
    /// Have one answer what it has taken and then unload it: [`ModelProgress`] from time to time, then [`ModelDone`].
    Unload(ModelName),
    /// Have one take another's place: [`ModelProgress`] from time to time, then [`ModelDone`].
    Swap(SwapModel),
    /// Have the model answer to a name, by default the configured one, that did before: [`ModelProgress`] from time to time,
    /// then [`ModelDone`].
    Rollback(Option<ModelName>),
    /// List the names that requests may say: a [`ServedModel`] each, then [`ModelDone`].
    Served,
}

/// How a model is to take another's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapModel {
    /// The model.
    pub model: ModelName,
    /// The name that it is to answer to; unset, the configured one.
    pub name: Option<ModelName>,
    /// Whether the other is to be unloaded first, for want of memory. Requests wait meanwhile.
    pub unload_first: bool,
}

/// Whether a model can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ModelResidence {
    /// It is kept, and loaded when it is asked for.
    Kept,
    /// It is being loaded.
    Loading,
    /// It answers.
    Loaded,
    /// It answers what it has taken, and goes.
    Leaving,
    /// It cannot be served.
    Failed,
}

impl ModelResidence {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Loading => "loading",
            Self::Loaded => "loaded",
            Self::Leaving => "leaving",
            Self::Failed => "failed",
        }
    }
}

/// A name that requests may say, and the model that answers to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedModel<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// The name.
    pub name: &'a str,
    /// The kept model that answers, if its own name is another; else empty.
    pub model: &'a str,
    /// The model that answered before, which a rollback has back; else empty.
    pub former: &'a str,
    /// Whether it can answer.
    pub residence: ModelResidence,
    /// Whether requests that name none go there.
    pub default: bool,
    /// Whether it stays loaded until it is told to go.
    pub pinned: bool,
    /// Whether the model that answered before takes the name back if this one fails.
    pub probation: bool,
    /// Bytes of memory that it has.
    pub memory_bytes: u64,
}

/// The bytes of a model may be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddReady {
    /// Id of the operation.
    pub id: RequestId,
    /// Whether the weights are to be sent too. They are not where the daemon has them already, under
    /// another name; the other members are sent all the same.
    pub weights: bool,
}

/// What a daemon is doing with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ModelStage {
    /// It is taking in the bytes.
    Receiving,
    /// It is looking whether they are a model it can serve.
    Checking,
    /// It is computing with it.
    Testing,
    /// It is reading what it has and comparing digests.
    Verifying,
    /// It is packing the weights.
    Packing,
    /// It is loading it.
    Loading,
    /// It waits until all is answered that was taken, and unloads it.
    Unloading,
}

impl ModelStage {
    /// The word for this stage.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Receiving => "receiving",
            Self::Checking => "checking",
            Self::Testing => "testing",
            Self::Verifying => "verifying",
            Self::Packing => "packing",
            Self::Loading => "loading",
            Self::Unloading => "unloading",
        }
    }
}

/// A sign of life of an operation that takes its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelProgress {
    /// Id of the operation.
    pub id: RequestId,
    /// What is being done.
    pub stage: ModelStage,
    /// Bytes done.
    pub bytes: u64,
    /// Bytes to do.
    pub bytes_total: u64,
}

/// The model is registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelAdded {
    /// Id of the operation.
    pub id: RequestId,
    /// Its name.
    pub name: ModelName,
    /// Bytes of its files.
    pub bytes: u64,
    /// It was there before under this name, the same byte for byte; nothing was changed.
    pub present: bool,
}

/// One of the models that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredModel<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// Its name.
    pub name: ModelName,
    /// Its architecture.
    pub architecture: &'a str,
    /// How its weights are stored.
    pub quantization: &'a str,
    /// Id of its licence; empty when the manifest has none.
    pub license: &'a str,
    /// Bytes of its files.
    pub bytes: u64,
    /// When it was added, in seconds since 1970.
    pub added_s: u64,
    /// SHA-256 of its weights, of the first file if there are several.
    pub sha256: Digest,
    /// Whether it is the one that is served.
    pub active: bool,
}

/// The packed weights of one of the models that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPack {
    /// Id of the operation.
    pub id: RequestId,
    /// The model's name.
    pub name: ModelName,
    /// Bytes of the pack, beside those of the model.
    pub bytes: u64,
}

/// What is to be said of the signatures of one of the models that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSignature<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// The model's name.
    pub name: ModelName,
    /// What was found.
    pub state: SignatureState,
    /// Id of the key that this is about; empty where there is none.
    pub key: &'a str,
    /// Whether the kernel keeps its weights from changing, and compares them as they are read (fs-verity).
    pub verity: bool,
}

/// What is found of a model's signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SignatureState {
    /// It has none.
    Unsigned,
    /// It has some, and nobody looked at them: the configuration turns that off.
    Unchecked,
    /// It has some, of keys that the configuration does not trust.
    Unknown,
    /// A key that the configuration trusts signed just this manifest.
    Good,
    /// It says that a trusted key signed it, which is not so, or what it has is no list of signatures.
    Bad,
}

impl SignatureState {
    /// The word for this state.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Unchecked => "unchecked",
            Self::Unknown => "unknown",
            Self::Good => "good",
            Self::Bad => "bad",
        }
    }
}

/// A piece of a text, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelText<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// The piece; at most [`crate::limits::CHUNK_TEXT_BYTES_MAX`] bytes, whole characters.
    pub text: &'a str,
}

/// The operation is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelDone {
    /// Id of the operation.
    pub id: RequestId,
    /// How many models were listed, shown, removed, verified, loaded, unloaded or swapped, or packs listed, made or removed.
    pub count: u32,
}

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;
        impl<'de> Visitor<'de> for Borrowed {
            type Value = Bytes<'de>;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "at most {MODEL_DATA_BYTES_MAX} bytes")
            }

            fn visit_borrowed_bytes<E: serde::de::Error>(
                self,
                bytes: &'de [u8],
            ) -> Result<Bytes<'de>, E> {
                if bytes.len() > MODEL_DATA_BYTES_MAX {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_bytes(Borrowed)
    }
}
