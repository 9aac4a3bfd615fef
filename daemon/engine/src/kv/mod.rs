//! The KV cache: pages of positions, shared out to sequences.
//!
//! A page holds [`PAGE`] positions of every layer and KV head: keys in the tiles and values in the rows that
//! [`andon_kernels::op::attention`] describes, in f16 or in 8 bits ([`KvType`]). All pages are one allocation made at
//! start; where it is this machine's, the system provides its memory as pages are first written.
//!
//! [`SPAN`] neighbouring pages lie in each other, `[layer][KV head][keys, values][page]`, and a sequence gets neighbours
//! where it can: then attention reads a chunk of positions as one stretch for each layer. Each piece of its own begins
//! with reads that the processor's prefetchers have not foreseen; read page by page, the same bytes took up to twice as
//! long (Zen 4).
//!
//! Sequences that begin with the same tokens may hold the same pages, and with [`Cache::new`]'s `remembers` a full page
//! stays known after the last of them has gone, until its room is needed, for itself or so that others get
//! neighbours (the least recently used first). Since a page's content follows from the tokens alone, who reads a
//! remembered page reads the bytes that computing would give.
//!
//! Remembered pages have names ([`PageName`]) once a [`disk::PageStore`] keeps some of them, which then outlive the program.
//!
//! Invariant: a page that more than one [`Sequence`] holds, or that is remembered, is never written; a page that no
//! sequence holds can be had by any. A dropped sequence lets go of its pages.

mod cache;
pub mod disk;
mod free;
mod host;
mod memory;
mod name;
mod prefix;
mod sequence;

use andon_kernels::op::attention::CHUNK;
pub use andon_kernels::op::attention::PAGE;
pub use cache::{Cache, Geometry, KvType};
pub(crate) use host::HostPages;
pub use name::PageName;
pub use sequence::{Remembered, Sequence};

/// Pages that lie in each other: those of a chunk.
const SPAN: usize = CHUNK / PAGE;
