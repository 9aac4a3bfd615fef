//! The bounds of constraints: of what is given, of compiling it, and of following it.

/// Bytes of a schema, a grammar or an expression.
pub const SOURCE_BYTES_MAX: usize = 64 * 1024;
/// Values in a schema, objects and arrays included.
pub const SCHEMA_VALUES_MAX: usize = 8192;
/// How deep a schema may nest. The compiler recurses over it with some 3 KB of stack a level.
pub const SCHEMA_DEPTH_MAX: usize = 64;
/// Names in one `properties`, values in one `enum`, schemas in one `anyOf`.
pub const SCHEMA_FANOUT_MAX: usize = 1024;
/// How deep parentheses, brackets and braces of a grammar or an expression may nest.
pub const NESTING_MAX: usize = 64;
/// Largest magnitude of a number in a schema, and of one in an answer whose schema does not say: integers up to here are
/// exact in 64-bit floating point, with a digit to spare.
pub const NUMBER_MAX: f64 = 1e15;
/// Tools that an answer may choose from, as OpenAI has it.
pub const TOOLS_MAX: usize = 128;
/// Bytes of the schemas of all tools, as the compiler reads them.
pub const TOOLS_BYTES_MAX: usize = 256 * 1024;
/// Calls in one answer: a model that cannot stop calling would go on to its limit of tokens.
pub const CALLS_MAX: usize = 32;

/// Symbols in the productions of a compiled grammar.
pub(super) const GRAMMAR_SYMBOLS_MAX: usize = 100_000;
/// Work to build the expressions of a grammar; 50,000 take a millisecond.
pub(super) const COMPILE_FUEL: u64 = 1_000_000;
/// Work on expressions for one mask; 14,000 take a millisecond.
pub(super) const STEP_FUEL: u64 = 200_000;
/// Items of the parser for one mask; 20,000 take a millisecond.
pub(super) const STEP_ITEMS_MAX: usize = 50_000;
/// Ways in which the text so far can be read at once.
pub(super) const ITEMS_IN_ROW_MAX: usize = 2000;
/// States of an answer's lexer, 1 to 2 KB each: at most some 40 MB for one answer.
pub(super) const LEXER_STATES_MAX: usize = 20_000;
/// Longest token in use; the trie takes up to 1024 bytes. Longer ones are runs of spaces.
pub(super) const TOKEN_BYTES_MAX: usize = 512;
/// Nodes of the trie of a vocabulary, whose links have 22 bits.
pub(super) const TRIE_NODES_MAX: usize = (1 << 22) - 1;
/// Tokens that may be taken before a mask is computed again. The fuel above is for so many.
pub(super) const UNMASKED_TOKENS_MAX: usize = 32;
/// Tokens that may be forced in one run; a longer run goes on in the next.
pub(super) const FORCED_TOKENS_MAX: usize = 256;
