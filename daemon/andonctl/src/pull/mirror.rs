//! A folder that mirrors a hub, for machines without a network: `<folder>/<owner>/<name>/<file>` as it is
//! copied by hand, or the cache that the hub's own programs keep
//! (`models--<owner>--<name>/snapshots/<commit>/<file>`).
//!
//! A cache's large files are links to blobs that are named by their digest, so those are checked; a plain
//! copy has no digest to be checked against.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use andon_wire::manifest::Digest;

use super::reference;
use super::select::Entry;
use super::source::{Listing, Opened};
use crate::failure::Failure;

/// Most files looked at in one repository.
const FILES_MAX: usize = 100_000;
/// Deepest folder looked into.
const DEPTH_MAX: usize = 6;
/// Longest name of a revision in a cache.
const REVISION_BYTES_MAX: usize = 128;

pub(crate) struct Mirror {
    folder: PathBuf,
}

impl Mirror {
    pub(crate) fn new(folder: PathBuf) -> Result<Self, Failure> {
        if folder.is_dir() {
            Ok(Self { folder })
        } else {
            Err(Failure::Usage(format!(
                "{} is neither an http(s) address nor a folder",
                folder.display()
            )))
        }
    }

    pub(crate) fn list(&self, repository: &str, revision: &str) -> Result<Listing, Failure> {
        let (folder, revision) = self.repository(repository, revision)?;
        let mut files = Vec::new();
        walk(&folder, "", 0, &mut files).map_err(|error| Failure::file("read", &folder, error))?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Listing {
            revision,
            license: None,
            files,
        })
    }

    pub(crate) fn open(
        &self,
        repository: &str,
        revision: &str,
        file: &Entry,
        from: u64,
    ) -> Result<Opened, Failure> {
        let (folder, _) = self.repository(repository, revision)?;
        let path = folder.join(&file.path);
        let failed = |error| Failure::file("read", &path, error);
        let mut opened = File::open(&path).map_err(failed)?;
        let bytes = opened.metadata().map_err(failed)?.len();
        let start = if from <= bytes { from } else { 0 };
        opened.seek(SeekFrom::Start(start)).map_err(failed)?;
        Ok(Opened {
            reader: Box::new(opened),
            start,
            bytes_total: Some(bytes),
            sha256: None,
        })
    }

    /// The folder with the repository's files, and the revision it holds.
    fn repository(&self, repository: &str, revision: &str) -> Result<(PathBuf, String), Failure> {
        let plain = self.folder.join(repository);
        if plain.is_dir() {
            return Ok((plain, revision.to_owned()));
        }
        let cache = self
            .folder
            .join(format!("models--{}", repository.replace('/', "--")));
        let commit = fs::read_to_string(cache.join("refs").join(revision))
            .ok()
            .map(|text| text.trim().to_owned())
            .filter(|text| text.len() <= REVISION_BYTES_MAX && reference::is_path(text))
            .unwrap_or_else(|| revision.to_owned());
        let snapshot = cache.join("snapshots").join(&commit);
        if snapshot.is_dir() {
            return Ok((snapshot, commit));
        }
        Err(Failure::Hub(if cache.is_dir() {
            format!(
                "{repository} has no revision {revision} in {}",
                self.folder.display()
            )
        } else {
            format!(
                "there is no repository {repository} in {}",
                self.folder.display()
            )
        }))
    }
}

fn walk(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<Entry>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        if !reference::is_path(&path) || files.len() >= FILES_MAX {
            continue;
        }
        let metadata = fs::metadata(entry.path())?;
        if metadata.is_dir() && depth < DEPTH_MAX {
            walk(&entry.path(), &path, depth + 1, files)?;
        } else if metadata.is_file() {
            let blob = fs::read_link(entry.path()).ok();
            let sha256 = blob
                .as_deref()
                .and_then(Path::file_name)
                .and_then(|name| name.to_str()?.parse::<Digest>().ok());
            files.push(Entry {
                path,
                bytes: Some(metadata.len()),
                sha256: sha256.map(|digest| digest.to_string()),
            });
        }
    }
    Ok(())
}
