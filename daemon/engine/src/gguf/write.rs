//! Writing GGUF files of version 3, for tools: metadata and a directory first, then the tensors' data in the same order.
//!
//! What this leaves out: splitting, and the contents of tensors, which whoever writes a file supplies one by one.
//!
//! Invariant: a tensor's data has the length that its format and shape in the directory give it.

use std::io::{self, Write};

use andon_kernels::Format;

use super::limits::ALIGNMENT_DEFAULT;
use super::{Array, Value, ValueType};

/// Metadata and directory of a file to be written.
#[derive(Debug, Default)]
pub struct Writer {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    dims: Vec<usize>,
    format: Format,
    bytes: usize,
}

impl Writer {
    /// A file with nothing in it. Tensors begin at multiples of [`ALIGNMENT_DEFAULT`], so `general.alignment` is not to be
    /// put with another value.
    #[must_use]
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds a key, whether or not there is one of that name.
    pub fn put(&mut self, key: &str, value: &Value<'_>) {
        self.key_count += 1;
        put_text(&mut self.keys, key);
        self.keys.extend((value.value_type() as u32).to_le_bytes());
        put_value(&mut self.keys, value);
    }

    /// Adds a key with a list of numbers.
    pub fn put_list(&mut self, key: &str, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let list = Array {
            element_type: ValueType::U32,
            length: numbers.len(),
            bytes: &bytes,
        };
        self.put(key, &Value::Array(list));
    }

    /// Adds a key with a list of texts.
    pub fn put_texts(&mut self, key: &str, texts: &[impl AsRef<str>]) {
        let mut bytes = Vec::new();
        texts
            .iter()
            .for_each(|text| put_text(&mut bytes, text.as_ref()));
        let list = Array {
            element_type: ValueType::Str,
            length: texts.len(),
            bytes: &bytes,
        };
        self.put(key, &Value::Array(list));
    }

    /// Adds a tensor to the directory; the first of `dims` is the contiguous one. Returns the bytes of its data, `None` if
    /// its rows are not whole blocks of `format`, or too long; it is not added then.
    pub fn tensor(&mut self, name: &str, dims: &[usize], format: Format) -> Option<usize> {
        let (&columns, others) = dims.split_first()?;
        let rows = others
            .iter()
            .try_fold(1usize, |rows, &dim| rows.checked_mul(dim))?;
        let bytes = format.bytes(columns)?.checked_mul(rows)?;
        self.tensors.push(Entry {
            name: name.to_owned(),
            dims: dims.to_vec(),
            format,
            bytes,
        });
        Some(bytes)
    }

    /// Writes the file. `data` writes the bytes of each tensor, in the order in which they were added.
    ///
    /// # Errors
    /// What `out` or `data` fails with; [`io::ErrorKind::InvalidData`] for data of another length than the directory says.
    pub fn write(
        &self,
        out: &mut impl Write,
        mut data: impl FnMut(&str, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut head = b"GGUF".to_vec();
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend(self.key_count.to_le_bytes());
        head.extend(&self.keys);
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_text(&mut head, &tensor.name);
            head.extend((tensor.dims.len() as u32).to_le_bytes());
            for &dim in &tensor.dims {
                head.extend((dim as u64).to_le_bytes());
            }
            head.extend(tensor.format.ggml_id().to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset += tensor.bytes.next_multiple_of(ALIGNMENT_DEFAULT) as u64;
        }
        out.write_all(&head)?;
        out.write_all(padding(head.len()))?;
        for tensor in &self.tensors {
            let mut counted = Counted {
                out: &mut *out,
                bytes: 0,
            };
            data(&tensor.name, &mut counted)?;
            let found = counted.bytes;
            if found != tensor.bytes {
                let message = format!(
                    "`{}` has {found} bytes of data, not {}",
                    tensor.name, tensor.bytes
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            out.write_all(padding(found))?;
        }
        Ok(())
    }
}

/// Counts what goes through.
struct Counted<'a, W> {
    out: &'a mut W,
    bytes: usize,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What is missing behind so many bytes.
fn padding(bytes: usize) -> &'static [u8] {
    &[0; ALIGNMENT_DEFAULT][..bytes.next_multiple_of(ALIGNMENT_DEFAULT) - bytes]
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value<'_>) {
    match *value {
        Value::U8(v) => out.push(v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(v.into()),
        Value::Str(text) => put_text(out, text),
        Value::Array(array) => {
            out.extend((array.element_type as u32).to_le_bytes());
            out.extend((array.length as u64).to_le_bytes());
            out.extend(array.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Writer;
    use crate::gguf::{Gguf, Value};
    use andon_kernels::Format;

    #[test]
    fn what_is_written_is_read_again() {
        let mut first = Writer::new();
        first.put("general.architecture", &Value::Str("x"));
        first.put("a.flag", &Value::Bool(true));
        first.put("a.factor", &Value::F32(0.5));
        first.put_list("a.list", &[3, 5, 1 << 31]);
        first.put_texts("a.texts", &["", "two"]);
        assert_eq!(first.tensor("vector", &[5], Format::F32), Some(20));
        assert_eq!(first.tensor("matrix", &[32, 3], Format::Q8_0), Some(102));
        assert_eq!(first.tensor("odd", &[31, 3], Format::Q8_0), None);
        let data = |name: &str, out: &mut dyn std::io::Write| {
            let bytes = if name == "vector" { 20 } else { 102 };
            out.write_all(&vec![name.len() as u8; bytes])
        };
        let mut bytes = Vec::new();
        first.write(&mut bytes, data).expect("written");
        let read = Gguf::parse(&bytes).expect("a sound file");
        assert_eq!(read.f32("a.factor"), Ok(0.5));
        let matrix = read.tensor("matrix").expect("there");
        assert_eq!(
            (&*matrix.dims, matrix.format),
            (&[32, 3][..], Some(Format::Q8_0))
        );
        assert_eq!(read.data(matrix), [6; 102]);

        // Every value, lists too, can be copied from one file to another.
        let mut second = Writer::new();
        for key in read.keys() {
            second.put(key, &read.get(key).expect("there"));
        }
        second.tensor("vector", &[5], Format::F32);
        second.tensor("matrix", &[32, 3], Format::Q8_0);
        let mut again = Vec::new();
        second.write(&mut again, data).expect("written");
        assert_eq!(bytes, again);
        let short = second.write(&mut Vec::new(), |_, _| Ok(()));
        assert!(short.is_err_and(|error| error.to_string().contains("`vector` has 0 bytes")));
    }
}
