//! The stack of a decoder: embedding, layers, output.

use super::hyperparameters::draft_token_ids;
use super::{Attention, Design, FeedForward};
use crate::backend::{Output, Steps};
use crate::models::{Architecture, Shape};
use crate::weights::{Linear, Matrix, RmsNorm, Source, WeightsError};
use std::ops::ControlFlow;

/// A loaded decoder.
#[derive(Debug)]
pub(crate) struct Decoder {
    design: Design,
    embedding: Matrix,
    layers: Vec<(Attention, FeedForward)>,
    norm: RmsNorm,
    output: Linear,
    /// The tokens that its rows are for, if they are not all.
    draft_tokens: Option<Vec<u32>>,
}

impl Decoder {
    /// Takes the tensors that `design` asks for; a file that has others is refused.
    ///
    /// # Errors
    /// If tensors are not what the design says.
    pub(crate) fn load(
        mut source: Source<'_, '_>,
        design: Design,
        architecture: &str,
    ) -> Result<Decoder, WeightsError> {
        let shape = design.shape;
        let embedding = source.matrix("token_embd.weight", shape.vocabulary, shape.embedding)?;
        let mut layers = Vec::new();
        for index in 0..shape.layer_count {
            let attention = Attention::load(&mut source, &design, index)?;
            layers.push((attention, FeedForward::load(&mut source, &design, index)?));
        }
        let norm = RmsNorm::load(
            &mut source,
            "output_norm",
            shape.embedding,
            design.norm_epsilon,
        )?;
        // A file without an output matrix ties it to the embedding.
        let draft_tokens = draft_token_ids(source.gguf(), shape.vocabulary)?;
        let output = if let Some(tokens) = &draft_tokens {
            source.linear("output", tokens.len(), shape.embedding)?
        } else if source.has("output.weight") {
            source.linear("output", shape.vocabulary, shape.embedding)?
        } else {
            Linear {
                matrix: embedding.clone(),
                bias: None,
            }
        };
        source.finish(architecture)?;
        Ok(Decoder {
            design,
            embedding,
            layers,
            norm,
            output,
            draft_tokens,
        })
    }
}

impl Architecture for Decoder {
    fn shape(&self) -> Shape {
        self.design.shape
    }

    fn draft_tokens(&self) -> Option<&[u32]> {
        self.draft_tokens.as_deref()
    }

    fn matrices_mut(&mut self) -> Vec<&mut Matrix> {
        let layers = self.layers.iter_mut();
        let matrices = layers.flat_map(|(attention, feed_forward)| {
            let attention = attention.matrices_mut().into_iter();
            attention.chain(feed_forward.matrices_mut())
        });
        matrices.chain([&mut self.output.matrix]).collect()
    }

    fn forward(&self, pass: &mut dyn Steps) -> ControlFlow<()> {
        let design = &self.design;
        pass.embed(&self.embedding, design.embedding_scale);
        pass.prepare_ropes(&design.ropes);
        for (index, (attention, feed_forward)) in self.layers.iter().enumerate() {
            if pass.is_interrupted() {
                return ControlFlow::Break(());
            }
            let last = index + 1 == self.layers.len();
            if last && pass.has_others() {
                attention.remember(pass, design, index);
                if !pass.keep_outputs() {
                    break;
                }
                pass.prepare_ropes(&design.ropes);
                attention.attend_to_remembered(pass, design, index);
            } else {
                attention.attend(pass, design, index);
            }
            attention.add(pass, design);
            feed_forward.run(pass, design);
        }
        pass.output(&Output {
            norm: &self.norm,
            linear: &self.output,
            scale: design.logit_scale,
            cap: design.logit_cap,
        });
        ControlFlow::Continue(())
    }
}
