//! Packed weights, quantized columns, and their products.

use crate::buffer::Buffer;
use crate::device::{Device, WARP, WARPS_MAX, of};
use crate::error::Error;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, LaunchConfig, PushKernelArg};
use std::ops::Range;
use std::sync::Arc;

/// Elements that share a scale of the columns.
pub(crate) const GROUP: usize = 32;
/// Rows of a tile of packed weights.
pub(crate) const TILE_ROWS: usize = 16;
/// Columns of a block of columns.
const BLOCK_COLUMNS: usize = 8;
/// Bytes after matrices and columns that products may read, and do not use: whole stretches of groups are copied.
const SLACK_BYTES: usize = 4096;
/// Threads of a block of the other kernels here.
const THREADS: u32 = 256;

/// Formats of weights that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "their names say it, and andon-kernels what they are"
)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4NL,
    IQ4XS,
}

/// Sizes of a format's planes, as `format.cuh` has them.
struct Shape {
    block_elements: usize,
    block_bytes: usize,
    /// Bytes of a tile and a pair of groups: levels and scales.
    pair_bytes: usize,
    /// Bytes of a tile and 256 elements.
    super_bytes: usize,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 14] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::IQ4NL,
        Format::IQ4XS,
    ];

    /// The module of the format's kernels.
    pub(crate) fn module(self) -> &'static str {
        match self {
            Format::F32 => "matmul_f32",
            Format::F16 => "matmul_f16",
            Format::BF16 => "matmul_bf16",
            Format::Q4_0 => "matmul_q4_0",
            Format::Q4_1 => "matmul_q4_1",
            Format::Q5_0 => "matmul_q5_0",
            Format::Q5_1 => "matmul_q5_1",
            Format::Q8_0 => "matmul_q8_0",
            Format::Q3K => "matmul_q3_k",
            Format::Q4K => "matmul_q4_k",
            Format::Q5K => "matmul_q5_k",
            Format::Q6K => "matmul_q6_k",
            Format::IQ4NL => "matmul_iq4_nl",
            Format::IQ4XS => "matmul_iq4_xs",
        }
    }

    /// Whether its products are with columns in 8 bits, and not of floats ([`Device::matmul_floats`]).
    #[must_use]
    pub fn is_quantized(self) -> bool {
        !matches!(self, Format::F32 | Format::F16 | Format::BF16)
    }

    /// Its products with columns in 8 bits, in the order of [`Kernel::ALL`].
    pub(crate) fn products(self) -> &'static [&'static str] {
        self.kernels().0
    }

    /// Its other kernels: packing, rows of tokens, and of floats products with one and with more columns.
    pub(crate) fn others(self) -> &'static [&'static str] {
        self.kernels().1
    }

    fn kernels(self) -> (&'static [&'static str], &'static [&'static str]) {
        macro_rules! kernels {
            ($format:literal) => {
                (
                    &[
                        concat!($format, "_decode_8"),
                        concat!($format, "_decode_16"),
                        concat!($format, "_panel_64"),
                        concat!($format, "_panel_128"),
                    ],
                    &[concat!($format, "_pack"), concat!($format, "_embed")],
                )
            };
        }
        macro_rules! floats {
            ($format:literal) => {
                (
                    &[],
                    &[
                        concat!($format, "_pack"),
                        concat!($format, "_embed"),
                        concat!($format, "_product_1"),
                        concat!($format, "_product_8"),
                    ],
                )
            };
        }
        match self {
            Format::F32 => floats!("f32"),
            Format::F16 => floats!("f16"),
            Format::BF16 => floats!("bf16"),
            Format::Q4_0 => kernels!("q4_0"),
            Format::Q4_1 => kernels!("q4_1"),
            Format::Q5_0 => kernels!("q5_0"),
            Format::Q5_1 => kernels!("q5_1"),
            Format::Q8_0 => kernels!("q8_0"),
            Format::Q3K => kernels!("q3_k"),
            Format::Q4K => kernels!("q4_k"),
            Format::Q5K => kernels!("q5_k"),
            Format::Q6K => kernels!("q6_k"),
            Format::IQ4NL => kernels!("iq4_nl"),
            Format::IQ4XS => kernels!("iq4_xs"),
        }
    }

    fn shape(self) -> Shape {
        let shape = |(block_elements, block_bytes), pair_bytes, super_bytes| Shape {
            block_elements,
            block_bytes,
            pair_bytes,
            super_bytes,
        };
        match self {
            Format::F32 => shape((32, 128), 4096, 0),
            Format::F16 | Format::BF16 => shape((32, 64), 2048, 0),
            Format::Q4_0 => shape((32, 18), 512 + 64, 0),
            Format::Q4_1 => shape((32, 20), 512 + 128, 0),
            Format::Q5_0 => shape((32, 22), 512 + 128 + 64, 0),
            Format::Q5_1 => shape((32, 24), 512 + 128 + 128, 0),
            Format::Q8_0 => shape((32, 34), 1024 + 64, 0),
            Format::Q3K => shape((256, 110), 512 + 64, 32),
            Format::Q4K => shape((256, 144), 512 + 64, 64),
            Format::Q5K => shape((256, 176), 512 + 128 + 64, 64),
            Format::Q6K => shape((256, 210), 512 + 256 + 64, 32),
            Format::IQ4NL => shape((32, 18), 512 + 64, 0),
            Format::IQ4XS => shape((256, 136), 512 + 64, 32),
        }
    }

    /// Bytes of packed rows; `None` if rows are not whole blocks, or they take 4 GiB or more, which kernels do not reach.
    #[must_use]
    pub fn packed_bytes(self, rows: usize, k: usize) -> Option<usize> {
        let shape = self.shape();
        if !k.is_multiple_of(shape.block_elements) {
            return None;
        }
        let pairs = k.div_ceil(2 * GROUP).checked_mul(shape.pair_bytes)?;
        let supers = k.div_ceil(256).checked_mul(shape.super_bytes)?;
        let tiles = rows.div_ceil(TILE_ROWS);
        let bytes = tiles.checked_mul(pairs.checked_add(supers)?)?;
        u32::try_from(bytes).is_ok().then_some(bytes)
    }

    /// Bytes that a packed matrix takes on a device; `None` as for [`Format::packed_bytes`].
    #[must_use]
    pub fn device_bytes(self, rows: usize, k: usize) -> Option<usize> {
        Some(self.packed_bytes(rows, k)? + SLACK_BYTES)
    }

    /// Bytes of rows as files have them; `None` as for [`Format::packed_bytes`].
    #[must_use]
    pub fn file_bytes(self, rows: usize, k: usize) -> Option<usize> {
        let shape = self.shape();
        if !k.is_multiple_of(shape.block_elements) {
            return None;
        }
        (k / shape.block_elements)
            .checked_mul(shape.block_bytes)?
            .checked_mul(rows)
    }
}

