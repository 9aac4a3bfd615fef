//! Weights of a model: matrices that stay in the mapped file, vectors that are copied out.
//!
//! Invariant: a [`Matrix`] was checked against its tensor, so its bytes exist and are whole rows of its format.

use crate::gguf::{Gguf, MetaError, TensorInfo};
use crate::pack::Pack;
use andon_kernels::{Format, block};
use andon_os::{Mapping, Pool};
use std::collections::HashSet;
use std::ops::Range;

/// A weight matrix in the mapped file: `row_count` rows of `row_elements` elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// How elements are stored.
    pub format: Format,
    /// Outputs.
    pub row_count: usize,
    /// Inputs: the elements of a row, contiguous in the file.
    pub row_elements: usize,
    /// Which file of the model they are in, from 0.
    pub part: usize,
    /// Bytes of that file.
    pub range: Range<usize>,
    /// Its place among the matrices that columns are multiplied with, which is how a pack finds it; `None` for one of
    /// which only rows are looked up.
    pub(crate) slot: Option<usize>,
}

impl Matrix {
    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.range.len() / self.row_count.max(1)
    }

    /// Some of its rows, as a matrix: files have several matrices of the same input as one.
    ///
    /// # Panics
    /// If there are no such rows.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Matrix {
        assert!(rows.start <= rows.end && rows.end <= self.row_count);
        let start = |row: usize| self.range.start + row * self.row_bytes();
        Matrix {
            row_count: rows.len(),
            range: start(rows.start)..start(rows.end),
            // A pack has it by itself, if at all.
            slot: None,
            ..*self
        }
    }
}

/// Where the bytes of a model's matrices are. It is handed down to whatever multiplies with them.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// The maps of the model's files.
    pub(crate) maps: &'a [Mapping],
    /// The same matrices as kernels like them best, where there is such a file.
    pub(crate) pack: Option<&'a Pack>,
}

/// The bytes of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// Rows as the model's file has them.
    Raw(&'a [u8]),
    /// Tiles of [`andon_kernels::pack`].
    Packed(&'a [u8]),
}

impl<'a> Weights<'a> {
    /// A matrix as its file has it.
    pub(crate) fn raw(&self, matrix: &Matrix) -> &'a [u8] {
        &self.maps[matrix.part][matrix.range.clone()]
    }

    /// Matrices where they are best multiplied with. What is packed is compared with its checksums first, if it was not
    /// yet; what is damaged is taken from the model's files: both give the same products.
    pub(crate) fn places<const N: usize>(
        &self,
        matrices: [&Matrix; N],
        pool: &mut Pool,
    ) -> [Place<'a>; N] {
        if let Some(pack) = self.pack {
            pack.check(pool, matrices.iter().filter_map(|matrix| matrix.slot));
        }
        matrices.map(
            |matrix| match self.pack.and_then(|pack| pack.matrix(matrix.slot?)) {
                Some(bytes) => Place::Packed(bytes),
                None => Place::Raw(self.raw(matrix)),
            },
        )
    }
}

/// A matrix and what is added to its product.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// The matrix.
    pub matrix: Matrix,
    /// One element for each row.
    pub bias: Option<Vec<f32>>,
}

/// A root mean square norm.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// Factor of each element.
    pub weight: Vec<f32>,
    /// What is added to the mean square.
    pub epsilon: f32,
}

impl RmsNorm {
    /// Takes the weights of `name` from a file.
    ///
    /// # Errors
    /// See [`Source::vector`].
    pub fn load(
        source: &mut Source<'_, '_>,
        name: &str,
        length: usize,
        epsilon: f32,
    ) -> Result<RmsNorm, WeightsError> {
        Ok(RmsNorm {
            weight: source.vector(&format!("{name}.weight"), length)?,
            epsilon,
        })
    }
}

/// Why a model's weights or hyperparameters cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightsError {
    /// A metadata key is missing or of the wrong type.
    #[error(transparent)]
    Metadata(#[from] MetaError),
    /// A hyperparameter has a value that no model of this architecture has.
    #[error("{key} is {value}: {expected}")]
    Hyperparameter {
        /// The metadata key.
        key: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// The file lacks a tensor of its architecture.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// The tensor's name.
        name: String,
    },
    /// A tensor has another shape than the hyperparameters say.
    #[error("tensor `{name}` at byte {offset} has shape {actual:?}, not {expected:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// Byte offset of its data.
        offset: usize,
        /// Dimensions in the file, contiguous one first.
        actual: Vec<usize>,
        /// Dimensions that the hyperparameters ask for.
        expected: Vec<usize>,
    },
    /// A tensor's element format has no kernels here.
    #[error(
        "tensor `{name}` at byte {offset} has element type {ggml_type}, which is not supported"
    )]
    Format {
        /// The tensor's name.
        name: String,
        /// Byte offset of its data.
        offset: usize,
        /// The GGUF type id.
        ggml_type: u32,
    },
    /// The file has a tensor that the architecture does not use: running without it would give wrong answers.
    #[error("tensor `{name}` is not part of architecture `{architecture}`")]
    Unexpected {
        /// The tensor's name.
        name: String,
        /// The file's architecture.
        architecture: String,
    },
    /// The file asks for something that nothing here does.
    #[error("{what} is not supported")]
    Unsupported {
        /// What, and where the file says so.
        what: String,
    },
    /// No architecture of this name is built in.
    #[error("architecture `{architecture}` is not supported (supported: {supported})")]
    Architecture {
        /// The file's architecture.
        architecture: String,
        /// Names of those that are.
        supported: String,
    },
}

