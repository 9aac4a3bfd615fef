//! The real daemon against real clients: one module for each front end, and one for its life.

#![forbid(unsafe_code)]

mod abuse;
mod access;
mod acl;
mod activation;
mod andonctl;
mod audit;
mod backends;
mod ctl;
mod hardware;
mod hostile;
mod http;
mod journal;
mod lifecycle;
mod metrics;
mod models;
mod mqtt;
mod openai;
mod pages;
mod reload;
mod router;
mod sandbox;
mod schedule;
mod secrets;
mod shape;
mod speculation;
mod spool;
mod upstream;
mod wire;