/// The kernels of a product. They all give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Up to 8 columns.
    Decode8,
    /// Up to 16 columns.
    Decode16,
    /// 128 rows by 64 columns at a time.
    Panel64,
    /// 128 rows by 128 columns at a time.
    Panel128,
}

impl Kernel {
    /// Every kernel.
    pub const ALL: [Kernel; 4] = [
        Kernel::Decode8,
        Kernel::Decode16,
        Kernel::Panel64,
        Kernel::Panel128,
    ];

    /// The one for `columns` columns.
    #[must_use]
    pub fn of(columns: usize) -> Kernel {
        match columns {
            0..=8 => Kernel::Decode8,
            9..=16 => Kernel::Decode16,
            17..=64 => Kernel::Panel64,
            _ => Kernel::Panel128,
        }
    }

    /// Its name, and that of what does its work where a block may not have the shared memory that it takes.
    fn names(self, format: Format) -> [&'static str; 2] {
        let products = format.products();
        let smaller = match self {
            Kernel::Panel128 => Kernel::Panel64,
            _ => self,
        };
        [self, smaller].map(|kernel| products[kernel as usize])
    }

    /// Columns that it can take.
    #[must_use]
    pub fn columns_max(self) -> usize {
        match self {
            Kernel::Decode8 => 8,
            Kernel::Decode16 => 16,
            Kernel::Panel64 | Kernel::Panel128 => usize::MAX,
        }
    }
}

