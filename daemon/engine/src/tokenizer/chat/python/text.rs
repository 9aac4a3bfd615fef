//! Methods of strings that `minijinja-contrib` lacks, has otherwise, or does not bound.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, State, Value};
use unicode_general_category::{GeneralCategory, get_general_category};

use super::{argument, bytes_left, check_bytes, invalid, paid, print};

/// How the error begins about a format that could ask for any amount of memory.
pub(in super::super) const WIDE: &str = "a format with a wide field";
/// Digits of a width or precision in a format; wider ones could ask for any amount of memory.
const WIDTH_DIGITS_MAX: u32 = 4;

/// The result of a method, `None` where `minijinja-contrib` has it right.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Option<Value>, Error> {
    let Some(text) = value.as_str() else {
        return Ok(None);
    };
    Ok(Some(match method {
        "replace" => {
            check_replace(state, text, arguments)?;
            return Ok(None);
        }
        "join" => join(state, text, arguments)?,
        "format" => {
            check_fields(text)?;
            paid(state, format(FormatStyle::StrFormat, text, arguments)?)?
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(arguments)?;
            rsplit(text, separator, most)
        }
        "partition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            let middle = &text[before.len()..text.len() - after.len()];
            triple(before, middle, after)
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            let (before, after) = text.rsplit_once(separator).unwrap_or(("", text));
            let middle = &text[before.len()..text.len() - after.len()];
            triple(before, middle, after)
        }
        "splitlines" => {
            let (positional, named): (Rest<Value>, Kwargs) = from_args(arguments)?;
            let keep: Option<bool> = argument(&positional, &named, 0, "keepends")?;
            named.assert_all_used()?;
            lines(text, keep.unwrap_or(false))
        }
        "startswith" | "endswith" if arguments.len() > 1 => {
            let (affix, start, end): (Value, i64, Option<i64>) = from_args(arguments)?;
            let part = part(text, start, end);
            return minijinja_contrib::pycompat::unknown_method_callback(
                state,
                &Value::from(part),
                method,
                &[affix],
            )
            .map(Some);
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(arguments)?;
            let start = start.unwrap_or(0);
            let searched = part(text, start, end);
            let found = if method.starts_with('r') {
                searched.rfind(what)
            } else {
                searched.find(what)
            };
            match found {
                Some(at) => {
                    // What was searched is a part of the text, from there on.
                    let skipped = searched.as_ptr() as usize - text.as_ptr() as usize;
                    Value::from(text[..skipped + at].chars().count())
                }
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(invalid(format!("{method}: the text does not occur"))),
            }
        }
        "title" => {
            let () = from_args(arguments)?;
            Value::from(title(text))
        }
        "swapcase" => {
            let () = from_args(arguments)?;
            let swap = |character: char| -> String {
                if character.is_uppercase() {
                    character.to_lowercase().collect()
                } else {
                    character.to_uppercase().collect()
                }
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "casefold" => {
            let () = from_args(arguments)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "isdigit" | "isdecimal" | "isnumeric" => {
            let () = from_args(arguments)?;
            let is = |character: char| match get_general_category(character) {
                GeneralCategory::DecimalNumber => true,
                GeneralCategory::LetterNumber => method == "isnumeric",
                GeneralCategory::OtherNumber => {
                    method == "isnumeric" || method == "isdigit" && is_digit_form(character)
                }
                _ => false,
            };
            Value::from(!text.is_empty() && text.chars().all(is))
        }
        "istitle" => {
            let () = from_args(arguments)?;
            Value::from(text.chars().any(char::is_alphabetic) && title(text) == text)
        }
        "isidentifier" => {
            let () = from_args(arguments)?;
            let first = |character: char| character == '_' || character.is_alphabetic();
            Value::from(
                text.chars().next().is_some_and(first)
                    && text.chars().all(|c| c == '_' || c.is_alphanumeric()),
            )
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (usize, Option<&str>) = from_args(arguments)?;
            let count = width.saturating_sub(text.chars().count());
            let fill = fill.unwrap_or(" ");
            if fill.chars().count() != 1 {
                return Err(invalid(format!("{method}: fill with one character")));
            }
            check_bytes(state, count.checked_mul(fill.len()))?;
            let left = match method {
                "ljust" => 0,
                "rjust" => count,
                // Of an odd number, the one more is on the left if the width is odd.
                _ => count / 2 + (count & width & 1),
            };
            let right = count - left;
            paid(
                state,
                format!("{}{text}{}", fill.repeat(left), fill.repeat(right)),
            )?
        }
        "zfill" => {
            let (width,): (usize,) = from_args(arguments)?;
            let count = width.saturating_sub(text.chars().count());
            check_bytes(state, Some(count))?;
            let digits = text.trim_start_matches(['-', '+']);
            let sign = if text.len() - digits.len() <= 1 {
                &text[..text.len() - digits.len()]
            } else {
                &text[..1]
            };
            let zeros = "0".repeat(count);
            paid(state, format!("{sign}{zeros}{}", &text[sign.len()..]))?
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(arguments)?;
            let size = size.unwrap_or(8);
            let tabs = text.matches('\t').count();
            check_bytes(
                state,
                tabs.checked_mul(size)
                    .and_then(|added| added.checked_add(text.len())),
            )?;
            paid(state, expand_tabs(text, size))?
        }
        _ => return Ok(None),
    }))
}

/// The format operator of strings: one value, a tuple of them, or a mapping.
pub(super) fn percent(state: &State<'_, '_>, text: &str, value: &Value) -> Result<Value, Error> {
    check_fields(text)?;
    let arguments = match value.downcast_object_ref::<Tuple>() {
        Some(tuple) => tuple.to_vec(),
        None => vec![value.clone()],
    };
    // Values are written as Python writes them; the formatter knows numbers and strings.
    let arguments: Vec<Value> = arguments
        .into_iter()
        .map(|value| match value.kind() {
            ValueKind::Seq | ValueKind::Map | ValueKind::None if !text.contains("%(") => {
                print::string(&value, bytes_left(state)).map(Value::from)
            }
            _ => Ok(value),
        })
        .collect::<Result<_, _>>()?;
    paid(state, format(FormatStyle::Printf, text, &arguments)?)
}

fn check_replace(state: &State<'_, '_>, text: &str, arguments: &[Value]) -> Result<(), Error> {
    let (old, new, _): (&str, &str, Option<i32>) = from_args(arguments)?;
    let matches = text.matches(old).count();
    check_bytes(
        state,
        matches
            .checked_mul(new.len())
            .and_then(|added| added.checked_add(text.len())),
    )
}

fn join(state: &State<'_, '_>, separator: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (values,): (&Value,) = from_args(arguments)?;
    let most = bytes_left(state);
    let mut text = String::new();
    for (index, value) in values.try_iter()?.enumerate() {
        // As in Python: other values must be made strings first.
        let item = value
            .as_str()
            .ok_or_else(|| invalid("join: an item is no string"))?;
        if index > 0 {
            text.push_str(separator);
        }
        text.push_str(item);
        if text.len() > most {
            return Err(Error::from(minijinja::ErrorKind::OutOfFuel));
        }
    }
    paid(state, text)
}

/// Refuses a format with a width of more than [`WIDTH_DIGITS_MAX`] digits, or one field inside another.
fn check_fields(format: &str) -> Result<(), Error> {
    let mut open = false;
    let mut digits = 0;
    let mut bytes = format.bytes().peekable();
    while let Some(byte) = bytes.next() {
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        match byte {
            b'{' if !open && bytes.peek() == Some(&b'{') => {
                bytes.next();
            }
            b'{' if open => return Err(invalid(format!("{WIDE}: one field is inside another"))),
            b'{' => open = true,
            b'}' => open = false,
            b'*' if format.contains('%') => {
                return Err(invalid(format!("{WIDE}: the width is an argument")));
            }
            _ => {}
        }
        if digits > WIDTH_DIGITS_MAX {
            return Err(invalid(format!(
                "{WIDE}: of more than {WIDTH_DIGITS_MAX} digits"
            )));
        }
    }
    Ok(())
}

fn triple(before: &str, middle: &str, after: &str) -> Value {
    Value::from(Tuple::from([before, middle, after].map(Value::from)))
}

fn rsplit(text: &str, separator: Option<&str>, most: Option<i64>) -> Value {
    let count = most
        .and_then(|most| usize::try_from(most).ok())
        .map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<&str> = match separator {
        Some(separator) => text.rsplitn(count, separator).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim();
            while !rest.is_empty() {
                match rest.rfind(char::is_whitespace) {
                    Some(at) if parts.len() + 1 < count => {
                        parts.push(rest[at..].trim_start());
                        rest = rest[..at].trim_end();
                    }
                    _ => {
                        parts.push(rest);
                        break;
                    }
                }
            }
            parts
        }
    };
    parts.reverse();
    parts.into_iter().map(Value::from).collect()
}

