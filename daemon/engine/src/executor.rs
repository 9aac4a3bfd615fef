//! Runs batches of tokens through a model.
//!
//! Invariant: a failed batch leaves every sequence as it was; a sequence's cached tokens are exactly those of its
//! successful batches.

use crate::backend::cpu::{Cpu, CpuError, Probe, Sizes};
use crate::backend::{Backend, Batch, Cuda, DeviceError, Running};
use crate::calibrate::Calibration;
use crate::kv::disk::{self, PageCopy, PageStore};
use crate::kv::{Cache, KvType, PAGE, PageName, Remembered, Sequence};
use crate::model::Model;
use crate::pack;
use andon_kernels::Isa;
use andon_os::Mapping;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

/// How a model is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorOptions {
    /// What computes.
    pub backend: Backend,
    /// Whether the processor goes on where a device that computes fails.
    pub falls_back: bool,
    /// Threads; `None` for as many as the process may keep busy.
    pub threads: Option<usize>,
    /// Instruction set; `None` for the best of this machine.
    pub isa: Option<Isa>,
    /// Largest number of tokens of one batch.
    pub batch_tokens_max: usize,
    /// Rows of logits of one batch that there is room for from the start, which [`Executor::bytes`] counts; a batch that
    /// gives more makes room for more.
    pub output_rows_max: usize,
    /// Tokens that the KV cache holds over all sequences, rounded up to whole pages.
    pub kv_tokens_max: usize,
    /// How the KV cache keeps keys and values.
    pub kv_type: KvType,
    /// Whether the KV cache remembers what sequences began with, for [`Executor::sequence_of`].
    pub prefix_cache: bool,
}

impl Default for ExecutorOptions {
    fn default() -> ExecutorOptions {
        ExecutorOptions {
            backend: Backend::Cpu,
            falls_back: false,
            threads: None,
            isa: None,
            batch_tokens_max: 512,
            output_rows_max: 1,
            kv_tokens_max: 8192,
            kv_type: KvType::F16,
            prefix_cache: false,
        }
    }
}

/// Why a model cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The backend cannot start.
    #[error(transparent)]
    Backend(#[from] CpuError),
    /// The device that is to compute has no room, or refuses.
    #[error("{backend}: {source}")]
    Device {
        /// What is to compute.
        backend: Backend,
        /// What its driver says.
        source: DeviceError,
    },
    /// A device computes something else than the processor.
    #[error("{backend} does not compute what the processor does: {what}")]
    Differs {
        /// What is to compute.
        backend: Backend,
        /// Where that shows.
        what: String,
    },
    /// The backend cannot compute the model.
    #[error("{backend} cannot compute it: {why}")]
    NotCovered {
        /// What is to compute.
        backend: Backend,
        /// What it lacks.
        why: String,
    },
    /// The model generates no text.
    #[error("architecture `{architecture}` makes embeddings; it generates no text")]
    Encoder {
        /// The model's architecture.
        architecture: String,
    },
    /// An option is out of range.
    #[error("{option} is {value}: it must be between 1 and {max}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: usize,
        /// Its largest value.
        max: usize,
    },
    /// The activations of a batch would take more memory than any model of this file's size has use for.
    #[error(
        "a batch of {tokens} tokens takes {bytes} bytes of activations: at most {max} are taken for this file; is it damaged?"
    )]
    Activations {
        /// Tokens of a batch.
        tokens: usize,
        /// Bytes that it takes.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// There is not enough memory for the KV cache.
    #[error("not enough memory for a KV cache of {tokens} tokens")]
    KvMemory {
        /// Tokens asked for.
        tokens: usize,
    },
}

