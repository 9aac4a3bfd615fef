//! Norms, gated units, heads and attention against the processor's.

use crate::Run;
use crate::compare::{poison, same};
use crate::data::{Activations, DRAWS, Draw, Random, fastest, scalar, values};
use crate::quantize::compare;
use andon_cuda::{Addition, Attend, Gate, Heads, PAGE};
use andon_kernels::attend::{Attention, Block, Partial};
use andon_kernels::op::attention::{CHUNK, Keys, Queries, Values, key_index};
use andon_kernels::op::rope::Pairing;
use anyhow::{Result, ensure};

/// Sizes of hidden states, and of feed-forward units, of supported models.
const SIZES: [usize; 8] = [32, 576, 640, 896, 2048, 4096, 8192, 14336];

pub(crate) fn norm(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let table = scalar();
    let mut cases = 0;
    for draw in DRAWS {
        for n in SIZES {
            let count = 1 + random.below(5);
            let x = values(&mut random, n, count, draw);
            let delta = values(&mut random, n, count, draw);
            let weight = values(&mut random, n, 1, Draw::Random);
            let delta_weight = values(&mut random, n, 1, Draw::Random);
            let epsilon = 1e-6;
            let device_delta = run.device.upload(&delta)?;
            let device_weight = run.device.upload(&weight)?;
            let device_delta_weight = run.device.upload(&delta_weight)?;
            for kind in 0..3 {
                let mut expected = x.clone();
                if kind > 0 {
                    let mut added = vec![0.0; n];
                    for (x, delta) in expected.chunks_exact_mut(n).zip(delta.chunks_exact(n)) {
                        if kind == 2 {
                            table.rms_norm(delta, &delta_weight, epsilon, &mut added);
                        } else {
                            added.copy_from_slice(delta);
                        }
                        for (x, added) in x.iter_mut().zip(&added) {
                            *x += added;
                        }
                    }
                }
                let mut normed = vec![0.0; n * count];
                for (x, normed) in expected.chunks_exact(n).zip(normed.chunks_exact_mut(n)) {
                    table.rms_norm(x, &weight, epsilon, normed);
                }
                let mut device_x = run.device.upload(&x)?;
                let mut columns = run.device.columns(n, count)?;
                let addition = (kind > 0).then(|| Addition {
                    delta: &device_delta,
                    weight: (kind == 2).then_some(&device_delta_weight),
                });
                run.device.add_norm_quantize(
                    &mut device_x,
                    count,
                    addition,
                    Some(&device_weight),
                    epsilon,
                    &mut columns,
                )?;
                let what = || format!("{draw:?} n {n} columns {count} kind {kind}");
                let mut sum = poison(n * count);
                run.device.read(&device_x, &mut sum)?;
                same(&sum, &expected, what)?;
                let host = Activations::new(&normed, n);
                compare(&run.device.read_columns(&columns)?, &host, &what())?;
                cases += 1;
            }
        }
    }
    Ok(format!("{cases} cases are the processor's bytes"))
}

pub(crate) fn glu(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let mut cases = 0;
    for draw in DRAWS {
        for n in SIZES {
            for gate in [Gate::Silu, Gate::GeluTanh] {
                let count = 1 + random.below(5);
                let stride = 2 * n + 32 * random.below(2);
                let mut gates = values(&mut random, stride, count, draw);
                gates[0] = 100.0;
                gates[1] = -100.0;
                gates[2] = -0.0;
                let mut expected = Vec::new();
                for column in gates.chunks_exact(stride) {
                    let mut units = column[..n].to_vec();
                    match gate {
                        Gate::Silu => scalar().swiglu(&mut units, &column[n..2 * n]),
                        Gate::GeluTanh => scalar().geglu_tanh(&mut units, &column[n..2 * n]),
                    }
                    expected.extend(units);
                }
                let device_gates = run.device.upload(&gates)?;
                let mut columns = run.device.columns(n, count)?;
                run.device
                    .glu_quantize(gate, &device_gates, stride, count, &mut columns)?;
                let host = Activations::new(&expected, n);
                let what = format!("{gate:?} {draw:?} n {n} columns {count}");
                compare(&run.device.read_columns(&columns)?, &host, &what)?;
                cases += 1;
            }
        }
    }
    Ok(format!("{cases} cases are the processor's bytes"))
}

