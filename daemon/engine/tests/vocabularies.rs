//! Vocabularies of every kind against llama.cpp, from outside.
//!
//! Cases come from `tests/oracle/vocabulary.py`: some hundred of each kind are in the tree, with their vocabulary; the
//! environment variable `ANDON_VOCABULARY_CASES` names further files, separated by colons.

mod support;

use std::path::{Path, PathBuf};

use andon_engine::gguf::Gguf;
use andon_engine::tokenizer::{
    FimTokens, Gap, Special, StreamDecoder, Tokenizer, TokenizerError, pre_tokenizers,
};
use serde_json::Value;
use support::Writer;
use unicode_general_category::{GeneralCategory, get_general_category};

/// What llama.cpp does otherwise, and why we do not, is in the README.
fn is_excused(text: &str, special: Special, kind: &str) -> bool {
    let composed = |c: char| {
        let category = get_general_category(c);
        matches!(
            category,
            GeneralCategory::SpacingMark | GeneralCategory::EnclosingMark
        ) || matches!(c, '\u{ac00}'..='\u{d7a3}')
    };
    match kind {
        // It keeps only the first part of what a character is made of, and drops vowel signs with accents.
        "bert" => text.chars().any(composed),
        // It makes control tokens of plain text.
        "rwkv" => special == Special::Plain && text.contains("<s>"),
        _ => false,
    }
}

fn parse_lines(path: &Path) -> (Value, Vec<Value>) {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"));
    let head = lines.next().expect("a first line");
    (head, lines.collect())
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
    let pairs = digits.as_chunks::<2>().0.iter();
    pairs
        .map(|[high, low]| u8::try_from(high << 4 | low).expect("two digits"))
        .collect()
}

/// The metadata of a file, written as JSON.
fn writer(metadata: &Value) -> Writer {
    let mut writer = Writer::new();
    for (key, value) in metadata.as_object().expect("metadata") {
        let is_float = |value: &Value| value.as_array().is_some_and(|all| all[0].is_f64());
        match value {
            Value::Bool(value) => writer.bool(key, *value),
            Value::Number(value) => {
                let value = value.as_u64().and_then(|value| u32::try_from(value).ok());
                writer.u32(key, value.expect("a u32"))
            }
            Value::String(hex) if key.ends_with("charsmap") => writer.u8s(key, &bytes_of(hex)),
            Value::String(value) => writer.str(key, value),
            value if is_float(value) => {
                let values: Vec<f32> = serde_json::from_value(value.clone()).expect("floats");
                writer.f32s(key, &values)
            }
            Value::Array(values) if values.first().is_some_and(Value::is_string) => {
                let values: Vec<String> = serde_json::from_value(value.clone()).expect("strings");
                writer.strs(key, &values)
            }
            value => {
                let values: Vec<i32> = serde_json::from_value(value.clone()).expect("integers");
                writer.i32s(key, &values)
            }
        };
    }
    writer
}

fn build(writer: &Writer) -> Result<Tokenizer, TokenizerError> {
    let bytes = writer.finish();
    Tokenizer::from_gguf(&Gguf::parse(&bytes).expect("a file"))
}

fn check(tokenizer: &Tokenizer, cases: &[Value], kind: &str, name: &str) {
    let (mut wrong, mut checked) = (0, 0);
    for case in cases {
        let text = case["text"].as_str().expect("a text");
        let special = match case["special"].as_str() {
            Some("parse") => Special::Parse,
            _ => Special::Plain,
        };
        if is_excused(text, special, kind) {
            continue;
        }
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
        let ids = tokenizer.encode(text, special);
        checked += 1;
        if ids != expected {
            wrong += 1;
            if wrong <= 10 {
                let pieces = |ids: &[u32]| -> Vec<String> {
                    let bytes = ids.iter().map(|&id| tokenizer.token_bytes(id));
                    bytes
                        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
                        .collect()
                };
                eprintln!(
                    "{name}: {text:?} {special:?}\n  expected {:?}\n  got      {:?}",
                    pieces(&expected),
                    pieces(&ids)
                );
            }
        }
        let mut decoder = StreamDecoder::new(false);
        let mut streamed = String::new();
        for &id in &ids {
            streamed.push_str(decoder.push(tokenizer, id));
        }
        streamed.push_str(decoder.finish());
        assert_eq!(streamed, tokenizer.decode(&ids));
    }
    println!("{name}: {} of {checked} cases agree", checked - wrong);
    assert_eq!(wrong, 0, "{name}: {wrong} of {checked} cases differ");
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tokenizer")
        .join(format!("{name}.jsonl"))
}

