//! Attention of columns to what is in the cache.

use crate::buffer::Buffer;
use crate::cache::{Cache, KvType};
use crate::device::{Device, of};
use crate::error::Error;
use crate::matmul::int;
use crate::places::Places;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{LaunchConfig, PushKernelArg};

/// Positions of a page.
pub const PAGE: usize = 64;
/// Positions of a chunk.
const CHUNK: usize = 256;
/// Columns up to which chunks are computed side by side and merged afterwards.
pub(crate) const FEW_COLUMNS: usize = 16;

/// How columns attend.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// Query heads.
    pub heads: usize,
    /// Elements from one column's queries to the next's.
    pub query_stride: usize,
    /// Positions before its own that a column sees.
    pub before: usize,
    /// Positions after its own that a column sees, up to the last of its run.
    pub after: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Bound that scores are kept within, after that.
    pub cap: Option<f32>,
}

impl Attend {
    /// Elements of scratch that [`Device::attend`] needs for up to `columns` columns that reach up to `reach` positions.
    #[must_use]
    pub fn scratch(heads: usize, head_dim: usize, columns: usize, reach: usize) -> usize {
        columns.min(FEW_COLUMNS) * heads * reach.div_ceil(CHUNK) * (head_dim + 2)
    }

    /// Chunks that a block of a run sees something of, at most.
    fn chunks(&self, columns: usize, reach: usize) -> usize {
        let seen = self
            .before
            .saturating_add(columns)
            .saturating_add(self.after);
        let of_window = seen.div_ceil(CHUNK).saturating_add(1);
        reach.div_ceil(CHUNK).min(of_window)
    }
}

/// Kernels for heads of some dimensions.
struct Kernels {
    /// Of few columns, by [`KvType`].
    few: [&'static str; 2],
    /// Of many columns, by [`KvType`]; behind one, that which does its work where a block may not have the shared memory.
    many: [&'static [&'static str]; 2],
    merge: &'static str,
}

macro_rules! kernels {
    ($($head_dim:literal)*; large $($large:literal)*) => {
        /// Kernels for heads of so many dimensions.
        fn kernels(head_dim: usize) -> Option<Kernels> {
            match head_dim {
                $($head_dim => Some(Kernels {
                    few: [
                        concat!("attend_", $head_dim, "_few_f16"),
                        concat!("attend_", $head_dim, "_few_q8"),
                    ],
                    many: [
                        &[concat!("attend_", $head_dim, "_many_f16")],
                        &[concat!("attend_", $head_dim, "_many_q8")],
                    ],
                    merge: concat!("attend_", $head_dim, "_merge"),
                }),)*
                $($large => Some(Kernels {
                    few: [
                        concat!("attend_", $large, "_few_f16"),
                        concat!("attend_", $large, "_few_q8"),
                    ],
                    many: [
                        &[
                            concat!("attend_", $large, "_many_f16"),
                            concat!("attend_", $large, "_some_f16"),
                        ],
                        &[concat!("attend_", $large, "_many_q8")],
                    ],
                    merge: concat!("attend_", $large, "_merge"),
                }),)*
                _ => None,
            }
        }

        /// Every kernel that says how it is launched, but [`LARGE`].
        pub(crate) const KERNELS: &[&str] = &[
            $(
                concat!("attend_", $head_dim, "_few_f16"),
                concat!("attend_", $head_dim, "_many_f16"),
                concat!("attend_", $head_dim, "_few_q8"),
                concat!("attend_", $head_dim, "_many_q8"),
            )*
            $(
                concat!("attend_", $large, "_few_f16"),
                concat!("attend_", $large, "_some_f16"),
                concat!("attend_", $large, "_few_q8"),
                concat!("attend_", $large, "_many_q8"),
            )*
        ];

        /// Those that take more shared memory than some devices let a block have.
        pub(crate) const LARGE: &[&str] = &[$(concat!("attend_", $large, "_many_f16"),)*];

        /// The others.
        pub(crate) const MERGES: &[&str] = &[
            $(concat!("attend_", $head_dim, "_merge"),)*
            $(concat!("attend_", $large, "_merge"),)*
        ];
    };
}

kernels!(32 64; large 96 128 256);

impl Device {
    /// Whether there is attention for heads of so many dimensions.
    #[must_use]
    pub fn attends(head_dim: usize) -> bool {
        kernels(head_dim).is_some()
    }

