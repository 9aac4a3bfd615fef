//! The thread that packs the served model's weights where they are not, while nobody asks for anything.
//!
//! It waits while the model is packed, so that a pack which turns out to be damaged, and is left by the engine, is made
//! anew.

use std::sync::atomic::Ordering;
use std::time::Duration;

use andon_engine::Model;
use andon_engine::pack::{Cache, Key, Pack, PackError};

use super::Shared;
use super::board::Phase;
use crate::registry::Proof;

/// A disk that damages what is written again and again is not written to for ever.
const ATTEMPTS_MAX: usize = 3;
/// How often is looked whether the requests are over for which packing pauses.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Serves until the daemon stops.
///
/// With `compare` a pack that is there is used only once it was found to be what packing the model gives: whoever trusts the
/// model's own files, which were compared, does not trust the folder of packs for that. With a `proof` that is being sought
/// beside the service, that is waited for: packed from a damaged file, weights would look sound ever after.
pub(super) fn run(
    shared: &Shared,
    model: &Model,
    cache: &Cache,
    key: &Key,
    compare: bool,
    proof: Option<&Proof>,
) {
    if let Err(error) = andon_os::give_way() {
        tracing::debug!(%error, "packing has the rank of an answer");
    }
    for _ in 0..ATTEMPTS_MAX {
        if !needed(shared, model, proof) {
            return;
        }
        if proof.is_some_and(|proof| proof.is_sound() == Some(false)) {
            tracing::warn!(
                "the model's weights are not packed: they are not what its manifest says"
            );
            return;
        }
        if compare && use_compared(shared, model, cache, key) {
            continue;
        }
        tracing::info!("the model's weights are being packed while nobody asks for anything");
        let made = cache.make(model, key, 1, &mut |_, _| goes_on(shared));
        let attached = made.and_then(|pack| {
            if compare {
                protect(&pack);
            }
            let bytes = pack.bytes();
            model.attach_pack(pack).map(|()| bytes)
        });
        match attached {
            Ok(bytes) => {
                shared.look_after_pack();
                tracing::info!(bytes, "the model's weights are packed and used so");
            }
            Err(PackError::Stopped | PackError::Nothing) => return,
            Err(error) => {
                tracing::warn!(%error, "the weights are read from the model's own file, which is slower");
                return;
            }
        }
    }
    if needed(shared, model, proof) {
        tracing::warn!(
            "packed weights were damaged {ATTEMPTS_MAX} times: is the disk of {} sound?",
            cache.dir().display()
        );
    }
}

/// Has the model use the pack that is there if it is the one of this model. False if there is none to be used.
fn use_compared(shared: &Shared, model: &Model, cache: &Cache, key: &Key) -> bool {
    let used = cache.find(key).and_then(|pack| {
        let Some(pack) = pack else { return Ok(false) };
        // Before: what is compared is then what is read later, too.
        protect(&pack);
        pack.compare(model, &mut |_, _| goes_on(shared))?;
        model.attach_pack(pack)?;
        Ok(true)
    });
    match used {
        Ok(used) => {
            if used {
                shared.look_after_pack();
                tracing::info!("the pack is the one of this model, and is used");
            }
            used
        }
        // The next look at the board ends it.
        Err(PackError::Stopped) => true,
        Err(error) => {
            tracing::warn!(%error, "the pack is made anew");
            false
        }
    }
}

/// Has the kernel vouch for what is read of a pack from now on, as it does for the weights that it takes the place of.
fn protect(pack: &Pack) {
    if let Err(error) = pack.protect() {
        tracing::warn!(%error, "fs-verity cannot be turned on for the packed weights");
    }
}

fn is_over(phase: Phase) -> bool {
    matches!(phase, Phase::Stopping(_) | Phase::Failed)
}

/// Waits until the model is not packed, and may be. False when the daemon stops.
fn needed(shared: &Shared, model: &Model, proof: Option<&Proof>) -> bool {
    let mut board = shared.board();
    loop {
        if is_over(board.phase) {
            return false;
        }
        if model.pack().is_none()
            && !shared.is_on_a_device()
            && proof.is_none_or(|proof| proof.is_sound().is_some())
        {
            return true;
        }
        board = shared.wait(board, None);
    }
}

/// Waits until there are no requests and the machine is not being measured. False when the daemon stops.
pub(super) fn goes_on(shared: &Shared) -> bool {
    let mut board = shared.board();
    loop {
        if is_over(board.phase) {
            return false;
        }
        let measuring = shared.measuring.load(Ordering::Relaxed);
        if board.running() == 0
            && board.waiting.is_empty()
            && !measuring
            && shared.machine.is_idle()
        {
            return true;
        }
        board = shared.wait(board, Some(LOOK_AGAIN));
    }
}
