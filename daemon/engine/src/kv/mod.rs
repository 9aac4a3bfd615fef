//! The KV cache: pages of positions, shared out to sequences.
//!
//! A page holds [`PAGE`] positions of every layer and KV head: keys in the tiles and values in the rows that
//! [`andon_kernels::op::attention`] describes, in f16. All pages are one allocation made at start, whose memory the
//! system provides as pages are first written.
//!
//! Invariant: a page belongs to at most one [`Sequence`], or is free; a dropped sequence frees its pages.

mod cache;
mod sequence;

pub use andon_kernels::op::attention::PAGE;
pub use cache::{Cache, Geometry};
pub use sequence::Sequence;
