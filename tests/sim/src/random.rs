//! Numbers that are the same for the same seed, on every machine.

/// A source of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number (SplitMix64).
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number from `from` to `to`, both included.
    pub const fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// A number from `from` to `to`, small ones as often as large ones of many times their size.
    pub fn spread(&mut self, from: u64, to: u64) -> u64 {
        let bits = u64::from((to / from.max(1)).max(1).ilog2());
        let top = from.max(1) << self.within(0, bits);
        self.within(top.min(to), (top * 2).min(to))
    }

    /// True once in `count` times.
    pub const fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// A pause whose mean is `mean`: mostly short, sometimes long.
    pub fn pause(&mut self, mean: u64) -> u64 {
        // A geometric distribution in eighths of the mean, close to the exponential one.
        let mut eighths = 0;
        while eighths < 80 && !self.one_in(9) {
            eighths += 1;
        }
        (mean / 8).max(1) * eighths + self.below((mean / 8).max(1))
    }
}
