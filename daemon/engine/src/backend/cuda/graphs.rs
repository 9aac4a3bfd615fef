//! Passes of few tokens as graphs: recorded when such a pass first comes, then started by one call.
//!
//! A graph is of passes of as many tokens and outputs whose sequences end within the same bound; everything else that differs
//! is read from the device's memory. Bounds are powers of two, so there are few of them, and attention has few blocks
//! with nothing to do.
//!
//! Invariant: a graph has the launches of its pass and nothing else, so results do not depend on whether there is one.

use crate::backend::DeviceCounts;
use andon_cuda::{Error, Graph};

/// Most that are kept. Each takes memory of the device, for the arguments of some hundred launches, that the driver does not
/// tell of.
const GRAPHS_MAX: usize = 64;

/// Positions that the shortest sequences are taken to have: those of a block of attention.
const REACH_MIN: usize = 256;

/// What passes have in common that one graph does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) tokens: usize,
    pub(super) outputs: usize,
    /// Positions that none of the sequences ends behind.
    pub(super) reach: usize,
}

impl Kind {
    /// That of a pass whose longest sequence will have `length` tokens, of a context of `context`.
    pub(super) fn of(tokens: usize, outputs: usize, length: usize, context: usize) -> Kind {
        let bound = length.next_power_of_two().max(REACH_MIN);
        Kind {
            tokens,
            outputs,
            reach: bound.min(context).max(length),
        }
    }
}

/// The graphs of one model.
#[derive(Debug)]
pub(super) struct Graphs {
    /// Those used last come last.
    kept: Vec<(Kind, Graph)>,
    wanted: bool,
    /// Those that were recorded and started.
    pub(super) counts: DeviceCounts,
}

impl Graphs {
    pub(super) fn new() -> Graphs {
        Graphs {
            kept: Vec::new(),
            wanted: true,
            counts: DeviceCounts::default(),
        }
    }

    /// Whether passes are to be recorded.
    pub(super) fn are_wanted(&self) -> bool {
        self.wanted
    }

    /// Has passes be recorded or not.
    pub(super) fn want(&mut self, wanted: bool) {
        self.wanted = wanted;
        self.kept.clear();
    }

    /// The graph of such passes, if there is one.
    pub(super) fn find(&mut self, kind: &Kind) -> Option<&Graph> {
        let index = self.kept.iter().rposition(|(known, _)| known == kind)?;
        self.kept[index..].rotate_left(1);
        self.kept.last().map(|(_, graph)| graph)
    }

    /// Keeps what was recorded of such a pass. Where that failed there are no graphs from now on.
    ///
    /// # Errors
    /// If the device is lost.
    pub(super) fn keep(&mut self, kind: Kind, recorded: Result<Graph, Error>) -> Result<(), Error> {
        match recorded {
            Ok(graph) => {
                if self.kept.len() >= GRAPHS_MAX {
                    self.kept.remove(0);
                }
                self.kept.push((kind, graph));
                self.counts.recorded += 1;
                Ok(())
            }
            Err(error) if error.is_lost() => Err(error),
            Err(error) => {
                tracing::warn!(%error, "passes are not recorded as graphs, and take longer for it");
                self.want(false);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_with_sequences_and_end_with_the_context() {
        let reach = |length, context| Kind::of(1, 1, length, context).reach;
        for (length, context, expected) in [
            (1, 4096, 256),
            (256, 4096, 256),
            (257, 4096, 512),
            (1025, 4096, 2048),
            (3000, 3500, 3500),
            (3, 64, 64),
        ] {
            assert_eq!(reach(length, context), expected, "{length} of {context}");
        }
    }
}
