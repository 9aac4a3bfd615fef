//! Text to tokens and back, as a model's file defines it.
//!
//! A text is cut at special tokens (`special`), and what is between them is encoded as the kind of vocabulary wants:
//! cut into pieces (`pretokenize`) whose bytes are merged (`bpe`), merged by scores (`spm`), cut into words and those
//! into the longest tokens (`wordpiece`), cut where the scores are best (`unigram`), or into the longest tokens
//! (`greedy`). Text is taken as it comes: no Unicode normalization, but for kinds that are made of it. Encoding takes
//! time linear in the text, and `n log n` in its longest piece.

mod bpe;
mod byte_level;
mod charsmap;
mod chat;
mod end;
mod error;
mod escape;
mod fim;
mod greedy;
mod index;
mod merge;
mod prefixes;
mod pretokenize;
mod rules;
mod special;
mod spm;
mod stream;
mod unigram;
mod vocabulary;
mod wordpiece;

pub use chat::{
    ChatInput, ChatMessage, ChatTemplate, NamedTemplate, TemplateChoice, TemplateError,
    TemplateOrigin,
};
pub use error::TokenizerError;
pub use fim::{FimTokens, Gap};
pub use stream::StreamDecoder;

use crate::gguf::{Gguf, MetaError};
use bpe::{Bpe, Whole};
use end::EndTokens;
use greedy::Greedy;
use pretokenize::PreTokenizer;
use rules::{Defaults, StripRule, UNKNOWN, token_id};
use special::{Part, SpecialTokens};
use spm::Spm;
use unigram::Unigram;
use vocabulary::{Kind, SpecialText, Spelling, Vocabulary};
use wordpiece::WordPiece;

/// Whether the text of control tokens (`<|im_end|>` and the like) inside a text becomes those tokens.
/// User-defined tokens are found either way: they are text, only always in one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// It does: for prompts that a chat template made.
    Parse,
    /// It stays text: for what users wrote.
    Plain,
}

/// How text that has no special tokens in it is encoded.
#[derive(Debug)]
enum Encoder {
    /// `gpt2`: pieces by a pre-tokenizer, bytes merged by rank.
    ByteLevel { pre: PreTokenizer, bpe: Bpe },
    /// The same for plain text, with spaces in place of their marks: characters merged by rank.
    Plain { pre: PreTokenizer, bpe: Bpe },
    /// `llama`: characters merged by score.
    Spm(Spm),
    /// `bert`: words cut into the longest tokens.
    WordPiece(WordPiece),
    /// `t5`: the best sum of scores.
    Unigram(Unigram),
    /// `rwkv`: the longest tokens.
    Greedy(Greedy),
}

/// Working memory of encoding.
#[derive(Debug, Default)]
struct Scratch {
    bpe: merge::Symbols<()>,
    spm: spm::Scratch,
    word: String,
    unigram: unigram::Scratch,
}

/// A vocabulary and the rules that turn text into its tokens and back.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    encoder: Encoder,
    special: SpecialTokens,
    /// Text at the start, and behind a special token, is encoded as if a space were before it.
    adds_space: bool,
    /// The first word of a text has a space in its token.
    reads_space: bool,
    bos: Option<u32>,
    eos: Option<u32>,
    /// The token that prompts start with.
    prefix: Option<u32>,
    /// The token that prompts end with.
    suffix: Option<u32>,
    fim: FimTokens,
    ends: EndTokens,
    warnings: Vec<String>,
}

/// The names of pre-tokenizers (`tokenizer.ggml.pre`) that are known, sorted.
pub fn pre_tokenizers() -> Vec<&'static str> {
    PreTokenizer::names().collect()
}

