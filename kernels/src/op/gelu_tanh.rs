//! The Gaussian error linear unit, in its tanh form.

use super::exp::exp;

/// `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / π) (x + 0.044715 x³)`, computed as `x / (1 + exp(-2 u))`, which is
/// the same number and keeps its precision where the tanh is near -1:
/// `-2 u` is `x * (a + b * (x * x))`, each operation rounded.
#[inline(always)]
#[must_use]
pub fn gelu_tanh(x: f32) -> f32 {
    const A: f32 = -1.595_769_2; // -2 sqrt(2 / π)
    const B: f32 = -0.071_354_814; // 0.044715 a
    x / (1.0 + exp(x * (A + B * (x * x))))
}

#[cfg(test)]
mod tests {
    use super::gelu_tanh;

    #[test]
    fn follows_double_precision() {
        for step in -120_000..120_000 {
            let x = step as f32 * 1e-4;
            let wide = f64::from(x);
            let inner = (2.0 / core::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            let exact = 0.5 * wide * (1.0 + inner.tanh());
            // Five roundings of the exponent, twice `inner` in size, and those of the quotient.
            let bound = exact.abs() * (3e-7 + 6e-7 * inner.abs()) + 1e-12;
            assert!((f64::from(gelu_tanh(x)) - exact).abs() <= bound, "{x}");
        }
    }

    #[test]
    fn has_the_ends_of_the_identity_and_of_zero() {
        assert_eq!(gelu_tanh(1e30), 1e30);
        assert_eq!(gelu_tanh(f32::INFINITY), f32::INFINITY);
        assert_eq!(gelu_tanh(0.0), 0.0);
        assert!(gelu_tanh(-1e6).abs() < 1e-30);
        assert!(gelu_tanh(f32::NAN).is_nan());
    }
}
