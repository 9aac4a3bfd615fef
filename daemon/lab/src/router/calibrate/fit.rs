//! Logistic regression by Newton's method, with a small penalty so that it always ends.

use andon_policy::confidence::FEATURES;

/// Of the squared weights, in units of answers.
const PENALTY: f64 = 1.0;
const STEPS_MAX: usize = 100;

/// Log-odds that are a sum of weighed numbers.
#[derive(Debug, Clone)]
pub(super) struct Logistic {
    pub(super) bias: f64,
    pub(super) weights: [f64; FEATURES],
}

/// Numbers, whether it was right, and how much it counts.
pub(super) type Seen = ([f64; FEATURES], bool, f64);

const SIZE: usize = FEATURES + 1;

impl Logistic {
    /// The weights under which the answers are likeliest. Numbers that do not vary get none.
    pub(super) fn fit(rows: &[Seen]) -> Logistic {
        let total: f64 = rows.iter().map(|(.., weight)| weight).sum();
        let total = total.max(f64::MIN_POSITIVE);
        let mean = |of: &dyn Fn(&[f64; FEATURES]) -> f64| {
            let each = rows.iter().map(|(row, _, weight)| weight * of(row));
            each.sum::<f64>() / total
        };
        let means: [f64; FEATURES] = core::array::from_fn(|index| mean(&|row| row[index]));
        let deviations: [f64; FEATURES] =
            core::array::from_fn(|index| mean(&|row| (row[index] - means[index]).powi(2)).sqrt());
        let standard = |row: &[f64; FEATURES]| -> [f64; SIZE] {
            core::array::from_fn(|index| match index.checked_sub(1) {
                None => 1.0,
                Some(index) if deviations[index] > 1e-9 => {
                    (row[index] - means[index]) / deviations[index]
                }
                Some(_) => 0.0,
            })
        };
        let mut weights = [0.0; SIZE];
        for _ in 0..STEPS_MAX {
            let (mut slope, mut curvature) = ([0.0; SIZE], [[0.0; SIZE]; SIZE]);
            for (row, right, weight) in rows {
                let row = standard(row);
                let given = probability(row.iter().zip(&weights).map(|(a, b)| a * b).sum());
                let missed = weight * (f64::from(u8::from(*right)) - given);
                let bend = weight * given * (1.0 - given);
                for ((slope, curvature), at) in slope.iter_mut().zip(&mut curvature).zip(row) {
                    *slope += missed * at;
                    for (curvature, other) in curvature.iter_mut().zip(row) {
                        *curvature += bend * at * other;
                    }
                }
            }
            for (index, (slope, weight)) in slope.iter_mut().zip(weights).enumerate().skip(1) {
                *slope -= PENALTY * weight;
                curvature[index][index] += PENALTY;
            }
            // Nothing bends where all answers are the same.
            curvature[0][0] += 1e-9;
            let step = solve(curvature, slope);
            let longest = step
                .iter()
                .fold(0.0, |most: f64, step| most.max(step.abs()));
            // Long steps go astray.
            let scale = if longest > 2.0 { 2.0 / longest } else { 1.0 };
            for (weight, step) in weights.iter_mut().zip(step) {
                *weight += scale * step;
            }
            if longest < 1e-9 {
                break;
            }
        }
        let each: [f64; FEATURES] = core::array::from_fn(|index| {
            if deviations[index] > 1e-9 {
                weights[index + 1] / deviations[index]
            } else {
                0.0
            }
        });
        let shift: f64 = each.iter().zip(&means).map(|(a, b)| a * b).sum();
        Logistic {
            bias: weights[0] - shift,
            weights: each,
        }
    }

    /// The probability that it is right.
    pub(super) fn of(&self, row: &[f64; FEATURES]) -> f64 {
        let terms = row.iter().zip(&self.weights).map(|(a, b)| a * b);
        probability(self.bias + terms.sum::<f64>())
    }
}

fn probability(odds: f64) -> f64 {
    1.0 / (1.0 + (-odds).exp())
}

/// The solution of a system whose matrix is symmetric and positive: elimination with the largest pivot.
fn solve(mut matrix: [[f64; SIZE]; SIZE], mut right: [f64; SIZE]) -> [f64; SIZE] {
    for column in 0..SIZE {
        let pivot = (column..SIZE)
            .max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()))
            .unwrap_or(column);
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        if matrix[column][column].abs() < 1e-300 {
            continue;
        }
        let (above, below) = matrix.split_at_mut(column + 1);
        let (above, known) = (&above[column], right[column]);
        for (row, right) in below.iter_mut().zip(&mut right[column + 1..]) {
            let factor = row[column] / above[column];
            for (value, pivot) in row.iter_mut().zip(above) {
                *value -= factor * pivot;
            }
            *right -= factor * known;
        }
    }
    let mut solution = [0.0; SIZE];
    for row in (0..SIZE).rev() {
        let known: f64 = (row + 1..SIZE)
            .map(|index| matrix[row][index] * solution[index])
            .sum();
        if matrix[row][row].abs() >= 1e-300 {
            solution[row] = (right[row] - known) / matrix[row][row];
        }
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between 0 and 1, the same each time.
    fn drawn() -> impl FnMut() -> f64 {
        let mut state = 7_u64;
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    #[test]
    fn weights_that_answers_were_drawn_by_are_found_again() {
        let mut draw = drawn();
        let truth = Logistic {
            bias: -0.5,
            weights: core::array::from_fn(|index| [2.0, -1.0, 0.0][index % 3]),
        };
        let rows: Vec<Seen> = (0..20_000)
            .map(|_| {
                let row = core::array::from_fn(|_| draw() * 2.0 - 1.0);
                let right = draw() < truth.of(&row);
                (row, right, 1.0)
            })
            .collect();
        let fit = Logistic::fit(&rows);
        assert!((fit.bias - truth.bias).abs() < 0.1, "{fit:?}");
        for (found, given) in fit.weights.iter().zip(truth.weights) {
            assert!((found - given).abs() < 0.15, "{fit:?}");
        }
    }

    #[test]
    fn what_does_not_vary_gets_no_weight_and_what_decides_all_ends() {
        let rows: Vec<Seen> = (0..100)
            .map(|index| {
                let mut row = [3.0; FEATURES];
                row[0] = f64::from(index);
                (row, index >= 50, 1.0)
            })
            .collect();
        let fit = Logistic::fit(&rows);
        assert_eq!(fit.weights[1..], [0.0; FEATURES - 1]);
        assert!(fit.weights[0] > 0.0 && fit.weights[0].is_finite());
        assert!(fit.of(&rows[0].0) < 0.1 && fit.of(&rows[99].0) > 0.9);
    }

    #[test]
    fn answers_that_are_all_right_give_no_nonsense() {
        let rows: Vec<Seen> = (0..60).map(|_| ([1.0; FEATURES], true, 1.0)).collect();
        let fit = Logistic::fit(&rows);
        assert!(fit.bias.is_finite() && fit.of(&rows[0].0) > 0.9);
    }
}
