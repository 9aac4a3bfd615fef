//! The example frames of the README are frames, byte for byte.
#![forbid(unsafe_code)]

use andon_wire::{
    Ask, Chunk, ClientFrame, HEADER_BYTES, Hello, Input, PROTOCOL_VERSION, RequestId, ServerFrame,
    limits,
};

const README: &str = include_str!("../README.md");

/// The bytes of every example of a kind: in each line, what stands before two spaces.
fn examples(kind: &str) -> Vec<Vec<u8>> {
    let fence = format!("```hex {kind}\n");
    README
        .split(fence.as_str())
        .skip(1)
        .map(|block| {
            let block = block.split("```").next().unwrap();
            block
                .lines()
                .flat_map(|line| line.split("  ").next().unwrap().split_whitespace())
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect()
        })
        .collect()
}

#[test]
fn examples_are_what_the_crate_encodes() {
    let id = RequestId::new("17").unwrap();
    let mut ask = Ask::new(id.clone(), Input::Prompt("Hello"));
    ask.tokens_max = Some(32);
    let mut buffer = [0; 128];
    let expected = [
        ClientFrame::Hello(Hello {
            version: PROTOCOL_VERSION,
            software: "c 1",
        })
        .encode(&mut buffer)
        .unwrap()
        .to_vec(),
        ClientFrame::Ask(ask).encode(&mut buffer).unwrap().to_vec(),
    ];
    assert_eq!(examples("client"), expected);

    let chunk = ServerFrame::Chunk(Chunk {
        id,
        attempt: 1,
        sequence: 0,
        text: " the",
    });
    assert_eq!(examples("server"), [chunk.encode(&mut buffer).unwrap()]);
}

#[test]
fn the_sizes_stated_are_those_of_the_crate() {
    let spaced = |number: usize| format!("{} {:03}", number / 1000, number % 1000);
    for number in [
        limits::CLIENT_FRAME_BYTES_MAX,
        limits::SERVER_FRAME_BYTES_MAX,
        limits::SERVER_FRAME_BYTES_MAX + HEADER_BYTES,
        limits::INPUT_BYTES_MAX,
        limits::CHUNK_TEXT_BYTES_MAX,
        limits::FAULT_MESSAGE_BYTES_MAX,
        limits::MANIFEST_BYTES_MAX,
        limits::MODEL_DATA_BYTES_MAX,
    ] {
        assert!(README.contains(&spaced(number)), "{number}");
    }
}
