//! Bytes from a peer of the compact socket, in pieces: first the size of the pieces, then the stream.
//!
//! A frame that can be read is the same frame after it was written and read again, however its bytes were cut.

use andon_os::heap;
use andon_wire::{ClientFrame, FrameReader, ServerFrame, checksum, unseal};

const BUFFER_BYTES: usize = 64
    + if ClientFrame::PAYLOAD_BYTES_MAX > ServerFrame::PAYLOAD_BYTES_MAX {
        ClientFrame::PAYLOAD_BYTES_MAX
    } else {
        ServerFrame::PAYLOAD_BYTES_MAX
    };
/// The buffers below, and what little the types own.
const HEAP_BYTES_MAX: usize = 16 << 20;

pub(crate) fn run(data: &[u8]) {
    heap::measure(HEAP_BYTES_MAX, data.len() as u64, || check(data));
}

fn check(data: &[u8]) {
    let [piece, stream @ ..] = data else {
        return;
    };
    let whole = payloads(stream, stream.len().max(1));
    let cut = payloads(stream, usize::from(*piece).max(1));
    assert_eq!(whole, cut, "the same frames however the stream is cut");
    for payload in &whole {
        frames(payload);
    }
    // What comes after the checksum is hard to reach by chance, so it is put right.
    let sealed = [stream, &checksum(stream).to_le_bytes()].concat();
    frames(&sealed);
}

/// The payloads of a stream, up to the first error.
fn payloads(stream: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let mut reader = FrameReader::new(vec![0; 1 << 17], ClientFrame::PAYLOAD_BYTES_MAX);
    let mut payloads = Vec::new();
    for mut bytes in stream.chunks(piece) {
        while !bytes.is_empty() {
            let space = reader.space();
            let count = space.len().min(bytes.len());
            if count == 0 {
                return payloads;
            }
            space[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            reader
                .filled(count)
                .expect("no more than there was space for");
            loop {
                match reader.next_payload() {
                    Ok(Some(payload)) => payloads.push(payload.to_vec()),
                    Ok(None) => break,
                    Err(_) => return payloads,
                }
            }
        }
    }
    payloads
}

fn frames(payload: &[u8]) {
    let mut buffer = vec![0; BUFFER_BYTES];
    if let Ok(frame) = ClientFrame::decode(payload) {
        assert!(unseal(payload, ClientFrame::PAYLOAD_BYTES_MAX).is_ok());
        let written = frame
            .encode(&mut buffer)
            .expect("what was read can be written");
        let again = ClientFrame::decode(&written[4..]).expect("and read again");
        assert_eq!(format!("{frame:?}"), format!("{again:?}"));
    }
    if let Ok(frame) = ServerFrame::decode(payload) {
        let written = frame
            .encode(&mut buffer)
            .expect("what was read can be written");
        let again = ServerFrame::decode(&written[4..]).expect("and read again");
        assert_eq!(format!("{frame:?}"), format!("{again:?}"));
    }
}
