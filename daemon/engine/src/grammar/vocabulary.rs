//! A model's vocabulary as masks need it: a trie of the bytes of all tokens, and our own tokenizer for what is forced.
//!
//! Invariant: a control token is in the trie under a byte that no text has, so that text never allows it; and what
//! [`Tokens::tokenize_bytes`] returns stands for exactly the bytes it was given, as far as the vocabulary has them.

use std::sync::Arc;

use llguidance::toktrie::{
    InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};
use llguidance::{ParserFactory, api::ParserLimits};

use super::closing::Closers;
use super::error::GrammarError;
use super::guard::guarded;
use super::limits;
use crate::tokenizer::Tokenizer;

/// Text within strings of JSON, whose tokens are looked at together. Nearly all are no longer than this, and the shorter
/// it is, the nearer to its end a string may be. More such slices take as much memory each as the whole vocabulary, three
/// times over, and save next to nothing.
const SLICES: [&str; 1] = [r#"[^"\\\x00-\x1F\x7F]{1,16}"#];

/// What masks are computed with, made once for a model.
pub struct Vocabulary {
    factory: ParserFactory,
    tokens: Arc<Tokens>,
    nodes: usize,
}

/// The bytes of the tokens, and the way from text to them.
pub(super) struct Tokens {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
    /// Those whose text begins with a space.
    spaced: Box<[u32]>,
    closers: Closers,
}

impl core::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vocabulary")
            .field("count", &self.tokens.trie.vocab_size())
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// Takes in the tokens of `tokenizer`: some 50 ms for 50,000 of them.
    ///
    /// # Errors
    /// [`GrammarError::Vocabulary`] if its tokens are too many or too long together, or none of them ends an answer.
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Result<Self, GrammarError> {
        let refused = |reason| GrammarError::Vocabulary { reason };
        let count = u32::try_from(tokenizer.vocabulary_count())
            .map_err(|_| refused("it has too many tokens"))?;
        let words: Vec<Vec<u8>> = (0..count).map(|id| word(tokenizer, id)).collect();
        let nodes = nodes(&words);
        if nodes > limits::TRIE_NODES_MAX {
            return Err(refused("its tokens have too many different beginnings"));
        }
        let ends = tokenizer.ends_of_generation();
        let &first = ends
            .first()
            .ok_or_else(|| refused("no token of it ends an answer"))?;
        let trie = || TokTrie::from(&TokRxInfo::new(count, first), &words).with_eos_tokens(ends);
        let trie = guarded(trie).map_err(|_| refused("its tokens cannot be sorted"))?;
        let spaced = (0..count)
            .filter(|&id| tokenizer.is_text(id) && tokenizer.token_bytes(id).first() == Some(&b' '))
            .collect();
        let tokens = Arc::new(Tokens {
            tokenizer: Arc::clone(tokenizer),
            closers: Closers::new(&trie),
            trie,
            spaced,
        });
        let environment: TokEnv = tokens.clone();
        let slices = SLICES.map(str::to_owned);
        let capabilities = InferenceCapabilities {
            ff_tokens: true,
            ..InferenceCapabilities::default()
        };
        let mut factory = guarded(|| ParserFactory::new(&environment, capabilities, &slices).ok())
            .ok()
            .flatten()
            .ok_or_else(|| refused("its tokens cannot be sorted"))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_items_in_row: limits::ITEMS_IN_ROW_MAX,
            initial_lexer_fuel: limits::COMPILE_FUEL,
            step_lexer_fuel: limits::STEP_FUEL,
            step_max_items: limits::STEP_ITEMS_MAX,
            max_lexer_states: limits::LEXER_STATES_MAX,
            max_grammar_size: limits::GRAMMAR_SYMBOLS_MAX,
            precompute_large_lexemes: true,
            // An error may end in a log or at a client, and neither wants what others wrote.
            verbose_errors: false,
        };
        Ok(Self {
            factory,
            tokens,
            nodes,
        })
    }

    /// Roughly the memory it takes: the trie, and its parts for the inner text of strings.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let trie = &self.tokens.trie;
        let text = (0..trie.vocab_size() as u32)
            .map(|id| trie.token_len(id))
            .sum();
        bytes(self.nodes, trie.vocab_size(), text)
    }

    /// The same of one that is not made, by sorting the tokens.
    #[must_use]
    pub fn bytes_of(tokenizer: &Tokenizer) -> usize {
        let count = u32::try_from(tokenizer.vocabulary_count()).unwrap_or(u32::MAX);
        let words: Vec<Vec<u8>> = (0..count).map(|id| word(tokenizer, id)).collect();
        let text = words.iter().map(Vec::len).sum();
        bytes(nodes(&words), words.len(), text)
    }

    /// Makes parsers.
    pub(super) fn factory(&self) -> &ParserFactory {
        &self.factory
    }

    pub(super) fn tokens(&self) -> &Arc<Tokens> {
        &self.tokens
    }
}

impl Tokens {
    /// Tokens whose text begins with a space.
    pub(super) fn spaced(&self) -> &[u32] {
        &self.spaced
    }

    /// Tokens by which answers of JSON close.
    pub(super) fn closers(&self) -> &Closers {
        &self.closers
    }

    /// Whether a token is text: neither a control token, nor one that answers under a constraint never have.
    pub(super) fn is_text(&self, id: u32) -> bool {
        !self.trie.token(id).is_empty()
            && !self.trie.is_special_token(id)
            && !self.trie.eos_tokens().contains(&id)
    }

    fn spell(&self, tokens: &[u32], text: &[u8]) -> bool {
        let mut rest = text;
        for &id in tokens {
            match rest.strip_prefix(self.tokenizer.token_bytes(id)) {
                Some(behind) => rest = behind,
                None => return false,
            }
        }
        rest.is_empty()
    }
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let tokens = self.tokenizer.encode_on(text);
            // Where the vocabulary lacks bytes, encoding leaves them out.
            if self.spell(&tokens, text.as_bytes()) {
                tokens
            } else {
                self.trie.greedy_tokenize(text.as_bytes())
            }
        })
    }
}

/// What a token is in the trie; empty for one that no answer under a constraint has.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    if bytes.len() > limits::TOKEN_BYTES_MAX {
        return Vec::new();
    }
    if tokenizer.is_text(id) {
        return bytes.to_vec();
    }
    let mut word = Vec::with_capacity(bytes.len() + 1);
    word.push(TokTrie::SPECIAL_TOKEN_MARKER);
    word.extend_from_slice(bytes);
    word
}

/// Different beginnings of the words, themselves included: what the trie has nodes for.
/// Memory of a trie of so many nodes for tokens with so much text, and of its parts.
fn bytes(nodes: usize, tokens: usize, text: usize) -> usize {
    // Of each part there are three: with all of it, without those in it, without one of those.
    let tries = 1 + 3 * (SLICES.len() + 1);
    tries * (nodes * 8 + tokens * 12 + text)
}

/// Nodes of their trie.
fn nodes(words: &[Vec<u8>]) -> usize {
    let mut sorted: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    sorted.sort_unstable();
    let mut previous: &[u8] = &[];
    let mut nodes = 1usize;
    for word in sorted {
        let shared = word
            .iter()
            .zip(previous)
            .take_while(|(one, other)| one == other)
            .count();
        // A second token of the same bytes has a node of its own.
        nodes += (word.len() - shared).max(usize::from(!word.is_empty()));
        previous = word;
    }
    nodes
}
