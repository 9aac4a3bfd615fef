//! How fast the kernels are, as shares of what the card does at best.

use crate::Run;
use crate::data::{Draw, Random, host, many_weights, values};
use andon_cuda::{Attend, Format, Kernel, KvType, Matrix, PAGE, Places};
use anyhow::Result;
use std::cell::RefCell;
use std::fmt::Write;

/// Llama 3.1 8B: rows and elements of a layer's matrices.
const LAYER: [(&str, usize, usize); 4] = [
    ("qkv", 6144, 4096),
    ("output", 4096, 4096),
    ("gate+up", 28672, 4096),
    ("down", 4096, 14336),
];

/// Columns whose times are printed for each matrix; the results have all of them.
const SHOWN: [usize; 5] = [1, 2, 4, 8, 16];

/// The same layer for runs in the emulation, whose times mean nothing.
const SMALL: [(&str, usize, usize); 2] = [("qkv", 96, 256), ("gate+up", 64, 256)];

/// The best of several times, each of several launches, in seconds: what disturbs only ever adds.
fn best(
    run: &Run<'_>,
    graph: &andon_cuda::Graph,
    places: Option<&Places>,
    launches: usize,
) -> Result<f64> {
    let (times, launches) = if run.small { (1, 1) } else { (5, launches) };
    graph.time(places, launches)?;
    let mut best = f64::INFINITY;
    for _ in 0..times {
        best = best.min(graph.time(places, launches)?);
    }
    Ok(best)
}

/// Bytes per second that the device's memory gives.
struct Rates {
    /// A copy by a kernel, bytes read and bytes written.
    copy: f64,
    /// Reading alone.
    read: f64,
    /// The driver's copy, bytes read and bytes written.
    driver: f64,
}

fn rates(run: &Run<'_>) -> Result<Rates> {
    let words = if run.small { 1 << 14 } else { 1 << 28 };
    let from = run.device.zeros::<u32>(words)?;
    let to = RefCell::new(
        run.device
            .zeros::<u32>(words.max(run.device.stream_sums()))?,
    );
    let bytes = (words * size_of::<u32>()) as f64;
    let time = |work: &dyn Fn() -> Result<(), andon_cuda::Error>| {
        best(run, &run.device.record(work)?, None, 4)
    };
    Ok(Rates {
        copy: 2.0 * bytes / time(&|| run.device.stream_copy(&from, &mut to.borrow_mut()))?,
        read: bytes / time(&|| run.device.stream_read(&from, &mut to.borrow_mut()))?,
        driver: 2.0 * bytes / time(&|| run.device.copy(&from, &mut to.borrow_mut()))?,
    })
}

/// Attention of an 8B model's layer to contexts of several lengths: 32 heads and 8 KV heads of 128 dimensions.
pub(crate) fn attention(run: &Run<'_>) -> Result<String> {
    const HEADS: usize = 32;
    const KV_HEADS: usize = 8;
    const HEAD_DIM: usize = 128;
    let many = if run.small { 20 } else { 512 };
    let mut random = Random(run.seed);
    let lengths: &[usize] = if run.small {
        &[100]
    } else {
        &[1024, 4096, 16_384, 65_536]
    };
    let width = HEADS * HEAD_DIM;
    let queries = values(&mut random, width, many, Draw::Random);
    let queries = run.device.upload(&queries)?;
    let output = RefCell::new(run.device.zeros::<f32>(many * width)?);
    let mut text = String::from("attention to pages of zeros");
    for kv_type in [KvType::F16, KvType::Q8] {
        for &length in lengths {
            let pages: Vec<u32> = (0..length.div_ceil(PAGE) as u32).collect();
            let cache = run.device.cache(pages.len(), KV_HEADS, HEAD_DIM, kv_type)?;
            let bytes = pages.len() * kv_type.page_bytes(KV_HEADS, HEAD_DIM);
            write!(text, "\n{kv_type:?} {length:6}:")?;
            for columns in [1, 8, 16, many] {
                let mut places = run.device.places(columns, pages.len(), pages.len())?;
                let runs = [andon_cuda::Run {
                    columns,
                    position: length - columns,
                    pages: &pages,
                }];
                run.device.place(&runs, length, &mut places)?;
                let scratch = Attend::scratch(HEADS, HEAD_DIM, columns, length);
                let scratch = RefCell::new(run.device.zeros::<f32>(scratch)?);
                let how = Attend {
                    heads: HEADS,
                    query_stride: width,
                    before: usize::MAX,
                    after: 0,
                    scale: 0.1,
                    cap: None,
                };
                let graph = run.device.record(|| {
                    let (scratch, output) = (&mut scratch.borrow_mut(), &mut output.borrow_mut());
                    run.device
                        .attend(&how, &queries, (&cache, &places), scratch, output)
                })?;
                let seconds = best(run, &graph, Some(&places), 10)?;
                let name = format!("attention {kv_type:?} {length}: M={columns}");
                run.figures.note(name, seconds * 1e6, "us");
                write!(text, "  M={columns} {:.1} us", seconds * 1e6)?;
                if columns < many {
                    write!(text, " {:.0} GB/s", bytes as f64 / seconds * 1e-9)?;
                }
            }
        }
    }
    Ok(text)
}

