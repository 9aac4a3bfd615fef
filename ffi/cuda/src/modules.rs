//! The kernels' machine code, embedded when this crate was built; where it was not, the reason.

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// The version that the driver of tests/cuda/emulation says it has, and no real one.
#[cfg(feature = "emulation")]
const EMULATION: i32 = 1;

/// Whether the driver has the kernels in itself.
#[cfg(feature = "emulation")]
fn emulated() -> bool {
    use cudarc::driver::sys;
    let mut version = 0;
    // SAFETY: opens the driver's library, whose initializers have no requirement; then it is asked for its version, which
    // needs no device.
    unsafe {
        sys::is_culib_present()
            && sys::cuDriverGetVersion(&raw mut version) == sys::CUresult::CUDA_SUCCESS
            && version == EMULATION
    }
}

/// A release has no such driver.
#[cfg(not(feature = "emulation"))]
fn emulated() -> bool {
    false
}

/// Why there are no kernels; `None` if there are.
pub(crate) fn missing() -> Option<&'static str> {
    MODULES.err().filter(|_| !emulated())
}

/// The machine code of module `name`.
pub(crate) fn image(name: &str) -> Vec<u8> {
    // The emulation reads none.
    let Ok(modules) = MODULES else { return vec![0] };
    let module = modules.iter().find(|(known, _)| *known == name);
    let (_, image) = module.expect("build.rs compiles every module");
    image.to_vec()
}
