//! Passes of few tokens as graphs: recorded when such a pass comes a second time, then started by one call. What comes once
//! only (the ends of prompts, mostly) is asked for step by step, which takes less than recording it.
//!
//! A graph is of passes of as many tokens and outputs whose sequences end within the same bound; everything else that differs
//! is read from the device's memory. Bounds are powers of two, so there are few of them, and attention has few blocks
//! with nothing to do.
//!
//! Invariant: a graph has the launches of its pass and nothing else, so results do not depend on whether there is one.

use crate::backend::DeviceCounts;
use andon_cuda::{Error, Graph};
use std::collections::VecDeque;

/// Most that are kept. Each takes memory of the device, for the arguments of some hundred launches, that the driver does not
/// tell of.
const GRAPHS_MAX: usize = 64;

/// How many kinds that came once are remembered.
const SEEN_MAX: usize = 64;

/// Passes that nothing is recorded in after memory for that was lacking.
const REST_PASSES: u32 = 1024;

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
    /// Kinds that came once, the last one last.
    seen: VecDeque<Kind>,
    /// Passes until something may be recorded again.
    rest: u32,
    wanted: bool,
    /// Those that were recorded and started.
    pub(super) counts: DeviceCounts,
}

impl Graphs {
    pub(super) fn new() -> Graphs {
        Graphs {
            kept: Vec::new(),
            seen: VecDeque::new(),
            rest: 0,
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
        self.rest = 0;
        self.kept.clear();
        self.seen.clear();
    }

    /// Notes that such a pass comes, of which there is no graph; whether it is to be recorded.
    pub(super) fn is_worth_recording(&mut self, kind: Kind) -> bool {
        self.rest = self.rest.saturating_sub(1);
        if self.rest > 0 {
            return false;
        }
        if let Some(index) = self.seen.iter().position(|&seen| seen == kind) {
            self.seen.remove(index);
            return true;
        }
        if self.seen.len() >= SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(kind);
        false
    }

    /// The graph of such passes, if there is one.
    pub(super) fn find(&mut self, kind: &Kind) -> Option<&Graph> {
        let index = self.kept.iter().rposition(|(known, _)| known == kind)?;
        self.kept[index..].rotate_left(1);
        self.kept.last().map(|(_, graph)| graph)
    }

    /// Keeps what was recorded of such a pass.
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
            Err(error) => self.refused(error),
        }
    }

    /// Gives up what the driver would not start, which [`Graphs::find`] found last.
    ///
    /// # Errors
    /// If the device is lost.
    pub(super) fn not_started(&mut self, error: Error) -> Result<(), Error> {
        self.kept.pop();
        self.refused(error)
    }

    /// Where memory is lacking, the half that was not used lately is given up, and nothing is recorded for a while; otherwise
    /// there are no graphs from now on.
    fn refused(&mut self, error: Error) -> Result<(), Error> {
        if error.is_lost() {
            return Err(error);
        }
        if matches!(error, Error::OutOfMemory { .. }) {
            tracing::info!(%error, "passes are not recorded as graphs for a while");
            self.kept.drain(..self.kept.len().div_ceil(2));
            self.rest = REST_PASSES;
        } else {
            tracing::warn!(%error, "passes are not recorded as graphs, and take longer for it");
            self.want(false);
        }
        Ok(())
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

    #[test]
    fn what_comes_again_is_worth_recording() {
        let mut graphs = Graphs::new();
        let kind = |outputs| Kind::of(100, outputs, 1, 4096);
        assert!(!graphs.is_worth_recording(kind(0)));
        assert!(graphs.is_worth_recording(kind(0)));
        assert!(!graphs.is_worth_recording(kind(0)), "it was to be recorded");
        for outputs in 1..=SEEN_MAX {
            assert!(!graphs.is_worth_recording(kind(outputs)));
        }
        assert!(!graphs.is_worth_recording(kind(0)), "too long ago");
        assert!(graphs.is_worth_recording(kind(SEEN_MAX)));
    }

    #[test]
    fn without_memory_nothing_is_recorded_for_a_while() {
        let mut graphs = Graphs::new();
        let kind = Kind::of(1, 1, 1, 4096);
        graphs.is_worth_recording(kind);
        let lacking = graphs.keep(kind, Err(Error::OutOfMemory { bytes: 1 }));
        assert!(lacking.is_ok() && graphs.are_wanted());
        let mut passes = 0;
        while !graphs.is_worth_recording(kind) {
            passes += 1;
            assert!(passes <= REST_PASSES);
        }
        assert!(passes >= REST_PASSES - 1);
    }
}
