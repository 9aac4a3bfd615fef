//! The best tokens of columns of logits.

use crate::buffer::Buffer;
use crate::device::{Device, of};
use crate::error::Error;
use crate::host::HostWords;
use crate::matmul::int;
use cudarc::driver::{LaunchConfig, PushKernelArg};

/// Logits that a block sorts at a time: SORTED of kernels/cuda/top_k.cu.
const SORTED: usize = 2048;
/// Most tokens that can be asked for: what is kept has to leave room for more.
pub const TOP_K_MAX: usize = SORTED / 2;

/// Magnitude from which on logits are as little sound as what is not finite: FAULT of kernels/cuda/top_k.cu. Nothing that is
/// done to smaller ones before a token is chosen leaves the range of f32.
pub const LOGIT_MAX: f32 = f32::from_bits(0x6f80_0000);

/// The best tokens of columns, on the device, and room to find them in.
#[derive(Debug)]
pub struct TopK {
    tokens: usize,
    columns: usize,
    k: usize,
    candidates: Buffer<u64>,
    /// Of each column whether it is broken, the tokens, the logits.
    found: Buffer<i32>,
    /// Where that is read to.
    read: HostWords,
}

impl TopK {
    /// Bytes that this takes on the device for the `k` best of `tokens` logits of `columns` columns.
    #[must_use]
    pub fn bytes(tokens: usize, columns: usize, k: usize) -> usize {
        let candidates = tokens.div_ceil(SORTED) * k * size_of::<u64>();
        columns * (candidates + TopK::words(k) * size_of::<i32>())
    }

    /// Words of what is found of a column.
    fn words(k: usize) -> usize {
        1 + 2 * k
    }
}

/// Tokens with their logits, the best first.
pub type Best = Vec<(u32, f32)>;

impl Device {
    /// Room for the `k` best of `tokens` logits of up to `columns` columns.
    ///
    /// # Errors
    /// If there is none.
    ///
    /// # Panics
    /// If `k` is none, or more than [`TOP_K_MAX`] or than there are tokens.
    pub fn top_k(&self, tokens: usize, columns: usize, k: usize) -> Result<TopK, Error> {
        assert!(k > 0 && k <= TOP_K_MAX && k <= tokens);
        Ok(TopK {
            tokens,
            columns,
            k,
            candidates: self.zeros(columns * tokens.div_ceil(SORTED) * k)?,
            found: self.zeros(columns * TopK::words(k))?,
            read: self.host_words(columns * TopK::words(k))?,
        })
    }

    /// Finds the best tokens of `count` columns of logits, `stride` elements from one to the next.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are fewer logits, or no room for so many columns.
    pub fn find_top_k(
        &self,
        logits: &Buffer<f32>,
        stride: usize,
        count: usize,
        top: &mut TopK,
    ) -> Result<(), Error> {
        assert!(count > 0 && count <= top.columns);
        assert!(stride >= top.tokens && (count - 1) * stride + top.tokens <= logits.len());
        self.clear(&mut top.found)?;
        let stretches = top.tokens.div_ceil(SORTED);
        let shared_mem_bytes = (SORTED * size_of::<u64>()) as u32;
        let config = |grid_dim| LaunchConfig {
            grid_dim,
            block_dim: (1024, 1, 1),
            shared_mem_bytes,
        };
        let (tokens, stride, k) = (int(top.tokens), int(stride), int(top.k));
        let candidates = int(stretches * top.k);
        let (logits, best) = (self.address(logits), self.address(&top.candidates));
        let found = self.address(&top.found);
        let function = self.function("top_k_stretches", shared_mem_bytes)?;
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch
            .arg(&logits)
            .arg(&tokens)
            .arg(&stride)
            .arg(&k)
            .arg(&best)
            .arg(&found);
        // SAFETY: the arguments are those of the kernel; logits were checked to be there, and `top_k` made room for every
        // stretch's candidates.
        unsafe { launch.launch(config((stretches as u32, count as u32, 1))) }
            .map_err(of("finding the best of stretches"))?;
        let function = self.function("top_k_merge", shared_mem_bytes)?;
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch.arg(&best).arg(&candidates).arg(&k).arg(&found);
        // SAFETY: as above; the candidates are what the launch before wrote.
        unsafe { launch.launch(config((count as u32, 1, 1))) }.map_err(of("finding the best"))?;
        Ok(())
    }

    /// What was found for the first `count` columns, read by one copy: for each its best tokens with their logits, the best
    /// first, zeros of both signs as the positive one; `None` where a logit was not finite, or [`LOGIT_MAX`] or more.
    ///
    /// # Errors
    /// If it cannot be copied, or launches are being recorded.
    ///
    /// # Panics
    /// If there is no room for so many columns.
    pub fn read_top_k(&self, top: &mut TopK, count: usize) -> Result<Vec<Option<Best>>, Error> {
        assert!(count <= top.columns);
        let (each, from) = (TopK::words(top.k), self.address(&top.found));
        // SAFETY: as many were taken there.
        let words = unsafe { top.read.receive(self, from, count * each) }?;
        let found = words.chunks_exact(each).map(|words| {
            let (tokens, logits) = words[1..].split_at(top.k);
            let pairs = tokens.iter().zip(logits);
            let pairs = pairs.map(|(&token, &logit)| (token, f32::from_bits(logit)));
            (words[0] == 0).then(|| pairs.collect())
        });
        Ok(found.collect())
    }
}
