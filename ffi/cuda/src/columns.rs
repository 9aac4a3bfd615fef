//! What few models need of columns of f32: biases, norms of all heads together, the last of logits; copies of some.

use crate::buffer::Buffer;
use crate::device::{Device, of};
use crate::error::Error;
use crate::matmul::int;
use cudarc::driver::{LaunchConfig, PushKernelArg};

/// Threads of a block.
const THREADS: u32 = 256;

/// Blocks for `n` elements of each of `columns` columns.
fn elements(n: usize, columns: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (n.div_ceil(THREADS as usize) as u32, columns as u32, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// Fails unless there are `count` columns of `n` elements, `stride` from one to the next, the first from `first` on.
fn assert_columns(values: &Buffer<f32>, stride: usize, count: usize, first: usize, n: usize) {
    assert!(count > 0 && n > 0 && first + n <= stride);
    assert!((count - 1) * stride + first + n <= values.len());
}

impl Device {
    /// Adds `bias` to the first elements of `count` columns, `stride` elements from one to the next.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If columns are shorter, or there are fewer.
    pub fn add_bias(
        &self,
        values: &mut Buffer<f32>,
        stride: usize,
        count: usize,
        bias: &Buffer<f32>,
    ) -> Result<(), Error> {
        let n = bias.len();
        assert_columns(values, stride, count, 0, n);
        let (values, bias) = (self.address(values), self.address(bias));
        let (stride, n_int) = (int(stride), int(n));
        let (stream, function) = (self.stream(), self.function("add_bias", 0)?);
        let mut launch = stream.launch_builder(function);
        launch.arg(&values).arg(&stride).arg(&n_int).arg(&bias);
        // SAFETY: the arguments are those of the kernel; the columns were checked to be there.
        unsafe { launch.launch(elements(n, count)) }.map_err(of("adding biases"))?;
        Ok(())
    }

    /// Norms as many elements as there are weights, from `first` on, of `count` columns.
    ///
    /// # Errors
    /// If the driver refuses, or they are more than shared memory has room for.
    ///
    /// # Panics
    /// If columns are shorter, or there are fewer.
    pub fn norm_columns(
        &self,
        values: &mut Buffer<f32>,
        stride: usize,
        count: usize,
        first: usize,
        weight: &Buffer<f32>,
        epsilon: f32,
    ) -> Result<(), Error> {
        let n = weight.len();
        assert_columns(values, stride, count, first, n);
        let config = LaunchConfig {
            grid_dim: (count as u32, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 4 * n as u32,
        };
        let function = self.function("norm_columns", config.shared_mem_bytes)?;
        let (values, weight) = (self.address(values), self.address(weight));
        let (stride, first, n) = (int(stride), int(first), int(n));
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch.arg(&values).arg(&stride).arg(&first).arg(&n);
        launch.arg(&weight).arg(&epsilon);
        // SAFETY: the arguments are those of the kernel; the columns were checked to be there.
        unsafe { launch.launch(config) }.map_err(of("norming columns"))?;
        Ok(())
    }

    /// Makes logits of what products gave: plus `bias`, times `scale`, kept within `cap`, where these are there. `n` elements
    /// of `count` columns, `stride` from one to the next.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If columns or the bias are shorter, or there are fewer.
    pub fn finish_logits(
        &self,
        logits: &mut Buffer<f32>,
        stride: usize,
        (n, count): (usize, usize),
        bias: Option<&Buffer<f32>>,
        scale: f32,
        cap: Option<f32>,
    ) -> Result<(), Error> {
        assert_columns(logits, stride, count, 0, n);
        assert!(bias.is_none_or(|bias| bias.len() >= n));
        let (logits, bias) = (self.address(logits), self.address_or_null(bias));
        let (stride, n_int, cap) = (int(stride), int(n), cap.unwrap_or(0.0));
        let (stream, function) = (self.stream(), self.function("finish_logits", 0)?);
        let mut launch = stream.launch_builder(function);
        launch.arg(&logits).arg(&stride).arg(&n_int).arg(&bias);
        launch.arg(&scale).arg(&cap);
        // SAFETY: the arguments are those of the kernel; the columns and the bias were checked to be there.
        unsafe { launch.launch(elements(n, count)) }.map_err(of("finishing logits"))?;
        Ok(())
    }

    /// Copies those of the columns of `n` elements of `from` that the first `columns` of `indices` say, one after the other,
    /// to `to`. A column that is not there is left out.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If `to` or `indices` is too short, or there are no columns.
    pub fn gather_columns(
        &self,
        from: &Buffer<f32>,
        n: usize,
        (indices, columns): (&Buffer<i32>, usize),
        to: &mut Buffer<f32>,
    ) -> Result<(), Error> {
        assert!(n > 0 && columns > 0 && columns <= indices.len() && columns * n <= to.len());
        let (count, n_int) = (int(from.len() / n), int(n));
        let (from, indices, to) = (self.address(from), self.address(indices), self.address(to));
        let (stream, function) = (self.stream(), self.function("gather_columns", 0)?);
        let mut launch = stream.launch_builder(function);
        launch.arg(&from).arg(&count).arg(&n_int);
        launch.arg(&indices).arg(&to);
        // SAFETY: the arguments are those of the kernel, which leaves out what is not there; `to` was checked to have room.
        unsafe { launch.launch(elements(n, columns)) }.map_err(of("gathering columns"))?;
        Ok(())
    }
}