/// Hands out the tensors of a file and remembers which were taken.
#[derive(Debug)]
pub struct Source<'a, 'g> {
    gguf: &'g Gguf<'a>,
    taken: HashSet<String>,
}

impl<'a, 'g> Source<'a, 'g> {
    /// A source over a parsed file.
    #[must_use]
    pub fn new(gguf: &'g Gguf<'a>) -> Source<'a, 'g> {
        Source {
            gguf,
            taken: HashSet::new(),
        }
    }

    /// The file.
    #[must_use]
    pub fn gguf(&self) -> &'g Gguf<'a> {
        self.gguf
    }

    /// Whether the file has a tensor.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    fn take(
        &mut self,
        name: &str,
        expected: &[usize],
    ) -> Result<(&'g TensorInfo<'a>, Format), WeightsError> {
        let tensor = self
            .gguf
            .tensor(name)
            .ok_or_else(|| WeightsError::Missing {
                name: name.to_owned(),
            })?;
        let offset = tensor.range.start;
        let actual = &*tensor.dims;
        let matches = actual.len() >= expected.len()
            && actual
                .iter()
                .enumerate()
                .all(|(index, &dim)| dim == expected.get(index).copied().unwrap_or(1));
        if !matches {
            return Err(WeightsError::Shape {
                name: name.to_owned(),
                offset,
                actual: actual.to_vec(),
                expected: expected.to_vec(),
            });
        }
        let Some(format) = tensor.format else {
            return Err(WeightsError::Format {
                name: name.to_owned(),
                offset,
                ggml_type: tensor.ggml_type,
            });
        };
        self.taken.insert(name.to_owned());
        Ok((tensor, format))
    }

    /// Takes a matrix of `row_count` rows of `row_elements` elements.
    ///
    /// # Errors
    /// If it is missing, or has another shape, or an unsupported format.
    pub fn matrix(
        &mut self,
        name: &str,
        row_count: usize,
        row_elements: usize,
    ) -> Result<Matrix, WeightsError> {
        let (tensor, format) = self.take(name, &[row_elements, row_count])?;
        Ok(Matrix {
            format,
            row_count,
            row_elements,
            part: tensor.part,
            range: tensor.range.clone(),
            slot: None,
        })
    }

    /// Takes a vector, decoded.
    ///
    /// # Errors
    /// If it is missing, or has another length, or an unsupported format.
    pub fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, WeightsError> {
        let (tensor, format) = self.take(name, &[length])?;
        let mut values = vec![0.0; length];
        block::decode_row(format, self.gguf.data(tensor), &mut values);
        Ok(values)
    }

    /// Takes the matrix `name.weight`, and `name.bias` if the file has it.
    ///
    /// # Errors
    /// See [`Source::matrix`] and [`Source::vector`].
    pub fn linear(
        &mut self,
        name: &str,
        row_count: usize,
        row_elements: usize,
    ) -> Result<Linear, WeightsError> {
        let matrix = self.matrix(&format!("{name}.weight"), row_count, row_elements)?;
        let bias = format!("{name}.bias");
        Ok(Linear {
            matrix,
            bias: if self.has(&bias) {
                Some(self.vector(&bias, row_count)?)
            } else {
                None
            },
        })
    }

    /// Takes several matrices of the same input, given by the last part of their names and their rows: from the one
    /// matrix `fused` if the file has it, which has their rows one after the other, else each by `name` of its part.
    /// The biases may be of the one or of the several.
    ///
    /// # Errors
    /// See [`Source::linear`].
    pub fn linears<const N: usize>(
        &mut self,
        fused: &str,
        name: &dyn Fn(&str) -> String,
        parts: [(&str, usize); N],
        row_elements: usize,
    ) -> Result<[Linear; N], WeightsError> {
        let mut linears = Vec::with_capacity(N);
        if self.has(&format!("{fused}.weight")) {
            let rows = parts.iter().map(|&(_, rows)| rows).sum();
            let all = self.linear(fused, rows, row_elements)?;
            let mut start = 0;
            for (part, rows) in parts {
                let range = start..start + rows;
                let bias_name = format!("{}.bias", name(part));
                let bias = match &all.bias {
                    Some(bias) => Some(bias[range.clone()].to_vec()),
                    None if self.has(&bias_name) => Some(self.vector(&bias_name, rows)?),
                    None => None,
                };
                start = range.end;
                linears.push(Linear {
                    matrix: all.matrix.rows(range),
                    bias,
                });
            }
        } else {
            for (part, rows) in parts {
                linears.push(self.linear(&name(part), rows, row_elements)?);
            }
        }
        Ok(linears.try_into().expect("one for each part"))
    }

    /// Counts tensors as taken that are of no use here.
    pub fn leave(&mut self, is_useless: impl Fn(&str) -> bool) {
        let names = self.gguf.tensors().iter().map(|tensor| tensor.name);
        let useless = names.filter(|name| is_useless(name));
        self.taken.extend(useless.map(str::to_owned));
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// If the file has a tensor that was not taken.
    pub fn finish(self, architecture: &str) -> Result<(), WeightsError> {
        match self
            .gguf
            .tensors()
            .iter()
            .find(|tensor| !self.taken.contains(tensor.name))
        {
            None => Ok(()),
            Some(tensor) => Err(WeightsError::Unexpected {
                name: tensor.name.to_owned(),
                architecture: architecture.to_owned(),
            }),
        }
    }
}
