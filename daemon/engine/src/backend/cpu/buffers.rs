//! The activations of one batch.

use super::attend::{Workspace, WorkspaceSizes};
use super::threads::SCRATCH_ELEMENTS;
use andon_kernels::activation::{Columns, GROUP, Group, Quantized, QuantizedMut};

/// The largest sizes that buffers must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens of a batch.
    pub tokens_max: usize,
    /// Rows of logits that there is room for from the start.
    pub output_rows_max: usize,
    /// Logits of a row.
    pub vocabulary: usize,
    /// Elements of the residual stream.
    pub embedding: usize,
    /// Elements of all query heads.
    pub query: usize,
    /// Elements of all key heads, and of all value heads.
    pub key_value: usize,
    /// Elements between the two matrices of a feed-forward layer.
    pub feed_forward: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Rotated pairs of a head.
    pub rope_pairs: usize,
    /// Rotations that layers choose from.
    pub rope_count: usize,
    /// Positions of a sequence.
    pub context: usize,
}

/// Buffers of a batch; matrices are `[token][element]`.
#[derive(Debug)]
pub(crate) struct Buffers {
    pub(crate) sizes: Sizes,
    /// The residual stream.
    pub(crate) hidden: Vec<f32>,
    /// Input of the matrices, normalized.
    pub(crate) normed: Vec<f32>,
    pub(crate) query: Vec<f32>,
    pub(crate) key: Vec<f32>,
    pub(crate) value: Vec<f32>,
    /// What attention makes of the values.
    pub(crate) attended: Vec<f32>,
    /// Input of the last matrix of a feed-forward part, where that is not quantized.
    pub(crate) gated: Vec<f32>,
    /// Output of a matrix that goes to the residual stream.
    pub(crate) projected: Vec<f32>,
    /// 8-bit form of whichever buffer enters the next matrices.
    pub(crate) levels: Levels,
    /// 8-bit form of what enters the last matrix of a feed-forward part, where that is quantized: it is written while
    /// `levels` are read.
    pub(crate) activated: Levels,
    /// `[rotation][token][pair]` of cosine and sine.
    pub(crate) ropes: Vec<Vec<[f32; 2]>>,
    pub(crate) attention: Workspace,
    /// `[output row][vocabulary]`.
    pub(crate) logits: Vec<f32>,
}

/// Owned quantized columns.
#[derive(Debug)]
pub(crate) struct Levels {
    levels: Vec<i8>,
    groups: Vec<Group>,
}

impl Sizes {
    /// Bytes of the buffers with `threads` threads; `None` if they cannot be counted.
    #[must_use]
    pub fn bytes(&self, threads: usize) -> Option<usize> {
        let groups = |width: usize| {
            // Levels of a byte, and sixteen bytes for every group of them.
            let width = width.checked_next_multiple_of(GROUP)?;
            Some(width.checked_mul(12)?.div_ceil(32))
        };
        let sum = |parts: &[usize]| {
            let mut sum = 0usize;
            for &part in parts {
                sum = sum.checked_add(part)?;
            }
            Some(sum)
        };
        let floats = sum(&[
            self.embedding.checked_mul(3)?,
            self.query.checked_mul(2)?,
            self.key_value.checked_mul(2)?,
            self.feed_forward,
            self.rope_pairs
                .checked_mul(2)?
                .checked_mul(self.rope_count)?,
            groups(self.embedding.max(self.query))?,
            groups(self.feed_forward)?,
        ])?;
        let floats = floats.checked_mul(self.tokens_max)?;
        let floats = floats.checked_add(self.logits()?)?;
        let floats = floats.checked_add(threads.checked_mul(SCRATCH_ELEMENTS)?)?;
        let attention = self.workspace(threads).bytes()?;
        floats.checked_mul(size_of::<f32>())?.checked_add(attention)
    }

    fn logits(&self) -> Option<usize> {
        self.output_rows_max.checked_mul(self.vocabulary)
    }

    fn workspace(&self, threads: usize) -> WorkspaceSizes {
        let heads = |elements: usize| elements / self.head_dim.max(1);
        WorkspaceSizes {
            threads,
            tokens_max: self.tokens_max,
            context: self.context,
            head_count: heads(self.query),
            kv_head_count: heads(self.key_value),
            head_dim: self.head_dim,
        }
    }
}

impl Buffers {
    pub(crate) fn new(sizes: &Sizes, threads: usize) -> Buffers {
        let tokens = sizes.tokens_max;
        Buffers {
            sizes: *sizes,
            hidden: vec![0.0; tokens * sizes.embedding],
            normed: vec![0.0; tokens * sizes.embedding],
            query: vec![0.0; tokens * sizes.query],
            key: vec![0.0; tokens * sizes.key_value],
            value: vec![0.0; tokens * sizes.key_value],
            attended: vec![0.0; tokens * sizes.query],
            gated: vec![0.0; tokens * sizes.feed_forward],
            projected: vec![0.0; tokens * sizes.embedding],
            levels: Levels::new(tokens, sizes.embedding.max(sizes.query)),
            activated: Levels::new(tokens, sizes.feed_forward),
            ropes: vec![vec![[0.0; 2]; tokens * sizes.rope_pairs]; sizes.rope_count],
            attention: Workspace::new(&sizes.workspace(threads)),
            // Pages that no row reaches take no memory.
            logits: Vec::with_capacity(sizes.logits().unwrap_or(0)),
        }
    }
}

impl Levels {
    /// Room for `count` columns of up to `widest` elements.
    pub(crate) fn new(count: usize, widest: usize) -> Levels {
        let elements = count * widest.next_multiple_of(GROUP);
        Levels {
            levels: vec![0; elements],
            groups: vec![Group::default(); elements / GROUP],
        }
    }

    /// Columns of `k` elements for matrices: quantized ones read what was written to [`Levels::pieces`].
    pub(crate) fn columns<'a>(&'a self, values: &'a [f32], k: usize, count: usize) -> Columns<'a> {
        Columns {
            k,
            count,
            values,
            quantized: Quantized {
                levels: &self.levels,
                groups: &self.groups,
            },
        }
    }

    /// `count` columns of `k` elements, to be written. `k` must be whole groups.
    pub(crate) fn first(&mut self, k: usize, count: usize) -> QuantizedMut<'_> {
        QuantizedMut {
            levels: &mut self.levels[..k * count],
            groups: &mut self.groups[..k / GROUP * count],
        }
    }

    /// `columns_each` columns of `k` elements at a time, to be written. `k` must be whole groups.
    pub(crate) fn pieces(
        &mut self,
        k: usize,
        columns_each: usize,
    ) -> impl Iterator<Item = QuantizedMut<'_>> + Send {
        let groups = k / GROUP * columns_each;
        self.levels
            .chunks_mut(groups * GROUP)
            .zip(self.groups.chunks_mut(groups))
            .map(|(levels, groups)| QuantizedMut { levels, groups })
    }
}
