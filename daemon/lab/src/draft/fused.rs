//! The steps of a decoder between its matrix products, each with its gradient.
//!
//! On a processor a step is one pass over its elements on the calling thread; made of the library's own elementwise
//! operations it would be five to fifteen passes, which together take longer than the products. On other devices a step
//! is made of these. Invariant: both give the same up to rounding (the tests compare them, and gradients with
//! differences).

mod attention;
mod gated;
mod loss;
mod norm;
mod rotary;

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, bail};

pub(super) use attention::{Attend, Segment, attention};
pub(super) use gated::gated;
pub(super) use loss::{Wanted, cross_entropy};
pub(super) use norm::rms_norm;
pub(super) use rotary::{Angles, rotate};

/// The elements of a contiguous tensor in the processor's memory.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a tensor that is not contiguous")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// A copy of a tensor's elements, in order.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// Hands the elements of a tensor to `work`, without a copy where they are in the processor's memory and in order.
pub(super) fn with_values<T>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> T) -> Result<T> {
    {
        let (storage, layout) = tensor.storage_and_layout();
        if let Storage::Cpu(storage) = &*storage
            && let Ok(slice) = slice(storage, layout)
        {
            return Ok(work(slice));
        }
    }
    Ok(work(&values(tensor)?))
}

/// A product that both run on the same small matrices.
fn matrix(values: Vec<f32>, rows: usize, columns: usize) -> Result<Tensor> {
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::attention::attention_composed;
    use super::loss::cross_entropy_composed;
    use super::norm::rms_norm_composed;
    use super::rotary::rotate_composed;
    use super::*;
    use candle_core::Var;
    use std::sync::Arc;

    /// Values that are all different.
    fn drawn(dims: &[usize], seed: u32) -> Var {
        let count = dims.iter().product::<usize>() as u32;
        let values: Vec<f32> = (0..count)
            .map(|index| ((index * 7 + seed * 13) as f32 * 0.37).sin())
            .collect();
        Var::from_vec(values, dims, &Device::Cpu).expect("a tensor")
    }

    /// That a step in one pass and the same made of the library's operations give the same, and the same gradients.
    fn same(
        inputs: &[Var],
        fused: impl Fn(&[Tensor]) -> Result<Tensor>,
        composed: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let run = |step: &dyn Fn(&[Tensor]) -> Result<Tensor>| -> Result<Vec<Vec<f32>>> {
            let tensors: Vec<Tensor> = inputs.iter().map(|var| var.as_tensor().clone()).collect();
            let out = step(&tensors)?;
            // Each output has a gradient of its own.
            let gradients = (out.clone() * drawn(out.dims(), 5).as_tensor())?
                .sum_all()?
                .backward()?;
            let mut all = vec![values(&out)?];
            for input in inputs {
                all.push(values(gradients.get(input).expect("a gradient"))?);
            }
            Ok(all)
        };
        let (fused, composed) = (
            run(&fused).expect("fused"),
            run(&composed).expect("composed"),
        );
        for (which, (fused, composed)) in fused.iter().zip(&composed).enumerate() {
            assert_eq!(fused.len(), composed.len());
            for (fused, composed) in fused.iter().zip(composed) {
                let bound = 1e-5 + 1e-4 * composed.abs();
                assert!(
                    (fused - composed).abs() < bound,
                    "{which}: {fused} is not {composed}"
                );
            }
        }
    }

    #[test]
    fn norms_are_what_the_library_makes_of_them() {
        let inputs = [drawn(&[5, 12], 1), drawn(&[6], 2)];
        same(
            &inputs,
            |x| rms_norm(&x[0], &x[1], 1e-5),
            |x| rms_norm_composed(&x[0], &x[1], 1e-5),
        );
    }

    #[test]
    fn gates_are_what_the_library_makes_of_them() {
        same(
            &[drawn(&[5, 12], 1), drawn(&[5, 12], 2)],
            |x| gated(&x[0], &x[1]),
            |x| x[0].silu()? * &x[1],
        );
    }

    #[test]
    fn rotations_are_what_the_library_makes_of_them() {
        for (adjacent, pairs) in [(true, 4), (false, 4), (true, 3), (false, 3)] {
            let angle = |index: usize| (index as f32 * 0.7).sin_cos();
            let angles = Arc::new(Angles {
                cosines: (0..5 * pairs).map(|index| angle(index).1).collect(),
                sines: (0..5 * pairs).map(|index| angle(index).0).collect(),
                pairs,
                head_dim: 8,
                adjacent,
            });
            same(
                &[drawn(&[5, 16], 1)],
                |x| rotate(&x[0], &angles),
                |x| rotate_composed(&x[0], &angles),
            );
        }
    }

    #[test]
    fn attention_is_what_the_library_makes_of_it() {
        let segment = |rows, before| Segment { rows, before };
        let attend = Arc::new(Attend {
            segments: vec![
                segment(0..3, 0..0),
                segment(3..7, 0..3),
                segment(7..9, 0..3),
                segment(9..10, 9..9),
            ],
            heads: 4,
            kv_heads: 2,
            head_dim: 4,
        });
        let inputs = [drawn(&[10, 16], 1), drawn(&[10, 8], 2), drawn(&[10, 8], 3)];
        same(
            &inputs,
            |x| attention(&x[0], &x[1], &x[2], &attend),
            |x| attention_composed(&x[0], &x[1], &x[2], &attend),
        );
    }

    #[test]
    fn losses_are_what_the_library_makes_of_them() {
        let wanted = Arc::new(Wanted {
            tokens_per_row: 2,
            tokens: vec![3, 1, 0, 0, 8, 2],
            weights: vec![0.6, 0.4, 0.0, 0.0, 1.0, 0.25],
        });
        same(
            &[drawn(&[3, 9], 1)],
            |x| cross_entropy(&x[0], &wanted),
            |x| cross_entropy_composed(&x[0], &wanted),
        );
    }
}
