//! What is changed in a template's source before `minijinja` reads it.
//!
//! Invariants: line ends stay where they are, so that errors name the line of the original; and tags, strings, comments
//! and blocks of text end here where they end for `minijinja`, so that no template can hide an operator.

use std::collections::BTreeSet;

use super::python::{LIST, PERCENT};

/// Levels of brackets in a tag. `minijinja` refuses as many, and what is done here takes time and stack for each.
const LEVELS_MAX: usize = 150;

/// The source with `{% generation %}` and `{% endgeneration %}` made into a condition that always holds: they
/// mark for training what the assistant said, and mean nothing when a prompt is made. With the format operator of
/// strings, `'…' % value`, made into a filter: `minijinja` has it for numbers only. And with what is added, repeated or
/// joined by `+`, `*` and `~` passed through a filter that makes lists of lists that are still to be computed: such a
/// list costs `minijinja` nothing until it is long enough to take all memory at once.
pub(super) fn prepared(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        result.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag
                .get(2..)
                .and_then(|text| text.find("#}"))
                .map(|end| end + 4),
            Some(b'%') => inside_end(tag, "%}"),
            Some(b'{') => inside_end(tag, "}}"),
            _ => Some(1),
        };
        // What is not closed is an error for `minijinja` as well.
        let Some(end) = end else {
            result.push_str(tag);
            return result;
        };
        let (inside, after) = tag.split_at(end);
        rest = after;
        if inside == "{" || inside.starts_with("{#") {
            result.push_str(inside);
            continue;
        }
        let word = inside[2..inside.len() - 2].trim_matches(['-', '+']).trim();
        match word {
            "generation" if inside.starts_with("{%") => {
                result.push_str(&inside.replacen(word, "if true", 1));
            }
            "endgeneration" if inside.starts_with("{%") => {
                result.push_str(&inside.replacen(word, "endif", 1));
            }
            "raw" if inside.starts_with("{%") => {
                result.push_str(inside);
                let end = raw_end(rest).unwrap_or(rest.len());
                result.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            _ if is_shallow(inside) => push_with_formats(&mut result, &with_lists(inside)),
            _ => result.push_str(inside),
        }
    }
    result.push_str(rest);
    result
}

/// Where the tag begins that ends a block of text.
fn raw_end(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        at += text.get(at..)?.find("{%")?;
        let inside = text.get(at + 2..)?;
        let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
        let word = inside.trim_ascii_start().strip_prefix("endraw");
        let close = word.map(str::trim_ascii_start);
        let close = close.map(|close| close.strip_prefix(['-', '+']).unwrap_or(close));
        if close.is_some_and(|close| close.starts_with("%}")) {
            return Some(at);
        }
        at += 2;
    }
}

