//! The root mean square norm.

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};

use super::{slice, values};

struct RmsNorm {
    epsilon: f32,
}

/// Rows of `x` over the root of their mean square, times `weight`. Rows are as long as `weight`; a row of `x` may hold
/// several of them.
pub(in crate::draft) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op2(weight, RmsNorm { epsilon });
    }
    rms_norm_composed(x, weight, epsilon)
}

pub(super) fn rms_norm_composed(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let shape = x.shape().clone();
    let x = x.reshape(((), weight.elem_count()))?;
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(epsilon))?.sqrt()?;
    x.broadcast_div(&root)?
        .broadcast_mul(weight)?
        .reshape(shape)
}

impl RmsNorm {
    fn inverse_root(&self, row: &[f32]) -> f32 {
        let squares: f32 = row.iter().map(|x| x * x).sum();
        1.0 / (squares / row.len() as f32 + self.epsilon).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(weight.len()) {
            let factor = self.inverse_root(row);
            out.extend(row.iter().zip(weight).map(|(x, w)| x * factor * w));
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x_values, w, g) = (values(x)?, values(weight)?, values(gradient)?);
        let mut of_x = Vec::with_capacity(x_values.len());
        let mut of_weight = vec![0f32; w.len()];
        for (row, g) in x_values.chunks_exact(w.len()).zip(g.chunks_exact(w.len())) {
            let factor = self.inverse_root(row);
            let along: f32 = row.iter().zip(g).zip(&w).map(|((x, g), w)| x * g * w).sum();
            let back = along * factor * factor * factor / w.len() as f32;
            of_x.extend(
                row.iter()
                    .zip(g)
                    .zip(&w)
                    .map(|((x, g), w)| g * w * factor - x * back),
            );
            for (sum, (x, g)) in of_weight.iter_mut().zip(row.iter().zip(g)) {
                *sum += x * factor * g;
            }
        }
        let of_x = Tensor::from_vec(of_x, x.shape(), x.device())?;
        Ok((
            Some(of_x),
            Some(Tensor::from_vec(
                of_weight,
                weight.shape(),
                weight.device(),
            )?),
        ))
    }
}
