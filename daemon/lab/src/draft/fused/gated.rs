//! The gate of the feed-forward part (SwiGLU).

use andon_kernels::op::exp::exp;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::{slice, values, with_values};

struct Gated;

/// `silu(gate) * up`.
pub(in crate::draft) fn gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() {
        return gate.apply_op2(up, Gated);
    }
    gate.silu()? * up
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(gate, gate_layout)?, slice(up, up_layout)?);
        let out = gate
            .iter()
            .zip(up)
            .map(|(g, u)| g * sigmoid(*g) * u)
            .collect();
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = values(gradient)?;
        let (of_gate, of_up) = with_values(gate, |gate| {
            with_values(up, |up| {
                let mut of_gate = vec![0f32; gate.len()];
                let mut of_up = vec![0f32; gate.len()];
                let out = of_gate.iter_mut().zip(&mut of_up);
                for ((of_gate, of_up), ((&x, &u), &d)) in
                    out.zip(gate.iter().zip(up).zip(&gradient))
                {
                    let s = sigmoid(x);
                    *of_up = d * x * s;
                    *of_gate = d * u * s * (1.0 + x * (1.0 - s));
                }
                (of_gate, of_up)
            })
        })??;
        let tensor = |values| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((Some(tensor(of_gate)?), Some(tensor(of_up)?)))
    }
}
