//! Models in several files: `NAME-00001-of-00003.gguf` and so on.
//!
//! Each part is a whole GGUF file with tensors of its own. The first has the metadata of the model; every part says
//! which it is (`split.no`, from 0), how many there are (`split.count`) and how many tensors all of them have
//! (`split.tensors.count`). A file that was put together again says `split.count` 0.
//!
//! The invariant: a joined [`Gguf`] has every part once and in order, and every tensor of the set once.

use std::path::{Path, PathBuf};

use super::error::{MetaError, SplitError};
use super::limits::{PARTS_MAX, TENSOR_COUNT_MAX};
use super::{Gguf, Value};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The name of a part of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    folder: PathBuf,
    prefix: String,
    /// Which part it is, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl PartName {
    /// Reads `PREFIX-00001-of-00003.gguf`; `None` for any other name, and for numbers that cannot be.
    #[must_use]
    pub fn of(path: &Path) -> Option<PartName> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        let index = number.checked_sub(1).filter(|&index| index < count)?;
        Some(PartName {
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            prefix: prefix.to_owned(),
            index,
            count,
        })
    }

    /// Where part `index` of the same set is.
    #[must_use]
    pub fn part(&self, index: usize) -> PathBuf {
        let name = format!("{}-{:05}-of-{:05}.gguf", self.prefix, index + 1, self.count);
        self.folder.join(name)
    }
}

fn five_digits(text: &str) -> Option<usize> {
    let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// A part that does not fit the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPart {
    /// Which part, from 0 in the order given.
    pub index: usize,
    /// What is wrong with it.
    pub error: SplitError,
}

impl<'a> Gguf<'a> {
    /// Joins the parts of a set, given in order; a file that is whole is a set of one.
    ///
    /// The result has the metadata of the first part and the tensors of all of them.
    ///
    /// # Errors
    /// [`BadPart`] for the first part that does not fit.
    pub fn join(parts: Vec<Gguf<'a>>) -> Result<Gguf<'a>, BadPart> {
        let count = parts.len();
        let mut parts = parts.into_iter();
        let Some(mut whole) = parts.next() else {
            let error = SplitError::Count { key: 0, files: 0 };
            return Err(BadPart { index: 0, error });
        };
        let bad = |index| move |error| BadPart { index, error };
        let claimed = read(&whole, COUNT).map_err(bad(0))?;
        // One file that does not say it is a part is whole.
        if count == 1 && claimed.unwrap_or(0) <= 1 {
            return Ok(whole);
        }
        let tensors = read(&whole, TENSORS).map_err(bad(0))?;
        check(&whole, 0, count).map_err(bad(0))?;
        for (part, index) in parts.zip(1..) {
            check(&part, index, count).map_err(bad(index))?;
            whole.take(part, index).map_err(bad(index))?;
        }
        let found = whole.tensors.len();
        match tensors {
            Some(claimed) if claimed != found as u64 => Err(BadPart {
                index: 0,
                error: SplitError::TensorCount { claimed, found },
            }),
            _ => Ok(whole),
        }
    }

    /// Appends the tensors of part `index`.
    fn take(&mut self, part: Gguf<'a>, index: usize) -> Result<(), SplitError> {
        for key in part.keys().filter(|key| !own(key)) {
            // Parts repeat little of the metadata, but what they repeat must be said of the same model.
            let (here, there) = (self.get(key), part.get(key));
            if let (Some(here), Some(there)) = (here, there)
                && !same(here, there)
            {
                return Err(SplitError::Metadata {
                    key: key.to_owned(),
                });
            }
        }
        if self.tensors.len() + part.tensors.len() > TENSOR_COUNT_MAX {
            return Err(SplitError::TooManyTensors {
                max: TENSOR_COUNT_MAX,
            });
        }
        for mut tensor in part.tensors {
            if let Some(&first) = self.tensor_index.get(tensor.name) {
                return Err(SplitError::DuplicateTensor {
                    offset: tensor.range.start,
                    name: tensor.name.to_owned(),
                    first: self.tensors.get(first).map_or(0, |tensor| tensor.part),
                });
            }
            tensor.part = index;
            self.tensor_index.insert(tensor.name, self.tensors.len());
            self.tensors.push(tensor);
        }
        self.parts.extend(part.parts);
        Ok(())
    }
}

/// Whether two values are the same in their files: a number that is not one is not equal to itself. Arrays compare as
/// their bytes.
fn same(here: Value<'_>, there: Value<'_>) -> bool {
    match (here, there) {
        (Value::F32(here), Value::F32(there)) => here.to_bits() == there.to_bits(),
        (Value::F64(here), Value::F64(there)) => here.to_bits() == there.to_bits(),
        _ => here == there,
    }
}

/// Keys that each part has for itself.
fn own(key: &str) -> bool {
    key.starts_with("split.") || key == "general.alignment"
}

fn read(part: &Gguf<'_>, key: &str) -> Result<Option<u64>, SplitError> {
    match part.u64(key) {
        Ok(value) => Ok(Some(value)),
        Err(MetaError::Missing { .. }) => Ok(None),
        Err(error) => Err(SplitError::Key(error)),
    }
}

/// Checks what a part says of itself.
fn check(part: &Gguf<'_>, index: usize, count: usize) -> Result<(), SplitError> {
    let claimed = part.u64(COUNT)?;
    if claimed > PARTS_MAX as u64 {
        return Err(SplitError::TooManyParts {
            count: claimed,
            max: PARTS_MAX,
        });
    }
    if claimed != count as u64 {
        return Err(SplitError::Count {
            key: claimed,
            files: count,
        });
    }
    let number = part.u64(NUMBER)?;
    if number != index as u64 {
        return Err(SplitError::Number {
            key: number,
            place: index,
        });
    }
    Ok(())
}
