//! Models on the emulated card: the processor's bytes, whatever the batch, and what happens when the card fails.
//!
//! The emulation is a driver library that has to be found when a program starts, so each test runs once more as a program of
//! its own, with that in its environment.

#![forbid(unsafe_code)]

mod card;
mod daemon;
mod interfaces;
mod loading;
mod logits;
mod passes;
