//! The engine: tokens in, tokens out. It reads GGUF files, turns text into tokens and back, and runs
//! models. It is synchronous and knows nothing of transports, deadlines or the network.
#![forbid(unsafe_code)]

pub mod gguf;
pub mod sample;
pub mod tokenizer;
