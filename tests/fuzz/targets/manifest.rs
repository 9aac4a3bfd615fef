//! What comes with a model: a manifest, then up to bytes that no text has its signatures and the digests of its tensors.
//!
//! Each is refused, or means the same when it is written and read again; a manifest that is let through has weights and paths
//! of its own folder only, and pieces cover its weights, each byte once.

use andon_os::heap;
use andon_wire::manifest::Manifest;
use andon_wire::signature::Signatures;
use andon_wire::tensors;

/// A manifest has room for all of its members whatever their number.
const HEAP_BYTES_MAX: usize = 4 << 20;
const BREAK: u8 = 0xff;

pub(crate) fn run(data: &[u8]) {
    let mut parts = data.splitn(3, |&byte| byte == BREAK);
    let mut next = || core::str::from_utf8(parts.next().unwrap_or_default()).unwrap_or_default();
    let (manifest, signatures, pieces) = (next(), next(), next());
    let limit = HEAP_BYTES_MAX + 20 * data.len();
    heap::measure(limit, data.len() as u64, || {
        if let Ok(signatures) = signatures.parse::<Signatures>() {
            assert!(!signatures.0.is_empty());
            assert_eq!(signatures.to_string().parse(), Ok(signatures));
        }
        let Ok(manifest) = serde_json::from_str::<Box<Manifest>>(manifest) else {
            return;
        };
        if manifest.check().is_err() {
            return;
        }
        let again = serde_json::to_string(&*manifest).expect("it was read");
        let again: Box<Manifest> = serde_json::from_str(&again).expect("it was written");
        assert_eq!(again, manifest);
        assert!(manifest.weights().next().is_some());
        for member in &manifest.members {
            let mut parts = member.path.split('/');
            assert!(parts.all(|part| !part.is_empty() && !part.starts_with('.')));
        }
        let mut ends = Vec::new();
        let read = tensors::read(pieces, &manifest, &mut |piece| {
            ends.resize(ends.len().max(piece.file + 1), 0);
            assert_eq!(ends[piece.file], piece.offset);
            ends[piece.file] += piece.bytes;
        });
        if read.is_ok() {
            let sizes: Vec<u64> = manifest.weights().map(|member| member.bytes).collect();
            assert_eq!(ends, sizes);
        }
    });
}
