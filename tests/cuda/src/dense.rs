//! What a card's dense products reach: the rate of bf16 that prefill is set against, by PyTorch where there is one.

use std::process::{Command, Stdio};

/// The median of ten products of 8192 x 8192 x 8192, on numbers by chance, in TFLOP/s.
const PROGRAM: &str = "
import torch
n = 8192
a, b = (torch.randn(n, n, device='cuda', dtype=torch.bfloat16) for _ in range(2))
times = []
for _ in range(13):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(); a @ b; end.record(); torch.cuda.synchronize()
    times.append(begin.elapsed_time(end))
print(2 * n ** 3 / sorted(times[3:])[5] / 1e9)
";

/// TFLOP/s; `None` where there is no PyTorch, or no card for it.
pub(crate) fn measure() -> Option<f64> {
    let python = Command::new("python3")
        .args(["-c", PROGRAM])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let said = python.ok().filter(|output| output.status.success())?.stdout;
    String::from_utf8_lossy(&said).trim().parse().ok()
}
