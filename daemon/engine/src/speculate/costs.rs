//! What a pass over several tokens costs beside one over a single token.
//!
//! It begins with what the machine's calibration says of the weights' products, and follows the passes that are made: what
//! they take beside the products differs from model to model.

use std::time::Duration;

use crate::calibrate::Calibration;

/// Columns up to which costs are known one by one; beyond, they grow as they do before.
pub const COLUMNS_MAX: usize = 32;

/// Columns that the calibration measures.
const MEASURED: usize = crate::calibrate::COLUMNS_MAX;

/// Weight of a new pass in the mean of its kind.
const NEW: f32 = 0.1;

/// How much longer than expected a pass counts at most: a process that was put aside says nothing about its work.
const OUTLIER: f32 = 1.5;

/// Passes of a kind that what was expected counts for.
const PRIOR_PASSES: f32 = 4.0;

/// Tokens that are taken to be read in the time of guessing one, before anything is known.
const READ_TOKENS: f32 = 8.0;

/// Takes a value to a mean and the number of values.
fn note((mean, count): &mut (f32, f32), value: f32) {
    if *count == 0.0 {
        (*mean, *count) = (value, 1.0);
    } else {
        let value = value.min(*mean * OUTLIER);
        *count += 1.0;
        *mean += (value - *mean) * NEW.max(1.0 / *count);
    }
}

/// Costs of passes by their number of tokens.
#[derive(Clone, Debug)]
pub struct PassCosts {
    /// Relative to one column.
    expected: [f32; COLUMNS_MAX],
    /// Mean time of the passes seen, in seconds, and how many they were.
    seen: [(f32, f32); COLUMNS_MAX],
    /// Of a drafter, relative to one column: for one guess each of the answers that it guesses for.
    draft_expected: f32,
    /// Mean time of that, and of reading a token, in seconds, and of how many.
    drafted: (f32, f32),
    read: (f32, f32),
    /// Whether what passes are seen to take changes nothing.
    held: bool,
}

impl Default for PassCosts {
    fn default() -> PassCosts {
        // Careful: a machine with little arithmetic for its memory.
        PassCosts::of_columns(&[1.0, 1.15, 1.3, 1.45, 1.65, 1.85, 2.05, 2.25])
    }
}

impl PassCosts {
    /// Costs relative to one column, for 1 to 8 columns.
    #[must_use]
    pub fn of_columns(measured: &[f32; MEASURED]) -> PassCosts {
        let mut expected = [1.0_f32; COLUMNS_MAX];
        // A pass over more tokens costs no less; what says so is noise.
        let mut most = 1.0_f32;
        for (expected, &measured) in expected.iter_mut().zip(measured) {
            most = most.max(measured);
            *expected = most;
        }
        let each = (most - expected[MEASURED / 2 - 1]) / (MEASURED / 2) as f32;
        for column in MEASURED..COLUMNS_MAX {
            expected[column] = expected[column - 1] + each;
        }
        PassCosts {
            expected,
            seen: [(0.0, 0.0); COLUMNS_MAX],
            draft_expected: 0.1,
            drafted: (0.0, 0.0),
            read: (0.0, 0.0),
            held: false,
        }
    }

    /// The same, whatever passes are seen to take: for what must not depend on time.
    #[must_use]
    pub fn held(self) -> PassCosts {
        PassCosts { held: true, ..self }
    }

    /// Costs as a machine's calibration has them.
    #[must_use]
    pub fn of_calibration(calibration: &Calibration) -> PassCosts {
        PassCosts::of_columns(&calibration.column_cost)
    }

    /// Notes that a pass over `columns` tokens, none of them of a prompt, took `took`.
    pub fn saw(&mut self, columns: usize, took: Duration) {
        let index = columns.checked_sub(1).filter(|&index| index < COLUMNS_MAX);
        if let Some(index) = index
            && !self.held
        {
            note(&mut self.seen[index], took.as_secs_f32());
        }
    }

    /// Takes over what is known of the drafter from `before`: it is the same drafter whatever passes are expected to cost.
    #[must_use]
    pub(crate) fn with_drafter_of(self, before: &PassCosts) -> PassCosts {
        PassCosts {
            draft_expected: before.draft_expected,
            drafted: before.drafted,
            read: before.read,
            ..self
        }
    }

    /// Sets what a drafter's going through its weights is expected to cost, relative to a pass over a single token.
    pub fn expect_drafts(&mut self, cost: f32) {
        self.draft_expected = cost.max(0.0);
        self.drafted = (0.0, 0.0);
        self.read = (0.0, 0.0);
    }

    /// Notes that a drafter went `passes` times through its weights in `took`.
    pub(crate) fn drafted(&mut self, passes: usize, took: Duration) {
        if passes > 0 && !self.held {
            note(&mut self.drafted, took.as_secs_f32() / passes as f32);
        }
    }

    /// Notes that a drafter read `tokens` in `took`.
    pub(crate) fn drafter_read(&mut self, tokens: usize, took: Duration) {
        if tokens > 0 && !self.held {
            note(&mut self.read, took.as_secs_f32() / tokens as f32);
        }
    }

