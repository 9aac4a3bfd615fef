//! Embeddings: texts' tokens in, one vector of unit length each out.
//!
//! An encoding goes through its model one layer a step, so that whoever runs it can look up between steps, drop it,
//! or let another one go first. A vector depends on its own input only: not on what it was encoded together with, nor
//! on threads or instruction sets.

use crate::backend::cpu::encode::{Encode, EncodePass, EncodeSizes, Encoding, Span};
use crate::backend::cpu::{CpuError, Threads};
use crate::executor::ExecutorError;
use crate::model::Model;
use crate::models::{Encoder, Pooling};
use andon_kernels::{Isa, Table};
use std::num::NonZero;
use std::sync::Arc;

/// How an encoder is to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmbedderOptions {
    /// Threads; `None` for as many as the process may keep busy.
    pub threads: Option<usize>,
    /// Instruction set; `None` for the best of this machine.
    pub isa: Option<Isa>,
    /// Longest input; `None` for the model's context.
    pub context_tokens_max: Option<usize>,
}

/// Why inputs are not embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// There is no input, or one has no tokens.
    #[error("an input without tokens")]
    Empty,
    /// An input is longer than the model's context.
    #[error("an input of {tokens} tokens; at most {max} are taken")]
    InputTooLong {
        /// Its tokens.
        tokens: usize,
        /// The limit.
        max: usize,
    },
    /// The inputs are too many for one encoding.
    #[error("inputs of {tokens} tokens together; at most {max} are taken at once")]
    TooManyTokens {
        /// Their tokens, each input's rounded up as [`Embedder::tokens_taken`] says.
        tokens: usize,
        /// The limit.
        max: usize,
    },
    /// A token is not in the vocabulary.
    #[error("token {id} is not in the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The token.
        id: u32,
        /// Tokens in the vocabulary.
        vocabulary: usize,
    },
    /// The model's file was changed while it was in use.
    #[error("the model file changed under the map: file {} of the model cannot be read", part + 1)]
    ModelChanged {
        /// Which of the model's files, from 0.
        part: usize,
    },
    /// The vector of an input has no direction: the model's weights are damaged.
    #[error("the vector of input {input} is not finite: the model file may be damaged")]
    NotFinite {
        /// Index of the input.
        input: usize,
    },
}

/// Why an embedder cannot be made of a model.
#[derive(Debug, thiserror::Error)]
pub enum EmbedderError {
    /// The model generates text.
    #[error("architecture `{architecture}` generates text; it makes no embeddings")]
    NoEncoder {
        /// The model's architecture.
        architecture: String,
    },
    /// There is not enough memory for the longest input, or it takes more than a model of this size is allowed.
    #[error("not enough memory for inputs of {tokens} tokens; set a smaller context")]
    Memory {
        /// Tokens of the longest input.
        tokens: usize,
    },
    /// The machine or an option does not allow it.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
}

/// Scratch that any encoder may take, and four times its file if that is more: a small file cannot ask for all memory
/// by claiming a long context. The largest encoders with inputs of 8192 tokens take half of it.
const SCRATCH_BYTES_MIN: usize = 1 << 30;

/// Runs one encoder: its threads and scratch.
#[derive(Debug)]
pub struct Embedder {
    model: Arc<Model>,
    encode: Encode,
    context: usize,
    tokens_max: usize,
    bytes: usize,
}

impl Embedder {
    /// Tokens that an encoding holds at least, however short the context: enough for one pass over the weights to
    /// serve many short inputs.
    const TOKENS_MIN: usize = 512;

