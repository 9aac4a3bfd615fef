//! Signatures and digests of tensors as texts: what is written is read, and nothing else is taken for them.
#![forbid(unsafe_code)]

use andon_wire::limits::SIGNATURES_MAX;
use andon_wire::manifest::{Digest, FORMAT, Manifest, Member, Role};
use andon_wire::signature::{KeyId, Signature, Signatures, SignaturesError};
use andon_wire::tensors::{self, TensorsError};
use proptest::collection::vec;
use proptest::prelude::*;

fn signature() -> impl Strategy<Value = Signature> {
    (any::<[u8; 8]>(), vec(any::<u8>(), 64)).prop_map(|(key, bytes)| Signature {
        key: KeyId(key),
        bytes: bytes.try_into().unwrap(),
    })
}

fn signatures() -> impl Strategy<Value = Signatures> {
    vec(signature(), 1..=SIGNATURES_MAX).prop_map(|all| Signatures(all.into_iter().collect()))
}

/// The manifest of a model whose files of weights have these sizes.
fn manifest(sizes: &[u64]) -> Box<Manifest> {
    let members = (1..).zip(sizes).map(|(number, &bytes)| Member {
        path: format!("m-{number:05}-of-{:05}.gguf", sizes.len())
            .as_str()
            .try_into()
            .unwrap(),
        role: Role::Weights,
        bytes,
        sha256: Digest([0; 32]),
        verity: None,
    });
    Box::new(Manifest {
        format: FORMAT,
        name: "m".try_into().unwrap(),
        architecture: "llama".try_into().unwrap(),
        quantization: "Q4_0".try_into().unwrap(),
        license: None,
        source: None,
        pre_tokenizer: None,
        created_s: 0,
        members: members.collect(),
    })
}

/// The pieces of each file as a text, and the sizes of the files.
fn written(files: &[Vec<(u64, String)>]) -> (String, Vec<u64>) {
    let mut text = format!("{}\n", tensors::FIRST_LINE);
    for (file, pieces) in files.iter().enumerate() {
        for (bytes, name) in pieces {
            let digest = Digest([file as u8; 32]);
            text.push_str(&format!("{digest} {file} {bytes} {name}\n"));
        }
    }
    let size = |pieces: &Vec<(u64, String)>| pieces.iter().map(|(bytes, _)| bytes).sum();
    (text, files.iter().map(size).collect())
}

fn check(text: &str, sizes: &[u64]) -> Result<Vec<(usize, u64, u64)>, TensorsError> {
    let mut pieces = Vec::new();
    tensors::read(text, &manifest(sizes), &mut |piece| {
        pieces.push((piece.file, piece.offset, piece.bytes));
    })?;
    Ok(pieces)
}

fn files() -> impl Strategy<Value = Vec<Vec<(u64, String)>>> {
    let piece = (1..1_000_000_u64, "[a-z0-9._ é-]{1,20}");
    vec(vec(piece, 1..6), 1..4)
}

