//! Every page: what it holds, who holds it, and where its content is.

use super::PAGE;
use super::host::HostPages;
use super::name::PageName;
use super::sequence::{Copy, Named, Pages, Remembered, Sequence};
use crate::backend::{CudaPages, DeviceError};
use andon_kernels::op::attention::{key_groups, key_levels};
use std::convert::Infallible;
use std::sync::Arc;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvType {
    /// In f16.
    #[default]
    F16,
    /// In 8 bits, with f16 scales: of 32 dimensions of a key, and of a head's value. Half the memory, and half of what
    /// attention reads; results differ a little.
    Q8,
}

impl KvType {
    /// Every type.
    pub const ALL: [KvType; 2] = [KvType::F16, KvType::Q8];

    /// Name used in configuration and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Q8 => "q8",
        }
    }

    /// The type of a name; `None` if there is none.
    #[must_use]
    pub fn from_name(name: &str) -> Option<KvType> {
        KvType::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What a page must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Layers with attention.
    pub layer_count: usize,
    /// Key/value heads of a layer.
    pub head_count: usize,
    /// Dimensions of a head, of keys and of values.
    pub head_dim: usize,
    /// How they are kept.
    pub kv_type: KvType,
}

impl Geometry {
    /// What a position takes in one head's keys and in its values: elements, or levels and scales.
    fn position(&self) -> [Part; 2] {
        let dims = self.head_dim;
        match self.kv_type {
            KvType::F16 => [Part::new(0, dims), Part::new(0, dims)],
            KvType::Q8 => [
                Part::new(key_levels(dims), key_groups(dims)),
                Part::new(dims, 1),
            ],
        }
    }

    /// What a page takes.
    pub(super) fn page(&self) -> Part {
        let [keys, values] = self.position();
        let each = self.layer_count * self.head_count * PAGE;
        Part::new(
            each * (keys.levels + values.levels),
            each * (keys.halves + values.halves),
        )
    }

    /// Bytes of levels and 16-bit elements that a page takes.
    pub(crate) fn page_elements(&self) -> (usize, usize) {
        let page = self.page();
        (page.levels, page.halves)
    }

    /// Bytes that one token takes.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        let page = self.page();
        (page.levels + page.halves * size_of::<u16>()) / PAGE
    }

    /// Where the keys, or the values, of a head in a layer would begin in a page that lay by itself, and what they take.
    pub(super) fn head(&self, layer: usize, values: bool, head: usize) -> (Part, Part) {
        let [of_keys, of_values] = self.position();
        let mine = if values { of_values } else { of_keys };
        let before = layer * self.head_count + head;
        let start = |keys: usize, values_of: usize| {
            (before * (keys + values_of) + if values { keys } else { 0 }) * PAGE
        };
        (
            Part::new(
                start(of_keys.levels, of_values.levels),
                start(of_keys.halves, of_values.halves),
            ),
            Part::new(mine.levels * PAGE, mine.halves * PAGE),
        )
    }
}

/// Numbers of bytes and of 16-bit elements (f16 elements, or scales).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) levels: usize,
    pub(super) halves: usize,
}

impl Part {
    fn new(levels: usize, halves: usize) -> Part {
        Part { levels, halves }
    }
}

/// Where the content of pages is.
#[derive(Debug)]
enum Content {
    /// In this machine's memory.
    Host(HostPages),
    /// In that of a device.
    Cuda(CudaPages),
}

/// Every page, and who holds it.
#[derive(Debug)]
pub struct Cache {
    geometry: Geometry,
    content: Content,
    page_count: usize,
    pages: Arc<Pages>,
}

impl Cache {
    /// A cache for `tokens` tokens, rounded up to whole pages; `None` if that many cannot be counted or allocated.
    ///
    /// With `remembers`, full pages stay after their sequence has gone, until their room is needed, and
    /// [`Cache::sequence_of`] finds them.
    #[must_use]
    pub fn new(geometry: Geometry, tokens: usize, remembers: bool) -> Option<Cache> {
        let count = Cache::pages_for(tokens);
        let pages = HostPages::new(geometry, count)?;
        Cache::of(geometry, Content::Host(pages), count, remembers)
    }

