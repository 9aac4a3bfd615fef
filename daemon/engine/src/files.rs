//! The files of a model, mapped: one, or the parts that it is split into.

use crate::gguf::limits::PARTS_MAX;
use crate::gguf::{Gguf, PartName, SplitError};
use crate::model::LoadError;
use andon_os::Mapping;
use std::path::{Path, PathBuf};

/// The mapped files of a model, in order.
#[derive(Debug)]
pub struct Files {
    /// The one that was asked for.
    path: PathBuf,
    paths: Vec<PathBuf>,
    maps: Vec<Mapping>,
}

impl Files {
    /// Maps the file at `path` or, if its name is that of a part (`NAME-00001-of-00003.gguf`), all parts of its set,
    /// whichever of them it is.
    ///
    /// # Errors
    /// [`LoadError::Open`] for a file that is missing or cannot be mapped, [`LoadError::Split`] for too many parts.
    pub fn open(path: &Path) -> Result<Files, LoadError> {
        let paths = match PartName::of(path) {
            None => vec![path.to_owned()],
            Some(name) if name.count > PARTS_MAX => {
                return Err(LoadError::Split {
                    path: path.to_owned(),
                    source: SplitError::TooManyParts {
                        count: name.count as u64,
                        max: PARTS_MAX,
                    },
                });
            }
            Some(name) => (0..name.count).map(|index| name.part(index)).collect(),
        };
        let open = |path: &PathBuf| {
            Mapping::open(path).map_err(|source| LoadError::Open {
                path: path.clone(),
                source,
            })
        };
        let maps = paths.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Files {
            path: path.to_owned(),
            paths,
            maps,
        })
    }

    /// The bytes of a file that is nowhere; `name` stands for its path.
    ///
    /// # Errors
    /// [`LoadError::Open`] if there are no bytes, or is no memory for a copy of them.
    pub fn of_bytes(name: &Path, bytes: &[u8]) -> Result<Files, LoadError> {
        let map = Mapping::copy(bytes).map_err(|source| LoadError::Open {
            path: name.to_owned(),
            source,
        })?;
        Ok(Files {
            path: name.to_owned(),
            paths: vec![name.to_owned()],
            maps: vec![map],
        })
    }

    /// The path that was asked for.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in the files, checked.
    ///
    /// # Errors
    /// [`LoadError::Gguf`] or [`LoadError::Split`], which name the file and what is wrong with it.
    pub fn gguf(&self) -> Result<Gguf<'_>, LoadError> {
        let mut parts = Vec::with_capacity(self.maps.len());
        for (path, map) in self.paths.iter().zip(&self.maps) {
            let part = Gguf::parse(map).map_err(|source| LoadError::Gguf {
                path: path.clone(),
                source,
            })?;
            parts.push(part);
        }
        Gguf::join(parts).map_err(|bad| LoadError::Split {
            path: self.paths.get(bad.index).cloned().unwrap_or_default(),
            source: bad.error,
        })
    }

    /// Where the files are.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.maps.iter().map(|map| map.len()).sum()
    }

    /// The first file, and which it is, that changed under its map or cannot be read any more.
    pub(crate) fn damaged(&self) -> Option<(usize, &Path)> {
        let index = self.maps.iter().position(Mapping::is_damaged)?;
        Some((index, self.paths.get(index)?))
    }

    /// The maps, in the order of the parts.
    #[must_use]
    pub fn maps(&self) -> &[Mapping] {
        &self.maps
    }
}
