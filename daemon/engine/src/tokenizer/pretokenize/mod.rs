//! Cutting text into the pieces that are merged separately.
//!
//! Models define this by regular expressions over Unicode classes, often several that are applied in turn: each cuts
//! the pieces that the one before it left. Here each is a scanner written by hand that takes the same pieces in one
//! pass, whatever the text, and quotes the expression it follows. Nothing is lost: the pieces, joined, are the text.

mod class;
mod gpt2;
mod names;
mod passes;
mod scripts;
mod words;

use passes::Pass;

/// How text is cut, and what else goes with the name of a way to cut it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PreTokenizer(&'static Rules);

#[derive(Debug)]
struct Rules {
    passes: &'static [Pass],
    /// A piece that is a token as a whole is taken without merging.
    ignores_merges: bool,
    /// Prompts start with the beginning-of-sequence token where the file does not say.
    adds_bos: bool,
    /// They do so whatever the file says.
    needs_bos: bool,
    /// Tokens are written as plain text with marks for spaces, not in the byte alphabet.
    plain: bool,
    /// With that, a piece of line ends that is a token as a whole is taken without merging.
    whole_lines: bool,
}

const RULES: Rules = Rules {
    passes: &[],
    ignores_merges: false,
    adds_bos: false,
    needs_bos: false,
    plain: false,
    whole_lines: false,
};

impl PreTokenizer {
    /// The pre-tokenizer that files mean by a name (`tokenizer.ggml.pre`).
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let row = names::NAMES
            .binary_search_by_key(&name, |&(known, _)| known)
            .ok()?;
        names::NAMES.get(row).map(|&(_, rules)| Self(rules))
    }

    /// All names, sorted.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        names::NAMES.iter().map(|&(name, _)| name)
    }

    /// Whether a piece that is a token as a whole is taken without merging.
    pub(super) fn ignores_merges(self) -> bool {
        self.0.ignores_merges
    }

    /// Whether prompts start with the beginning-of-sequence token where the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        self.0.adds_bos
    }

    /// Whether prompts start with the beginning-of-sequence token whatever the file says.
    pub(super) fn needs_bos(self) -> bool {
        self.0.needs_bos
    }

    /// Whether tokens are written as plain text with marks for spaces.
    pub(super) fn is_plain(self) -> bool {
        self.0.plain
    }

    /// Whether a piece of line ends that is a token as a whole is taken without merging.
    pub(super) fn keeps_lines(self) -> bool {
        self.0.whole_lines
    }

    /// Hands over the pieces of a text in order; none is empty.
    pub(super) fn split<'t>(self, text: &'t str, mut visit: impl FnMut(&'t str)) {
        split(self.0.passes, text, &mut visit);
    }
}

fn split<'t>(passes: &[Pass], text: &'t str, visit: &mut dyn FnMut(&'t str)) {
    let Some((pass, passes)) = passes.split_first() else {
        if !text.is_empty() {
            visit(text);
        }
        return;
    };
    if let Pass::Cut(cut) = pass {
        cut(text, &mut |piece| split(passes, piece, visit));
        return;
    }
    let mut rest = text;
    // Bytes at the start of the rest that no piece was found in.
    let mut between = 0;
    while let Some(next) = rest.get(between..).and_then(|after| after.chars().next()) {
        let after = rest.get(between..).unwrap_or_default();
        let (bytes, covers) = match pass {
            Pass::Find(piece_bytes) => (piece_bytes(after), false),
            Pass::Words(words) => (words.piece_bytes(after), false),
            Pass::Cover(piece_bytes) => (piece_bytes(after), true),
            // Done above.
            Pass::Cut(_) => (after.len(), true),
        };
        let bytes = match bytes {
            0 if !covers => {
                between += next.len_utf8();
                continue;
            }
            // A piece is never empty, or this would not end.
            bytes => bytes.max(next.len_utf8()),
        };
        let (before, at) = rest.split_at_checked(between).unwrap_or((rest, ""));
        split(passes, before, visit);
        let (piece, after) = at.split_at_checked(bytes).unwrap_or((at, ""));
        split(passes, piece, visit);
        rest = after;
        between = 0;
    }
    split(passes, rest, visit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(name: &str, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        let pre = PreTokenizer::from_name(name).expect("a name");
        pre.split(text, |piece| pieces.push(piece.to_owned()));
        pieces
    }

    #[test]
    fn names_are_sorted_and_found() {
        assert!(PreTokenizer::names().is_sorted_by(|a, b| a < b));
        assert!(PreTokenizer::names().all(|name| PreTokenizer::from_name(name).is_some()));
        assert!(PreTokenizer::from_name("no-such").is_none());
    }

    #[test]
    fn pieces_are_the_text() {
        let text = "I'm Élan\r\n\r\n  x\t'LL 12345, x٣٣٣٣... \u{301}漢字かな한글  \u{a0}\u{a0} ÄBCdeF <sentinel:1> IMGIMGABZ//\n\u{378}\0  ";
        for name in PreTokenizer::names() {
            assert_eq!(pieces(name, text).concat(), text, "{name}");
            assert!(pieces(name, "").is_empty());
        }
    }

    #[test]
    fn numbers_are_cut_as_each_wants() {
        assert_eq!(pieces("default", "x12345"), ["x", "123", "45"]);
        assert_eq!(pieces("llama-bpe", "x12345"), ["x", "123", "45"]);
        assert_eq!(pieces("qwen2", "123"), ["1", "2", "3"]);
        assert_eq!(pieces("superbpe", "1234567"), ["1", "234", "567"]);
        assert_eq!(pieces("superbpe", "123 12"), ["123", " ", "12"]);
        assert_eq!(pieces("afmoe", "1234567"), ["1", "234", "567"]);
    }

    #[test]
    fn capitals_begin_words() {
        assert_eq!(pieces("tekken", "HelloWorld"), ["Hello", "World"]);
        assert_eq!(pieces("tekken", "HTTPServer"), ["HTTPServer"]);
        assert_eq!(pieces("tekken", "ÄBC"), ["Ä", "BC"]);
        assert_eq!(pieces("gpt-4o", "We're"), ["We're"]);
    }
}
