//! The other expressions: what one pass over a text cuts out of it.

use super::class::{Class, run_bytes};
use super::scripts;
use super::words::{KIMI_K2, is_chinese};

/// One pass over the pieces that the passes before it left.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pass {
    /// Gives the bytes of the piece at the start of a text, or 0 if none starts there. A character where none
    /// starts stays with those around it.
    Find(fn(&str) -> usize),
    /// The same for an expression that is made of parts.
    Words(&'static super::words::Words),
    /// Gives the bytes of the first piece of a text, whatever it is.
    Cover(fn(&str) -> usize),
    /// Hands over the pieces of a text, for expressions that look far ahead.
    Cut(for<'t> fn(&'t str, &mut dyn FnMut(&'t str))),
}

/// `[\r\n]`
pub(super) fn line_end(text: &str) -> usize {
    usize::from(text.starts_with(['\r', '\n']))
}

/// `[^\n]+|[\n]+`
pub(super) fn lines(text: &str) -> usize {
    let is_line_end = text.starts_with('\n');
    run_bytes(text, |c| (c == '\n') == is_line_end)
}

/// `\p{N}`, by Unicode 17.
pub(super) fn digit(text: &str) -> usize {
    let digit = text.chars().next().filter(|c| c.is_numeric());
    digit.map_or(0, char::len_utf8)
}

fn is_number(character: char) -> bool {
    Class::of(character) == Class::Number
}

/// `\p{N}+`
pub(super) fn numbers(text: &str) -> usize {
    run_bytes(text, is_number)
}

/// `\p{N}{1,3}`
pub(super) fn three_numbers(text: &str) -> usize {
    let numbers = text.chars().take(3).take_while(|&c| is_number(c));
    numbers.map(char::len_utf8).sum()
}

/// `[0-9][0-9][0-9]`
pub(super) fn three_digits(text: &str) -> usize {
    let digits = text.as_bytes().first_chunk::<3>();
    let are_digits = digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_digit));
    3 * usize::from(are_digits)
}

/// Numbers in threes from the right, and with the first of them what stands before: so llama.cpp cuts for expressions
/// like `\d{1,3}(?=(?:\d{3})*\b)`.
pub(super) fn thousands<'t>(text: &'t str, visit: &mut dyn FnMut(&'t str)) {
    let mut rest = text;
    loop {
        let before = run_bytes(rest, |c| !is_number(c));
        let run = numbers(rest.get(before..).unwrap_or_default());
        if run == 0 {
            visit(rest);
            return;
        }
        let (with_numbers, after) = rest.split_at(before + run);
        cut_threes(with_numbers, before, visit);
        rest = after;
    }
}

/// `(?=(\d{3})+(?!\d))`, which cuts at places: before each three digits, counted from the right of a run of digits.
pub(super) fn places_of_thousands<'t>(text: &'t str, visit: &mut dyn FnMut(&'t str)) {
    let mut rest = text;
    // Bytes of the rest that have been looked at.
    let mut done = 0;
    while let Some(after) = rest.get(done..).filter(|after| !after.is_empty()) {
        let before = done + run_bytes(after, |c| !c.is_ascii_digit());
        let digits = rest.get(before..).unwrap_or_default();
        let run = run_bytes(digits, |c| c.is_ascii_digit());
        done = before + run;
        if run < 3 {
            continue;
        }
        // What is left over goes with what stands before, and the last three with what follows.
        let (first, threes) = rest.split_at(before + run % 3);
        visit(first);
        rest = threes;
        for _ in 1..run / 3 {
            let (three, after) = rest.split_at(3);
            visit(three);
            rest = after;
        }
        done = 3;
    }
    visit(rest);
}

/// Cuts a text, of which all from a place on is numbers, in threes from the right.
fn cut_threes<'t>(text: &'t str, start: usize, visit: &mut dyn FnMut(&'t str)) {
    let count = text
        .get(start..)
        .map_or(0, |numbers| numbers.chars().count());
    let mut from = 0;
    // The first piece has one to three numbers.
    let mut left = count;
    for (at, _) in text.char_indices().filter(|&(at, _)| at >= start) {
        if left % 3 == 0 && left < count {
            visit(text.get(from..at).unwrap_or_default());
            from = at;
        }
        left -= 1;
    }
    visit(text.get(from..).unwrap_or_default());
}

/// ``[\p{P}\$\+<=>\^~\|`]+``
pub(super) fn signs(text: &str) -> usize {
    run_bytes(text, |c| {
        Class::of(c) == Class::Punctuation || c.is_ascii() && Class::of(c) == Class::Symbol
    })
}

/// `[\p{P}\$\+<=>\^~\|]+`
pub(super) fn signs_but_backtick(text: &str) -> usize {
    run_bytes(text, |c| {
        Class::of(c) == Class::Punctuation
            || c != '`' && c.is_ascii() && Class::of(c) == Class::Symbol
    })
}

/// ``[\p{P}!-/:-@\[-`{-~]``
pub(super) fn sign(text: &str) -> usize {
    let sign = text
        .chars()
        .next()
        .filter(|&c| c.is_ascii_punctuation() || Class::of(c) == Class::Punctuation);
    sign.map_or(0, char::len_utf8)
}

