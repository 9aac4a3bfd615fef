//! The Gaussian error linear unit in its exact form, which encoders of the BERT family were trained with.

use super::exp::exp;

/// `x * Φ(x)` with `Φ` the normal distribution function: within `5e-7 * max(1, |x|)` of it.
///
/// The error function is Abramowitz and Stegun's approximation 7.1.26 (absolute error 1.5e-7), a polynomial in
/// `t = 1 / (1 + p z)` times `exp(-z²)`; negative `x` take its complement directly, so nothing cancels. NaN gives NaN.
#[inline(always)]
#[must_use]
pub fn gelu_erf(x: f32) -> f32 {
    const P: f32 = 0.327_591_1;
    const A: [f32; 5] = [
        0.254_829_6,
        -0.284_496_73,
        1.421_413_8,
        -1.453_152,
        1.061_405_4,
    ];
    let magnitude = f32::from_bits(x.to_bits() & 0x7fff_ffff);
    let z = magnitude * core::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + P * z);
    let polynomial = ((((A[4] * t + A[3]) * t + A[2]) * t + A[1]) * t + A[0]) * t;
    let tail = 0.5 * (polynomial * exp(-(z * z)));
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    x * phi
}

/// Each element through [`gelu_erf`], in place.
#[inline(always)]
pub(crate) fn gelu_erf_all(x: &mut [f32]) {
    for x in x {
        *x = gelu_erf(*x);
    }
}

/// `gate[i] = gelu_erf(gate[i]) * up[i]`: GEGLU's elementwise part, in place.
#[inline(always)]
pub(crate) fn geglu_erf(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = gelu_erf(*gate) * up;
    }
}

#[cfg(test)]
mod tests {
    use super::gelu_erf;

    #[test]
    fn follows_the_double_precision_function() {
        for step in -200_000..=200_000 {
            let x = step as f32 * 1e-4;
            let wide = f64::from(x);
            let exact = wide * 0.5 * libm::erfc(-wide * core::f64::consts::FRAC_1_SQRT_2);
            let error = (f64::from(gelu_erf(x)) - exact).abs();
            assert!(error <= 5e-7 * wide.abs().max(1.0), "{x}: error {error}");
        }
    }

    #[test]
    fn has_the_stated_ends() {
        assert_eq!(gelu_erf(0.0), 0.0);
        assert_eq!(gelu_erf(1e9), 1e9);
        assert_eq!(gelu_erf(-1e9), 0.0);
        assert!(gelu_erf(f32::NAN).is_nan());
    }
}