/// Heads of models: query heads, KV heads, dimensions, pairs that are rotated.
const HEADS: [[usize; 4]; 5] = [
    [9, 3, 64, 32],   // SmolLM2-135M
    [4, 1, 256, 128], // Gemma 3 270M
    [14, 2, 64, 32],  // Qwen2.5-0.5B
    [16, 8, 128, 64], // Qwen3-0.6B
    [32, 8, 128, 48], // Llama 3.1 8B's, with a part that is not rotated
];

pub(crate) fn heads(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let table = scalar();
    let mut cases = 0;
    for [heads, kv_heads, head_dim, pairs] in HEADS {
        for kind in 0..4 {
            let (normed, adjacent) = (kind % 2 == 1, kind >= 2);
            let (count, position) = (1 + random.below(9), random.below(150));
            let of_column = heads + 2 * kv_heads;
            let x = values(&mut random, of_column * head_dim, count, Draw::Random);
            let weights = [0, 1].map(|_| values(&mut random, head_dim, 1, Draw::Random));
            let rotations: Vec<[f32; 2]> = (0..count * pairs)
                .map(|_| [random.unit(), random.unit()])
                .collect();
            // Pages in any order.
            let mut pages: Vec<u32> = (0..6).collect();
            for index in (1..pages.len()).rev() {
                pages.swap(index, random.below(index + 1));
            }
            let mut expected = x.clone();
            let page_elements = 2 * PAGE * head_dim;
            let mut expected_cache = vec![0u16; pages.len() * kv_heads * page_elements];
            for (column, values) in expected.chunks_exact_mut(of_column * head_dim).enumerate() {
                for (head, values) in values.chunks_exact_mut(head_dim).enumerate() {
                    let mut result = values.to_vec();
                    if head < heads + kv_heads {
                        if normed {
                            let weight = &weights[usize::from(head >= heads)];
                            table.rms_norm(values, weight, 1e-6, &mut result);
                        }
                        let rotations = &rotations[column * pairs..][..pairs];
                        let pairing = if adjacent {
                            Pairing::Adjacent
                        } else {
                            Pairing::Halves
                        };
                        table.rotate(&mut result, rotations, pairing);
                    }
                    if head < heads {
                        values.copy_from_slice(&result);
                        continue;
                    }
                    let mut halves = vec![0; head_dim];
                    table.to_half(&result, &mut halves);
                    let at = position + column;
                    let kv_head = (head - heads) % kv_heads;
                    let page = pages[at / PAGE] as usize * kv_heads + kv_head;
                    let page = &mut expected_cache[page * page_elements..][..page_elements];
                    for (dim, half) in halves.into_iter().enumerate() {
                        if head < heads + kv_heads {
                            page[key_index(at % PAGE, dim, head_dim)] = half;
                        } else {
                            page[PAGE * head_dim + at % PAGE * head_dim + dim] = half;
                        }
                    }
                }
            }
            let device_weights = [
                run.device.upload(&weights[0])?,
                run.device.upload(&weights[1])?,
            ];
            let rotations = run.device.upload(rotations.as_flattened())?;
            let placing = Heads {
                heads,
                query_weight: normed.then_some(&device_weights[0]),
                key_weight: normed.then_some(&device_weights[1]),
                epsilon: 1e-6,
                rotations: &rotations,
                pairs,
                adjacent,
            };
            let mut columns = run.device.upload(&x)?;
            let mut cache = run.device.cache(pages.len(), kv_heads, head_dim)?;
            let page_table = run.device.page_table(&pages)?;
            run.device.place_heads(
                &mut columns,
                count,
                &placing,
                &mut cache,
                &page_table,
                position,
            )?;
            let what = || format!("{heads} and {kv_heads} heads of {head_dim}, kind {kind}");
            let mut actual = poison(x.len());
            run.device.read(&columns, &mut actual)?;
            same(&actual, &expected, what)?;
            ensure!(
                run.device.read_cache(&cache)? == expected_cache,
                "{}: the cache differs",
                what()
            );
            cases += 1;
        }
    }
    Ok(format!("{cases} cases are the processor's bytes"))
}

/// Columns, their first position, positions before and after that are seen, and the soft cap.
type Case = (usize, usize, usize, usize, Option<f32>);

const ALL: usize = usize::MAX;

