//! What the looks at a daemon must show.
//!
//! Invariant: what was not judged does not count as time soaked, and a part that failed is never passed over.

use crate::load;
use crate::record::{Look, Part};

/// Seconds that a part takes to fill its caches; it is judged from then on.
const WARM_UP: f64 = 600.0;

/// How far resident memory may be from its middle.
const FLAT: f64 = 0.02;

/// Most private memory beside weights and KV cache.
const PRIVATE_MAX: i64 = 40 << 20;

/// In how many pieces of each part answers must have come.
const PIECES: usize = 4;

const MEBIBYTE: f64 = (1 << 20) as f64;

/// How often the KV cache must have been computed anew before the looks count: only then is all of it memory that was written.
const FILLED: u64 = 10;

/// The shortest part that is judged, in seconds.
pub(crate) const SHORTEST: f64 = 2.0 * WARM_UP;

/// Seconds of all parts that are judged, their warming up included.
pub(crate) fn seconds(parts: &[Part]) -> f64 {
    parts.iter().filter_map(length).sum()
}

/// Seconds of a part; none if it is too short to be judged.
fn length(part: &Part) -> Option<f64> {
    let at = part.looks.last()?.at;
    (at > SHORTEST).then_some(at)
}

/// The looks that count.
fn warm(part: &Part) -> &[Look] {
    let cold = part.looks.partition_point(|look| look.at < WARM_UP);
    &part.looks[cold..]
}

/// Says how every part went, and whether there was enough of it and all was as it should be.
pub(crate) fn judge(parts: &[Part], wanted: f64) -> bool {
    let mut complaints = Vec::new();
    for part in parts {
        let number = part.number;
        if let Some(failure) = &part.failure {
            complaints.push(format!("part {number} failed: {failure}"));
        }
        match length(part) {
            Some(length) => {
                println!("part {number}: {length:.0} s; {}", said(warm(part)));
                complaints.extend(
                    faults(part)
                        .into_iter()
                        .map(|fault| format!("part {number}: {fault}")),
                );
            }
            None => println!("part {number}: too short to be judged; it does not count"),
        }
    }
    let counted = parts.iter().filter(|part| length(part).is_some());
    let resident: Vec<u64> = counted
        .flat_map(|part| warm(part).iter().map(|look| look.vitals.resident))
        .collect();
    complaints.extend(flat(&resident).err());
    let soaked = seconds(parts);
    // The last look of a part may come a little before its time.
    if soaked < wanted * 0.999 {
        complaints.push(format!("only {soaked:.0} of {wanted:.0} s"));
    }
    for complaint in &complaints {
        println!("NOT AS IT SHOULD BE: {complaint}");
    }
    complaints.is_empty()
}

/// Whether all are near their middle.
fn flat(resident: &[u64]) -> Result<(), String> {
    let mut sorted = resident.to_vec();
    sorted.sort_unstable();
    let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else {
        return Err("nothing was looked at".to_owned());
    };
    let middle = sorted[sorted.len() / 2] as f64;
    let far = (most as f64 / middle - 1.0).max(1.0 - least as f64 / middle);
    if far <= FLAT {
        return Ok(());
    }
    Err(format!(
        "resident memory is up to {:.1} % from its middle, {:.1} MiB",
        100.0 * far,
        middle / MEBIBYTE
    ))
}

/// Private memory beside weights, which are mapped, and the KV cache, which is full by then.
fn private(look: &Look) -> i64 {
    look.vitals.anonymous.cast_signed() - look.kv_cache.cast_signed()
}

