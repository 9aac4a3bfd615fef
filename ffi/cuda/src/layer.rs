//! What a layer does between products: residual sums and norms, gated units, heads on their way to attention.

use crate::attention::{Cache, PageTable};
use crate::device::{Buffer, Device, of};
use crate::error::Error;
use crate::matmul::{Columns, GROUP, int};
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};

/// What is added to the residual before it is normed.
#[derive(Clone, Copy, Debug)]
pub struct Addition<'a> {
    /// `[column][n]`.
    pub delta: &'a Buffer<f32>,
    /// Where it is normed first: weights of that norm.
    pub weight: Option<&'a Buffer<f32>>,
}

/// Activations of gated units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// SwiGLU.
    Silu,
    /// GEGLU, by tanh.
    GeluTanh,
}

/// What is done to heads that products made.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// Query heads of a column; as many key and value heads as the cache has follow them.
    pub heads: usize,
    /// Weights of the norm of queries, where there is one.
    pub query_weight: Option<&'a Buffer<f32>>,
    /// The same of keys.
    pub key_weight: Option<&'a Buffer<f32>>,
    /// What those norms add to the mean of squares.
    pub epsilon: f32,
    /// `{cosine, sine}` of each pair, `[column][pairs]`.
    pub rotations: &'a Buffer<f32>,
    /// Pairs of elements that are rotated.
    pub pairs: usize,
    /// Whether pairs are of adjacent elements, rather than of both halves of what is rotated.
    pub adjacent: bool,
}

impl Device {
    /// The address of a buffer, or nothing's.
    fn address(&self, buffer: Option<&Buffer<f32>>) -> CUdeviceptr {
        // There is one stream: what follows on it finds what was written before.
        buffer.map_or(0, |buffer| buffer.slice.device_ptr(&self.stream).0)
    }

    /// Adds to `count` columns of `x`, of as many elements as `columns` has, and quantizes the norm of the sum where there
    /// are weights for it.
    ///
    /// # Errors
    /// If the driver refuses, or columns are longer than shared memory is.
    ///
    /// # Panics
    /// If a buffer is too short, or there is nothing to do.
    pub fn add_norm_quantize(
        &self,
        x: &mut Buffer<f32>,
        count: usize,
        addition: Option<Addition<'_>>,
        weight: Option<&Buffer<f32>>,
        epsilon: f32,
        columns: &mut Columns,
    ) -> Result<(), Error> {
        let n = columns.k;
        assert!(count > 0 && count <= columns.capacity && n > 0 && x.len() >= count * n);
        assert!(
            addition.is_some() || weight.is_some(),
            "there is something to do"
        );
        assert!(addition.is_none_or(|addition| addition.delta.len() >= count * n));
        let delta_weight = addition.and_then(|addition| addition.weight);
        for weight in [weight, delta_weight].into_iter().flatten() {
            assert!(weight.len() >= n, "a weight for every element");
        }
        let shared_mem_bytes = 4 * n as u32;
        let function = self.function("add_norm_quantize", shared_mem_bytes)?;
        let delta = self.address(addition.map(|addition| addition.delta));
        let (delta_weight, weight) = (self.address(delta_weight), self.address(weight));
        let config = LaunchConfig {
            grid_dim: (count as u32, 1, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes,
        };
        let n = int(n);
        let mut launch = self.stream.launch_builder(function);
        launch
            .arg(&mut x.slice)
            .arg(&delta)
            .arg(&delta_weight)
            .arg(&weight)
            .arg(&epsilon)
            .arg(&n)
            .arg(&mut columns.levels.slice)
            .arg(&mut columns.scales.slice);
        // SAFETY: the arguments are those of the kernel, and every buffer was checked to have its columns.
        unsafe { launch.launch(config) }.map_err(of("norming"))?;
        Ok(())
    }

    /// Quantizes the gated units of `count` columns of `gates`, each as many gates as `columns` has elements and then
    /// what they gate, `stride` elements from one to the next.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If a buffer is too short.
    pub fn glu_quantize(
        &self,
        gate: Gate,
        gates: &Buffer<f32>,
        stride: usize,
        count: usize,
        columns: &mut Columns,
    ) -> Result<(), Error> {
        let n = columns.k;
        assert!(count > 0 && count <= columns.capacity && n > 0);
        assert!(stride >= 2 * n && (count - 1) * stride + 2 * n <= gates.len());
        let function = self.function("glu_quantize", 0)?;
        let config = LaunchConfig {
            grid_dim: ((n / GROUP).div_ceil(8) as u32, count as u32, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes: 0,
        };
        let kind = match gate {
            Gate::Silu => 0i32,
            Gate::GeluTanh => 1,
        };
        let (n, stride, count) = (int(n), int(stride), int(count));
        let mut launch = self.stream.launch_builder(function);
        launch
            .arg(&gates.slice)
            .arg(&n)
            .arg(&stride)
            .arg(&count)
            .arg(&kind)
            .arg(&mut columns.levels.slice)
            .arg(&mut columns.scales.slice);
        // SAFETY: the arguments are those of the kernel; gates were checked to be there, and columns have room.
        unsafe { launch.launch(config) }.map_err(of("gating"))?;
        Ok(())
    }

    /// Norms and rotates the queries and keys of `count` columns of heads, the first at `position`; queries stay in
    /// `columns`, keys and values go to the cache.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If a buffer or the table is too short, or the table has pages that the cache has not.
    pub fn place_heads(
        &self,
        columns: &mut Buffer<f32>,
        count: usize,
        heads: &Heads<'_>,
        cache: &mut Cache,
        table: &PageTable,
        position: usize,
    ) -> Result<(), Error> {
        let (kv_heads, head_dim) = (cache.kv_heads, cache.head_dim);
        let of_column = heads.heads + 2 * kv_heads;
        assert!(count > 0 && columns.len() >= count * of_column * head_dim);
        assert!(2 * heads.pairs <= head_dim && heads.rotations.len() >= count * heads.pairs * 2);
        for weight in [heads.query_weight, heads.key_weight].into_iter().flatten() {
            assert!(weight.len() >= head_dim, "a weight for every dimension");
        }
        table.assert_covers(position + count, cache);
        const WARPS: usize = 4;
        let shared_mem_bytes = (WARPS * head_dim * 4) as u32;
        let function = self.function("heads_f16", shared_mem_bytes)?;
        let config = LaunchConfig {
            grid_dim: (of_column.div_ceil(WARPS) as u32, count as u32, 1),
            block_dim: (WARPS as u32 * 32, 1, 1),
            shared_mem_bytes,
        };
        let query_weight = self.address(heads.query_weight);
        let key_weight = self.address(heads.key_weight);
        let (heads_int, kv_heads, head_dim) = (int(heads.heads), int(kv_heads), int(head_dim));
        let (pairs, adjacent, position) =
            (int(heads.pairs), i32::from(heads.adjacent), int(position));
        let mut launch = self.stream.launch_builder(function);
        launch
            .arg(&mut columns.slice)
            .arg(&heads_int)
            .arg(&kv_heads)
            .arg(&head_dim)
            .arg(&query_weight)
            .arg(&key_weight)
            .arg(&heads.epsilon)
            .arg(&heads.rotations.slice)
            .arg(&pairs)
            .arg(&adjacent)
            .arg(&mut cache.pages.slice)
            .arg(&table.pages.slice)
            .arg(&position);
        // SAFETY: the arguments are those of the kernel; the columns and rotations were checked to be there, and the pages
        // of the table to be the cache's.
        unsafe { launch.launch(config) }.map_err(of("placing heads"))?;
        Ok(())
    }
}
