//! The best tokens, against a sort.

use crate::Run;
use crate::data::Random;
use andon_cuda::LOGIT_MAX;
use anyhow::{Result, ensure};

pub(crate) fn check(run: &Run<'_>) -> Result<String> {
    let mut random = Random(run.seed);
    let mut cases = 0;
    let large: &[usize] = if run.small {
        &[]
    } else {
        &[49_152, 128_256, 262_144]
    };
    for &tokens in [1, 2, 31, 1024, 2047, 2048, 2049, 5000].iter().chain(large) {
        for k in [1, 2, 40, 200, 1024] {
            if k > tokens {
                continue;
            }
            let count = 1 + random.below(4);
            let stride = tokens + random.below(3);
            // Few different values, so that many are equal; zeros of both signs among them.
            let few = random.below(2) == 0;
            let mut logits: Vec<f32> = (0..count * stride)
                .map(|_| {
                    let value = 30.0 * random.unit();
                    if few { (value / 10.0).trunc() } else { value }
                })
                .collect();
            let broken = (random.below(3) == 0).then(|| random.below(count));
            if let Some(column) = broken {
                let at = column * stride + random.below(tokens);
                logits[at] =
                    [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -LOGIT_MAX][random.below(4)];
            }
            let mut top = run.device.top_k(tokens, count, k)?;
            let device_logits = run.device.upload(&logits)?;
            run.device
                .find_top_k(&device_logits, stride, count, &mut top)?;
            let found = run.device.read_top_k(&mut top, count)?;
            for (column, found) in found.into_iter().enumerate() {
                let what = format!("column {column} of {count}, {k} of {tokens} tokens");
                ensure!(
                    found.is_none() == (broken == Some(column)),
                    "{what}: faults"
                );
                let Some(found) = found else { continue };
                let mut expected: Vec<(u32, f32)> = logits[column * stride..][..tokens]
                    .iter()
                    .enumerate()
                    .map(|(token, &logit)| (token as u32, logit))
                    .collect();
                expected.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("finite").then(a.0.cmp(&b.0)));
                expected.truncate(k);
                ensure!(found == expected, "{what}: {found:?} for {expected:?}");
            }
            cases += 1;
        }
    }
    Ok(format!("{cases} cases are what a sort gives"))
}