/// Why a batch was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The batch has no tokens, or a chunk of it has none.
    #[error("a chunk without tokens")]
    Empty,
    /// The batch has too many tokens.
    #[error("a batch of {tokens} tokens; at most {max} are taken")]
    BatchTooLarge {
        /// Tokens of the batch.
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
    /// A sequence would pass the model's context.
    #[error("a sequence of {tokens} tokens; the model's context is {context}")]
    ContextFull {
        /// Tokens that the sequence would have.
        tokens: usize,
        /// The model's context.
        context: usize,
    },
    /// The KV cache has too few free pages.
    #[error("the KV cache has room for {free} more tokens; the batch needs {needed}")]
    KvFull {
        /// Tokens' worth of free pages.
        free: usize,
        /// Tokens' worth of pages that the batch needs.
        needed: usize,
    },
    /// A file of the model became shorter under its map, or cannot be read any more. This does not pass: the model
    /// has to be loaded again.
    #[error(
        "the model file changed under the map: file {} of the model became shorter or cannot be read",
        part + 1
    )]
    ModelChanged {
        /// Which file of the model, from 0.
        part: usize,
    },
    /// A sequence belongs to another executor.
    #[error("the sequence belongs to another executor")]
    ForeignSequence,
    /// The caller asked for the pass to be given up.
    #[error("the pass was interrupted")]
    Interrupted,
    /// The device that computes failed. What it keeps of sequences is of no use any more.
    #[error("the device that computes: {0}")]
    Device(DeviceError),
}

/// Which of a chunk's tokens are to have logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// None: a part of a prompt that is not its end.
    None,
    /// The last.
    Last,
    /// Every one.
    All,
    /// The last so many, which are guesses that may be taken back, and the one before them. Pages that guesses fill are
    /// remembered only once they are kept.
    Guesses(usize),
}

impl LogitsFor {
    /// How many tokens at the end may be taken back.
    fn guesses(self) -> usize {
        match self {
            LogitsFor::Guesses(count) => count,
            LogitsFor::None | LogitsFor::Last | LogitsFor::All => 0,
        }
    }

    /// How many of a chunk's `count` tokens have logits: the last ones.
    fn rows(self, count: usize) -> usize {
        match self {
            LogitsFor::None => 0,
            LogitsFor::Last => count.min(1),
            LogitsFor::All => count,
            LogitsFor::Guesses(guesses) => count.min(guesses.saturating_add(1)),
        }
    }
}

/// Consecutive tokens of one sequence, appended to it.
#[derive(Debug)]
pub struct Chunk<'a, S = Sequence> {
    /// The sequence.
    pub sequence: &'a mut S,
    /// The tokens.
    pub tokens: &'a [u32],
    /// Which of them are to have logits.
    pub logits: LogitsFor,
}

/// Logits of a batch: one row of the vocabulary's length per output, in the order of chunks and tokens. Where the model
/// has [`Model::draft_tokens`], a row has one for each of these.
///
/// Damaged weights can give a row that is not finite. That is for the row's reader to find, since the other rows of
/// the batch are sound: [`crate::sample::Sampler`] refuses such a row.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    values: &'a [f32],
    row_length: usize,
}

impl<'a> Logits<'a> {
    /// Number of rows.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.values.len() / self.row_length
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.row_length..(index + 1) * self.row_length]
    }
}

/// Bytes of activations that every model may take; a large one may take four times its file. Widths that a small file
/// only claims would otherwise ask for gigabytes.
const ACTIVATION_BYTES_MIN: usize = 512 << 20;

/// Runs one model: its threads, activations and KV cache.
#[derive(Debug)]
pub struct Executor {
    model: Arc<Model>,
    running: Running,
    /// Threads that its buffers do for.
    threads_max: usize,
    cache: Cache,
    batch: Batch,
    /// The tokens of the batch that are to have logits.
    kept: Batch,
    /// The instruction set that was asked for.
    isa: Option<Isa>,
    falls_back: bool,
    /// What became of the device that computed.
    lost: Option<DeviceError>,
    /// Where pages are found that the cache does not have.
    store: Option<Arc<PageStore>>,
    /// When all pages were asked to be kept, in microseconds since 1970.
    kept_all_at: u64,
}

/// How many tokens the text has by whose logits builds are told apart ([`Executor::page_root`]).
const KNOWN_TEXT_TOKENS: usize = 4;

