//! Packed weights: made once for every file, in a folder that is bounded and may be removed at any time.

use std::env;
use std::path::{Path, PathBuf};

use andon_engine::Model;
use andon_engine::pack::{Cache, CacheOptions, PackError};
use anyhow::{Context as _, Result};

/// Most bytes of all packs together: a few large models.
const BYTES_MAX: u64 = 64 << 30;
/// Room that is left on the disk.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// Has the model use packed weights, of a folder or the user's own; they are made if they are not there.
pub(crate) fn attach(model: &Model, dir: Option<&Path>, threads: Option<usize>) -> Result<()> {
    let dir = dir
        .map(Path::to_owned)
        .or_else(user_dir)
        .context("there is no cache folder; name one with --pack-dir")?;
    let cache = Cache::new(CacheOptions {
        dir,
        bytes_max: BYTES_MAX,
        free_bytes_min: FREE_BYTES_MIN,
    });
    let key = model.pack_key()?;
    // One that is of no use is made anew.
    if let Ok(Some(pack)) = cache.find(&key)
        && model.attach_pack(pack).is_ok()
    {
        return Ok(());
    }
    let threads = threads.unwrap_or_else(andon_os::available_threads);
    match cache.make(model, &key, threads, &mut |_, _| true) {
        // All of its weights are of formats that run from the file.
        Err(PackError::Nothing) => Ok(()),
        made => Ok(model.attach_pack(made?)?),
    }
}

/// `andon/packs` in the user's cache folder.
fn user_dir() -> Option<PathBuf> {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("andon/packs"))
}
