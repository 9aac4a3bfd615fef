//! Where a request is answered: here, or by an upstream server.
//!
//! Invariant: nothing of a request leaves the gateway without a [`egress::Permit`].

pub mod cache;
pub mod egress;
pub mod ledger;
pub mod redact;
