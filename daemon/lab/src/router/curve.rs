//! What is gained by sending the least likely answers up.

use crate::random::Random;

/// Bins of the calibration error, of as many answers each.
const BINS: usize = 10;

/// Answers in order of how likely they are right, the least likely first.
pub(super) struct Curve {
    rows: Vec<Scored>,
}

#[derive(Debug, Clone, Copy)]
struct Scored {
    score: f64,
    right: bool,
    strong: f64,
    weight: f64,
}

/// What a share that goes up gives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) share: f64,
    /// Answers below this go up.
    pub(super) threshold: f64,
    /// Share of those that are kept which are right.
    pub(super) kept_right: f64,
    /// Share of all that is right then.
    pub(super) quality: f64,
    /// Share of the distance between here and upstream that this makes good.
    pub(super) recovered: f64,
}

/// Bounds that hold in 95 of 100 draws.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Curve {
    /// Of scores, with whether the answer was right, how likely upstream is, and how much it counts.
    pub(super) fn new(scores: &[f64], outcomes: &[(bool, f64, f64)]) -> Curve {
        let rows = scores.iter().zip(outcomes);
        let rows = rows.map(|(&score, &(right, strong, weight))| Scored {
            score,
            right,
            strong,
            weight,
        });
        Curve::of(rows.collect())
    }

    fn of(mut rows: Vec<Scored>) -> Curve {
        rows.sort_by(|a, b| a.score.total_cmp(&b.score));
        Curve { rows }
    }

    fn total(&self) -> f64 {
        self.rows.iter().map(|row| row.weight).sum()
    }

    /// What sending up this share gives. Of answers with the same score, each goes up in part.
    pub(super) fn at(&self, share: f64) -> Point {
        let wanted = share * self.total();
        let (mut sent, mut gained, mut kept, mut kept_right) = (0.0, 0.0, 0.0, 0.0);
        let (mut gap, mut right) = (0.0, 0.0);
        let mut threshold = self.rows.first().map_or(0.0, |row| row.score);
        for equals in self.rows.chunk_by(|a, b| a.score == b.score) {
            let weight: f64 = equals.iter().map(|row| row.weight).sum();
            let part = ((wanted - sent) / weight.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
            sent += part * weight;
            if part < 1.0 && kept == 0.0 {
                threshold = equals[0].score;
            }
            for row in equals {
                let here = f64::from(u8::from(row.right));
                let gain = row.weight * (row.strong - here);
                gap += gain;
                gained += part * gain;
                right += row.weight * here;
                kept += (1.0 - part) * row.weight;
                kept_right += (1.0 - part) * row.weight * here;
            }
        }
        let total = self.total().max(f64::MIN_POSITIVE);
        Point {
            share,
            threshold,
            kept_right: if kept > 0.0 { kept_right / kept } else { 0.0 },
            quality: (right + gained) / total,
            recovered: if gap.abs() > 1e-9 { gained / gap } else { 0.0 },
        }
    }

    /// The least share, in hundredths, that reaches this quality; all if none does.
    pub(super) fn share_for(&self, quality: f64) -> f64 {
        let shares = (0..=100).map(|hundredths| f64::from(hundredths) / 100.0);
        let mut enough = shares.filter(|&share| self.at(share).quality >= quality);
        enough.next().unwrap_or(1.0)
    }

    /// How often a right answer scores above a wrong one, equals by half.
    pub(super) fn auc(&self) -> f64 {
        let (mut wrong, mut won, mut rights) = (0.0, 0.0, 0.0);
        for equals in self.rows.chunk_by(|a, b| a.score == b.score) {
            let of = |right: bool| -> f64 {
                let of = equals.iter().filter(|row| row.right == right);
                of.map(|row| row.weight).sum()
            };
            let (here_right, here_wrong) = (of(true), of(false));
            won += here_right * (wrong + here_wrong / 2.0);
            rights += here_right;
            wrong += here_wrong;
        }
        won / (rights * wrong).max(f64::MIN_POSITIVE)
    }

    /// How far the scores are from the shares that are right, over parts of about the same size; equals are in one.
    pub(super) fn calibration_error(&self) -> f64 {
        let size = self.rows.len().div_ceil(BINS).max(1);
        let (mut far, mut count, mut sum) = (0.0, 0, 0.0_f64);
        for equals in self.rows.chunk_by(|a, b| a.score == b.score) {
            count += equals.len();
            for row in equals {
                sum += row.weight * (row.score - f64::from(u8::from(row.right)));
            }
            if count >= size {
                far += sum.abs();
                (count, sum) = (0, 0.0);
            }
        }
        (far + sum.abs()) / self.total().max(f64::MIN_POSITIVE)
    }

    /// How sure what is recovered at a share is, by drawing the answers anew.
    pub(super) fn interval(&self, share: f64, draws: usize, seed: u64) -> Interval {
        let mut random = Random::new(seed.wrapping_add(1));
        let mut drawn: Vec<f64> = (0..draws)
            .map(|_| {
                let each = (0..self.rows.len()).map(|_| self.rows[random.below(self.rows.len())]);
                Curve::of(each.collect()).at(share).recovered
            })
            .collect();
        drawn.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (share * drawn.len() as f64) as usize;
            drawn
                .get(index.min(drawn.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0.0)
        };
        Interval {
            low: at(0.025),
            high: at(0.975),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four() -> Curve {
        let outcomes = [
            (false, 1.0, 1.0),
            (false, 1.0, 1.0),
            (true, 1.0, 1.0),
            (true, 1.0, 1.0),
        ];
        Curve::new(&[0.1, 0.4, 0.6, 0.9], &outcomes)
    }

    #[test]
    fn the_least_likely_go_up_first() {
        let curve = four();
        let quarter = curve.at(0.25);
        assert_eq!((quarter.threshold, quarter.recovered), (0.4, 0.5));
        assert_eq!(quarter.quality, 0.75);
        let half = curve.at(0.5);
        assert_eq!(
            (half.kept_right, half.quality, half.recovered),
            (1.0, 1.0, 1.0)
        );
        assert_eq!(curve.at(0.0).recovered, 0.0);
        assert_eq!(curve.share_for(0.75), 0.25);
        assert_eq!(curve.share_for(1.0), 0.5);
    }

    #[test]
    fn scores_that_say_nothing_are_chance() {
        let outcomes = [(false, 1.0, 1.0), (true, 1.0, 1.0)];
        let curve = Curve::new(&[0.5, 0.5], &outcomes);
        assert_eq!((curve.auc(), curve.at(0.25).recovered), (0.5, 0.25));
        assert_eq!(curve.calibration_error(), 0.0);
    }

    #[test]
    fn measures_of_a_good_order() {
        let curve = four();
        assert_eq!(curve.auc(), 1.0);
        let error = curve.calibration_error();
        assert!((error - (0.1 + 0.4 + 0.4 + 0.1) / 4.0).abs() < 1e-12);
        let interval = curve.interval(0.25, 200, 0);
        assert!(interval.low <= 0.5 && interval.high >= 0.5 && interval.high <= 1.0);
    }

    #[test]
    fn weights_count_as_so_many_answers() {
        let outcomes = [(false, 1.0, 3.0), (true, 1.0, 1.0)];
        let curve = Curve::new(&[0.2, 0.8], &outcomes);
        assert!((curve.at(0.75).recovered - 1.0).abs() < 1e-12);
        assert!((curve.at(0.25).recovered - 1.0 / 3.0).abs() < 1e-12);
    }
}
