//! What is kept on the disk of prompts, so that they need not be read anew: pages of keys and values.

use serde::{Deserialize, Serialize};

use crate::name::RequestId;

/// What is to be done with the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageAction {
    /// Says how many there are; answered by [`StoredPages`] and [`crate::ModelDone`].
    Show,
    /// Erases all, on the disk and in memory; answered by [`crate::ModelDone`] with how many files there were.
    Erase,
}

/// Does something with the pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageTask {
    /// Id of the operation.
    pub id: RequestId,
    /// What is to be done.
    pub action: PageAction,
}

/// How many pages there are on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPages {
    /// Id of the operation.
    pub id: RequestId,
    /// Pages, of whatever model.
    pub pages: u32,
    /// Bytes that they take.
    pub bytes: u64,
}
