//! Runs batches of tokens through a model.
//!
//! Invariant: a failed batch leaves every sequence as it was; a sequence's cached tokens are exactly those of its
//! successful batches.

mod compare;
mod forward;
mod loading;
mod memory;
mod options;
mod pages;

pub use forward::{Chunk, ForwardError, Logits, LogitsFor, Outputs};
pub use loading::{AtOnce, Loading, Uncompared};
pub use memory::Needs;
pub use options::{ExecutorError, ExecutorOptions};

use crate::backend::cpu::{Cpu, Probe, Sizes};
use crate::backend::{Backend, Batch, Cuda, DeviceError, Running};
use crate::calibrate::Calibration;
use crate::kv::disk::PageStore;
use crate::kv::{Cache, Geometry, PAGE};
use crate::model::Model;
use andon_kernels::Isa;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

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
    /// What it takes of memory.
    needs: Needs,
    /// The processor, while a device computes that it was changed over to.
    resting: Option<Box<Cpu>>,
    /// What became of the device that computed.
    lost: Option<DeviceError>,
    /// Where pages are found that the cache does not have.
    store: Option<Arc<PageStore>>,
    /// When all pages were asked to be kept, in microseconds since 1970.
    kept_all_at: u64,
}

/// Sizes that follow from a model and options.
#[derive(Debug)]
struct Plan {
    threads: NonZero<usize>,
    sizes: Sizes,
    geometry: Geometry,
    page_count: usize,
}

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
        let executor = Executor::load(model, options, &mut AtOnce)?.compared(&mut AtOnce)?;
        if options.backend != Backend::Cpu {
            // What was read of them is on the device.
            executor.model.release();
        }
        Ok(executor)
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
        Executor::made(
            model,
            &options,
            Some(NonZero::<usize>::MIN),
            None,
            &mut AtOnce,
        )
    }

    /// Runs `work`, which computes with the threads of `other`, whose own work stands still meanwhile. Results are the same
    /// bytes with any threads.
    pub fn with_threads_of<T>(
        &mut self,
        other: &mut Executor,
        work: impl FnOnce(&mut Executor) -> T,
    ) -> T {
        let threads = other.processor().map_or(1, |cpu| cpu.pool.threads());
        if threads > self.threads_max {
            return work(self);
        }
        Executor::swap_threads(self, other);
        let result = work(self);
        Executor::swap_threads(self, other);
        result
    }

    /// Swaps the threads of two that have some.
    fn swap_threads(&mut self, other: &mut Executor) {
        if let (Some(cpu), Some(other)) = (self.processor(), other.processor()) {
            std::mem::swap(&mut cpu.pool, &mut other.pool);
        }
    }

    /// The processor, also where it rests.
    fn processor(&mut self) -> Option<&mut Cpu> {
        match self.running.cpu() {
            Some(cpu) => Some(cpu),
            None => self.resting.as_deref_mut(),
        }
    }

    /// The sizes that follow from a model and options; `context` are the positions that are served, where the KV cache does
    /// not say so.
    fn plan(
        model: &Model,
        options: &ExecutorOptions,
        context: Option<usize>,
    ) -> Result<Plan, ExecutorError> {
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
        Ok(Plan {
            threads,
            sizes,
            geometry,
            page_count,
        })
    }

    /// `own` is the number of its own threads, where it works with others'; `context` the positions that are served, where the
    /// KV cache does not say so.
    fn made(
        model: Arc<Model>,
        options: &ExecutorOptions,
        own: Option<NonZero<usize>>,
        context: Option<usize>,
        loading: &mut dyn Loading,
    ) -> Result<Executor, ExecutorError> {
        let Plan {
            threads,
            sizes,
            geometry,
            page_count,
        } = Executor::plan(&model, options, context)?;
        let needs = Executor::needs_of(&model, options)?;
        let no_memory = ExecutorError::KvMemory {
            tokens: page_count.saturating_mul(PAGE),
        };
        let remembers = options.prefix_cache;
        let (running, cache) = match options.backend {
            Backend::Cuda => {
                let backend = options.backend;
                needs.fits(backend)?;
                // What a device takes is known of no other model.
                let decoder = model.decoder().expect("the model is a decoder");
                let (weights, room) = (model.weights(None), (geometry, page_count));
                let goes_on = &mut |sent, all| loading.goes_on(sent, all);
                let made = Cuda::new(decoder, weights, &sizes, room, goes_on);
                let made = made.map_err(|source| ExecutorError::Device { backend, source })?;
                let (mut cuda, pages) = made.ok_or(ExecutorError::GivenUp)?;
                cuda.record(options.graphs);
                let cache = Cache::on_device(geometry, (pages, page_count), remembers);
                (Running::Cuda(Box::new(cuda)), cache.ok_or(no_memory)?)
            }
            Backend::Cpu => {
                let tokens = page_count.saturating_mul(PAGE);
                let cache = Cache::new(geometry, tokens, remembers).ok_or(no_memory)?;
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
            needs,
            resting: None,
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

    /// Has threads wait awake for as long as is of use on this machine; results do not change.
    pub fn adapt(&mut self, calibration: &Calibration) {
        let spin = Duration::try_from_secs_f32(calibration.spin_s).unwrap_or_default();
        if let Some(cpu) = self.processor() {
            cpu.pool.pool.set_spin(spin);
        }
    }

    /// The processor and the model's weights, to take times of; `None` if something else computes.
    pub(crate) fn probe(&mut self) -> Option<Probe<'_>> {
        self.running.probe(&self.model)
    }
}
