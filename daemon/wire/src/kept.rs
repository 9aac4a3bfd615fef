//! The requests that the daemon keeps until their answers are delivered.

use serde::{Deserialize, Serialize};

use crate::name::{RequestId, TaskName};

/// What is to be done with the requests that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpoolAction<'a> {
    /// Lists those of a task and of a client, or all; answered by [`KeptRequest`] for each, and [`crate::ModelDone`].
    List {
        /// Only those to this task.
        task: Option<TaskName>,
        /// Only those of clients of this name.
        #[serde(borrow)]
        client: Option<&'a str>,
    },
    /// Shows one; answered by [`KeptRequest`], what was asked and answered as JSON in pieces of [`crate::ModelText`], and
    /// [`crate::ModelDone`].
    Show(u64),
    /// Has one answered, or its answer delivered, once more; answered by [`crate::ModelDone`].
    Retry(u64),
    /// Drops one, whatever its state; answered by [`crate::ModelDone`].
    Drop(u64),
    /// Drops those of a task and of a client, or all, and writes the file anew, so that nothing of them is left in it;
    /// answered by [`crate::ModelDone`].
    Erase {
        /// Only those to this task.
        task: Option<TaskName>,
        /// Only those of clients of this name.
        #[serde(borrow)]
        client: Option<&'a str>,
    },
}

/// Does something with the requests that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolTask<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// What is to be done.
    #[serde(borrow)]
    pub action: SpoolAction<'a>,
}

/// One of the requests that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRequest<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// Its number: the order of arrival.
    pub number: u64,
    /// The way it came: `mqtt` or `http`.
    pub origin: &'a str,
    /// Who asked.
    pub client: &'a str,
    /// The client's id.
    pub request: &'a str,
    /// The task; empty if none was asked.
    pub task: &'a str,
    /// `accepted`, `running`, `answered` or `delivered`.
    pub state: &'a str,
    /// Which attempt at an answer this is, from 1.
    pub attempt: u16,
    /// How long ago it came.
    pub age_ms: u64,
    /// What is left until its deadline, if it has one.
    pub left_ms: Option<u64>,
    /// Bytes of what was asked.
    pub request_bytes: u64,
    /// Bytes of what was answered.
    pub answer_bytes: u64,
    /// The code of the failure, if the answer is that there is none; else empty.
    pub fault: &'a str,
}
