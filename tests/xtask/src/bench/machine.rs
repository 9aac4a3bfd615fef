//! What a record says of the machine: nothing that names it.

use std::fs;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use crate::shell;

/// Features that decide which kernels run.
const FEATURES: [&str; 14] = [
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx_vnni_int8",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sve",
];

fn cpu_line(names: &[&str]) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let mut found = lines.filter(|(name, _)| names.contains(&name.trim()));
    found.next().map(|(_, value)| value.trim().to_owned())
}

/// Every feature of the processor.
pub(crate) fn flags() -> String {
    cpu_line(&["flags", "Features"]).unwrap_or_default()
}

/// Whether the processor has a feature.
pub(crate) fn has_flag(name: &str) -> bool {
    flags().split_whitespace().any(|flag| flag == name)
}

/// The processor's name, and its family and model, since virtual machines shorten the name.
pub(crate) fn cpu() -> String {
    let name = cpu_line(&["model name", "CPU part"]).unwrap_or_else(|| "unknown".to_owned());
    match (cpu_line(&["cpu family"]), cpu_line(&["model"])) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name,
    }
}

fn cache(level: u32) -> Option<String> {
    let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{level}/size");
    Some(fs::read_to_string(folder).ok()?.trim().to_owned())
}

/// The machine, the toolchain and the revision.
///
/// # Errors
/// When the compiler or git does not answer.
pub(crate) fn describe() -> Result<Value> {
    let said = |program: &str, arguments: &[&str]| -> Result<String> {
        let mut command = Command::new(program);
        command.current_dir(shell::root()).args(arguments);
        Ok(shell::output(&mut command)?.trim().to_owned())
    };
    let features: Vec<&str> = FEATURES.into_iter().filter(|name| has_flag(name)).collect();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let changed = !said("git", &["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(json!({
        "cpu": cpu(),
        "features": features,
        "cores": cores,
        "l2": cache(2),
        "l3": cache(3),
        "kernel": said("uname", &["-sr"])?,
        "toolchain": said("rustc", &["--version"])?,
        "revision": said("git", &["rev-parse", "HEAD"])?,
        "revision_changed": changed,
        "rival": format!("llama-cpp-python {}", super::rival::VERSION),
    }))
}
