//! Where models are pulled from: a hub over the network, or a folder that mirrors one.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use andon_wire::manifest::Digest;

use super::hub::Hub;
use super::mirror::Mirror;
use super::select::Entry;
use crate::failure::Failure;

/// What a repository has.
pub(crate) struct Listing {
    /// The commit that the revision stands for, where it is known.
    pub(crate) revision: String,
    pub(crate) license: Option<String>,
    pub(crate) files: Vec<Entry>,
}

/// A file, open at some byte.
pub(crate) struct Opened {
    pub(crate) reader: Box<dyn Read>,
    /// The byte that the reader begins with: the one asked for, or 0.
    pub(crate) start: u64,
    /// Size of the whole file, if it is known.
    pub(crate) bytes_total: Option<u64>,
    /// Its digest, if it is known.
    pub(crate) sha256: Option<Digest>,
}

/// Why there is no answer.
pub(crate) enum Trouble {
    /// Trying again may help.
    Passing {
        why: String,
        /// When, if the other side says so.
        after: Option<Duration>,
    },
    /// It will not.
    Final(Failure),
}

impl Trouble {
    pub(crate) fn passing(why: String) -> Self {
        Self::Passing { why, after: None }
    }
}

/// Where models are pulled from.
pub(crate) enum Source {
    Hub(Box<Hub>),
    Mirror(Mirror),
}

impl Source {
    /// `endpoint` is an address, or a folder (also as `file://`).
    pub(crate) fn new(
        endpoint: &str,
        token: impl FnOnce() -> Result<Option<String>, Failure>,
    ) -> Result<Self, Failure> {
        let folder = match endpoint.strip_prefix("file://") {
            Some(path) => Some(path),
            None if endpoint.contains("://") => None,
            None => Some(endpoint),
        };
        Ok(match folder {
            Some(folder) => Self::Mirror(Mirror::new(PathBuf::from(folder))?),
            None => Self::Hub(Box::new(Hub::new(endpoint, token()?)?)),
        })
    }

    pub(crate) fn list(&self, repository: &str, revision: &str) -> Result<Listing, Trouble> {
        match self {
            Self::Hub(hub) => hub.list(repository, revision),
            Self::Mirror(mirror) => mirror.list(repository, revision).map_err(Trouble::Final),
        }
    }

    pub(crate) fn open(
        &self,
        repository: &str,
        revision: &str,
        file: &Entry,
        from: u64,
    ) -> Result<Opened, Trouble> {
        match self {
            Self::Hub(hub) => hub.open(repository, revision, file, from),
            Self::Mirror(mirror) => mirror
                .open(repository, revision, file, from)
                .map_err(Trouble::Final),
        }
    }
}
