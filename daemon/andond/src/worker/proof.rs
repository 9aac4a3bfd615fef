//! The thread that compares what is served with its manifest, while nobody asks for anything.
//!
//! It is for those who want to know, and serve all the same: what differs is said in the journal and by a metric. Packed
//! weights that are not those of their model are left, since the model's own file is there to be read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use andon_engine::Model;
use andon_engine::pack::PackError;

use super::Shared;
use super::pack::goes_on;
use crate::registry::{Proof, Proven};
use crate::telemetry::Telemetry;

/// What is known of a model that is served and of its draft, among the metrics, which count models: for as long as this is
/// there.
pub(super) struct Looked<'a> {
    telemetry: &'a Telemetry,
    compared: AtomicBool,
    differs: AtomicBool,
}

impl<'a> Looked<'a> {
    pub(super) fn new(telemetry: &'a Telemetry) -> Looked<'a> {
        Looked {
            telemetry,
            compared: AtomicBool::new(false),
            differs: AtomicBool::new(false),
        }
    }

    pub(super) fn compared(&self, is: bool) {
        if self.compared.swap(is, Ordering::Relaxed) != is {
            let change = if is { 1 } else { -1 };
            self.telemetry.weights_compared.inc_by(change);
        }
    }

    fn differs(&self, is: bool) {
        if self.differs.swap(is, Ordering::Relaxed) != is {
            let change = if is { 1 } else { -1 };
            self.telemetry.weights_differ.inc_by(change);
        }
    }
}

impl Drop for Looked<'_> {
    fn drop(&mut self) {
        self.compared(false);
        self.differs(false);
    }
}

/// Compares models, one after the other, until the daemon stops.
pub(super) fn run(shared: &Shared, models: &[(Arc<Model>, Proof)], looked: &Looked<'_>) {
    if let Err(error) = andon_os::give_way() {
        tracing::debug!(%error, "comparing has the rank of an answer");
    }
    let mut all = true;
    for (model, proof) in models {
        let weights = proof.beside(model, &|| goes_on(shared));
        // Whoever packs the model waits for this.
        shared.wake();
        match weights {
            Ok(Proven::No) => return,
            Ok(_) => {}
            Err(error) => {
                all = false;
                looked.differs(true);
                crate::event!(WeightsDiffer, %error, "answers are not to be trusted");
                continue;
            }
        }
        match model.compare_pack(&mut |_, _| goes_on(shared)) {
            Ok(()) => {}
            Err(PackError::Stopped) => return,
            Err(error) => {
                all = false;
                looked.differs(true);
                crate::event!(WeightsDiffer,
                    %error,
                    "answers up to now are not to be trusted; the packed weights are left and made anew"
                );
                shared.look_after_pack();
                shared.wake();
            }
        }
    }
    looked.compared(all);
}
