//! Pages on the disk, from one start to the next, and beyond what memory holds.
//!
//! ```text
//! <dir>/<root>-<number in its text>-<name>.page     a page; its time of change orders pages by their last use
//! <dir>/.<number>.tmp                               one that is being written, locked by whoever writes it
//! ```
//!
//! A page is named by what its content follows from ([`super::PageName`]), so one that is found holds the bytes that
//! computing would give, and pages of any number of models, types and builds lie in one folder without being taken for
//! each other. A page is written beside its place, brought to the disk and renamed: what has a name is whole. What is read
//! is checked all the same, and what is not right is removed, as if it had never been there.
//!
//! Whose text a page is of is not known here. Whoever can read the folder can find out what was asked, so only the
//! daemon's user may enter it, and [`PageStore::erase`] empties it.
//!
//! Pages are not used in place: in memory, neighbours lie in each other ([`super`]), so one that is wanted is read into the
//! cache, at the speed of a copy where the system has the file in memory.
//!
//! Invariant: the files together take no more than [`PageStoreOptions::bytes_max`]. Where a page has to give way, it is the
//! one that was not used longest, and of a text the last one first: one is of use only with all that are before it.

mod error;
mod file;
mod index;
mod store;
#[cfg(test)]
mod tests;

pub use error::StoreError;
pub(crate) use store::now;
pub use store::{Chains, PageCopy, PageStore, PageStoreOptions, StoreCounts, erase, kept};
