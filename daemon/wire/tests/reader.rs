//! Frames out of a stream in pieces, and streams that are no frames.
#![forbid(unsafe_code)]

use andon_wire::limits::{CLIENT_FRAME_BYTES_MAX, SERVER_FRAME_BYTES_MAX};
use andon_wire::{
    Ask, ClientFrame, DecodeError, EncodeError, FrameReader, HEADER_BYTES, Hello, Input, Malformed,
    PROTOCOL_VERSION, ReadError, RequestId, ServerFrame, checksum, payload_bytes,
};

fn hello() -> ClientFrame<'static> {
    ClientFrame::Hello(Hello {
        version: PROTOCOL_VERSION,
        software: "test",
    })
}

fn ask(prompt: &str) -> ClientFrame<'_> {
    ClientFrame::Ask(Ask::new(
        RequestId::new("1").unwrap(),
        Input::Prompt(prompt),
    ))
}

fn bytes_of(frame: &ClientFrame<'_>) -> Vec<u8> {
    let mut buffer = vec![0; HEADER_BYTES + CLIENT_FRAME_BYTES_MAX];
    frame.encode(&mut buffer).unwrap().to_vec()
}

/// A frame around any bytes at all, with a right length and checksum.
fn seal(value: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(value.len() + 4)
        .unwrap()
        .to_le_bytes()
        .to_vec();
    frame.extend_from_slice(value);
    frame.extend_from_slice(&checksum(value).to_le_bytes());
    frame
}

fn feed<B: AsRef<[u8]> + AsMut<[u8]>>(reader: &mut FrameReader<B>, bytes: &[u8]) -> usize {
    let space = reader.space();
    let count = space.len().min(bytes.len());
    space[..count].copy_from_slice(&bytes[..count]);
    reader.filled(count).unwrap();
    count
}

#[test]
fn frames_arrive_whole_whatever_the_pieces() {
    let long = "x".repeat(40);
    let frames = [
        hello(),
        ask("how"),
        ClientFrame::Status,
        ask(&long),
        ClientFrame::Models,
    ];
    let stream: Vec<u8> = frames.iter().flat_map(bytes_of).collect();
    let longest = frames.iter().map(|f| bytes_of(f).len()).max().unwrap();
    for piece in 1..=stream.len() {
        // The smallest buffer that can do, so that moving what remains to its start is used too.
        let mut reader = FrameReader::new(vec![0; longest], CLIENT_FRAME_BYTES_MAX);
        let mut found = 0;
        let mut fed = 0;
        while fed < stream.len() {
            let end = stream.len().min(fed + piece);
            fed += feed(&mut reader, &stream[fed..end]);
            while reader.ready().unwrap() {
                let payload = reader.next_payload().unwrap().unwrap();
                assert_eq!(ClientFrame::decode(payload).unwrap(), frames[found]);
                found += 1;
            }
            assert_eq!(reader.next_payload(), Ok(None));
        }
        assert_eq!(found, frames.len(), "pieces of {piece} bytes");
        reader.finish().unwrap();
    }
}

#[test]
fn oversize_is_refused_before_anything_is_read() {
    let mut reader = FrameReader::new([0; 64], SERVER_FRAME_BYTES_MAX);
    // The buffer of 64 bytes lowers the bound to 60.
    feed(&mut reader, &61u32.to_le_bytes());
    let error = ReadError::Frame(DecodeError::TooLarge {
        bytes: 61,
        bytes_max: 60,
    });
    assert_eq!(reader.next_payload(), Err(error));
    // No way back: where the next frame begins is unknown.
    feed(&mut reader, &bytes_of(&ClientFrame::Status));
    assert_eq!(reader.next_payload(), Err(error));
    assert_eq!(reader.finish(), Err(error));

    assert_eq!(
        payload_bytes(u32::MAX.to_le_bytes(), CLIENT_FRAME_BYTES_MAX),
        Err(DecodeError::TooLarge {
            bytes: u32::MAX as usize,
            bytes_max: CLIENT_FRAME_BYTES_MAX
        })
    );
    let payload = vec![0; SERVER_FRAME_BYTES_MAX + 1];
    assert!(matches!(
        ServerFrame::decode(&payload),
        Err(DecodeError::TooLarge { .. })
    ));
}

#[test]
fn a_length_too_small_for_any_frame_is_refused() {
    for bytes in 0..5u8 {
        let mut reader = FrameReader::new([0; 64], 64);
        feed(&mut reader, &[bytes, 0, 0, 0]);
        let error = DecodeError::TooSmall {
            bytes: bytes.into(),
        };
        assert_eq!(reader.next_payload(), Err(ReadError::Frame(error)));
        assert_eq!(ClientFrame::decode(&vec![0; bytes.into()]), Err(error));
    }
}

#[test]
fn the_end_inside_a_frame_is_told() {
    let bytes = bytes_of(&hello());
    for cut in 1..bytes.len() {
        let mut reader = FrameReader::new([0; 64], 64);
        feed(&mut reader, &bytes[..cut]);
        assert_eq!(reader.next_payload(), Ok(None));
        let need = if cut < HEADER_BYTES {
            HEADER_BYTES
        } else {
            bytes.len()
        };
        assert_eq!(
            reader.finish(),
            Err(ReadError::Truncated {
                missing: need - cut
            })
        );
    }
    assert_eq!(FrameReader::new([0; 64], 64).finish(), Ok(()));
}

