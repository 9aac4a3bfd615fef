//! How fast this machine has been of late, and what that says about work to come.
//!
//! Everything is measured on the passes that are made; nothing is assumed of a machine. What was
//! never measured is `None`, and nothing is refused on it.
//!
//! Invariant: estimates lean to the fast side where they have to guess, so that a request is not
//! turned away that could have been met.

use andon_wire::Priority;

use crate::queue::rank;

/// Answers in a pass up to which times are known one by one.
const ANSWERS_MAX: usize = 64;

/// Fewest tokens of prompts in a pass that says how fast prompts are read: with fewer, what is
/// measured is the pass.
const PROMPT_TOKENS_MIN: u32 = 16;

/// Prompt tokens after which what was measured before counts half.
const MEMORY_TOKENS: u64 = 8_192;

/// Fewest tokens of prompts in a pass beside answers. Less would not be worth its pass.
const CHUNK_MIN: u32 = 16;

/// As many before anything was measured.
const CHUNK_UNKNOWN: u32 = 64;

/// Longest that a pass reads prompts beside no answers: whoever comes meanwhile waits for its end.
const ALONE_US_MAX: u64 = 500_000;

/// Fewest tokens of such a pass, and as many before anything was measured. Less would read prompts
/// slower: the weights are read once for all of them.
const ALONE_MIN: u32 = 128;

/// Share of a new value in a mean, in 1 / `2^SHIFT`.
const SHIFT: u32 = 3;

/// A pass that took so many times as long for its prompts as was expected counts as no longer.
const SLOWER: u64 = 4;

/// What one pass took, this many times, is the most that is expected of the next.
const FASTER: u64 = 4;

/// A pass that was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What it took.
    pub took_us: u64,
    /// Answers that had a token chosen.
    pub answers: u32,
    /// Tokens that these got; more than one each where guesses were right.
    pub answer_tokens: u32,
    /// Tokens of prompts that were read.
    pub prompt_tokens: u32,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Speeds {
    /// Mean time of a pass without prompts, by the number of answers less one; 0 is unknown.
    step_us: [u32; ANSWERS_MAX],
    /// Time spent on tokens of prompts, and how many they were; both fade.
    prompt_us: u64,
    prompt_tokens: u64,
    /// Tokens of prompts that had to be computed, and of all; both fade.
    fresh_tokens: u64,
    all_tokens: u64,
    /// Tokens that few answers of a class are shorter than, and tokens of an answer in a pass, both
    /// times 256; 0 is unknown.
    answer_tokens: [u64; Priority::ALL.len()],
    pass_tokens: u64,
}

impl Default for Speeds {
    fn default() -> Self {
        Self::new()
    }
}

impl Speeds {
    /// Nothing measured.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            step_us: [0; ANSWERS_MAX],
            prompt_us: 0,
            prompt_tokens: 0,
            fresh_tokens: 0,
            all_tokens: 0,
            answer_tokens: [0; Priority::ALL.len()],
            pass_tokens: 0,
        }
    }
}

/// Moves a mean towards a value; the first is taken as it is.
fn blend(mean: u64, value: u64) -> u64 {
    if mean == 0 {
        return value;
    }
    // One that was held up says little: it counts as twice the mean.
    let value = value.min(mean.saturating_mul(2));
    // Rounded up, so that a mean of something never becomes that of nothing.
    mean - (mean >> SHIFT) + value.div_ceil(1 << SHIFT)
}

