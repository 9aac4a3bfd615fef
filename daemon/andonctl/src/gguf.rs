//! A look into the head of a GGUF file: enough to say what it is before gigabytes are moved.
//!
//! This is no check of the file; that is the daemon's. What is read is bounded, and values that nobody
//! here needs are skipped.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use crate::failure::Failure;

const MAGIC: &[u8; 4] = b"GGUF";
/// Bounds far above real files (40 entries, keys of 60 bytes, vocabularies of half a million).
const ENTRIES_MAX: u64 = 1 << 16;
const KEY_BYTES_MAX: u64 = 1 << 16;
const ARRAY_LENGTH_MAX: u64 = 1 << 24;
const TENSORS_MAX: u64 = 1 << 17;
const DIMENSIONS_MAX: u32 = 4;
/// Alignment of tensors where the file does not say.
const ALIGNMENT_DEFAULT: u64 = 32;
/// Longest text that is kept; a longer one is skipped.
const TEXT_BYTES_MAX: u64 = 1024;

/// What a file says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) architecture: String,
    pub(crate) name: Option<String>,
    pub(crate) license: Option<String>,
    /// How the weights are stored, as `general.file_type` says.
    pub(crate) quantization: Option<&'static str>,
    /// The model has a chat template of its own.
    pub(crate) chat_template: bool,
}

/// Where the tensors of the file at `path` begin, and their names; in the order of the file, and no two at one place. A
/// file that ends before a tensor has one less here: what is wrong with it is the daemon's to say.
pub(crate) fn tensors(path: &Path, file_bytes: u64) -> Result<Vec<(u64, String)>, Failure> {
    let file = File::open(path).map_err(|error| Failure::file("read", path, error))?;
    directory(&mut BufReader::new(file), file_bytes)
        .map_err(|why| Failure::Damaged(format!("{} is not a GGUF file: {why}", path.display())))
}

fn directory(
    reader: &mut (impl Read + Seek),
    file_bytes: u64,
) -> Result<Vec<(u64, String)>, String> {
    let (_, tensor_count, alignment) = metadata(reader)?;
    if tensor_count > TENSORS_MAX {
        return Err(format!("it claims {tensor_count} tensors"));
    }
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        let name = text(reader, TEXT_BYTES_MAX)?.unwrap_or_default();
        let dimensions = u32::from_le_bytes(bytes(reader)?);
        if dimensions > DIMENSIONS_MAX {
            return Err(format!("a tensor in it has {dimensions} dimensions"));
        }
        // Sizes, and the type.
        forward(reader, u64::from(dimensions) * 8 + 4)?;
        tensors.push((u64::from_le_bytes(bytes(reader)?), name));
    }
    let end = reader.stream_position().map_err(|error| broken(&error))?;
    let data = end
        .checked_next_multiple_of(alignment)
        .ok_or("its alignment is absurd")?;
    for (start, _) in &mut tensors {
        *start = start.saturating_add(data);
    }
    tensors.retain(|(start, _)| *start < file_bytes);
    tensors.sort();
    tensors.dedup_by_key(|(start, _)| *start);
    Ok(tensors)
}

/// Reads the head of the file at `path`.
pub(crate) fn head(path: &Path) -> Result<Head, Failure> {
    let file = File::open(path).map_err(|error| Failure::file("read", path, error))?;
    read(&mut BufReader::new(file))
        .map_err(|why| Failure::Damaged(format!("{} is not a GGUF file: {why}", path.display())))
}

fn read(reader: &mut (impl Read + Seek)) -> Result<Head, String> {
    let (head, ..) = metadata(reader)?;
    if head.architecture.is_empty() {
        return Err("it does not name its architecture".to_owned());
    }
    Ok(head)
}

/// Everything before the directory of tensors: what it says, how many tensors there are, and how they are aligned.
fn metadata(reader: &mut (impl Read + Seek)) -> Result<(Head, u64, u64), String> {
    if bytes::<4>(reader)? != *MAGIC {
        return Err("it does not begin with GGUF".to_owned());
    }
    let version = u32::from_le_bytes(bytes(reader)?);
    if !matches!(version, 2 | 3) {
        return Err(format!("its version is {version}, not 2 or 3"));
    }
    let tensors = u64::from_le_bytes(bytes(reader)?);
    let entries = u64::from_le_bytes(bytes(reader)?);
    if entries > ENTRIES_MAX {
        return Err(format!("it claims {entries} entries of metadata"));
    }
    let mut head = Head::default();
    let mut alignment = ALIGNMENT_DEFAULT;
    for _ in 0..entries {
        let key = text(reader, KEY_BYTES_MAX)?.unwrap_or_default();
        let kind = u32::from_le_bytes(bytes(reader)?);
        match (key.as_str(), kind) {
            ("general.architecture", 8) => {
                head.architecture = text(reader, TEXT_BYTES_MAX)?.unwrap_or_default();
            }
            ("general.name", 8) => head.name = text(reader, TEXT_BYTES_MAX)?,
            ("general.license", 8) => head.license = text(reader, TEXT_BYTES_MAX)?,
            ("general.file_type", 4) => {
                head.quantization = quantization(u32::from_le_bytes(bytes(reader)?));
            }
            ("general.alignment", 4) => {
                alignment = u32::from_le_bytes(bytes(reader)?).max(1).into();
            }
            _ => {
                head.chat_template |= key == "tokenizer.chat_template";
                skip(reader, kind)?;
            }
        }
    }
    Ok((head, tensors, alignment))
}

