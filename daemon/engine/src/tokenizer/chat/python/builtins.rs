//! Filters, tests and functions of Jinja2 that `minijinja` lacks or has otherwise.

#![expect(
    clippy::needless_pass_by_value,
    reason = "filters are called with what they take"
)]

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::{argument, bytes_left, check_bytes, invalid, paid, print, text};

/// The name under which [`super::super::source`] calls the format operator of strings.
pub(in super::super) const PERCENT: &str = "percent_format";

/// The name of the filter that computes a list, which it puts around operands.
pub(in super::super) const LIST: &str = "as_list";

/// Items of a list that a unit of fuel pays for. With 24 bytes each, all that fuel can pay for is less than 200 MiB.
const ITEMS_PER_FUEL: usize = 4;

pub(super) fn install(environment: &mut Environment<'_>) {
    // Not of Jinja2, and lists that are still to be computed.
    environment.remove_filter("chain");
    environment.remove_filter("zip");
    environment.add_filter(LIST, as_list);
    environment.add_filter("string", string);
    environment.add_filter("join", join);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    environment.add_filter("truncate", truncate);
    environment.add_filter("center", center);
    environment.add_filter(
        PERCENT,
        |state: &mut State<'_, '_>, text: &str, value: &Value| text::percent(state, text, value),
    );
    environment.add_test("iterable", |value: &Value| {
        value.kind() != ValueKind::None && value.try_iter().is_ok()
    });
    environment.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined
        )
    });
    environment.add_test("callable", |value: &Value| {
        value.kind() == ValueKind::Plain && value.as_object().is_some()
    });
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_function("dict", dict);
    environment.add_function("cycler", |items: Rest<Value>| {
        minijinja_contrib::globals::cycler(items.to_vec())
    });
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

/// A list in place of what would be computed as it is read; other values as they are.
fn as_list(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
    let most = usize::try_from(left)
        .unwrap_or(usize::MAX)
        .saturating_mul(ITEMS_PER_FUEL);
    let mut items = Vec::new();
    if value.len().is_none_or(|length| length <= most) {
        items.extend(value.try_iter()?.take(most.saturating_add(1)));
    }
    if items.len() > most || value.len().is_some_and(|length| length > most) {
        return Err(Error::from(minijinja::ErrorKind::OutOfFuel));
    }
    state.consume_fuel((items.len() / ITEMS_PER_FUEL) as u64)?;
    Ok(Value::from(items))
}

fn string(state: &mut State<'_, '_>, value: &Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String {
        return Ok(value.clone());
    }
    paid(state, print::string(value, bytes_left(state))?)
}

fn join(
    state: &mut State<'_, '_>,
    value: &Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    if value.is_none() {
        return Err(invalid("join: none has no items"));
    }
    let separator: Option<String> = argument(&positional, &named, 0, "d")?;
    let attribute: Option<Value> = argument(&positional, &named, 1, "attribute")?;
    named.assert_all_used()?;
    let separator = separator.unwrap_or_default();
    let most = bytes_left(state);
    let mut text = String::new();
    for (index, mut item) in value.try_iter()?.enumerate() {
        if index > 0 {
            text.push_str(&separator);
        }
        if let Some(attribute) = &attribute {
            for part in attribute.to_string().split('.') {
                item = item.get_attr(part)?;
            }
        }
        let left = most.saturating_sub(text.len());
        match item.as_str() {
            Some(item) if item.len() <= left => text.push_str(item),
            Some(_) => return Err(Error::from(minijinja::ErrorKind::OutOfFuel)),
            None => text.push_str(&print::string(&item, left)?),
        }
    }
    paid(state, text)
}

fn default(value: Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let other: Option<Value> = argument(&positional, &named, 0, "default_value")?;
    let boolean: Option<bool> = argument(&positional, &named, 1, "boolean")?;
    named.assert_all_used()?;
    Ok(
        if value.is_undefined() || boolean == Some(true) && !value.is_true() {
            other.unwrap_or_else(|| Value::from(""))
        } else {
            value
        },
    )
}

