//! What can go wrong with a device.

use crate::device::OLDEST;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use std::fmt;

/// Why something could not be done on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// This program has no kernels, for the reason that is said.
    NotBuilt(&'static str),
    /// There is no driver: libcuda.so.1 was not found.
    NoDriver,
    /// The driver has no such device.
    NoDevice {
        /// The number that was asked for.
        ordinal: usize,
    },
    /// The device is older than the kernels, which begin with compute capability 8.0.
    TooOld {
        /// Compute capability: major, minor.
        capability: (i32, i32),
    },
    /// This program has no machine code for the device that the driver takes, nor any that it makes some of.
    NoKernels {
        /// Compute capability: major, minor.
        capability: (i32, i32),
        /// The driver's number of why.
        code: u32,
    },
    /// The device lets a block of threads have too little shared memory.
    SharedMemory {
        /// The kernel that takes more.
        kernel: &'static str,
        /// Bytes that it takes.
        takes: u32,
        /// Bytes that there may be.
        has: u32,
    },
    /// The device has no room for what was to be put there.
    OutOfMemory {
        /// Bytes asked for; none where the driver had no room for what it needs itself.
        bytes: usize,
    },
    /// The device stopped working, or was taken away (the kernel's log then has an Xid): nothing more can be done with it in
    /// this process.
    Lost {
        /// The driver's number of what happened.
        code: u32,
    },
    /// Something that a graph cannot repeat, while launches are recorded: taking memory, copies from and to this machine's
    /// memory, waiting.
    WhileRecording {
        /// What was to be done.
        doing: &'static str,
    },
    /// The driver refused a call.
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The driver's number of what is wrong.
        code: u32,
    },
}

impl Error {
    /// What the driver's `error` means, where it came of `doing`.
    pub(crate) fn of(doing: &'static str, error: DriverError) -> Error {
        let code = error.0 as u32;
        match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { bytes: 0 },
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
            | CUresult::CUDA_ERROR_UNKNOWN
            | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUresult::CUDA_ERROR_DEINITIALIZED
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED => Error::Lost { code },
            _ => Error::Driver { doing, code },
        }
    }

    /// Whether nothing more can be done with the device in this process.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Error::Lost { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotBuilt(reason) => write!(f, "this program has no CUDA kernels: {reason}"),
            Error::NoDriver => write!(f, "no NVIDIA driver: libcuda.so.1 was not found"),
            Error::NoDevice { ordinal } => write!(f, "the NVIDIA driver has no device {ordinal}"),
            Error::TooOld {
                capability: (major, minor),
            } => {
                let (oldest, minor_oldest) = OLDEST;
                write!(
                    f,
                    "the device has compute capability {major}.{minor}; kernels need {oldest}.{minor_oldest}"
                )
            }
            Error::NoKernels {
                capability: (major, minor),
                code,
            } => write!(
                f,
                "the driver takes none of this program's kernels for compute capability {major}.{minor} (driver error \
                {code}): it may be older than what compiled them"
            ),
            Error::SharedMemory { kernel, takes, has } => write!(
                f,
                "the device lets a block have {has} bytes of shared memory; {kernel} takes {takes}"
            ),
            Error::OutOfMemory { bytes: 0 } => write!(f, "the device has no room left"),
            Error::OutOfMemory { bytes } => write!(f, "the device has no room for {bytes} bytes"),
            Error::Lost { code } => write!(f, "the device stopped working (driver error {code})"),
            Error::WhileRecording { doing } => write!(f, "{doing} while launches are recorded"),
            Error::Driver { doing, code } => write!(f, "{doing}: driver error {code}"),
        }
    }
}

impl std::error::Error for Error {}