    /// A cache of `count` pages in a device's memory; `None` if that many cannot be counted.
    pub(crate) fn on_device(
        geometry: Geometry,
        (pages, count): (CudaPages, usize),
        remembers: bool,
    ) -> Option<Cache> {
        Cache::of(geometry, Content::Cuda(pages), count, remembers)
    }

    fn of(geometry: Geometry, content: Content, count: usize, remembers: bool) -> Option<Cache> {
        let pages = u32::try_from(count).ok()?;
        Some(Cache {
            geometry,
            content,
            page_count: count,
            pages: Pages::new(pages, remembers),
        })
    }

    /// Pages that so many tokens take.
    pub(crate) fn pages_for(tokens: usize) -> usize {
        tokens.div_ceil(PAGE)
    }

    /// The content, where it is in this machine's memory.
    pub(crate) fn host(&mut self) -> Option<&mut HostPages> {
        match &mut self.content {
            Content::Host(pages) => Some(pages),
            Content::Cuda(_) => None,
        }
    }

    /// Has the content be in this machine's memory from now on, and forgets all that was remembered. False, and nothing
    /// changed, if a sequence holds a page, or there is not enough memory.
    pub(crate) fn begin_here(&mut self) -> bool {
        if self.tokens_free() < self.tokens_max() {
            return false;
        }
        let Some(pages) = HostPages::new(self.geometry, self.page_count) else {
            return false;
        };
        self.pages.shed();
        self.content = Content::Host(pages);
        true
    }

    /// Has the content be in a device's memory from now on, in pages of the same geometry and number: what sequences hold, and
    /// what is remembered, is copied. Where that is more than `bytes_max` bytes, only what sequences hold is; the rest is
    /// forgotten.
    ///
    /// # Errors
    /// If something cannot be copied; then what sequences hold is where it was.
    pub(crate) fn go_to(
        &mut self,
        mut pages: CudaPages,
        bytes_max: usize,
    ) -> Result<(), DeviceError> {
        let mut taken = self.pages.taken();
        if taken.len().saturating_mul(self.page_bytes()) > bytes_max {
            self.pages.shed();
            taken = self.pages.taken();
        }
        for page in taken {
            let Some(content) = self.export(page) else {
                continue;
            };
            let mut rest = content.as_slice();
            let Ok(()) = pages.import(page, |piece| {
                let (here, others) = rest.split_at(piece.len());
                piece.copy_from_slice(here);
                rest = others;
                Ok::<_, Infallible>(())
            });
        }
        pages.failed()?;
        self.content = Content::Cuda(pages);
        Ok(())
    }

    /// The content and what is known of it, where it is in a device's memory.
    pub(crate) fn into_cuda(self) -> Option<CudaPages> {
        match self.content {
            Content::Host(_) => None,
            Content::Cuda(pages) => Some(pages),
        }
    }

    /// The content, where it is in a device's memory.
    pub(crate) fn cuda(&mut self) -> Option<&mut CudaPages> {
        match &mut self.content {
            Content::Host(_) => None,
            Content::Cuda(pages) => Some(pages),
        }
    }

