//! Heads on their way to attention, and what the cache gets of them.

use crate::Run;
use crate::cache::{HostCache, place, reach, sequences};
use crate::compare::{poison, same};
use crate::data::{Draw, Random, scalar, values};
use andon_cuda::{Heads, KvType, PAGE};
use andon_kernels::op::rope::Pairing;
use anyhow::Result;

/// Heads of models: query heads, KV heads, dimensions, pairs that are rotated.
pub(crate) const HEADS: [[usize; 4]; 7] = [
    [9, 3, 64, 32],   // SmolLM2-135M
    [4, 1, 256, 128], // Gemma 3 270M
    [14, 2, 64, 32],  // Qwen2.5-0.5B
    [16, 8, 128, 64], // Qwen3-0.6B
    [32, 8, 128, 48], // Llama 3.1 8B's, with a part that is not rotated
    [4, 4, 96, 48],   // Phi-3 mini's dimensions
    [4, 2, 32, 0],    // without rotation
];

pub(crate) fn check(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let mut cases = 0;
    for kv_type in [KvType::F16, KvType::Q8] {
        for shape in HEADS {
            for kind in 0..4 {
                for draw in [Draw::Random, Draw::WideScales] {
                    one(run, &mut random, kv_type, shape, kind, draw)?;
                    cases += 1;
                }
            }
        }
    }
    Ok(format!("{cases} cases are the processor's bytes"))
}

fn one(
    run: &Run<'_>,
    random: &mut Random,
    kv_type: KvType,
    [heads, kv_heads, head_dim, pairs]: [usize; 4],
    kind: usize,
    draw: Draw,
) -> Result<()> {
    let table = scalar();
    let (normed, adjacent) = (kind % 2 == 1, kind >= 2);
    let (biased, factored) = (random.below(2) == 1, random.below(2) == 1);
    let mut runs = vec![(1 + random.below(9), random.below(150))];
    if random.below(2) == 1 {
        runs.push((1 + random.below(3), random.below(150)));
    }
    let (sequences, page_count) = sequences(random, &runs);
    let count: usize = runs.iter().map(|(columns, _)| columns).sum();
    let of_column = heads + 2 * kv_heads;
    let mut x = values(random, of_column * head_dim, count, draw);
    if draw == Draw::WideScales {
        // What cannot be kept, and what rounds to nothing.
        let value = (heads + kv_heads) * head_dim;
        x[value] = f32::NAN;
        x[heads * head_dim..][..head_dim].fill(1e-9);
    }
    let bias = values(random, of_column * head_dim, 1, Draw::Random);
    let factors: Vec<f32> = (0..count).map(|_| 1.0 + random.unit().abs()).collect();
    let weights = [0, 1].map(|_| values(random, head_dim, 1, Draw::Random));
    let rotations: Vec<[f32; 2]> = (0..count * pairs)
        .map(|_| [random.unit(), random.unit()])
        .collect();
    let mut expected = x.clone();
    let mut cache = HostCache::new(kv_type, page_count, kv_heads, head_dim);
    let mut places = run.device.places(count + 3, page_count, page_count)?;
    place(run, &sequences, reach(&sequences), &mut places)?;
    let columns = sequences.iter().flat_map(|sequence| {
        (0..sequence.columns).map(move |column| (sequence, sequence.position + column))
    });
    let values_of = expected.chunks_exact_mut(of_column * head_dim);
    for (column, (values, (sequence, at))) in values_of.zip(columns).enumerate() {
        for (head, values) in values.chunks_exact_mut(head_dim).enumerate() {
            if biased {
                for (value, bias) in values.iter_mut().zip(&bias[head * head_dim..]) {
                    *value += bias;
                }
            }
            let mut result = values.to_vec();
            if head < heads + kv_heads {
                if normed {
                    let weight = &weights[usize::from(head >= heads)];
                    table.rms_norm(values, weight, 1e-6, &mut result);
                }
                let pairing = if adjacent {
                    Pairing::Adjacent
                } else {
                    Pairing::Halves
                };
                table.rotate(&mut result, &rotations[column * pairs..][..pairs], pairing);
            }
            if head < heads {
                if factored {
                    for value in &mut result {
                        *value *= factors[column];
                    }
                }
                values.copy_from_slice(&result);
                continue;
            }
            // In place they stay as they were.
            values.copy_from_slice(&x[(column * of_column + head) * head_dim..][..head_dim]);
            let page = sequence.pages[at / PAGE] as usize;
            let head = head - heads;
            let (key, value) = if head < kv_heads {
                (Some(result.as_slice()), None)
            } else {
                (None, Some(result.as_slice()))
            };
            cache.store(page, head % kv_heads, at % PAGE, key, value);
        }
    }
    let device_weights = [
        run.device.upload(&weights[0])?,
        run.device.upload(&weights[1])?,
    ];
    let rotations = run.device.upload(rotations.as_flattened())?;
    let (bias, factors) = (run.device.upload(&bias)?, run.device.upload(&factors)?);
    let placing = Heads {
        heads,
        bias: biased.then_some(&bias),
        query_weight: normed.then_some(&device_weights[0]),
        key_weight: normed.then_some(&device_weights[1]),
        epsilon: 1e-6,
        rotations: &rotations,
        pairs,
        adjacent,
        query_factors: factored.then_some(&factors),
    };
    let mut columns = run.device.upload(&x)?;
    let mut device_cache = run.device.cache(page_count, kv_heads, head_dim, kv_type)?;
    run.device
        .place_heads(&mut columns, &placing, &mut device_cache, &places)?;
    let what = || {
        format!("{heads} and {kv_heads} heads of {head_dim}, {kv_type:?}, {draw:?}, kind {kind}")
    };
    let mut actual = poison(x.len());
    run.device.read(&columns, &mut actual)?;
    same(&actual, &expected, what)?;
    cache.compare(run, &device_cache, &what())?;
    if page_count > 1 {
        // Pages can be copied, and put back.
        let from = random.below(page_count);
        let to = (from + 1) % page_count;
        run.device
            .copy_page(&mut device_cache, from as u32, to as u32)?;
        let copied = cache.pages[from].clone();
        let kept = std::mem::replace(&mut cache.pages[to], copied);
        cache.compare(run, &device_cache, &what())?;
        run.device
            .write_page(&mut device_cache, to as u32, &kept.0, &kept.1)?;
        cache.pages[to] = kept;
        cache.compare(run, &device_cache, &what())?;
    }
    Ok(())
}
