//! What a layer does between products: residual sums and norms, gated units, heads on their way to attention.

use crate::buffer::Buffer;
use crate::cache::{Cache, KvType};
use crate::device::{Device, of};
use crate::error::Error;
use crate::matmul::{Columns, GROUP, int};
use crate::places::Places;
use cudarc::driver::{LaunchConfig, PushKernelArg};

/// What is added to the residual before it is normed.
#[derive(Clone, Copy, Debug)]
pub struct Addition<'a> {
    /// `[column][n]`.
    pub delta: &'a Buffer<f32>,
    /// Where it is normed first: weights of that norm.
    pub weight: Option<&'a Buffer<f32>>,
    /// Factor of it, after that.
    pub scale: f32,
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
    /// What is added first, to each head of a column.
    pub bias: Option<&'a Buffer<f32>>,
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
    /// What queries of each column are multiplied by, after all else.
    pub query_factors: Option<&'a Buffer<f32>>,
}

impl Device {
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
        let delta = self.address_or_null(addition.map(|addition| addition.delta));
        let delta_weight = self.address_or_null(delta_weight);
        let delta_scale = addition.map_or(1.0, |addition| addition.scale);
        let (x, weight) = (self.address(x), self.address_or_null(weight));
        let levels = self.address(&columns.levels);
        let scales = self.address(&columns.scales);
        let config = LaunchConfig {
            grid_dim: (count as u32, 1, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes,
        };
        let n = int(n);
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch
            .arg(&x)
            .arg(&delta)
            .arg(&delta_weight)
            .arg(&delta_scale)
            .arg(&weight)
            .arg(&epsilon)
            .arg(&n)
            .arg(&levels)
            .arg(&scales);
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
        let gates = self.address(gates);
        let levels = self.address(&columns.levels);
        let scales = self.address(&columns.scales);
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch
            .arg(&gates)
            .arg(&n)
            .arg(&stride)
            .arg(&count)
            .arg(&kind)
            .arg(&levels)
            .arg(&scales);
        // SAFETY: the arguments are those of the kernel; gates were checked to be there, and columns have room.
        unsafe { launch.launch(config) }.map_err(of("gating"))?;
        Ok(())
    }

    /// Norms and rotates the queries and keys of the columns of heads that are at `places`; queries stay in `columns`, keys
    /// and values go to the cache.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are no columns, a buffer is too short, or places are of a larger cache.
    pub fn place_heads(
        &self,
        columns: &mut Buffer<f32>,
        heads: &Heads<'_>,
        cache: &mut Cache,
        places: &Places,
    ) -> Result<(), Error> {
        let (kv_heads, head_dim) = (cache.kv_heads, cache.head_dim);
        let (of_column, count) = (heads.heads + 2 * kv_heads, places.extent.columns);
        assert!(count > 0 && columns.len() >= count * of_column * head_dim);
        assert!(2 * heads.pairs <= head_dim && heads.rotations.len() >= count * heads.pairs * 2);
        assert!(
            heads
                .bias
                .is_none_or(|bias| bias.len() >= of_column * head_dim)
        );
        assert!(
            heads
                .query_factors
                .is_none_or(|factors| factors.len() >= count)
        );
        for weight in [heads.query_weight, heads.key_weight].into_iter().flatten() {
            assert!(weight.len() >= head_dim, "a weight for every dimension");
        }
        cache.assert_has(places);
        self.keep_extent(places);
        const WARPS: usize = 4;
        let shared_mem_bytes = (WARPS * head_dim * 4) as u32;
        let kernel = match cache.kv_type {
            KvType::F16 => "heads_f16",
            KvType::Q8 => "heads_q8",
        };
        let function = self.function(kernel, shared_mem_bytes)?;
        let config = LaunchConfig {
            grid_dim: (of_column.div_ceil(WARPS) as u32, count as u32, 1),
            block_dim: (WARPS as u32 * 32, 1, 1),
            shared_mem_bytes,
        };
        let (columns, bias) = (self.address(columns), self.address_or_null(heads.bias));
        let query_weight = self.address_or_null(heads.query_weight);
        let key_weight = self.address_or_null(heads.key_weight);
        let query_factors = self.address_or_null(heads.query_factors);
        let rotations = self.address(heads.rotations);
        let (pages, data) = (self.address(&cache.pages), self.address(&places.data));
        let (heads_int, kv_heads, head_dim) = (int(heads.heads), int(kv_heads), int(head_dim));
        let (pairs, adjacent) = (int(heads.pairs), i32::from(heads.adjacent));
        let columns_max = int(count);
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch.arg(&columns).arg(&heads_int).arg(&kv_heads);
        launch.arg(&head_dim).arg(&bias);
        launch
            .arg(&query_weight)
            .arg(&key_weight)
            .arg(&heads.epsilon);
        launch.arg(&query_factors);
        launch.arg(&rotations).arg(&pairs).arg(&adjacent);
        launch.arg(&pages).arg(&data).arg(&columns_max);
        // SAFETY: the arguments are those of the kernel; the columns and rotations were checked to be there, and the pages
        // that are in `places` to be the cache's.
        unsafe { launch.launch(config) }.map_err(of("placing heads"))?;
        Ok(())
    }
}