/// A matrix in the device's layout.
#[derive(Debug)]
pub struct Matrix {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) packed: Buffer<u8>,
}

impl Matrix {
    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.packed.len()
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// What it is made of.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }
}

/// Columns in 8 bits, in the device's layout.
#[derive(Debug)]
pub struct Columns {
    pub(crate) k: usize,
    /// Columns that there is room for, whole blocks.
    pub(crate) capacity: usize,
    pub(crate) levels: Buffer<u8>,
    pub(crate) scales: Buffer<f32>,
}

impl Columns {
    /// The level of element `index` of column `column` in what [`Device::read_columns`] reads.
    #[must_use]
    pub fn level_index(k: usize, column: usize, index: usize) -> usize {
        let (group, at) = (index / GROUP, index % GROUP);
        let unit = column / BLOCK_COLUMNS * (k / GROUP) + group;
        unit * 256 + column % BLOCK_COLUMNS * GROUP + at % 16 / 4 * 8 + at / 16 * 4 + at % 4
    }

    /// The scale of group `group` of column `column`, which the scaled sum of its levels follows.
    #[must_use]
    pub fn scale_index(k: usize, column: usize, group: usize) -> usize {
        let unit = column / BLOCK_COLUMNS * (k / GROUP) + group;
        (unit * BLOCK_COLUMNS + column % BLOCK_COLUMNS) * 2
    }
}

/// Blocks of `each` that `count` takes.
fn blocks(count: usize, each: u32) -> u32 {
    count.div_ceil(each as usize) as u32
}

/// How `tiles` are shared out where a block takes one after the other: blocks, and warps of each. A processor has room for
/// `room` blocks, by their warps less one.
///
/// The last tiles leave processors idle unless there is about one for each block that there is room for: so first come
/// the fewest tiles that the busiest processor has time for, then the most warps at a time, then the most of a tile.
fn shared_out(tiles: u32, processors: u32, room: &[u32; WARPS_MAX]) -> (u32, u32) {
    // Fewer do not hide how long memory and accumulators take.
    const WARPS_MIN: u32 = 4;
    let mut best = ((u32::MAX, 0), (0, 0));
    for (warps, &room) in (1..).zip(room).skip(WARPS_MIN as usize - 1) {
        let each = room.min(tiles.div_ceil(processors));
        if each == 0 {
            continue;
        }
        let grid = tiles.min(processors * each);
        let time = tiles.div_ceil(processors * each) * each;
        let (fewest, most) = best.0;
        if time < fewest || time == fewest && warps * each >= most {
            best = ((time, warps * each), (grid, warps));
        }
    }
    best.1
}

/// A size as kernels take it.
pub(crate) fn int(value: usize) -> i32 {
    i32::try_from(value).expect("sizes of matrices fit 31 bits")
}

impl Device {
    /// Packs rows as files have them.
    ///
    /// # Errors
    /// If there is no room, or the driver refuses.
    ///
    /// # Panics
    /// If `rows_in` is not `rows` rows of `k` elements.
    pub fn pack(
        &self,
        format: Format,
        rows_in: &Buffer<u8>,
        rows: usize,
        k: usize,
    ) -> Result<Matrix, Error> {
        let bytes = format.packed_bytes(rows, k).expect("rows are whole blocks");
        assert!(rows > 0 && Some(rows_in.len()) == format.file_bytes(rows, k));
        let matrix = Matrix {
            format,
            rows,
            k,
            packed: self.zeros(bytes + SLACK_BYTES)?,
        };
        let from = self.address(rows_in);
        // SAFETY: the rows are all of the matrix's, which were checked to be there.
        unsafe { self.pack_rows(&self.stream(), from, 0..rows, &matrix) }?;
        // Products may start before the kernel before them has ended, and take weights as given.
        self.finish()?;
        Ok(matrix)
    }