    /// An empty sequence.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence::new(Arc::clone(&self.pages))
    }

    /// A sequence that begins with as much of `tokens` as is remembered: whole pages, and never all of it.
    #[must_use]
    pub fn sequence_of(&self, tokens: &[u32]) -> Sequence {
        Sequence::beginning(Arc::clone(&self.pages), tokens)
    }

    /// Appends the tokens of `text`, which `sequence` has the beginning of, that the next page has in common with one that is
    /// remembered, by copying them; never the last of `text`. Returns how many: none where the sequence ends within a page, or
    /// there is no room.
    pub(crate) fn lengthen(&mut self, sequence: &mut Sequence, text: &[u32]) -> usize {
        let before = sequence.len();
        sequence.lengthen(text);
        let after = sequence.len();
        if after > before && !self.reserve(sequence, after) {
            sequence.truncate(before);
        }
        sequence.len() - before
    }

    /// A second sequence of the same tokens: full pages are shared, a begun one is copied. `None` if there is no
    /// page for the copy.
    #[must_use]
    pub fn fork(&mut self, sequence: &Sequence) -> Option<Sequence> {
        let (fork, copy) = sequence.fork()?;
        self.copy(copy);
        Some(fork)
    }

    /// Takes pages so that `sequence` can be appended to, up to `tokens` tokens in all; false, and nothing taken, if
    /// there are too few.
    pub(crate) fn reserve(&mut self, sequence: &mut Sequence, tokens: usize) -> bool {
        let Some(copy) = sequence.reserve(tokens) else {
            return false;
        };
        self.copy(copy);
        true
    }

    fn copy(&mut self, copy: Option<Copy>) {
        let Some(copy) = copy else { return };
        match &mut self.content {
            Content::Host(pages) => pages.copy(copy),
            Content::Cuda(pages) => pages.copy(copy.from, copy.to),
        }
    }

    /// The content of a page, in an order that depends neither on where the page is nor on what computed it:
    /// `[layer][KV head][keys, values]`, first all levels, then all f16 elements, little-endian. `None` if it cannot be had of
    /// its device.
    pub(crate) fn export(&self, page: u32) -> Option<Vec<u8>> {
        match &self.content {
            Content::Host(pages) => Some(pages.export(page)),
            Content::Cuda(pages) => pages.export(page),
        }
    }

    /// Fills a page with content that [`Cache::export`] gave, which `source` gives piece by piece. If it fails, the page
    /// holds nothing of use.
    pub(crate) fn import<E>(
        &mut self,
        page: u32,
        source: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match &mut self.content {
            Content::Host(pages) => pages.import(page, source),
            Content::Cuda(pages) => pages.import(page, source),
        }
    }

    /// Bytes of the content of a page.
    pub(crate) fn page_bytes(&self) -> usize {
        self.geometry.token_bytes() * PAGE
    }

    /// Gives the pages names that are remembered from now on; `root` is that of the empty text.
    pub(crate) fn set_root(&self, root: PageName) {
        self.pages.set_root(root);
    }

    /// What is remembered, to be forgotten.
    pub(crate) fn remembered(&self) -> Remembered {
        Remembered(Arc::clone(&self.pages))
    }

    /// Forgets what no sequence holds, and gives the memory of spans that are free then back to the system, which has it
    /// until they are written again.
    pub(crate) fn shed(&mut self) {
        for span in self.pages.shed() {
            match &mut self.content {
                Content::Host(pages) => pages.give_back(span),
                // A device has all of its pages for good.
                Content::Cuda(_) => {}
            }
        }
    }

    /// Has idle pages be worth keeping that are not yet, `most` at most, the last used before others.
    pub(crate) fn all_found(&self, most: usize) {
        self.pages.all_found(most);
    }

    /// The next page that is worth keeping: its number, how many texts were used since its own was, and which it is.
    pub(crate) fn next_worthy(&self) -> Option<(u32, u64, Named)> {
        let (worthy, named) = self.pages.next_worthy()?;
        Some((worthy.page, worthy.age, named))
    }

    /// Whether `sequence` was made by this cache.
    #[must_use]
    pub fn owns(&self, sequence: &Sequence) -> bool {
        sequence.belongs_to(&self.pages)
    }

    /// Tokens that all pages together hold.
    #[must_use]
    pub fn tokens_max(&self) -> usize {
        self.page_count * PAGE
    }

    /// Tokens that the pages hold which no sequence does: free ones, and those kept in case they are wanted again.
    #[must_use]
    pub fn tokens_free(&self) -> usize {
        self.pages.available() * PAGE
    }

    /// What the pages hold.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }
}

#[cfg(test)]
mod tests {
    use super::{Cache, Geometry, HostPages, KvType, PAGE};
    use crate::kv::SPAN;
    use andon_kernels::op::attention::{Keys, Values, key_index, key_level_index, key_scale_index};
    use andon_kernels::{Isa, Table};

    const GEOMETRY: Geometry = Geometry {
        layer_count: 2,
        head_count: 3,
        head_dim: 4,
        kv_type: KvType::F16,
    };

    fn table() -> Table {
        Table::new(Isa::Scalar).expect("always there")
    }

