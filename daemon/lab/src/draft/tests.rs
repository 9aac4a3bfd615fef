//! Drafts of a small random model: its graph against the engine's, training that is the same however it is done, and
//! files that the engine takes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use andon_engine::speculate::DraftModel;
use andon_engine::{Chunk, Executor, ExecutorOptions, Files, LoadOptions, LogitsFor, Model};
use andon_kernels::Format;
use candle_core::{Device, Tensor};

use super::answers::Prompt;
use super::dataset::{Answer, Record};
use super::network::{Sequence, Weights, forward};
use super::refit::refit;
use super::select::{self, Layers, Plan, Sizes, plan, shape_of, weights_of};
use super::target::Target;
use super::train::{Options, State, Trainer, lessons};
use super::{checkpoint, export, lock, measure, spread};

const VOCABULARY: usize = 300;

fn model(folder: &Path) -> PathBuf {
    let path = folder.join("target.gguf");
    // In f32 the engine rounds no more than training does.
    crate::synth::write_small(&path, Format::F32, VOCABULARY).expect("written");
    path
}

/// Answers that are the same few tokens in turn: something to learn.
fn records() -> Vec<Record> {
    let record = |index: u32| {
        let tokens: Vec<u32> = (0..12).map(|place| 10 + (place + index) % 4).collect();
        let likely = tokens
            .iter()
            .map(|&token| vec![(token, 0.75), (token + 50, 0.25)])
            .collect();
        let answer = Answer {
            tokens,
            end: Some(0),
            likely,
        };
        let mut other = answer.clone();
        other.end = None;
        Record {
            prompt_index: index,
            prompt: vec![40 + index, 3, 9 + index % 4],
            answers: vec![answer, other],
        }
    };
    (0..6).map(record).collect()
}

fn everything() -> Plan {
    Plan {
        layers: (0..4).collect(),
        kv_heads: vec![vec![0, 1]; 4],
        neurons: vec![(0..768).collect(); 4],
        tokens: (0..VOCABULARY as u32).collect(),
    }
}

fn options(threads: usize) -> Options {
    Options {
        steps: 6,
        lessons_per_step: 3,
        rate: 2e-3,
        seed: 1,
        threads,
        format: Format::Q8_0,
    }
}

fn options_of(format: Format) -> Options {
    Options {
        format,
        ..options(1)
    }
}

fn logits_of_engine(model: &Arc<Model>, tokens: &[u32]) -> Vec<f32> {
    let options = ExecutorOptions {
        threads: Some(1),
        ..ExecutorOptions::default()
    };
    let mut executor = Executor::new(Arc::clone(model), &options).expect("an executor");
    let mut sequence = executor.sequence();
    let chunk = Chunk {
        sequence: &mut sequence,
        tokens,
        logits: LogitsFor::All,
    };
    let logits = executor.forward(&mut [chunk]).expect("logits");
    (0..logits.row_count())
        .flat_map(|row| logits.row(row).to_vec())
        .collect()
}

/// How far logits are apart, relative to how long they are.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied())
}

fn tensors(target: &Target<'_>, plan: &Plan) -> Weights {
    let weights = weights_of(target, plan).expect("weights");
    let tensor = |(name, (dims, values))| {
        (
            name,
            Tensor::from_vec(values, dims, &Device::Cpu).expect("a tensor"),
        )
    };
    let tensor = |weight: (String, (Vec<usize>, Vec<f32>))| tensor(weight);
    weights.into_iter().map(tensor).collect()
}

#[test]
fn the_graph_is_the_engines() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = model(folder.path());
    let files = Files::open(&path).expect("opened");
    let target = Target::open(&files, &path).expect("read");
    let weights = tensors(&target, &everything());
    let tokens: Vec<u32> = (0..20).map(|index| index * 7 % VOCABULARY as u32).collect();
    let mut sequence = Sequence::default();
    sequence.add(&tokens[..8], &[&[4, 5], &tokens[8..]]);
    let embedded = target.embed(&sequence.tokens).expect("embedded");
    let logits =
        forward(&target.shape, &weights, &sequence, embedded, &Device::Cpu).expect("logits");
    let logits: Vec<f32> = logits
        .flatten_all()
        .and_then(|logits| logits.to_vec1())
        .expect("values");
    let loaded = Arc::new(Model::load(&path).expect("loaded"));
    // The second text: the end of what comes first, and what follows.
    let expected = logits_of_engine(&loaded, &tokens);
    let distance = distance(&logits[3 * VOCABULARY..], &expected[7 * VOCABULARY..]);
    // Keys and values are f16 in the engine.
    assert!(distance < 2e-3, "{distance}");
}

