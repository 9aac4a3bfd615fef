//! The hyperbolic tangent, and capping with it.

use super::exp::exp;

/// `tanh(x)` with an absolute error below 3e-7, odd and within -1..=1: `(1 - t) / (1 + t)` with
/// `t = exp(-2 |x|)`, and the sign of `x`. NaN gives NaN.
#[inline(always)]
#[must_use]
pub fn tanh(x: f32) -> f32 {
    let magnitude = f32::from_bits(x.to_bits() & 0x7fff_ffff);
    let t = exp(-2.0 * magnitude);
    let result = (1.0 - t) / (1.0 + t);
    f32::from_bits((result.to_bits() & 0x7fff_ffff) | (x.to_bits() & 0x8000_0000))
}

/// `x[i] = cap * tanh(x[i] / cap)` in place: values keep within `cap`, small ones nearly as they are.
#[inline(always)]
pub(crate) fn soft_cap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * tanh(*x / cap);
    }
}

#[cfg(test)]
mod tests {
    use super::{soft_cap, tanh};

    #[test]
    fn follows_double_precision() {
        for step in -120_000..120_000 {
            let x = step as f32 * 1e-4;
            let error = (f64::from(tanh(x)) - f64::from(x).tanh()).abs();
            assert!(error < 3e-7, "{x}: {error}");
            assert_eq!(tanh(-x).to_bits(), (-tanh(x)).to_bits());
        }
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn capped_values_keep_within_the_cap() {
        let mut x = [1e9, -1e9, 0.0, 0.25];
        soft_cap(&mut x, 30.0);
        assert_eq!(x[..3], [30.0, -30.0, 0.0]);
        assert!((x[3] - 0.25).abs() < 1e-5);
    }
}