/// How many it has where a device is compared with the processor, which reads it once.
const COMPARED_TOKENS: usize = 80;

/// In which pieces a device reads that: each is computed by other kernels.
const COMPARED_PIECES: [&[usize]; 2] = [&[COMPARED_TOKENS], &[40, 24, 12, 4]];

impl Executor {
    /// Largest number of threads that may be asked for.
    pub const THREADS_MAX: usize = 1024;
    /// Largest batch that may be asked for.
    pub const BATCH_TOKENS_MAX: usize = 1 << 14;

    /// An executor of `model`. One of a device is compared with the processor on a few tokens before it is used.
    ///
    /// # Errors
    /// If an option is out of range, or the machine lacks the instruction set, or the threads or the device cannot be had, or
    /// that computes something else.
    pub fn new(model: Arc<Model>, options: &ExecutorOptions) -> Result<Executor, ExecutorError> {
        let mut executor = Executor::made(model, options, None, None)?;
        if options.backend != Backend::Cpu {
            executor.compare(options)?;
        }
        Ok(executor)
    }

    /// Compares a device's logits of a few tokens with the processor's.
    fn compare(&mut self, options: &ExecutorOptions) -> Result<(), ExecutorError> {
        let backend = options.backend;
        let options = ExecutorOptions {
            backend: Backend::Cpu,
            batch_tokens_max: COMPARED_TOKENS,
            output_rows_max: 1,
            kv_tokens_max: COMPARED_TOKENS,
            prefix_cache: false,
            ..options.clone()
        };
        // Positions may be turned by how many are served.
        let context = Some(self.context_tokens_max());
        let mut processor = Executor::made(Arc::clone(&self.model), &options, None, context)?;
        let failed = |error| match error {
            ForwardError::Device(source) => ExecutorError::Device { backend, source },
            other => ExecutorError::Differs {
                backend,
                what: other.to_string(),
            },
        };
        let text = self.known_text(COMPARED_TOKENS);
        let expected = processor.last_logits(&text, &[]).map_err(failed)?;
        // What the processor read of them for this is on the device.
        self.model.files().maps().iter().for_each(Mapping::release);
        let differs = |(one, other): (&f32, &f32)| one.to_bits() != other.to_bits();
        for pieces in COMPARED_PIECES {
            let computed = self.last_logits(&text, pieces).map_err(failed)?;
            let at = expected.iter().zip(&computed).position(differs);
            if at.is_some() || expected.len() != computed.len() {
                let token = at.unwrap_or(computed.len());
                let what = format!("the logit of token {token}, read {pieces:?} tokens at a time");
                return Err(ExecutorError::Differs { backend, what });
            }
        }
        // Nobody asks for this text.
        self.shed();
        Ok(())
    }

    /// An executor that computes with the threads of `other`, in turn with it, by [`Executor::with_threads_of`]. It has none
    /// of its own but the caller's; `options.threads` and `options.isa` are those of `other`.
    ///
    /// # Errors
    /// As for [`Executor::new`].
    pub fn beside(
        other: &Executor,
        model: Arc<Model>,
        options: &ExecutorOptions,
    ) -> Result<Executor, ExecutorError> {
        if other.backend() != Backend::Cpu {
            // Nobody else computes with this machine's threads.
            return Executor::new(model, options);
        }
        let options = ExecutorOptions {
            threads: Some(other.threads()),
            isa: Some(other.isa()),
            ..options.clone()
        };
        Executor::made(model, &options, Some(NonZero::<usize>::MIN), None)
    }

    /// Runs `work`, which computes with the threads of `other`, whose own work stands still meanwhile. Results are the same
    /// bytes with any threads.
    pub fn with_threads_of<T>(
        &mut self,
        other: &mut Executor,
        work: impl FnOnce(&mut Executor) -> T,
    ) -> T {
        if other.threads() > self.threads_max {
            return work(self);
        }
        Executor::swap_threads(self, other);
        let result = work(self);
        Executor::swap_threads(self, other);
        result
    }

