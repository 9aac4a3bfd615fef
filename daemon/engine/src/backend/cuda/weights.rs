//! A model's weights in a device's memory, packed as its kernels like them.
//!
//! They come there piece by piece: room for all of them is taken first, so that what is missing shows before anything is sent.
//!
//! Invariant: no matrix is on the device a second time; what is beside it there is two pieces.

use super::walk::{Visit, Walk};
use crate::models::Architecture;
use crate::weights::{self, Linear, Matrix};
use andon_cuda::{Buffer, Device, Error, Format, Loader};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of a piece of the weights: enough that copying it takes longer than asking for it, little enough that whoever waits
/// for its end waits a few milliseconds.
const PIECE_BYTES: usize = 16 << 20;
/// Rows that are packed together.
const TILE_ROWS: usize = 16;

/// The device's name of a format; `None` where it has no kernels for it.
fn format(format: andon_kernels::Format) -> Option<Format> {
    use andon_kernels::Format as Kept;
    match format {
        Kept::F32 => Some(Format::F32),
        Kept::F16 => Some(Format::F16),
        Kept::BF16 => Some(Format::BF16),
        Kept::Q4_0 => Some(Format::Q4_0),
        Kept::Q4_1 => Some(Format::Q4_1),
        Kept::Q5_0 => Some(Format::Q5_0),
        Kept::Q5_1 => Some(Format::Q5_1),
        Kept::Q8_0 => Some(Format::Q8_0),
        Kept::Q3K => Some(Format::Q3K),
        Kept::Q4K => Some(Format::Q4K),
        Kept::Q5K => Some(Format::Q5K),
        Kept::Q6K => Some(Format::Q6K),
        Kept::IQ4NL => Some(Format::IQ4NL),
        Kept::IQ4XS => Some(Format::IQ4XS),
        _ => None,
    }
}

/// A matrix, by file and first byte there.
fn name(matrix: &Matrix) -> (usize, usize) {
    (matrix.part, matrix.range.start)
}

/// The first thing that there are no kernels for.
#[derive(Debug, Default)]
struct Lack(Option<String>);

impl Lack {
    /// Lacks a matrix unless there are kernels for it; one of floats only has some where `floats`.
    fn look_at(&mut self, of: &str, matrix: &Matrix, floats: bool) {
        let covered = format(matrix.format)
            .filter(|format| floats || format.is_quantized())
            .and_then(|format| format.packed_bytes(matrix.row_count, matrix.row_elements));
        if covered.is_none() {
            self.lacks(format!("{} ({of})", matrix.format.name()));
        }
    }
}

impl Visit for Lack {
    // Columns of a layer are in 8 bits only.
    fn matrix(&mut self, of: &str, matrix: &Matrix) {
        self.look_at(of, matrix, false);
    }

    fn vocabulary(&mut self, of: &str, matrix: &Matrix) {
        self.look_at(of, matrix, true);
    }

    fn vector(&mut self, _values: &[f32]) {}

    fn biases(&mut self, _linears: &[&Linear]) {}

    fn lacks(&mut self, what: String) {
        self.0.get_or_insert(what);
    }
}

/// Why a decoder is not covered; `None` if it is.
pub(super) fn not_covered(decoder: &dyn Architecture) -> Option<String> {
    if decoder.draft_tokens().is_some() {
        return Some("drafts are computed by the processor".to_owned());
    }
    let mut lack = Lack::default();
    // A walk is not interrupted.
    let _ = decoder.forward(&mut Walk::new(&mut lack));
    lack.0
        .map(|what| format!("there are no kernels for {what}"))
}

/// What a device is to have of a decoder.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Each with its format there.
    matrices: Vec<(Matrix, Format)>,
    /// Each with the address by which it is found.
    vectors: Vec<(usize, Vec<f32>)>,
}

impl Parts {
    /// Those of a decoder that is covered.
    pub(super) fn of(decoder: &dyn Architecture) -> Parts {
        let mut parts = Parts::default();
        // A walk is not interrupted.
        let _ = decoder.forward(&mut Walk::new(&mut parts));
        parts
    }

    /// Bytes that they take on the device.
    pub(super) fn bytes(&self) -> usize {
        let of = |(matrix, format): &(Matrix, Format)| {
            let bytes = format.device_bytes(matrix.row_count, matrix.row_elements);
            bytes.unwrap_or(usize::MAX)
        };
        let vectors = self
            .vectors
            .iter()
            .map(|(_, values)| size_of_val(&values[..]));
        let all = self.matrices.iter().map(of).chain(vectors);
        all.fold(0, usize::saturating_add)
    }

    /// Bytes that the files have of what is sent in pieces.
    fn file_bytes(&self) -> usize {
        let all = self.matrices.iter().map(|(matrix, _)| matrix.range.len());
        all.fold(0, usize::saturating_add)
    }

    /// Bytes of a piece: one has room for the largest tile, and none is larger than what there is to send.
    fn piece_bytes(&self) -> usize {
        let tile = |(matrix, _): &(Matrix, Format)| matrix.row_bytes().saturating_mul(TILE_ROWS);
        let tiles = self.matrices.iter().map(tile);
        let whole = self.matrices.iter().map(|(matrix, _)| matrix.range.len());
        let most = PIECE_BYTES.min(whole.max().unwrap_or(0));
        tiles.fold(most, usize::max)
    }

    /// Bytes that pieces take, here and as many on the device, while they are sent.
    pub(super) fn pieces_bytes(&self) -> usize {
        Loader::bytes(self.piece_bytes())
    }

