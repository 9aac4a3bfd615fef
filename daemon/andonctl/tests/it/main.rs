//! The program itself against a server that a test plays, over a real Unix socket, and against a hub.
#![forbid(unsafe_code)]

mod ask;
mod broken;
mod bundle;
mod chat;
mod hub;
mod model;
mod pull;
mod report;
mod signed;
mod support;