fn bytes<const N: usize>(reader: &mut impl Read) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    reader
        .read_exact(&mut bytes)
        .map_err(|error| broken(&error))?;
    Ok(bytes)
}

fn broken(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "it ends within its head".to_owned(),
        _ => format!("its head: {error}"),
    }
}

/// A text, or nothing if it is longer than `most`; then it is skipped.
fn text(reader: &mut (impl Read + Seek), most: u64) -> Result<Option<String>, String> {
    let length = u64::from_le_bytes(bytes(reader)?);
    if length > most {
        forward(reader, length)?;
        return Ok(None);
    }
    let mut text = Vec::new();
    reader
        .take(length)
        .read_to_end(&mut text)
        .map_err(|error| broken(&error))?;
    if text.len() as u64 != length {
        return Err("it ends within its head".to_owned());
    }
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

fn forward(reader: &mut impl Seek, bytes: u64) -> Result<(), String> {
    let bytes = i64::try_from(bytes).map_err(|_| "a length in it is absurd".to_owned())?;
    reader
        .seek(SeekFrom::Current(bytes))
        .map(drop)
        .map_err(|error| broken(&error))
}

fn skip(reader: &mut (impl Read + Seek), kind: u32) -> Result<(), String> {
    match kind {
        8 => {
            let length = u64::from_le_bytes(bytes(reader)?);
            forward(reader, length)
        }
        9 => {
            let kind = u32::from_le_bytes(bytes(reader)?);
            let length = u64::from_le_bytes(bytes(reader)?);
            if length > ARRAY_LENGTH_MAX {
                return Err(format!("it claims an array of {length} elements"));
            }
            match width(kind) {
                Some(width) => forward(reader, length.saturating_mul(width)),
                // Texts; arrays of arrays are in no file.
                None if kind == 8 => {
                    let mut one = [0; 8];
                    for _ in 0..length {
                        reader
                            .read_exact(&mut one)
                            .map_err(|error| broken(&error))?;
                        let mut rest = reader.by_ref().take(u64::from_le_bytes(one));
                        let wanted = rest.limit();
                        let read = std::io::copy(&mut rest, &mut std::io::sink())
                            .map_err(|error| broken(&error))?;
                        if read != wanted {
                            return Err("it ends within its head".to_owned());
                        }
                    }
                    Ok(())
                }
                None => Err(format!("it has an array of type {kind}")),
            }
        }
        _ => match width(kind) {
            Some(width) => forward(reader, width),
            None => Err(format!("it has a value of type {kind}")),
        },
    }
}

/// Bytes of a value of a fixed size.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The word for a `general.file_type`, numbered as llama.cpp's `llama_ftype` is.
fn quantization(file_type: u32) -> Option<&'static str> {
    Some(match file_type {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Head, directory, read};
    use std::io::Cursor;

    fn text(text: &str, out: &mut Vec<u8>) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn sample() -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(0u64.to_le_bytes());
        file.extend(5u64.to_le_bytes());
        for (key, value) in [
            ("general.architecture", "llama"),
            ("general.license", "mit"),
        ] {
            text(key, &mut file);
            file.extend(8u32.to_le_bytes());
            text(value, &mut file);
        }
        text("tokenizer.ggml.tokens", &mut file);
        file.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
        file.extend(2u64.to_le_bytes());
        text("a", &mut file);
        text("bc", &mut file);
        text("tokenizer.chat_template", &mut file);
        file.extend(8u32.to_le_bytes());
        text("{{ x }}", &mut file);
        text("general.file_type", &mut file);
        file.extend([4u32.to_le_bytes(), 15u32.to_le_bytes()].concat());
        file
    }

    #[test]
    fn a_head_is_read() {
        let head = read(&mut Cursor::new(sample())).unwrap();
        assert_eq!(
            head,
            Head {
                architecture: "llama".to_owned(),
                name: None,
                license: Some("mit".to_owned()),
                quantization: Some("Q4_K_M"),
                chat_template: true,
            }
        );
    }

    #[test]
    fn tensors_are_found_where_they_lie() {
        let mut file = sample();
        file[8..16].copy_from_slice(&3u64.to_le_bytes());
        for (name, offset) in [("b", 64u64), ("a", 0), ("gone", 1 << 40)] {
            text(name, &mut file);
            file.extend(2u32.to_le_bytes());
            file.extend([0; 8 + 8 + 4]);
            file.extend(offset.to_le_bytes());
        }
        let data = (file.len() as u64).next_multiple_of(32);
        let found = directory(&mut Cursor::new(&file), data + 100).unwrap();
        assert_eq!(found, [(data, "a".to_owned()), (data + 64, "b".to_owned())]);
        let whole = file.len();
        for length in sample().len()..whole {
            let cut = &file[..length];
            assert!(
                directory(&mut Cursor::new(cut), 1 << 20).is_err(),
                "{length}"
            );
        }
    }

    #[test]
    fn a_cut_or_absurd_head_is_an_error() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(
                read(&mut Cursor::new(&whole[..length])).is_err(),
                "{length}"
            );
        }
        for at in [16, 24] {
            let mut absurd = whole.clone();
            absurd[at..at + 8].fill(0xff);
            assert!(read(&mut Cursor::new(absurd)).is_err(), "{at}");
        }
    }
}
