//! The `tojson` filter as Transformers defines it: Python's `json.dumps`, without escaping for HTML.

use std::io;

use minijinja::value::{Kwargs, Rest};
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::Formatter;

use super::python::write_float;

/// Widest indentation; the engine counts what a filter returns, not what it takes to make it.
const INDENT_MAX: usize = 16;
/// Bytes of output for each unit of fuel: writing a value costs more than copying bytes.
const BYTES_PER_FUEL: u64 = 4;

/// Writes a value as JSON. Arguments, by place or by name: `ensure_ascii` (false), `indent`, `separators`, `sort_keys`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "filters are called with what they take"
)]
pub(super) fn tojson(
    state: &mut State<'_, '_>,
    value: &Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => named.get(name)?,
        };
        Ok(value.filter(|value: &Value| !value.is_none()))
    };
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = argument(1, "indent")?.map(usize::try_from).transpose()?;
    let separators = argument(2, "separators")?;
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    if value.is_undefined() {
        return Err(invalid("tojson: the value is undefined".to_owned()));
    }

    let fuel_left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
    let mut output = Output {
        bytes: Vec::new(),
        max: usize::try_from(fuel_left.saturating_mul(BYTES_PER_FUEL)).unwrap_or(usize::MAX),
    };
    let written = if sort_keys {
        // A sorted copy is made of the text, whose length is bounded; the value may be larger.
        let mut text = Output {
            bytes: Vec::new(),
            max: output.max,
        };
        write(&mut text, value, None, separators.as_ref(), false)?;
        state.consume_fuel(text.bytes.len() as u64 / BYTES_PER_FUEL)?;
        let copy =
            serde_json::from_slice(&text.bytes).map_err(|error| invalid(error.to_string()))?;
        let copy = sorted(copy);
        write(
            &mut output,
            &copy,
            indent,
            separators.as_ref(),
            ensure_ascii,
        )
    } else {
        write(
            &mut output,
            value,
            indent,
            separators.as_ref(),
            ensure_ascii,
        )
    };
    written?;
    state.consume_fuel(output.bytes.len() as u64 / BYTES_PER_FUEL)?;
    String::from_utf8(output.bytes).map_err(|error| invalid(error.to_string()))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn write<T: Serialize>(
    output: &mut Output,
    value: &T,
    indent: Option<usize>,
    separators: Option<&Value>,
    ensure_ascii: bool,
) -> Result<(), Error> {
    let (item, key) = match separators {
        // With an indentation, Python ends lines without a space.
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some(pair) => {
            let part = |index: usize| {
                let part = pair.get_item(&Value::from(index)).ok()?;
                part.as_str().map(str::to_owned)
            };
            part(0)
                .zip(part(1))
                .ok_or_else(|| invalid("separators are two strings".to_owned()))?
        }
    };
    if indent.is_some_and(|indent| indent > INDENT_MAX) {
        return Err(invalid(format!(
            "an indent of {} is too large",
            indent.unwrap_or_default()
        )));
    }
    let style = Style {
        indent,
        depth: 0,
        is_empty: true,
        item,
        key,
        ensure_ascii,
    };
    let result = value.serialize(&mut serde_json::Serializer::with_formatter(output, style));
    result.map_err(|error| {
        if error.io_error_kind() == Some(io::ErrorKind::FileTooLarge) {
            Error::from(ErrorKind::OutOfFuel)
        } else {
            invalid(error.to_string())
        }
    })
}

fn sorted(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        Json::Object(map) => {
            let mut pairs: Vec<_> = map.into_iter().collect();
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            Json::Object(
                pairs
                    .into_iter()
                    .map(|(key, value)| (key, sorted(value)))
                    .collect(),
            )
        }
        Json::Array(items) => Json::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

struct Output {
    bytes: Vec<u8>,
    max: usize,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.max.saturating_sub(self.bytes.len()) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_fragment<W: io::Write + ?Sized>(
    writer: &mut W,
    fragment: &str,
    ensure_ascii: bool,
) -> io::Result<()> {
    if !ensure_ascii || fragment.is_ascii() {
        return writer.write_all(fragment.as_bytes());
    }
    for unit in fragment.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => writer.write_all(&[byte])?,
            _ => write!(writer, "\\u{unit:04x}")?,
        }
    }
    Ok(())
}

/// A float as Python writes it.
fn write_number<W: io::Write + ?Sized>(writer: &mut W, value: f64) -> io::Result<()> {
    let mut text = String::new();
    write_float(&mut text, value).map_err(io::Error::other)?;
    writer.write_all(text.as_bytes())
}

/// Python's layout: on one line, or with each item on a line of its own.
struct Style {
    /// Spaces for each level.
    indent: Option<usize>,
    depth: usize,
    /// Whether nothing has been written in the list or mapping that is open.
    is_empty: bool,
    item: String,
    key: String,
    ensure_ascii: bool,
}

impl Style {
    fn open(&mut self, writer: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn close(&mut self, writer: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.end_line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }

    fn begin_item(
        &mut self,
        writer: &mut (impl io::Write + ?Sized),
        first: bool,
    ) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.is_empty = false;
        self.end_line(writer)
    }

    fn end_line(&self, writer: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        let Some(indent) = self.indent else {
            return Ok(());
        };
        writer.write_all(b"\n")?;
        for _ in 0..indent * self.depth {
            writer.write_all(b" ")?;
        }
        Ok(())
    }
}

impl Formatter for Style {
    fn begin_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        write_number(writer, value)
    }

    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_fragment(writer, fragment, self.ensure_ascii)
    }
}
