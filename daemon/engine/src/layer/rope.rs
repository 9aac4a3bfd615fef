//! How positions turn queries and keys, and the ways in which files stretch that to longer contexts.

use super::hyperparameters::{Hyperparameters, hyperparameter, limits};
use crate::models::Shape;
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;
use std::f64::consts::PI;

/// How positions are rotated.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Which elements of a head belong together.
    pub pairing: Pairing,
    /// Angle per position of each pair, in radians.
    pub frequencies: Vec<f64>,
    /// Frequencies of longer contexts.
    pub stretch: Option<Stretch>,
    /// Factor of every cosine and sine.
    pub magnitude: f64,
}

/// Other frequencies for where more than some number of positions is served. They are chosen by the context that is
/// served and not by a sequence's length, since keys in the cache cannot be rotated again.
#[derive(Debug, Clone, PartialEq)]
pub struct Stretch {
    /// Positions up to which the other frequencies are not needed.
    pub beyond: usize,
    /// Angle per position of each pair, in radians.
    pub frequencies: Vec<f64>,
}

impl Rope {
    /// The usual frequencies: `base ^ (-2 i / dims)` for pair `i` of `dims / 2`.
    #[must_use]
    pub fn new(pairing: Pairing, base: f64, dims: usize) -> Rope {
        let frequency = |pair: usize| libm::pow(base, -((2 * pair) as f64) / dims as f64);
        Rope {
            pairing,
            frequencies: (0..dims / 2).map(frequency).collect(),
            stretch: None,
            magnitude: 1.0,
        }
    }

    /// Cosine and sine of each pair at a position, where `context` positions are served.
    pub(crate) fn rotations(
        &self,
        position: usize,
        context: usize,
    ) -> impl Iterator<Item = [f32; 2]> {
        self.frequencies_for(context).iter().map(move |frequency| {
            let (sin, cos) = libm::sincos(position as f64 * frequency);
            [(cos * self.magnitude) as f32, (sin * self.magnitude) as f32]
        })
    }

    /// The frequencies where `context` positions are served.
    #[must_use]
    pub fn frequencies_for(&self, context: usize) -> &[f64] {
        match &self.stretch {
            Some(stretch) if context > stretch.beyond => &stretch.frequencies,
            _ => &self.frequencies,
        }
    }
}

/// The rotations that a file describes: a base, a scaling by name, and factors by which each pair's frequency is
/// divided (`rope_freqs.weight`, or one list up to the original context and one beyond it).
///
/// # Errors
/// If a scaling has another name, or a number is out of range.
pub(crate) fn read_rope(
    keys: &Hyperparameters<'_, '_>,
    source: &mut Source<'_, '_>,
    shape: &Shape,
    pairing: Pairing,
) -> Result<Rope, WeightsError> {
    let base_key = "rope.freq_base";
    let base = keys.positive(base_key, limits::ROPE_MAX)?.unwrap_or(1e4);
    if base <= 1.0 {
        return Err(hyperparameter(keys.key(base_key), base, "more than 1"));
    }
    let base = f64::from(base);
    let mut rope = Rope::new(pairing, base, shape.rope_pairs * 2);
    let scaling_key = keys.key("rope.scaling.type");
    let scaling = keys.gguf().str_or(&scaling_key, "linear")?;
    let factor = match keys.positive("rope.scaling.factor", limits::ROPE_MAX)? {
        None => keys.positive("rope.scale_linear", limits::ROPE_MAX)?,
        factor => factor,
    };
    let factor = f64::from(factor.unwrap_or(1.0));
    let original = keys
        .optional_count("rope.scaling.original_context_length", limits::CONTEXT_MAX)?
        .unwrap_or(shape.context);
    match scaling {
        "none" => {}
        "linear" | "longrope" => {
            for frequency in &mut rope.frequencies {
                *frequency /= factor;
            }
        }
        "yarn" => yarn(&mut rope, keys, base, factor, original)?,
        other => {
            let expected = "one of none, linear, yarn, longrope";
            return Err(hyperparameter(scaling_key, other, expected));
        }
    }
    let attention_factor = keys.positive("rope.scaling.attn_factor", limits::FACTOR_MAX)?;
    rope.magnitude *= f64::from(attention_factor.unwrap_or(1.0));
    if source.has("rope_freqs.weight") {
        rope.frequencies = divided(source, "rope_freqs.weight", &rope.frequencies)?;
    } else if source.has("rope_factors_long.weight") || source.has("rope_factors_short.weight") {
        rope.stretch = Some(Stretch {
            beyond: original,
            frequencies: divided(source, "rope_factors_long.weight", &rope.frequencies)?,
        });
        rope.frequencies = divided(source, "rope_factors_short.weight", &rope.frequencies)?;
    }
    Ok(rope)
}

/// Frequencies divided by the factors of a tensor.
fn divided(
    source: &mut Source<'_, '_>,
    name: &str,
    frequencies: &[f64],
) -> Result<Vec<f64>, WeightsError> {
    let factors = source.vector(name, frequencies.len())?;
    let divide = |(&frequency, factor): (&f64, f32)| {
        if factor.is_finite() && factor > 0.0 {
            Ok(frequency / f64::from(factor))
        } else {
            Err(hyperparameter(name, factor, "positive factors"))
        }
    };
    frequencies.iter().zip(factors).map(divide).collect()
}

/// YaRN (Peng and others, 2023): pairs that turn often within the original context keep their frequency, those that
/// turn less than once are interpolated by `factor`, those between are mixed along a ramp; and cosines and sines grow
/// by `1 + 0.1 ln factor`.
fn yarn(
    rope: &mut Rope,
    keys: &Hyperparameters<'_, '_>,
    base: f64,
    factor: f64,
    original: usize,
) -> Result<(), WeightsError> {
    let dims = (rope.frequencies.len() * 2) as f64;
    let read = |name: &str, default: f64| -> Result<f64, WeightsError> {
        let value = keys.positive(&format!("rope.scaling.{name}"), limits::FACTOR_MAX)?;
        Ok(value.map_or(default, f64::from))
    };
    // The pair that turns `turns` times within the original context.
    let pair_of = |turns: f64| {
        dims * libm::log(original as f64 / (turns * 2.0 * PI)) / (2.0 * libm::log(base))
    };
    let low = libm::floor(pair_of(read("yarn_beta_fast", 32.0)?)).max(0.0);
    let high = libm::ceil(pair_of(read("yarn_beta_slow", 1.0)?)).min(dims - 1.0);
    for (pair, frequency) in rope.frequencies.iter_mut().enumerate() {
        let ramp = (pair as f64 - low) / (high - low).max(0.001);
        let kept = 1.0 - ramp.clamp(0.0, 1.0);
        *frequency = *frequency / factor * (1.0 - kept) + *frequency * kept;
    }
    let growth = |scale: f64| {
        if factor > 1.0 {
            1.0 + 0.1 * scale * libm::log(factor)
        } else {
            1.0
        }
    };
    let all_dims = keys.positive("rope.scaling.yarn_log_multiplier", limits::FACTOR_MAX)?;
    rope.magnitude = growth(1.0) / all_dims.map_or(1.0, |scale| growth(f64::from(scale)));
    Ok(())
}
