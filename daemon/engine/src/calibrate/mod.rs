//! What this machine delivers: the limits that speed is a share of.

pub mod limits;

pub use limits::Limits;
