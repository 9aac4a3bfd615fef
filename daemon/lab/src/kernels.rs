//! Speed of each matrix product kernel, beside the limits measured in the same run.
//!
//! For every format, layout, instruction set and number of columns: how fast weights are read (GB/s), and how many
//! multiply-adds are done (GMAC/s). With few columns the weights are larger than the caches and the share of the streaming
//! read counts; with many they are small and the share of the multiply-add rate does. A command rather than a test bench:
//! its figures mean nothing without the limits of the same moment.

use std::io::Write as _;
use std::num::NonZero;
use std::time::{Duration, Instant};

use andon_engine::Isa;
use andon_engine::calibrate::limits::{multiply_adds_per_s, read_bytes_per_s};
use andon_kernels::activation::{Columns, GROUP, Group, Quantized, QuantizedMut};
use andon_kernels::{Format, Share, Table, Tiles, TilesOf, pack};
use andon_os::Pool;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::bench::{median, round};
use crate::parse_isa;
use crate::random::Random;
use crate::synth::parse_format;

/// Columns from which on a product is bound by arithmetic, not by reading the weights.
const PANEL_COLUMNS_MIN: usize = 16;

/// Bytes of weights for fewer columns: twice the largest cache of the machines served.
const STREAM_BYTES: usize = 64 << 20;

/// Elements of the weights for more columns: a matrix of a few thousand rows.
const PANEL_ELEMENTS: usize = 4 << 20;

/// Tiles of a thread: few enough to cost nothing, enough for all to finish together.
const TILES_EACH: usize = 32;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Threads [default: as many as this process may keep busy].
    #[arg(long)]
    threads: Option<usize>,
    /// Only this format; may be given several times.
    #[arg(long, value_parser = parse_format)]
    format: Vec<Format>,
    /// Only this instruction set; may be given several times.
    #[arg(long, value_parser = parse_isa)]
    isa: Vec<Isa>,
    /// Only this layout of the weights: raw or packed.
    #[arg(long, value_parser = ["raw", "packed"])]
    layout: Option<String>,
    /// Numbers of columns.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 512])]
    columns: Vec<usize>,
    /// Elements of a row.
    #[arg(long, default_value_t = 4096)]
    k: usize,
    /// Milliseconds for each kernel.
    #[arg(long, default_value_t = 200)]
    time_ms: u64,
    /// Divide the weights by this: with much smaller ones, caches are measured.
    #[arg(long, default_value_t = 1)]
    shrink: usize,
    /// Print one line of JSON for each kernel.
    #[arg(long)]
    json: bool,
}

/// A kernel and what it is run on.
struct Case {
    format: Format,
    packed: bool,
    columns: usize,
}

