//! Compute kernels of andon: quantized matrix products, norms, attention pieces, one file per operation and
//! instruction set.
//!
//! Invariant: every kernel of every [`Table`] returns the same bytes. [`op`] states each result down to the order of
//! its roundings, the scalar kernels are written from that statement, and `check` compares the others with them. So
//! the output of a model does not depend on the machine, the number of threads, or how its tokens were batched.
//!
//! Left out on purpose: memory (callers own every buffer), threads (callers run tiles where they like) and files.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod activation;
mod arch;
pub mod attend;
pub mod block;
#[cfg(test)]
mod check;
mod cpu;
pub mod encode;
mod format;
pub mod op;
pub mod pack;
mod pieces;
mod table;
mod tile;

pub use cpu::Isa;
pub use format::Format;
pub use pieces::Pieces;
pub use table::Table;
pub use tile::{ColumnsMut, GatedTile, GatedTiles, Share, Tile, Tiles, TilesOf};
