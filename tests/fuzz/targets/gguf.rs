//! A model file: refused, or loaded and run for a few tokens, within the stated memory.

use std::path::Path;
use std::sync::Arc;

use andon_engine::embed::{Embedder, EmbedderOptions};
use andon_engine::tokenizer::Special;
use andon_engine::{Chunk, Executor, ExecutorOptions, Files, LoadOptions, LogitsFor, Model};
use andon_os::heap;

pub(crate) fn run(data: &[u8]) {
    if data.is_empty() {
        return;
    }
    // For a few tokens, activations and KV of no more than the file's own size times a few.
    let limit = Model::heap_bytes_max(data.len());
    heap::measure(limit, data.len() as u64, || load(data));
}

fn load(data: &[u8]) {
    let files = Files::of_bytes(Path::new("fuzzed"), data).expect("memory for a small file");
    match Model::from_files(files, &LoadOptions::default()) {
        Ok(model) => use_it(&Arc::new(model)),
        Err(error) => {
            // An operator reads it.
            assert!(error.to_string().contains("fuzzed"));
        }
    }
}

fn use_it(model: &Arc<Model>) {
    let tokens = model.tokenizer().encode("Hello, world", Special::Parse);
    let count = model.info().vocabulary_count;
    assert!(tokens.iter().all(|&token| (token as usize) < count));
    let options = EmbedderOptions {
        threads: Some(1),
        context_tokens_max: Some(32),
        ..EmbedderOptions::default()
    };
    if let Ok(mut embedder) = Embedder::new(Arc::clone(model), &options) {
        if let Ok(vectors) = embedder.embed(&[&[0, 0]]) {
            assert!(vectors.iter().flatten().all(|value| value.is_finite()));
        }
        return;
    }
    let options = ExecutorOptions {
        threads: Some(1),
        batch_tokens_max: 4,
        kv_tokens_max: 32,
        ..ExecutorOptions::default()
    };
    let Ok(mut executor) = Executor::new(Arc::clone(model), &options) else {
        return;
    };
    let mut sequence = executor.sequence();
    let chunk = Chunk {
        sequence: &mut sequence,
        tokens: &[0, 0],
        logits: LogitsFor::Last,
    };
    if let Ok(logits) = executor.forward(&mut [chunk]) {
        assert_eq!(logits.row(0).len(), count);
    }
}
