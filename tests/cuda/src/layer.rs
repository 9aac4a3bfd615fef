//! Norms and gated units against the processor's.

use crate::Run;
use crate::compare::{poison, same};
use crate::data::{Activations, DRAWS, Draw, Random, scalar, values};
use crate::quantize::compare;
use andon_cuda::{Addition, Gate};
use anyhow::Result;

/// Sizes of hidden states, and of feed-forward units, of supported models.
const SIZES: [usize; 9] = [32, 576, 640, 896, 2048, 4096, 8192, 12288, 14336];

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
                let scale = [1.0, 0.22][random.below(2)];
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
                            *x += added * scale;
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
                    scale,
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
