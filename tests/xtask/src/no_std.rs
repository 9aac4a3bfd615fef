//! Proof that the client side builds without an operating system.
//!
//! A library that brings its own panic handler cannot be linked if anything under it brings std
//! (two handlers) or alloc (no allocator), so building one over our `no_std` crates shows that
//! none of their dependencies does. Attributes alone would not: a dependency's feature is enough.
//! Policy keeps what waits in memory that it asks for: it is linked by itself, over an allocator that
//! has none.

use std::fs;

use anyhow::{Result, bail};

use crate::shell;

const LIBRARY: &str = "//! Links the crates that must do without std and without a heap.
#![no_std]

pub use {andon_kernels, andon_wire};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
";

const WITH_A_HEAP: &str = "//! Links the crate that must do without std.
#![no_std]

pub use andon_policy;

struct None;

unsafe impl core::alloc::GlobalAlloc for None {
    unsafe fn alloc(&self, _: core::alloc::Layout) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe fn dealloc(&self, _: *mut u8, _: core::alloc::Layout) {}
}

#[global_allocator]
static HEAP: None = None;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
";

/// A line that only std can satisfy; the check must fail on it, or it checks nothing.
const CONTROL: &str = "extern crate std;\n";

/// Builds the library, then the control.
///
/// # Errors
/// When the library does not build, or the control does.
pub(crate) fn check() -> Result<()> {
    let root = shell::root();
    let folder = shell::target_directory().join("no-std");
    fs::create_dir_all(&folder)?;
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    let build = || {
        let mut cargo = shell::cargo(&["build", "--quiet", "--manifest-path"]);
        cargo
            .arg(folder.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(folder.join("target"));
        cargo
    };
    // Each with a manifest of its own: what policy asks of a dependency, the others would get as well.
    let with_a_heap: &[_] = &[("andon-policy", "daemon/policy")];
    let without: &[_] = &[("andon-kernels", "kernels"), ("andon-wire", "daemon/wire")];
    for (library, crates) in [(WITH_A_HEAP, with_a_heap), (LIBRARY, without)] {
        let dependencies: String = crates
            .iter()
            .map(|(name, path)| format!("{name} = {{ path = {:?} }}\n", root.join(path)))
            .collect();
        let manifest = format!(
            "[package]\nname = \"no-std\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
             [lib]\npath = \"lib.rs\"\ncrate-type = [\"staticlib\"]\n\n\
             [dependencies]\n{dependencies}\n[profile.dev]\npanic = \"abort\"\n\n[workspace]\n"
        );
        fs::write(folder.join("Cargo.toml"), manifest)?;
        fs::write(folder.join("lib.rs"), library)?;
        shell::run(&mut build())?;
        let controlled = library.replacen("pub use", &format!("{CONTROL}pub use"), 1);
        fs::write(folder.join("lib.rs"), controlled)?;
        if shell::output(&mut build()).is_ok() {
            bail!("a library over std was taken for no_std: the check is broken");
        }
    }
    println!("  wire and kernels link without std and without a heap, policy without std");
    Ok(())
}