    /// Packs some of a matrix's rows: whole tiles, but for the last.
    ///
    /// # Safety
    /// These rows are at `from`, as files have them, and stay until `stream` has come to its end.
    ///
    /// # Panics
    /// If the matrix has no such rows.
    pub(crate) unsafe fn pack_rows(
        &self,
        stream: &Arc<CudaStream>,
        from: CUdeviceptr,
        rows: Range<usize>,
        matrix: &Matrix,
    ) -> Result<(), Error> {
        assert!(rows.start < rows.end && rows.end <= matrix.rows);
        assert!(rows.start.is_multiple_of(TILE_ROWS));
        assert!(rows.end == matrix.rows || rows.end.is_multiple_of(TILE_ROWS));
        let tiles = rows.len().div_ceil(TILE_ROWS);
        let threads = tiles * matrix.k.div_ceil(2 * GROUP) * 32;
        let function = self.function(matrix.format.others()[0], 0)?;
        let config = LaunchConfig {
            grid_dim: (threads.div_ceil(THREADS as usize).min(1 << 16) as u32, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let (first, tiles) = (int(rows.start / TILE_ROWS), int(tiles));
        let (all, k) = (int(matrix.rows), int(matrix.k));
        let to = self.address(&matrix.packed);
        let mut launch = stream.launch_builder(function);
        launch.arg(&from).arg(&first).arg(&tiles);
        launch.arg(&all).arg(&k).arg(&to);
        // SAFETY: the arguments are those of `pack`; it reads the rows, which the caller has, and writes planes whose size
        // `packed_bytes` gave.
        unsafe { launch.launch(config) }.map_err(of("packing weights"))?;
        Ok(())
    }

    /// Sets `count` columns of `output` to the rows of `matrix` that `tokens` name, each element times `scale`. A token that
    /// has no row gets what is not a number.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are fewer tokens, or the output is too short.
    pub fn embed(
        &self,
        matrix: &Matrix,
        tokens: &Buffer<u32>,
        count: usize,
        scale: f32,
        output: &mut Buffer<f32>,
    ) -> Result<(), Error> {
        assert!(count > 0 && count <= tokens.len() && count * matrix.k <= output.len());
        let config = LaunchConfig {
            grid_dim: ((matrix.k / GROUP).div_ceil(8) as u32, count as u32, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let (packed, tokens) = (self.address(&matrix.packed), self.address(tokens));
        let (output, rows, k) = (self.address(output), int(matrix.rows), int(matrix.k));
        let function = self.function(matrix.format.others()[1], 0)?;
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch.arg(&packed).arg(&rows).arg(&k).arg(&tokens);
        launch.arg(&scale).arg(&output);
        // SAFETY: the arguments are those of the kernel, which reads no row that is not there; tokens and output were checked
        // to be long enough.
        unsafe { launch.launch(config) }.map_err(of("looking up tokens"))?;
        Ok(())
    }

    /// Room for `count` columns of `k` elements.
    ///
    /// # Errors
    /// If there is none.
    ///
    /// # Panics
    /// If columns are not whole groups.
    pub fn columns(&self, k: usize, count: usize) -> Result<Columns, Error> {
        assert!(k.is_multiple_of(GROUP), "columns are whole groups");
        let capacity = count.next_multiple_of(BLOCK_COLUMNS);
        Ok(Columns {
            k,
            capacity,
            levels: self.zeros(capacity * k + SLACK_BYTES)?,
            scales: self.zeros(capacity * (k / GROUP) * 2 + SLACK_BYTES / 4)?,
        })
    }

    /// What was quantized: levels and scales, see [`Columns::level_index`] and [`Columns::scale_index`].
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn read_columns(&self, columns: &Columns) -> Result<(Vec<u8>, Vec<f32>), Error> {
        let mut levels = vec![0; columns.levels.len()];
        let mut scales = vec![0.0; columns.scales.len()];
        self.read(&columns.levels, &mut levels)?;
        self.read(&columns.scales, &mut scales)?;
        Ok((levels, scales))
    }

    /// Quantizes `count` columns, `stride` elements from one to the next.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are fewer values, or there is no room for so many columns.
    pub fn quantize(
        &self,
        values: &Buffer<f32>,
        stride: usize,
        count: usize,
        columns: &mut Columns,
    ) -> Result<(), Error> {
        let k = columns.k;
        assert!(count > 0 && count <= columns.capacity && k > 0);
        assert!(stride >= k && (count - 1) * stride + k <= values.len());
        let function = self.function("quantize", 0)?;
        let config = LaunchConfig {
            grid_dim: ((k / GROUP).div_ceil(8) as u32, count as u32, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let (k, stride, count) = (int(k), int(stride), int(count));
        let values = self.address(values);
        let levels = self.address(&columns.levels);
        let scales = self.address(&columns.scales);
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch.arg(&values).arg(&k).arg(&stride).arg(&count);
        launch.arg(&levels).arg(&scales);
        // SAFETY: the arguments are those of `quantize`; the values were checked to be there, and the columns have room
        // for them by `columns`.
        unsafe { launch.launch(config) }.map_err(of("quantizing"))?;
        Ok(())
    }

    /// Multiplies a matrix of floats with `count` columns of floats, `stride_in` elements from one to the next: row `r` of column
    /// `c` goes to `output[c * stride + r]`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If the matrix is quantized, there are fewer columns, or these are no whole groups apart, or the output is too short.
    pub fn matmul_floats(
        &self,
        matrix: &Matrix,
        (values, stride_in): (&Buffer<f32>, usize),
        count: usize,
        output: &mut Buffer<f32>,
        stride: usize,
    ) -> Result<(), Error> {
        assert!(!matrix.format.is_quantized(), "a matrix of floats");
        assert!(count > 0 && stride_in >= matrix.k && stride_in.is_multiple_of(GROUP));
        assert!((count - 1) * stride_in + matrix.k <= values.len());
        assert!(stride >= matrix.rows && (count - 1) * stride + matrix.rows <= output.len());
        let others = matrix.format.others();
        let (kernel, columns) = if count == 1 {
            (others[2], 1)
        } else {
            (others[3], 8)
        };
        const THREADS: u32 = 128;
        // 16 bytes a thread, of 16 elements.
        let block_rows = match matrix.format {
            Format::F32 => THREADS / 4,
            _ => THREADS / 2,
        };
        let config = LaunchConfig {
            grid_dim: (blocks(matrix.rows, block_rows), blocks(count, columns), 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let (rows, k) = (int(matrix.rows), int(matrix.k));
        let (count, stride_in, stride) = (int(count), int(stride_in), int(stride));
        let (packed, values) = (self.address(&matrix.packed), self.address(values));
        let output = self.address(output);
        let function = self.function(kernel, 0)?;
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch.arg(&packed).arg(&rows).arg(&k);
        launch.arg(&values).arg(&stride_in);
        launch.arg(&output).arg(&count).arg(&stride);
        // SAFETY: the arguments are those of the products; the matrix was packed with these sizes, and the columns and the
        // output were checked against them.
        unsafe { launch.launch(config) }.map_err(of("multiplying"))?;
        Ok(())
    }

    /// Multiplies `matrix` with the first `count` columns: row `r` of column `c` goes to `output[c * stride + r]`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// As [`Device::matmul_at`].
    pub fn matmul(
        &self,
        matrix: &Matrix,
        columns: &Columns,
        count: usize,
        kernel: Kernel,
        output: &mut Buffer<f32>,
        stride: usize,
    ) -> Result<(), Error> {
        self.matmul_at(matrix, columns, count, kernel, output, (0, stride))
    }

    /// The same, where results of several matrices lie in one another: row `r` of column `c` goes to
    /// `output[first + c * stride + r]`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If the matrix is of floats, rows and columns are not of one length, there are fewer columns, the kernel does not take so many, or the
    /// output is too short.
    pub fn matmul_at(
        &self,
        matrix: &Matrix,
        columns: &Columns,
        count: usize,
        kernel: Kernel,
        output: &mut Buffer<f32>,
        (first, stride): (usize, usize),
    ) -> Result<(), Error> {
        assert!(matrix.format.is_quantized(), "no matrix of floats");
        assert_eq!(matrix.k, columns.k, "rows are as long as columns");
        assert!(count > 0 && count <= columns.capacity && count <= kernel.columns_max());
        assert!(stride >= matrix.rows && first <= output.len());
        assert!((count - 1) * stride + matrix.rows <= output.len() - first);
        let (name, launch) = self.launch_of(&kernel.names(matrix.format));
        let tiles = blocks(matrix.rows, launch.rows);
        let most = launch.threads / WARP;
        let (grid_dim, warps) = match kernel {
            Kernel::Decode8 | Kernel::Decode16 => {
                let (grid, warps) = shared_out(tiles, self.processors, &launch.blocks);
                ((grid, 1, 1), warps)
            }
            Kernel::Panel64 | Kernel::Panel128 => ((blocks(count, launch.columns), tiles, 1), most),
        };
        let function = self.function(name, launch.shared_bytes)?;
        let config = LaunchConfig {
            grid_dim,
            block_dim: (warps * WARP, 1, 1),
            shared_mem_bytes: launch.shared_bytes / most * warps,
        };
        let (rows, k) = (int(matrix.rows), int(matrix.k));
        let (count, stride) = (int(count), int(stride));
        // The kernels for few columns wait for what is before them where they need it.
        let overlaps = self.overlaps && matches!(kernel, Kernel::Decode8 | Kernel::Decode16);
        let mut weights = self.address(&matrix.packed);
        let mut levels = self.address(&columns.levels);
        let mut scales = self.address(&columns.scales);
        let mut results = self.address(output) + (first * size_of::<f32>()) as CUdeviceptr;
        let (mut rows, mut k, mut count, mut stride) = (rows, k, count, stride);
        let mut arguments = [
            (&raw mut weights).cast(),
            (&raw mut rows).cast(),
            (&raw mut k).cast(),
            (&raw mut levels).cast(),
            (&raw mut scales).cast(),
            (&raw mut results).cast(),
            (&raw mut count).cast(),
            (&raw mut stride).cast(),
        ];
        // SAFETY: the arguments are those of the products; the matrix was packed with these sizes, and the columns and
        // the output were checked against them.
        unsafe { self.launch_overlapping(function, config, overlaps, &mut arguments) }
            .map_err(of("multiplying"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Format, shared_out};

    #[test]
    fn tiles_are_shared_out_so_that_few_processors_wait_for_others() {
        // Of 132 processors with room for 16 warps each.
        let room = [16, 8, 5, 4, 3, 2, 2, 2];
        assert_eq!(shared_out(256, 132, &room), (256, 8));
        // Three tiles a processor, at a time.
        assert_eq!(shared_out(384, 132, &room), (384, 5));
        assert_eq!(shared_out(1792, 132, &room), (264, 8));
        assert_eq!(shared_out(1, 132, &room), (1, 8));
        // No room for two blocks of eight.
        let room = [14, 7, 4, 3, 2, 2, 2, 1];
        assert_eq!(shared_out(256, 132, &room), (256, 7));
        assert_eq!(shared_out(128, 8, &room), (16, 7));
        // Nor for a block of more than five.
        assert_eq!(shared_out(40, 1, &[5, 2, 1, 1, 1, 0, 0, 0]), (1, 5));
    }

    #[test]
    fn matrices_of_4_gib_are_not_packed() {
        let k = 8192;
        for format in Format::ALL {
            let tile = format
                .packed_bytes(super::TILE_ROWS, k)
                .expect("whole blocks");
            let tiles = (1usize << 32) / tile;
            let rows = |tiles| tiles * super::TILE_ROWS;
            assert!(format.packed_bytes(rows(tiles - 1), k).is_some());
            assert_eq!(format.packed_bytes(rows(tiles + 1), k), None);
        }
    }
}