fn small(name: &str) -> (Writer, Vec<Value>) {
    let (head, cases) = parse_lines(&data(name));
    (writer(&head["metadata"]), cases)
}

#[test]
fn small_vocabularies_agree_with_llama_cpp() {
    for name in SMALL {
        let (head, cases) = parse_lines(&data(name));
        assert!(cases.len() >= 150);
        let metadata = &head["metadata"];
        let kind = metadata["tokenizer.ggml.model"].as_str().expect("a kind");
        let tokenizer = build(&writer(metadata)).expect("a tokenizer");
        check(&tokenizer, &cases, kind, name);
    }
}

const SMALL: [&str; 8] = [
    "bert",
    "bert-cased",
    "gemma4",
    "llama",
    "llama-no-prefix",
    "phi-3",
    "rwkv",
    "t5",
];

/// The small byte-level vocabulary.
fn byte_level() -> Writer {
    let (vocabulary, _) = parse_lines(&data("vocabulary").with_extension("json"));
    let list = |name: &str| -> Vec<String> {
        serde_json::from_value(vocabulary[name].clone()).expect("strings")
    };
    let types: Vec<i32> = serde_json::from_value(vocabulary["types"].clone()).expect("types");
    let mut writer = Writer::new();
    writer
        .str("tokenizer.ggml.model", "gpt2")
        .strs("tokenizer.ggml.tokens", &list("tokens"))
        .i32s("tokenizer.ggml.token_type", &types)
        .strs("tokenizer.ggml.merges", &list("merges"))
        .u32("tokenizer.ggml.bos_token_id", 1);
    writer
}

#[test]
fn pre_tokenizers_agree_with_llama_cpp() {
    let mut checked = 0;
    for entry in std::fs::read_dir(data("pre").with_extension("")).expect("a folder") {
        let (head, cases) = parse_lines(&entry.expect("an entry").path());
        let pre = head["pre"].as_str().expect("a name");
        let mut writer = byte_level();
        writer.str("tokenizer.ggml.pre", pre);
        check(&build(&writer).expect("a tokenizer"), &cases, "gpt2", pre);
        checked += 1;
    }
    assert!(checked >= 30);
}

#[test]
fn a_missing_pre_tokenizer_is_assumed_and_said_and_can_be_named() {
    let bytes = byte_level().finish();
    let gguf = Gguf::parse(&bytes).expect("a file");
    let assumed = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
    assert_eq!(assumed.warnings().len(), 1);
    let named = |name| Tokenizer::from_gguf_with(&gguf, Some(name));
    for pre in pre_tokenizers() {
        // Those that mean plain text cannot read merges of the byte alphabet, and say so or find none.
        let _ = named(pre);
    }
    let default = named("default").expect("a tokenizer");
    assert!(default.warnings().is_empty());
    let text = "x = 12345 <b>";
    let ids = |tokenizer: &Tokenizer| tokenizer.encode(text, Special::Plain);
    assert_eq!(ids(&assumed), ids(&default));
    assert_ne!(ids(&assumed), ids(&named("qwen2").expect("a tokenizer")));
    let found = named("no-such").expect_err("an error");
    assert!(
        matches!(found, TokenizerError::NoSuchPreTokenizer { .. }),
        "{found}"
    );
    assert!(found.to_string().contains("llama-bpe"));
}