    fn host(cache: &mut Cache) -> &mut HostPages {
        cache.host().expect("they are here")
    }

    fn half(value: f32) -> u16 {
        let mut half = [0];
        table().to_half(&[value], &mut half);
        half[0]
    }

    #[test]
    fn pages_are_taken_and_freed_whole() {
        let mut cache = Cache::new(GEOMETRY, 3 * PAGE - 1, false).expect("small");
        assert_eq!(cache.tokens_max(), 3 * PAGE);
        let mut first = cache.sequence();
        assert!(cache.reserve(&mut first, PAGE + 1));
        assert_eq!(cache.tokens_free(), PAGE);
        let mut second = cache.sequence();
        assert!(
            !cache.reserve(&mut second, PAGE + 1),
            "only one page is left"
        );
        assert_eq!(
            cache.tokens_free(),
            PAGE,
            "a refused reservation takes nothing"
        );
        first.append(&[7; PAGE + 1], 0);
        first.truncate(PAGE);
        assert_eq!(cache.tokens_free(), 2 * PAGE);
        drop(first);
        assert_eq!(cache.tokens_free(), 3 * PAGE);
    }

    #[test]
    fn what_is_shed_is_what_nobody_holds() {
        let geometry = Geometry {
            layer_count: 4,
            head_count: 4,
            head_dim: 64,
            kv_type: KvType::F16,
        };
        let mut cache = Cache::new(geometry, 4 * SPAN * PAGE, true).expect("small");
        host(&mut cache).halves.fill(1);
        let (mut held, mut idle) = (cache.sequence(), cache.sequence());
        for (sequence, token) in [(&mut held, 7), (&mut idle, 8)] {
            assert!(cache.reserve(sequence, PAGE));
            sequence.append(&[token; PAGE], 0);
        }
        drop(idle);
        assert_eq!(cache.sequence_of(&[8; PAGE + 1]).len(), PAGE);
        cache.shed();
        assert_eq!(cache.sequence_of(&[8; PAGE + 1]).len(), 0);
        assert_eq!(cache.sequence_of(&[7; PAGE + 1]).len(), PAGE);
        let parts: Vec<_> = host(&mut cache).parts(held.pages()[0]).collect();
        for (_, halves) in parts {
            assert!(
                host(&mut cache).halves[halves]
                    .iter()
                    .all(|&half| half == 1)
            );
        }
        let kept = host(&mut cache)
            .halves
            .iter()
            .filter(|&&half| half == 1)
            .count();
        let span = SPAN * geometry.page().halves;
        assert!((span..2 * span).contains(&kept), "{kept} of {span}");
        let mut next = cache.sequence();
        assert!(cache.reserve(&mut next, 3 * SPAN * PAGE));
    }

    #[test]
    fn more_than_there_is_memory_for_is_refused() {
        assert!(Cache::new(GEOMETRY, usize::MAX / 2, false).is_none());
        // No machine addresses 2^60 bytes, but they can be counted.
        let geometry = Geometry {
            head_dim: 1 << 30,
            ..GEOMETRY
        };
        let tokens = (1 << 60) / geometry.token_bytes();
        assert!(u32::try_from(tokens.div_ceil(PAGE)).is_ok());
        assert!(Cache::new(geometry, tokens, false).is_none());
    }

    #[test]
    fn stored_heads_are_found_again() {
        let mut cache = Cache::new(GEOMETRY, 2 * PAGE, false).expect("small");
        for position in 0..PAGE {
            let keys: Vec<f32> = (0..12)
                .map(|index| (position * 20 + index) as f32)
                .collect();
            let values: Vec<f32> = keys.iter().map(|key| -key).collect();
            host(&mut cache).store(&table(), 1, 1, position, &keys, &values);
        }
        let (Keys::F16(keys), Values::F16(values)) = host(&mut cache).head(1, 1, 2) else {
            panic!("the cache keeps f16");
        };
        assert_eq!(keys[key_index(17, 3, 4)], half((17 * 20 + 8 + 3) as f32));
        assert_eq!(values[17 * 4 + 3], half(-(17 * 20 + 8 + 3) as f32));
        for (page, layer) in [(0, 1), (1, 0)] {
            let (Keys::F16(keys), _) = host(&mut cache).head(page, layer, 2) else {
                panic!("the cache keeps f16");
            };
            assert!(keys.iter().all(|&element| element == 0));
        }
    }

