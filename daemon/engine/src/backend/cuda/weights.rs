//! A model's weights in a device's memory, packed as its kernels like them.

use super::walk::{Visit, Walk};
use crate::models::Architecture;
use crate::weights::{self, Linear, Matrix};
use andon_cuda::{Buffer, Device, Error, Format};
use std::collections::HashMap;

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

/// What was uploaded. It is found by where it is in this machine's memory, which the loaded model keeps as it is.
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// By file and first byte there.
    matrices: HashMap<(usize, usize), andon_cuda::Matrix>,
    /// By the address of the first element; biases that lie one after the other, of the first of them.
    vectors: HashMap<usize, Buffer<f32>>,
    bytes: usize,
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
    /// Those of a decoder that is covered.
    ///
    /// # Errors
    /// If the device has no room for them, or they cannot be copied.
    pub(super) fn upload(
        device: &Device,
        decoder: &dyn Architecture,
        from: weights::Weights<'_>,
    ) -> Result<Weights, Error> {
        let mut upload = Upload {
            device,
            from,
            weights: Weights::default(),
            done: Ok(()),
        };
        // A walk is not interrupted.
        let _ = decoder.forward(&mut Walk::new(&mut upload));
        upload.done.map(|()| upload.weights)
    }

    /// Bytes that they take on the device.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A matrix.
    ///
    /// # Panics
    /// If the model it is of is another.
    pub(super) fn matrix(&self, matrix: &Matrix) -> &andon_cuda::Matrix {
        &self.matrices[&(matrix.part, matrix.range.start)]
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

struct Upload<'a> {
    device: &'a Device,
    from: weights::Weights<'a>,
    weights: Weights,
    done: Result<(), Error>,
}

impl Upload<'_> {
    fn add_matrix(&mut self, matrix: &Matrix) -> Result<(), Error> {
        let name = (matrix.part, matrix.range.start);
        let Some(format) =
            format(matrix.format).filter(|_| !self.weights.matrices.contains_key(&name))
        else {
            return Ok(());
        };
        let rows = self.device.upload(self.from.raw(matrix))?;
        let packed = self
            .device
            .pack(format, &rows, matrix.row_count, matrix.row_elements)?;
        self.weights.bytes += packed.bytes();
        self.weights.matrices.insert(name, packed);
        Ok(())
    }

    fn add_vector(&mut self, name: usize, values: &[f32]) -> Result<(), Error> {
        if !self.weights.vectors.contains_key(&name) {
            let copy = self.device.upload(values)?;
            self.weights.bytes += size_of_val(values);
            self.weights.vectors.insert(name, copy);
        }
        Ok(())
    }
}

impl Visit for Upload<'_> {
    fn matrix(&mut self, _of: &str, matrix: &Matrix) {
        if self.done.is_ok() {
            self.done = self.add_matrix(matrix);
        }
    }

    fn vector(&mut self, values: &[f32]) {
        if self.done.is_ok() {
            self.done = self.add_vector(address(values), values);
        }
    }

    fn biases(&mut self, linears: &[&Linear]) {
        let biases = linears.iter().map(|linear| linear.bias.as_deref());
        let Some(name) = address_of_biases(biases).filter(|_| self.done.is_ok()) else {
            return;
        };
        let mut values = Vec::new();
        for linear in linears {
            match &linear.bias {
                Some(bias) => values.extend_from_slice(bias),
                // Whatever this is added to stays as it is, zeros of either sign too.
                None => values.extend(std::iter::repeat_n(-0.0, linear.matrix.row_count)),
            }
        }
        self.done = self.add_vector(name, &values);
    }

    fn lacks(&mut self, _what: String) {}
}