    /// Swaps the threads of two that have some.
    fn swap_threads(&mut self, other: &mut Executor) {
        if let (Some(cpu), Some(other)) = (self.running.cpu(), other.running.cpu()) {
            std::mem::swap(&mut cpu.pool, &mut other.pool);
        }
    }

    /// `own` is the number of its own threads, where it works with others'; `context` the positions that are served, where the
    /// KV cache does not say so.
    fn made(
        model: Arc<Model>,
        options: &ExecutorOptions,
        own: Option<NonZero<usize>>,
        context: Option<usize>,
    ) -> Result<Executor, ExecutorError> {
        let bounded = |option, value: usize, max: usize| match NonZero::new(value) {
            Some(nonzero) if value <= max => Ok(nonzero),
            _ => Err(ExecutorError::Option { option, value, max }),
        };
        let threads = options
            .threads
            .unwrap_or_else(|| andon_os::available_threads().min(Self::THREADS_MAX));
        let threads = bounded("threads", threads, Self::THREADS_MAX)?;
        let tokens_max = bounded(
            "batch-tokens-max",
            options.batch_tokens_max,
            Self::BATCH_TOKENS_MAX,
        )?
        .get();
        let Some(decoder) = model.decoder() else {
            let architecture = model.info().architecture.clone();
            return Err(ExecutorError::Encoder { architecture });
        };
        let shape = decoder.shape();
        // Every position at once in more sequences than anyone runs; the real bound is the memory.
        let geometry = shape.kv_geometry(options.kv_type);
        let kv_max = isize::MAX as usize / geometry.token_bytes().max(1) / 2;
        let kv_tokens = bounded("kv-tokens-max", options.kv_tokens_max, kv_max)?.get();
        let page_count = Cache::pages_for(kv_tokens);
        let sizes = Sizes {
            tokens_max,
            output_rows_max: options.output_rows_max.min(tokens_max),
            vocabulary: shape.vocabulary,
            embedding: shape.embedding,
            query: shape.head_count * shape.head_dim,
            key_value: shape.kv_head_count * shape.head_dim,
            feed_forward: shape.feed_forward,
            head_dim: shape.head_dim,
            rope_pairs: shape.rope_pairs,
            rope_count: shape.rope_count,
            context: context.unwrap_or(shape.context.min(page_count.saturating_mul(PAGE))),
        };
        let max = ACTIVATION_BYTES_MIN.max(model.info().file_bytes.saturating_mul(4));
        let bytes = sizes.bytes(threads.get()).unwrap_or(usize::MAX);
        if bytes > max {
            let tokens = tokens_max;
            return Err(ExecutorError::Activations { tokens, bytes, max });
        }
        let no_memory = ExecutorError::KvMemory { tokens: kv_tokens };
        let remembers = options.prefix_cache;
        let (running, cache) = match options.backend {
            Backend::Cuda => {
                let backend = options.backend;
                if let Some(why) = model.not_covered(backend) {
                    return Err(ExecutorError::NotCovered { backend, why });
                }
                let (weights, room) = (model.weights(None), (geometry, page_count));
                let (cuda, pages) = Cuda::new(decoder, weights, &sizes, room)
                    .map_err(|source| ExecutorError::Device { backend, source })?;
                // They are on the device now.
                model.files().maps().iter().for_each(Mapping::release);
                let cache = Cache::on_device(geometry, (pages, page_count), remembers);
                (Running::Cuda(Box::new(cuda)), cache.ok_or(no_memory)?)
            }
            Backend::Cpu => {
                let cache = Cache::new(geometry, kv_tokens, remembers).ok_or(no_memory)?;
                let own = own.unwrap_or(threads);
                let cpu = Cpu::for_threads(options.isa, own, threads.get(), &sizes)?;
                model.will_need();
                (Running::Cpu(Box::new(cpu)), cache)
            }
            backend @ (Backend::OpenVino | Backend::Ggml) => {
                let why = backend.not_built().unwrap_or_default();
                return Err(ExecutorError::NotCovered { backend, why });
            }
        };
        Ok(Executor {
            model,
            running,
            threads_max: threads.get(),
            cache,
            batch: Batch::default(),
            kept: Batch::default(),
            isa: options.isa,
            falls_back: options.falls_back,
            lost: None,
            store: None,
            kept_all_at: 0,
        })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What computes.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.running.backend()
    }