impl Speeds {
    /// Takes in a pass.
    pub fn stepped(&mut self, step: &Step) {
        if step.prompt_tokens == 0 {
            if let Some(index) = index(step.answers) {
                // What was taken while something held passes up is no measure of later ones.
                let mean = u64::from(self.step_us[index]).min(step.took_us.saturating_mul(FASTER));
                let mean = blend(mean, step.took_us).max(1);
                self.step_us[index] = u32::try_from(mean).unwrap_or(u32::MAX);
                let each = u64::from(step.answer_tokens) * 256 / u64::from(step.answers);
                if each > 0 {
                    self.pass_tokens = blend(self.pass_tokens, each);
                }
            }
            return;
        }
        // Beside answers a prompt costs what the pass takes longer than without it.
        let answers_us = match step.answers {
            0 => 0,
            answers => match self.step_us(answers) {
                Some(us) => us,
                None => return,
            },
        };
        if step.prompt_tokens >= PROMPT_TOKENS_MIN {
            let tokens = u64::from(step.prompt_tokens);
            let mut us = step.took_us.saturating_sub(answers_us);
            if let Some(expected_us) = self.prompt_us(step.prompt_tokens) {
                // One that was held up says little; and if one was so much faster, those before were held up. Beside answers
                // a part of the time is theirs.
                us = us.min(expected_us.saturating_mul(SLOWER));
                if step.answers == 0 && us.saturating_mul(FASTER) < expected_us {
                    let most = us.saturating_mul(FASTER).saturating_mul(self.prompt_tokens);
                    self.prompt_us = (most / tokens).max(1);
                }
            }
            self.prompt_us = self.prompt_us.saturating_add(us);
            self.prompt_tokens += tokens;
            if self.prompt_tokens > 2 * MEMORY_TOKENS {
                self.prompt_us /= 2;
                self.prompt_tokens /= 2;
            }
        }
    }

    /// Takes in that a prompt was read: how many tokens of it had to be computed.
    pub fn prompt_read(&mut self, computed: u32, all: u32) {
        self.fresh_tokens += u64::from(computed.min(all));
        self.all_tokens += u64::from(all);
        if self.all_tokens > 2 * MEMORY_TOKENS {
            self.fresh_tokens /= 2;
            self.all_tokens /= 2;
        }
    }

    /// Takes in how long an answer became.
    pub fn answered(&mut self, priority: Priority, tokens: u32) {
        let low = &mut self.answer_tokens[usize::from(rank(priority))];
        let tokens = u64::from(tokens.max(1)) * 256;
        // Down in big steps and up in small ones: it settles where one in nine is below.
        if *low == 0 || tokens < *low {
            *low -= low.saturating_sub(tokens) / 4;
            *low = if *low == 0 { tokens } else { *low };
        } else {
            *low += (tokens - *low) / 32;
        }
    }

    /// Time of a pass with `answers` and no prompt. Where only others were seen, that of the
    /// nearest with fewer answers, else with more.
    #[must_use]
    pub fn step_us(&self, answers: u32) -> Option<u64> {
        let index = index(answers.max(1))?;
        let (below, above) = self.step_us.split_at(index + 1);
        let known = |us: &&u32| **us > 0;
        let nearest = below.iter().rev().find(known);
        let nearest = nearest.or_else(|| above.iter().find(known))?;
        Some(u64::from(*nearest))
    }

    /// Time of reading `tokens` of a prompt beside other work.
    #[must_use]
    pub fn prompt_us(&self, tokens: u32) -> Option<u64> {
        (self.prompt_tokens > 0)
            .then(|| u64::from(tokens).saturating_mul(self.prompt_us) / self.prompt_tokens)
    }

    /// The same of a whole prompt, of which as much is known already as of others.
    #[must_use]
    pub fn whole_prompt_us(&self, tokens: u32) -> Option<u64> {
        let us = self.prompt_us(tokens)?;
        if self.all_tokens == 0 {
            return Some(us);
        }
        Some(us.saturating_mul(self.fresh_tokens) / self.all_tokens)
    }