/// Where a tag ends that begins at the start of `text`; `close` inside of a string or a bracket does not end it.
fn inside_end(text: &str, close: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 2;
    let mut open = 0_i64;
    while at < bytes.len() {
        if open == 0 && bytes[at..].starts_with(close.as_bytes()) {
            return Some(at + close.len());
        }
        match bytes[at] {
            b'\'' | b'"' => {
                at = string_end(bytes, at)?;
                continue;
            }
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Whether the brackets of a tag are at most [`LEVELS_MAX`] deep.
fn is_shallow(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    let (mut at, mut level) = (2, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => match string_end(bytes, at) {
                Some(end) => {
                    at = end;
                    continue;
                }
                None => return true,
            },
            b'(' | b'[' | b'{' => level += 1,
            b')' | b']' | b'}' => level = level.saturating_sub(1),
            _ => {}
        }
        if level > LEVELS_MAX {
            return false;
        }
        at += 1;
    }
    true
}

/// Where the string ends that begins at `at`.
fn string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let quote = bytes[at];
    let mut end = at + 1;
    while *bytes.get(end)? != quote {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    Some(end + 1)
}

/// A tag with the operands of `+`, `*` and `~` passed through a filter.
fn with_lists(tag: &str) -> String {
    let bytes = tag.as_bytes();
    let mut ends = BTreeSet::new();
    let mut at = 2;
    while at + 2 < bytes.len() {
        let next = match bytes[at] {
            b'\'' | b'"' => match string_end(bytes, at) {
                Some(end) => end,
                None => break,
            },
            b'+' | b'~' | b'*' => {
                let operator = bytes[at];
                let left = bytes[..at].trim_ascii_end().len();
                let is_power = bytes[at + 1] == b'*' || bytes[at - 1] == b'*';
                if !is_power && ends_operand(&bytes[2..left]) {
                    ends.insert(left);
                    let right = at + 1 + spaces(&bytes[at + 1..]);
                    // At the end of a tag a plus sign is part of its close.
                    if right + 2 < bytes.len()
                        && let Some(end) = operand_end(bytes, right)
                        && end + 2 <= bytes.len()
                    {
                        ends.insert(end);
                    } else if operator == b'+' {
                        ends.remove(&left);
                    }
                }
                at + 1
            }
            _ => at + 1,
        };
        at = next;
    }
    let mut result = String::with_capacity(tag.len());
    let mut done = 0;
    for end in ends {
        result.push_str(&tag[done..end]);
        result.push('|');
        result.push_str(LIST);
        done = end;
    }
    result.push_str(&tag[done..]);
    result
}

/// Whether text ends with something that can be added to. What looks like a keyword may be a name; no operator here
/// follows a keyword.
fn ends_operand(text: &[u8]) -> bool {
    text.last().is_some_and(|last| {
        matches!(last, b')' | b']' | b'}' | b'\'' | b'"' | b'_' | 0x80..)
            || last.is_ascii_alphanumeric()
    })
}

/// Pushes a tag, and writes `'…' % value` in it as a filter.
fn push_with_formats(result: &mut String, tag: &str) {
    let bytes = tag.as_bytes();
    let (mut done, mut at) = (0, 2);
    while at < bytes.len() {
        if !matches!(bytes[at], b'\'' | b'"') {
            at += 1;
            continue;
        }
        let Some(end) = string_end(bytes, at) else {
            break;
        };
        let operator = end + spaces(&bytes[end..]);
        let value = operator + 1 + spaces(bytes.get(operator + 1..).unwrap_or_default());
        // At the end of a tag the sign is part of its close.
        if bytes.get(operator) == Some(&b'%')
            && value < tag.len() - 2
            && let Some(value_end) = operand_end(bytes, value)
        {
            result.push_str(&tag[done..at]);
            result.push('(');
            result.push_str(&tag[at..end]);
            result.push('|');
            result.push_str(PERCENT);
            result.push('(');
            // The value may hold another one.
            push_with_formats_of(result, &tag[operator + 1..value_end]);
            result.push_str("))");
            (done, at) = (value_end, value_end);
        } else {
            at = end;
        }
    }
    result.push_str(&tag[done..]);
}

/// [`push_with_formats`] of an expression without the tag around it.
fn push_with_formats_of(result: &mut String, expression: &str) {
    let mut inner = String::new();
    // Braces of the same length as a tag's, taken off again.
    push_with_formats(&mut inner, &format!("{{{{{expression}}}}}"));
    result.push_str(&inner[2..inner.len() - 2]);
}

fn spaces(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take_while(|byte| byte.is_ascii_whitespace())
        .count()
}

/// Where the strings end, the first of which begins at `at`: several in a row are one.
fn strings_end(bytes: &[u8], at: usize) -> Option<usize> {
    let mut end = string_end(bytes, at)?;
    loop {
        let next = end + spaces(&bytes[end..]);
        match bytes.get(next) {
            Some(b'\'' | b'"') => end = string_end(bytes, next)?,
            _ => return Some(end),
        }
    }
}

/// Where the operand ends that begins at `at`: a name, number, string or bracket, with attributes, items, calls and
/// filters after it.
fn operand_end(bytes: &[u8], at: usize) -> Option<usize> {
    let word = |at: usize| {
        let is = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_' || **byte >= 0x80;
        at + bytes
            .get(at..)
            .unwrap_or_default()
            .iter()
            .take_while(is)
            .count()
    };
    let start = if bytes.get(at) == Some(&b'-') {
        at + 1
    } else {
        at
    };
    let mut end = match bytes.get(start)? {
        b'\'' | b'"' => strings_end(bytes, start)?,
        b'(' | b'[' | b'{' => bracket_end(bytes, start)?,
        _ => word(start),
    };
    if end == start {
        return None;
    }
    loop {
        end = match bytes.get(end) {
            Some(b'.') => word(end + 1),
            Some(b'(' | b'[') => bracket_end(bytes, end)?,
            _ => {
                let bar = end + spaces(&bytes[end..]);
                if bytes.get(bar) != Some(&b'|') {
                    return Some(end);
                }
                let name = bar + 1 + spaces(&bytes[bar + 1..]);
                word(name)
            }
        };
    }
}

/// Where the bracket closes that opens at `at`.
fn bracket_end(bytes: &[u8], at: usize) -> Option<usize> {
    let mut open = Vec::new();
    let mut end = at;
    loop {
        match *bytes.get(end)? {
            b'\'' | b'"' => {
                end = string_end(bytes, end)?;
                continue;
            }
            b'(' => open.push(b')'),
            b'[' => open.push(b']'),
            b'{' => open.push(b'}'),
            close @ (b')' | b']' | b'}') if open.pop() != Some(close) => return None,
            _ => {}
        }
        end += 1;
        if open.is_empty() {
            return Some(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::prepared;

    #[test]
    fn formats_become_filters() {
        for (source, expected) in [
            ("{{ 'a' % b }}", "{{ ('a'|percent_format( b)) }}"),
            (
                "{{ '%s' % b.c[0] | d - 1 }}",
                "{{ ('%s'|percent_format( b.c[0] | d)) - 1 }}",
            ),
            (
                "{{ '%s' % ('%s' % 1, 2) }}",
                "{{ ('%s'|percent_format( (('%s'|percent_format( 1)), 2))) }}",
            ),
            (
                "{% if x == 'a' %}b{% endif %}",
                "{% if x == 'a' %}b{% endif %}",
            ),
            ("{% set x = 'a' -%}", "{% set x = 'a' -%}"),
            ("'a' % b {{ 7 % 2 }}", "'a' % b {{ 7 % 2 }}"),
            ("{{ 'a %} b' }}{# 'a' % b #}", "{{ 'a %} b' }}{# 'a' % b #}"),
            (
                "{% raw %}{{ 'a' % b }}{% endraw %}",
                "{% raw %}{{ 'a' % b }}{% endraw %}",
            ),
            ("{{ 'a", "{{ 'a"),
            ("{{ 'a' % (b }}", "{{ 'a' % (b }}"),
            ("{{ 'a' % }}", "{{ 'a' % }}"),
            ("{", "{"),
        ] {
            assert_eq!(prepared(source), expected);
        }
    }

    #[test]
    fn generation_marks_become_conditions() {
        assert_eq!(
            prepared("{%- generation -%}a{% endgeneration %}{{ '{% generation %}' }}"),
            "{%- if true -%}a{% endif %}{{ '{% generation %}' }}"
        );
    }

    #[test]
    fn operands_are_made_lists() {
        for (source, expected) in [
            ("{{ a + b }}", "{{ a|as_list + b|as_list }}"),
            (
                "{{ a.b[1] +c(d ~ e) -1 }}",
                "{{ a.b[1]|as_list +c(d|as_list ~ e|as_list)|as_list -1 }}",
            ),
            ("{%+ if a +%}b", "{%+ if a +%}b"),
            (
                "{%- set x = x + [y] -%}",
                "{%- set x = x|as_list + [y]|as_list -%}",
            ),
            ("{{ 2 ** 3 }}", "{{ 2 ** 3 }}"),
            ("{{ f(**a) }}", "{{ f(**a) }}"),
            ("{{ a + 'b' \"c\" }}", "{{ a|as_list + 'b' \"c\"|as_list }}"),
            ("{{ or + b }}", "{{ or|as_list + b|as_list }}"),
            (
                "{{ {'a': {}}}}{{ a + b }}",
                "{{ {'a': {}}}}{{ a|as_list + b|as_list }}",
            ),
            ("{#} {{ a + b #}", "{#} {{ a + b #}"),
            (
                "{% raw %}endraw {# a {{ b + c {%- endraw +%}{{ a + b }}",
                "{% raw %}endraw {# a {{ b + c {%- endraw +%}{{ a|as_list + b|as_list }}",
            ),
            ("{{ 'a + b' }} + {# a + b #}", "{{ 'a + b' }} + {# a + b #}"),
            (
                "{{ a | b('+') + c | d(1) }}",
                "{{ a | b('+')|as_list + c | d(1)|as_list }}",
            ),
            (
                "{{ (a + b) * c }}",
                "{{ (a|as_list + b|as_list)|as_list * c|as_list }}",
            ),
        ] {
            assert_eq!(prepared(source), expected);
        }
    }
}
