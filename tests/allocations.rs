//! Decoding takes no memory: what it needs was taken when the executor was made, and a sequence takes what it needs
//! with its pages.
//!
//! A program without a harness, whose own thread would take memory beside it: the allocator counts what every thread
//! of the process does.

#![forbid(unsafe_code)]

use andon_engine::generate::{Event, GenerationRequest, Generator, GeneratorOptions};
use andon_engine::kv::PAGE;
use andon_engine::sample::SamplingOptions;
use andon_engine::{Chunk, Executor, ExecutorOptions, LogitsFor, Model};
use andon_os::heap::{self, Counting};
use andon_tests::tiny_model::TinyModel;
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

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    TinyModel::default().write(&path).expect("writable");
    let model = Arc::new(Model::load(&path).expect("a sound model"));
    // Positions between two beginnings of pages, past the second so that there is a whole one before.
    let (first, last) = (PAGE + 2, 2 * PAGE - 1);

    let mut executor = executor(&model);
    let mut sequences = [executor.sequence(), executor.sequence()];
    for position in 0..last {
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
            position < first || calls == 0,
            "position {position}: {calls} calls"
        );
    }
    drop(sequences);

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
        for step in 0..last {
            let before = heap::calls();
            let stepped = generator.step(&mut |_, event| {
                if let Event::Text { text, .. } = event {
                    bytes += text.len();
                }
            });
            stepped.expect("a step");
            quiet_steps += usize::from(step >= first && heap::calls() == before);
        }
        assert!(bytes > 0, "text came out");
        // Buffers of what a caller sees grow with their contents, twice as large each time.
        let steps = last - first;
        assert!(
            steps - quiet_steps <= 2,
            "{quiet_steps} of {steps} steps took no memory"
        );
        while generator.active() > 0 {
            generator.step(&mut |_, _| ()).expect("a step");
        }
    }
}
