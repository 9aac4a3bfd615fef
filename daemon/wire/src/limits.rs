//! Bounds on everything that arrives from outside, shared by every front end.
//!
//! A front end compares a length with its bound before it reads, copies or parses what the length
//! announces. Configuration may lower a bound, never raise it.

/// Most bytes in a request's body on any front end: an HTTP body, an MQTT payload. JSON escapes
/// can double a text, so this is twice [`INPUT_BYTES_MAX`] and room for the rest.
pub const BODY_BYTES_MAX: usize = 1_280 * 1024;

/// Most bytes of text in one request: all messages together, or the prompt, or a task's input.
/// Half a megabyte is about 128 Ki tokens, the longest context of the models served here.
pub const INPUT_BYTES_MAX: usize = 512 * 1024;

/// Most bytes in a client's frame, its length prefix not counted: a full input and 64 KiB for
/// everything else in the request.
pub const CLIENT_FRAME_BYTES_MAX: usize = INPUT_BYTES_MAX + 64 * 1024;

/// Most bytes in a server's frame, its length prefix not counted. Small, so that a client without
/// a heap can keep a buffer for the largest one.
pub const SERVER_FRAME_BYTES_MAX: usize = 8 * 1024;

/// Most bytes of text in one chunk of an answer; a longer piece is sent as several chunks.
pub const CHUNK_TEXT_BYTES_MAX: usize = 4 * 1024;

/// Most bytes of elements in one piece of a vector; a longer vector is sent as several pieces.
pub const VECTOR_PIECE_BYTES_MAX: usize = 4 * 1024;

/// Most messages in one request.
pub const MESSAGES_MAX: usize = 128;

/// Most stop strings in one request.
pub const STOP_MAX: usize = 8;

/// Most bytes in one stop string.
pub const STOP_BYTES_MAX: usize = 128;

/// Most bytes in a request's id.
pub const ID_BYTES_MAX: usize = 64;

/// Most bytes in the name of a client, a task or a gateway.
pub const NAME_BYTES_MAX: usize = 64;

/// Most bytes in the name of a model.
pub const MODEL_NAME_BYTES_MAX: usize = 96;

/// Most bytes in a short descriptive text: a program's name and version, an architecture.
pub const LABEL_BYTES_MAX: usize = 64;

/// Most bytes in the message of a fault; a sender shortens a longer one.
pub const FAULT_MESSAGE_BYTES_MAX: usize = 1024;

/// Most bytes in a model's manifest.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024;

/// Most bytes of a model in one frame: large enough that framing costs little, small enough that a
/// few of them waiting for the disk do not matter.
pub const MODEL_DATA_BYTES_MAX: usize = 256 * 1024;

/// Most files of one model. The largest models of today come in some fifty parts.
pub const MEMBERS_MAX: usize = 128;

/// Most bytes in the path of a model's file inside its folder: what the header of a tar archive, which a bundle is,
/// has for a name.
pub const MEMBER_PATH_BYTES_MAX: usize = 100;

/// Most bytes in one file of weights; the daemon's configuration sets a lower bound for a whole model.
pub const MODEL_BYTES_MAX: u64 = 1 << 40;

/// Most bytes in a licence, a chat template or a task of a model.
pub const TEXT_MEMBER_BYTES_MAX: u64 = 1024 * 1024;

/// Most bytes of signatures over a manifest.
pub const SIGNATURES_BYTES_MAX: usize = 2048;

/// Most signatures over one manifest: of whoever made the model, whoever chose it, whoever runs the gateway.
pub const SIGNATURES_MAX: usize = 8;

/// Most bytes in the digests of a model's tensors: four times what the largest mixtures of experts need.
pub const TENSOR_DIGESTS_BYTES_MAX: u64 = 32 << 20;

/// Most pieces that the digests of tensors may cut a model into: its tensors, and the head of each file.
pub const TENSOR_DIGESTS_MAX: usize = 1 << 18;

/// Most bytes in the name of a piece.
pub const TENSOR_NAME_BYTES_MAX: usize = 128;

/// Most models in one list of models.
pub const MODELS_MAX: usize = 16;

/// Most tokens that one request may ask for.
pub const TOKENS_MAX: u32 = 1 << 20;

/// Longest deadline, in milliseconds: one day.
pub const DEADLINE_MS_MAX: u32 = 24 * 60 * 60 * 1000;

/// Highest temperature.
pub const TEMPERATURE_MAX: f32 = 2.0;

/// Largest magnitude of the presence and frequency penalties.
pub const PENALTY_MAX: f32 = 2.0;

/// Largest factor by which a repeated token may be divided.
pub const REPEAT_PENALTY_MAX: f32 = 10.0;

/// Most tokens that the repetition penalties may look back over.
pub const REPEAT_LAST_N_MAX: u32 = 1 << 16;

/// Largest `top_k`; larger than any vocabulary, so a larger one means the sender is mistaken.
pub const TOP_K_MAX: u32 = 1 << 20;

/// Most bytes in an MQTT topic or filter.
pub const TOPIC_BYTES_MAX: usize = 512;

/// Most bytes in the base that all topics of a gateway begin with.
pub const TOPIC_BASE_BYTES_MAX: usize = 128;

/// Most backends in one list of them.
pub const BACKENDS_MAX: usize = 8;

/// Most parts of a question that are told of as what moved an estimate.
pub const ROUTE_PARTS_MAX: usize = 8;