    #[test]
    fn stored_heads_are_found_again_in_8_bits() {
        for head_dim in [4, 30, 64, 80] {
            let geometry = Geometry {
                head_dim,
                kv_type: KvType::Q8,
                ..GEOMETRY
            };
            let mut cache = Cache::new(geometry, 2 * PAGE, false).expect("small");
            let element = |position: usize, head: usize, dim: usize| {
                ((position * 31 + head * 17 + dim * 7) % 101) as f32 - 50.0
            };
            for layer in 0..2 {
                for position in 0..PAGE {
                    let row = (0..3 * head_dim)
                        .map(|index| element(position + layer, index / head_dim, index % head_dim));
                    let keys: Vec<f32> = row.collect();
                    let values: Vec<f32> = keys.iter().map(|key| -key).collect();
                    host(&mut cache).store(&table(), 1, layer, position, &keys, &values);
                }
            }
            let scale_of = |bits: u16| {
                // A step: half of the largest magnitude, 50, over 127, is below 0.25.
                let exponent = i32::from(bits >> 10) - 15;
                (1.0 + f32::from(bits & 0x3ff) / 1024.0) * 2f32.powi(exponent)
            };
            for (layer, head, position) in [(0, 0, 0), (0, 2, 63), (1, 0, 17), (1, 2, 5)] {
                let (Keys::Q8(keys, key_scales), Values::Q8(values, value_scales)) =
                    host(&mut cache).head(1, layer, head)
                else {
                    panic!("the cache keeps 8 bits");
                };
                for dim in 0..head_dim {
                    let exact = element(position + layer, head, dim);
                    let scale = key_scales[key_scale_index(position, dim / 32, head_dim)];
                    let level = f32::from(keys[key_level_index(position, dim, head_dim)]);
                    assert!((level * scale_of(scale) - exact).abs() < 0.25);
                    let level = f32::from(values[position * head_dim + dim]);
                    assert!((level * scale_of(value_scales[position]) + exact).abs() < 0.25);
                }
            }
            let (Keys::Q8(keys, scales), _) = host(&mut cache).head(0, 1, 2) else {
                panic!("the cache keeps 8 bits");
            };
            assert!(keys.iter().all(|&level| level == 0));
            assert!(scales.iter().all(|&scale| scale == 0));
        }
    }

    #[test]
    fn bytes_of_a_token_are_those_of_its_parts() {
        let geometry = |head_dim, kv_type| Geometry {
            head_dim,
            kv_type,
            ..GEOMETRY
        };
        assert_eq!(geometry(64, KvType::F16).token_bytes(), 6 * 64 * 4);
        assert_eq!(
            geometry(64, KvType::Q8).token_bytes(),
            6 * (64 + 4 + 64 + 2)
        );
        assert_eq!(
            geometry(80, KvType::Q8).token_bytes(),
            6 * (80 + 6 + 80 + 2)
        );
    }

    /// The keys of a page, whatever they are kept in.
    fn keys_of(cache: &mut Cache, page: u32) -> Vec<u16> {
        match host(cache).head(page, 1, 2) {
            (Keys::F16(keys), _) => keys.to_vec(),
            (Keys::Q8(levels, scales), _) => {
                let levels = levels.iter().map(|&level| level as u16);
                levels.chain(scales.iter().copied()).collect()
            }
        }
    }

    /// Appends `tokens` and writes keys made of each token and its position.
    fn write(cache: &mut Cache, sequence: &mut super::Sequence, tokens: &[u32]) {
        let length = sequence.len() + tokens.len();
        assert!(cache.reserve(sequence, length));
        for (position, &token) in (sequence.len()..).zip(tokens) {
            let page = sequence.pages()[position / PAGE];
            let keys = [(token * 200) as f32 + position as f32; 12];
            for layer in 0..2 {
                host(cache).store(&table(), page, layer, position % PAGE, &keys, &keys);
            }
        }
        sequence.append(tokens, 0);
    }

