//! The tokenizer against Hugging Face's `tokenizers`, from outside.
//!
//! Cases come from `tests/oracle/tokenizer.py`: a small vocabulary and some thousand cases are in the
//! tree; the environment variable `ANDON_TOKENIZER_CASES` names further files, separated by colons.

mod support;

use std::path::{Path, PathBuf};

use andon_engine::gguf::Gguf;
use andon_engine::tokenizer::{
    ChatInput, ChatMessage, ChatTemplate, Special, StreamDecoder, TemplateError, Tokenizer,
    TokenizerError,
};
use proptest::prelude::*;
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
        let has_texts = path.with_added_extension("inp").exists();
        if path.extension().is_none_or(|extension| extension != "gguf") || !has_texts {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a file");
        let gguf = Gguf::parse(&bytes).expect("a GGUF file");
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

fn build(writer: &Writer) -> Result<Tokenizer, TokenizerError> {
    let bytes = writer.finish();
    Tokenizer::from_gguf(&Gguf::parse(&bytes).expect("a file"))
}

/// A vocabulary of a few tokens, and none that bytes need.
fn bare(tokens: &[&str], types: Option<&[i32]>, merges: &[&str]) -> Writer {
    let mut writer = Writer::new();
    writer
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .strs("tokenizer.ggml.tokens", tokens)
        .strs("tokenizer.ggml.merges", merges);
    if let Some(types) = types {
        writer.i32s("tokenizer.ggml.token_type", types);
    }
    writer
}

#[test]
fn broken_vocabularies_are_errors_that_say_where() {
    let fine =
        build(&bare(&["a", "b", "ab", ""], Some(&[1, 1, 1, 1]), &["a b"])).expect("a tokenizer");
    assert_eq!(fine.encode("abba", Special::Plain), [2, 1, 0]);
    assert_eq!(
        fine.encode("acb", Special::Plain),
        [2],
        "what there is no token for is left out"
    );
    assert_eq!(
        build(&bare(&["a"], None, &[])).map(|t| t.vocabulary_count()),
        Ok(1)
    );

    let error = |writer: &Writer| build(writer).expect_err("an error");
    let mut other = Writer::new();
    other.str("tokenizer.ggml.model", "plamo2");
    let model = "plamo2".to_owned();
    assert_eq!(error(&other), TokenizerError::UnsupportedModel { model });
    let mut other = Writer::new();
    other
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "no-such");
    let pre = "no-such".to_owned();
    assert_eq!(error(&other), TokenizerError::UnknownPreTokenizer { pre });
    assert!(matches!(error(&Writer::new()), TokenizerError::Meta(_)));
    let none: [&str; 0] = [];
    assert!(matches!(
        error(&bare(&none, None, &[])),
        TokenizerError::VocabularyCount { count: 0, .. }
    ));
    assert_eq!(
        error(&bare(&["a", "b"], Some(&[1]), &[])),
        TokenizerError::TokenTypeCount {
            types: 1,
            tokens: 2
        }
    );
    assert_eq!(
        error(&bare(&["a", "b"], Some(&[1, 9]), &[])),
        TokenizerError::TokenType { id: 1 }
    );
    assert_eq!(
        error(&bare(&["a", "b", "a"], None, &[])),
        TokenizerError::DuplicateToken {
            first: 0,
            second: 2
        }
    );
    for merge in ["ab", "a ", " b", "", "a b c", "a  b"] {
        let found = error(&bare(&["a", "b", "ab"], None, &[merge]));
        assert!(
            matches!(found, TokenizerError::MalformedMerge { index: 0, .. }),
            "{merge:?}: {found}"
        );
    }
    for merge in ["a c", "b a", "c a", "▁ a"] {
        let found = error(&bare(&["a", "b", "ab"], None, &["a b", merge]));
        assert!(
            matches!(found, TokenizerError::UnknownMerge { index: 1, .. }),
            "{merge:?}: {found}"
        );
    }
    // Merges that are left out keep their places in what is said of later ones.
    let found = error(&bare(&["a", "b", "ab"], None, &["a b", "a b", "b a"]));
    assert!(
        matches!(found, TokenizerError::UnknownMerge { index: 2, .. }),
        "{found}"
    );
    for key in ["bos", "eos", "eot", "eom"] {
        let mut writer = bare(&["a"], None, &[]);
        writer.u32(&format!("tokenizer.ggml.{key}_token_id"), 1);
        assert!(
            matches!(
                error(&writer),
                TokenizerError::TokenId {
                    id: 1,
                    count: 1,
                    ..
                }
            ),
            "{key}"
        );
    }
    let mut writer = bare(&["a"], None, &[]);
    writer.bool("tokenizer.ggml.add_bos_token", true);
    assert!(matches!(
        error(&writer),
        TokenizerError::MissingToken { .. }
    ));
    let mut writer = bare(&["a"], None, &[]);
    writer.u32("tokenizer.ggml.add_bos_token", 1);
    assert!(matches!(error(&writer), TokenizerError::Meta(_)));
}

