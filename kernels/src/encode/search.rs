//! Fitting a grid of levels to values: the scales under which rounding loses least.
//!
//! For given levels the best scale (and offset) is a weighted least-squares solution; for a given scale the best level
//! of a value is the nearest. Searches start from several scales, since the two steps in turn find only the nearest
//! minimum, and end on scales that can be stored. Sums are f64: no finite f32 overflows them, even squared twice.

use half::f16;

/// Rounds of fitting levels and scales in turn. Most blocks settle after two.
const ROUNDS: usize = 4;

/// The levels of a format.
#[derive(Clone, Copy)]
pub(super) struct Levels {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Levels {
    /// The level nearest to `value`.
    #[inline]
    pub(super) fn nearest(self, value: f64) -> f64 {
        // Above this, doubles are whole numbers: adding it rounds.
        const WHOLE: f64 = 6_755_399_441_055_744.0;
        (value.clamp(self.low, self.high) + WHOLE) - WHOLE
    }
}

/// What to multiply by instead of dividing by `scale`; a scale of zero has only level zero.
#[inline]
pub(super) fn inverse(scale: f64) -> f64 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The f16 nearest to `value`; beyond the largest, the largest: an infinite scale would make every value infinite.
pub(super) fn stored(value: f64) -> f16 {
    let most = f64::from(f16::MAX);
    f16::from_f64(value.clamp(-most, most))
}

/// A stored scale and the ones next to it: the best is not always the nearest to the real solution.
pub(super) fn around(value: f64) -> [f16; 3] {
    let nearest = stored(value);
    let (sign, size) = (nearest.to_bits() & 0x8000, nearest.to_bits() & 0x7fff);
    let at = |size: u16| f16::from_bits(sign | size.min(f16::MAX.to_bits()));
    [nearest, at(size.saturating_sub(1)), at(size + 1)]
}

/// The value farthest from zero, with its sign.
pub(super) fn farthest(x: &[f64]) -> f64 {
    x.iter()
        .fold(0.0, |far, &x| if x.abs() > f64::abs(far) { x } else { far })
}

/// Least and greatest value.
pub(super) fn extent(x: &[f64]) -> (f64, f64) {
    x.iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &x| {
            (least.min(x), most.max(x))
        })
}

/// Squared error of `x` on a grid, weighted by `w`.
#[inline]
pub(super) fn error<const N: usize>(
    x: &[f64; N],
    w: &[f64; N],
    levels: Levels,
    scale: f64,
    offset: f64,
) -> f64 {
    let inverse = inverse(scale);
    let mut sum = 0.0;
    for (&x, &w) in x.iter().zip(w) {
        let lost = scale * levels.nearest((x - offset) * inverse) + offset - x;
        sum += w * lost * lost;
    }
    sum
}

/// The real scale without offset that loses least, from starts at which the value farthest from zero is at each
/// of `places`.
pub(super) fn scale<const N: usize>(
    x: &[f64; N],
    w: &[f64; N],
    levels: Levels,
    places: impl Iterator<Item = f64>,
) -> f64 {
    // With the best scale for its levels, what is lost is `sum(w x^2) - gain`.
    let fit = |scale: f64| {
        let inverse = inverse(scale);
        let (mut xl, mut ll) = (0.0, 0.0);
        for (&x, &w) in x.iter().zip(w) {
            let level = levels.nearest(x * inverse);
            xl += w * x * level;
            ll += w * level * level;
        }
        if ll > 0.0 {
            (xl * xl / ll, xl / ll)
        } else {
            (0.0, 0.0)
        }
    };
    let far = farthest(x);
    let mut best = (0.0, 0.0);
    for place in places {
        let found = fit(far / place);
        if found.0 > best.0 {
            best = found;
        }
    }
    for _ in 0..ROUNDS {
        let found = fit(best.1);
        if found.0 <= best.0 {
            break;
        }
        best = found;
    }
    best.1
}

/// Scale and offset that lose least with the levels that `(scale, offset)` gives, and what is lost. The offset is
/// at most `ceiling`.
fn refit<const N: usize>(
    x: &[f64; N],
    w: &[f64; N],
    levels: Levels,
    (scale, offset): (f64, f64),
    ceiling: f64,
) -> (f64, (f64, f64)) {
    let inverse = inverse(scale);
    let (mut sw, mut sx, mut sl, mut sxl, mut sll, mut sxx) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for (&x, &w) in x.iter().zip(w) {
        let level = levels.nearest((x - offset) * inverse);
        sw += w;
        sx += w * x;
        sl += w * level;
        sxl += w * x * level;
        sll += w * level * level;
        sxx += w * x * x;
    }
    let determinant = sw * sll - sl * sl;
    let (mut scale, mut offset) = if determinant > 0.0 {
        (
            (sw * sxl - sx * sl) / determinant,
            (sll * sx - sl * sxl) / determinant,
        )
    } else {
        (0.0, sx * self::inverse(sw))
    };
    if offset > ceiling {
        offset = ceiling;
        scale = (sxl - offset * sl) * self::inverse(sll);
    }
    let lost = sxx - 2.0 * (scale * sxl + offset * sx - scale * offset * sl)
        + scale * scale * sll
        + offset * offset * sw;
    (lost, (scale, offset))
}

/// The real scale and offset that lose least. Starts put the least and the greatest value a little inside or outside
/// of the levels. The offset is at most `ceiling`.
pub(super) fn scale_and_offset<const N: usize>(
    x: &[f64; N],
    w: &[f64; N],
    levels: Levels,
    ceiling: f64,
) -> (f64, f64) {
    /// Shares of the range that a start cuts off at an end; negative ones add to it. The range of values that were
    /// decoded may be a level or two less than the grid's: one of 15 or two of 31 are 0.07.
    const BELOW: [f64; 5] = [0.0, -0.025, 0.02, 0.045, 0.08];
    const ABOVE: [f64; 6] = [0.0, -0.035, -0.07, 0.02, 0.045, 0.08];
    /// Share of the worst error that is rounding. Of fits that are equally good the first is kept, which has the
    /// least value at level 0: values that were decoded from such blocks get their old scales again.
    const ROUNDING: f64 = 1e-13;
    let (least, most) = extent(x);
    let least = least.min(ceiling);
    // From the least value on: sums of squares would cancel if it were far from zero.
    let x = &x.map(|x| x - least);
    let (ceiling, range) = (ceiling - least, (most - least).max(0.0));
    let same = ROUNDING * range * range * w.iter().sum::<f64>();
    let mut best = (f64::INFINITY, (0.0, 0.0));
    for below in BELOW {
        for above in ABOVE {
            let offset = (below * range).min(ceiling);
            let scale = (range - above * range - offset) / levels.high;
            let found = refit(x, w, levels, (scale, offset), ceiling);
            if found.0 < best.0 - same {
                best = found;
            }
        }
    }
    for _ in 0..ROUNDS {
        let found = refit(x, w, levels, best.1, ceiling);
        if found.0 >= best.0 {
            break;
        }
        best = found;
    }
    (best.1.0, best.1.1 + least)
}
