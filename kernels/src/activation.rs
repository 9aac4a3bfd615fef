//! Activations as the matrix products take them: columns of f32, and the same columns quantized to 8 bits.
//!
//! Invariant: column `c` occupies elements `c * k .. (c + 1) * k` of every per-element buffer, and its groups
//! `c * k / GROUP ..` of every per-group buffer; `k` is a multiple of [`GROUP`] wherever quantized weights are used.

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

/// Borrowed quantized columns: `level * scale` approximates the value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantized<'a> {
    /// Levels in -127..=127, one per element.
    pub levels: &'a [i8],
    /// One scale per [`GROUP`].
    pub scales: &'a [f32],
    /// Sums of the levels of each half group: two per [`GROUP`].
    pub sums: &'a [i32],
}

/// Mutable counterpart of [`Quantized`] for one or more whole columns.
#[derive(Debug)]
pub struct QuantizedMut<'a> {
    /// Levels, one per element.
    pub levels: &'a mut [i8],
    /// One scale per [`GROUP`].
    pub scales: &'a mut [f32],
    /// Two sums per [`GROUP`].
    pub sums: &'a mut [i32],
}

impl QuantizedMut<'_> {
    /// The first `elements` elements, which must be whole groups.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn first(&mut self, elements: usize) -> QuantizedMut<'_> {
        let groups = elements / GROUP;
        QuantizedMut {
            levels: &mut self.levels[..elements],
            scales: &mut self.scales[..groups],
            sums: &mut self.sums[..2 * groups],
        }
    }
}

impl Columns<'_> {
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
                self.quantized.scales.len() >= elements / GROUP,
                "scales cover every column"
            );
            assert!(
                self.quantized.sums.len() >= elements / GROUP * 2,
                "sums cover every column"
            );
        } else {
            assert!(self.values.len() >= elements, "values cover every column");
        }
    }
}
