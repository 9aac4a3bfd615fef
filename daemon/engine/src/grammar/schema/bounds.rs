//! The bounds of what a schema leaves without: how they follow from an answer's limit of tokens.

/// Fewest items that an array gets.
const ITEMS_MIN: usize = 4;
/// Most that it gets: the parser counts them one by one.
const ITEMS_MAX: usize = 1024;
/// Fewest characters that a string gets.
const CHARACTERS_MIN: usize = 32;
/// Most that it gets, within what the lexer counts without effort.
const CHARACTERS_MAX: usize = 16 * 1024;
/// Tokens that an item is reckoned to take.
const ITEM_TOKENS: usize = 16;
/// Characters for each token of the limit: text has some four a token, so strings take about half of it.
const CHARACTERS_PER_TOKEN: usize = 2;

/// Bounds for what has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    tokens_max: usize,
    /// Most items of an array.
    pub(super) items: usize,
    /// Most characters of a string.
    pub(super) characters: usize,
}

/// How much of a schema has no bound of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unbounded {
    pub(super) arrays: usize,
    /// Strings, each as often as the arrays around it may have it.
    pub(super) strings: usize,
}

impl Bounds {
    /// Those to count with.
    pub(super) fn counting(tokens_max: usize) -> Self {
        Self {
            tokens_max,
            items: ITEMS_MIN,
            characters: CHARACTERS_MIN,
        }
    }

    /// Deals out items to the arrays.
    pub(super) fn share_items(&mut self, unbounded: Unbounded) {
        let share = self.tokens_max / ITEM_TOKENS / unbounded.arrays.max(1);
        self.items = share.clamp(ITEMS_MIN, ITEMS_MAX);
    }

    /// Deals out characters to the strings, which were counted with the items dealt out.
    pub(super) fn share_characters(&mut self, unbounded: Unbounded) {
        let characters = self.tokens_max.saturating_mul(CHARACTERS_PER_TOKEN);
        let share = characters / unbounded.strings.max(1);
        self.characters = share.clamp(CHARACTERS_MIN, CHARACTERS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dealt_out_follows_the_limit_within_bounds() {
        let dealt = |tokens_max, arrays, strings| {
            let mut bounds = Bounds::counting(tokens_max);
            bounds.share_items(Unbounded { arrays, strings: 0 });
            bounds.share_characters(Unbounded { arrays, strings });
            (bounds.items, bounds.characters)
        };
        assert_eq!(dealt(512, 2, 4), (16, 256));
        assert_eq!(dealt(0, 0, 0), (ITEMS_MIN, CHARACTERS_MIN));
        assert_eq!(dealt(usize::MAX, 1, 1), (ITEMS_MAX, CHARACTERS_MAX));
        assert_eq!(dealt(256, 1, usize::MAX), (16, CHARACTERS_MIN));
    }
}