    /// Tokens of prompts that a pass may read beside `answers`: what takes at most two steps of
    /// theirs, or half a second if there are none; and no more than `most`.
    #[must_use]
    pub fn chunk_tokens(&self, answers: u32, most: u32) -> u32 {
        let (us, least, unknown) = match answers {
            0 => (Some(ALONE_US_MAX), ALONE_MIN, ALONE_MIN),
            _ => {
                let two_us = self.step_us(answers).map(|us| us.saturating_mul(2));
                (two_us, CHUNK_MIN, CHUNK_UNKNOWN)
            }
        };
        let (Some(us), true) = (us, self.prompt_us > 0) else {
            return unknown.min(most);
        };
        let tokens = us.saturating_mul(self.prompt_tokens) / self.prompt_us;
        u32::try_from(tokens)
            .unwrap_or(u32::MAX)
            .max(least)
            .min(most)
    }

    /// The shortest time from the first pass over a prompt to the first token.
    #[must_use]
    pub fn first_token_us(&self, prompt_tokens: u32) -> Option<u64> {
        let prompt_us = self.whole_prompt_us(prompt_tokens)?;
        Some(prompt_us.saturating_add(self.step_us(1)?))
    }

    /// Time from the first pass to the end of an answer of at most `tokens_max` tokens, in passes of
    /// `answers` in all. It is taken to be as short as few of its class are.
    #[must_use]
    pub fn service_us(
        &self,
        priority: Priority,
        prompt_tokens: u32,
        tokens_max: u32,
        answers: u32,
    ) -> Option<u64> {
        let few = self.answer_tokens[usize::from(rank(priority))] / 256;
        let tokens = few.min(u64::from(tokens_max)).max(1);
        let passes = (tokens * 256).div_ceil(self.pass_tokens.max(256));
        let answer_us = self.step_us(answers)?.saturating_mul(passes);
        Some(
            self.whole_prompt_us(prompt_tokens)?
                .saturating_add(answer_us),
        )
    }
}

fn index(answers: u32) -> Option<usize> {
    let index = usize::try_from(answers).ok()?.checked_sub(1)?;
    Some(index.min(ANSWERS_MAX - 1))
}

#[cfg(test)]
mod tests {
    use super::{ALONE_MIN, CHUNK_MIN, CHUNK_UNKNOWN, Speeds, Step};
    use andon_wire::Priority;

    fn measured() -> Speeds {
        let mut speeds = Speeds::default();
        for answers in [1, 4, 8] {
            speeds.stepped(&Step {
                took_us: 5_000 + 1_000 * u64::from(answers),
                answers,
                answer_tokens: answers,
                prompt_tokens: 0,
            });
        }
        speeds.stepped(&Step {
            took_us: 25_600,
            answers: 0,
            answer_tokens: 0,
            prompt_tokens: 64,
        });
        speeds
    }

    #[test]
    fn nothing_is_known_before_a_pass() {
        let speeds = Speeds::default();
        assert_eq!(speeds.step_us(1), None);
        assert_eq!(speeds.first_token_us(100), None);
        assert_eq!(speeds.service_us(Priority::Batch, 1, 1, 1), None);
        assert_eq!(speeds.chunk_tokens(0, 512), ALONE_MIN);
        assert_eq!(speeds.chunk_tokens(1, 512), CHUNK_UNKNOWN);
        assert_eq!(speeds.chunk_tokens(1, 8), 8);
    }

    #[test]
    fn passes_that_were_not_seen_are_like_the_nearest() {
        let speeds = measured();
        for (answers, us) in [(1, 6_000), (3, 6_000), (4, 9_000), (7, 9_000), (8, 13_000)] {
            assert_eq!(speeds.step_us(answers), Some(us), "{answers}");
        }
        assert_eq!(speeds.step_us(1_000), Some(13_000));
    }

    #[test]
    fn a_chunk_takes_no_longer_than_two_steps() {
        let speeds = measured();
        assert_eq!(speeds.prompt_us(100), Some(40_000));
        for answers in 1..=8 {
            let chunk = speeds.chunk_tokens(answers, 512);
            let took = speeds.prompt_us(chunk).expect("known");
            assert!(took <= 2 * speeds.step_us(answers).expect("known"));
        }
        assert_eq!(speeds.chunk_tokens(8, 512), 65);
        assert_eq!(speeds.chunk_tokens(8, 20), 20);
        assert_eq!(speeds.chunk_tokens(0, 512), 512);
        assert_eq!(speeds.chunk_tokens(0, 8192), 1250);
    }

