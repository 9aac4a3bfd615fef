//! What andon needs of the operating system, with a safe face: file maps, worker threads, how many threads to use
//! and how they rank, how much memory there is, room on a disk, fs-verity, sockets that the service manager passed, who is
//! at the other end of one, which signal is ignored, how the allocator keeps memory, and one that counts.
//!
//! Invariant: nothing unsafe is left to callers. What a caller must still know (a mapped file may change under the
//! map) is said where it matters.

mod activation;
mod allocator;
mod disk;
mod error;
mod fault;
mod hangup;
pub mod heap;
mod map;
mod memory;
mod peer;
mod pool;
mod priority;
pub mod verity;

pub use activation::{listens_for_streams, take_passed};
pub use allocator::keep_little;
pub use disk::free_bytes;
pub use error::{is_refusal, may_pass};
pub use hangup::ignore_hangups;
pub use map::{Identity, Mapping, forget_cached};
pub use memory::{Number, give_back, memory_bytes};
pub use peer::{Peer, peer};
pub use pool::{Pool, available_threads};
pub use priority::give_way;
