//! Which of the loaded models makes room for another.
//!
//! A model is worth what it would cost to have to load it again: how long that takes, times how likely it is to be
//! asked for, by how often and how lately it was. The one goes that is worth least for the memory it gives back.

/// After this time without a use, what earlier uses count is half.
pub const HALF_LIFE_MS: u64 = 600_000;

/// What a use counts.
const USE: u64 = 1 << 16;

/// How much a model is asked for: each use counts, and less as it becomes older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heat {
    units: u64,
    at_ms: u64,
}

impl Heat {
    /// It is asked for.
    pub const fn used(&mut self, now_ms: u64) {
        self.units = self.at(now_ms).saturating_add(USE);
        self.at_ms = now_ms;
    }

    /// It is at work still for who asked for it.
    pub const fn works(&mut self, now_ms: u64) {
        self.units = self.at(now_ms);
        self.at_ms = now_ms;
    }

    /// When it was asked for last, or at work for that, or 0.
    #[must_use]
    pub const fn used_ms(&self) -> u64 {
        self.at_ms
    }

    /// How much that is now.
    #[must_use]
    pub const fn at(&self, now_ms: u64) -> u64 {
        let age = now_ms.saturating_sub(self.at_ms);
        let halves = age / HALF_LIFE_MS;
        if halves >= 64 {
            return 0;
        }
        let left = self.units >> halves;
        // Between two halvings it falls in a straight line.
        let rest = age % HALF_LIFE_MS;
        let more = (left as u128 * rest as u128 / (2 * HALF_LIFE_MS) as u128) as u64;
        left - more
    }
}

/// A model that may go.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// How much it is asked for.
    pub heat: Heat,
    /// How long loading it took.
    pub load_ms: u64,
    /// Memory that it gives back.
    pub bytes: u64,
}

impl Candidate {
    /// What it is worth at this time, for each MiB.
    #[must_use]
    pub fn worth(&self, now_ms: u64) -> u128 {
        let mib = u128::from(self.bytes >> 20).max(1);
        let uses = u128::from(self.heat.at(now_ms)) + 1;
        uses * (u128::from(self.load_ms) + 1) / mib
    }
}

/// The one that is worth least; of equals the one whose last use is longest ago.
pub fn least<K>(now_ms: u64, candidates: impl IntoIterator<Item = (K, Candidate)>) -> Option<K> {
    let rank = |candidate: &Candidate| (candidate.worth(now_ms), candidate.heat.used_ms());
    let all = candidates.into_iter();
    let (key, _) = all.min_by_key(|(_, candidate)| rank(candidate))?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::{Candidate, HALF_LIFE_MS, Heat, least};

    fn used(times: &[u64]) -> Heat {
        let mut heat = Heat::default();
        for &at in times {
            heat.used(at);
        }
        heat
    }

    #[test]
    fn uses_count_half_after_a_half_life() {
        let heat = used(&[1000]);
        let (now, later) = (heat.at(1000), heat.at(1000 + HALF_LIFE_MS));
        assert_eq!(later * 2, now);
        assert_eq!(heat.at(1000 + 3 * HALF_LIFE_MS) * 8, now);
        assert!(heat.at(1000 + HALF_LIFE_MS / 2) > later);
        assert_eq!(heat.at(u64::MAX), 0);
        assert!(used(&[0, 10, 20]).at(20) > 2 * heat.at(1000));
    }

    #[test]
    fn what_is_asked_for_less_goes_first() {
        let one = |heat, load_ms, bytes| Candidate {
            heat,
            load_ms,
            bytes,
        };
        let now = 10 * HALF_LIFE_MS;
        let gib = 1 << 30;
        let lately = used(&[now - 10]);
        let long_ago = used(&[10]);
        let often = used(&[now - 40, now - 30, now - 20]);
        let chosen = |all: &[(char, Candidate)]| least(now, all.iter().copied());
        assert_eq!(
            chosen(&[('a', one(lately, 100, gib)), ('b', one(long_ago, 100, gib))]),
            Some('b')
        );
        assert_eq!(
            chosen(&[('a', one(lately, 100, gib)), ('b', one(often, 100, gib))]),
            Some('a')
        );
        // Of two that are asked for alike, the one that is loaded sooner or gives back more.
        assert_eq!(
            chosen(&[('a', one(lately, 90, gib)), ('b', one(lately, 2000, gib))]),
            Some('a')
        );
        assert_eq!(
            chosen(&[('a', one(lately, 90, gib)), ('b', one(lately, 90, 4 * gib))]),
            Some('b')
        );
        assert_eq!(chosen(&[]), None);
    }
}