    #[test]
    fn a_slow_machine_still_reads_something() {
        let mut speeds = measured();
        for _ in 0..10 {
            speeds.stepped(&reading(10_000_000));
        }
        assert_eq!(speeds.chunk_tokens(1, 512), CHUNK_MIN);
        assert_eq!(speeds.chunk_tokens(0, 512), ALONE_MIN);
    }

    /// A pass over 64 tokens of a prompt.
    fn reading(took_us: u64) -> Step {
        Step {
            took_us,
            answers: 0,
            answer_tokens: 0,
            prompt_tokens: 64,
        }
    }

    #[test]
    fn a_pass_that_was_held_up_says_little_of_prompts_too() {
        let mut speeds = measured();
        speeds.stepped(&reading(10_000_000));
        // 25.6 ms and four times as much of two passes.
        assert_eq!(speeds.prompt_us(128), Some(128_000));
        let mut first = Speeds::default();
        first.stepped(&reading(10_000_000));
        first.stepped(&reading(25_600));
        assert_eq!(first.prompt_us(128), Some(128_000));
        let answer = |took_us| Step {
            took_us,
            answers: 1,
            answer_tokens: 1,
            prompt_tokens: 0,
        };
        first.stepped(&answer(10_000_000));
        first.stepped(&answer(6_000));
        assert!(first.step_us(1).is_some_and(|us| us <= 24_000));
    }

    #[test]
    fn beside_answers_only_the_rest_of_a_pass_is_the_prompts() {
        let mut speeds = measured();
        for _ in 0..10 {
            speeds.stepped(&Step {
                took_us: 9_000 + 64 * 400,
                answers: 4,
                answer_tokens: 4,
                prompt_tokens: 64,
            });
        }
        assert_eq!(speeds.prompt_us(1_000), Some(400_000));
    }

    #[test]
    fn answers_are_taken_to_be_as_short_as_few_are() {
        let mut speeds = measured();
        for round in 0..400 {
            let tokens = if round % 4 == 0 { 50 } else { 400 };
            speeds.answered(Priority::Batch, tokens);
        }
        let prompt = 40_000;
        let passes = |us: Option<u64>| us.map(|us| (us - prompt) / 9_000);
        let long = passes(speeds.service_us(Priority::Batch, 100, 1_000, 4));
        assert!(
            long.is_some_and(|passes| (50..150).contains(&passes)),
            "{long:?}"
        );
        let mut speeds = measured();
        speeds.answered(Priority::Batch, 50);
        let service = |tokens_max| speeds.service_us(Priority::Batch, 100, tokens_max, 4);
        assert_eq!(service(1_000), Some(prompt + 50 * 9_000));
        assert_eq!(service(10), Some(prompt + 10 * 9_000));
        assert_eq!(
            speeds.service_us(Priority::Alarm, 100, 1_000, 4),
            Some(prompt + 9_000)
        );
    }

    #[test]
    fn what_is_remembered_of_prompts_takes_no_time() {
        let mut speeds = measured();
        speeds.prompt_read(25, 100);
        assert_eq!(speeds.whole_prompt_us(100), Some(10_000));
        assert_eq!(speeds.first_token_us(100), Some(16_000));
    }

    #[test]
    fn one_pass_that_was_held_up_changes_little() {
        let mut speeds = measured();
        speeds.stepped(&Step {
            took_us: 10_000_000,
            answers: 1,
            answer_tokens: 1,
            prompt_tokens: 0,
        });
        assert!(speeds.step_us(1).is_some_and(|us| us < 7_000));
    }
}
