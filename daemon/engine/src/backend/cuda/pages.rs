//! Pages of keys and values in a device's memory.

use crate::kv::{Geometry, KvType};
use andon_cuda::{Cache, Device, Error};
use std::sync::Arc;

/// The content of pages. What goes wrong between passes shows in the next one: until then nothing of them is used.
#[derive(Debug)]
pub(crate) struct CudaPages {
    device: Arc<Device>,
    /// One for each layer.
    pub(super) layers: Vec<Cache>,
    pub(super) failed: Option<Error>,
    geometry: Geometry,
}

fn kept_in(kv_type: KvType) -> andon_cuda::KvType {
    match kv_type {
        KvType::F16 => andon_cuda::KvType::F16,
        KvType::Q8 => andon_cuda::KvType::Q8,
    }
}

impl CudaPages {
    /// Room for `count` pages.
    pub(super) fn new(
        device: Arc<Device>,
        geometry: Geometry,
        count: usize,
    ) -> Result<CudaPages, Error> {
        let layer = || {
            let kept = kept_in(geometry.kv_type);
            device.cache(count, geometry.head_count, geometry.head_dim, kept)
        };
        let layers = (0..geometry.layer_count).map(|_| layer());
        Ok(CudaPages {
            layers: layers.collect::<Result<_, _>>()?,
            failed: None,
            geometry,
            device,
        })
    }

    /// What went wrong with some page, if something did.
    pub(crate) fn failed(&self) -> Result<(), Error> {
        self.failed.map_or(Ok(()), Err)
    }

    fn note(&mut self, done: Result<(), Error>) {
        if let Err(error) = done {
            self.failed.get_or_insert(error);
        }
    }

    /// Copies all of a page into another.
    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        let device = &self.device;
        let mut layers = self.layers.iter_mut();
        let done = layers.try_for_each(|layer| device.copy_page(layer, from, to));
        self.note(done);
    }

    /// The content of a page, as [`crate::kv::Cache::export`] has it; `None` if it cannot be had.
    pub(crate) fn export(&self, page: u32) -> Option<Vec<u8>> {
        let (mut levels, mut halves) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let read = self.device.read_page(layer, page, &mut levels, &mut halves);
            read.ok()?;
        }
        levels.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
        Some(levels)
    }

    /// Fills a page with content that [`CudaPages::export`] gave, which `source` gives piece by piece.
    pub(crate) fn import<E>(
        &mut self,
        page: u32,
        mut source: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (levels, halves) = self.geometry.page_elements();
        let mut bytes = vec![0; levels];
        source(&mut bytes)?;
        let mut words = vec![0; halves * size_of::<u16>()];
        source(&mut words)?;
        let (words, _) = words.as_chunks::<2>();
        let words: Vec<u16> = words.iter().map(|word| u16::from_le_bytes(*word)).collect();
        let layers = self.layers.len().max(1);
        let (each_levels, each_halves) = (levels / layers, halves / layers);
        let device = &self.device;
        let mut layers = self.layers.iter_mut().enumerate();
        let done = layers.try_for_each(|(index, layer)| {
            let of = |each: usize| index * each..(index + 1) * each;
            device.write_page(
                layer,
                page,
                &bytes[of(each_levels)],
                &words[of(each_halves)],
            )
        });
        self.note(done);
        Ok(())
    }
}
