//! Logits of tiny models of every architecture against graphs in double precision, which are written from the
//! published descriptions ([`graphs`]) and share nothing with the engine but the file format.
//!
//! The bound is what rounding to single precision can do: each graph also runs with every result moved at random by as
//! much as the engine's roundings of that step may move it, and the engine must stay within a few times of where that
//! leads. So a graph that amplifies errors is allowed more, and one that does not is held to it.
//!
//! With `ANDON_REFERENCE_DIR`, files and the engine's logits are left there for `oracle/logits.py`.

#![forbid(unsafe_code)]

mod graphs;
mod math;
mod weights;

use andon_engine::{Chunk, Executor, ExecutorOptions, LogitsFor, Model};
use andon_tests::tiny_model::{Architecture, TensorType, TinyModel};
use math::Math;
use std::path::Path;
use std::sync::Arc;
use weights::Weights;

/// Positions: more than a page of the cache, and than any window.
const TOKENS: usize = 72;

/// Runs with roundings at random. A key or value that rounds to the next half-precision number moves logits by far more
/// than anything else and happens in some runs only, so it takes several.
const RUNS: u64 = 6;

/// How far beyond the worst of those runs the engine may be: each is one draw from what roundings do.
const MARGIN: f64 = 4.0;

fn engine_logits(path: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let model = Arc::new(Model::load(path).expect("a sound model"));
    let options = ExecutorOptions {
        threads: Some(2),
        batch_tokens_max: TOKENS,
        kv_tokens_max: 1024,
        ..ExecutorOptions::default()
    };
    let mut executor = Executor::new(model, &options).expect("a valid executor");
    let mut sequence = executor.sequence();
    let chunk = Chunk {
        sequence: &mut sequence,
        tokens,
        logits: LogitsFor::All,
    };
    let logits = executor.forward(&mut [chunk]).expect("a valid batch");
    (0..logits.row_count())
        .map(|row| logits.row(row).to_vec())
        .collect()
}

/// The largest distance between two sets of logits.
fn distance(left: &[Vec<f64>], right: &[Vec<f64>]) -> f64 {
    let rows = left.iter().zip(right);
    let pairs = rows.flat_map(|(left, right)| left.iter().zip(right));
    pairs.fold(0.0, |largest, (left, right)| {
        // `max` would lose a NaN.
        let distance = (left - right).abs();
        if distance > largest || distance.is_nan() {
            distance
        } else {
            largest
        }
    })
}

fn check(model: &TinyModel, path: &Path) {
    let title = model.architecture.title;
    model.write(path).expect("writable");
    let weights = Weights::read(path);
    let vocabulary = weights.matrix("token_embd").rows as u32;
    let tokens: Vec<u32> = (0..TOKENS as u32)
        .map(|index| (index * 7919 + 3) % vocabulary)
        .collect();
    let exact = graphs::logits(&mut Math::exact(), &weights, &tokens);
    let bound = (0..RUNS)
        .map(|run| {
            let rounded = graphs::logits(&mut Math::rounded(run), &weights, &tokens);
            distance(&rounded, &exact)
        })
        .fold(0.0, f64::max)
        * MARGIN;
    let logits = engine_logits(path, &tokens);
    let wide: Vec<Vec<f64>> = logits
        .iter()
        .map(|row| row.iter().map(|&logit| f64::from(logit)).collect())
        .collect();
    assert_eq!(wide.len(), exact.len());
    let actual = distance(&wide, &exact);
    let size = exact.iter().flatten().fold(0.0, |a: f64, b| a.max(b.abs()));
    eprintln!(
        "{title}: {actual:.2e} from the reference, bound {bound:.2e}, logits up to {size:.2}"
    );
    assert!(
        bound < 0.01 * size,
        "{title}: a bound of {bound} says nothing"
    );
    assert!(
        actual <= bound,
        "{title}: {actual} from the reference, bound {bound}"
    );
    if let Some(folder) = std::env::var_os("ANDON_REFERENCE_DIR") {
        let name: String = title
            .chars()
            .map(|c| if c.is_alphanumeric() { c } else { '_' })
            .collect();
        let base = Path::new(&folder).join(name);
        std::fs::copy(path, base.with_extension("gguf")).expect("writable");
        let row = |row: &Vec<f32>| format!("{row:?}");
        let rows: Vec<String> = logits.iter().map(row).collect();
        let text = format!("{{\"tokens\":{tokens:?},\"logits\":[{}]}}", rows.join(","));
        std::fs::write(base.with_extension("json"), text).expect("writable");
    }
}

#[test]
fn every_architecture_follows_double_precision() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    for architecture in Architecture::ALL {
        let model = TinyModel {
            architecture,
            layer_count: architecture.layer_count,
            embedding: 64,
            feed_forward: 96,
            weights: TensorType::F32,
            // Gemma's files never have an output matrix, OLMo's always do.
            tied: architecture.name.starts_with("gemma"),
            ..TinyModel::default()
        };
        check(&model, &path);
    }
}

#[test]
fn odd_sizes_follow_double_precision() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    for (head_count, head_count_kv, head_dim) in [(3, 1, 18), (2, 1, 40), (1, 1, 256)] {
        let model = TinyModel {
            embedding: 52,
            feed_forward: 76,
            head_count,
            head_count_kv,
            head_dim: Some(head_dim),
            weights: TensorType::F16,
            ..TinyModel::default()
        };
        check(&model, &path);
    }
}