fn indent(
    state: &mut State<'_, '_>,
    text: &str,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let width: Option<Value> = argument(&positional, &named, 0, "width")?;
    let first: Option<bool> = argument(&positional, &named, 1, "first")?;
    let blank: Option<bool> = argument(&positional, &named, 2, "blank")?;
    named.assert_all_used()?;
    let left = bytes_left(state);
    let margin = match width {
        None => "    ".to_owned(),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let width = usize::try_from(width)?;
                check_bytes(state, Some(width))?;
                " ".repeat(width)
            }
        },
    };
    let mut result = String::new();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            result.push('\n');
        }
        let wanted = if index == 0 {
            first == Some(true)
        } else {
            !line.is_empty() || blank == Some(true)
        };
        if wanted {
            result.push_str(&margin);
        }
        result.push_str(line);
        if result.len() > left {
            return Err(Error::from(minijinja::ErrorKind::OutOfFuel));
        }
    }
    paid(state, result)
}

/// A whole number, or what stands in where the value is none.
fn int(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let other: Option<Value> = argument(&positional, &named, 0, "default")?;
    let base: Option<u32> = argument(&positional, &named, 1, "base")?;
    named.assert_all_used()?;
    let other = other.unwrap_or_else(|| Value::from(0));
    let base = base.unwrap_or(10);
    if !(2..=36).contains(&base) {
        return Err(invalid("int: a base from 2 to 36"));
    }
    let number = match value.as_str() {
        Some(text) => {
            let text = text.trim().replace('_', "");
            let prefix = match base {
                16 => "0x",
                8 => "0o",
                2 => "0b",
                _ => "",
            };
            let digits = text.strip_prefix(prefix).unwrap_or(&text);
            match i64::from_str_radix(digits, base) {
                Ok(number) => Some(number),
                Err(_) => text
                    .parse::<f64>()
                    .ok()
                    .filter(|n| n.is_finite())
                    .map(|n| n as i64),
            }
        }
        None => match value.kind() {
            ValueKind::Number if value.is_integer() => return Ok(value.clone()),
            ValueKind::Number => f64::try_from(value.clone())
                .ok()
                .filter(|number| number.is_finite())
                .map(|number| number as i64),
            ValueKind::Bool => Some(i64::from(value.is_true())),
            _ => None,
        },
    };
    Ok(number.map_or(other, Value::from))
}

fn float(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let other: Option<Value> = argument(&positional, &named, 0, "default")?;
    named.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => text.trim().parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.map_or_else(|| other.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

fn truncate(text: &str, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let length: Option<usize> = argument(&positional, &named, 0, "length")?;
    let cut_words: Option<bool> = argument(&positional, &named, 1, "killwords")?;
    let end: Option<String> = argument(&positional, &named, 2, "end")?;
    let leeway: Option<usize> = argument(&positional, &named, 3, "leeway")?;
    named.assert_all_used()?;
    let (length, leeway) = (length.unwrap_or(255), leeway.unwrap_or(5));
    let end = end.unwrap_or_else(|| "...".to_owned());
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept = length
        .checked_sub(end.chars().count())
        .ok_or_else(|| invalid("truncate: the length is less than that of the end"))?;
    let mut result: String = text.chars().take(kept).collect();
    if cut_words != Some(true)
        && let Some(at) = result.rfind(' ')
    {
        result.truncate(at);
    }
    Ok(result + &end)
}

fn center(state: &mut State<'_, '_>, text: &str, width: Option<usize>) -> Result<Value, Error> {
    let width = width.unwrap_or(80);
    let count = width.saturating_sub(text.chars().count());
    check_bytes(state, Some(count))?;
    let left = count / 2 + (count & width & 1);
    paid(
        state,
        format!("{}{text}{}", " ".repeat(left), " ".repeat(count - left)),
    )
}

/// Escaped for HTML, with the entities that Jinja2 writes.
fn escape(state: &mut State<'_, '_>, value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    let text = match value.as_str() {
        Some(text) => text.to_owned(),
        None => print::string(value, bytes_left(state))?,
    };
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            _ => escaped.push(character),
        }
    }
    check_bytes(state, Some(escaped.len()))?;
    Ok(Value::from_safe_string(escaped))
}

/// A mapping of another one or of pairs, and of named arguments.
fn dict(from: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    if let Some(from) = from {
        let is_mapping = from.kind() == ValueKind::Map;
        for item in from.try_iter()? {
            if is_mapping {
                let value = from.get_item(&item)?;
                pairs.push((item, value));
            } else {
                let parts: Vec<Value> = item.try_iter()?.take(3).collect();
                let [key, value] = parts.as_slice() else {
                    return Err(invalid("dict: an item is no pair"));
                };
                pairs.push((key.clone(), value.clone()));
            }
        }
    }
    for name in named.args() {
        pairs.push((Value::from(name), named.get(name)?));
    }
    Ok(Value::from_pairs(pairs))
}