#[test]
fn the_first_of_equal_merges_counts() {
    let tokens = ["a", "b", "c", "ab", "bc"];
    let encode = |merges: &[&str]| {
        let bytes = bare(&tokens, None, merges).finish();
        let gguf = Gguf::parse(&bytes).expect("a file");
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
        tokenizer.encode("abc", Special::Plain)
    };
    // `a b` is before `b c` at its first place and after it at its second.
    assert_eq!(encode(&["a b", "b c", "a b"]), [3, 2]);
    assert_eq!(encode(&["b c", "a b", "b c"]), [0, 4]);
    // More than are looked up together.
    assert_eq!(encode(&[&["a b"; 200][..], &["b c"]].concat()), [3, 2]);
    assert_eq!(encode(&[&["b c"; 200][..], &["a b"]].concat()), [0, 4]);
}

#[test]
fn control_tokens_are_text_unless_parsed() {
    let tokenizer = small("smollm");
    let (start, end) = (
        tokenizer.id_of("<|im_start|>"),
        tokenizer.id_of("<|im_end|>"),
    );
    let (start, end) = (start.expect("a token"), end.expect("a token"));
    let text = "<|im_start|>user\nab<|im_end|>";
    let parsed = tokenizer.encode(text, Special::Parse);
    assert_eq!((parsed.first(), parsed.last()), (Some(&start), Some(&end)));
    let plain = tokenizer.encode(text, Special::Plain);
    assert!(!plain.contains(&start) && !plain.contains(&end));
    assert!(plain.iter().all(|&id| !tokenizer.is_control(id)));
    // User-defined tokens are found in both.
    let user_defined = tokenizer.id_of("ab").expect("a token");
    assert!(parsed.contains(&user_defined) && plain.contains(&user_defined));
    assert!(tokenizer.is_control(start) && !tokenizer.is_control(user_defined));
    assert_eq!(tokenizer.decode(&parsed), text);
    assert_eq!(tokenizer.decode(&plain), text);
    // The longest of those that start at the same place: "<|im|>" is a token, too.
    let tool = tokenizer.id_of("<｜tool▁sep｜>").expect("a token");
    let ids = tokenizer.encode("<|im|><|im_end|><｜tool▁sep｜>", Special::Parse);
    assert_eq!(
        ids,
        [tokenizer.id_of("<|im|>").expect("a token"), end, tool]
    );
    assert_eq!(tokenizer.token_bytes(tool), "<｜tool▁sep｜>".as_bytes());
}

#[test]
fn unknown_ids_are_nothing() {
    let tokenizer = small("gpt-2");
    let count = u32::try_from(tokenizer.vocabulary_count()).expect("a count");
    for id in [count, u32::MAX] {
        assert!(tokenizer.token_bytes(id).is_empty());
        assert!(!tokenizer.is_control(id) && !tokenizer.is_end_of_generation(id));
        assert_eq!(tokenizer.decode(&[id]), "");
    }
    assert_eq!(tokenizer.id_of("no such token"), None);
    assert_eq!(tokenizer.id_of(""), None);
    assert_eq!(
        tokenizer.id_of(" the").map(|id| tokenizer.token_bytes(id)),
        Some(&b" the"[..])
    );
}

#[test]
fn prompts_start_and_end_as_the_file_says() {
    let tokenizer = |bos: Option<bool>, eos: Option<bool>, pre: &str| {
        let mut writer = small_vocabulary(pre);
        bos.map(|bos| writer.bool("tokenizer.ggml.add_bos_token", bos).u32("x", 0));
        eos.map(|eos| writer.bool("tokenizer.ggml.add_eos_token", eos).u32("y", 0));
        build(&writer).expect("a tokenizer")
    };
    let none = tokenizer(None, None, "smollm");
    let text = none.encode("hello", Special::Plain);
    assert_eq!((none.bos(), none.eos()), (Some(1), Some(2)));
    assert_eq!(none.encode_prompt("hello", Special::Parse), text);
    let both = tokenizer(Some(true), Some(true), "smollm");
    let with = |head: &[u32], tail: &[u32]| [head, &text, tail].concat();
    assert_eq!(
        both.encode_prompt("hello", Special::Parse),
        with(&[1], &[2])
    );
    assert_eq!(both.encode_prompt("", Special::Parse), [1, 2]);
    // A template has already written them.
    assert_eq!(
        both.encode_prompt("<|im_start|>hello<|im_end|>", Special::Parse),
        with(&[1], &[2])
    );
    let plain = both.encode_prompt("<|im_start|>", Special::Plain);
    assert!(plain.first() == Some(&1) && plain.len() > 3);
    let llama = tokenizer(None, None, "llama-bpe");
    assert_eq!(llama.encode_prompt("", Special::Parse), [1]);
    assert!(
        tokenizer(Some(false), None, "llama-bpe")
            .encode_prompt("", Special::Parse)
            .is_empty()
    );
}

