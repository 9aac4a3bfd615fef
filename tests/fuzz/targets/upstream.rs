//! What an upstream server sends: a byte for its form, one for where it is cut, then the bytes.
//!
//! It is read to the same end however it is cut: an answer that the server said is complete, or a fault; in bounded memory.

use andon_os::heap;
use andond::upstream::reply::{Complete, Form, Found, ReadFault, Reader};

/// Tokens that were asked for.
const TOKENS_MAX: usize = 64;

pub(crate) fn run(data: &[u8]) {
    let [form, cut, bytes @ ..] = data else {
        return;
    };
    let form = if form & 1 == 0 {
        Form::Events
    } else {
        Form::Whole
    };
    let at = usize::from(*cut).min(bytes.len());
    // Values of JSON take many times their text.
    let limit = (1 << 16) + 200 * bytes.len();
    let (whole, _) = heap::measure(limit, bytes.len() as u64, || read(form, &[bytes]));
    let (head, tail) = bytes.split_at(at);
    assert_eq!(read(form, &[head, tail]), whole);
    match whole {
        Ok((text, complete)) => {
            assert!(complete.calls.len() <= 32);
            assert!(
                complete.tokens_seen > 0
                    || (text.is_empty()
                        && complete.calls.iter().all(|call| call.arguments.is_empty()))
            );
        }
        Err(fault) => assert!(!fault.what.is_empty()),
    }
}

fn read(form: Form, pieces: &[&[u8]]) -> Result<(String, Complete), ReadFault> {
    let mut reader = Reader::new(form, Some(TOKENS_MAX));
    let mut text = String::new();
    let mut add = |found: Vec<Found>| {
        for one in found {
            if let Found::Text(piece) = one {
                assert!(!piece.is_empty());
                text.push_str(&piece);
            }
        }
    };
    for piece in pieces {
        add(reader.push(piece)?);
    }
    let (rest, complete) = reader.finish()?;
    add(rest);
    Ok((text, complete))
}
