//! How Python writes values: `str` outermost, `repr` inside of lists, tuples and mappings.

use std::fmt::{self, Write};

use super::{BYTES_PER_FUEL, bytes_left};
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};
use unicode_general_category::{GeneralCategory, get_general_category};

/// Writes a value into the output as Jinja2 does.
pub(super) fn format(
    output: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => {
            minijinja::escape_formatter(output, state, value)
        }
        ValueKind::Bool | ValueKind::None | ValueKind::Number => {
            write_value(output, value, false).map_err(Error::from)
        }
        _ => {
            let text = string(value, bytes_left(state))?;
            state.consume_fuel((text.len() / (BYTES_PER_FUEL / WALKING)) as u64)?;
            output.write_str(&text).map_err(Error::from)
        }
    }
}

/// How much more it takes to walk through a value than to copy the bytes that are written of it.
const WALKING: usize = 16;

/// `str(value)`, where so many bytes could be paid for.
pub(super) fn string(value: &Value, bytes_left: usize) -> Result<String, Error> {
    let mut bounded = Bounded {
        text: String::new(),
        bytes_max: bytes_left / WALKING,
    };
    match write_value(&mut bounded, value, false) {
        Ok(()) => Ok(bounded.text),
        Err(fmt::Error) => Err(Error::from(ErrorKind::OutOfFuel)),
    }
}

struct Bounded {
    text: String,
    bytes_max: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > self.bytes_max.saturating_sub(self.text.len()) {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

fn write_value(out: &mut dyn Write, value: &Value, quoted: bool) -> fmt::Result {
    if let Some(text) = value.as_str() {
        return if quoted {
            write_quoted(out, text)
        } else {
            out.write_str(text)
        };
    }
    match value.kind() {
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::None => out.write_str("None"),
        ValueKind::Undefined if quoted => out.write_str("Undefined"),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => write_float(out, number),
            Err(_) => write!(out, "{value}"),
        },
        ValueKind::Seq => {
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            let (open, close) = if tuple { ("(", ")") } else { ("[", "]") };
            out.write_str(open)?;
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                if count > 0 {
                    out.write_str(", ")?;
                }
                write_value(out, &item, true)?;
                count += 1;
            }
            if tuple && count == 1 {
                out.write_str(",")?;
            }
            out.write_str(close)
        }
        ValueKind::Map
            if value
                .as_object()
                .is_some_and(|object| object.is_true() || value.len() == Some(0)) =>
        {
            out.write_str("{")?;
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                if index > 0 {
                    out.write_str(", ")?;
                }
                write_value(out, &key, true)?;
                out.write_str(": ")?;
                let item = value.get_item(&key).unwrap_or_default();
                write_value(out, &item, true)?;
            }
            out.write_str("}")
        }
        _ => write!(out, "{value}"),
    }
}

/// A float with the fewest digits that give it back, as Python places them: with an exponent from 1e16 on and
/// below 1e-4.
pub(in super::super) fn write_float(out: &mut dyn Write, number: f64) -> fmt::Result {
    if number.is_nan() {
        return out.write_str("nan");
    }
    if number.is_infinite() {
        return out.write_str(if number > 0.0 { "inf" } else { "-inf" });
    }
    let size = number.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        // Debug writes whole numbers with `.0`, and exponents only beyond this range.
        return write!(out, "{number:?}");
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    write!(out, "{digits}e{sign}{exponent:0>2}")
}

/// A string in quotes: single ones unless only they occur in it.
fn write_quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.write_char(quote)?;
    for character in text.chars() {
        match character {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            _ if character == quote => write!(out, "\\{quote}")?,
            _ if is_printable(character) => out.write_char(character)?,
            _ => match u32::from(character) {
                code @ 0..=0xff => write!(out, "\\x{code:02x}")?,
                code @ 0x100..=0xffff => write!(out, "\\u{code:04x}")?,
                code => write!(out, "\\U{code:08x}")?,
            },
        }
    }
    out.write_char(quote)
}

fn is_printable(character: char) -> bool {
    use GeneralCategory as G;
    character == ' '
        || !matches!(
            get_general_category(character),
            G::Control
                | G::Format
                | G::Surrogate
                | G::PrivateUse
                | G::Unassigned
                | G::LineSeparator
                | G::ParagraphSeparator
                | G::SpaceSeparator
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_those_of_python() {
        for (number, expected) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.000_012_5, "1.25e-05"),
            (5e-324, "5e-324"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            let mut text = String::new();
            write_float(&mut text, number).expect("strings take all");
            assert_eq!(text, expected);
        }
    }
}