    /// Seconds of a pass over a single token, as far as passes have shown.
    fn single(&self) -> Option<f32> {
        let (one, ones) = self.seen[0];
        if ones > 0.0 {
            return (one > 0.0).then_some(one);
        }
        let known = self.seen.iter().zip(&self.expected);
        let (sum, count) = known.fold((0.0, 0.0), |(sum, all), (&(mean, count), expected)| {
            (sum + count * mean / expected, all + count)
        });
        (sum > 0.0).then(|| sum / count)
    }

    /// Cost of a drafter's going through its weights once, relative to a pass over a single token.
    pub(crate) fn of_draft(&self) -> f32 {
        self.relative(self.drafted, self.draft_expected)
    }

    /// Cost of a drafter's reading a token, relative to a pass over a single token.
    pub(crate) fn of_read(&self) -> f32 {
        self.relative(self.read, self.of_draft() / READ_TOKENS)
    }

    fn relative(&self, (mean, count): (f32, f32), expected: f32) -> f32 {
        match self.single() {
            Some(single) if count > 0.0 => {
                let weight = count / (count + PRIOR_PASSES);
                expected + (mean / single - expected) * weight
            }
            _ => expected,
        }
    }

    /// Cost of a pass over `columns` tokens, relative to one over a single token.
    #[must_use]
    pub fn of(&self, columns: usize) -> f32 {
        let index = columns.clamp(1, COLUMNS_MAX) - 1;
        let beyond = columns.saturating_sub(COLUMNS_MAX) as f32;
        let each = self.expected[COLUMNS_MAX - 1] - self.expected[COLUMNS_MAX - 2];
        let expected = self.expected[index] + beyond * each;
        let ((one, ones), (mean, count)) = (self.seen[0], self.seen[index]);
        if index == 0 || ones == 0.0 || count == 0.0 || one <= 0.0 {
            return expected;
        }
        let weight = count.min(ones) / (count.min(ones) + PRIOR_PASSES);
        expected + (mean / one - self.expected[index]) * weight
    }
}

#[cfg(test)]
mod tests {
    use super::{COLUMNS_MAX, PassCosts};
    use std::time::Duration;

    #[test]
    fn costs_grow_with_the_columns() {
        let costs = PassCosts::of_columns(&[1.0, 1.1, 0.9, 1.2, 1.4, 1.3, 1.6, 1.8]);
        for columns in 1..4 * COLUMNS_MAX {
            assert!(costs.of(columns + 1) >= costs.of(columns), "{columns}");
        }
        assert_eq!(costs.of(1), 1.0);
        assert_eq!(costs.of(3), 1.1);
        assert!((costs.of(16) - (1.8 + 8.0 * 0.15)).abs() < 1e-5);
    }

    #[test]
    fn a_drafter_costs_what_it_was_seen_to_take() {
        let mut costs = PassCosts::default();
        costs.expect_drafts(0.5);
        assert_eq!(costs.of_draft(), 0.5);
        costs.drafted(4, Duration::from_millis(4));
        assert_eq!(costs.of_draft(), 0.5, "beside nothing");
        for _ in 0..100 {
            // One column is never seen here.
            let two = 10.0 * costs.of(2);
            costs.saw(2, Duration::from_secs_f32(two / 1000.0));
            costs.drafted(4, Duration::from_millis(4));
            costs.drafter_read(10, Duration::from_millis(2));
        }
        assert!(
            (costs.of_draft() - 0.1).abs() < 0.03,
            "{}",
            costs.of_draft()
        );
        assert!((costs.of_read() - 0.02).abs() < 0.01, "{}", costs.of_read());
        costs.drafted(0, Duration::from_secs(1));
        costs.drafter_read(0, Duration::from_secs(1));
        assert!((costs.of_draft() - 0.1).abs() < 0.03);
    }

    #[test]
    fn held_costs_stay() {
        let mut costs = PassCosts::default().held();
        let (expected, draft) = (costs.of(4), costs.of_draft());
        for _ in 0..100 {
            costs.saw(1, Duration::from_millis(10));
            costs.saw(4, Duration::from_millis(90));
            costs.drafted(1, Duration::from_millis(90));
            costs.drafter_read(1, Duration::from_millis(90));
        }
        assert_eq!((costs.of(4), costs.of_draft()), (expected, draft));
        assert_eq!(costs.of_read(), draft / super::READ_TOKENS);
    }

    #[test]
    fn a_drafter_outlasts_new_costs_of_passes() {
        let mut before = PassCosts::default();
        before.expect_drafts(0.5);
        let after = PassCosts::of_columns(&[1.0; 8]).with_drafter_of(&before);
        assert_eq!((after.of_draft(), after.of(8)), (0.5, 1.0));
    }

    #[test]
    fn what_passes_take_corrects_what_was_expected() {
        let mut costs = PassCosts::default();
        let expected = costs.of(4);
        for _ in 0..100 {
            costs.saw(1, Duration::from_millis(10));
            costs.saw(4, Duration::from_millis(20));
        }
        assert!(costs.of(4) > expected && (costs.of(4) - 2.0).abs() < 0.05);
        // One that was put aside for a while changes little.
        costs.saw(4, Duration::from_secs(9));
        assert!((costs.of(4) - 2.0).abs() < 0.2, "{}", costs.of(4));
        costs.saw(0, Duration::from_secs(1));
        costs.saw(COLUMNS_MAX + 1, Duration::from_secs(1));
    }
}
