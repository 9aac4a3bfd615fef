//! Where models run. Today the CPU; each further device is a sibling of [`cpu`].

pub mod cpu;
