//! What is particular to an architecture, as a value: a model file takes the usual and changes what differs.

use super::hyperparameters::Hyperparameters;
use super::rope::{Rope, read_rope};
use crate::backend::{Activation, Temperature};
use crate::models::Shape;
use crate::weights::{Source, WeightsError};
use andon_kernels::op::rope::Pairing;

/// Where a layer normalizes around its attention and its feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norms {
    /// What goes in.
    Before,
    /// What comes out, before it is added to the residual stream.
    After,
    /// Both.
    BeforeAndAfter,
}

impl Norms {
    pub(super) fn before(self) -> bool {
        self != Norms::After
    }

    pub(super) fn after(self) -> bool {
        self != Norms::Before
    }
}

/// What is normalized of queries and keys before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryKeyNorm {
    /// Nothing.
    None,
    /// Each head by itself.
    Heads,
    /// All heads of a token together.
    Whole,
}

/// What a layer does with positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerDesign {
    /// Which of the design's rotations it uses; `None` for none.
    pub(crate) rope: Option<usize>,
    /// How many positions it attends to, its own and those before; `None` for all.
    pub(crate) window: Option<usize>,
}

/// A decoder of alternating attention and gated feed-forward parts.
#[derive(Clone, Debug)]
pub(crate) struct Design {
    /// Its sizes.
    pub(crate) shape: Shape,
    /// Added to the mean square in every norm.
    pub(crate) norm_epsilon: f32,
    /// Where layers normalize.
    pub(crate) norms: Norms,
    /// What is normalized of queries and keys.
    pub(crate) query_key_norm: QueryKeyNorm,
    /// Between the matrices of the feed-forward parts.
    pub(crate) activation: Activation,
    /// Factor of the embedding.
    pub(crate) embedding_scale: f32,
    /// Factor of the scores.
    pub(crate) attention_scale: f32,
    /// Bound that scores are kept within.
    pub(crate) attention_cap: Option<f32>,
    /// How queries grow with their position.
    pub(crate) temperature: Option<Temperature>,
    /// Factor of what goes to the residual stream.
    pub(crate) residual_scale: f32,
    /// Factor of the logits.
    pub(crate) logit_scale: f32,
    /// Bound that logits are kept within.
    pub(crate) logit_cap: Option<f32>,
    /// Rotations that layers choose from.
    pub(crate) ropes: Vec<Rope>,
    /// One for each layer.
    pub(crate) layers: Vec<LayerDesign>,
}

impl Design {
    /// The usual: RMS norms before each part, SwiGLU, every layer rotated alike and attending to everything or, if the
    /// file names a window, to that.
    ///
    /// # Errors
    /// If a hyperparameter is missing or out of range.
    pub(crate) fn usual(
        keys: &Hyperparameters<'_, '_>,
        source: &mut Source<'_, '_>,
        pairing: Pairing,
    ) -> Result<Design, WeightsError> {
        let shape = keys.shape()?;
        let layer = LayerDesign {
            rope: Some(0),
            window: keys.optional_count("attention.sliding_window", u32::MAX)?,
        };
        Ok(Design {
            shape,
            norm_epsilon: keys.norm_epsilon()?,
            norms: Norms::Before,
            query_key_norm: QueryKeyNorm::None,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            attention_scale: 1.0 / (shape.head_dim as f32).sqrt(),
            attention_cap: None,
            temperature: None,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: None,
            ropes: vec![read_rope(keys, source, &shape, pairing)?],
            layers: vec![layer; shape.layer_count],
        })
    }

    /// Adds a rotation for layers to choose and returns its index.
    pub(crate) fn add_rope(&mut self, rope: Rope) -> usize {
        self.ropes.push(rope);
        self.shape.rope_count = self.ropes.len();
        self.ropes.len() - 1
    }
}
