//! Model files as they should not be: split, cut off while they run, damaged.

#![forbid(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use andon_engine::gguf::Gguf;
use andon_engine::{
    Chunk, Executor, ExecutorOptions, Files, ForwardError, LoadOptions, LogitsFor, Model,
    VerifyError,
};
use andon_tests::tiny_model::{TensorType, TinyModel};

fn executor(path: &Path, threads: usize) -> Executor {
    let model = Arc::new(Model::load(path).expect("a sound model"));
    let options = ExecutorOptions {
        threads: Some(threads),
        batch_tokens_max: 64,
        kv_tokens_max: 256,
        ..ExecutorOptions::default()
    };
    Executor::new(model, &options).expect("an executor")
}

fn logits(executor: &mut Executor) -> Result<Vec<f32>, ForwardError> {
    let mut sequence = executor.sequence();
    let chunk = Chunk {
        sequence: &mut sequence,
        tokens: &[1, 17, 40, 99],
        logits: LogitsFor::Last,
    };
    executor
        .forward(&mut [chunk])
        .map(|logits| logits.row(0).to_vec())
}

#[test]
fn a_split_model_is_the_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = TinyModel::default();
    let whole = folder.path().join("whole.gguf");
    model.write(&whole).expect("written");
    let expected = logits(&mut executor(&whole, 2)).expect("logits");
    let name = |number: usize| -> PathBuf {
        folder
            .path()
            .join(format!("tiny-{:05}-of-00003.gguf", number + 1))
    };
    let parts = model.parts(7);
    assert_eq!(parts.len(), 3);
    for (number, part) in parts.into_iter().enumerate() {
        std::fs::write(name(number), part).expect("written");
    }
    for number in 0..3 {
        let mut split = executor(&name(number), 2);
        let total: u64 = (0..3)
            .map(|number| std::fs::metadata(name(number)).expect("there").len())
            .sum();
        assert_eq!(split.model().info().file_bytes as u64, total);
        assert_eq!(logits(&mut split).expect("logits"), expected);
    }
}

#[test]
fn a_model_cut_off_while_it_is_used_fails_its_batches_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    for threads in [1, 3] {
        let (cut, whole) = (folder.path().join("cut"), folder.path().join("whole"));
        for path in [&cut, &whole] {
            TinyModel::default().write(path).expect("written");
        }
        let (mut first, mut second) = (executor(&cut, threads), executor(&whole, threads));
        let expected = logits(&mut first).expect("logits");
        assert!(first.model().damaged().is_none());
        let file = File::options().write(true).open(&cut).expect("opened");
        file.set_len(0).expect("truncated");
        let free = first.kv_tokens_free();
        for _ in 0..2 {
            let error = logits(&mut first).expect_err("the file is gone");
            assert_eq!(error, ForwardError::ModelChanged { part: 0 });
        }
        assert_eq!(first.kv_tokens_free(), free, "its pages are free again");
        assert_eq!(first.model().damaged(), Some(&*cut));
        assert_eq!(logits(&mut second).expect("logits"), expected);
    }
}

#[test]
fn an_infinite_scale_is_found_where_it_is() {
    for weights in TensorType::ALL {
        let model = TinyModel {
            layer_count: 1,
            embedding: 256,
            feed_forward: 256,
            weights,
            ..TinyModel::default()
        };
        let mut bytes = model.bytes();
        let load = |bytes: &[u8]| {
            let files = Files::of_bytes(Path::new("a model"), bytes).expect("bytes");
            Model::from_files(files, &LoadOptions::default()).expect("a sound model")
        };
        let mut last = (0, 0);
        load(&bytes)
            .verify(&mut |done, total| last = (done, total))
            .expect("finite weights");
        assert!(last.0 == last.1 && last.1 > 0, "{last:?}");
        let gguf = Gguf::parse(&bytes).expect("a file");
        let tensor = gguf.tensor("blk.0.ffn_up.weight").expect("a tensor");
        let (format, block) = (tensor.format.expect("known"), tensor.range.len() / 2);
        let size = format.block_bytes();
        let start = tensor.range.start + block / size * size;
        // All ones are no number in every format of floats and of scales.
        bytes[start..start + size].fill(0xff);
        match load(&bytes).verify(&mut |_, _| {}) {
            Err(VerifyError::NotFinite { offset, tensor, .. }) => {
                assert_eq!((offset, tensor.as_str()), (start, "blk.0.ffn_up.weight"));
            }
            other => panic!("{format:?}: {other:?}"),
        }
    }
}
