//! The spool against disks that fail and machines that stop.

mod backend;
mod crash;
mod damage;
mod failing;
mod life;

pub(in crate::spool) use self::crash::header;