/// What was measured of a kernel.
struct Figures {
    gb_s: f64,
    gmac_s: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.k > 0 && arguments.k.is_multiple_of(256) && arguments.k <= 1 << 16,
        "--k must be a multiple of 256 and at most 65536"
    );
    ensure!(
        arguments.shrink > 0
            && arguments
                .columns
                .iter()
                .all(|&count| (1..=4096).contains(&count)),
        "--shrink must be at least 1, --columns between 1 and 4096"
    );
    let threads = arguments
        .threads
        .unwrap_or_else(andon_os::available_threads);
    let threads = NonZero::new(threads)
        .filter(|threads| threads.get() <= andon_engine::Executor::THREADS_MAX)
        .context("--threads is out of range")?;
    let mut pool = Pool::new(threads).context("cannot start the threads")?;
    let tables: Vec<Table> = Table::runnable()
        .filter(|table| arguments.isa.is_empty() || arguments.isa.contains(&table.isa()))
        .collect();
    let best = Table::runnable()
        .last()
        .context("there is always a table")?;
    let read = read_bytes_per_s(&best, threads.get()) / 1e9;
    let rates: Vec<f64> = tables
        .iter()
        .map(|table| multiply_adds_per_s(table, threads.get()) / 1e9)
        .collect();
    let mut out = std::io::stdout().lock();
    if !arguments.json {
        writeln!(out, "{threads} threads read {read:.1} GB/s")?;
        for (table, rate) in tables.iter().zip(&rates) {
            writeln!(
                out,
                "{:<12} {rate:.0} G multiply-adds/s",
                table.isa().name()
            )?;
        }
        writeln!(
            out,
            "\n{:<8} {:<7} {:<12} {:>7} {:>8} {:>6} {:>8} {:>6}",
            "format", "layout", "isa", "columns", "GB/s", "", "GMAC/s", ""
        )?;
    }
    for case in cases(arguments) {
        let weights = weights(&case, arguments)?;
        for (table, rate) in tables.iter().zip(&rates) {
            let figures = measure(table, &mut pool, &case, &weights, arguments)?;
            let line = line(&case, table.isa(), &figures, [read, *rate], arguments.json);
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn cases(arguments: &Arguments) -> Vec<Case> {
    let mut cases = Vec::new();
    for format in Format::ALL {
        if !(arguments.format.is_empty() || arguments.format.contains(&format)) {
            continue;
        }
        for packed in [false, true] {
            let layout = if packed { "packed" } else { "raw" };
            let wanted = arguments
                .layout
                .as_deref()
                .is_none_or(|wanted| wanted == layout);
            if !wanted || (packed && pack::tile_bytes(format, arguments.k).is_none()) {
                continue;
            }
            cases.extend(arguments.columns.iter().map(|&columns| Case {
                format,
                packed,
                columns,
            }));
        }
    }
    cases
}

/// Rows of the matrix of a case, whole tiles of them.
fn row_count(case: &Case, arguments: &Arguments) -> Result<usize> {
    let row_bytes = case
        .format
        .bytes(arguments.k)
        .context("rows are not whole blocks")?;
    let rows = if case.columns < PANEL_COLUMNS_MIN {
        STREAM_BYTES / row_bytes
    } else {
        PANEL_ELEMENTS / arguments.k
    };
    Ok((rows / arguments.shrink)
        .max(1)
        .next_multiple_of(pack::ROWS))
}

fn weights(case: &Case, arguments: &Arguments) -> Result<Vec<u8>> {
    let rows = row_count(case, arguments)?;
    let row_bytes = case
        .format
        .bytes(arguments.k)
        .context("rows are not whole blocks")?;
    let mut raw = vec![0; rows * row_bytes];
    Random::new(1).weights(case.format, 0.02, &mut raw)?;
    if !case.packed {
        return Ok(raw);
    }
    let bytes = pack::bytes(case.format, rows, arguments.k).context("the format is not packed")?;
    let mut packed = vec![0; bytes];
    pack::pack(case.format, &raw, rows, arguments.k, &mut packed);
    Ok(packed)
}

fn measure(
    table: &Table,
    pool: &mut Pool,
    case: &Case,
    weights: &[u8],
    arguments: &Arguments,
) -> Result<Figures> {
    let (k, count) = (arguments.k, case.columns);
    let rows = row_count(case, arguments)?;
    let values: Vec<f32> = (0..k * count)
        .map(|index| ((index % 251) as f32 - 125.0) / 125.0)
        .collect();
    let mut levels = vec![0; k * count];
    let mut groups = vec![Group::default(); k * count / GROUP];
    table.quantize(
        &values,
        &mut QuantizedMut {
            levels: &mut levels,
            groups: &mut groups,
        },
    );
    let columns = Columns {
        k,
        count,
        values: &values,
        quantized: Quantized {
            levels: &levels,
            groups: &groups,
        },
    };
    let mut output = vec![0.0; rows * count];
    let tile_rows = (rows / (pool.threads() * TILES_EACH))
        .max(1)
        .next_multiple_of(pack::ROWS);
    let mut shares: Vec<Share> = (0..pool.threads()).map(|_| Share::default()).collect();
    let budget = Duration::from_millis(arguments.time_ms);
    let (mut seconds, began) = (Vec::new(), Instant::now());
    // The first pass warms up.
    while seconds.len() < 2 || began.elapsed() < budget {
        let output = TilesOf {
            output: &mut output,
            row_count: rows,
            tile_rows,
        };
        let tiles = Tiles::new(&mut shares, count, [output]);
        let start = Instant::now();
        pool.run(&|thread| {
            while let Some((_, mut tile)) = tiles.next(thread) {
                if case.packed {
                    table.matmul_packed(case.format, weights, columns, &mut tile);
                } else {
                    table.matmul(case.format, weights, columns, &mut tile);
                }
            }
        });
        seconds.push(start.elapsed().as_secs_f64());
    }
    let seconds = median(&seconds[1..]);
    Ok(Figures {
        gb_s: weights.len() as f64 / seconds / 1e9,
        gmac_s: (rows * k * count) as f64 / seconds / 1e9,
    })
}

fn line(case: &Case, isa: Isa, figures: &Figures, limits: [f64; 2], as_json: bool) -> String {
    let layout = if case.packed { "packed" } else { "raw" };
    let [bandwidth, int8] = [figures.gb_s / limits[0], figures.gmac_s / limits[1]];
    if as_json {
        let value: Value = json!({
            "format": case.format.name(),
            "layout": layout,
            "isa": isa.name(),
            "columns": case.columns,
            "gb_s": round(figures.gb_s, 4),
            "bandwidth_share": round(bandwidth, 4),
            "gmac_s": round(figures.gmac_s, 4),
            "int8_share": round(int8, 4),
        });
        return value.to_string();
    }
    format!(
        "{:<8} {layout:<7} {:<12} {:>7} {:>8.1} {:>4.0} % {:>8.1} {:>4.0} %",
        case.format.name(),
        isa.name(),
        case.columns,
        figures.gb_s,
        bandwidth * 100.0,
        figures.gmac_s,
        int8 * 100.0
    )
}
