//! Model files as they should not be: split, cut off while they run, damaged.

#![forbid(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use andon_engine::gguf::{Gguf, Value, ValueType};
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

/// A GGUF file of these tensors of `whole`, with its metadata in the first part only.
fn part(whole: &Gguf<'_>, number: usize, count: usize) -> Vec<u8> {
    let mut metadata = Vec::new();
    let mut pairs = 0_u64;
    let mut put = |key: &str, value_type: ValueType, bytes: &[u8]| {
        pairs += 1;
        metadata.extend((key.len() as u64).to_le_bytes());
        metadata.extend(key.as_bytes());
        metadata.extend((value_type as u32).to_le_bytes());
        metadata.extend(bytes);
    };
    put("split.no", ValueType::U16, &(number as u16).to_le_bytes());
    put("split.count", ValueType::U16, &(count as u16).to_le_bytes());
    let all = i32::try_from(whole.tensors().len()).expect("few");
    put("split.tensors.count", ValueType::I32, &all.to_le_bytes());
    for key in whole.keys().filter(|_| number == 0) {
        let value = whole.get(key).expect("a value");
        put(key, value.value_type(), &bytes_of(&value));
    }
    let tensors: Vec<_> = whole
        .tensors()
        .iter()
        .enumerate()
        .filter(|(index, _)| index % count == number)
        .map(|(_, tensor)| tensor)
        .collect();
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend(pairs.to_le_bytes());
    file.extend(metadata);
    let mut start = 0_usize;
    for tensor in &tensors {
        file.extend((tensor.name.len() as u64).to_le_bytes());
        file.extend(tensor.name.as_bytes());
        file.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor
            .dims
            .iter()
            .for_each(|&size| file.extend((size as u64).to_le_bytes()));
        file.extend(tensor.ggml_type.to_le_bytes());
        file.extend((start as u64).to_le_bytes());
        start += tensor.range.len().next_multiple_of(32);
    }
    for tensor in &tensors {
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(whole.data(tensor));
    }
    file
}

fn bytes_of(value: &Value<'_>) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    match *value {
        Value::U32(value) => value.to_le_bytes().to_vec(),
        Value::F32(value) => value.to_le_bytes().to_vec(),
        Value::Bool(value) => vec![u8::from(value)],
        Value::Str(text) => string(text),
        Value::Array(array) => {
            let mut bytes = (array.element_type() as u32).to_le_bytes().to_vec();
            bytes.extend((array.len() as u64).to_le_bytes());
            array
                .strs()
                .into_iter()
                .flatten()
                .for_each(|text| bytes.extend(string(text)));
            array
                .numbers::<i32>()
                .into_iter()
                .flatten()
                .for_each(|number| bytes.extend(number.to_le_bytes()));
            array
                .numbers::<f32>()
                .into_iter()
                .flatten()
                .for_each(|number| bytes.extend(number.to_le_bytes()));
            bytes
        }
        ref other => panic!("tiny models have no {other:?}"),
    }
}

#[test]
fn a_split_model_is_the_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = TinyModel::default().bytes();
    let whole = folder.path().join("whole.gguf");
    std::fs::write(&whole, &bytes).expect("written");
    let expected = logits(&mut executor(&whole, 2)).expect("logits");
    let gguf = Gguf::parse(&bytes).expect("a file");
    let name = |number: usize| -> PathBuf {
        folder
            .path()
            .join(format!("tiny-{:05}-of-00003.gguf", number + 1))
    };
    for number in 0..3 {
        std::fs::write(name(number), part(&gguf, number, 3)).expect("written");
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