#[test]
fn training_is_the_same_on_any_number_of_threads_and_after_a_stop() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = model(folder.path());
    let files = Files::open(&path).expect("opened");
    let target = Target::open(&files, &path).expect("read");
    let read = &target;
    let sizes = Sizes {
        layers: Layers::Count(2),
        kv_heads: 1,
        neurons: 96,
        tokens: 100,
    };
    let plan = plan(&target, &records(), &sizes).expect("a plan");
    assert_eq!((&plan.layers[..], plan.tokens.len()), (&[0, 3][..], 100));
    let shape = shape_of(&target.shape, &plan);
    assert_eq!((shape.heads, shape.kv_heads, shape.neurons), (2, 1, 96));
    let lessons = lessons(&records(), &plan.tokens, VOCABULARY, 64, 0.3);
    assert_eq!(lessons.len(), 3);
    let begun = State::new(weights_of(&target, &plan).expect("weights"));
    let train = |threads: usize, stop: bool| {
        let mut state = begun.clone();
        let trainer = |state: &State| {
            Trainer::new(&target, &shape, Device::Cpu, options(threads), state).expect("a trainer")
        };
        let mut trainer_now = trainer(&state);
        let mut losses = Vec::new();
        while state.step < 6 {
            if stop && state.step == 3 {
                let path = folder.path().join("checkpoint");
                checkpoint::save(&path, "x", &plan, &state).expect("saved");
                let (_, _, loaded) = checkpoint::load(&path, Some("x"))
                    .expect("loaded")
                    .expect("there");
                state = loaded;
                trainer_now = trainer(&state);
            }
            losses.push(trainer_now.step(&mut state, &lessons).expect("a step").0);
        }
        (state, losses)
    };
    let (state, losses) = train(1, false);
    assert!(losses[5] < losses[0] * 0.8, "{losses:?}");
    assert_eq!(train(3, false).0, state);
    assert_eq!(train(2, true).0, state);

    // The file has the same graph, and is a draft for the target.
    let draft = folder.path().join("draft.gguf");
    for format in [Format::F32, Format::Q4_0, Format::Q8_0] {
        export::export(&draft, &target, &shape, &plan, &state, format).expect("written");
        let files = Files::open(&draft).expect("opened");
        let gguf = files.gguf().expect("sound");
        assert_eq!(gguf.u32("llama.attention.head_count"), Ok(2));
        let loaded = LoadOptions::default().for_draft();
        let loaded = Arc::new(Model::load_with(&draft, &loaded).expect("loaded"));
        let target = Arc::new(Model::load(&path).expect("loaded"));
        let options = ExecutorOptions {
            threads: Some(1),
            ..ExecutorOptions::default()
        };
        let mut executor = Executor::new(target, &options).expect("an executor");
        DraftModel::new(Arc::clone(&loaded), &executor, &options).expect("a draft");
        // Nothing can be said of answers that are over at once.
        let mut short = records().remove(0);
        short.answers.iter_mut().for_each(|answer| {
            answer.tokens.truncate(5);
            answer.likely.truncate(5);
        });
        for records in [&[][..], &[short]] {
            let draft = Arc::clone(&loaded);
            let worth = measure::worth(&mut executor, draft, &options, records);
            assert!(worth.expect("measured").is_none());
        }
        if format == Format::F32 {
            let expected = logits_of_engine(&loaded, &lessons[0].sequence.tokens[..3]);
            let trainer = Trainer::new(read, &shape, Device::Cpu, options_of(format), &state)
                .expect("a trainer");
            let mut sequence = Sequence::default();
            sequence.add(
                &lessons[0].sequence.tokens[..1],
                &[&lessons[0].sequence.tokens[1..3]],
            );
            let logits = trainer.logits_now(&sequence).expect("logits");
            let distance = distance(&logits, &expected);
            assert!(distance < 2e-3, "{distance}");
        }
    }
}

#[test]
fn what_cannot_be_learnt_is_left_out() {
    let mut record = records().remove(0);
    record.answers[0].likely[0] = vec![(299, 0.9), (10, 0.1)];
    // The likeliest token is none that can be guessed.
    let lessons = lessons(&[record.clone()], &[10, 11, 12, 13], VOCABULARY, 64, 0.0);
    assert_eq!(lessons[0].sequence.outputs.len(), 26);
    assert_eq!(lessons[0].count(), 23);
    // Behind the second answer, which did not end, nothing is asked.
    assert_eq!(lessons[0].asked(), 25);
    // Nor is what is too long: the second answer, and then the first.
    let lessons = |tokens_max| {
        super::train::lessons(
            &[record.clone()],
            &[10, 11, 12, 13],
            VOCABULARY,
            tokens_max,
            0.0,
        )
    };
    let short = lessons(28);
    assert_eq!(
        (short[0].sequence.outputs.len(), short[0].asked()),
        (13, 13)
    );
    assert_eq!(super::train::fitting(&record, 29), 2);
    assert!(lessons(15).is_empty());
}

