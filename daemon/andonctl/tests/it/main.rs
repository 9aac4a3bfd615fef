//! The program itself against a server that a test plays, over a real Unix socket.
#![forbid(unsafe_code)]

mod ask;
mod broken;
mod chat;
mod report;
mod support;