    /// What the columns at `places` get from the cache: `[column][head][head_dim]`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are no kernels for the heads, a buffer is too short, there are no columns, or places are of a larger cache.
    pub fn attend(
        &self,
        attend: &Attend,
        queries: &Buffer<f32>,
        (cache, places): (&Cache, &Places),
        scratch: &mut Buffer<f32>,
        output: &mut Buffer<f32>,
    ) -> Result<(), Error> {
        let (kv_heads, head_dim) = (cache.kv_heads, cache.head_dim);
        let kernels = kernels(head_dim).expect("there are kernels for the heads");
        let extent = places.extent;
        let (heads, count) = (attend.heads, extent.columns);
        assert!(count > 0 && heads > 0 && heads.is_multiple_of(kv_heads));
        assert!(attend.query_stride >= heads * head_dim);
        assert!((count - 1) * attend.query_stride + heads * head_dim <= queries.len());
        assert!(count * heads * head_dim <= output.len());
        cache.assert_has(places);
        self.keep_extent(places);
        let few = count <= FEW_COLUMNS;
        let of_type = match cache.kv_type {
            KvType::F16 => 0,
            KvType::Q8 => 1,
        };
        let (name, launch_of) = if few {
            self.launch_of(&[kernels.few[of_type]])
        } else {
            self.launch_of(kernels.many[of_type])
        };
        let group = heads / kv_heads;
        let (rows, block_rows) = (count * group, launch_of.rows as usize);
        // As many as any runs need that a graph may be started at: of few columns any, of many columns as many as these.
        let of_any = count * group.div_ceil(block_rows);
        let row_blocks = if few {
            of_any
        } else {
            of_any.min(rows.div_ceil(block_rows) + extent.runs - 1)
        };
        let parts = if few {
            attend.chunks(count, extent.reach)
        } else {
            1
        };
        let sums = 2 * parts * count * heads;
        let output_address = self.address(output);
        let (partial_sums, partial) = if few {
            assert!(sums + parts * count * heads * head_dim <= scratch.len());
            let scratch = self.address(scratch);
            (scratch, scratch + (sums * size_of::<f32>()) as CUdeviceptr)
        } else {
            (0, output_address)
        };
        let function = self.function(name, launch_of.shared_bytes)?;
        let config = LaunchConfig {
            grid_dim: (parts as u32, kv_heads as u32, row_blocks as u32),
            block_dim: (launch_of.threads, 1, 1),
            shared_mem_bytes: launch_of.shared_bytes,
        };
        let (queries, pages) = (self.address(queries), self.address(&cache.pages));
        let (data, columns_max) = (self.address(&places.data), int(count));
        let (heads_int, kv_heads, columns) = (int(heads), int(kv_heads), int(count));
        let query_stride = int(attend.query_stride);
        // Beyond any length; sums with positions stay below 2^31.
        const ALL: usize = 1 << 29;
        let (before, after) = (int(attend.before.min(ALL)), int(attend.after.min(ALL)));
        let cap = attend.cap.unwrap_or(0.0);
        let stream = self.stream();
        let mut launch = stream.launch_builder(function);
        launch.arg(&queries).arg(&query_stride).arg(&pages);
        launch.arg(&data).arg(&columns_max);
        launch.arg(&heads_int).arg(&kv_heads).arg(&columns);
        launch.arg(&before).arg(&after).arg(&attend.scale).arg(&cap);
        launch.arg(&partial_sums).arg(&partial);
        // SAFETY: the arguments are those of the kernel; queries, pages, scratch and output were checked to have what it
        // reads and writes at these places.
        unsafe { launch.launch(config) }.map_err(of("attending"))?;
        if few {
            let all_rows = count * heads;
            let config = LaunchConfig {
                grid_dim: (all_rows.div_ceil(4) as u32, 1, 1),
                block_dim: (128, 1, 1),
                shared_mem_bytes: 0,
            };
            let (parts, all_rows) = (int(parts), int(all_rows));
            let (stream, function) = (self.stream(), self.function(kernels.merge, 0)?);
            let mut launch = stream.launch_builder(function);
            launch.arg(&partial_sums).arg(&partial);
            launch.arg(&parts).arg(&all_rows).arg(&output_address);
            // SAFETY: as above; the parts are what was written by the launch before.
            unsafe { launch.launch(config) }.map_err(of("merging what was attended to"))?;
        }
        Ok(())
    }
}
