//! A device, and buffers in its memory.

use crate::attention;
use crate::buffer::Buffer;
use crate::error::Error;
use crate::graph::Recording;
use crate::matmul::{Format, Kernel};
use crate::modules;
use crate::turns::{InTurn, Turn, Turns};
use cudarc::driver::sys::{CUdevice_attribute, CUdeviceptr, CUfunction_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaStream, DeviceRepr, DriverError, LaunchConfig,
    ValidAsZeroBits, result, sys,
};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// What buffers hold: plain numbers.
pub trait Element: DeviceRepr + ValidAsZeroBits + Copy + Default + Send + Sync + 'static {}

impl Element for u8 {}
impl Element for i8 {}
impl Element for u16 {}
impl Element for u32 {}
impl Element for i32 {}
impl Element for f32 {}
impl Element for u64 {}

/// A device with its kernels loaded, and the stream that all work goes to.
#[derive(Debug)]
pub struct Device {
    pub(crate) context: Arc<CudaContext>,
    /// Used by [`Device::stream`] only.
    stream: Arc<CudaStream>,
    pub(crate) turns: Arc<Turns>,
    functions: HashMap<&'static str, CudaFunction>,
    launches: HashMap<&'static str, Launch>,
    /// Bytes of shared memory that kernels were allowed, where they had to be.
    allowed: Mutex<HashMap<&'static str, u32>>,
    /// What is being recorded.
    pub(crate) recording: Mutex<Option<Recording>>,
    pub(crate) processors: u32,
    /// Bytes of shared memory that a block may have.
    shared_bytes_max: u32,
    /// Whether a kernel may start before the one before it has ended.
    pub(crate) overlaps: bool,
}

/// How a product's kernel is launched, as its module says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    /// Threads of a block; of a product with few columns, the most that it may have.
    pub(crate) threads: u32,
    /// Bytes of shared memory of a block of so many threads; each of a product with few columns has its share.
    pub(crate) shared_bytes: u32,
    /// Rows that a block computes.
    pub(crate) rows: u32,
    /// Columns that it computes.
    pub(crate) columns: u32,
    /// Blocks that a processor has room for, by their warps less one.
    pub(crate) blocks: [u32; WARPS_MAX],
}

/// Threads of a warp.
pub(crate) const WARP: u32 = 32;
/// The most warps of a block of a kernel that says how it is launched.
pub(crate) const WARPS_MAX: usize = 8;

/// What a device has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Its name.
    pub name: String,
    /// Compute capability: major, minor.
    pub capability: (i32, i32),
    /// Processors that blocks of threads are shared out to.
    pub processors: u32,
    /// Bytes of memory that are free, and bytes in all.
    pub memory_bytes: (usize, usize),
    /// Bytes of the cache that all processors share.
    pub cache_bytes: usize,
    /// Whether its memory is the machine's.
    pub integrated: bool,
}

/// The end of some of the work that was asked for.
#[derive(Debug)]
pub struct Mark(CudaEvent);

/// A module's kernels.
struct Module {
    name: &'static str,
    /// Those that say how they are launched.
    launched: &'static [&'static str],
    /// The same, where others do their work if a block may not have the shared memory that they take.
    large: &'static [&'static str],
    /// The others.
    others: &'static [&'static str],
}