    /// An embedder of `model`.
    ///
    /// # Errors
    /// If the model is no encoder, or an option is out of range, or the machine lacks the instruction set, or the
    /// memory or the threads cannot be had.
    pub fn new(model: Arc<Model>, options: &EmbedderOptions) -> Result<Embedder, EmbedderError> {
        let Some((encoder, _)) = model.encoder() else {
            let architecture = model.info().architecture.clone();
            return Err(EmbedderError::NoEncoder { architecture });
        };
        let shape = encoder.shape();
        let max = crate::Executor::THREADS_MAX;
        let threads = options
            .threads
            .unwrap_or_else(|| andon_os::available_threads().min(max));
        let threads = match NonZero::new(threads) {
            Some(nonzero) if threads <= max => nonzero,
            _ => {
                let option = "threads";
                let value = threads;
                return Err(ExecutorError::Option { option, value, max }.into());
            }
        };
        let context = match options.context_tokens_max {
            None => shape.context,
            Some(0) => {
                let (option, value, max) = ("context-tokens-max", 0, shape.context);
                return Err(ExecutorError::Option { option, value, max }.into());
            }
            Some(tokens) => tokens.min(shape.context),
        };
        let tokens_max = EncodeSizes::padded(context).max(Self::TOKENS_MIN);
        let isa = options.isa.unwrap_or_else(Isa::best);
        let table =
            Table::new(isa).ok_or_else(|| ExecutorError::Backend(CpuError::unsupported(isa)))?;
        let pool = Threads::new(threads).map_err(|source| {
            let threads = threads.get();
            ExecutorError::Backend(CpuError::Threads { threads, source })
        })?;
        let sizes = EncodeSizes {
            embedding: shape.embedding,
            head_dim: shape.head_dim(),
            feed_forward: shape.feed_forward,
            context,
            tokens_max,
        };
        // `vec!` aborts where there is not enough memory, so ask first, in a way that may fail; a file may claim any
        // context. The black box keeps the compiler from leaving out what nobody uses.
        let memory = EmbedderError::Memory { tokens: context };
        let most = SCRATCH_BYTES_MIN.max(model.info().file_bytes.saturating_mul(4));
        let Some(bytes) = sizes.bytes(pool.threads()).filter(|&bytes| bytes <= most) else {
            return Err(memory);
        };
        let mut probe = Vec::<u8>::new();
        if probe.try_reserve_exact(bytes).is_err() {
            return Err(memory);
        }
        drop(std::hint::black_box(probe));
        model.will_need();
        let encode = Encode::new(table, pool, sizes, encoder.ropes());
        Ok(Embedder {
            model,
            encode,
            context,
            tokens_max,
            bytes,
        })
    }

    /// Bytes of its scratch.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Most bytes of an encoding.
    #[must_use]
    pub fn encoding_bytes_max(&self) -> usize {
        let token = self.dimensions().saturating_mul(size_of::<f32>());
        let token = token.saturating_add(2 * size_of::<u32>());
        self.tokens_max.saturating_mul(token)
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.encode.table.isa()
    }

