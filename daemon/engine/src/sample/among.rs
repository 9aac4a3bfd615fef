//! Choosing among the tokens that a mask allows, as if the others were not in the vocabulary.
//!
//! A mask has a bit for each token, the lowest of its first word for token 0; tokens without a bit are not allowed.

use super::chain::SampleError;

/// Tokens of a word of a mask.
const WORD: usize = u32::BITS as usize;
/// The bit of each of them. Tested against these, several tokens are looked at in one instruction of any processor.
const BITS: [u32; WORD] = {
    let mut bits = [0; WORD];
    let mut index = 0;
    while index < WORD {
        bits[index] = 1 << index;
        index += 1;
    }
    bits
};
/// Tokens that are compared at once.
const LANES: usize = 8;
/// All bits of it are set in what is not finite, and only there.
const EXPONENT: u32 = 0x7F80_0000;

/// Each word of a mask with its logits and the number of its first token.
fn words<'a>(logits: &'a [f32], allowed: &'a [u32]) -> impl Iterator<Item = (u32, u32, &'a [f32])> {
    let pairs = allowed.iter().zip(logits.chunks(WORD));
    (0_u32..)
        .step_by(WORD)
        .zip(pairs)
        .map(|(first, (&word, logits))| (first, word, logits))
}

/// Whether a token has its bit.
pub(super) fn is_allowed(allowed: &[u32], token: u32) -> bool {
    let word = allowed.get(token as usize / WORD);
    word.is_some_and(|word| word >> (token as usize % WORD) & 1 == 1)
}

/// The first of the tokens whose logit is the largest of those allowed; no logit is copied for it.
pub(super) fn first_largest(logits: &[f32], allowed: &[u32]) -> Result<u32, SampleError> {
    let mut best: Option<(u32, f32)> = None;
    let mut padded = [0.0; WORD];
    for (first, mut word, logits) in words(logits, allowed) {
        let row: &[f32; WORD] = match logits.try_into() {
            Ok(row) => row,
            Err(_) => {
                padded[..logits.len()].copy_from_slice(logits);
                word &= (1 << logits.len()) - 1;
                &padded
            }
        };
        if word == 0 {
            continue;
        }
        // Whole numbers, because comparisons of these become instructions over several tokens everywhere.
        let (mut largest, mut strange) = ([f32::NEG_INFINITY; LANES], [0; LANES]);
        let pieces = row.as_chunks::<LANES>().0.iter();
        for (row, bits) in pieces.zip(BITS.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                let mask = if word & bits[lane] == 0 { 0 } else { u32::MAX };
                let logit = row[lane].to_bits() & mask;
                let odd = if logit & EXPONENT == EXPONENT { 1 } else { 0 };
                strange[lane] |= odd;
                let logit = f32::from_bits(logit | f32::NEG_INFINITY.to_bits() & !mask);
                let before = largest[lane];
                largest[lane] = if logit > before { logit } else { before };
            }
        }
        let numbered = || {
            (first..)
                .zip(row.iter().zip(BITS))
                .filter(|(_, (_, bit))| word & bit != 0)
        };
        if strange != [0; LANES]
            && let Some((token, (&value, _))) =
                numbered().find(|(_, (logit, _))| !logit.is_finite())
        {
            return Err(SampleError::NonFinite { token, value });
        }
        let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
        if best.is_none_or(|(_, before)| largest > before) {
            let found = numbered().find(|&(_, (&logit, _))| logit == largest);
            best = found.map(|(id, (&logit, _))| (id, logit)).or(best);
        }
    }
    best.map(|(id, _)| id).ok_or(SampleError::Empty)
}

/// The logits of tokens that are allowed, with their ids in order.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) logits: Vec<f32>,
    pub(super) ids: Vec<u32>,
}

impl Kept {
    pub(super) fn fill(&mut self, logits: &[f32], allowed: &[u32]) {
        self.logits.clear();
        self.ids.clear();
        for (first, word, logits) in words(logits, allowed) {
            if word == u32::MAX && logits.len() == WORD {
                self.logits.extend_from_slice(logits);
                self.ids.extend(first..first + u32::BITS);
                continue;
            }
            let mut bits = word;
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                if let Some(&logit) = logits.get(bit as usize) {
                    self.logits.push(logit);
                    self.ids.push(first + bit);
                }
            }
        }
    }

    /// An error of the chain, by the token's id.
    pub(super) fn blame(&self, error: SampleError) -> SampleError {
        match error {
            SampleError::NonFinite { token, value } => SampleError::NonFinite {
                token: self.ids.get(token as usize).copied().unwrap_or(token),
                value,
            },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same in the plainest way.
    fn plainly(logits: &[f32], allowed: &[u32]) -> Result<u32, SampleError> {
        let mut kept = Kept::default();
        kept.fill(logits, allowed);
        let odd = kept.logits.iter().position(|logit| !logit.is_finite());
        if let Some(index) = odd {
            let (token, value) = (kept.ids[index], kept.logits[index]);
            return Err(SampleError::NonFinite { token, value });
        }
        let largest = kept.logits.iter().copied().reduce(f32::max);
        let largest = largest.ok_or(SampleError::Empty)?;
        let index = kept.logits.iter().position(|&logit| logit == largest);
        Ok(kept.ids[index.expect("it is one of them")])
    }

    proptest! {
        #[test]
        fn the_largest_is_what_a_copy_would_give(
            // Few values, so that ties are everywhere; the last of them is infinite and rare.
            values in prop::collection::vec(0_u16..1024, 0..150),
            words in prop::collection::vec(prop_oneof![Just(0), Just(u32::MAX), any::<u32>()], 0..6),
        ) {
            let of = |value| match value {
                1023 => f32::INFINITY,
                _ => f32::from(value % 7) - 3.0,
            };
            let logits: Vec<f32> = values.into_iter().map(of).collect();
            prop_assert_eq!(first_largest(&logits, &words), plainly(&logits, &words));
        }
    }

    #[test]
    fn only_what_is_allowed_has_to_be_finite() {
        let mut logits = [0.0; 40];
        (logits[3], logits[39]) = (f32::NAN, f32::MIN);
        assert_eq!(first_largest(&logits, &[0, 1 << 7]), Ok(39));
        assert_eq!(first_largest(&logits, &[4, u32::MAX]), Ok(2));
        let error = first_largest(&logits, &[u32::MAX, u32::MAX]);
        assert!(matches!(
            error,
            Err(SampleError::NonFinite { token: 3, .. })
        ));
        assert_eq!(
            first_largest(&logits, &[0, 1 << 8]),
            Err(SampleError::Empty)
        );
    }
}
