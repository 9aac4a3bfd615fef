//! Activations as the matrix products take them: columns of f32, and the same columns quantized to 8 bits.
//!
//! Invariant: column `c` occupies elements `c * k .. (c + 1) * k` of every per-element buffer, and its groups
//! `c * k / GROUP ..` of every per-group buffer; `k` is a multiple of [`GROUP`] wherever quantized weights are used.

use core::ops::Range;

/// Elements that share one activation scale.
pub const GROUP: usize = 32;

/// Borrowed activations of `count` columns of `k` elements.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Elements of a column.
    pub k: usize,
    /// Number of columns.
    pub count: usize,
    /// The columns in f32, read by unquantized weights. May be empty when the weights are quantized.
    pub values: &'a [f32],
    /// The quantized columns, read by quantized weights. May be empty when the weights are not.
    pub quantized: Quantized<'a>,
}

/// What the levels of one group of [`GROUP`] elements have in common, laid out for kernels that load one field of it
/// into every lane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Group {
    /// What a level stands for.
    pub scale: f32,
    /// `scale` times the sum of the levels, rounded: what a minimum of the weights is multiplied with.
    pub scaled_sum: f32,
    /// Minus the sum of the levels: what takes off an offset of the weights' levels.
    pub negated_sum: i32,
    /// Minus the sums of the levels of each half.
    pub negated_half_sums: [i16; 2],
}

impl Group {
    /// The sums of the levels of each half.
    #[must_use]
    pub fn half_sums(&self) -> [i32; 2] {
        self.negated_half_sums.map(|sum| -i32::from(sum))
    }
}

/// Borrowed quantized columns: `level * scale` approximates the value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantized<'a> {
    /// Levels in -127..=127, one per element.
    pub levels: &'a [i8],
    /// One per [`GROUP`] levels.
    pub groups: &'a [Group],
}

/// Mutable counterpart of [`Quantized`] for one or more whole columns.
#[derive(Debug)]
pub struct QuantizedMut<'a> {
    /// Levels, one per element.
    pub levels: &'a mut [i8],
    /// One per [`GROUP`] levels.
    pub groups: &'a mut [Group],
}

impl QuantizedMut<'_> {
    /// The first `elements` elements, which must be whole groups.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn first(&mut self, elements: usize) -> QuantizedMut<'_> {
        QuantizedMut {
            levels: &mut self.levels[..elements],
            groups: &mut self.groups[..elements / GROUP],
        }
    }
}

impl<'a> Columns<'a> {
    /// The columns with indices `range` alone.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn range(&self, range: Range<usize>) -> Columns<'a> {
        assert!(range.start <= range.end && range.end <= self.count);
        // Either form may be missing: whoever reads it checks that it is there.
        let part = |each: usize| each * range.start..each * range.end;
        Columns {
            k: self.k,
            count: range.len(),
            values: self.values.get(part(self.k)).unwrap_or_default(),
            quantized: Quantized {
                levels: self.quantized.levels.get(part(self.k)).unwrap_or_default(),
                groups: self
                    .quantized
                    .groups
                    .get(part(self.k / GROUP))
                    .unwrap_or_default(),
            },
        }
    }

    /// Panics unless the buffers that weights of a quantized (`true`) or unquantized (`false`) format read are whole.
    #[inline]
    pub(crate) fn assert_readable(&self, quantized: bool) {
        let elements = self
            .k
            .checked_mul(self.count)
            .expect("column sizes overflow");
        if quantized {
            assert!(
                self.k.is_multiple_of(GROUP),
                "quantized columns are whole groups"
            );
            assert!(
                self.quantized.levels.len() >= elements,
                "levels cover every column"
            );
            assert!(
                self.quantized.groups.len() >= elements / GROUP,
                "groups cover every column"
            );
        } else {
            assert!(self.values.len() >= elements, "values cover every column");
        }
    }
}
