//! Passes through a layer, recorded and repeated at other places, against passes that are asked for one by one.

use andon_cuda::{
    Attend, Best, Buffer, Cache, Columns, Device, Error, Format, Heads, Kernel, KvType, Matrix,
    PAGE, Places, Run, TopK,
};

/// Numbers in -1..1 that follow from `seed`.
#[must_use]
pub fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        // Marsaglia's xorshift (2003).
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / f32::from_bits(0x4b00_0000) - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Rows of Q8_0 with levels by chance and a scale of about 2^-7.
#[must_use]
pub fn rows(seed: u32, rows: usize, k: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for group in numbers(seed, rows * k).chunks_exact(32) {
        bytes.extend([0x00, 0x20]);
        bytes.extend(group.iter().map(|value| (value * 127.0) as i8 as u8));
    }
    bytes
}

/// Such rows, packed.
///
/// # Panics
/// If there is no room for them.
#[must_use]
pub fn packed(device: &Device, seed: u32, count: usize, k: usize) -> Matrix {
    let raw = device.upload(&rows(seed, count, k)).expect("room");
    device.pack(Format::Q8_0, &raw, count, k).expect("it packs")
}

/// All of a buffer.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn all(device: &Device, buffer: &Buffer<f32>) -> Vec<f32> {
    let mut values = vec![0.0; buffer.len()];
    device.read(buffer, &mut values).expect("it can be read");
    values
}

/// A run of columns.
#[must_use]
pub const fn run(columns: usize, position: usize, pages: &[u32]) -> Run<'_> {
    Run {
        columns,
        position,
        pages,
    }
}

const EMBEDDING: usize = 64;
const HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const OF_COLUMN: usize = (HEADS + 2) * HEAD_DIM;
const VOCABULARY: usize = 50;
/// Pages of the cache.
pub const PAGES: usize = 12;

/// A layer and what stands around it, from tokens to the best ones.
pub struct Model {
    table: Matrix,
    heads: Matrix,
    output: Matrix,
    weight: Buffer<f32>,
    columns: usize,
    tokens: Buffer<u32>,
    rotations: Buffer<f32>,
    cache: Cache,
    hidden: Buffer<f32>,
    levels: Columns,
    queries: Buffer<f32>,
    scratch: Buffer<f32>,
    attended: Buffer<f32>,
    logits: Buffer<f32>,
    best: TopK,
}

impl Model {
    /// One for passes of so many columns.
    ///
    /// # Panics
    /// If there is no room for it.
    #[must_use]
    pub fn new(device: &Device, columns: usize, reach: usize, kv_type: KvType) -> Model {
        let zeros = |len: usize| device.zeros::<f32>(len).expect("room");
        Model {
            table: packed(device, 3, VOCABULARY, EMBEDDING),
            heads: packed(device, 4, OF_COLUMN, EMBEDDING),
            output: packed(device, 5, EMBEDDING, HEADS * HEAD_DIM),
            weight: device.upload(&numbers(6, EMBEDDING)).expect("room"),
            columns,
            tokens: device.zeros(columns).expect("room"),
            rotations: zeros(columns * HEAD_DIM),
            cache: device.cache(PAGES, 1, HEAD_DIM, kv_type).expect("room"),
            hidden: zeros(columns * EMBEDDING),
            levels: device.columns(EMBEDDING, columns).expect("room"),
            queries: zeros(columns * OF_COLUMN),
            scratch: zeros(Attend::scratch(HEADS, HEAD_DIM, columns, reach)),
            attended: zeros(columns * HEADS * HEAD_DIM),
            logits: zeros(columns * VOCABULARY),
            best: device.top_k(VOCABULARY, columns, 3).expect("room"),
        }
    }

    /// What differs from pass to pass, beside places.
    fn prepare(&mut self, device: &Device, seed: u32) {
        let tokens: Vec<u32> = numbers(seed, self.columns)
            .iter()
            .map(|value| ((value + 1.0) * 24.0) as u32)
            .collect();
        device.write(&tokens, &mut self.tokens).expect("it fits");
        let rotations = numbers(seed + 1, self.columns * HEAD_DIM);
        device
            .write(&rotations, &mut self.rotations)
            .expect("it fits");
    }