/// What is wrong with a part.
fn faults(part: &Part) -> Vec<String> {
    let warm = warm(part);
    let mut faults = Vec::new();
    let most = warm.iter().map(private).max().unwrap_or(0);
    if most > PRIVATE_MAX {
        let mebibytes = most as f64 / MEBIBYTE;
        faults.push(format!(
            "{mebibytes:.1} MiB of private memory beside weights and KV cache"
        ));
    }
    let read = warm.first().map_or(0, |look| look.tokens_read);
    if most < 0 || read < FILLED * load::KV_TOKENS {
        faults
            .push("the KV cache was never full, so nothing is known of private memory".to_owned());
    }
    let pieces: Vec<&[Look]> = warm.chunks(warm.len().div_ceil(PIECES).max(1)).collect();
    // Descriptors come and go with connections: what counts is whether the fewest of the end are more than of the beginning.
    let fewest = |looks: &[Look]| looks.iter().map(|look| look.vitals.descriptors).min();
    if let [first, .., last] = pieces[..]
        && fewest(last) > fewest(first)
    {
        faults.push("descriptors become more".to_owned());
    }
    for piece in pieces {
        if let [first, .., last] = piece
            && (last.load.answered <= first.load.answered || last.load.ended <= first.load.ended)
        {
            faults.push(format!(
                "no answers from {:.0} s to {:.0} s",
                first.at, last.at
            ));
        }
    }
    if let Some(last) = warm.last()
        && last.load.failed > 0
    {
        faults.push(format!("{} requests failed", last.load.failed));
    }
    faults
}

fn said(looks: &[Look]) -> String {
    let range = |value: fn(&Look) -> f64| {
        let values = || looks.iter().map(value);
        let (least, most) = (
            values().fold(f64::INFINITY, f64::min),
            values().fold(f64::NEG_INFINITY, f64::max),
        );
        format!("{least:.1} to {most:.1}")
    };
    format!(
        "resident {} MiB; of no file {} MiB, beside the KV cache {} MiB; descriptors {}; threads {}; {:?}",
        range(|look| look.vitals.resident as f64 / MEBIBYTE),
        range(|look| look.vitals.anonymous as f64 / MEBIBYTE),
        range(|look| private(look) as f64 / MEBIBYTE),
        range(|look| look.vitals.descriptors as f64),
        range(|look| look.vitals.threads as f64),
        looks.last().map(|look| look.load),
    )
}

#[cfg(test)]
mod tests {
    use super::{judge, seconds};
    use crate::record::{Load, Look, Part};
    use andon_tests::vitals::Vitals;

    /// Two hours that are as they should be.
    fn sound() -> Part {
        let looks = (1..=1440)
            .map(|number| Look {
                at: number as f64 * 5.0,
                vitals: Vitals {
                    resident: 300 << 20,
                    anonymous: 120 << 20,
                    descriptors: 20 + number % 3,
                    threads: 9,
                },
                kv_cache: 90 << 20,
                tokens_read: 500 * number,
                load: Load {
                    answered: number * 10,
                    ended: number,
                    ..Load::default()
                },
            })
            .collect();
        Part {
            number: 1,
            looks,
            failure: None,
        }
    }

    fn passes(change: impl Fn(&mut Look)) -> bool {
        let mut part = sound();
        part.looks.iter_mut().for_each(change);
        judge(&[part], 7200.0)
    }

    #[test]
    fn what_is_as_it_should_be_passes() {
        assert!(passes(|_| ()));
        // A part that was cut off early adds nothing and takes nothing.
        let mut short = sound();
        short.looks.truncate(200);
        let parts = [short, sound()];
        assert!((seconds(&parts) - 7200.0).abs() < 1.0);
        assert!(judge(&parts, 7200.0));
    }

    #[test]
    fn what_is_not_does_not() {
        let late = |look: &Look| look.at > 5000.0;
        assert!(!passes(|look| if late(look) {
            look.vitals.resident += 8 << 20;
        }));
        assert!(!passes(|look| look.vitals.anonymous += 11 << 20));
        assert!(!passes(|look| look.vitals.anonymous = 80 << 20));
        assert!(!passes(|look| look.tokens_read /= 2));
        assert!(!passes(|look| if late(look) {
            look.vitals.descriptors += 1;
        }));
        assert!(!passes(|look| look.load.failed = 1));
        assert!(!passes(|look| look.load.ended = 3));
        assert!(!passes(
            |look| look.load.answered = look.load.answered.min(4000)
        ));
        let mut part = sound();
        part.looks.truncate(1000);
        assert!(!judge(&[part], 7200.0));
        let mut part = sound();
        part.failure = Some("andond has ended".to_owned());
        assert!(!judge(&[part], 7200.0));
        // A leak that only a start ends.
        let mut grown = sound();
        for look in &mut grown.looks {
            look.vitals.resident += 15 << 20;
        }
        assert!(!judge(&[sound(), grown], 14400.0));
        assert!(!judge(&[], 7200.0));
    }
}
