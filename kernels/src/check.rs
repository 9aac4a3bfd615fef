//! The battery that every kernel of every runnable table passes: against the scalar kernels to the bit, and the
//! scalar kernels against f64 within a bound derived from the data.
#![cfg(test)]
