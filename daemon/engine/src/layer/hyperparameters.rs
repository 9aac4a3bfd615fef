//! Hyperparameters of a file, each checked against a limit; a failure names its key.

use crate::gguf::{Gguf, Value};
use crate::models::Shape;
use crate::weights::WeightsError;
use std::fmt::Display;

/// Bounds on hyperparameters: an order of magnitude above the largest models.
pub(crate) mod limits {
    pub(crate) const LAYERS_MAX: u32 = 1024;
    pub(crate) const EMBEDDING_MAX: u32 = 1 << 17;
    pub(crate) const HEADS_MAX: u32 = 1024;
    pub(crate) const HEAD_DIM_MAX: u32 = 1024;
    pub(crate) const FEED_FORWARD_MAX: u32 = 1 << 19;
    pub(crate) const CONTEXT_MAX: u32 = 1 << 24;
    pub(crate) const VOCABULARY_MAX: usize = 1 << 22;
    /// Factors by which values are scaled or capped.
    pub(crate) const FACTOR_MAX: f32 = 1e6;
    /// Bases of rotations and factors by which contexts are stretched.
    pub(crate) const ROPE_MAX: f32 = 1e12;
}

/// The error of a hyperparameter out of range.
pub(crate) fn hyperparameter(
    key: impl Display,
    value: impl Display,
    expected: impl Display,
) -> WeightsError {
    WeightsError::Hyperparameter {
        key: key.to_string(),
        value: value.to_string(),
        expected: expected.to_string(),
    }
}

/// The key of a draft whose output has rows for some tokens only: their ids, ascending, one for each row.
pub(crate) const DRAFT_TOKEN_IDS: &str = "andon.draft.token_ids";

/// The tokens that a draft's output has rows for, out of `vocabulary`; `None` if it has one for each.
///
/// # Errors
/// If they are no such tokens, or not in ascending order.
pub(crate) fn draft_token_ids(
    gguf: &Gguf<'_>,
    vocabulary: usize,
) -> Result<Option<Vec<u32>>, WeightsError> {
    if gguf.get(DRAFT_TOKEN_IDS).is_none() {
        return Ok(None);
    }
    let array = gguf.array(DRAFT_TOKEN_IDS)?;
    if !(1..=vocabulary).contains(&array.len()) {
        let expected = format!("between 1 and the {vocabulary} tokens of the vocabulary");
        let value = format!("a list of {}", array.len());
        return Err(hyperparameter(DRAFT_TOKEN_IDS, value, expected));
    }
    let Some(numbers) = array.numbers::<u32>() else {
        let value = format!("{array:?}");
        return Err(hyperparameter(DRAFT_TOKEN_IDS, value, "a list of u32"));
    };
    let mut ids = Vec::with_capacity(numbers.len());
    for (index, id) in numbers.enumerate() {
        let key = || format!("{DRAFT_TOKEN_IDS}[{index}]");
        if id as usize >= vocabulary {
            let expected = format!("one of the {vocabulary} tokens of the vocabulary");
            return Err(hyperparameter(key(), id, expected));
        }
        if let Some(&before) = ids.last()
            && id <= before
        {
            let expected = format!("more than {before} before it");
            return Err(hyperparameter(key(), id, expected));
        }
        ids.push(id);
    }
    Ok(Some(ids))
}

/// The hyperparameters of a file, whose keys begin with the name of its architecture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hyperparameters<'a, 'g> {
    gguf: &'g Gguf<'a>,
    architecture: &'a str,
}

impl<'a, 'g> Hyperparameters<'a, 'g> {
    /// Those of a parsed file.
    ///
    /// # Errors
    /// If the file does not name its architecture, or has experts, which nothing here runs.
    pub(crate) fn new(gguf: &'g Gguf<'a>) -> Result<Hyperparameters<'a, 'g>, WeightsError> {
        let keys = Hyperparameters {
            gguf,
            architecture: gguf.str("general.architecture")?,
        };
        let key = keys.key("expert_count");
        match gguf.u32_or(&key, 0)? {
            0 => Ok(keys),
            experts => Err(WeightsError::Unsupported {
                what: format!("a mixture of experts (`{key}` is {experts})"),
            }),
        }
    }