#[test]
fn ends_are_those_named_and_those_known() {
    let mut writer = small_vocabulary("qwen2");
    writer.u32("tokenizer.ggml.eot_token_id", 4);
    let tokenizer = build(&writer).expect("a tokenizer");
    let ends: Vec<u32> = (0..900)
        .filter(|&id| tokenizer.is_end_of_generation(id))
        .collect();
    // <|endoftext|>, <|im_end|>, and the one named above.
    assert_eq!(ends, [0, 2, 4]);
    // An end token that the file calls normal is still one, and a control token.
    let tokens = ["a", "<|im_end|>", "<|return|>", "<|call|>", "<|end|>"];
    let tokenizer = build(&bare(&tokens, Some(&[1; 5]), &[])).expect("a tokenizer");
    let ends: Vec<bool> = (0..5)
        .map(|id| tokenizer.is_end_of_generation(id))
        .collect();
    assert_eq!(ends, [false, true, true, true, false]);
    assert!(tokenizer.is_control(1));
    assert_eq!(tokenizer.encode("a<|im_end|>", Special::Parse), [0, 1]);
}

#[test]
fn a_template_knows_the_tokens_of_its_file() {
    let mut writer = small_vocabulary("smollm");
    let template = |writer: &Writer| -> Result<Option<ChatTemplate>, TemplateError> {
        let bytes = writer.finish();
        let gguf = Gguf::parse(&bytes).expect("a file");
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
        ChatTemplate::from_gguf(&gguf, &tokenizer)
    };
    assert!(matches!(template(&writer), Ok(None)));
    let source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";
    writer.str("tokenizer.chat_template", source);
    let template = template(&writer)
        .expect("a template")
        .expect("there is one");
    let prompt = template.render(&ChatInput {
        messages: &[ChatMessage::new("user", "hello")],
        ..ChatInput::default()
    });
    assert_eq!(prompt.as_deref(), Ok("<|im_start|>hello<|im_end|>"));
}

#[test]
fn streams_hold_back_unfinished_characters_and_skip_control_tokens() {
    let tokenizer = small("gpt-2");
    let ids = tokenizer.encode("<|im_start|>a😀漢é<|im_end|>", Special::Parse);
    let mut decoder = StreamDecoder::new(true);
    let mut text = String::new();
    let mut held_back = 0;
    for &id in &ids {
        let piece = decoder.push(&tokenizer, id);
        assert!(!piece.contains('\u{fffd}'));
        held_back += usize::from(piece.is_empty() && !tokenizer.is_control(id));
        text.push_str(piece);
    }
    assert_eq!((text.as_str(), decoder.finish()), ("a😀漢é", ""));
    assert!(
        held_back > 0,
        "the vocabulary has no token for a whole emoji"
    );
    let unfinished = tokenizer.encode("😀", Special::Plain)[0];
    assert_eq!(decoder.push(&tokenizer, unfinished), "");
    assert_eq!(decoder.finish(), "\u{fffd}");
    assert_eq!(decoder.push(&tokenizer, ids[1]), "a");
}

/// Long texts that are one piece, or all pieces alike; were any part quadratic, this would take hours.
#[test]
fn hostile_texts_take_no_longer_than_others() {
    let long = |unit: &str, bytes: usize| unit.repeat(bytes / unit.len());
    for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
        let tokenizer = small(pre);
        for unit in [
            "a",
            " ",
            "\n",
            "\r\n",
            "\t",
            " \n",
            "\u{a0}",
            "\u{301}",
            "1",
            "٣",
            "'",
            "'s",
            "!",
            "漢",
            "\u{200d}",
            "<|im",
            "<|im_start|>",
            "    x",
            "a\u{301}",
            "\0",
            "th",
        ] {
            // A megabyte of what makes the longest pieces, less of the others.
            let bytes = if matches!(unit, " " | "\u{301}") {
                1 << 20
            } else {
                1 << 17
            };
            for text in [long(unit, bytes), format!("\n{} x", long(unit, 1 << 16))] {
                let ids = tokenizer.encode(&text, Special::Parse);
                let bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id).len()).sum();
                assert_eq!(bytes, text.len(), "{pre} {unit:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(text in "\\PC*", parts in prop::collection::vec(any::<char>(), 0..40)) {
        let text = text + &String::from_iter(parts);
        for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
            let tokenizer = SMALL.with(|all| all[pre].clone());
            for special in [Special::Parse, Special::Plain] {
                check_decoding(&tokenizer, &tokenizer.encode(&text, special), &text);
            }
        }
    }
}

thread_local! {
    static SMALL: std::collections::HashMap<&'static str, std::rc::Rc<Tokenizer>> =
        ["gpt-2", "smollm", "llama-bpe", "qwen2"]
            .into_iter()
            .map(|pre| (pre, std::rc::Rc::new(small(pre))))
            .collect();
}
