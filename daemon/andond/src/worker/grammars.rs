//! Compiled shapes of answers, kept for those who ask again: gateways ask the same few things all day.

use std::collections::VecDeque;
use std::sync::Arc;

use andon_engine::Model;
use andon_engine::grammar::Grammar;

use super::Shared;
use crate::fault::{Fault, FaultCode};
use crate::request::AnswerFormat;

/// Grammars that are kept; each takes some hundred kilobytes.
const KEPT_MAX: usize = 16;

/// The grammars that were used last, the latest last.
#[derive(Debug, Default)]
pub(super) struct Grammars {
    /// With what each was compiled from, written out: objects of which only the order differs are equal, but properties come
    /// in the schema's order.
    kept: VecDeque<(String, Arc<Grammar>)>,
}

impl Grammars {
    /// Lets go of them; whoever uses one keeps it.
    pub(super) fn shed(&mut self) {
        self.kept = VecDeque::new();
    }

    /// Has the model's vocabulary made as masks need it, if it can be.
    pub(super) fn ready(shared: &Shared, model: &Model) {
        if let Ok(vocabulary) = model.grammar_vocabulary() {
            shared.telemetry.constraint_vocabulary(vocabulary.bytes());
        }
    }

    /// What holds an answer of at most `tokens_max` tokens to its format.
    ///
    /// # Errors
    /// What is wrong with the format, in its field.
    pub(super) fn get(
        &mut self,
        shared: &Shared,
        model: &Model,
        format: AnswerFormat,
        tokens_max: usize,
    ) -> Result<Arc<Grammar>, Fault> {
        let AnswerFormat { constraint, param } = format;
        let written = format!("{constraint:?}");
        let known = self
            .kept
            .iter()
            .position(|(kept, grammar)| grammar.tokens_max() == tokens_max && *kept == written);
        let found = known.and_then(|index| self.kept.remove(index));
        let (written, grammar) = match found {
            Some(found) => {
                shared.telemetry.constraint("known");
                found
            }
            None => {
                let refused = |fault| {
                    shared.telemetry.constraint("refused");
                    fault
                };
                let vocabulary = model.grammar_vocabulary().map_err(|error| {
                    refused(Fault {
                        param: Some(param),
                        ..Fault::new(FaultCode::Unsupported, error.to_string())
                    })
                })?;
                shared.telemetry.constraint_vocabulary(vocabulary.bytes());
                let grammar = Grammar::compile(vocabulary, &constraint, tokens_max)
                    .map_err(|error| refused(Fault::invalid(param, error.to_string())))?;
                shared.telemetry.constraint("compiled");
                (written, Arc::new(grammar))
            }
        };
        self.kept.push_back((written, Arc::clone(&grammar)));
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
        Ok(grammar)
    }
}