    /// What the file calls its architecture.
    pub(crate) fn architecture(&self) -> &'a str {
        self.architecture
    }

    /// The file.
    pub(crate) fn gguf(&self) -> &'g Gguf<'a> {
        self.gguf
    }

    /// The whole key of `name`.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// A count in `1..=max`. A list of one value for each layer is taken if they are all equal.
    pub(crate) fn count(&self, name: &str, max: u32) -> Result<usize, WeightsError> {
        let key = self.key(name);
        let value = match self.gguf.get(&key) {
            Some(Value::Array(array)) => {
                let mut values = array.integers().into_iter().flatten();
                let first = values.next().unwrap_or_default();
                if values.any(|value| value != first) {
                    return Err(WeightsError::Unsupported {
                        what: format!("`{key}` that differs from layer to layer"),
                    });
                }
                u32::try_from(first).unwrap_or_default()
            }
            _ => self.gguf.u32(&key)?,
        };
        if value == 0 || value > max {
            return Err(hyperparameter(key, value, format!("between 1 and {max}")));
        }
        Ok(value as usize)
    }

    /// [`Hyperparameters::count`] of a key that may be missing, or zero for the same meaning.
    pub(crate) fn optional_count(
        &self,
        name: &str,
        max: u32,
    ) -> Result<Option<usize>, WeightsError> {
        match self.gguf.get(&self.key(name)) {
            None => Ok(None),
            Some(value) if value.as_integer() == Some(0) => Ok(None),
            Some(_) => self.count(name, max).map(Some),
        }
    }

    /// A positive number up to `max`; `None` if the key is missing or its value zero, which files use for "not there".
    pub(crate) fn positive(&self, name: &str, max: f32) -> Result<Option<f32>, WeightsError> {
        let key = self.key(name);
        if self.gguf.get(&key).is_none() {
            return Ok(None);
        }
        let value = self.gguf.f32(&key)?;
        if value == 0.0 {
            return Ok(None);
        }
        // Below the reciprocal, dividing by it would leave the range too.
        if value < 1.0 / max || value > max {
            let expected = format!("positive and at most {max}");
            return Err(hyperparameter(key, value, expected));
        }
        Ok(Some(value))
    }

    /// What is added to the mean square of a norm.
    pub(crate) fn norm_epsilon(&self) -> Result<f32, WeightsError> {
        let key = self.key("attention.layer_norm_rms_epsilon");
        let epsilon = self.gguf.f32(&key)?;
        if epsilon > 0.0 && epsilon < 1.0 {
            Ok(epsilon)
        } else {
            Err(hyperparameter(key, epsilon, "between 0 and 1"))
        }
    }

    /// Which layers attend to a window only: a list of one truth value for each, or the period of a pattern whose
    /// last layer attends to everything (zero: none does), or that pattern with `period` if the file has neither.
    pub(crate) fn windowed_layers(
        &self,
        layer_count: usize,
        period: u32,
    ) -> Result<Vec<bool>, WeightsError> {
        let key = self.key("attention.sliding_window_pattern");
        if let Some(Value::Array(array)) = self.gguf.get(&key) {
            let layers: Vec<bool> = if let Some(bools) = array.bools() {
                bools.take(layer_count).collect()
            } else {
                let integers = array.integers().into_iter().flatten();
                integers.take(layer_count).map(|value| value != 0).collect()
            };
            if layers.len() < layer_count {
                let expected = format!("one for each of {layer_count} layers");
                return Err(hyperparameter(
                    key,
                    format!("{} values", array.len()),
                    expected,
                ));
            }
            return Ok(layers);
        }
        let period = self.gguf.u32_or(&key, period)? as usize;
        Ok((0..layer_count)
            .map(|layer| period == 0 || layer % period < period - 1)
            .collect())
    }

    /// The sizes of a decoder.
    pub(crate) fn shape(&self) -> Result<Shape, WeightsError> {
        let embedding = self.count("embedding_length", limits::EMBEDDING_MAX)?;
        let head_count = self.count("attention.head_count", limits::HEADS_MAX)?;
        let kv_head_count = self
            .optional_count("attention.head_count_kv", limits::HEADS_MAX)?
            .unwrap_or(head_count);
        if !head_count.is_multiple_of(kv_head_count) {
            let expected = format!("a divisor of the {head_count} heads");
            let key = self.key("attention.head_count_kv");
            return Err(hyperparameter(key, kv_head_count, expected));
        }
        let head_dim = match self.optional_count("attention.key_length", limits::HEAD_DIM_MAX)? {
            Some(head_dim) => head_dim,
            None if embedding.is_multiple_of(head_count)
                && embedding / head_count <= limits::HEAD_DIM_MAX as usize =>
            {
                embedding / head_count
            }
            None => {
                let expected = format!("a divisor of the embedding length {embedding}");
                let key = self.key("attention.head_count");
                return Err(hyperparameter(key, head_count, expected));
            }
        };
        let value_dim = self.optional_count("attention.value_length", limits::HEAD_DIM_MAX)?;
        if let Some(value_dim) = value_dim.filter(|&dim| dim != head_dim) {
            let key = self.key("attention.value_length");
            let expected = format!("the key length {head_dim}");
            return Err(hyperparameter(key, value_dim, expected));
        }
        let rope_key = self.key("rope.dimension_count");
        let rope_dims = self.gguf.u32_or(&rope_key, head_dim as u32)? as usize;
        if rope_dims == 0 || rope_dims > head_dim || rope_dims % 2 == 1 {
            let expected = format!("even and between 2 and the head's {head_dim}");
            return Err(hyperparameter(rope_key, rope_dims, expected));
        }
        let vocabulary = match self.gguf.tensor("token_embd.weight") {
            Some(tensor) => tensor.dims.row_count(),
            None => {
                return Err(WeightsError::Missing {
                    name: "token_embd.weight".to_owned(),
                });
            }
        };
        if vocabulary > limits::VOCABULARY_MAX {
            let expected = format!("at most {} rows", limits::VOCABULARY_MAX);
            return Err(hyperparameter("token_embd.weight", vocabulary, expected));
        }
        Ok(Shape {
            layer_count: self.count("block_count", limits::LAYERS_MAX)?,
            embedding,
            head_count,
            kv_head_count,
            head_dim,
            feed_forward: self.count("feed_forward_length", limits::FEED_FORWARD_MAX)?,
            rope_pairs: rope_dims / 2,
            rope_count: 1,
            vocabulary,
            context: self.count("context_length", limits::CONTEXT_MAX)?,
        })
    }
}
