//! How a model comes onto the card: what that takes, what comes of it where there is no room, and how the card takes over from
//! the processor.

use std::sync::Arc;

use andon_cuda::Device;
use andon_engine::backend::{Backend, DeviceError};
use andon_engine::generate::{Event, GenerationRequest, Generator, GeneratorOptions};
use andon_engine::kv::{KvType, PAGE};
use andon_engine::{Executor, ExecutorError, ExecutorOptions, Loading, Model};
use andon_tests::tiny_model::{Architecture, TensorType};

use crate::card::inside_emulation;
use crate::logits::{assert_same, executor, model, options, run, tokens};

/// Bytes of the card that are free.
fn free(device: &Device) -> usize {
    device.limits().expect("it says").memory_bytes.0
}

fn open() -> Device {
    Device::open(0).expect("a card")
}

/// A tiny model, and how it is made for the card.
fn tiny() -> (tempfile::TempDir, Arc<Model>, ExecutorOptions) {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model(folder.path(), Architecture::LLAMA, TensorType::Q4_0);
    (folder, model, options(Backend::Cuda, KvType::F16))
}

#[test]
fn a_card_that_has_no_room_gives_back_all_it_gave() {
    let cramped = [("ANDON_EMULATED_CRAMPED", "1")];
    let name = "loading::a_card_that_has_no_room_gives_back_all_it_gave";
    inside_emulation(name, &cramped, || {
        let device = open();
        let (_folder, model, options) = tiny();
        let before = free(&device);
        let mut refused = 0;
        // Each time one step further.
        let mut card = loop {
            match Executor::new(Arc::clone(&model), &options) {
                Ok(executor) => break executor,
                Err(ExecutorError::Device { source, .. }) => {
                    assert!(
                        matches!(source, DeviceError::OutOfMemory { .. }),
                        "{source}"
                    );
                    assert_eq!(free(&device), before, "after {refused} refusals");
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
        };
        // Pages and matrices of two layers at least, and pieces.
        assert!(refused > 20, "{refused}");
        let text = tokens(&model, PAGE, 0);
        let expected = run(&mut executor(&model, Backend::Cpu, KvType::F16), &text, 9);
        assert_same(&run(&mut card, &text, 9), &expected, "after all of these");
        drop(card);
        assert_eq!(free(&device), before);
    });
}

#[test]
fn what_a_model_takes_is_known_before() {
    inside_emulation("loading::what_a_model_takes_is_known_before", &[], || {
        let device = open();
        for (architecture, weights) in [
            (Architecture::LLAMA, TensorType::Q4_0),
            (Architecture::LLAMA, TensorType::Q6K),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let model = model(folder.path(), architecture, weights);
            let options = options(Backend::Cuda, KvType::Q8);
            let needs = Executor::needs_of(&model, &options).expect("it is covered");
            let needs = needs.device.expect("a card");
            let before = free(&device);
            assert_eq!((needs.free, needs.integrated), (before, false));
            let card = Executor::new(Arc::clone(&model), &options).expect("there is room");
            let took = before - free(&device);
            let says = needs.there() - needs.pieces;
            assert!(took <= says, "{took} of {says}");
            assert!(says <= took + took / 8 + (96 << 10), "{took} of {says}");
            drop(card);
            // Less than that is refused before anything is taken.
            let ballast = device
                .zeros::<u8>(before - needs.there() + 1)
                .expect("room");
            let refused = Executor::new(Arc::clone(&model), &options).err();
            assert!(
                matches!(refused, Some(ExecutorError::NoRoom { free, .. }) if free < needs.there()),
                "{refused:?}"
            );
            drop(ballast);
            Executor::new(Arc::clone(&model), &options).expect("there is room again");
        }
    });
}

/// Gives up at a piece, or at a pass.
struct GivesUp {
    pieces: usize,
    passes: usize,
}

impl Loading for GivesUp {
    fn goes_on(&mut self, sent: usize, all: usize) -> bool {
        assert!(sent <= all && all > 0);
        self.pieces = self.pieces.saturating_sub(1);
        self.pieces > 0
    }

    fn pass(&mut self, pass: &mut dyn FnMut(&dyn Fn() -> bool)) -> bool {
        if self.passes == 0 {
            return false;
        }
        self.passes -= 1;
        // The first time something more urgent comes.
        pass(&|| self.passes.is_multiple_of(2));
        true
    }
}

#[test]
fn what_is_given_up_leaves_nothing_on_the_card() {
    let name = "loading::what_is_given_up_leaves_nothing_on_the_card";
    inside_emulation(name, &[], || {
        let device = open();
        let (_folder, model, options) = tiny();
        let before = free(&device);
        let load = |mut loading: GivesUp| {
            let loaded = Executor::load(Arc::clone(&model), &options, &mut loading);
            loaded.and_then(|loaded| loaded.compared(&mut loading))
        };
        for (pieces, passes) in [(1, 99), (3, 99), (99, 0), (99, 1), (99, 2), (99, 5)] {
            let given_up = load(GivesUp { pieces, passes });
            assert!(matches!(given_up, Err(ExecutorError::GivenUp)), "{pieces}");
            assert_eq!(free(&device), before, "{pieces} {passes}");
        }
        // What gave way comes to its end all the same.
        let mut card = load(GivesUp {
            pieces: 999,
            passes: 99,
        })
        .expect("it computes the same");
        let text = tokens(&model, 20, 0);
        let expected = run(&mut executor(&model, Backend::Cpu, KvType::F16), &text, 9);
        assert_same(&run(&mut card, &text, 9), &expected, "in between");
    });
}

/// The answers to prompts that begin alike and are answered side by side; after `steps` steps the card takes over.
fn answers(model: &Arc<Model>, steps: Option<usize>) -> Vec<Vec<u32>> {
    let mut generator = Generator::new(
        executor(model, Backend::Cpu, KvType::F16),
        GeneratorOptions::default(),
    );
    let mut said = vec![Vec::new(); 3];
    let start = |generator: &mut Generator, length| {
        let request = GenerationRequest {
            prompt: tokens(model, length, 4),
            tokens_max: Some(40),
            ignore_end: true,
            ..GenerationRequest::default()
        };
        generator.start(request).expect("there is room")
    };
    let mut ids = vec![start(&mut generator, PAGE + 20), start(&mut generator, 9)];
    let mut step = 0;
    while generator.active() > 0 || ids.len() < 3 {
        if ids.len() < 3 && (generator.active() == 0 || step == 60) {
            // Its prompt is remembered.
            ids.push(start(&mut generator, PAGE + 20));
        }
        if steps == Some(step) {
            let card = executor(model, Backend::Cuda, KvType::F16);
            let running = generator.executor_mut().expect("an executor");
            running.change_over(card).expect("the card is whole");
            assert_eq!(running.backend(), Backend::Cuda);
        }
        step += 1;
        let mut sink = |id, event: Event<'_>| match event {
            Event::Text { ids: tokens, .. } => {
                let at = ids.iter().position(|known| *known == id);
                said[at.expect("one of them")].extend_from_slice(tokens);
            }
            Event::Finished { usage, .. } if ids.len() == 3 && Some(&id) == ids.last() => {
                assert!(usage.cached_tokens >= PAGE, "{}", usage.cached_tokens);
            }
            _ => {}
        };
        generator.step(&mut sink).expect("a step");
    }
    said
}

#[test]
fn the_card_takes_over_and_answers_go_on_with_the_same_words() {
    let name = "loading::the_card_takes_over_and_answers_go_on_with_the_same_words";
    inside_emulation(name, &[], || {
        let (_folder, model, _) = tiny();
        let expected = answers(&model, None);
        assert!(expected.iter().all(|answer| answer.len() == 40));
        for steps in [0, 1, 17, 45] {
            assert_eq!(answers(&model, Some(steps)), expected, "after {steps}");
        }
    });
}
