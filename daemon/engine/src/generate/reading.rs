//! Which prompts a pass reads, and how much of each.

use super::active::Active;
use super::event::GenerationId;

/// What a pass reads of prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    /// Most tokens, over all prompts; at least one is read.
    pub tokens_max: usize,
    /// Whose prompts are read, in this order; `None` reads all, those that are urgent first and then in the order of
    /// their start.
    pub order: Option<&'a [GenerationId]>,
}

/// A prompt that a pass reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reader {
    pub(super) index: usize,
    pub(super) tokens: usize,
}

/// What came of a prompt from where it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Restored {
    /// Tokens that need not be computed.
    pub(super) tokens: usize,
    /// There may be more.
    pub(super) more: bool,
}

/// Those of `active` whose prompts are to be read, in order.
pub(super) fn ordered(active: &[Active], order: Option<&[GenerationId]>, out: &mut Vec<usize>) {
    out.clear();
    let reads = |active: &Active| active.reads_prompt() && !active.waits();
    match order {
        Some(order) => out.extend(order.iter().filter_map(|&id| {
            active
                .iter()
                .position(|active| active.id == id && reads(active))
        })),
        None => {
            out.extend((0..active.len()).filter(|&index| reads(&active[index])));
            out.sort_by_key(|&index| !active[index].urgent);
        }
    }
}

/// Whether the beginning of `later`'s prompt that is not read yet is being read by one of `readers` in the same pass:
/// after it, it is there without being computed.
pub(super) fn read_by_another(
    active: &[Active],
    readers: &[Reader],
    later: usize,
    page_tokens: usize,
) -> bool {
    let later = &active[later];
    later.is_unread()
        && readers.iter().any(|reader| {
            let reader = &active[reader.index];
            let shared = later.shared_with(reader) / page_tokens * page_tokens;
            shared > later.read() && shared > reader.read()
        })
}