/// A module of which no kernel says how it is launched.
const fn plain(name: &'static str, others: &'static [&'static str]) -> Module {
    Module {
        name,
        launched: &[],
        large: &[],
        others,
    }
}

/// Kernels that are not products.
const MODULES: &[Module] = &[
    Module {
        name: "attention",
        launched: attention::KERNELS,
        large: attention::LARGE,
        others: attention::MERGES,
    },
    plain(
        "columns",
        &[
            "add_bias",
            "norm_columns",
            "finish_logits",
            "gather_columns",
        ],
    ),
    plain("glu", &["glu_quantize"]),
    plain("heads", &["heads_f16", "heads_q8"]),
    plain("norm", &["add_norm_quantize"]),
    plain("quantize", &["quantize"]),
    plain("stream", &["stream_copy", "stream_read"]),
    plain("top_k", &["top_k_stretches", "top_k_merge"]),
];

/// The oldest compute capability whose instructions are those of the kernels.
pub(crate) const OLDEST: (i32, i32) = (8, 0);

impl Device {
    /// Opens device number `ordinal` and loads every kernel.
    ///
    /// # Errors
    /// Where there is no such device, it is too old, this program has no kernels for it, or the driver refuses.
    pub fn open(ordinal: usize) -> Result<Device, Error> {
        Device::open_within(ordinal, u32::MAX)
    }

    /// The same, as if it let a block have no more than `shared_bytes` of shared memory: it then does what devices do that have
    /// no more.
    ///
    /// # Errors
    /// As [`Device::open`], and where kernels take more that nothing else does the work of.
    pub fn open_within(ordinal: usize, shared_bytes: u32) -> Result<Device, Error> {
        if let Some(reason) = modules::missing() {
            return Err(Error::NotBuilt(reason));
        }
        // SAFETY: opens and closes the driver's library, whose initializers have no requirement.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoDriver);
        }
        result::init().map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_NO_DEVICE => Error::NoDevice { ordinal },
            _ => Error::of("starting the driver", error),
        })?;
        let count = CudaContext::device_count().map_err(of("counting devices"))?;
        if usize::try_from(count).is_ok_and(|count| ordinal >= count) {
            return Err(Error::NoDevice { ordinal });
        }
        let context = CudaContext::new(ordinal).map_err(of("opening the device"))?;
        let asking = of("asking what the device is");
        let capability = context.compute_capability().map_err(asking)?;
        if capability < OLDEST {
            return Err(Error::TooOld { capability });
        }
        let of_block = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(asking)?;
        // SAFETY: events order the use of buffers on several streams; here there is one, which orders all of it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(of("making a stream"))?;
        let mut device = Device {
            context,
            stream,
            allowed: Mutex::default(),
            turns: Arc::default(),
            functions: HashMap::new(),
            launches: HashMap::new(),
            recording: Mutex::new(None),
            processors: 0,
            shared_bytes_max: u32::try_from(of_block).unwrap_or(0).min(shared_bytes),
            overlaps: capability >= (9, 0),
        };
        device.processors = device.limits()?.processors;
        let products = Format::ALL.map(|format| {
            let products = format.products();
            let (launched, large) =
                products.split_at(products.len().min(Kernel::Panel128 as usize));
            Module {
                name: format.module(),
                launched,
                large,
                others: format.others(),
            }
        });
        for module in products.iter().chain(MODULES) {
            device.load(module, capability)?;
        }
        Ok(device)
    }

    /// Loads a module: kernels that say how they are launched, and others.
    fn load(&mut self, module: &Module, capability: (i32, i32)) -> Result<(), Error> {
        let image = Ptx::from_binary(modules::image(module.name));
        let loaded = self
            .context
            .load_module(image)
            .map_err(|error| match error.0 {
                CUresult::CUDA_ERROR_INVALID_IMAGE
                | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
                | CUresult::CUDA_ERROR_INVALID_PTX
                | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
                | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                | CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED => Error::NoKernels {
                    capability,
                    code: error.0 as u32,
                },
                _ => Error::of("loading kernels", error),
            })?;
        let load = |kernel| {
            let found = loaded.load_function(kernel);
            found.map_err(of("looking for a kernel"))
        };
        for &kernel in module.others {
            self.functions.insert(kernel, load(kernel)?);
        }
        let stream = Arc::clone(&self.stream);
        for &kernel in module.launched.iter().chain(module.large) {
            let function = load(kernel)?;
            let global = loaded
                .get_global(&format!("{kernel}_launch"), &stream)
                .map_err(of("looking for how a kernel is launched"))?;
            let mut bytes = [0; 16];
            stream
                .memcpy_dtoh(&global, &mut bytes)
                .map_err(of("reading how a kernel is launched"))?;
            self.finish()?;
            let (words, _) = bytes.as_chunks::<4>();
            let word = |index: usize| u32::from_le_bytes(words[index]);
            let (threads, shared_bytes) = (word(0), word(1));
            let declared = function
                .get_attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
                .map_err(of("asking for shared memory"))?;
            let takes = shared_bytes.saturating_add(u32::try_from(declared).unwrap_or(0));
            if takes > self.shared_bytes_max {
                if module.large.contains(&kernel) {
                    continue;
                }
                return Err(Error::SharedMemory {
                    kernel,
                    takes,
                    has: self.shared_bytes_max,
                });
            }
            self.functions.insert(kernel, function);
            let warps = threads / WARP;
            let function = self.function(kernel, shared_bytes)?;
            let mut blocks = [0; WARPS_MAX];
            for (count, blocks) in (1..=warps).zip(&mut blocks) {
                let bytes = (shared_bytes / warps * count) as usize;
                *blocks = function
                    .occupancy_max_active_blocks_per_multiprocessor(count * WARP, bytes, None)
                    .map_err(of("asking how many blocks there is room for"))?;
            }
            let launch = Launch {
                threads,
                shared_bytes,
                rows: word(2),
                columns: word(3),
                blocks,
            };
            self.launches.insert(kernel, launch);
        }
        Ok(())
    }

    /// The stream, once it is this thread's turn. All that is asked of it is asked by this.
    pub(crate) fn stream(&self) -> Turn<'_> {
        self.turns.turn(&self.stream)
    }

    /// The stream for something that cannot be repeated by a graph.
    ///
    /// # Errors
    /// If this thread records launches.
    pub(crate) fn unrecorded(&self, doing: &'static str) -> Result<Turn<'_>, Error> {
        if self.turns.records() {
            return Err(Error::WhileRecording { doing });
        }
        Ok(self.stream())
    }

    /// A kernel, allowed to use `shared_bytes` of shared memory.
    pub(crate) fn function(
        &self,
        kernel: &'static str,
        shared_bytes: u32,
    ) -> Result<&CudaFunction, Error> {
        let function = &self.functions[kernel];
        // A block has 48 KB without asking, of which what kernels declare themselves takes less than the last.
        const WITHOUT_ASKING: u32 = 47 * 1024;
        if shared_bytes > WITHOUT_ASKING {
            let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
            let allowed = allowed.entry(kernel).or_default();
            // Never less than before: another thread may be about to launch with that.
            if *allowed < shared_bytes {
                function
                    .set_attribute(
                        CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                        shared_bytes as i32,
                    )
                    .map_err(of("asking for shared memory"))?;
                *allowed = shared_bytes;
            }
        }
        Ok(function)
    }

    /// Launches a kernel, if `overlaps` as soon as the one before lets it.
    ///
    /// # Safety
    /// `arguments` point to what the kernel takes; what they lead to has to be there until it has ended.
    pub(crate) unsafe fn launch_overlapping(
        &self,
        function: &CudaFunction,
        config: LaunchConfig,
        overlaps: bool,
        arguments: &mut [*mut c_void],
    ) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        let stream = self.stream();
        if !overlaps {
            // SAFETY: as the caller says.
            return unsafe {
                result::launch_kernel(
                    function.cu_function(),
                    config.grid_dim,
                    config.block_dim,
                    config.shared_mem_bytes,
                    stream.cu_stream(),
                    arguments,
                )
            };
        }
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: config.grid_dim.0,
            gridDimY: config.grid_dim.1,
            gridDimZ: config.grid_dim.2,
            blockDimX: config.block_dim.0,
            blockDimY: config.block_dim.1,
            blockDimZ: config.block_dim.2,
            sharedMemBytes: config.shared_mem_bytes,
            hStream: stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        // SAFETY: as the caller says; the driver copies the configuration and the arguments.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function.cu_function(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
    }

    /// The first of these kernels, the last of which every device has, and how it is launched.
    pub(crate) fn launch_of(&self, kernels: &[&'static str]) -> (&'static str, Launch) {
        let mut loaded = kernels
            .iter()
            .filter_map(|&kernel| Some((kernel, *self.launches.get(kernel)?)));
        loaded
            .next()
            .expect("the last is on every device that is opened")
    }

    /// What the device has.
    ///
    /// # Errors
    /// If the driver does not say.
    pub fn limits(&self) -> Result<Limits, Error> {
        let of = of("asking what the device has");
        let attribute = |attribute| {
            self.context
                .attribute(attribute)
                .map(|value| usize::try_from(value).unwrap_or(0))
        };
        Ok(Limits {
            name: self.context.name().map_err(of)?,
            capability: self.context.compute_capability().map_err(of)?,
            processors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
                .map_err(of)? as u32,
            memory_bytes: self.context.mem_get_info().map_err(of)?,
            cache_bytes: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
                .map_err(of)?,
            integrated: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED)
                .map_err(of)?
                != 0,
        })
    }

    /// A buffer of `len` elements, all zero.
    ///
    /// # Errors
    /// If there is no room for it, or launches are being recorded.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>, Error> {
        let bytes = len.saturating_mul(size_of::<T>());
        let stream = self.unrecorded("taking memory")?;
        // A buffer of nothing has an address of nothing, which the driver refuses.
        let slice = stream
            .alloc_zeros(bytes.max(1))
            .map_err(|error| match error.0 {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { bytes },
                _ => Error::of("taking memory", error),
            })?;
        let memory = InTurn::new(slice, &self.turns);
        Ok(Buffer::of(Arc::new(memory), 0, len))
    }

    /// A buffer with a copy of `values`.
    ///
    /// # Errors
    /// If there is no room for it, it cannot be copied, or launches are being recorded.
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer<T>, Error> {
        let mut buffer = self.zeros(values.len())?;
        self.write(values, &mut buffer)?;
        Ok(buffer)
    }

    /// The address of a buffer, which a graph that is being recorded keeps.
    pub(crate) fn address<T: Element>(&self, buffer: &Buffer<T>) -> CUdeviceptr {
        self.keep(&buffer.memory);
        buffer.address(&self.stream)
    }

    /// The address of a buffer, or nothing's.
    pub(crate) fn address_or_null(&self, buffer: Option<&Buffer<f32>>) -> CUdeviceptr {
        buffer.map_or(0, |buffer| self.address(buffer))
    }

    /// Copies `values` to the start of `buffer`; returns when they may be changed.
    ///
    /// # Errors
    /// If it cannot be copied, or launches are being recorded.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn write<T: Element>(&self, values: &[T], buffer: &mut Buffer<T>) -> Result<(), Error> {
        self.write_range(values, buffer, 0..values.len())
    }

    /// Copies `values` to the elements `to` of `buffer`; returns when they may be changed.
    ///
    /// # Errors
    /// If it cannot be copied, or launches are being recorded.
    ///
    /// # Panics
    /// If they are not as many, or the buffer is shorter.
    pub fn write_range<T: Element>(
        &self,
        values: &[T],
        buffer: &mut Buffer<T>,
        to: Range<usize>,
    ) -> Result<(), Error> {
        assert!(to.len() == values.len() && to.end <= buffer.len());
        if values.is_empty() {
            return Ok(());
        }
        let of = of("copying to the device");
        let stream = self.unrecorded("copying to the device")?;
        self.context.bind_to_thread().map_err(of)?;
        let address = self.address(buffer) + (to.start * size_of::<T>()) as CUdeviceptr;
        // SAFETY: the elements are the buffer's, which nobody else uses meanwhile; the values stay until the copy is done.
        unsafe { result::memcpy_htod_async(address, values, stream.cu_stream()) }.map_err(of)?;
        self.finish()
    }

    /// Marks the end of what was asked for so far.
    ///
    /// # Errors
    /// If the driver refuses, or launches are being recorded.
    pub fn mark(&self) -> Result<Mark, Error> {
        let stream = self.unrecorded("marking the end of work")?;
        let event = stream.record_event(None);
        event.map(Mark).map_err(of("marking the end of work"))
    }

    /// Waits until what was asked for before `mark` is done.
    ///
    /// # Errors
    /// If that work failed, or launches are being recorded.
    pub fn wait_for(&self, mark: &Mark) -> Result<(), Error> {
        let _stream = self.unrecorded("waiting for work")?;
        mark.0.synchronize().map_err(of("waiting for work"))
    }

    /// Copies the start of `buffer` to `values`, after all work that was asked for.
    ///
    /// # Errors
    /// If it cannot be copied, that work failed, or launches are being recorded.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn read<T: Element>(&self, buffer: &Buffer<T>, values: &mut [T]) -> Result<(), Error> {
        self.read_range(buffer, 0..values.len(), values)
    }

    /// Copies the elements `from` of `buffer` to `values`, after all work that was asked for.
    ///
    /// # Errors
    /// If they cannot be copied, that work failed, or launches are being recorded.
    ///
    /// # Panics
    /// If they are not as many, or the buffer is shorter.
    pub fn read_range<T: Element>(
        &self,
        buffer: &Buffer<T>,
        from: Range<usize>,
        values: &mut [T],
    ) -> Result<(), Error> {
        assert!(from.len() == values.len() && from.end <= buffer.len());
        if values.is_empty() {
            return Ok(());
        }
        let of = of("copying from the device");
        let stream = self.unrecorded("copying from the device")?;
        self.context.bind_to_thread().map_err(of)?;
        let address = self.address(buffer) + (from.start * size_of::<T>()) as CUdeviceptr;
        // SAFETY: the elements are the buffer's; the values stay until the copy is done.
        let asked = unsafe { result::memcpy_dtoh_async(values, address, stream.cu_stream()) };
        // Also where it was refused, the values are not written after this.
        let finished = self.finish();
        asked.map_err(of)?;
        finished
    }

    /// Copies all of `from` to the start of `to`, on the device.
    ///
    /// # Errors
    /// If it cannot be copied.
    ///
    /// # Panics
    /// If `to` is shorter.
    pub fn copy<T: Element>(&self, from: &Buffer<T>, to: &mut Buffer<T>) -> Result<(), Error> {
        assert!(from.len() <= to.len(), "room for all of it");
        self.copy_bytes(
            self.address(from),
            self.address(to),
            from.len() * size_of::<T>(),
        )
    }

    /// Copies the bytes `from` of a buffer to those from `to` on.
    ///
    /// # Panics
    /// If they overlap, or the buffer is shorter.
    pub(crate) fn copy_within(
        &self,
        buffer: &mut Buffer<u8>,
        from: Range<usize>,
        to: usize,
    ) -> Result<(), Error> {
        let len = from.len();
        assert!(from.end <= buffer.len() && to + len <= buffer.len());
        assert!(from.end <= to || to + len <= from.start, "two places");
        let address = self.address(buffer);
        self.copy_bytes(
            address + from.start as CUdeviceptr,
            address + to as CUdeviceptr,
            len,
        )
    }

    fn copy_bytes(&self, from: CUdeviceptr, to: CUdeviceptr, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        let of = of("copying on the device");
        self.context.bind_to_thread().map_err(of)?;
        // SAFETY: the callers checked both to be within buffers; the driver frees none before work that was asked for is done.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream().cu_stream()) }.map_err(of)
    }

    /// Fills a buffer with zeros.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn clear<T: Element>(&self, buffer: &mut Buffer<T>) -> Result<(), Error> {
        let of = of("clearing memory");
        self.context.bind_to_thread().map_err(of)?;
        let (address, bytes) = (self.address(buffer), buffer.len() * size_of::<T>());
        // SAFETY: the bytes are the buffer's, and zero is a value of every element.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream().cu_stream()) }.map_err(of)
    }

    /// Waits for all work that was asked for.
    ///
    /// # Errors
    /// If some of it failed, or launches are being recorded.
    pub fn finish(&self) -> Result<(), Error> {
        self.unrecorded("waiting for the device")?
            .synchronize()
            .map_err(of("waiting for the device"))
    }
}

/// Turns the driver's errors of `doing` into ours.
pub(crate) fn of(doing: &'static str) -> impl Fn(DriverError) -> Error + Copy {
    move |error| Error::of(doing, error)
}
