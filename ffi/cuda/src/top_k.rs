//! The best tokens of columns of logits.

use crate::buffer::Buffer;
use crate::device::{Device, of};
use crate::error::Error;
use crate::matmul::int;
use cudarc::driver::{LaunchConfig, PushKernelArg};

/// Logits that a block sorts at a time: SORTED of kernels/cuda/top_k.cu.
const SORTED: usize = 2048;
/// Most tokens that can be asked for: what is kept has to leave room for more.
pub const TOP_K_MAX: usize = SORTED / 2;

/// The best tokens of columns, on the device, and room to find them in.
#[derive(Debug)]
pub struct TopK {
    tokens: usize,
    columns: usize,
    k: usize,
    candidates: Buffer<u64>,
    faults: Buffer<i32>,
    best_tokens: Buffer<i32>,
    best_logits: Buffer<f32>,
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
            faults: self.zeros(columns)?,
            best_tokens: self.zeros(columns * k)?,
            best_logits: self.zeros(columns * k)?,
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
        self.clear(&mut top.faults)?;
        let stretches = top.tokens.div_ceil(SORTED);
        let shared_mem_bytes = (SORTED * size_of::<u64>()) as u32;
        let config = |grid_dim| LaunchConfig {
            grid_dim,
            block_dim: (1024, 1, 1),
            shared_mem_bytes,
        };
        let (tokens, stride, k) = (int(top.tokens), int(stride), int(top.k));
        let candidates = int(stretches * top.k);
        let (logits, found) = (self.address(logits), self.address(&top.candidates));
        let faults = self.address(&top.faults);
        let best_tokens = self.address(&top.best_tokens);
        let best_logits = self.address(&top.best_logits);
        let function = self.function("top_k_stretches", shared_mem_bytes)?;
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch
            .arg(&logits)
            .arg(&tokens)
            .arg(&stride)
            .arg(&k)
            .arg(&found)
            .arg(&faults);
        // SAFETY: the arguments are those of the kernel; logits were checked to be there, and `top_k` made room for every
        // stretch's candidates.
        unsafe { launch.launch(config((stretches as u32, count as u32, 1))) }
            .map_err(of("finding the best of stretches"))?;
        let function = self.function("top_k_merge", shared_mem_bytes)?;
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch
            .arg(&found)
            .arg(&candidates)
            .arg(&k)
            .arg(&best_tokens)
            .arg(&best_logits);
        // SAFETY: as above; the candidates are what the launch before wrote.
        unsafe { launch.launch(config((count as u32, 1, 1))) }.map_err(of("finding the best"))?;
        Ok(())
    }

    /// What was found for the first `count` columns: for each its best tokens with their logits, the best first; `None`
    /// where a logit was not finite.
    ///
    /// # Errors
    /// If it cannot be copied.
    ///
    /// # Panics
    /// If there is no room for so many columns.
    pub fn read_top_k(&self, top: &TopK, count: usize) -> Result<Vec<Option<Best>>, Error> {
        assert!(count <= top.columns);
        let mut faults = vec![0; count];
        let mut tokens = vec![0; count * top.k];
        let mut logits = vec![0.0; count * top.k];
        self.read(&top.faults, &mut faults)?;
        self.read(&top.best_tokens, &mut tokens)?;
        self.read(&top.best_logits, &mut logits)?;
        let columns = tokens.chunks_exact(top.k).zip(logits.chunks_exact(top.k));
        let found = columns.zip(faults).map(|((tokens, logits), fault)| {
            let pairs = tokens.iter().zip(logits);
            (fault == 0).then(|| {
                pairs
                    .map(|(&token, &logit)| (token as u32, logit))
                    .collect()
            })
        });
        Ok(found.collect())
    }
}
