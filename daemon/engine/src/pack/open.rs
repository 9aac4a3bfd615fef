//! A pack in use.
//!
//! Invariant: [`Pack::matrix`] gives bytes only after every block of them had its checksum, and none once anything of
//! the pack was found damaged.

use super::header::{Header, Place};
use super::{BLOCK_BYTES, Key, PackError, Progress, write};
use crate::model::Model;
use crate::weights::Matrix;
use andon_os::{Mapping, Pool};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use twox_hash::XxHash3_64;

/// A pack of weights, mapped.
#[derive(Debug)]
pub struct Pack {
    path: PathBuf,
    map: Mapping,
    header: Header,
    /// Whether a place's blocks were compared with their checksums.
    checked: Vec<AtomicBool>,
    /// Places whose blocks were not.
    unchecked: AtomicUsize,
    /// By the slots of the model's matrices, which place is theirs.
    slots: Vec<Option<usize>>,
    failure: OnceLock<PackError>,
}

impl Pack {
    /// Maps the pack at `path` and checks its header; the data is not read. It has to be of the model `key`.
    ///
    /// # Errors
    /// [`PackError`] for a file that is none, or of another model or layout, or whose header is damaged.
    pub fn open(path: &Path, key: &Key) -> Result<Pack, PackError> {
        let map = Mapping::open(path).map_err(PackError::io(path, "open"))?;
        let header = Header::read(path, key, &map)?;
        if map.is_damaged() {
            let path = path.to_owned();
            return Err(PackError::Changed { path });
        }
        Ok(Pack {
            path: path.to_owned(),
            map,
            checked: header
                .places
                .iter()
                .map(|_| AtomicBool::new(false))
                .collect(),
            unchecked: AtomicUsize::new(header.places.len()),
            slots: Vec::new(),
            header,
            failure: OnceLock::new(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model that it is of.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.header.key
    }

    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.header.file_bytes
    }

    /// What was found wrong with it while it was in use.
    #[must_use]
    pub fn failure(&self) -> Option<&PackError> {
        self.failure.get()
    }

    /// Has the kernel keep the pack from changing, and compare its pages as they are read from now on, where the file system
    /// has fs-verity; false where it has not.
    ///
    /// # Errors
    /// If it has, and it cannot be turned on.
    pub fn protect(&self) -> std::io::Result<bool> {
        self.map.protect()
    }

    /// Finds the places of a model's matrices, by their slots.
    ///
    /// # Errors
    /// [`PackError::OtherModel`] if it has not just those that [`Header::of`] takes.
    pub(crate) fn fit(&mut self, matrices: &[Matrix]) -> Result<(), PackError> {
        let mut places = self.header.places.iter().enumerate().peekable();
        let slots = matrices.iter().map(|matrix| {
            let (index, _) = places.next_if(|(_, place)| place.is_of(matrix))?;
            Some(index)
        });
        let slots: Vec<_> = slots.collect();
        let whole = Header::of(self.header.key.clone(), matrices.iter())
            .is_some_and(|header| header.places == self.header.places);
        if places.next().is_some() || !whole {
            let path = self.path.clone();
            return Err(PackError::OtherModel { path });
        }
        self.slots = slots;
        Ok(())
    }

    fn place(&self, slot: usize) -> Option<(usize, &Place)> {
        let index = (*self.slots.get(slot)?)?;
        Some((index, self.header.places.get(index)?))
    }

    fn data(&self, place: &Place) -> &[u8] {
        // The header was checked against the length of the map.
        &self.map[place.range.start as usize..place.range.end as usize]
    }

    /// The matrix with a slot, if it is packed, was checked, and nothing was found wrong.
    pub(crate) fn matrix(&self, slot: usize) -> Option<&[u8]> {
        let (index, place) = self.place(slot)?;
        let usable = self.failure.get().is_none() && self.checked[index].load(Ordering::Acquire);
        usable.then(|| self.data(place))
    }

    /// Compares the pack with what packing `model` gives, on one thread: whoever trusts the model's files, and not the
    /// folder that the pack lies in, then may use the pack. Comparing ends when `progress` answers with false, which it is
    /// asked every few megabytes.
    ///
    /// # Errors
    /// [`PackError::OtherModel`] for matrices that are not the model's, [`PackError::OtherBytes`] for bytes that packing
    /// does not give, [`PackError::Stopped`], and what is wrong with the files.
    pub fn compare(&self, model: &Model, progress: &mut Progress<'_>) -> Result<(), PackError> {
        let whole = Header::of(self.header.key.clone(), model.matrices().iter())
            .is_some_and(|header| header.places == self.header.places);
        if !whole {
            let path = self.path.clone();
            return Err(PackError::OtherModel { path });
        }
        let mut places = self.header.places.iter().peekable();
        for matrix in model.matrices() {
            if let Some(place) = places.next_if(|place| place.is_of(matrix)) {
                write::compare(
                    matrix,
                    model.maps(),
                    self.data(place),
                    (&self.path, place.range.start),
                    &mut |bytes| progress(place.range.start + bytes, self.header.file_bytes),
                )?;
            }
        }
        if self.is_broken() {
            let path = self.path.clone();
            return Err(PackError::Changed { path });
        }
        if model.damaged().is_some() {
            return Err(PackError::ModelChanged);
        }
        Ok(())
    }

    /// Bytes of the matrix with a slot; `None` if it is not packed.
    pub(crate) fn matrix_bytes(&self, slot: usize) -> Option<usize> {
        self.place(slot).map(|(_, place)| self.data(place).len())
    }

    /// Compares matrices with their checksums, those that were not yet. What is damaged is found by
    /// [`Pack::failure`] and not given out by [`Pack::matrix`].
    pub(crate) fn check(&self, pool: &mut Pool, slots: impl Iterator<Item = usize>) {
        if self.unchecked.load(Ordering::Acquire) == 0 {
            return;
        }
        for slot in slots {
            let Some((index, place)) = self.place(slot) else {
                continue;
            };
            if self.failure.get().is_some() {
                return;
            }
            if !self.checked[index].load(Ordering::Acquire) {
                self.check_place(pool, index, place);
            }
        }
    }

    fn check_place(&self, pool: &mut Pool, index: usize, place: &Place) {
        let checksums = &self.header.checksums[place.first_block..][..place.block_count()];
        let data = self.data(place);
        let (next, damaged) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        pool.run(&|_| {
            loop {
                let block = next.fetch_add(1, Ordering::Relaxed);
                let Some(&checksum) = checksums.get(block) else {
                    return;
                };
                let start = block * BLOCK_BYTES;
                let end = data.len().min(start + BLOCK_BYTES);
                if XxHash3_64::oneshot(&data[start..end]) != checksum {
                    damaged.fetch_min(block, Ordering::Relaxed);
                }
            }
        });
        match damaged.into_inner() {
            usize::MAX => {
                // Whoever else checks the same place at the same time finds the same and counts once.
                if !self.checked[index].swap(true, Ordering::AcqRel) {
                    self.unchecked.fetch_sub(1, Ordering::AcqRel);
                }
            }
            block => {
                let start = (block * BLOCK_BYTES) as u64;
                let offset = place.range.start + start;
                self.fail(PackError::Checksum {
                    path: self.path.clone(),
                    offset,
                    bytes: (BLOCK_BYTES as u64).min(place.range.end - offset),
                });
            }
        }
    }

    /// Whether the file broke under its map: then what was computed meanwhile is not to be trusted.
    pub(crate) fn is_broken(&self) -> bool {
        let broken = self.map.is_damaged();
        if broken {
            self.fail(PackError::Changed {
                path: self.path.clone(),
            });
        }
        broken
    }

    fn fail(&self, error: PackError) {
        // The first is what is told.
        let _ = self.failure.set(error);
    }

    /// Reads the file ahead, until `goes_on` answers with false.
    pub(crate) fn read_ahead(&self, goes_on: &dyn Fn() -> bool) {
        self.map.read_ahead(goes_on);
    }

    /// Asks the system to read the file ahead.
    pub(crate) fn will_need(&self) {
        self.map.will_need();
    }
}
