//! Decoding takes no memory: what it needs was taken when the executor was made, and a sequence takes what it needs
//! with its pages. From packed weights and from raw ones.
//!
//! A program without a harness, whose own thread would take memory beside it: the allocator counts what every thread
//! of the process does.

#![forbid(unsafe_code)]

use andon_engine::generate::{Event, GenerationRequest, Generator, GeneratorOptions};
use andon_engine::kv::PAGE;
use andon_engine::pack::{Cache, CacheOptions};
use andon_engine::sample::SamplingOptions;
use andon_engine::{Chunk, Executor, ExecutorOptions, LogitsFor, Model};
use andon_os::heap::{self, Counting};
use andon_tests::tiny_model::{TensorType, TinyModel};
use std::path::Path;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn executor(model: &Arc<Model>) -> Executor {
    let options = ExecutorOptions {
        threads: Some(2),
        batch_tokens_max: 128,
        kv_tokens_max: 1024,
        prefix_cache: true,
        ..ExecutorOptions::default()
    };
    Executor::new(Arc::clone(model), &options).expect("a valid executor")
}

/// Positions between two beginnings of pages, past the second so that there is a whole one before.
const FIRST: usize = PAGE + 2;
const LAST: usize = 2 * PAGE - 1;

/// A model in a folder; packed if it is to be.
fn model(folder: &Path, packed: bool) -> Arc<Model> {
    let path = folder.join("model.gguf");
    let tiny = TinyModel {
        weights: TensorType::Q8_0,
        ..TinyModel::default()
    };
    tiny.write(&path).expect("writable");
    let model = Model::load(&path).expect("a sound model");
    if packed {
        let key = model.pack_key().expect("a key");
        let cache = Cache::new(CacheOptions {
            dir: folder.to_owned(),
            bytes_max: u64::MAX,
            free_bytes_min: 0,
        });
        let pack = cache.make(&model, &key, 1, &mut |_, _| true);
        model.attach_pack(pack.expect("a pack")).expect("its own");
    }
    Arc::new(model)
}

/// Decodes two sequences side by side.
fn decode(executor: &mut Executor) {
    let mut sequences = [executor.sequence(), executor.sequence()];
    for position in 0..LAST {
        let before = heap::calls();
        let mut chunks = sequences.each_mut().map(|sequence| Chunk {
            sequence,
            tokens: &[1],
            logits: LogitsFor::Last,
        });
        let logits = executor.forward(&mut chunks).expect("a valid batch");
        assert_eq!(logits.row_count(), 2);
        let calls = heap::calls() - before;
        assert!(
            position < FIRST || calls == 0,
            "position {position}: {calls} calls"
        );
    }
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    decode(&mut executor(&model(folder.path(), false)));
    let mut executor = executor(&model(folder.path(), true));
    decode(&mut executor);
    assert!(executor.model().pack().is_some(), "the pack was used");

    // Choosing tokens and making text of them, in the three ways that a token is chosen.
    let mut generator = Generator::new(executor, GeneratorOptions::default());
    for (temperature, top_k) in [(0.0, 0), (1.0, 40), (1.0, 0)] {
        let request = GenerationRequest {
            prompt: vec![1, 2],
            tokens_max: Some(2 * PAGE),
            sampling: SamplingOptions {
                temperature,
                top_k,
                ..SamplingOptions::default()
            },
            ignore_end: true,
            ..GenerationRequest::default()
        };
        generator.start(request).expect("there is room");
        let mut bytes = 0;
        let mut quiet_steps = 0;
        for step in 0..LAST {
            let before = heap::calls();
            let stepped = generator.step(&mut |_, event| {
                if let Event::Text { text, .. } = event {
                    bytes += text.len();
                }
            });
            stepped.expect("a step");
            quiet_steps += usize::from(step >= FIRST && heap::calls() == before);
        }
        assert!(bytes > 0, "text came out");
        // Buffers of what a caller sees grow with their contents, twice as large each time.
        let steps = LAST - FIRST;
        assert!(
            steps - quiet_steps <= 2,
            "{quiet_steps} of {steps} steps took no memory"
        );
        while generator.active() > 0 {
            generator.step(&mut |_, _| ()).expect("a step");
        }
    }
}
