//! Rotary positions.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::slice;

/// Cosines and sines of a sequence's positions, a row of `pairs` for each token.
#[derive(Debug)]
pub(in crate::draft) struct Angles {
    pub(in crate::draft) cosines: Vec<f32>,
    pub(in crate::draft) sines: Vec<f32>,
    pub(in crate::draft) pairs: usize,
    pub(in crate::draft) head_dim: usize,
    /// Whether a pair is two neighbours, or an element of the first half and one of the second.
    pub(in crate::draft) adjacent: bool,
}

struct Rotate {
    angles: Arc<Angles>,
    back: bool,
}

/// Each head of each row turned by the angles of its position.
pub(in crate::draft) fn rotate(x: &Tensor, angles: &Arc<Angles>) -> Result<Tensor> {
    if x.device().is_cpu() {
        let angles = Arc::clone(angles);
        return x.contiguous()?.apply_op1(Rotate {
            angles,
            back: false,
        });
    }
    rotate_composed(x, angles)
}

pub(super) fn rotate_composed(x: &Tensor, angles: &Angles) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let (pairs, dim) = (angles.pairs, angles.head_dim);
    let table = |values: &[f32]| Tensor::from_slice(values, (rows, 1, pairs), x.device());
    let (cosines, sines) = (table(&angles.cosines)?, table(&angles.sines)?);
    let heads = x.reshape((rows, columns / dim, dim))?;
    let turned = heads.narrow(2, 0, 2 * pairs)?;
    let (first, second) = if angles.adjacent {
        let split = turned.reshape((rows, columns / dim, pairs, 2))?;
        (
            split.narrow(3, 0, 1)?.squeeze(3)?,
            split.narrow(3, 1, 1)?.squeeze(3)?,
        )
    } else {
        (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?)
    };
    let a = (first.broadcast_mul(&cosines)? - second.broadcast_mul(&sines)?)?;
    let b = (first.broadcast_mul(&sines)? + second.broadcast_mul(&cosines)?)?;
    let turned = if angles.adjacent {
        Tensor::stack(&[a, b], 3)?.reshape((rows, columns / dim, 2 * pairs))?
    } else {
        Tensor::cat(&[a, b], 2)?
    };
    let rest = heads.narrow(2, 2 * pairs, dim - 2 * pairs)?;
    let all = if dim > 2 * pairs {
        Tensor::cat(&[turned, rest], 2)?
    } else {
        turned
    };
    all.reshape((rows, columns))
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = slice(x, layout)?.to_vec();
        let columns = layout.shape().dims2()?.1;
        let Angles {
            pairs,
            head_dim,
            adjacent,
            ..
        } = *self.angles;
        for (row, token) in out.chunks_exact_mut(columns).enumerate() {
            let range = row * pairs..(row + 1) * pairs;
            let (cosines, sines) = (
                &self.angles.cosines[range.clone()],
                &self.angles.sines[range],
            );
            for head in token.chunks_exact_mut(head_dim) {
                for pair in 0..pairs {
                    let (i, j) = if adjacent {
                        (2 * pair, 2 * pair + 1)
                    } else {
                        (pair, pair + pairs)
                    };
                    let (cos, sin) = (
                        cosines[pair],
                        if self.back { -sines[pair] } else { sines[pair] },
                    );
                    (head[i], head[j]) =
                        (head[i] * cos - head[j] * sin, head[i] * sin + head[j] * cos);
                }
            }
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let back = Rotate {
            angles: Arc::clone(&self.angles),
            back: !self.back,
        };
        gradient.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}
