//! Compiled shapes of answers, kept for those who ask again: gateways ask the same few things all day.

use std::collections::VecDeque;
use std::sync::Arc;

use andon_engine::Model;
use andon_engine::grammar::{Constraint, Grammar};

use crate::fault::{Fault, FaultCode};
use crate::request::AnswerFormat;

/// Grammars that are kept; each takes some hundred kilobytes.
const KEPT_MAX: usize = 16;

/// The grammars that were used last, the latest last.
#[derive(Debug, Default)]
pub(super) struct Grammars {
    kept: VecDeque<(Constraint, Arc<Grammar>)>,
}

impl Grammars {
    /// What holds an answer of at most `tokens_max` tokens to its format.
    ///
    /// # Errors
    /// What is wrong with the format, in its field.
    pub(super) fn get(
        &mut self,
        model: &Model,
        format: AnswerFormat,
        tokens_max: usize,
    ) -> Result<Arc<Grammar>, Fault> {
        let AnswerFormat { constraint, param } = format;
        let known = self
            .kept
            .iter()
            .position(|(kept, grammar)| grammar.tokens_max() == tokens_max && *kept == constraint);
        let found = known.and_then(|index| self.kept.remove(index));
        let (constraint, grammar) = match found {
            Some(found) => found,
            None => {
                let vocabulary = model.grammar_vocabulary().map_err(|error| Fault {
                    param: Some(param),
                    ..Fault::new(FaultCode::Unsupported, error.to_string())
                })?;
                let grammar = Grammar::compile(vocabulary, &constraint, tokens_max)
                    .map_err(|error| Fault::invalid(param, error.to_string()))?;
                (constraint, Arc::new(grammar))
            }
        };
        self.kept.push_back((constraint, Arc::clone(&grammar)));
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
        Ok(grammar)
    }
}