    /// Why the processor computes although a device was to; `None` as long as that does.
    #[must_use]
    pub fn lost(&self) -> Option<DeviceError> {
        self.lost
    }

    /// After a pass that `error` ended: has the processor compute from now on, if it is the device that failed and the options
    /// let it. What is remembered is forgotten. False, and nothing changed, if not, if there is a sequence that holds
    /// anything, or if the machine lacks threads or memory.
    pub fn fall_back(&mut self, error: &ForwardError) -> bool {
        let (ForwardError::Device(error), true) = (error, self.falls_back) else {
            return false;
        };
        let Some(threads) = NonZero::new(self.threads_max) else {
            return false;
        };
        let sizes = *self.running.sizes();
        let cpu = match Cpu::for_threads(self.isa, threads, self.threads_max, &sizes) {
            Ok(cpu) => cpu,
            Err(why) => {
                tracing::warn!(%why, "the processor cannot go on for a device that failed");
                return false;
            }
        };
        if !self.cache.begin_here() {
            return false;
        }
        self.running = Running::Cpu(Box::new(cpu));
        self.lost = Some(*error);
        self.model.will_need();
        true
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.running.isa()
    }

    /// Threads in use.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.running.threads()
    }

    /// Largest number of tokens of a batch.
    #[must_use]
    pub fn batch_tokens_max(&self) -> usize {
        self.running.sizes().tokens_max
    }

    /// Tokens that the KV cache holds in all.
    #[must_use]
    pub fn kv_tokens_max(&self) -> usize {
        self.cache.tokens_max()
    }

    /// Tokens that the pages of the KV cache hold which no sequence does; what is only remembered counts as free. A
    /// sequence takes whole pages of [`crate::kv::PAGE`] tokens.
    #[must_use]
    pub fn kv_tokens_free(&self) -> usize {
        self.cache.tokens_free()
    }

    /// Bytes of KV cache that one token takes.
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> usize {
        self.cache.geometry().token_bytes()
    }

    /// Bytes of this machine's memory that activations take, with as many rows of logits as there is room for from the start,
    /// and the KV cache when it is full.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let activations = self.running.bytes(self.threads_max);
        activations
            .max(self.fallback_bytes())
            .saturating_add(self.kv_bytes())
    }

    /// Bytes of activations where the processor may have to go on.
    fn fallback_bytes(&self) -> usize {
        if self.falls_back {
            let bytes = self.running.sizes().bytes(self.threads_max);
            bytes.unwrap_or(usize::MAX)
        } else {
            0
        }
    }

    /// Those of the KV cache.
    #[must_use]
    pub fn kv_bytes(&self) -> usize {
        match &self.running {
            Running::Cuda(cuda) if !cuda.is_integrated() && !self.falls_back => 0,
            Running::Cpu(_) | Running::Cuda(_) => self
                .kv_tokens_max()
                .saturating_mul(self.kv_bytes_per_token()),
        }
    }

    /// Bytes of this machine's memory that copies of the weights take; `None` if they are used where the model's files are
    /// mapped.
    #[must_use]
    pub fn weights_bytes(&self) -> Option<usize> {
        match &self.running {
            Running::Cpu(_) => None,
            Running::Cuda(cuda) => Some(cuda.weights_bytes()),
        }
    }

    /// Largest number of tokens of a sequence: the model's context, or less if the KV cache is smaller.
    #[must_use]
    pub fn context_tokens_max(&self) -> usize {
        self.running.sizes().context
    }

    /// An empty sequence.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.cache.sequence()
    }

    /// A sequence that begins with as much of `tokens` as the KV cache remembers: whole pages, and never all of it. The
    /// rest is to be appended; the logits are then the same bytes as if all had been.
    #[must_use]
    pub fn sequence_of(&self, tokens: &[u32]) -> Sequence {
        let sequence = self.cache.sequence_of(tokens);
        if let Some(store) = &self.store
            && !sequence.is_empty()
        {
            store.touch(&sequence.names());
        }
        sequence
    }

    /// Bytes of a page's content.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.cache.page_bytes()
    }

    /// The name of the empty text, by which pages of this model, computed as this program does, are told from others:
    /// `model` is the model's key, and a few tokens are computed to see what comes out.
    ///
    /// # Errors
    /// [`ForwardError`] if they cannot be computed.
    pub fn page_root(&mut self, model: &pack::Key) -> Result<PageName, ForwardError> {
        let text = self.known_text(KNOWN_TEXT_TOKENS);
        let last = self.last_logits(&text, &[])?;
        Ok(PageName::root(model, &self.cache.geometry(), &last))
    }

    /// The beginning of a text that is always the same, as far as the context has room for it.
    fn known_text(&self, tokens: usize) -> Vec<u32> {
        let (vocabulary, context) = (
            self.model.info().vocabulary_count,
            self.context_tokens_max(),
        );
        // Any text does; one that is not all one token.
        (1..=tokens.min(context))
            .map(|token| u32::try_from(token * 7919 % vocabulary.max(1)).unwrap_or(0))
            .collect()
    }

    /// The logits behind a text that is read in these pieces, then as many tokens at a time as a batch has.
    fn last_logits(&mut self, text: &[u32], pieces: &[usize]) -> Result<Vec<f32>, ForwardError> {
        let mut sequence = self.sequence();
        let mut last = Vec::new();
        let (mut rest, mut pieces) = (text, pieces.iter());
        while !rest.is_empty() {
            let piece = pieces.next().copied().unwrap_or(usize::MAX);
            let count = piece.min(self.batch_tokens_max()).min(rest.len());
            let (tokens, others) = rest.split_at(count);
            rest = others;
            let logits = self.forward(&mut [Chunk {
                sequence: &mut sequence,
                tokens,
                logits: LogitsFor::Last,
            }])?;
            last.clear();
            last.extend_from_slice(logits.row(0));
        }
        Ok(last)
    }

    /// Has [`Executor::restore`] look for pages in `store`, and pages worth keeping be handed out for it
    /// ([`Executor::page_to_keep`]). Nothing comes of it where the KV cache remembers nothing.
    pub fn keep_pages_in(&mut self, store: Arc<PageStore>) {
        self.cache.set_root(store.root());
        self.store = Some(store);
    }

    /// Forgets what the KV cache remembers of sequences that have gone, and gives the memory of that back to the system.
    pub fn shed(&mut self) {
        self.cache.shed();
    }

    /// What the KV cache remembers, to be forgotten.
    #[must_use]
    pub fn remembered(&self) -> Remembered {
        self.cache.remembered()
    }

    /// Appends the next page of `text`, which `sequence` has the beginning of, if it is kept in the store: the same bytes
    /// that computing it would give. False, and nothing appended, if it is not, if the sequence ends within a page, if it
    /// is the text's end, since only a token that is computed has logits, or if there is no room.
    pub fn restore(&mut self, sequence: &mut Sequence, text: &[u32]) -> bool {
        let Some(store) = self.store.clone().filter(|_| self.cache.owns(sequence)) else {
            return false;
        };
        let (start, end) = (sequence.len(), sequence.len() + PAGE);
        let tokens = text.get(start..end).filter(|_| text.len() > end);
        let (Some(tokens), Some(parent)) = (tokens, sequence.end()) else {
            return false;
        };
        let (Ok(depth), name) = (u32::try_from(start / PAGE), parent.below(tokens)) else {
            return false;
        };
        let Some(mut page) = store.read(depth, name) else {
            return false;
        };
        if end > self.context_tokens_max() || !self.cache.reserve(sequence, end) {
            return false;
        }
        let place = sequence.pages()[start / PAGE];
        let read = self.cache.import(place, |piece| page.fill(piece));
        match read.and_then(|()| page.finish()) {
            Ok(()) => {
                sequence.append(tokens, 0);
                store.was_read(depth, name, parent);
                true
            }
            Err(error) => {
                sequence.trim();
                store.give_up(depth, name, &error);
                false
            }
        }
    }

    /// Appends the tokens of `text`, which `sequence` has the beginning of, that the next page has in common with one that the KV
    /// cache remembers: the same bytes that computing them would give. Returns how many; at least the last one is left.
    pub fn lengthen(&mut self, sequence: &mut Sequence, text: &[u32]) -> usize {
        if !self.cache.owns(sequence) {
            return 0;
        }
        self.cache.lengthen(sequence, text)
    }

    /// Takes the first page of `text` that is not remembered from the store, and remembers it. Nothing holds it then, so that
    /// it takes no room from anyone. False where [`Executor::restore`] says so.
    pub fn remember_next(&mut self, text: &[u32]) -> bool {
        let mut sequence = self.sequence_of(text);
        self.restore(&mut sequence, text)
    }

    /// A copy of a page that is worth keeping and that the store does not have, those before it in a text first; `None`
    /// if there is none. Worth keeping is what a later sequence was begun with again.
    #[must_use]
    pub fn page_to_keep(&self) -> Option<PageCopy> {
        let store = self.store.as_ref()?;
        let generation = store.generation();
        loop {
            let (page, age, named) = self.cache.next_worthy()?;
            let Ok(depth) = u32::try_from(named.depth) else {
                continue;
            };
            if !store.contains(depth, named.name) {
                return Some(PageCopy {
                    parent: named.parent,
                    name: named.name,
                    depth,
                    tokens: named.tokens,
                    content: self.cache.export(page)?,
                    used: (age > 0).then(|| self.kept_all_at.saturating_sub(age)),
                    generation,
                });
            }
        }
    }

    /// Has all that the KV cache remembers be worth keeping, the last used before others, `pages_max` pages at most.
    pub fn keep_all(&mut self, pages_max: usize) {
        if self.store.is_some() {
            self.kept_all_at = disk::now();
            self.cache.all_found(pages_max);
        }
    }

    /// A second sequence of the same tokens, sharing the full pages; `None` if the KV cache has no page for the rest,
    /// or the sequence belongs to another executor.
    #[must_use]
    pub fn fork(&mut self, sequence: &Sequence) -> Option<Sequence> {
        if self.cache.owns(sequence) {
            self.cache.fork(sequence)
        } else {
            None
        }
    }

    /// Has threads wait awake for as long as is of use on this machine; results do not change.
    pub fn adapt(&mut self, calibration: &Calibration) {
        let spin = Duration::try_from_secs_f32(calibration.spin_s).unwrap_or_default();
        if let Some(cpu) = self.running.cpu() {
            cpu.pool.pool.set_spin(spin);
        }
    }

    /// The processor and the model's weights, to take times of; `None` if something else computes.
    pub(crate) fn probe(&mut self) -> Option<Probe<'_>> {
        self.running.probe(&self.model)
    }

    /// Appends each chunk's tokens to its sequence and computes the logits asked for.
    ///
    /// # Errors
    /// [`ForwardError`]; then no sequence has changed.
    pub fn forward(&mut self, chunks: &mut [Chunk<'_>]) -> Result<Logits<'_>, ForwardError> {
        self.forward_unless(chunks, &|| false)
    }

    /// [`Executor::forward`], given up if `interrupted` says so before one of the layers. A device then still does what it
    /// was asked for: two layers of a pass of many tokens, all of a pass of few. It is asked often and by the
    /// calling thread: a flag is what it should read. What was given up costs its time again, and gives the same bytes.
    ///
    /// # Errors
    /// [`ForwardError`]; then no sequence has changed.
    pub fn forward_unless(
        &mut self,
        chunks: &mut [Chunk<'_>],
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Logits<'_>, ForwardError> {
        self.check(chunks)?;
        self.reserve(chunks)?;
        self.fill_batch(chunks);
        let model = Arc::clone(&self.model);
        let kept = self.batch.has_others().then_some(&self.kept);
        let done = self
            .running
            .forward(&model, &mut self.cache, (&self.batch, kept), interrupted);
        // After the pass: what it read before the file changed was sound.
        let error = match model.files().damaged() {
            Some((part, _)) => Some(ForwardError::ModelChanged { part }),
            None => match done {
                Ok(flow) => flow.is_break().then_some(ForwardError::Interrupted),
                Err(error) => Some(ForwardError::Device(error)),
            },
        };
        if let Some(error) = error {
            for chunk in chunks {
                chunk.sequence.trim();
            }
            return Err(error);
        }
        let draft_tokens = model.decoder().and_then(|decoder| decoder.draft_tokens());
        let row_length = draft_tokens.map_or(model.info().vocabulary_count, <[u32]>::len);
        let values = &self.running.logits()[..self.batch.outputs.len() * row_length];
        for chunk in chunks {
            chunk.sequence.append(chunk.tokens, chunk.logits.guesses());
        }
        Ok(Logits { values, row_length })
    }

    fn check(&self, chunks: &[Chunk<'_>]) -> Result<(), ForwardError> {
        let (max, context, vocabulary) = (
            self.batch_tokens_max(),
            self.context_tokens_max(),
            self.model.info().vocabulary_count,
        );
        let tokens = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        if tokens == 0 || chunks.iter().any(|chunk| chunk.tokens.is_empty()) {
            return Err(ForwardError::Empty);
        }
        if tokens > max {
            return Err(ForwardError::BatchTooLarge { tokens, max });
        }
        for chunk in chunks {
            if !self.cache.owns(chunk.sequence) {
                return Err(ForwardError::ForeignSequence);
            }
            if let Some(&id) = chunk.tokens.iter().find(|&&id| id as usize >= vocabulary) {
                return Err(ForwardError::UnknownToken { id, vocabulary });
            }
            let tokens = chunk.sequence.len() + chunk.tokens.len();
            if tokens > context {
                return Err(ForwardError::ContextFull { tokens, context });
            }
        }
        Ok(())
    }

    /// Takes the pages that the batch needs, or none.
    fn reserve(&mut self, chunks: &mut [Chunk<'_>]) -> Result<(), ForwardError> {
        for index in 0..chunks.len() {
            let chunk = &mut chunks[index];
            let length = chunk.sequence.len() + chunk.tokens.len();
            if !self.cache.reserve(chunk.sequence, length) {
                for chunk in &mut chunks[..index] {
                    chunk.sequence.trim();
                }
                let missing = |chunk: &Chunk<'_>| {
                    chunk
                        .sequence
                        .pages_missing(chunk.sequence.len() + chunk.tokens.len())
                };
                let needed = chunks.iter().map(missing).sum::<usize>() * crate::kv::PAGE;
                return Err(ForwardError::KvFull {
                    free: self.cache.tokens_free(),
                    needed,
                });
            }
        }
        Ok(())
    }

    fn fill_batch(&mut self, chunks: &[Chunk<'_>]) {
        let batch = &mut self.batch;
        batch.clear();
        for chunk in chunks {
            let first_page = batch.pages.len();
            batch.pages.extend_from_slice(chunk.sequence.pages());
            let range = (first_page, batch.pages.len());
            let without_logits = chunk.tokens.len() - chunk.logits.rows(chunk.tokens.len());
            for (index, &token) in chunk.tokens.iter().enumerate() {
                if index >= without_logits {
                    batch.outputs.push(batch.tokens.len());
                }
                batch.tokens.push(token);
                batch.positions.push(chunk.sequence.len() + index);
                batch.page_ranges.push(range);
            }
        }
        if self.batch.has_others() {
            self.kept.keep_outputs_of(&self.batch);
        }
    }
}