#[test]
fn graphs_that_are_not_known_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = model(folder.path());
    let bytes = std::fs::read(&path).expect("read");
    for (from, to, what) in [
        ("blk.0.attn_q.weight", "blk.0.attn_x.weight", "attn_x"),
        ("llama.block_count", "llama.block_coun_", "block_count"),
    ] {
        let at = bytes
            .windows(from.len())
            .position(|window| window == from.as_bytes())
            .expect("there");
        let mut changed = bytes.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, &changed).expect("written");
        let files = Files::open(&path).expect("opened");
        let error = format!("{:#}", Target::open(&files, &path).expect_err("refused"));
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn kept_layers_make_up_for_those_that_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = model(folder.path());
    let files = Files::open(&path).expect("opened");
    let target = Target::open(&files, &path).expect("read");
    let mut sequence = Sequence::default();
    let tokens: Vec<u32> = (0..60).map(|index| index * 7 % VOCABULARY as u32).collect();
    sequence.add(&tokens[..30], &[&tokens[30..]]);
    let logits = |plan: &Plan, refitted: bool| {
        let mut weights = weights_of(&target, plan).expect("weights");
        if refitted {
            refit(&target, plan, &[&sequence], &mut weights).expect("made up for");
        }
        let weights = super::select::tensors(weights).expect("tensors");
        let embedded = target.embed(&sequence.tokens).expect("embedded");
        let shape = shape_of(&target.shape, plan);
        let logits = forward(&shape, &weights, &sequence, embedded, &Device::Cpu).expect("logits");
        logits
            .flatten_all()
            .and_then(|logits| logits.to_vec1::<f32>())
            .expect("values")
    };
    let all = everything();
    let expected = logits(&all, false);
    let some = Plan {
        layers: vec![0, 3],
        kv_heads: vec![vec![0, 1]; 2],
        neurons: vec![(0..128).collect(); 2],
        tokens: all.tokens.clone(),
    };
    let before = distance(&logits(&some, false), &expected);
    let after = distance(&logits(&some, true), &expected);
    assert!(after < 0.7 * before, "{before} and then {after}");
}

#[test]
fn what_another_draft_learnt_is_kept_for_other_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = model(folder.path());
    let files = Files::open(&path).expect("opened");
    let target = Target::open(&files, &path).expect("read");
    let before = Plan {
        layers: vec![0, 2],
        kv_heads: vec![vec![1]; 2],
        neurons: vec![(64..128).collect(); 2],
        tokens: vec![0, 9, 10, 11, 200],
    };
    let mut state = State::new(weights_of(&target, &before).expect("weights"));
    for weight in state.weights.values_mut() {
        weight.values.iter_mut().for_each(|value| *value += 1.0);
    }
    let sizes = before.sizes(20);
    let again = |state: &State| select::again(&target, &records(), &before, state, &sizes);
    let (after, weights) = again(&state).expect("begun");
    assert_eq!(after.layers, before.layers);
    assert_eq!(after.tokens.len(), 20);
    let fresh = weights_of(&target, &after).expect("weights");
    for (name, (dims, values)) in &weights {
        if name != "output.weight" {
            assert_eq!(*values, state.weights[name].values, "{name}");
            continue;
        }
        assert_eq!(dims[1], 20);
        for (index, value) in values.iter().enumerate() {
            let known = before.tokens.contains(&after.tokens[index % 20]);
            assert_eq!(*value, fresh[name].1[index] + f32::from(u8::from(known)));
        }
    }
    assert!(after.tokens.contains(&10) && !after.tokens.contains(&200));
    state.weights.remove("output_norm.weight");
    assert!(again(&state).is_err());
    let foreign = Plan {
        neurons: vec![vec![100_000]; 2],
        ..before.clone()
    };
    assert!(select::again(&target, &records(), &foreign, &state, &sizes).is_err());
}

#[test]
fn a_folder_is_worked_in_by_one_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let work = folder.path().join("work");
    let held = lock(&work).expect("locked");
    let error = lock(&work).expect_err("held").to_string();
    assert!(error.contains("another run"), "{error}");
    drop(held);
    drop(lock(&work).expect("free again"));
}

#[test]
fn prompts_to_measure_on_are_of_as_many_templates_as_there_are() {
    let prompt = |template: &str| Prompt {
        template: template.to_owned(),
        tokens: vec![1],
        line: String::new(),
    };
    let prompts = ["a", "a", "a", "b", "c", "c"].map(prompt);
    let places = |count: usize| -> Vec<u32> {
        let chosen = spread(&(0..).zip(&prompts).collect(), count);
        chosen.into_iter().map(|(index, _)| index).collect()
    };
    assert_eq!(places(3), [0, 3, 4]);
    assert_eq!(places(4), [0, 1, 3, 4]);
    assert_eq!(places(9), [0, 1, 2, 3, 4, 5]);
}