impl Tokenizer {
    /// Builds the tokenizer that the metadata of a file describes.
    ///
    /// # Errors
    /// [`TokenizerError`] if the metadata describes none, a broken one, or one that is not supported.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, TokenizerError> {
        Self::from_gguf_with(gguf, None)
    }

    /// [`Tokenizer::from_gguf`] with another pre-tokenizer than the file names, by its name. Vocabularies of a
    /// kind that has no pre-tokenizer are not changed by it.
    ///
    /// # Errors
    /// [`TokenizerError`] as there, and if the name is not known.
    pub fn from_gguf_with(
        gguf: &Gguf<'_>,
        pre_tokenizer: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let asked = match pre_tokenizer {
            None => None,
            Some(name) => Some(PreTokenizer::from_name(name).ok_or_else(|| {
                TokenizerError::NoSuchPreTokenizer {
                    pre: name.to_owned(),
                }
            })?),
        };
        let mut warnings = Vec::new();
        let model = gguf.str("tokenizer.ggml.model")?;
        match model {
            "gpt2" | "gemma4" => {
                let pre = match (asked, model) {
                    (Some(pre), _) => pre,
                    (None, "gemma4") => known_pre_tokenizer("gemma4")?,
                    (None, _) => file_pre_tokenizer(gguf, &mut warnings)?,
                };
                let spelling = match pre.is_plain() {
                    true => Spelling::Spaces,
                    false => Spelling::ByteAlphabet,
                };
                let whole = match (pre.ignores_merges(), pre.keeps_lines()) {
                    (true, _) => Whole::Always,
                    (false, true) => Whole::Lines,
                    (false, false) => Whole::Never,
                };
                let (vocabulary, special) = Vocabulary::from_gguf(gguf, spelling, end::is_control)?;
                let bpe = Bpe::from_gguf(gguf, &vocabulary, spelling, whole)?;
                let defaults = Defaults {
                    adds_bos: pre.adds_bos(),
                    needs_bos: pre.needs_bos(),
                    ..Defaults::default()
                };
                let encoder = match pre.is_plain() {
                    true => Encoder::Plain { pre, bpe },
                    false => Encoder::ByteLevel { pre, bpe },
                };
                Self::new(gguf, vocabulary, &special, encoder, &defaults, warnings)
            }
            "llama" => {
                let (vocabulary, special) =
                    Vocabulary::from_gguf(gguf, Spelling::Spaces, end::is_control)?;
                let defaults = Defaults {
                    bos: Some(1),
                    eos: Some(2),
                    adds_bos: true,
                    ..Defaults::default()
                };
                let unknown = token_id(gguf, UNKNOWN, vocabulary.count(), Some(0))?;
                let encoder = Encoder::Spm(Spm::from_gguf(gguf, &vocabulary, unknown)?);
                Self::new(gguf, vocabulary, &special, encoder, &defaults, warnings)
            }
            "bert" => {
                let (vocabulary, special) =
                    Vocabulary::from_gguf(gguf, Spelling::Spaces, end::is_control)?;
                let defaults = Defaults {
                    bos: Some(101),
                    separator: Some(102),
                    needs_bos: true,
                    needs_separator: true,
                    reads_space: true,
                    ..Defaults::default()
                };
                let unknown = rules::unknown(gguf, &vocabulary, 100)?;
                let words = WordPiece::from_gguf(gguf, &vocabulary, unknown)?;
                let encoder = Encoder::WordPiece(words);
                Self::new(gguf, vocabulary, &special, encoder, &defaults, warnings)
            }
            "t5" => {
                let (vocabulary, special) =
                    Vocabulary::from_gguf(gguf, Spelling::Spaces, end::is_control)?;
                let defaults = Defaults {
                    eos: Some(1),
                    adds_eos: true,
                    reads_space: true,
                    ..Defaults::default()
                };
                let unknown = rules::unknown(gguf, &vocabulary, 2)?;
                let unigram = Unigram::from_gguf(gguf, &vocabulary, unknown)?;
                let encoder = Encoder::Unigram(unigram);
                Self::new(gguf, vocabulary, &special, encoder, &defaults, warnings)
            }
            "rwkv" => {
                let (vocabulary, special) =
                    Vocabulary::from_gguf(gguf, Spelling::Escapes, end::is_control)?;
                let unknown = token_id(gguf, UNKNOWN, vocabulary.count(), None)?;
                let encoder = Encoder::Greedy(Greedy::new(&vocabulary, unknown)?);
                let defaults = Defaults::default();
                Self::new(gguf, vocabulary, &special, encoder, &defaults, warnings)
            }
            _ => Err(TokenizerError::UnsupportedModel {
                model: model.to_owned(),
            }),
        }
    }

    fn new(
        gguf: &Gguf<'_>,
        vocabulary: Vocabulary,
        special: &[SpecialText],
        encoder: Encoder,
        defaults: &Defaults,
        warnings: Vec<String>,
    ) -> Result<Self, TokenizerError> {
        let count = vocabulary.count();
        let ends = defaults.ends(gguf, count)?;
        let fim = FimTokens::new(gguf, &vocabulary)?;
        let named = [
            fim.pad,
            fim.repository,
            fim.separator,
            ends.eos,
            token_id(gguf, "tokenizer.ggml.eot_token_id", count, None)?,
            token_id(gguf, "tokenizer.ggml.eom_token_id", count, None)?,
        ];
        let strips = StripRule::of(gguf)?;
        // Where no space is put before a text, none may be taken off it: the other kinds have no use for the key.
        let adds_space = matches!(encoder, Encoder::Spm(_))
            && gguf.bool_or("tokenizer.ggml.add_space_prefix", true)?;
        Ok(Self {
            special: SpecialTokens::new(special, |token| strips.strip(token))?,
            adds_space,
            reads_space: adds_space || defaults.reads_space,
            ends: EndTokens::new(&vocabulary, &named),
            vocabulary,
            encoder,
            bos: ends.bos,
            eos: ends.eos,
            prefix: ends.prefix,
            suffix: ends.suffix,
            fim,
            warnings,
        })
    }

    /// The tokens of a text, without those that prompts have at start and end.
    ///
    /// Bytes that the vocabulary has no token for are left out; most vocabularies have all 256.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 4);
        self.encode_into(text, special, true, &mut tokens);
        tokens
    }

    /// A text cut at its control tokens, whose ids come with their texts; `None` if they swallow a part of it.
    pub(crate) fn controls(&self, text: &str) -> Option<Vec<(Option<u32>, String)>> {
        let mut parts: Vec<(Option<u32>, String)> = Vec::new();
        self.special.split(text, Special::Parse, |part| {
            let (id, text) = match part {
                Part::Token(id) if self.is_control(id) => (Some(id), self.token_bytes(id)),
                Part::Token(id) => (None, self.token_bytes(id)),
                Part::Text(text) => (None, text.as_bytes()),
            };
            let text = String::from_utf8_lossy(text);
            match parts.last_mut() {
                Some((None, last)) if id.is_none() => last.push_str(&text),
                _ => parts.push((id, text.into_owned())),
            }
        });
        let whole: String = parts.iter().map(|(_, text)| text.as_str()).collect();
        (whole == text).then_some(parts)
    }

    /// The tokens of a text that goes on behind another: no space is put before it.
    pub(crate) fn encode_on(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 4 + 1);
        self.encode_into(text, Special::Plain, false, &mut tokens);
        tokens
    }

    /// The tokens of a prompt: those of the text, and at start and end those that the file asks for. One
    /// that a template has already written there is not repeated.
    pub fn encode_prompt(&self, text: &str, special: Special) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(text.len() / 4 + 2);
        tokens.extend(self.prefix);
        self.encode_into(text, special, true, &mut tokens);
        if self.prefix.is_some() && tokens.get(1).copied() == self.prefix {
            tokens.remove(0);
        }
        if self.suffix.is_some() && tokens.last().copied() != self.suffix {
            tokens.extend(self.suffix);
        }
        tokens
    }

    /// Encodes a text; `first` says that it does not go on behind another.
    fn encode_into(&self, text: &str, special: Special, mut first: bool, tokens: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        self.special.split(text, special, |part| match part {
            Part::Token(token) => {
                tokens.push(token);
                first = true;
            }
            Part::Text(text) => {
                self.encode_text(text, self.adds_space && first, &mut scratch, tokens);
                first = false;
            }
        });
    }

    /// Encodes text without special tokens, with a space before it if `space` says so.
    fn encode_text(&self, text: &str, space: bool, scratch: &mut Scratch, tokens: &mut Vec<u32>) {
        match &self.encoder {
            Encoder::ByteLevel { pre, bpe } => pre.split(text, |piece| {
                bpe.encode(&self.vocabulary, piece, &mut scratch.bpe, tokens);
            }),
            Encoder::Plain { pre, bpe } => {
                let marked = text.contains(vocabulary::SPACE_MARK);
                let spaced = marked.then(|| text.replace(vocabulary::SPACE_MARK, " "));
                pre.split(spaced.as_deref().unwrap_or(text), |piece| {
                    bpe.encode(&self.vocabulary, piece, &mut scratch.bpe, tokens);
                });
            }
            Encoder::Spm(spm) => {
                spm.encode(&self.vocabulary, text, space, &mut scratch.spm, tokens);
            }
            Encoder::WordPiece(words) => {
                words.encode(&self.vocabulary, text, &mut scratch.word, tokens);
            }
            Encoder::Unigram(unigram) => {
                unigram.encode(&self.vocabulary, text, &mut scratch.unigram, tokens);
            }
            Encoder::Greedy(greedy) => greedy.encode(&self.vocabulary, text, tokens),
        }
    }

    /// What the file did not say and had to be assumed, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary_count(&self) -> usize {
        self.vocabulary.count()
    }

    /// The token at the beginning of a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token at the end of a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The tokens of filling in the middle.
    pub fn fim(&self) -> FimTokens {
        self.fim
    }

    /// Whether this token ends an answer: end of sequence, of turn, of message, as the file names them
    /// or as their text is known from models in use.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.ends.contains(id)
    }

    /// The tokens that end an answer, in ascending order.
    pub(crate) fn ends_of_generation(&self) -> &[u32] {
        self.ends.ids()
    }

    /// The bytes a token stands for: of control and user-defined tokens their text. Empty for an id
    /// outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// Whether a token is a control token, which is not meant to be shown.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.kind(id) == Some(Kind::Control)
    }

    /// Whether a token stands for text: it is neither structure of a prompt nor the sign for what has no token.
    pub(crate) fn is_text(&self, id: u32) -> bool {
        !matches!(
            self.vocabulary.kind(id),
            None | Some(Kind::Control | Kind::Unknown)
        )
    }

    /// Whether a token is searched for in texts rather than made from them.
    fn is_special(&self, id: u32) -> bool {
        self.vocabulary.kind(id).is_some_and(Kind::is_special)
    }

    /// The bytes of a token where nothing stands before it: without the space that encoding put there.
    fn first_bytes(&self, id: u32) -> &[u8] {
        let bytes = self.token_bytes(id);
        match bytes.split_first() {
            Some((b' ', rest)) if self.reads_space && !self.is_special(id) => rest,
            _ => bytes,
        }
    }

    /// The text of a sequence of tokens, control tokens included; invalid bytes become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        if let Some((&first, rest)) = ids.split_first() {
            bytes.extend_from_slice(self.first_bytes(first));
            bytes.extend(rest.iter().flat_map(|&id| self.token_bytes(id)));
        }
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    /// The token whose bytes are exactly this text; a special token before a normal one.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        let special = |id| self.is_special(id);
        self.vocabulary
            .find(text.as_bytes(), special)
            .or_else(|| self.vocabulary.find(text.as_bytes(), |_| true))
    }
}

/// The pre-tokenizer that the file names. Files from before there were names mean the default one, or not: the
/// first to write names found that most older files were made for another.
fn file_pre_tokenizer(
    gguf: &Gguf<'_>,
    warnings: &mut Vec<String>,
) -> Result<PreTokenizer, TokenizerError> {
    let pre = match gguf.str("tokenizer.ggml.pre") {
        Ok(pre) => pre,
        Err(MetaError::Missing { .. }) => {
            warnings.push(
                "tokenizer.ggml.pre is missing, so text is cut as \"default\" does; if answers are poor, name the model's own with `pre-tokenizer`"
                    .to_owned(),
            );
            "default"
        }
        Err(error) => return Err(error.into()),
    };
    known_pre_tokenizer(pre)
}

fn known_pre_tokenizer(name: &str) -> Result<PreTokenizer, TokenizerError> {
    PreTokenizer::from_name(name).ok_or_else(|| TokenizerError::UnknownPreTokenizer {
        pre: name.to_owned(),
    })
}