    #[test]
    fn a_beginning_is_shared_and_what_is_idle_counts_as_free() {
        let mut cache = Cache::new(GEOMETRY, 4 * PAGE, true).expect("small");
        let tokens: Vec<u32> = (0..2 * PAGE as u32 + 5).map(|token| token % 9).collect();
        let mut first = cache.sequence_of(&tokens);
        assert_eq!(first.len(), 0);
        write(&mut cache, &mut first, &tokens);
        assert_eq!(cache.tokens_free(), PAGE);
        let second = cache.sequence_of(&tokens);
        assert_eq!(
            (second.len(), second.pages()),
            (2 * PAGE, &first.pages()[..2])
        );
        assert_eq!(cache.tokens_free(), PAGE, "nothing was taken");
        drop(first);
        assert_eq!(cache.tokens_free(), 2 * PAGE, "two pages are still held");
        drop(second);
        assert_eq!(cache.tokens_free(), 4 * PAGE);
        // At least one token is left to compute.
        assert_eq!(cache.sequence_of(&tokens[..2 * PAGE]).len(), PAGE);
        assert_eq!(cache.sequence_of(&tokens[..PAGE]).len(), 0);
        let mut other = tokens.clone();
        other[PAGE] += 1;
        assert_eq!(cache.sequence_of(&other).len(), PAGE);
        other[0] += 1;
        assert_eq!(cache.sequence_of(&other).len(), 0);
        // All pages can be had, and then nothing is remembered.
        let mut all = cache.sequence();
        assert!(cache.reserve(&mut all, 4 * PAGE));
        assert_eq!(cache.sequence_of(&tokens).len(), 0);
    }

    #[test]
    fn what_a_page_has_in_common_with_another_is_copied() {
        let mut cache = Cache::new(GEOMETRY, 5 * PAGE, true).expect("small");
        let text: Vec<u32> = (0..2 * PAGE as u32).collect();
        let mut first = cache.sequence_of(&text);
        write(&mut cache, &mut first, &text);
        let pages = first.pages().to_vec();
        let kept = keys_of(&mut cache, pages[1]);
        drop(first);
        let mut other = text.clone();
        other[PAGE + 10] = 999;
        let mut second = cache.sequence_of(&other);
        assert_eq!(cache.lengthen(&mut second, &other), 10);
        assert_eq!(
            cache.lengthen(&mut second, &other),
            0,
            "it ends within a page"
        );
        assert_eq!((second.len(), second.pages()[0]), (PAGE + 10, pages[0]));
        let own = second.pages()[1];
        assert_ne!(own, pages[1]);
        assert_eq!(keys_of(&mut cache, own)[..10 * 4], kept[..10 * 4]);
        let rest = &other[PAGE + 10..];
        write(&mut cache, &mut second, rest);
        assert_eq!(
            keys_of(&mut cache, pages[1]),
            kept,
            "nobody's page was written"
        );
        // Within the first page; and the last token is computed.
        let mut third = cache.sequence_of(&text[..20]);
        assert_eq!(cache.lengthen(&mut third, &text[..20]), 19);
        let mut unlike = cache.sequence_of(&[7, 8]);
        assert_eq!(cache.lengthen(&mut unlike, &[7, 8]), 0);
        // Without room nothing is appended, and nothing stays held.
        drop((second, third, unlike));
        let mut all = cache.sequence_of(&text);
        assert!(cache.reserve(&mut all, 5 * PAGE));
        let mut last = cache.sequence_of(&text[..20]);
        assert_eq!(cache.lengthen(&mut last, &text[..20]), 0);
        drop(all);
        assert_eq!(cache.tokens_free(), 5 * PAGE);
    }