    /// Threads in use.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.encode.pool.threads()
    }

    /// Longest input.
    #[must_use]
    pub fn context_tokens_max(&self) -> usize {
        self.context
    }

    /// Most tokens of one encoding, counted by [`Embedder::tokens_taken`].
    #[must_use]
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// What an input of `tokens` counts as: its keys take whole tiles.
    #[must_use]
    pub fn tokens_taken(tokens: usize) -> usize {
        EncodeSizes::padded(tokens)
    }

    fn encoder(&self) -> (&dyn Encoder, Pooling) {
        // `new` makes no embedder of another model.
        self.model.encoder().expect("the model is an encoder")
    }

    /// Begins an encoding.
    ///
    /// # Errors
    /// [`EmbedError`] for inputs that cannot be encoded; nothing is ever cut.
    pub fn start(&self, inputs: &[&[u32]]) -> Result<Encoding, EmbedError> {
        let vocabulary = self.encoder().0.shape().vocabulary;
        if inputs.is_empty() || inputs.iter().any(|input| input.is_empty()) {
            return Err(EmbedError::Empty);
        }
        for input in inputs {
            if input.len() > self.context {
                let (tokens, max) = (input.len(), self.context);
                return Err(EmbedError::InputTooLong { tokens, max });
            }
            if let Some(&id) = input.iter().find(|&&id| id as usize >= vocabulary) {
                return Err(EmbedError::UnknownToken { id, vocabulary });
            }
        }
        let taken = inputs
            .iter()
            .map(|input| Self::tokens_taken(input.len()))
            .fold(0, usize::saturating_add);
        if taken > self.tokens_max {
            let (tokens, max) = (taken, self.tokens_max);
            return Err(EmbedError::TooManyTokens { tokens, max });
        }
        let count = inputs.iter().map(|input| input.len()).sum::<usize>();
        let mut encoding = Encoding {
            tokens: Vec::with_capacity(count),
            spans: Vec::with_capacity(inputs.len()),
            span_of: Vec::with_capacity(count),
            hidden: vec![0.0; count * self.dimensions()],
            layers_done: 0,
        };
        let mut place = 0;
        for (index, input) in (0u32..).zip(inputs) {
            encoding.spans.push(Span {
                first: encoding.tokens.len(),
                length: input.len(),
                place,
            });
            place += Self::tokens_taken(input.len());
            encoding.tokens.extend_from_slice(input);
            encoding.span_of.resize(encoding.tokens.len(), index);
        }
        Ok(encoding)
    }

    /// Runs the next layer. True when there is none left.
    ///
    /// # Panics
    /// If the encoding was begun by an embedder of another model or smaller limits.
    pub fn step(&mut self, encoding: &mut Encoding) -> bool {
        let model = Arc::clone(&self.model);
        let (encoder, _) = model.encoder().expect("the model is an encoder");
        let layer_count = encoder.shape().layer_count;
        if encoding.layers_done >= layer_count {
            return true;
        }
        let pack = model.pack();
        let mut pass = EncodePass {
            encode: &mut self.encode,
            weights: model.weights(pack.as_deref()),
            encoding,
        };
        let index = pass.encoding.layers_done;
        if index == 0 {
            encoder.embed(&mut pass);
        }
        encoder.layer(index, &mut pass);
        if index + 1 == layer_count {
            encoder.finish(&mut pass);
        }
        if model.leave_damaged(pack.as_ref()) {
            // Layers add to what the ones before left: without the pack it begins anew.
            encoding.layers_done = 0;
            return false;
        }
        encoding.layers_done += 1;
        encoding.layers_done == layer_count
    }

    /// Length of a vector.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.encoder().0.shape().embedding
    }

    /// The vector of the input `index`, once all layers have run: pooled, and scaled to length one.
    ///
    /// # Errors
    /// [`EmbedError::NotFinite`] if it has no direction, [`EmbedError::ModelChanged`].
    ///
    /// # Panics
    /// If the encoding has no such input.
    pub fn vector(&self, encoding: &Encoding, index: usize) -> Result<Vec<f32>, EmbedError> {
        // After the layers: what they read before the file changed was sound.
        if let Some((part, _)) = self.model.files().damaged() {
            return Err(EmbedError::ModelChanged { part });
        }
        let width = self.dimensions();
        let span = encoding.spans[index];
        let rows = &encoding.hidden[span.first * width..(span.first + span.length) * width];
        let one = |row: &[f32]| row.iter().map(|&value| f64::from(value)).collect();
        let pooled: Vec<f64> = match self.encoder().1 {
            Pooling::First => one(&rows[..width]),
            Pooling::Last => one(&rows[rows.len() - width..]),
            Pooling::Mean => {
                let mut sums = vec![0.0; width];
                for row in rows.chunks_exact(width) {
                    for (sum, &value) in sums.iter_mut().zip(row) {
                        *sum += f64::from(value);
                    }
                }
                // The length is set below, so there is no need to divide by the count.
                sums
            }
        };
        unit(&pooled).ok_or(EmbedError::NotFinite { input: index })
    }

    /// Vectors of all inputs, encoded together.
    ///
    /// # Errors
    /// [`EmbedError`]
    pub fn embed(&mut self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut encoding = self.start(inputs)?;
        while !self.step(&mut encoding) {}
        (0..inputs.len())
            .map(|index| self.vector(&encoding, index))
            .collect()
    }
}

/// The vector scaled to length one; `None` if it has no direction or is not finite.
fn unit(vector: &[f64]) -> Option<Vec<f32>> {
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    (length.is_finite() && length > 0.0).then(|| {
        vector
            .iter()
            .map(|&value| (value / length) as f32)
            .collect()
    })
}

/// Cuts a vector to its first `dimensions` elements and scales those to length one: how models trained for it
/// (Matryoshka representation learning) give shorter vectors. `None` if nothing is left.
#[must_use]
pub fn shortened(vector: &[f32], dimensions: usize) -> Option<Vec<f32>> {
    let cut = vector.get(..dimensions)?;
    unit(
        &cut.iter()
            .map(|&value| f64::from(value))
            .collect::<Vec<_>>(),
    )
}