    fn vector_of(&mut self, address: usize, values: impl FnOnce() -> Vec<f32>) {
        if self.vectors.iter().all(|(known, _)| *known != address) {
            self.vectors.push((address, values()));
        }
    }
}

impl Visit for Parts {
    fn matrix(&mut self, _of: &str, matrix: &Matrix) {
        let mut known = self.matrices.iter();
        if known.all(|(known, _)| name(known) != name(matrix))
            && let Some(format) = format(matrix.format)
        {
            self.matrices.push((matrix.clone(), format));
        }
    }

    fn vector(&mut self, values: &[f32]) {
        self.vector_of(address(values), || values.to_vec());
    }

    fn biases(&mut self, linears: &[&Linear]) {
        let biases = linears.iter().map(|linear| linear.bias.as_deref());
        let Some(name) = address_of_biases(biases) else {
            return;
        };
        self.vector_of(name, || {
            let mut values = Vec::new();
            for linear in linears {
                match &linear.bias {
                    Some(bias) => values.extend_from_slice(bias),
                    // Whatever this is added to stays as it is, zeros of either sign too.
                    None => values.extend(std::iter::repeat_n(-0.0, linear.matrix.row_count)),
                }
            }
            values
        });
    }

    fn lacks(&mut self, _what: String) {}
}

/// What is on the device. It is found by where it is in this machine's memory, which the loaded model keeps as it is.
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// By file and first byte there.
    matrices: HashMap<(usize, usize), andon_cuda::Matrix>,
    /// By the address of the first element; biases that lie one after the other, of the first of them.
    vectors: HashMap<usize, Buffer<f32>>,
}

/// By which vectors are found.
pub(super) fn address(values: &[f32]) -> usize {
    values.as_ptr().addr()
}

/// By which biases of matrices whose results lie one after the other are found; `None` if there are none.
pub(super) fn address_of_biases<'a>(
    biases: impl IntoIterator<Item = Option<&'a [f32]>>,
) -> Option<usize> {
    biases.into_iter().flatten().next().map(address)
}

impl Weights {
    /// A matrix.
    ///
    /// # Panics
    /// If the model it is of is another.
    pub(super) fn matrix(&self, matrix: &Matrix) -> &andon_cuda::Matrix {
        &self.matrices[&name(matrix)]
    }

    /// Weights of a norm.
    ///
    /// # Panics
    /// If the model they are of is another.
    pub(super) fn vector(&self, values: &[f32]) -> &Buffer<f32> {
        self.at(address(values))
    }

    /// The same by their [`address`], or biases by [`address_of_biases`].
    pub(super) fn at(&self, address: usize) -> &Buffer<f32> {
        &self.vectors[&address]
    }
}

/// Weights on their way.
#[derive(Debug)]
pub(super) struct Upload {
    loader: Loader,
    weights: Weights,
    matrices: Vec<(Matrix, Format)>,
    piece_bytes: usize,
    /// Which matrix is next, and from which row on.
    next: (usize, usize),
    /// Bytes of the files that were sent, and those of all of them.
    sent: (usize, usize),
}

impl Upload {
    /// Takes the room for all of them, and sends what is short.
    ///
    /// # Errors
    /// If the device has no room.
    pub(super) fn begin(device: &Arc<Device>, parts: Parts) -> Result<Upload, Error> {
        let (piece_bytes, all) = (parts.piece_bytes(), parts.file_bytes());
        let mut loader = Loader::new(device, piece_bytes)?;
        let mut weights = Weights::default();
        for (matrix, format) in &parts.matrices {
            let room = loader.matrix(*format, matrix.row_count, matrix.row_elements)?;
            weights.matrices.insert(name(matrix), room);
        }
        for (address, values) in parts.vectors {
            weights.vectors.insert(address, loader.vector(&values)?);
        }
        Ok(Upload {
            loader,
            weights,
            matrices: parts.matrices,
            piece_bytes,
            next: (0, 0),
            sent: (0, all),
        })
    }

    /// Sends a piece. With `releases`, what was read for it of the files counts as this process's memory no longer. False if
    /// there was none left.
    ///
    /// # Errors
    /// If the device refuses, or what was sent before failed.
    pub(super) fn send(
        &mut self,
        from: weights::Weights<'_>,
        releases: bool,
    ) -> Result<bool, Error> {
        let (index, first) = self.next;
        let Some((matrix, format)) = self.matrices.get(index) else {
            return Ok(false);
        };
        let rows = Loader::rows_of(*format, matrix.row_elements, self.piece_bytes);
        let last = first.saturating_add(rows.max(1)).min(matrix.row_count);
        let piece = matrix.rows(first..last);
        self.loader.pack(
            &self.weights.matrices[&name(matrix)],
            first,
            from.raw(&piece),
        )?;
        self.sent.0 += piece.range.len();
        if releases {
            from.maps[piece.part].release_range(piece.range);
        }
        self.next = if last == matrix.row_count {
            (index + 1, 0)
        } else {
            (index, last)
        };
        Ok(true)
    }

    /// Bytes of the files that were sent, and those of all of them.
    pub(super) fn sent(&self) -> (usize, usize) {
        self.sent
    }

    /// Waits until all of it is there.
    ///
    /// # Errors
    /// If something of it failed.
    pub(super) fn finish(mut self) -> Result<Weights, Error> {
        self.loader.finish()?;
        Ok(self.weights)
    }
}