const CASES: &[Case] = &[
    (1, 0, ALL, 0, None),
    (1, 255, ALL, 0, None),
    (1, 256, ALL, 0, Some(30.0)),
    (3, 62, ALL, 0, None),
    (5, 253, 100, 0, None),
    (16, 500, ALL, 0, Some(50.0)),
    (8, 700, 255, 0, None),
    (17, 0, ALL, 0, None),
    (40, 240, ALL, 0, Some(20.0)),
    (70, 300, 130, 0, None),
    (33, 0, 8, 8, None),
];

pub(crate) fn attention(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let mut cases = 0;
    let more: [Case; 3] = [
        (1, 4095, ALL, 0, None),
        (7, 3000, ALL, 0, None),
        (513, 1000, ALL, 0, None),
    ];
    let more = if run.small { &[][..] } else { &more[..] };
    for [heads, kv_heads, head_dim, _] in HEADS {
        for &(count, position, before, after, cap) in CASES.iter().chain(more) {
            attend(
                run,
                &mut random,
                [heads, kv_heads, head_dim],
                (count, position, before, after, cap),
            )?;
            cases += 1;
        }
    }
    Ok(format!("{cases} cases are the processor's bytes"))
}

fn attend(
    run: &Run<'_>,
    random: &mut Random,
    [heads, kv_heads, head_dim]: [usize; 3],
    (count, position, before, after, cap): Case,
) -> Result<()> {
    let table = fastest();
    let length = position + count;
    let page_count = length.div_ceil(PAGE);
    let pages: Vec<u32> = (0..page_count as u32).rev().collect();
    let page_elements = 2 * PAGE * head_dim;
    // Every position of every page holds something, also those that nobody sees.
    let stored = values(random, page_elements, page_count * kv_heads, Draw::Random);
    let mut halves = vec![0; stored.len()];
    table.to_half(&stored, &mut halves);
    let x = values(random, heads * head_dim, count, Draw::Random);
    let scale = 3.0 / (head_dim as f32).sqrt();
    let group = heads / kv_heads;

    let attention = Attention {
        scale,
        cap,
        slopes: None,
        before,
        after,
    };
    let mut expected = vec![0.0; x.len()];
    for kv_head in 0..kv_heads {
        let block = Block {
            queries: Queries {
                values: &x[kv_head * group * head_dim..],
                token_stride: heads * head_dim,
                tokens: count,
                group,
                head_dim,
            },
            quantized: None,
            position,
            length,
        };
        let page = |number: usize| {
            let at = pages[number] as usize * kv_heads + kv_head;
            let page = &halves[at * page_elements..][..page_elements];
            let (keys, values) = page.split_at(PAGE * head_dim);
            (Keys::F16(keys), Values::F16(values))
        };
        let rows = count * group;
        let mut sums = vec![[f32::NEG_INFINITY, 0.0]; rows];
        let mut outputs = vec![0.0; rows * head_dim];
        let mut weights = vec![0.0; rows * CHUNK];
        for chunk in attention.chunks(&block) {
            let mut next_sums = vec![[0.0; 2]; rows];
            let mut next_outputs = vec![0.0; rows * head_dim];
            let next = Partial {
                sums: &mut next_sums,
                outputs: &mut next_outputs,
            };
            table.attend_chunk(&attention, &block, chunk, page, &mut weights, next);
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

    let mut cache = run.device.cache(page_count, kv_heads, head_dim)?;
    run.device.write_cache(&halves, &mut cache)?;
    let page_table = run.device.page_table(&pages)?;
    let mut scratch = run
        .device
        .upload(&poison(Attend::scratch(heads, head_dim, count, length)))?;
    let mut output = run.device.upload(&poison(x.len()))?;
    let how = Attend {
        heads,
        query_stride: heads * head_dim,
        position,
        length,
        before,
        after,
        scale,
        cap,
    };
    let queries = run.device.upload(&x)?;
    run.device.attend(
        &how,
        &queries,
        count,
        (&cache, &page_table),
        &mut scratch,
        &mut output,
    )?;
    let mut actual = poison(x.len());
    run.device.read(&output, &mut actual)?;
    same(&actual, &expected, || {
        format!("{heads} and {kv_heads} heads of {head_dim}, {how:?}, {count} columns")
    })
}
