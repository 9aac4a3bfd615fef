//! The daemon's life from start to exit.