fn lines(text: &str, keep_ends: bool) -> Value {
    // What Python counts as the end of a line; CR LF is one.
    const ENDS: [char; 10] = [
        '\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}',
    ];
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(ENDS).unwrap_or(rest.len());
        let mut next = end + rest[end..].chars().next().map_or(0, char::len_utf8);
        if rest[end..].starts_with("\r\n") {
            next = end + 2;
        }
        lines.push(Value::from(&rest[..if keep_ends { next } else { end }]));
        rest = &rest[next..];
    }
    Value::from(lines)
}

/// `text[start:end]`.
fn part(text: &str, start: i64, end: Option<i64>) -> &str {
    let count = text.chars().count();
    let index = |at: i64| {
        let at = if at < 0 {
            at.saturating_add_unsigned(count as u64).max(0)
        } else {
            at
        };
        usize::try_from(at).unwrap_or(usize::MAX).min(count)
    };
    let (start, end) = (index(start), end.map_or(count, index));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(at, _)| at);
    text.get(byte(start)..byte(end)).unwrap_or("")
}

/// The first letter after anything but a letter in upper case, all others in lower case.
fn title(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        if inside {
            result.extend(character.to_lowercase());
        } else {
            result.extend(character.to_uppercase());
        }
        inside = character.is_alphabetic();
    }
    result
}

/// Superscripts and circled digits, which Python counts as digits, unlike fractions.
fn is_digit_form(character: char) -> bool {
    matches!(character, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⓪')
}

fn expand_tabs(text: &str, size: usize) -> String {
    let mut result = String::new();
    let mut column = 0;
    for character in text.chars() {
        match character {
            '\t' if size == 0 => {}
            '\t' => {
                let count = size - column % size;
                result.extend(std::iter::repeat_n(' ', count));
                column += count;
            }
            '\n' | '\r' => {
                result.push(character);
                column = 0;
            }
            _ => {
                result.push(character);
                column += 1;
            }
        }
    }
    result
}
