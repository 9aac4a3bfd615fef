//! The real daemon against real clients: one module for each front end.

#![forbid(unsafe_code)]
