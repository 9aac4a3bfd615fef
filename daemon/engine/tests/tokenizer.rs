//! The tokenizer against Hugging Face's `tokenizers`, from outside.
//!
//! Cases come from `tests/oracle/tokenizer.py`: a small vocabulary and some thousand cases are in the
//! tree; the environment variable `ANDON_TOKENIZER_CASES` names further files, separated by colons.

mod support;

use std::path::{Path, PathBuf};

use andon_engine::gguf::Gguf;
use andon_engine::tokenizer::{Special, StreamDecoder, Tokenizer};
use serde_json::Value;
use support::Writer;

fn parse_lines(path: &Path) -> (Value, Vec<Value>) {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"));
    let head = lines.next().expect("a first line");
    (head, lines.collect())
}

fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no {name} in {value}"))
}

fn check_cases(tokenizer: &Tokenizer, cases: &[Value], name: &str) {
    let mut wrong = 0;
    for case in cases {
        let text = field(case, "text");
        let special = match field(case, "special") {
            "parse" => Special::Parse,
            _ => Special::Plain,
        };
        let expected: Vec<u32> = case["ids"]
            .as_array()
            .expect("ids")
            .iter()
            .map(|id| {
                id.as_u64()
                    .and_then(|id| id.try_into().ok())
                    .expect("an id")
            })
            .collect();
        let ids = tokenizer.encode(text, special);
        if ids != expected {
            wrong += 1;
            if wrong <= 10 {
                eprintln!(
                    "{name}: {text:?} {special:?}\n  expected {expected:?}\n  got      {ids:?}"
                );
            }
        }
        check_decoding(tokenizer, &ids, text);
    }
    assert_eq!(wrong, 0, "{name}: {wrong} of {} cases differ", cases.len());
    println!("{name}: {} cases agree", cases.len());
}

fn check_decoding(tokenizer: &Tokenizer, ids: &[u32], text: &str) {
    let whole = tokenizer.decode(ids);
    let mut decoder = StreamDecoder::new(false);
    let mut streamed = String::new();
    for &id in ids {
        streamed.push_str(decoder.push(tokenizer, id));
    }
    streamed.push_str(decoder.finish());
    assert_eq!(streamed, whole);
    let bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id).len()).sum();
    // Some vocabularies lack bytes; where none was left out, what comes back is the text.
    if bytes == text.len() {
        assert_eq!(whole, text);
    } else {
        assert!(bytes < text.len());
    }
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tokenizer")
        .join(name)
}

fn strings(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).expect("a list of strings")
}

/// The metadata of the small vocabulary in the tree.
fn small_vocabulary(pre: &str) -> Writer {
    let (vocabulary, _) = parse_lines(&data("vocabulary.json"));
    let types: Vec<i32> = serde_json::from_value(vocabulary["types"].clone()).expect("types");
    let mut writer = Writer::new();
    writer
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .strs("tokenizer.ggml.tokens", &strings(&vocabulary["tokens"]))
        .i32s("tokenizer.ggml.token_type", &types)
        .strs("tokenizer.ggml.merges", &strings(&vocabulary["merges"]))
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    writer
}

fn small(pre: &str) -> Tokenizer {
    let bytes = small_vocabulary(pre).finish();
    Tokenizer::from_gguf(&Gguf::parse(&bytes).expect("a file")).expect("a tokenizer")
}

#[test]
fn small_vocabulary_agrees_with_tokenizers() {
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
        let (head, cases) = parse_lines(&data(&format!("{pre}.jsonl")));
        assert_eq!(field(&head, "pre"), pre);
        assert!(cases.len() > 500);
        check_cases(&small(pre), &cases, pre);
    }
}

#[test]
fn given_cases_agree_with_tokenizers() {
    let Ok(paths) = std::env::var("ANDON_TOKENIZER_CASES") else {
        println!("skipped: ANDON_TOKENIZER_CASES names no file of cases");
        return;
    };
    for path in std::env::split_paths(&paths) {
        let (head, cases) = parse_lines(&path);
        let vocabulary = std::fs::read(field(&head, "gguf")).expect("the vocabulary");
        let gguf = Gguf::parse(&vocabulary).expect("a GGUF file");
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
        check_cases(&tokenizer, &cases, &path.display().to_string());
    }
}

#[test]
fn shared_vocabularies_give_the_recorded_tokens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/vocab");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("skipped: {} is not there", folder.display());
        return;
    };
    let mut checked = 0;
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a file");
        let gguf = Gguf::parse(&bytes).expect("a GGUF file");
        if gguf.str("tokenizer.ggml.model") != Ok("gpt2") {
            println!("skipped: {} is another kind of tokenizer", path.display());
            continue;
        }
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
        let beside = |extension: &str| {
            let name = format!("{}.{extension}", path.display());
            std::fs::read_to_string(&name).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let (texts, expected) = (beside("inp"), beside("out"));
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<&str> = expected.lines().collect();
        assert!(expected.len() + 1 >= texts.len() && expected.len() <= texts.len());
        for (text, expected) in texts.iter().zip(expected) {
            let ids = tokenizer.encode(text, Special::Plain);
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            assert_eq!(
                ids.join(" "),
                expected.trim(),
                "{}: {text:?}",
                path.display()
            );
        }
        checked += 1;
    }
    assert!(checked > 0);
    println!("{checked} vocabularies agree");
}