proptest! {
    #[test]
    fn signatures_come_back(signatures in signatures()) {
        let text = signatures.to_string();
        prop_assert_eq!(text.parse::<Signatures>(), Ok(signatures));
    }

    #[test]
    fn no_part_of_signatures_is_taken_for_others(signatures in signatures(), cut in any::<prop::sample::Index>()) {
        let text = signatures.to_string();
        let cut = cut.index(text.len());
        // A cut between lines leaves fewer signatures, each of them whole; the last line break may be missing.
        if let Ok(rest) = text[..cut].parse::<Signatures>() {
            prop_assert!(signatures.0.starts_with(&rest.0));
        }
    }

    #[test]
    fn texts_that_are_none_do_no_harm(text in any::<String>(), sizes in vec(1..1000_u64, 1..3)) {
        let _ = text.parse::<Signatures>();
        let _ = format!("andon-signatures-v1\n{text}").parse::<Signatures>();
        let _ = check(&text, &sizes);
        let _ = check(&format!("{}\n{text}", tensors::FIRST_LINE), &sizes);
    }

    #[test]
    fn pieces_cover_each_byte_once(files in files()) {
        let (text, sizes) = written(&files);
        let pieces = check(&text, &sizes).unwrap();
        for (file, &size) in sizes.iter().enumerate() {
            let mut end = 0;
            for &(_, offset, bytes) in pieces.iter().filter(|piece| piece.0 == file) {
                prop_assert_eq!(offset, end);
                end += bytes;
            }
            prop_assert_eq!(end, size);
        }
    }

    #[test]
    fn pieces_of_other_sizes_are_refused(files in files(), index in any::<prop::sample::Index>(), by in 1..50_u64) {
        let (text, mut sizes) = written(&files);
        let index = index.index(sizes.len());
        sizes[index] += by;
        prop_assert!(check(&text, &sizes).is_err());
        sizes[index] -= by + 1;
        prop_assert!(sizes[index] == 0 || check(&text, &sizes).is_err());
    }

    #[test]
    fn a_missing_line_is_noticed(files in files(), index in any::<prop::sample::Index>()) {
        let (text, sizes) = written(&files);
        let lines: Vec<_> = text.lines().collect();
        let index = index.index(lines.len());
        let rest: Vec<_> = lines.iter().enumerate().filter(|(at, _)| *at != index).map(|(_, line)| *line).collect();
        prop_assert!(check(&rest.join("\n"), &sizes).is_err());
    }
}

#[test]
fn what_is_wrong_is_said() {
    let hex = |digits: usize| "0".repeat(digits);
    let parse = |text: String| text.parse::<Signatures>().unwrap_err();
    let first = "andon-signatures-v1";
    let good = format!("ed25519 {} {}\n", hex(16), hex(128));
    assert_eq!(parse(String::new()), SignaturesError::FirstLine);
    assert_eq!(parse(format!("{first}\n")), SignaturesError::None);
    assert_eq!(
        parse(format!("{first}\nrsa {} {}", hex(16), hex(128))),
        SignaturesError::Algorithm(2)
    );
    for line in [
        format!("ed25519 {} {}", hex(16), hex(126)),
        format!("ed25519 {} {}", hex(15), hex(128)),
        format!("ed25519 {}", hex(16)),
        format!("ed25519 {} {} ", hex(16), hex(128)),
        format!("ed25519 {} {}\r", hex(16), hex(128)),
    ] {
        let text = format!("{first}\n{good}{line}\n");
        assert_eq!(parse(text), SignaturesError::Line(3), "{line:?}");
    }
    assert_eq!(
        parse(format!("{first}\n{}", good.repeat(SIGNATURES_MAX + 1))),
        SignaturesError::TooMany
    );
    assert_eq!(parse(" ".repeat(3000)), SignaturesError::TooLarge(3000));

    let digest = Digest([1; 32]);
    let tensors =
        |lines: &str| check(&format!("andon-tensors-v1\n{lines}"), &[10, 20]).unwrap_err();
    assert_eq!(check("", &[10]), Err(TensorsError::FirstLine));
    assert_eq!(tensors(""), TensorsError::Gap(0));
    assert_eq!(tensors(&format!("{digest} 1 10 a")), TensorsError::File(2));
    assert_eq!(
        tensors(&format!("{digest} 0 11 a")),
        TensorsError::Outside(2)
    );
    assert_eq!(
        tensors(&format!("{digest} 0 5 a\n{digest} 1 5 b")),
        TensorsError::File(3)
    );
    assert_eq!(tensors(&format!("{digest} 0 10 a")), TensorsError::Gap(1));
    assert_eq!(
        tensors(&format!("{digest} 0 10 a\n{digest} 1 10 b")),
        TensorsError::Gap(1)
    );
    for line in [
        "",
        "x",
        "0 0 10 a",
        &format!("{digest} 0 0 a"),
        &format!("{digest} 0 010 a"),
        &format!("{digest} 0 +10 a"),
        &format!("{digest} 0 10 "),
        &format!("{digest} 0 99999999999999999999 a"),
        &format!("{digest} 0 10 a\rb"),
    ] {
        assert_eq!(
            tensors(&format!("{line}\n")),
            TensorsError::Line(2),
            "{line:?}"
        );
    }
}