#[test]
fn more_bytes_than_there_is_space_are_refused() {
    let mut reader = FrameReader::new([0; 16], 64);
    assert_eq!(reader.filled(17), Err(ReadError::Overfilled));
    let mut reader = FrameReader::new([0; 16], 64);
    assert_eq!(reader.filled(usize::MAX), Err(ReadError::Overfilled));
    // A buffer of nothing takes nothing and says so.
    let mut reader = FrameReader::new([], 64);
    assert!(reader.space().is_empty());
    assert_eq!(reader.next_payload(), Ok(None));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let frame = bytes_of(&ask("why does the press stop"));
    for bit in 0..(frame.len() - HEADER_BYTES) * 8 {
        let mut payload = frame[HEADER_BYTES..].to_vec();
        payload[bit / 8] ^= 1 << (bit % 8);
        assert!(
            matches!(
                ClientFrame::decode(&payload),
                Err(DecodeError::Checksum { .. })
            ),
            "bit {bit}"
        );
    }
}

#[test]
fn every_truncated_value_is_noticed() {
    for frame in [hello(), ask("why")] {
        let whole = bytes_of(&frame);
        let value = &whole[HEADER_BYTES..whole.len() - 4];
        for cut in 1..value.len() {
            let frame = seal(&value[..cut]);
            assert_eq!(
                ClientFrame::decode(&frame[HEADER_BYTES..]),
                Err(DecodeError::Malformed(Malformed::Ended)),
                "cut at {cut}"
            );
        }
    }
}

#[test]
fn bytes_after_the_value_are_refused() {
    assert_eq!(
        ClientFrame::decode(&seal(&[3, 0, 0])[HEADER_BYTES..]),
        Err(DecodeError::Trailing { bytes: 2 })
    );
}

/// [`PROTOCOL_VERSION`] as it is written, in one byte.
const OWN_VERSION: u8 = PROTOCOL_VERSION as u8;

#[test]
fn another_version_is_told_whatever_follows_it() {
    let next = PROTOCOL_VERSION + 1;
    // The variant in as many bytes as it may take, too.
    for (variant, tail, version) in [
        (&b"\0"[..], &[][..], next),
        (b"\0", b"\xff\xff\xff", 300),
        (b"\x80\0", b"", next),
    ] {
        let mut value = variant.to_vec();
        if version == next {
            value.push(OWN_VERSION + 1);
        } else {
            value.extend_from_slice(&[0xac, 0x02]);
        }
        value.extend_from_slice(tail);
        let frame = seal(&value);
        let payload = &frame[HEADER_BYTES..];
        assert_eq!(
            ClientFrame::decode(payload),
            Err(DecodeError::Version { version })
        );
        assert_eq!(
            ServerFrame::decode(payload),
            Err(DecodeError::Version { version })
        );
    }
}

#[test]
fn values_outside_their_limits_are_refused() {
    for (value, malformed) in [
        // No such variant.
        (&[0x7f][..], Malformed::Value),
        // A version that runs on.
        (&[0, 0xff, 0xff, 0xff, 0xff], Malformed::Number),
        // A program's name that is no UTF-8.
        (&[0, OWN_VERSION, 1, 0xff], Malformed::Text),
        // A cancel whose id is empty.
        (&[2, 0], Malformed::Value),
        // A cancel whose id holds a wildcard.
        (&[2, 2, b'a', b'#'], Malformed::Value),
        // A text said to be longer than the frame.
        (&[0, OWN_VERSION, 0xff, 0x7f, b'a'], Malformed::Ended),
    ] {
        let frame = seal(value);
        assert_eq!(
            ClientFrame::decode(&frame[HEADER_BYTES..]),
            Err(DecodeError::Malformed(malformed)),
            "{value:?}"
        );
    }
    // 129 messages.
    let mut value = vec![1, 1, b'1', 0, 0x81, 0x01];
    value.extend([1, 0].repeat(129));
    let frame = seal(&value);
    assert_eq!(
        ClientFrame::decode(&frame[HEADER_BYTES..]),
        Err(DecodeError::Malformed(Malformed::Value))
    );
}

#[test]
fn encoding_stays_inside_its_bounds() {
    let frame = ask("hello");
    let bytes = bytes_of(&frame);
    for size in 0..bytes.len() {
        let mut buffer = vec![0; size];
        assert_eq!(
            frame.encode(&mut buffer),
            Err(EncodeError::BufferFull { bytes: size })
        );
    }
    let mut exact = vec![0; bytes.len()];
    assert_eq!(frame.encode(&mut exact).unwrap(), bytes);

    let long = "x".repeat(CLIENT_FRAME_BYTES_MAX);
    let mut buffer = vec![0; 2 * CLIENT_FRAME_BYTES_MAX];
    assert!(matches!(
        ask(&long).encode(&mut buffer),
        Err(EncodeError::TooLarge { .. })
    ));
}
