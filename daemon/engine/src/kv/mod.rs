//! The KV cache: pages of positions, shared out to sequences.
//!
//! A page holds [`PAGE`] positions of every layer and KV head: keys in the tiles and values in the rows that
//! [`andon_kernels::op::attention`] describes, in f16 or in 8 bits ([`KvType`]). All pages are one allocation made at
//! start, whose memory the system provides as pages are first written.
//!
//! Sequences that begin with the same tokens may hold the same pages, and with [`Cache::new`]'s `remembers` a full page
//! stays known after the last of them has gone, until its room is needed (the least recently used first). Since a
//! page's content follows from the tokens alone, who reads a remembered page reads the bytes that computing would give.
//!
//! Invariant: a page that more than one [`Sequence`] holds, or that is remembered, is never written; a page that no
//! sequence holds can be had by any. A dropped sequence lets go of its pages.

mod cache;
mod prefix;
mod sequence;

pub use andon_kernels::op::attention::PAGE;
pub use cache::{Cache, Geometry, KvType};
pub use sequence::Sequence;