pub(crate) fn products(run: &Run<'_>, format: Format) -> Result<String> {
    let mut random = Random(run.seed);
    let rates = rates(run)?;
    let copy = rates.copy;
    let limits = run.device.limits()?;
    let mut text = format!(
        "{format:?} on {}, {} processors, copy {:.0} GB/s (read and written), read {:.0} GB/s, the driver's copy {:.0} GB/s\n",
        limits.name,
        limits.processors,
        copy * 1e-9,
        rates.read * 1e-9,
        rates.driver * 1e-9
    );
    let (layer, columns_max): (&[_], usize) = if run.small {
        (&SMALL, 40)
    } else {
        (&LAYER, 2048)
    };
    let figures = run.figures;
    figures.note("copy by a kernel, read and written", copy * 1e-9, "GB/s");
    figures.note("reading by a kernel", rates.read * 1e-9, "GB/s");
    figures.note(
        "the driver's copy, read and written",
        rates.driver * 1e-9,
        "GB/s",
    );
    let few = 1..=16;
    let mut layer_times = vec![0.0; few.clone().count()];
    let mut layer_bytes = 0.0;
    for &(name, rows, k) in layer {
        let raw = many_weights(&mut random, host(format), rows, k);
        let raw = run.device.upload(&raw)?;
        let bytes = format.packed_bytes(rows, k).expect("whole blocks");
        layer_bytes += bytes as f64;
        // As many as do not fit the cache together.
        let copies = if run.small {
            2
        } else {
            (4 * limits.cache_bytes).div_ceil(bytes).max(2)
        };
        let matrices: Vec<Matrix> = (0..copies)
            .map(|_| run.device.pack(format, &raw, rows, k))
            .collect::<Result<_, _>>()?;
        drop(raw);
        let x = values(&mut random, k, columns_max, Draw::Random);
        let x = run.device.upload(&x)?;
        let mut columns = run.device.columns(k, columns_max)?;
        run.device.quantize(&x, k, columns_max, &mut columns)?;
        let output = RefCell::new(run.device.zeros::<f32>(columns_max * rows)?);
        let time = |count: usize, kernel: Kernel, matrices: &[Matrix], launches: usize| {
            let graph = run.device.record(|| {
                for matrix in matrices {
                    let output = &mut output.borrow_mut();
                    run.device
                        .matmul(matrix, &columns, count, kernel, output, rows)?;
                }
                Ok(())
            })?;
            best(run, &graph, None, launches).map(|seconds| seconds / matrices.len() as f64)
        };
        let mut one = 0.0;
        write!(text, "{name:8} {rows:6} x {k:5}:")?;
        for count in few.clone() {
            let seconds = time(count, Kernel::of(count), &matrices, 20)?;
            if count == 1 {
                one = seconds;
            }
            layer_times[count - 1] += seconds;
            let what = format!("{format:?} {name}: M={count}");
            figures.note(what, seconds * 1e6, "us");
            if !SHOWN.contains(&count) {
                continue;
            }
            write!(
                text,
                "  M={count} {:.2} us {:.0} GB/s {:.0}% T/T1 {:.2}",
                seconds * 1e6,
                bytes as f64 / seconds * 1e-9,
                bytes as f64 / seconds / copy * 100.0,
                seconds / one
            )?;
        }
        writeln!(text)?;
        for (count, kernel) in [
            (32, Kernel::Panel64),
            (64, Kernel::Panel64),
            (512, Kernel::Panel64),
            (512, Kernel::Panel128),
            (2048, Kernel::Panel128),
        ] {
            if count > columns_max {
                continue;
            }
            let seconds = time(count, kernel, &matrices[..2], 5)?;
            let rate = 2.0 * (rows * k * count) as f64 / seconds * 1e-12;
            let what = format!("{format:?} {name}: {kernel:?} M={count}");
            figures.note(what, rate, "TFLOP/s");
            write!(
                text,
                "  {kernel:?} M={count} {:.1} us {rate:.0} TFLOP/s",
                seconds * 1e6
            )?;
            if let Some(dense) = run.dense {
                write!(text, " {:.0}%", rate / dense * 100.0)?;
                if kernel == Kernel::of(count) {
                    let what = format!("{format:?} {name}: share of dense at M={count}");
                    figures.note(what, rate / dense, "");
                }
            }
        }
        writeln!(text)?;
    }
    write!(text, "layer:")?;
    for (count, seconds) in few.zip(&layer_times) {
        let share = layer_bytes / seconds / copy;
        let ratio = seconds / layer_times[0];
        let what = format!("{format:?} layer: share of copy at M={count}");
        figures.note(what, share, "");
        figures.note(format!("{format:?} layer: T({count})/T(1)"), ratio, "");
        write!(
            text,
            "  M={count} {:.1} us {:.0} GB/s {:.0}% T/T1 {ratio:.2}",
            seconds * 1e6,
            layer_bytes / seconds * 1e-9,
            share * 100.0,
        )?;
    }
    Ok(text)
}
