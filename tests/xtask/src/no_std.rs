//! Proof that the client side builds without an operating system.
//!
//! A library that brings its own panic handler cannot be linked if anything under it brings std
//! (two handlers) or alloc (no allocator), so building one over our `no_std` crates shows that
//! none of their dependencies does. Attributes alone would not: a dependency's feature is enough.

use std::fs;

use anyhow::{Result, bail};

use crate::shell;

const LIBRARY: &str = "//! Links the crates that must do without std and without a heap.
#![no_std]

pub use {andon_kernels, andon_policy, andon_wire};

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
    let crates = [
        ("andon-kernels", "kernels"),
        ("andon-policy", "daemon/policy"),
        ("andon-wire", "daemon/wire"),
    ];
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
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    let build = || {
        let mut cargo = shell::cargo(&["build", "--quiet", "--manifest-path"]);
        cargo
            .arg(folder.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(folder.join("target"));
        cargo
    };
    fs::write(folder.join("lib.rs"), LIBRARY)?;
    shell::run(&mut build())?;
    fs::write(
        folder.join("lib.rs"),
        LIBRARY.replacen("pub use", &format!("{CONTROL}pub use"), 1),
    )?;
    if shell::output(&mut build()).is_ok() {
        bail!("a library over std was taken for no_std: the check is broken");
    }
    println!("  wire, policy and kernels link without std and without a heap");
    Ok(())
}
