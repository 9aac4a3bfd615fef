//! What tokens are guessed from: the earlier answers that are kept, and the draft model.

use serde::{Deserialize, Serialize};

use crate::name::{RequestId, TaskName};

/// What is to be done with the earlier answers that guesses come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CorpusAction<'a> {
    /// Lists whose there are; answered by [`StoredCorpus`] for each, and [`crate::ModelDone`].
    List,
    /// Erases them, in memory and on the disk; answered by [`CorpusErased`].
    Erase {
        /// Only those to this task.
        task: Option<TaskName>,
        /// Only those of clients of this name, over MQTT or on this machine. Where those of all clients are kept together,
        /// they are not told apart and stay.
        #[serde(borrow)]
        client: Option<&'a str>,
    },
}

/// Does something with the earlier answers that guesses come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusTask<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// What is to be done.
    #[serde(borrow)]
    pub action: CorpusAction<'a>,
}

/// Earlier answers to one task, of one client or of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCorpus<'a> {
    /// Id of the operation.
    pub id: RequestId,
    /// The task.
    pub task: &'a str,
    /// The client; empty if those of all clients are kept together.
    pub client: &'a str,
    /// Whether the client is a user of this machine, rather than one over MQTT.
    pub local: bool,
    /// Tokens of the answers.
    pub tokens: u32,
}

/// Earlier answers are erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusErased {
    /// Id of the operation.
    pub id: RequestId,
    /// Of how many tasks and clients there were any.
    pub count: u32,
    /// To how many tasks those of all clients are kept together and stay, where only those of one were to go.
    pub shared: u32,
}

/// The draft model that the configuration names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftStatus<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it guesses.
    pub used: bool,
    /// Bytes of memory that it takes.
    pub bytes: u64,
    /// Why it does not guess; empty if it does.
    pub reason: &'a str,
    /// Whether its vocabulary is another than the model's, so that its guesses are taken by their text.
    pub translated: bool,
}
