//! What pages are called: the same on every machine, and in every build of the same sources.

use super::cache::Geometry;
use crate::pack;
use core::fmt;
use sha2::{Digest as _, Sha256};

/// Which sources the numbers in pages come from (`build.rs`). What changed there may be what pages hold, or mean, in a way
/// that the few logits do not show which [`crate::Executor::page_root`] computes: how attention adds up over many
/// positions, say. An answer that differs is worse than a prompt that is computed once more after an update.
const NUMERICS: &str = env!("ANDON_NUMERICS");

/// Bytes of a name.
pub(super) const NAME_BYTES: usize = 16;

/// The name of a page: a digest of what its content follows from, which is the model, how it is computed, and all
/// tokens up to the page's last. The name of the empty text, below which first pages are, is the digest of the former.
///
/// It is made of SHA-256, since who may ask for what they like must find no two texts of one name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageName(pub(super) [u8; NAME_BYTES]);

impl PageName {
    /// The name of the empty text under a model: `logits` are those of a known text, as this program computes them.
    pub(crate) fn root(model: &pack::Key, geometry: &Geometry, logits: &[f32]) -> PageName {
        let mut digest = Sha256::new();
        digest.update(b"andon: pages of keys and values\0");
        digest.update(NUMERICS);
        digest.update(model.to_string());
        let name = geometry.kv_type.name().as_bytes();
        for number in [
            super::PAGE,
            geometry.layer_count,
            geometry.head_count,
            geometry.head_dim,
            name.len(),
        ] {
            digest.update((number as u64).to_le_bytes());
        }
        digest.update(name);
        for logit in logits {
            digest.update(logit.to_bits().to_le_bytes());
        }
        PageName::of(digest)
    }

    /// The name of the page of `tokens` behind the one of this name.
    #[must_use]
    pub fn below(&self, tokens: &[u32]) -> PageName {
        let mut digest = Sha256::new();
        digest.update(self.0);
        for token in tokens {
            digest.update(token.to_le_bytes());
        }
        PageName::of(digest)
    }

    fn of(digest: Sha256) -> PageName {
        let mut name = [0; NAME_BYTES];
        name.copy_from_slice(&digest.finalize()[..NAME_BYTES]);
        PageName(name)
    }
}

impl fmt::Display for PageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageName({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::PageName;
    use crate::kv::{Geometry, KvType};
    use crate::pack;
    use std::collections::HashSet;

    #[test]
    fn names_differ_in_whatever_pages_differ_in() {
        let geometry = Geometry {
            layer_count: 2,
            head_count: 3,
            head_dim: 4,
            kv_type: KvType::F16,
        };
        let model = pack::Key::of_digest([1; 32]);
        let root = PageName::root(&model, &geometry, &[1.0, 2.0]);
        assert_eq!(root, PageName::root(&model, &geometry, &[1.0, 2.0]));
        let other = pack::Key::of_digest([2; 32]);
        let quantized = Geometry {
            kv_type: KvType::Q8,
            ..geometry
        };
        let turned = Geometry {
            layer_count: 3,
            head_count: 2,
            ..geometry
        };
        let names = [
            root,
            PageName::root(&other, &geometry, &[1.0, 2.0]),
            PageName::root(&model, &quantized, &[1.0, 2.0]),
            PageName::root(&model, &turned, &[1.0, 2.0]),
            PageName::root(&model, &geometry, &[1.0, 2.1]),
            root.below(&[1, 2]),
            root.below(&[2, 1]),
            root.below(&[1, 2]).below(&[1, 2]),
            root.below(&[1]).below(&[2]),
        ];
        assert_eq!(HashSet::from(names).len(), names.len());
    }
}
