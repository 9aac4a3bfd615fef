//! Has the daemon read its configuration again.

use serde::{Deserialize, Serialize};

use crate::name::RequestId;

/// Has the configuration read again; answered by a [`Reloaded`] for each key that differs from what the daemon goes by and a
/// [`crate::ModelDone`] with how many of them hold now, or by one for each problem and a fault: then nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Id of the operation.
    pub id: RequestId,
}

/// What is said of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReloadOutcome {
    /// Its new value holds.
    Live,
    /// Its new value holds from the next start on.
    Restart,
    /// Something is wrong.
    Problem,
}

/// What became of a key when the configuration was read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// What became of it.
    pub outcome: ReloadOutcome,
    /// The key, as `section.key`; of a problem a sentence that begins with its place.
    pub text: &'a str,
}
