//! What templates take for granted from Python: methods of strings, lists and mappings ([`text`]), how values look
//! when they are written ([`print`](mod@print)), and filters and tests that differ from those of `minijinja`
//! ([`builtins`]).
//!
//! Invariant: what can return far more than it is given is checked against the fuel that is left before it runs, so
//! that memory stays bounded.

mod builtins;
mod print;
mod text;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

pub(super) use builtins::{LIST, PERCENT};
pub(super) use print::write_float;
pub(super) use text::WIDE;

/// Bytes that a unit of fuel pays for, as `minijinja` counts.
const BYTES_PER_FUEL: usize = 64;

/// Teaches an environment all of it.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(call_method);
    environment.set_formatter(print::format);
    builtins::install(environment);
}

fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => text::method(state, value, method, arguments)?,
        ValueKind::Seq => list_method(value, method, arguments)?,
        ValueKind::Map => mapping_method(value, method, arguments)?,
        _ => None,
    };
    match found {
        Some(result) => Ok(result),
        None => {
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
        }
    }
}

fn list_method(value: &Value, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    if method != "index" {
        return Ok(None);
    }
    let (item,): (&Value,) = from_args(arguments)?;
    match value.try_iter()?.position(|other| other == *item) {
        Some(index) => Ok(Some(Value::from(index))),
        None => Err(invalid("index: the item is not in the list")),
    }
}

fn mapping_method(
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Option<Value>, Error> {
    // The sandbox refuses what changes a mapping; a copy can only be read, like the original.
    if method != "copy" {
        return Ok(None);
    }
    let () = from_args(arguments)?;
    Ok(Some(value.clone()))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Fails when the fuel that is left does not pay for so many bytes.
fn check_bytes(state: &State<'_, '_>, bytes: Option<usize>) -> Result<(), Error> {
    match bytes {
        Some(bytes) if bytes <= bytes_left(state) => Ok(()),
        _ => Err(Error::from(ErrorKind::OutOfFuel)),
    }
}

fn bytes_left(state: &State<'_, '_>) -> usize {
    let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
    usize::try_from(left)
        .unwrap_or(usize::MAX)
        .saturating_mul(BYTES_PER_FUEL)
}

/// A result of a filter or method, paid for.
fn paid(state: &State<'_, '_>, text: String) -> Result<Value, Error> {
    check_bytes(state, Some(text.len()))?;
    state.consume_fuel((text.len() / BYTES_PER_FUEL) as u64)?;
    Ok(Value::from(text))
}

/// Argument `index`, or the one of that name.
fn argument<'a, T: minijinja::value::ArgType<'a, Output = T>>(
    positional: &'a [Value],
    named: &'a Kwargs,
    index: usize,
    name: &'a str,
) -> Result<Option<T>, Error> {
    match positional.get(index) {
        Some(value) => T::from_value(Some(value)).map(Some),
        None if named.has(name) => named.get(name).map(Some),
        None => Ok(None),
    }
}
