//! Which backends there are, and what keeps one from being used.

use super::cuda;
use std::fmt;

/// What computes a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// This machine's processor.
    #[default]
    Cpu,
    /// NVIDIA cards and Jetson.
    Cuda,
    /// Intel's processors, graphics and NPU, by OpenVINO.
    OpenVino,
    /// Whatever ggml runs on.
    Ggml,
}

/// What there is of a backend, here and now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// This program has no code for it, for this reason.
    NotBuilt(String),
    /// The program has it and cannot use it, for this reason.
    Unavailable(String),
    /// It can be used; what it is.
    Available(String),
}

impl Backend {
    /// Every backend.
    pub const ALL: [Backend; 4] = [
        Backend::Cpu,
        Backend::Cuda,
        Backend::OpenVino,
        Backend::Ggml,
    ];

    /// Name used in configuration and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
            Backend::OpenVino => "openvino",
            Backend::Ggml => "ggml",
        }
    }

    /// What there is of it. Its device is opened when that is first asked, or first used, which takes up to seconds; what came
    /// of that holds until the program ends.
    #[must_use]
    pub fn state(self) -> State {
        match self {
            Backend::Cpu => State::Available(andon_kernels::Isa::best().name().to_owned()),
            Backend::Cuda => cuda::state(),
            Backend::OpenVino | Backend::Ggml => {
                State::NotBuilt("this version has no code for it".to_owned())
            }
        }
    }

    /// Why this program cannot use it on any machine; `None` if it can. Opens nothing.
    #[must_use]
    pub fn not_built(self) -> Option<String> {
        match self {
            Backend::Cpu => None,
            Backend::Cuda => cuda::not_built().map(str::to_owned),
            Backend::OpenVino | Backend::Ggml => match self.state() {
                State::NotBuilt(why) => Some(why),
                State::Unavailable(_) | State::Available(_) => None,
            },
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
