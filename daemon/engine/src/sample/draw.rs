//! Random numbers that depend on (seed, choice, position) and on nothing else.
//!
//! Philox4x32-10, a counter-based generator: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw,
//! "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. The seed is the key, position and choice are the
//! counter, so there is no state to carry: a draw repeated after a restart, in another batch or
//! after a rejected guess is the same draw.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [
            key[0].wrapping_add(KEY_STEPS[0]),
            key[1].wrapping_add(KEY_STEPS[1]),
        ];
    }
    counter
}

/// The 64 random bits of `position` under `seed` in answer `choice`.
fn bits(seed: u64, choice: u32, position: u64) -> u64 {
    // The last counter word stays zero: other uses of the same seed can set it.
    let words = philox(
        [position as u32, (position >> 32) as u32, choice, 0],
        [seed as u32, (seed >> 32) as u32],
    );
    u64::from(words[1]) << 32 | u64::from(words[0])
}

/// A number in `0..bound` for `position` under `seed` in answer `choice`; 0 if `bound` is 0.
///
/// The multiplication rounds the ends of each token's share of `0..bound` to the grid of the 2^64
/// possible bits, so no token's probability is off by more than 2^-64.
pub(super) fn below(bound: u64, seed: u64, choice: u32, position: u64) -> u64 {
    ((u128::from(bits(seed, choice, position)) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the paper's Random123 library.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn draws_stay_below_the_bound_and_spread_evenly() {
        const DRAWS: u64 = 60_000;
        let mut counts = [0_u64; 6];
        for position in 0..DRAWS {
            counts[usize::try_from(below(6, 7, 0, position)).unwrap()] += 1;
        }
        // Five standard deviations of a count with mean 10,000.
        assert!(
            counts.iter().all(|&count| count.abs_diff(DRAWS / 6) < 460),
            "{counts:?}"
        );
        assert_eq!(below(0, 1, 0, 2), 0);
        assert_eq!(below(1, 1, 0, 2), 0);
    }

    #[test]
    fn seed_choice_and_position_all_matter() {
        let first = bits(1, 0, 0);
        assert_ne!(first, bits(2, 0, 0));
        assert_ne!(first, bits(1, 0, 1));
        assert_ne!(first, bits(1, 0, 1 << 32));
        assert_ne!(first, bits(1 << 32, 0, 0));
        assert_ne!(first, bits(1, 1, 0));
    }
}
