//! What is particular to each format that has a packed layout.

use crate::activation::GROUP;
use crate::block::{Block, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use core::array::from_fn;

/// The scales that groups of 32 have of their own, beside the f16 scale of their block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupScales {
    /// None: a block is one group.
    None,
    /// One of a byte without sign.
    One,
    /// Two with signs, one for each half of the group.
    Two,
}

/// A format with a packed layout, see [`super`].
pub(crate) trait Packed: Block {
    /// Bits of a level: 4, 5, 6 or 8.
    const BITS: usize;
    /// How far packed levels are shifted up: a power of two, or zero.
    const OFFSET: u32;
    /// Whether weights have a minimum: added where a block is one group, else subtracted.
    const MINIMUM: bool;
    /// Scales of groups.
    const GROUP_SCALES: GroupScales;

    /// The f16 scale of the block.
    fn scale(&self) -> [u8; 2];

    /// The f16 minimum of the block, or factor of its groups' minimums.
    fn minimum(&self) -> [u8; 2] {
        [0; 2]
    }

    /// The scale of group `group`, and its minimum or the scale of its second half.
    fn group_scales(&self, _group: usize) -> [u8; 2] {
        [0; 2]
    }

    /// The levels of group `group`, shifted up by [`Packed::OFFSET`].
    fn unsigned_levels(&self, group: usize) -> [u8; GROUP];
}

/// The halves of bytes: low ones first.
fn nibbles(bytes: &[u8; 16]) -> [u8; GROUP] {
    from_fn(|index| bytes[index % 16] >> (index / 16 * 4) & 15)
}

impl Packed for Q4_0 {
    const BITS: usize = 4;
    const OFFSET: u32 = 8;
    const MINIMUM: bool = false;
    const GROUP_SCALES: GroupScales = GroupScales::None;

    fn scale(&self) -> [u8; 2] {
        self.scale
    }

    fn unsigned_levels(&self, _: usize) -> [u8; GROUP] {
        nibbles(&self.levels)
    }
}

impl Packed for Q4_1 {
    const BITS: usize = 4;
    const OFFSET: u32 = 0;
    const MINIMUM: bool = true;
    const GROUP_SCALES: GroupScales = GroupScales::None;

    fn scale(&self) -> [u8; 2] {
        self.scale
    }

    fn minimum(&self) -> [u8; 2] {
        self.minimum
    }

    fn unsigned_levels(&self, _: usize) -> [u8; GROUP] {
        nibbles(&self.levels)
    }
}

impl Packed for Q5_0 {
    const BITS: usize = 5;
    const OFFSET: u32 = 16;
    const MINIMUM: bool = false;
    const GROUP_SCALES: GroupScales = GroupScales::None;

    fn scale(&self) -> [u8; 2] {
        self.scale
    }

    fn unsigned_levels(&self, _: usize) -> [u8; GROUP] {
        from_fn(|index| self.level(index))
    }
}

impl Packed for Q5_1 {
    const BITS: usize = 5;
    const OFFSET: u32 = 0;
    const MINIMUM: bool = true;
    const GROUP_SCALES: GroupScales = GroupScales::None;

    fn scale(&self) -> [u8; 2] {
        self.scale
    }

    fn minimum(&self) -> [u8; 2] {
        self.minimum
    }

    fn unsigned_levels(&self, _: usize) -> [u8; GROUP] {
        from_fn(|index| self.level(index))
    }
}

impl Packed for Q8_0 {
    const BITS: usize = 8;
    const OFFSET: u32 = 128;
    const MINIMUM: bool = false;
    const GROUP_SCALES: GroupScales = GroupScales::None;

    fn scale(&self) -> [u8; 2] {
        self.scale
    }

    fn unsigned_levels(&self, _: usize) -> [u8; GROUP] {
        from_fn(|index| self.levels[index] as u8 ^ 0x80)
    }
}

impl Packed for Q4K {
    const BITS: usize = 4;
    const OFFSET: u32 = 0;
    const MINIMUM: bool = true;
    const GROUP_SCALES: GroupScales = GroupScales::One;

    fn scale(&self) -> [u8; 2] {
        self.scale
    }

    fn minimum(&self) -> [u8; 2] {
        self.minimum_scale
    }

    fn group_scales(&self, group: usize) -> [u8; 2] {
        let groups = self.groups();
        [groups.scales[group], groups.minimums[group]]
    }

    fn unsigned_levels(&self, group: usize) -> [u8; GROUP] {
        from_fn(|index| self.level(group, index))
    }
}

impl Packed for Q5K {
    const BITS: usize = 5;
    const OFFSET: u32 = 0;
    const MINIMUM: bool = true;
    const GROUP_SCALES: GroupScales = GroupScales::One;

    fn scale(&self) -> [u8; 2] {
        self.scale
    }

    fn minimum(&self) -> [u8; 2] {
        self.minimum_scale
    }

    fn group_scales(&self, group: usize) -> [u8; 2] {
        let groups = self.groups();
        [groups.scales[group], groups.minimums[group]]
    }

    fn unsigned_levels(&self, group: usize) -> [u8; GROUP] {
        from_fn(|index| self.level(group, index))
    }
}

impl Packed for Q6K {
    const BITS: usize = 6;
    const OFFSET: u32 = 32;
    const MINIMUM: bool = false;
    const GROUP_SCALES: GroupScales = GroupScales::Two;

    fn scale(&self) -> [u8; 2] {
        self.scale
    }

    fn group_scales(&self, group: usize) -> [u8; 2] {
        [2 * group, 2 * group + 1].map(|half| self.scales[half] as u8)
    }

    fn unsigned_levels(&self, group: usize) -> [u8; GROUP] {
        from_fn(|index| self.level(group * GROUP + index))
    }
}
