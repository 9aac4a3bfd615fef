//! Tensor element formats: their names, GGUF type ids and block sizes.
//!
//! Invariant: a format listed here has a block type in [`crate::block`] and kernels in every [`crate::Table`].

/// Storage format of a tensor. Quantized formats store blocks of consecutive elements of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// 32 elements: f16 scale, 4-bit levels offset by 8.
    Q4_0,
    /// 32 elements: f16 scale and minimum, 4-bit levels.
    Q4_1,
    /// 32 elements: f16 scale, 5-bit levels offset by 16.
    Q5_0,
    /// 32 elements: f16 scale and minimum, 5-bit levels.
    Q5_1,
    /// 32 elements: f16 scale, signed 8-bit levels.
    Q8_0,
    /// 256 elements: sixteen groups of 16 with 4-bit scales and minimums, 2-bit levels.
    Q2K,
    /// 256 elements: sixteen groups of 16 with 6-bit scales, 3-bit levels offset by 4.
    Q3K,
    /// 256 elements: eight groups of 32 with 6-bit scales and minimums, 4-bit levels.
    Q4K,
    /// 256 elements: eight groups of 32 with 6-bit scales and minimums, 5-bit levels.
    Q5K,
    /// 256 elements: sixteen groups of 16 with 8-bit scales, 6-bit levels offset by 32.
    Q6K,
    /// 32 elements: f16 scale, 4-bit indices into a table of levels.
    IQ4NL,
    /// 256 elements: eight groups of 32 with 6-bit scales, 4-bit indices into a table of levels.
    IQ4XS,
    /// 32 elements: a power of two as scale, 4-bit floats.
    MXFP4,
}

impl Format {
    /// Every format, in the order of the kernel tables.
    pub const ALL: [Format; 16] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::IQ4NL,
        Format::IQ4XS,
        Format::MXFP4,
    ];

    /// The format of a GGUF tensor type id; `None` for ids without kernels here.
    #[must_use]
    pub const fn from_ggml(id: u32) -> Option<Format> {
        let mut index = 0;
        while index < Format::ALL.len() {
            if Format::ALL[index].ggml_id() == id {
                return Some(Format::ALL[index]);
            }
            index += 1;
        }
        None
    }

    /// The GGUF tensor type id.
    #[must_use]
    pub const fn ggml_id(self) -> u32 {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Q4_0 => 2,
            Format::Q4_1 => 3,
            Format::Q5_0 => 6,
            Format::Q5_1 => 7,
            Format::Q8_0 => 8,
            Format::Q2K => 10,
            Format::Q3K => 11,
            Format::Q4K => 12,
            Format::Q5K => 13,
            Format::Q6K => 14,
            Format::IQ4NL => 20,
            Format::IQ4XS => 23,
            Format::BF16 => 30,
            Format::MXFP4 => 39,
        }
    }

    /// Elements in one block; rows are whole blocks.
    #[must_use]
    pub const fn block_elements(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q4_0
            | Format::Q4_1
            | Format::Q5_0
            | Format::Q5_1
            | Format::Q8_0
            | Format::IQ4NL
            | Format::MXFP4 => 32,
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K | Format::IQ4XS => {
                256
            }
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q4_0 | Format::IQ4NL => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q2K => 84,
            Format::Q3K => 110,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
            Format::IQ4XS => 136,
            Format::MXFP4 => 17,
        }
    }

    /// Bytes of `elements` consecutive elements; `None` if they are not whole blocks or the size overflows.
    #[must_use]
    pub const fn bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// The name used in GGUF file names and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Q8_0 => "Q8_0",
            Format::Q2K => "Q2_K",
            Format::Q3K => "Q3_K",
            Format::Q4K => "Q4_K",
            Format::Q5K => "Q5_K",
            Format::Q6K => "Q6_K",
            Format::IQ4NL => "IQ4_NL",
            Format::IQ4XS => "IQ4_XS",
            Format::MXFP4 => "MXFP4",
        }
    }

    /// Whether products run on integers: such weights meet activations quantized to 8 bits.
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        !matches!(self, Format::F32 | Format::F16 | Format::BF16)
    }
}