    /// Asks for a pass.
    ///
    /// # Errors
    /// If the driver refuses a launch.
    pub fn pass(&mut self, device: &Device, places: &Places) -> Result<(), Error> {
        let count = self.columns;
        let kernel = Kernel::of(count);
        device.embed(&self.table, &self.tokens, count, 2.0, &mut self.hidden)?;
        device.add_norm_quantize(
            &mut self.hidden,
            count,
            None,
            Some(&self.weight),
            1e-5,
            &mut self.levels,
        )?;
        device.matmul(
            &self.heads,
            &self.levels,
            count,
            kernel,
            &mut self.queries,
            OF_COLUMN,
        )?;
        let heads = Heads {
            heads: HEADS,
            bias: None,
            query_weight: None,
            key_weight: None,
            epsilon: 1e-5,
            rotations: &self.rotations,
            pairs: HEAD_DIM / 2,
            adjacent: false,
            query_factors: None,
        };
        device.place_heads(&mut self.queries, &heads, &mut self.cache, places)?;
        let attend = Attend {
            heads: HEADS,
            query_stride: OF_COLUMN,
            before: 300,
            after: 0,
            scale: 0.2,
            cap: None,
        };
        let cached = (&self.cache, places);
        device.attend(
            &attend,
            &self.queries,
            cached,
            &mut self.scratch,
            &mut self.attended,
        )?;
        device.quantize(&self.attended, EMBEDDING, count, &mut self.levels)?;
        device.matmul(
            &self.output,
            &self.levels,
            count,
            kernel,
            &mut self.queries,
            OF_COLUMN,
        )?;
        device.quantize(&self.queries, OF_COLUMN, count, &mut self.levels)?;
        device.matmul(
            &self.table,
            &self.levels,
            count,
            kernel,
            &mut self.logits,
            VOCABULARY,
        )?;
        device.finish_logits(
            &mut self.logits,
            VOCABULARY,
            (VOCABULARY, count),
            None,
            0.5,
            Some(9.0),
        )?;
        device.find_top_k(&self.logits, VOCABULARY, count, &mut self.best)
    }

    /// What a pass leaves: logits, the best tokens, all pages.
    fn left(&mut self, device: &Device) -> (Vec<f32>, Vec<Option<Best>>, Vec<u8>, Vec<u16>) {
        let (mut levels, mut halves) = (Vec::new(), Vec::new());
        for page in 0..PAGES as u32 {
            device
                .read_page(&self.cache, page, &mut levels, &mut halves)
                .expect("it can be read");
        }
        let best = device.read_top_k(&mut self.best, self.columns);
        let best = best.expect("they can be read");
        (all(device, &self.logits), best, levels, halves)
    }
}

/// Passes of so many columns, each at other places: by a graph that was recorded at the first, and one by one.
fn repeated(device: &Device, columns: usize, kv_type: KvType, passes: &[&[Run<'_>]]) {
    let reach = 9 * PAGE;
    let (mut one, mut other) = (
        Model::new(device, columns, reach, kv_type),
        Model::new(device, columns, reach, kv_type),
    );
    let mut places = device.places(columns, PAGES, PAGES).expect("room");
    device
        .place(passes[0], reach, &mut places)
        .expect("they are there");
    let graph = device
        .record(|| one.pass(device, &places))
        .expect("it is recorded");
    assert!(
        all(device, &one.logits).iter().all(|&logit| logit == 0.0),
        "nothing ran"
    );
    let mut now = device.places(columns + 5, PAGES, PAGES).expect("room");
    for (seed, runs) in passes.iter().enumerate() {
        let seed = 100 + 7 * seed as u32;
        one.prepare(device, seed);
        other.prepare(device, seed);
        device
            .place(runs, reach, &mut places)
            .expect("they are there");
        graph.launch(Some(&places)).expect("it runs");
        let longest = runs.iter().map(|run| run.position + run.columns).max();
        device
            .place(runs, longest.unwrap_or(0), &mut now)
            .expect("they are there");
        other.pass(device, &now).expect("it runs");
        let (recorded, direct) = (one.left(device), other.left(device));
        assert!(direct.0.iter().any(|&logit| logit != 0.0), "something ran");
        assert!(direct.1.iter().all(Option::is_some), "logits are finite");
        assert!(recorded == direct, "pass {seed} of {columns} columns");
    }
}

/// Repeats passes of few columns, and of many, at many places; how many passes.
///
/// # Panics
/// If one differs, or the driver refuses it.
#[must_use]
pub fn check(device: &Device) -> usize {
    let long: Vec<u32> = (0..9).rev().collect();
    let few: [&[Run<'_>]; 5] = [
        &[run(4, 0, &long)],
        &[run(4, 4, &long)],
        &[run(1, 8, &long), run(3, 0, &[9])],
        &[
            run(1, 9, &long),
            run(1, 3, &[9]),
            run(1, 0, &[10]),
            run(1, 0, &[11]),
        ],
        &[run(2, 510, &long), run(2, 62, &[11, 9])],
    ];
    let many: [&[Run<'_>]; 3] = [
        &[run(30, 0, &long), run(10, 0, &[9])],
        &[run(1, 30, &long), run(39, 10, &[9])],
        &[run(25, 300, &long), run(15, 60, &[11, 9])],
    ];
    for kv_type in [KvType::F16, KvType::Q8] {
        repeated(device, 4, kv_type, &few);
        repeated(device, 40, kv_type, &many);
    }
    2 * (few.len() + many.len())
}