#[test]
fn hostile_texts_take_no_longer_than_others_however_they_are_cut() {
    for entry in std::fs::read_dir(data("pre").with_extension("")).expect("a folder") {
        let (head, _) = parse_lines(&entry.expect("an entry").path());
        let mut writer = byte_level();
        writer.str("tokenizer.ggml.pre", head["pre"].as_str().expect("a name"));
        let tokenizer = build(&writer).expect("a tokenizer");
        for unit in [
            "1",
            " ",
            "A",
            "ÄB",
            "\n",
            " \n",
            "\u{301}",
            "'s",
            "漢",
            "<sentinel:1",
        ] {
            let text = unit.repeat((1 << 16) / unit.len());
            let ids = tokenizer.encode(&text, Special::Plain);
            let bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id).len()).sum();
            assert_eq!(bytes, text.len(), "{unit:?}");
        }
    }
}

#[test]
fn given_cases_agree_with_llama_cpp() {
    let Ok(paths) = std::env::var("ANDON_VOCABULARY_CASES") else {
        println!("skipped: ANDON_VOCABULARY_CASES names no file of cases");
        return;
    };
    let mut failed = Vec::new();
    for path in std::env::split_paths(&paths) {
        let (head, cases) = parse_lines(&path);
        let bytes = match head["gguf"].as_str() {
            Some(file) => std::fs::read(file).expect("the vocabulary"),
            None => writer(&head["metadata"]).finish(),
        };
        let gguf = Gguf::parse(&bytes).expect("a GGUF file");
        let kind = gguf.str("tokenizer.ggml.model").expect("a kind");
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
        let name = path.display().to_string();
        let checked = std::panic::catch_unwind(|| check(&tokenizer, &cases, kind, &name));
        if checked.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// The small vocabulary of a kind.
fn tokenizer(name: &str) -> Tokenizer {
    build(&small(name).0).expect("a tokenizer")
}

#[test]
fn prompts_start_and_end_as_the_kind_wants() {
    let ends = |name: &str| {
        let tokenizer = tokenizer(name);
        let text = tokenizer.encode("the fox", Special::Plain);
        let prompt = tokenizer.encode_prompt("the fox", Special::Plain);
        let at = prompt.windows(text.len()).position(|part| part == text);
        let at = at.expect("the text is in the prompt");
        (prompt[..at].to_vec(), prompt[at + text.len()..].to_vec())
    };
    assert_eq!(ends("bert"), (vec![2], vec![3]));
    assert_eq!(ends("llama"), (vec![1], vec![]));
    assert_eq!(ends("t5"), (vec![1], vec![2]));
    assert_eq!(ends("rwkv"), (vec![], vec![]));
    // The first files of these models deny what the models need.
    let (mut writer, _) = small("gemma4");
    writer.bool("tokenizer.ggml.add_bos_token", false);
    let gemma = build(&writer).expect("a tokenizer");
    assert_eq!(gemma.encode_prompt("", Special::Plain), [2]);
    // What converters write of a template that has one separator behind a text: that of a pair is not doubled.
    let (mut writer, _) = small("bert");
    writer
        .u32("tokenizer.ggml.eos_token_id", 3)
        .bool("tokenizer.ggml.add_bos_token", true)
        .bool("tokenizer.ggml.add_eos_token", true)
        .bool("tokenizer.ggml.add_sep_token", false);
    let bert = build(&writer).expect("a tokenizer");
    assert_eq!(bert.encode_prompt("", Special::Plain), [2, 3]);
}

#[test]
fn a_file_without_kinds_has_bytes_all_the_same() {
    let mut writer = Writer::new();
    writer.str("tokenizer.ggml.model", "llama").strs(
        "tokenizer.ggml.tokens",
        &["<unk>", "<0xC3>", "<0xA9>", "▁", "a"],
    );
    let tokenizer = build(&writer).expect("a tokenizer");
    assert_eq!(tokenizer.encode("aé", Special::Plain), [3, 4, 1, 2]);
    assert_eq!(tokenizer.decode(&[3, 4, 1, 2]), "aé");
}

#[test]
fn where_answers_are_several_messages_the_end_of_one_is_not_the_end() {
    for (texts, ends) in [
        (["<|end|>", "<|flush|>", "<|calls|>"], [false, true, true]),
        (["<|end|>", "<|return|>", "<|call|>"], [false, true, true]),
        (["<|end|>", "<|eot_id|>", "<|call|>"], [true, true, true]),
    ] {
        let mut writer = bare("llama", &texts, &[3; 3], &[0.0; 3]);
        writer.u32("tokenizer.ggml.eos_token_id", 1);
        let tokenizer = build(&writer).expect("a tokenizer");
        assert_eq!([0, 1, 2].map(|id| tokenizer.is_end_of_generation(id)), ends);
    }
}

#[test]
fn a_space_that_encoding_added_is_not_shown() {
    let llama = tokenizer("llama");
    for text in ["the fox", " the fox", "漢字", "a  b "] {
        let ids = llama.encode(text, Special::Plain);
        assert_eq!(llama.decode(&ids), text);
    }
    // What continues a prompt keeps its space, unless a special token stood before it.
    let ids = llama.encode("the fox", Special::Plain);
    let text_of = |mut decoder: StreamDecoder| -> String {
        let parts = ids.iter().map(|&id| decoder.push(&llama, id).to_owned());
        parts.collect()
    };
    assert_eq!(
        text_of(StreamDecoder::after(&llama, &ids, true)),
        " the fox"
    );
    assert_eq!(text_of(StreamDecoder::after(&llama, &[1], true)), "the fox");
    assert_eq!(text_of(StreamDecoder::after(&llama, &[], true)), "the fox");
    assert_eq!(text_of(StreamDecoder::new(true)), "the fox");
    let plain = tokenizer("llama-no-prefix");
    let ids = plain.encode(" the fox", Special::Plain);
    assert_eq!(plain.decode(&ids), " the fox");
    let bert = tokenizer("bert");
    let ids = bert.encode("The fox, éà!", Special::Plain);
    assert_eq!(bert.decode(&ids), "the fox , ea !");
}

#[test]
fn bytes_of_one_character_come_together() {
    let llama = tokenizer("llama");
    let ids = llama.encode("a🦙b", Special::Plain);
    let mut decoder = StreamDecoder::after(&llama, &ids, true);
    let pieces: Vec<String> = ids
        .iter()
        .map(|&id| decoder.push(&llama, id).to_owned())
        .filter(|piece| !piece.is_empty())
        .collect();
    assert!(pieces.contains(&"🦙".to_owned()), "{pieces:?}");
}

fn bare(model: &str, tokens: &[&str], types: &[i32], scores: &[f32]) -> Writer {
    let mut writer = Writer::new();
    writer
        .str("tokenizer.ggml.model", model)
        .strs("tokenizer.ggml.tokens", tokens)
        .i32s("tokenizer.ggml.token_type", types)
        .f32s("tokenizer.ggml.scores", scores);
    writer
}

#[test]
fn broken_vocabularies_are_errors_that_say_where() {
    let error = |writer: &Writer| build(writer).expect_err("an error");
    for score in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for model in ["llama", "t5"] {
            let writer = bare(
                model,
                &["<unk>", "</s>", "<unk2>", "a"],
                &[2, 3, 3, 1],
                &[0.0, 0.0, 0.0, score],
            );
            assert_eq!(error(&writer), TokenizerError::Score { id: 3 });
        }
    }
    assert_eq!(
        error(&bare("llama", &["<unk>", "a"], &[2, 1], &[0.0])),
        TokenizerError::ScoreCount {
            scores: 1,
            tokens: 2
        }
    );
    let long = "a".repeat(1025);
    for model in ["llama", "t5", "bert", "rwkv"] {
        let mut writer = bare(model, &["<unk>", &long], &[2, 1], &[0.0; 2]);
        writer.u32("tokenizer.ggml.unknown_token_id", 0);
        let found = error(&writer);
        assert!(
            matches!(
                found,
                TokenizerError::TokenLength {
                    id: 1,
                    bytes: 1025,
                    ..
                }
            ),
            "{model}: {found}"
        );
        let mut writer = bare(model, &["<unk>", "a", "a"], &[2, 1, 1], &[0.0; 3]);
        writer.u32("tokenizer.ggml.unknown_token_id", 0);
        assert!(
            matches!(error(&writer), TokenizerError::DuplicateToken { .. }),
            "{model}"
        );
    }
    for model in ["t5", "bert"] {
        let found = error(&bare(model, &["a"], &[1], &[0.0]));
        assert!(
            matches!(found, TokenizerError::NoUnknownToken { .. }),
            "{model}: {found}"
        );
    }
    let mut writer = bare("t5", &["<unk>"], &[2], &[0.0]);
    writer
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .u8s("tokenizer.ggml.precompiled_charsmap", &[9, 0, 0, 0]);
    assert!(matches!(error(&writer), TokenizerError::Charsmap { .. }));
}

#[test]
fn tokens_around_a_gap_are_those_named_and_those_known() {
    let tokens = [
        "<unk>",
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        "<fim_pad>",
        "<reponame>",
        "a",
        "</s>",
    ];
    let mut writer = bare("llama", &tokens, &[2, 1, 3, 4, 3, 3, 1, 4], &[0.0; 8]);
    writer.bool("tokenizer.ggml.add_space_prefix", false);
    writer.u32("tokenizer.ggml.bos_token_id", 0);
    writer.u32("tokenizer.ggml.eos_token_id", 0);
    let tokenizer = build(&writer).expect("a tokenizer");
    let fim = tokenizer.fim();
    assert_eq!(
        (fim.prefix, fim.suffix, fim.middle),
        (Some(1), Some(2), Some(3))
    );
    assert_eq!(
        (fim.pad, fim.repository, fim.separator),
        (Some(4), Some(5), None)
    );
    let ends: Vec<u32> = (0..8)
        .filter(|&id| tokenizer.is_end_of_generation(id))
        .collect();
    assert_eq!(ends, [0, 4, 5]);
    assert_eq!(tokenizer.encode("<fim_prefix>a", Special::Parse), [1, 6]);
    assert!(
        !tokenizer
            .encode("<fim_prefix>a", Special::Plain)
            .contains(&1)
    );
    writer.u32("tokenizer.ggml.fim_pre_token_id", 6);
    writer.u32("tokenizer.ggml.middle_token_id", 7);
    let fim = build(&writer).expect("a tokenizer").fim();
    assert_eq!(
        (fim.prefix, fim.suffix, fim.middle),
        (Some(6), Some(2), Some(7))
    );
    assert_eq!(self::tokenizer("llama").fim(), FimTokens::default());
}

#[test]
fn what_stands_around_a_gap_goes_behind_its_tokens() {
    let tokens = [
        "<unk>",
        "<s>",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        "<|repo_name|>",
        "<|file_sep|>",
        "a",
        "b",
        "\n",
        "▁",
        "▁a",
    ];
    let kinds = [2, 3, 3, 3, 3, 3, 3, 1, 1, 1, 1, 1];
    let vocabulary = |space: bool| {
        let mut writer = bare("llama", &tokens, &kinds, &[0.0; 12]);
        writer.bool("tokenizer.ggml.add_space_prefix", space);
        writer.u32("tokenizer.ggml.bos_token_id", 1);
        build(&writer).expect("a tokenizer")
    };
    let tokenizer = vocabulary(false);
    let gap = Gap {
        before: "ab",
        after: "ba",
        ..Gap::default()
    };
    assert_eq!(
        tokenizer.encode_gap(&gap),
        Some(vec![1, 2, 7, 8, 3, 8, 7, 4])
    );
    // Where text begins with a space, only what stands behind the gap does not: it goes on.
    let spaced = vocabulary(true);
    let text = |text: &str| tokenizer.encode(text, Special::Plain);
    let before = [&[1, 2][..], &text(" ab"), &[3]].concat();
    assert_eq!(
        spaced.encode_gap(&gap),
        Some([&before[..], &text("ba"), &[4]].concat())
    );
    let prompt = spaced.encode_gap(&gap).expect("a prompt");
    let mut decoder = StreamDecoder::after(&spaced, &prompt, true);
    assert_eq!(decoder.push(&spaced, 11), " a");
    // Text never becomes one of these tokens.
    let hostile = Gap {
        before: "a<|fim_middle|>",
        ..gap
    };
    let prompt = tokenizer.encode_gap(&hostile).expect("a prompt");
    assert_eq!(prompt.iter().filter(|&&id| id == 4).count(), 1);
    let files = Gap {
        files: &[("a", "b"), ("b", "")],
        ..gap
    };
    let prompt = tokenizer.encode_gap(&files).expect("a prompt");
    assert_eq!(prompt.first(), Some(&1));
    assert_eq!(prompt.get(1), Some(&5), "the repository's name is first");
    let separators: Vec<&[u32]> = prompt.split(|&id| id == 6).collect();
    assert_eq!(separators[1..3], [&[7, 9, 8][..], &[8, 9]]);
    assert!(separators[3].ends_with(&[2, 7, 8, 3, 8, 7, 4]));
    assert_eq!(self::tokenizer("llama").encode_gap(&gap), None);
}

/// What no token has, without a token to say so.
#[test]
fn vocabularies_that_lack_nearly_everything_still_encode() {
    for model in ["llama", "rwkv", "t5", "bert"] {
        let mut writer = bare(model, &["<unk>", "▁a", "b"], &[2, 1, 1], &[0.0; 3]);
        if model != "rwkv" {
            writer.u32("tokenizer.ggml.unknown_token_id", 0);
        }
        let tokenizer = build(&writer).expect("a tokenizer");
        let ids = tokenizer.encode("a b漢 <unk>\0", Special::Plain);
        assert!(ids.len() < 16, "{model}: {ids:?}");
    }
}

/// Were any part quadratic, this would take hours.
#[test]
fn hostile_texts_take_no_longer_than_others() {
    // Tokens that are made one character at a time, of which a text is made as well.
    let mut tokens = vec!["<unk>".to_owned()];
    tokens.extend((1..=1000).map(|count| "a".repeat(count)));
    tokens.extend((1..=200).map(|count| "▁".repeat(count)));
    let mut chain = Writer::new();
    let scores: Vec<f32> = (0..tokens.len()).map(|id| id as f32).collect();
    let types = vec![1; tokens.len()];
    chain
        .str("tokenizer.ggml.model", "llama")
        .strs("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .f32s("tokenizer.ggml.scores", &scores);
    let chain = build(&chain).expect("a tokenizer");
    assert_eq!(
        chain.encode(&"a".repeat(100_000), Special::Plain).len(),
        101
    );
    for name in SMALL {
        let tokenizer = tokenizer(name);
        for unit in [
            "a", " ", "\n", "漢", "\u{301}", "\u{ac00}", "\u{fdfa}", "▁", "th", " a", "<", "🦙",
            "\0",
        ] {
            let text = unit.repeat((1 << 16) / unit.len());
            let ids = tokenizer.encode(&text, Special::Parse);
            assert!(ids.len() <= text.len() * 8);
        }
    }
}
