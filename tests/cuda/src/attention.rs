//! Attention against the processor's.

use crate::Run;
use crate::cache::{HostCache, Sequence, place, reach, sequences};
use crate::compare::{poison, same};
use crate::data::{Draw, Random, fastest, values};
use crate::heads::HEADS;
use andon_cuda::{Attend, KvType};
use andon_kernels::attend::{Attention, Block, Partial, QuantizedQueriesMut};
use andon_kernels::op::attention::{CHUNK, Queries, key_groups, key_levels};
use anyhow::Result;

const ALL: usize = usize::MAX;

/// Runs of columns and their first positions, positions before and after that are seen, and the soft cap.
type Case = (&'static [(usize, usize)], usize, usize, Option<f32>);

const CASES: &[Case] = &[
    (&[(1, 0)], ALL, 0, None),
    (&[(1, 255)], ALL, 0, None),
    (&[(1, 256)], ALL, 0, Some(30.0)),
    (&[(3, 62)], ALL, 0, None),
    (&[(5, 253)], 100, 0, None),
    (&[(16, 500)], ALL, 0, Some(50.0)),
    (&[(8, 700)], 255, 0, None),
    (&[(1, 600), (1, 3), (4, 255), (1, 90)], ALL, 0, None),
    (&[(2, 10), (1, 700), (5, 64)], 70, 0, None),
    (&[(17, 0)], ALL, 0, None),
    (&[(40, 240)], ALL, 0, Some(20.0)),
    (&[(70, 300)], 130, 0, None),
    (&[(33, 0)], 8, 8, None),
    (&[(9, 300), (1, 40), (20, 0), (1, 257)], ALL, 0, None),
];

const LARGE: &[Case] = &[
    (&[(1, 4095)], ALL, 0, None),
    (&[(7, 3000)], ALL, 0, None),
    (&[(513, 1000)], ALL, 0, None),
    (&[(1, 4095), (1, 100), (6, 2000), (1, 1023)], 512, 0, None),
];

pub(crate) fn check(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let mut cases = 0;
    let more = if run.small { &[][..] } else { LARGE };
    for kv_type in [KvType::F16, KvType::Q8] {
        for shape in HEADS {
            for case in CASES.iter().chain(more) {
                if run.small && random.below(2) == 0 {
                    continue;
                }
                let draw = [Draw::Random, Draw::WideScales][usize::from(random.below(4) == 0)];
                one(run, &mut random, kv_type, shape, *case, draw)?;
                cases += 1;
            }
        }
    }
    Ok(format!("{cases} cases are the processor's bytes"))
}

fn one(
    run: &Run<'_>,
    random: &mut Random,
    kv_type: KvType,
    [heads, kv_heads, head_dim, _]: [usize; 4],
    (runs, before, after, cap): Case,
    draw: Draw,
) -> Result<()> {
    let (sequences, page_count) = sequences(random, runs);
    let count: usize = runs.iter().map(|(columns, _)| columns).sum();
    let empty = HostCache::new(kv_type, page_count, kv_heads, head_dim);
    let cache = HostCache::drawn(random, empty, draw);
    let x = values(random, heads * head_dim, count, draw);
    let attention = Attention {
        scale: 3.0 / (head_dim as f32).sqrt(),
        cap,
        slopes: None,
        before,
        after,
    };
    let mut expected = Vec::new();
    let mut first = 0;
    for sequence in &sequences {
        let x = &x[first * heads * head_dim..][..sequence.columns * heads * head_dim];
        expected.extend(attended(&attention, &cache, sequence, heads, x));
        first += sequence.columns;
    }

    let device_cache = cache.upload(run)?;
    let reach = reach(&sequences);
    let mut places = run.device.places(count + 1, page_count, page_count)?;
    place(run, &sequences, reach, &mut places)?;
    let mut scratch = run
        .device
        .upload(&poison(Attend::scratch(heads, head_dim, count, reach)))?;
    let mut output = run.device.upload(&poison(x.len()))?;
    let how = Attend {
        heads,
        query_stride: heads * head_dim,
        before,
        after,
        scale: attention.scale,
        cap,
    };
    let queries = run.device.upload(&x)?;
    let cached = (&device_cache, &places);
    run.device
        .attend(&how, &queries, cached, &mut scratch, &mut output)?;
    let mut actual = poison(x.len());
    run.device.read(&output, &mut actual)?;
    same(&actual, &expected, || {
        format!(
            "{heads} and {kv_heads} heads of {head_dim}, {kv_type:?}, {how:?}, {runs:?}, {draw:?}"
        )
    })
}

/// What the columns of a sequence, `x`, get from the cache by the processor.
pub(crate) fn attended(
    attention: &Attention<'_>,
    cache: &HostCache,
    sequence: &Sequence,
    heads: usize,
    x: &[f32],
) -> Vec<f32> {
    let table = fastest();
    let (kv_heads, head_dim) = (cache.kv_heads, cache.head_dim);
    let group = heads / kv_heads;
    let rows = sequence.columns * group;
    let levels = cache.levels();
    let mut expected = vec![0.0; x.len()];
    let parts = 2 * rows;
    let mut query_levels = vec![0; parts * key_levels(head_dim)];
    let mut query_scales = vec![0.0; parts * key_groups(head_dim)];
    let mut query_offsets = vec![0; parts * key_groups(head_dim)];
    for kv_head in 0..kv_heads {
        let queries = Queries {
            values: &x[kv_head * group * head_dim..],
            token_stride: heads * head_dim,
            tokens: sequence.columns,
            group,
            head_dim,
        };
        let to = QuantizedQueriesMut {
            levels: &mut query_levels,
            scales: &mut query_scales,
            offsets: &mut query_offsets,
        };
        let quantized = (cache.kv_type == KvType::Q8).then(|| table.quantize_queries(&queries, to));
        let block = Block {
            queries,
            quantized,
            position: sequence.position,
            length: sequence.position + sequence.columns,
        };
        let page = |number: usize| cache.head(&levels, sequence.pages[number] as usize, kv_head);
        let mut sums = vec![[f32::NEG_INFINITY, 0.0]; rows];
        let mut outputs = vec![0.0; rows * head_dim];
        let mut weights = vec![0.0; parts * CHUNK];
        for chunk in attention.chunks(&block) {
            let mut next_sums = vec![[0.0; 2]; rows];
            let mut next_outputs = vec![0.0; rows * head_dim];
            let next = Partial {
                sums: &mut next_sums,
                outputs: &mut next_outputs,
            };
            table.attend_chunk(attention, &block, chunk, page, &mut weights, next);
            let next = Partial {
                sums: &mut next_sums,
                outputs: &mut next_outputs,
            };
            let total = Partial {
                sums: &mut sums,
                outputs: &mut outputs,
            };
            table.merge_chunks(total, &next, head_dim);
        }
        for row in 0..rows {
            let at = (row / group * heads + kv_head * group + row % group) * head_dim;
            let output = &outputs[row * head_dim..][..head_dim];
            for (to, from) in expected[at..].iter_mut().zip(output) {
                *to = from / sums[row][1];
            }
        }
    }
    expected
}
