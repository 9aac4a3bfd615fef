//! Keys and values in pages, and attention to them.

use crate::device::{Buffer, Device, of};
use crate::error::Error;
use crate::matmul::int;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};

/// Positions of a page.
pub const PAGE: usize = 64;
/// Positions of a chunk.
const CHUNK: usize = 256;
/// Columns up to which chunks are computed side by side and merged afterwards.
const FEW_COLUMNS: usize = 16;
/// Rows of a block of threads then.
const FEW_ROWS: usize = 8;

/// Pages of keys and values of one layer, in f16.
#[derive(Debug)]
pub struct Cache {
    pub(crate) pages: Buffer<u16>,
    count: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// Which pages of a [`Cache`] a sequence has, in the order of its positions.
#[derive(Debug)]
pub struct PageTable {
    pub(crate) pages: Buffer<i32>,
    count: usize,
    largest: usize,
}

impl PageTable {
    /// Panics unless there are pages for `length` positions, all of them of `cache`.
    pub(crate) fn assert_covers(&self, length: usize, cache: &Cache) {
        assert!(length <= self.count * PAGE, "pages for every position");
        assert!(self.largest < cache.count, "pages of the cache");
    }
}

/// How columns attend.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// Query heads.
    pub heads: usize,
    /// Elements from one column's queries to the next's.
    pub query_stride: usize,
    /// Position of the first column.
    pub position: usize,
    /// Positions that there are.
    pub length: usize,
    /// Positions before its own that a column sees.
    pub before: usize,
    /// Positions after its own that a column sees.
    pub after: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Bound that scores are kept within, after that.
    pub cap: Option<f32>,
}

impl Attend {
    fn seen(&self, position: usize) -> std::ops::Range<usize> {
        let end = position.saturating_add(self.after).saturating_add(1);
        position.saturating_sub(self.before)..end.min(self.length)
    }

    /// Elements of scratch that [`Device::attend`] needs for up to `columns` columns of a context of `length` positions.
    #[must_use]
    pub fn scratch(heads: usize, head_dim: usize, columns: usize, length: usize) -> usize {
        let chunks = length.div_ceil(CHUNK) + 1;
        columns.min(FEW_COLUMNS) * heads * chunks * (head_dim + 2)
    }
}

/// Names of the kernels for heads of so many dimensions; `None` where there are none.
fn kernels(head_dim: usize) -> Option<[&'static str; 3]> {
    match head_dim {
        64 => Some(["attend_64_few", "attend_64_many", "attend_64_merge"]),
        128 => Some(["attend_128_few", "attend_128_many", "attend_128_merge"]),
        256 => Some(["attend_256_few", "attend_256_many", "attend_256_merge"]),
        _ => None,
    }
}

/// Every kernel here.
pub(crate) const KERNELS: &[&str] = &[
    "attend_64_few",
    "attend_64_many",
    "attend_64_merge",
    "attend_128_few",
    "attend_128_many",
    "attend_128_merge",
    "attend_256_few",
    "attend_256_many",
    "attend_256_merge",
];

impl Device {
    /// Whether there is attention for heads of so many dimensions.
    #[must_use]
    pub fn attends(head_dim: usize) -> bool {
        kernels(head_dim).is_some()
    }

    /// Room for `count` pages of `kv_heads` heads.
    ///
    /// # Errors
    /// If there is none.
    pub fn cache(&self, count: usize, kv_heads: usize, head_dim: usize) -> Result<Cache, Error> {
        Ok(Cache {
            pages: self.zeros(count * kv_heads * 2 * PAGE * head_dim)?,
            count,
            kv_heads,
            head_dim,
        })
    }

    /// All pages of a cache: of each page every head's keys, then its values.
    ///
    /// # Errors
    /// If they cannot be copied.
    pub fn read_cache(&self, cache: &Cache) -> Result<Vec<u16>, Error> {
        let mut pages = vec![0; cache.pages.len()];
        self.read(&cache.pages, &mut pages)?;
        Ok(pages)
    }

    /// Fills a cache's pages, as [`Device::read_cache`] reads them.
    ///
    /// # Errors
    /// If they cannot be copied.
    ///
    /// # Panics
    /// If there are more than it has.
    pub fn write_cache(&self, pages: &[u16], cache: &mut Cache) -> Result<(), Error> {
        self.write(pages, &mut cache.pages)
    }

    /// A sequence's pages.
    ///
    /// # Errors
    /// If there is no room.
    pub fn page_table(&self, pages: &[u32]) -> Result<PageTable, Error> {
        let numbers: Vec<i32> = pages.iter().map(|&page| int(page as usize)).collect();
        Ok(PageTable {
            pages: self.upload(&numbers)?,
            count: pages.len(),
            largest: pages.iter().max().map_or(0, |&page| page as usize),
        })
    }

