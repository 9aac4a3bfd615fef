//! What templates take for granted from Python: methods of strings, lists and mappings, and how values
//! look when they are written.
//!
//! `minijinja-contrib` has the methods. Those that can return far more than they are given are checked
//! against the fuel that is left before they run, so that memory stays bounded.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// Bytes that a unit of fuel pays for, as `minijinja` counts.
const BYTES_PER_FUEL: usize = 64;

pub(super) fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match method {
            "replace" => check_replace(state, text, arguments)?,
            "join" => return join(state, text, arguments),
            // A width of a billion is written in ten characters, and `minijinja-contrib` does not bound it.
            "format" if has_wide_field(text) => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    "a format with wide or nested fields",
                ));
            }
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(arguments)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(arguments)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
}

fn check_bytes(state: &State<'_, '_>, bytes: Option<usize>) -> Result<(), Error> {
    let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
    let left = usize::try_from(left)
        .unwrap_or(usize::MAX)
        .saturating_mul(BYTES_PER_FUEL);
    match bytes {
        Some(bytes) if bytes <= left => Ok(()),
        _ => Err(Error::from(ErrorKind::OutOfFuel)),
    }
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
    let mut text = String::new();
    for (index, value) in values.try_iter()?.enumerate() {
        // As in Python: other values must be made strings first.
        let item = value
            .as_str()
            .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "join: an item is no string"))?;
        if index > 0 {
            text.push_str(separator);
        }
        text.push_str(item);
        check_bytes(state, Some(text.len()))?;
    }
    Ok(Value::from(text))
}

/// Whether a format has a field wider than four digits, or one inside another.
fn has_wide_field(format: &str) -> bool {
    let mut depth = 0u32;
    let mut digits = 0u32;
    for byte in format.bytes() {
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > 1 || digits > 4 {
            return true;
        }
    }
    false
}

/// Writes a value into the output as Jinja2 does.
pub(super) fn format(
    output: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool => {
            let text = if value.is_true() { "True" } else { "False" };
            output.write_str(text).map_err(Error::from)
        }
        ValueKind::None => output.write_str("None").map_err(Error::from),
        _ => minijinja::escape_formatter(output, state, value),
    }
}
