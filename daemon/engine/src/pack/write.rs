//! Writing a pack: piece by piece, so that memory does not grow with the model, and the header last.

use super::header::Header;
use super::{BLOCK_BYTES, PackError};
use crate::weights::Matrix;
use andon_kernels::pack;
use andon_os::Mapping;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::Path;
use std::thread;
use twox_hash::XxHash3_64;

/// Packed bytes of a piece, about.
const PIECE_BYTES: usize = 4 << 20;

/// Bytes written and bytes in all are told to this; packing ends when it answers with false. It may wait.
pub type Progress<'a> = dyn FnMut(u64, u64) -> bool + 'a;

/// Writes the pack that `header` describes, of `matrices` in the maps of the model's files, into a file of zeros, on so
/// many threads.
pub(super) fn write(
    header: &mut Header,
    matrices: &[Matrix],
    maps: &[Mapping],
    (file, path): (&mut File, &Path),
    threads: usize,
    progress: &mut Progress<'_>,
) -> Result<(), PackError> {
    let io = || PackError::io(path, "write");
    let total = header.file_bytes;
    let mut buffers = vec![Vec::new(); threads.max(1)];
    let mut block = 0;
    let mut packed = matrices.iter().filter(|matrix| {
        pack::bytes(matrix.format, matrix.row_count, matrix.row_elements)
            .is_some_and(|bytes| bytes > 0)
    });
    for place in &header.places {
        // The header was made of just these.
        let Some(matrix) = packed.next() else { break };
        let raw = &maps[matrix.part][matrix.range.clone()];
        file.seek(SeekFrom::Start(place.range.start))
            .map_err(io())?;
        let mut hasher = Blocks {
            checksums: &mut header.checksums,
            block,
            hasher: XxHash3_64::new(),
            filled: 0,
        };
        let rows = piece_rows(matrix);
        let mut written = place.range.start;
        let mut start = 0;
        while start < matrix.row_count {
            // As many pieces as there are threads, then they are written.
            let pieces: Vec<_> = (start..matrix.row_count)
                .step_by(rows)
                .take(buffers.len())
                .map(|first| first..(first + rows).min(matrix.row_count))
                .collect();
            start = pieces.last().map_or(matrix.row_count, |piece| piece.end);
            thread::scope(|scope| {
                let mut rest = pieces.iter().cloned().zip(&mut buffers);
                // The calling thread has its share.
                let first = rest.next();
                for (rows, buffer) in rest {
                    let work = move || pack_rows(matrix, raw, rows, buffer);
                    thread::Builder::new().spawn_scoped(scope, work)?;
                }
                if let Some((rows, buffer)) = first {
                    pack_rows(matrix, raw, rows, buffer);
                }
                Ok(())
            })
            .map_err(io())?;
            for buffer in buffers.iter().take(pieces.len()) {
                hasher.push(buffer);
                file.write_all(buffer).map_err(io())?;
                written += buffer.len() as u64;
            }
            if !progress(written, total) {
                return Err(PackError::Stopped);
            }
        }
        block = hasher.end();
    }
    // What was read from a map that broke meanwhile is no model's.
    if maps.iter().any(Mapping::is_damaged) {
        return Err(PackError::ModelChanged);
    }
    file.seek(SeekFrom::Start(0)).map_err(io())?;
    file.write_all(&header.bytes()).map_err(io())
}

/// Compares what packing a matrix gives with `packed`, which lies in a file from some byte on; `progress` is told bytes
/// compared.
pub(super) fn compare(
    matrix: &Matrix,
    maps: &[Mapping],
    packed: &[u8],
    (path, offset): (&Path, u64),
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<(), PackError> {
    let raw = &maps[matrix.part][matrix.range.clone()];
    let mut buffer = Vec::new();
    let mut done = 0;
    let step = piece_rows(matrix);
    for first in (0..matrix.row_count).step_by(step) {
        let rows = first..(first + step).min(matrix.row_count);
        pack_rows(matrix, raw, rows, &mut buffer);
        if packed.get(done..done + buffer.len()) != Some(&*buffer) {
            return Err(PackError::OtherBytes {
                path: path.to_owned(),
                offset: offset + done as u64,
                bytes: buffer.len() as u64,
            });
        }
        done += buffer.len();
        if !progress(done as u64) {
            return Err(PackError::Stopped);
        }
    }
    Ok(())
}

/// Rows that are packed at a time. Whole tiles can be packed by themselves.
fn piece_rows(matrix: &Matrix) -> usize {
    let tile_bytes = pack::tile_bytes(matrix.format, matrix.row_elements)
        .unwrap_or(PIECE_BYTES)
        .max(1);
    (PIECE_BYTES / tile_bytes).max(1) * pack::ROWS
}

/// Packs some rows, which begin at a multiple of [`pack::ROWS`]: what comes out is the same part of the whole.
fn pack_rows(matrix: &Matrix, raw: &[u8], rows: Range<usize>, buffer: &mut Vec<u8>) {
    let (count, k) = (rows.len(), matrix.row_elements);
    let row_bytes = matrix.row_bytes();
    let bytes = pack::bytes(matrix.format, count, k).unwrap_or_default();
    buffer.resize(bytes, 0);
    let raw = &raw[rows.start * row_bytes..rows.end * row_bytes];
    pack::pack(matrix.format, raw, count, k, buffer);
}

/// Checksums of consecutive blocks.
struct Blocks<'a> {
    checksums: &'a mut [u64],
    block: usize,
    hasher: XxHash3_64,
    filled: usize,
}

impl Blocks<'_> {
    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.filled));
            self.hasher.write(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == BLOCK_BYTES {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        self.checksums[self.block] = self.hasher.finish();
        self.block += 1;
        self.hasher = XxHash3_64::new();
        self.filled = 0;
    }

    /// Closes the last block; the index of the next.
    fn end(mut self) -> usize {
        if self.filled > 0 {
            self.close();
        }
        self.block
    }
}
