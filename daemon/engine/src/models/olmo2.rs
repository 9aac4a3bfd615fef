//! OLMo 2: norms after each part instead of before, and of all queries and all keys of a token; the pairs of a
//! rotation are in halves. OLMo 3 comes by the same name: three of four layers attend to a window, without scaling.

use crate::layer::{Design, Hyperparameters, Norms, QueryKeyNorm, Rope, limits};
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

pub(super) fn design(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
) -> Result<Design, WeightsError> {
    let mut design = Design::usual(keys, source, Pairing::Halves)?;
    let shape = design.shape;
    if design.layers.iter().any(|layer| layer.window.is_some()) {
        let base = keys.positive("rope.freq_base", limits::ROPE_MAX)?;
        let base = f64::from(base.unwrap_or(1e4));
        let local = design.add_rope(Rope::new(Pairing::Halves, base, shape.rope_pairs * 2));
        let windowed = keys.windowed_layers(shape.layer_count, 4)?;
        for (layer, windowed) in design.layers.iter_mut().zip(windowed) {
            if windowed {
                layer.rope = Some(local);
            } else {
                layer.window = None;
            }
        }
    }
    Ok(Design {
        norms: Norms::After,
        query_key_norm: QueryKeyNorm::Whole,
        ..design
    })
}