    /// What `count` columns of queries get from the cache: `[column][head][head_dim]`.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are no kernels for the heads, a buffer or the table is too short, the table has pages that the cache has
    /// not, or a column sees nothing.
    pub fn attend(
        &self,
        attend: &Attend,
        queries: &Buffer<f32>,
        count: usize,
        (cache, table): (&Cache, &PageTable),
        scratch: &mut Buffer<f32>,
        output: &mut Buffer<f32>,
    ) -> Result<(), Error> {
        let (kv_heads, head_dim) = (cache.kv_heads, cache.head_dim);
        let [few, many, merge] = kernels(head_dim).expect("there are kernels for the heads");
        let heads = attend.heads;
        assert!(count > 0 && heads > 0 && heads.is_multiple_of(kv_heads));
        assert!(attend.query_stride >= heads * head_dim);
        assert!((count - 1) * attend.query_stride + heads * head_dim <= queries.len());
        assert!(count * heads * head_dim <= output.len());
        assert!(
            attend.position + count <= attend.length,
            "columns have positions"
        );
        table.assert_covers(attend.length, cache);
        let group = heads / kv_heads;
        let rows = count * group;
        let page_bytes = PAGE * head_dim * 2;
        let last = attend.position + count - 1;
        let first_chunk = attend.seen(attend.position).start / CHUNK;
        let chunks = attend.seen(last).end.div_ceil(CHUNK) - first_chunk;
        let few_columns = count <= FEW_COLUMNS;
        let block_rows = match (few_columns, head_dim) {
            (true, _) => FEW_ROWS,
            (false, 256) => 32,
            (false, _) => 64,
        };
        let shared = 2 * page_bytes + block_rows * (head_dim + CHUNK) * 4;
        let shared_mem_bytes = shared as u32;
        let function = self.function(if few_columns { few } else { many }, shared_mem_bytes)?;
        let output_address = output.slice.device_ptr(&self.stream).0;
        let scratch_address = scratch.slice.device_ptr(&self.stream).0;
        let sums_elements = 2 * chunks * count * heads;
        let (partial_sums, partial) = if few_columns {
            assert!(sums_elements + chunks * count * heads * head_dim <= scratch.len());
            let after = (sums_elements * size_of::<f32>()) as CUdeviceptr;
            (scratch_address, scratch_address + after)
        } else {
            (0, output_address)
        };
        let blocks = |chunks: usize| LaunchConfig {
            grid_dim: (
                chunks as u32,
                kv_heads as u32,
                rows.div_ceil(block_rows) as u32,
            ),
            block_dim: (256, 1, 1),
            shared_mem_bytes,
        };
        let config = blocks(if few_columns { chunks } else { 1 });
        let (heads_int, kv_heads_int, columns) = (int(heads), int(kv_heads), int(count));
        let (query_stride, position, length) = (
            int(attend.query_stride),
            int(attend.position),
            int(attend.length),
        );
        // Beyond any length; sums with positions stay below 2^31.
        const ALL: usize = 1 << 29;
        let (before, after) = (int(attend.before.min(ALL)), int(attend.after.min(ALL)));
        let cap = attend.cap.unwrap_or(0.0);
        let mut launch = self.stream.launch_builder(function);
        launch
            .arg(&queries.slice)
            .arg(&query_stride)
            .arg(&cache.pages.slice)
            .arg(&table.pages.slice)
            .arg(&heads_int)
            .arg(&kv_heads_int)
            .arg(&columns)
            .arg(&position)
            .arg(&length)
            .arg(&before)
            .arg(&after)
            .arg(&attend.scale)
            .arg(&cap)
            .arg(&partial_sums)
            .arg(&partial);
        // SAFETY: the arguments are those of the kernel; queries, pages, scratch and output were checked to have what it
        // reads and writes.
        unsafe { launch.launch(config) }.map_err(of("attending"))?;
        if few_columns {
            let function = self.function(merge, 0)?;
            let all_rows = count * heads;
            let config = LaunchConfig {
                grid_dim: (all_rows.div_ceil(4) as u32, 1, 1),
                block_dim: (128, 1, 1),
                shared_mem_bytes: 0,
            };
            let (parts, all_rows) = (int(chunks), int(all_rows));
            let mut launch = self.stream.launch_builder(function);
            launch
                .arg(&partial_sums)
                .arg(&partial)
                .arg(&parts)
                .arg(&all_rows)
                .arg(&output_address);
            // SAFETY: as above; the parts are what was written by the launch before.
            unsafe { launch.launch(config) }.map_err(of("merging what was attended to"))?;
        }
        Ok(())
    }
}
