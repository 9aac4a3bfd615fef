//! The thread that compares what is served with its manifest, while nobody asks for anything.
//!
//! It is for those who want to know, and serve all the same: what differs is said in the journal and by a metric.

use std::sync::Arc;

use andon_engine::Model;

use super::Shared;
use super::pack::goes_on;
use crate::registry::{Proof, Proven};

/// Compares models, one after the other, until the daemon stops.
pub(super) fn run(shared: &Shared, models: &[(Arc<Model>, Proof)]) {
    if let Err(error) = andon_os::give_way() {
        tracing::debug!(%error, "comparing has the rank of an answer");
    }
    let mut all = true;
    for (model, proof) in models {
        match proof.beside(model, &|| goes_on(shared)) {
            Ok(proven) => all &= proven != Proven::No,
            Err(error) => {
                all = false;
                shared.telemetry.weights_differ.set(1);
                tracing::error!(%error, "answers are not to be trusted");
            }
        }
    }
    shared.telemetry.weights_compared.set(i64::from(all));
}
