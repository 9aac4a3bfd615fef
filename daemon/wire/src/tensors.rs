//! Digests of a model's tensors: what `tensors.sha256` says.
//!
//! ```text
//! andon-tensors-v1
//! <SHA-256> <file> <bytes> <name>
//! ```
//!
//! A line is a piece of a file of weights: its head (metadata and directory), or a tensor with what fills the file up to
//! the next one. Files are numbered from 0 in the manifest's order; the pieces of a file follow one another without a
//! gap, so where one begins is not said, and cannot be said wrongly. Names are for people.
//!
//! Invariant: pieces that [`read`] let through are the files of weights of their manifest, whole, each byte once.

use crate::limits::{TENSOR_DIGESTS_BYTES_MAX, TENSOR_DIGESTS_MAX, TENSOR_NAME_BYTES_MAX};
use crate::manifest::{Digest, Manifest};

/// The first line.
pub const FIRST_LINE: &str = "andon-tensors-v1";

/// A piece of a file of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Which of the manifest's files of weights it is of, from 0.
    pub file: usize,
    /// Where it begins in that.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// What it is called.
    pub name: &'a str,
}

/// Why a text is no list of the pieces of a model. Lines are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorsError {
    /// It has more than [`TENSOR_DIGESTS_BYTES_MAX`] bytes.
    #[error("it has {0} bytes, at most {TENSOR_DIGESTS_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// It does not begin as it should.
    #[error("its first line is not {FIRST_LINE}")]
    FirstLine,
    /// A line is not a digest, a file, a size and a name.
    #[error("line {0} is not a digest, a file's number, a size and a name")]
    Line(usize),
    /// A line is of a file that is not the present one or the next.
    #[error("line {0} is of a file whose turn it is not")]
    File(usize),
    /// A piece ends outside its file.
    #[error("line {0} ends outside its file")]
    Outside(usize),
    /// A file is not covered to its end.
    #[error("file {0} is not covered to its end")]
    Gap(usize),
    /// There are too many pieces.
    #[error("there are more than {TENSOR_DIGESTS_MAX} pieces")]
    TooMany,
}

/// Reads the pieces of the weights of `manifest`, in order.
///
/// # Errors
/// [`TensorsError`]; then what `each` was told is of no use.
pub fn read<'a>(
    text: &'a str,
    manifest: &Manifest,
    each: &mut dyn FnMut(Piece<'a>),
) -> Result<(), TensorsError> {
    if text.len() as u64 > TENSOR_DIGESTS_BYTES_MAX {
        return Err(TensorsError::TooLarge(text.len()));
    }
    let mut lines = text.split_terminator('\n');
    if lines.next() != Some(FIRST_LINE) {
        return Err(TensorsError::FirstLine);
    }
    let mut weights = manifest.weights().enumerate();
    let mut present = weights.next();
    let mut end = 0;
    for (number, line) in (2..).zip(lines) {
        if number > TENSOR_DIGESTS_MAX + 1 {
            return Err(TensorsError::TooMany);
        }
        let (sha256, file, bytes, name) = fields(line).ok_or(TensorsError::Line(number))?;
        if present.is_some_and(|(index, member)| file == index + 1 && end == member.bytes) {
            present = weights.next();
            end = 0;
        }
        let Some((_, member)) = present.filter(|(index, _)| *index == file) else {
            return Err(TensorsError::File(number));
        };
        let offset = end;
        end = offset
            .checked_add(bytes)
            .filter(|end| *end <= member.bytes)
            .ok_or(TensorsError::Outside(number))?;
        each(Piece {
            file,
            offset,
            bytes,
            sha256,
            name,
        });
    }
    match present {
        Some((index, member)) if end != member.bytes => return Err(TensorsError::Gap(index)),
        _ => {}
    }
    match weights.next() {
        Some((index, _)) => Err(TensorsError::Gap(index)),
        None => Ok(()),
    }
}

fn fields(line: &str) -> Option<(Digest, usize, u64, &str)> {
    let mut fields = line.splitn(4, ' ');
    let sha256 = fields.next()?.parse().ok()?;
    let file = number(fields.next()?)?;
    let bytes = number(fields.next()?).filter(|&bytes| bytes > 0)?;
    let name = fields.next()?;
    let is_name = !name.is_empty()
        && name.len() <= TENSOR_NAME_BYTES_MAX
        && !name.chars().any(char::is_control);
    is_name.then_some((sha256, usize::try_from(file).ok()?, bytes, name))
}

/// A number as it is written here: digits, and no zeros before it.
fn number(text: &str) -> Option<u64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let is_short = text == "0" || !text.starts_with('0');
    (is_plain && is_short).then(|| text.parse().ok())?
}