    #[test]
    fn the_longest_unused_page_gives_way_and_held_ones_stay() {
        let mut cache = Cache::new(GEOMETRY, 3 * PAGE, true).expect("small");
        let prompt = |token: u32| vec![token; PAGE + 1];
        for token in [1, 2, 3] {
            let mut sequence = cache.sequence_of(&prompt(token));
            write(&mut cache, &mut sequence, &prompt(token)[..PAGE]);
        }
        let held = cache.sequence_of(&prompt(1));
        assert_eq!(held.len(), PAGE);
        let mut new = cache.sequence();
        assert!(cache.reserve(&mut new, PAGE));
        assert_eq!(cache.sequence_of(&prompt(2)).len(), 0, "it rested longest");
        assert_eq!(cache.sequence_of(&prompt(3)).len(), PAGE);
        assert!(!cache.reserve(&mut new, 3 * PAGE), "one page is held");
        assert_eq!(
            cache.sequence_of(&prompt(3)).len(),
            PAGE,
            "a refusal takes nothing"
        );
        assert!(cache.reserve(&mut new, 2 * PAGE));
        assert_eq!(cache.sequence_of(&prompt(1)).len(), PAGE);
    }

    #[test]
    fn sequences_get_neighbours_also_in_a_cache_that_is_full() {
        let mut cache = Cache::new(GEOMETRY, 64 * PAGE, true).expect("small");
        let (mut neighbours, mut pairs) = (0, 0);
        for round in 0..60_u32 {
            // Two that grow in turn, of different lengths.
            let mut sequences = [cache.sequence(), cache.sequence()];
            for page in 0..9 {
                for (choice, sequence) in (0..).zip(&mut sequences) {
                    if page < 5 + (round + choice) % 5 {
                        let token = 2 * round + choice;
                        let length = sequence.len() + PAGE;
                        assert!(cache.reserve(sequence, length));
                        sequence.append(&[token; PAGE], 0);
                    }
                }
            }
            if round < 20 {
                continue;
            }
            assert!(
                cache.pages.free() <= 64 / 8 + SPAN,
                "the rest is remembered"
            );
            for sequence in &sequences {
                for span in sequence.pages().chunks(SPAN) {
                    pairs += span.len() - 1;
                    let is_next = |pair: &&[u32]| pair[0] + 1 == pair[1];
                    neighbours += span.windows(2).filter(is_next).count();
                }
            }
        }
        assert!(2 * neighbours > pairs, "{neighbours} of {pairs}");
    }

    #[test]
    fn equal_pages_become_one() {
        let mut cache = Cache::new(GEOMETRY, 6 * PAGE, true).expect("small");
        let tokens = vec![4; 2 * PAGE];
        let (mut first, mut second) = (cache.sequence(), cache.sequence());
        write(&mut cache, &mut first, &tokens);
        write(&mut cache, &mut second, &tokens);
        assert_eq!(first.pages(), second.pages());
        assert_eq!(cache.tokens_free(), 4 * PAGE);
    }

    #[test]
    fn a_shared_page_is_copied_before_it_is_written() {
        for kv_type in KvType::ALL {
            shared_pages_are_copied(kv_type);
        }
    }

    fn shared_pages_are_copied(kv_type: KvType) {
        let geometry = Geometry {
            kv_type,
            ..GEOMETRY
        };
        let mut cache = Cache::new(geometry, 6 * PAGE, true).expect("small");
        let tokens = vec![5; PAGE + 3];
        let mut first = cache.sequence();
        write(&mut cache, &mut first, &tokens);
        let mut fork = cache.fork(&first).expect("a page");
        assert_eq!(fork.pages()[0], first.pages()[0]);
        assert_ne!(fork.pages()[1], first.pages()[1]);
        assert_eq!(
            keys_of(&mut cache, fork.pages()[1]),
            keys_of(&mut cache, first.pages()[1])
        );
        let before = keys_of(&mut cache, first.pages()[1]);
        write(&mut cache, &mut fork, &[6]);
        assert_eq!(keys_of(&mut cache, first.pages()[1]), before);
        // Cut into the page that is known, and written anew.
        let known = first.pages()[0];
        let before = keys_of(&mut cache, known);
        first.truncate(10);
        assert_eq!(first.pages_missing(11), 1);
        write(&mut cache, &mut first, &[7]);
        assert_ne!(first.pages()[0], known);
        assert_eq!(keys_of(&mut cache, known), before);
        // A position before the cut is as it was, in either form: the first elements are of the first positions.
        assert_eq!(keys_of(&mut cache, first.pages()[0])[9], before[9]);
        drop((first, fork));
        assert_eq!(cache.tokens_free(), 6 * PAGE);
    }
}
