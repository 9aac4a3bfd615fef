//! The `tojson` filter as Transformers defines it: Python's `json.dumps`, without escaping for HTML.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

/// Widest indentation; the engine counts what a filter returns, not what it takes to make it.
const INDENT_MAX: usize = 16;
/// Bytes of output for each unit of fuel: writing a value costs more than copying bytes.
const BYTES_PER_FUEL: u64 = 4;

/// Writes a value as JSON. Named arguments: `indent`, `ensure_ascii` (false), `separators`, `sort_keys`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "filters are called with what they take"
)]
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    arguments: Kwargs,
) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let ensure_ascii: Option<bool> = arguments.get("ensure_ascii")?;
    let separators: Option<Value> = arguments.get("separators")?;
    let sort_keys: Option<bool> = arguments.get("sort_keys")?;
    arguments.assert_all_used()?;

    let fuel_left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
    let mut output = Output {
        bytes: Vec::new(),
        max: usize::try_from(fuel_left.saturating_mul(BYTES_PER_FUEL)).unwrap_or(usize::MAX),
    };
    let written = if sort_keys == Some(true) {
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
            ensure_ascii == Some(true),
        )
    } else {
        write(
            &mut output,
            value,
            indent,
            separators.as_ref(),
            ensure_ascii == Some(true),
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
    let result = match indent {
        None => {
            let style = Spaced {
                item,
                key,
                ensure_ascii,
            };
            value.serialize(&mut serde_json::Serializer::with_formatter(output, style))
        }
        Some(indent) => {
            if indent > INDENT_MAX {
                return Err(invalid(format!("indent is at most {INDENT_MAX}")));
            }
            let spaces = " ".repeat(indent);
            let style = Indented {
                pretty: PrettyFormatter::with_indent(spaces.as_bytes()),
                ensure_ascii,
            };
            value.serialize(&mut serde_json::Serializer::with_formatter(output, style))
        }
    };
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

/// On one line, with given separators.
struct Spaced {
    item: String,
    key: String,
    ensure_ascii: bool,
}

impl Formatter for Spaced {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(self.item.as_bytes())
        }
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(self.item.as_bytes())
        }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_fragment(writer, fragment, self.ensure_ascii)
    }
}

/// On several lines.
struct Indented<'a> {
    pretty: PrettyFormatter<'a>,
    ensure_ascii: bool,
}

impl Formatter for Indented<'_> {
    fn begin_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_array(writer)
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array(writer)
    }

    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.pretty.begin_array_value(writer, first)
    }

    fn end_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array_value(writer)
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object(writer)
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object(writer)
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.pretty.begin_object_key(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(writer)
    }

    fn end_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(writer)
    }

    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_fragment(writer, fragment, self.ensure_ascii)
    }
}
