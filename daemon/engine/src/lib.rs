//! The engine: tokens in, tokens out. It reads GGUF files, turns text into tokens and back, and runs
//! models. It is synchronous and knows nothing of transports, deadlines or the network.
#![forbid(unsafe_code)]

pub mod backend;
pub mod calibrate;
pub mod calls;
pub mod embed;
mod executor;
mod files;
pub mod generate;
pub mod gguf;
pub mod grammar;
pub mod kv;
pub mod layer;
mod model;
pub mod models;
pub mod pack;
pub mod sample;
pub mod speculate;
mod temporary;
pub mod tokenizer;
mod verify;
pub mod weights;

#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

pub use andon_kernels::Isa;
pub use executor::{
    AtOnce, Chunk, Executor, ExecutorError, ExecutorOptions, ForwardError, Loading, Logits,
    LogitsFor, Needs, Outputs, Uncompared,
};
pub use files::Files;
pub use kv::Sequence;
pub use model::{LoadError, LoadOptions, Model, ModelInfo};
pub use verify::VerifyError;