/// `\s?[…]+` for a set.
fn after_space(text: &str, holds: impl Fn(char) -> bool) -> usize {
    let mut characters = text.chars();
    let Some(first) = characters.next() else {
        return 0;
    };
    if first.is_whitespace() {
        let run = run_bytes(characters.as_str(), &holds);
        if run > 0 {
            return first.len_utf8() + run;
        }
    }
    run_bytes(text, holds)
}

/// `\s?\p{L}+`
pub(super) fn spaced_letters(text: &str) -> usize {
    after_space(text, |c| Class::of(c) == Class::Letter)
}

/// `\s?\p{P}+`
pub(super) fn spaced_punctuation(text: &str) -> usize {
    after_space(text, |c| Class::of(c) == Class::Punctuation)
}

/// `\s?[A-Za-zµÀ-ÖØ-öø-ƺ…]+`
pub(super) fn spaced_cased(text: &str) -> usize {
    after_space(text, scripts::is_cased)
}

/// ``\s?[!-/:-~！-／：-～‘-‟　-。]+``; for llama.cpp, white space is in no such range.
pub(super) fn spaced_deepseek_signs(text: &str) -> usize {
    after_space(text, |c| scripts::is_deepseek_sign(c) && !c.is_whitespace())
}

/// `\s+$`
pub(super) fn trailing_space(text: &str) -> usize {
    match text.trim_end().len() {
        0 => text.len(),
        bytes => bytes,
    }
}

/// `[一-龥ࠀ-一가-퟿]+`, again without white space.
pub(super) fn deepseek_scripts(text: &str) -> usize {
    run_bytes(text, |c| {
        scripts::is_deepseek_script(c) && !c.is_whitespace()
    })
}

/// `[一-龥぀-ゟ゠-ヿ]+`
pub(super) fn chinese_or_kana(text: &str) -> usize {
    run_bytes(text, scripts::is_chinese_or_kana)
}

/// `[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+`
pub(super) fn youtu_scripts(text: &str) -> usize {
    [
        scripts::is_hangul,
        scripts::is_chinese_sign,
        scripts::is_bopomofo,
        scripts::is_chinese_or_kana,
    ]
    .iter()
    .map(|holds| run_bytes(text, holds))
    .find(|&bytes| bytes > 0)
    .unwrap_or(0)
}

/// `[一-鿿㐀-䶿…]+`
pub(super) fn unspaced_scripts(text: &str) -> usize {
    run_bytes(text, scripts::is_unspaced)
}

/// ` ?[^(\s|.,!?…。，、।۔،)]+`
pub(super) fn bloom(text: &str) -> usize {
    let holds = |c: char| !c.is_whitespace() && !"(|.,!?…。，、।۔،)".contains(c);
    match text.strip_prefix(' ').map(|word| run_bytes(word, holds)) {
        Some(run) if run > 0 => 1 + run,
        _ => run_bytes(text, holds),
    }
}

/// `<sentinel:[0-9]+>`
pub(super) fn sentinel(text: &str) -> usize {
    const START: &str = "<sentinel:";
    let Some(rest) = text.strip_prefix(START) else {
        return 0;
    };
    let digits = run_bytes(rest, |c| c.is_ascii_digit());
    let ends = rest.get(digits..).is_some_and(|rest| rest.starts_with('>'));
    usize::from(digits > 0 && ends) * (START.len() + digits + 1)
}

/// `(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z`
pub(super) fn image(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("IMGIMG") else {
        return 0;
    };
    let letters = run_bytes(rest, |c| matches!(c, 'A'..='I'));
    let ends = rest
        .get(letters..)
        .is_some_and(|rest| rest.starts_with('Z'));
    usize::from((1..=4).contains(&letters) && ends) * (6 + letters + 1)
}

/// `([\t\n]|    |  )`
pub(super) fn indentation(text: &str) -> usize {
    ["\t", "\n", "    ", "  "]
        .iter()
        .find(|space| text.starts_with(**space))
        .map_or(0, |space| space.len())
}

/// Chinese characters, then words.
pub(super) fn kimi_k2(text: &str) -> usize {
    match run_bytes(text, is_chinese) {
        0 => KIMI_K2.piece_bytes(text),
        bytes => bytes,
    }
}

/// `\s{512}(?!\S)|\s{256}(?!\S)|…|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}` of what `\s+(?!\S)|\s+` has cut out.
pub(super) fn space_cascade(text: &str) -> usize {
    let is_space = |c: Option<char>| c.is_some_and(char::is_whitespace);
    let last = text.chars().next_back();
    // Only pieces of white space begin and end with it; those that end a line stay whole.
    if !is_space(text.chars().next()) || !is_space(last) || matches!(last, Some('\r' | '\n')) {
        return text.len();
    }
    let count = text.chars().take(512).count();
    // The highest power of two.
    let cut = 1 << count.max(1).ilog2();
    text.chars().take(cut).map(char::len_utf8).sum()
}
