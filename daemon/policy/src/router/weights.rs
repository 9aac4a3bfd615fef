//! The file of the estimator's weights: its layout, and what is refused in one.
//!
//! ```text
//! 0   8   magic
//! 8   2   revision of the layout
//! 10  2   revision of the features
//! 12  1   figures        13  1  of them in every language     14  1  knots of each     15  1  profiles
//! 16  1   log2 of the number of lexical weights, 0 for none
//! 17  1   log2 of the bytes of the known words' filter
//! 18  1   1 with an entry for what a stronger model gains, else 0
//! 19  5   zero
//! 24  8   FNV-1a of everything behind it
//! 32  4   scale of the lexical weights
//! 36      knots: figures x knots, rising within a figure
//!         profiles, the first one for any model: name, bias and what
//!         is added to it in English, weights of figures that hold for every language, weights
//!         of all for English, factor of the lexical weights, points of the calibration (logit, probability)
//!         the same for what a stronger model gains, named `gain`, if there is one
//!         filter of known words
//!         lexical weights, one byte each, with sign; then, with that entry, as many for it
//! ```
//!
//! Numbers are little-endian, fractions `f32`.
//!
//! Invariant: a [`Layout`] is of a file of exactly the length that its head says, whose checksum holds and whose
//! fractions are finite and within [`VALUE_MAX`].

use alloc::vec::Vec;

use super::features::{COUNT, GENERAL, REVISION};

/// What a file of weights begins with.
pub const MAGIC: [u8; 8] = *b"ANDONRTW";
/// Revision of the layout.
pub const VERSION: u16 = 2;
/// Points of a figure between which its weight is a straight line.
pub const KNOTS: usize = 8;
/// Points of a calibration.
pub const CALIBRATION_POINTS: usize = 16;
/// Name of the entry for what a stronger model does where the local one fails.
pub const RESCUE_NAME: &str = "rescue";
/// Longest name of a model, in bytes.
pub const NAME_BYTES: usize = 32;
/// Most models that a file is calibrated for, the entry for any model included.
pub const PROFILES_MAX: usize = 16;
/// Most lexical weights of a table, as `log2`: two tables are two million.
pub const LEXICAL_BITS_MAX: u8 = 20;
/// Largest filter of known words, in bytes as `log2`.
pub const FILTER_BITS_MAX: u8 = 18;
/// Largest file, in bytes.
pub const FILE_BYTES_MAX: usize = 3_000_000;
/// Largest fraction in a file.
pub const VALUE_MAX: f32 = 1024.0;

/// Bytes before the knots.
pub const HEAD_BYTES: usize = 36;
/// Where the checksum stands, and what it is of begins.
pub const CHECKSUM_AT: usize = 24;
/// Where what the checksum is of begins.
pub const CHECKED_FROM: usize = 32;
/// Bytes of a model's entry.
pub const PROFILE_BYTES: usize =
    NAME_BYTES + 8 + 4 * KNOTS * (GENERAL + COUNT) + 4 + 8 * CALIBRATION_POINTS;

/// Why a file is not a file of weights for this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// It does not begin as one.
    #[error("not a file of router weights: it does not begin with its mark")]
    Magic,
    /// It is of another layout.
    #[error("router weights of layout {found}, this program reads {VERSION}")]
    Version {
        /// What the file says.
        found: u16,
    },
    /// It was trained with other features.
    #[error("router weights for other features: {what} is {found}, of this program {expected}")]
    Features {
        /// What is different.
        what: &'static str,
        /// What the file says.
        found: u16,
        /// What it must say.
        expected: u16,
    },
    /// A number in its head is out of bounds.
    #[error("router weights: {what} is {found} at byte {at}")]
    Bounds {
        /// What the number is.
        what: &'static str,
        /// What the file says.
        found: u8,
        /// Where it stands.
        at: usize,
    },
    /// It is shorter or longer than its head says.
    #[error("router weights of {found} bytes, {expected} by their head")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// It is not what was written.
    #[error("router weights are damaged: their checksum does not hold")]
    Checksum,
    /// A fraction is infinite, not a number, out of bounds or out of order.
    #[error("router weights: {what} at byte {at} is out of bounds or out of order")]
    Value {
        /// What it is.
        what: &'static str,
        /// Where it stands.
        at: usize,
    },
    /// A model's name is empty, no text, or there twice.
    #[error("router weights: the name of a model at byte {at} is empty, no text, or there twice")]
    Name {
        /// Where it stands.
        at: usize,
    },
}

/// Where the parts of a valid file are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub profiles: usize,
    /// Whether an entry for what a stronger model does where the local one fails stands behind the models'.
    pub rescue: bool,
    pub profiles_at: usize,
    pub filter_at: usize,
    pub filter_bytes: usize,
    pub lexical_at: usize,
    /// 0 or a power of two.
    pub lexical_count: usize,
    pub lexical_scale: f32,
}

/// What one model's answers, or any model's, made of the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The sum of an average question.
    pub bias: f32,
    /// What is added to it in English.
    pub english_bias: f32,
    /// What a figure is worth at each of its knots, in any language.
    pub general: [[f32; KNOTS]; GENERAL],
    /// What it is worth beyond that in English.
    pub english: [[f32; KNOTS]; COUNT],
    /// What the lexical weights are multiplied with.
    pub factor: f32,
    /// Points (sum, probability) between which the calibration is a straight line.
    pub calibration: [(f32, f32); CALIBRATION_POINTS],
}

/// What a file holds, to be written as one.
#[derive(Clone, Debug, PartialEq)]
pub struct Content<'a> {
    /// The knots of each figure, rising.
    pub knots: [[f32; KNOTS]; COUNT],
    /// Entries of models with their names, the one for any model first.
    pub profiles: Vec<(&'a str, Profile)>,
    /// The filter of known words; a power of two of bytes.
    pub filter: Vec<u8>,
    /// The lexical weights; none, or a power of two of them.
    pub lexical: Vec<i8>,
    /// The entry for what a stronger model does where the local one fails, and as many lexical weights for it.
    pub rescue: Option<(Profile, Vec<i8>)>,
    /// What a step of them is worth.
    pub lexical_scale: f32,
}

impl Content<'_> {
    /// The file.
    ///
    /// # Errors
    ///
    /// What a reader would refuse in it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WeightsError> {
        let mut bytes = Vec::with_capacity(FILE_BYTES_MAX);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(REVISION.to_le_bytes());
        let log2 = |length: usize| length.checked_ilog2().map_or(0, |bits| bits as u8);
        bytes.extend([
            COUNT as u8,
            GENERAL as u8,
            KNOTS as u8,
            self.profiles.len().min(255) as u8,
            log2(self.lexical.len()),
            log2(self.filter.len()),
            u8::from(self.rescue.is_some()),
        ]);
        bytes.resize(CHECKED_FROM, 0);
        let mut put = |value: f32| bytes.extend(value.to_le_bytes());
        put(self.lexical_scale);
        self.knots.as_flattened().iter().copied().for_each(&mut put);
        let rescue = self.rescue.iter();
        let rescue = rescue.map(|(profile, _)| (RESCUE_NAME, profile));
        let models = self.profiles.iter().map(|(name, profile)| (*name, profile));
        for (name, profile) in models.chain(rescue) {
            let at = bytes.len();
            let length = name.floor_char_boundary(NAME_BYTES);
            bytes.extend(&name.as_bytes()[..length]);
            bytes.resize(at + NAME_BYTES, 0);
            let mut put = |value: f32| bytes.extend(value.to_le_bytes());
            put(profile.bias);
            put(profile.english_bias);
            profile
                .general
                .as_flattened()
                .iter()
                .copied()
                .for_each(&mut put);
            profile
                .english
                .as_flattened()
                .iter()
                .copied()
                .for_each(&mut put);
            put(profile.factor);
            for (logit, probability) in profile.calibration {
                put(logit);
                put(probability);
            }
        }
        bytes.extend(&self.filter);
        let tables = self.rescue.iter().map(|(_, lexical)| lexical);
        for table in core::iter::once(&self.lexical).chain(tables) {
            bytes.extend(table.iter().map(|weight| *weight as u8));
        }
        let sum = checksum(&bytes[CHECKED_FROM..]);
        bytes[CHECKSUM_AT..CHECKED_FROM].copy_from_slice(&sum.to_le_bytes());
        check(&bytes)?;
        Ok(bytes)
    }

    /// Makes a filter of so many bytes know a word, by its hash.
    pub fn teach(filter: &mut [u8], word: u32) {
        for (byte, mask) in filter_bits(word, filter.len()) {
            filter[byte] |= mask;
        }
    }
}

/// The bits of a filter of so many bytes that stand for a word.
pub(super) fn filter_bits(word: u32, bytes: usize) -> impl Iterator<Item = (usize, u8)> {
    const PROBES: u32 = 5;
    let bits = bytes as u32 * 8;
    let stride = (word >> 16) | 1;
    (0..PROBES).map(move |probe| {
        let bit = word.wrapping_add(probe.wrapping_mul(stride).wrapping_add(probe * probe)) % bits;
        ((bit / 8) as usize, 1 << (bit % 8))
    })
}

/// FNV-1a of 64 bits.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// The four bytes at `at`, as a fraction. Callers have checked the length.
fn fraction(bytes: &[u8], at: usize) -> f32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    f32::from_le_bytes(four)
}

/// Reads fractions one after the other, each checked.
struct Fractions<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fractions<'_> {
    fn next(&mut self, what: &'static str) -> Result<f32, WeightsError> {
        let at = self.at;
        let value = fraction(self.bytes, at);
        self.at += 4;
        // What is not a number fails the comparison, too.
        if value.abs() <= VALUE_MAX {
            Ok(value)
        } else {
            Err(WeightsError::Value { what, at })
        }
    }
}

/// Checks everything that a file says.
pub(super) fn check(bytes: &[u8]) -> Result<Layout, WeightsError> {
    let short = WeightsError::Length {
        found: bytes.len(),
        expected: HEAD_BYTES,
    };
    if !bytes.starts_with(&MAGIC) {
        return Err(WeightsError::Magic);
    }
    let head = bytes.get(..HEAD_BYTES).ok_or(short)?;
    let pair = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if pair(8) != VERSION {
        return Err(WeightsError::Version { found: pair(8) });
    }
    for (what, found, expected) in [
        ("their revision", pair(10), REVISION),
        ("the number of figures", u16::from(head[12]), COUNT as u16),
        (
            "the number of general figures",
            u16::from(head[13]),
            GENERAL as u16,
        ),
        ("the number of knots", u16::from(head[14]), KNOTS as u16),
    ] {
        if found != expected {
            return Err(WeightsError::Features {
                what,
                found,
                expected,
            });
        }
    }
    let bounded = |what, at: usize, allowed: core::ops::RangeInclusive<u8>| {
        if allowed.contains(&head[at]) {
            Ok(head[at])
        } else {
            Err(WeightsError::Bounds {
                what,
                found: head[at],
                at,
            })
        }
    };
    let profiles = usize::from(bounded("the number of models", 15, 1..=PROFILES_MAX as u8)?);
    let lexical_bits = bounded("log2 of the lexical weights", 16, 0..=LEXICAL_BITS_MAX)?;
    let filter_bits = bounded("log2 of the filter's bytes", 17, 0..=FILTER_BITS_MAX)?;
    let rescue = bounded("whether there is a rescue", 18, 0..=1)?;
    for at in 19..CHECKSUM_AT {
        bounded("a reserved byte", at, 0..=0)?;
    }
    let lexical_count = if lexical_bits == 0 {
        0
    } else {
        1 << lexical_bits
    };
    let profiles_at = HEAD_BYTES + 4 * COUNT * KNOTS;
    let entries = profiles + usize::from(rescue);
    let filter_at = profiles_at + entries * PROFILE_BYTES;
    let filter_bytes = 1 << filter_bits;
    let lexical_at = filter_at + filter_bytes;
    let expected = lexical_at + lexical_count * (1 + usize::from(rescue));
    if bytes.len() != expected {
        return Err(WeightsError::Length {
            found: bytes.len(),
            expected,
        });
    }
    let mut sum = [0; 8];
    sum.copy_from_slice(&bytes[CHECKSUM_AT..CHECKED_FROM]);
    if checksum(&bytes[CHECKED_FROM..]) != u64::from_le_bytes(sum) {
        return Err(WeightsError::Checksum);
    }
    let mut fractions = Fractions {
        bytes,
        at: CHECKED_FROM,
    };
    let layout = Layout {
        profiles,
        rescue: rescue == 1,
        profiles_at,
        filter_at,
        filter_bytes,
        lexical_at,
        lexical_count,
        lexical_scale: fractions.next("the scale of the lexical weights")?,
    };
    knots(bytes)?;
    for index in 0..entries {
        profile(bytes, &layout, index)?;
        let name = name_bytes(bytes, &layout, index);
        let twice = (0..index).any(|before| name_bytes(bytes, &layout, before) == name);
        if name.is_empty() || twice || core::str::from_utf8(name).is_err() {
            return Err(WeightsError::Name {
                at: profiles_at + index * PROFILE_BYTES,
            });
        }
    }
    Ok(layout)
}

/// The points of each figure, rising.
pub(super) fn knots(bytes: &[u8]) -> Result<[[f32; KNOTS]; COUNT], WeightsError> {
    let mut knots = [[0.0; KNOTS]; COUNT];
    let mut fractions = Fractions {
        bytes,
        at: HEAD_BYTES,
    };
    for figure in &mut knots {
        for index in 0..KNOTS {
            let at = fractions.at;
            figure[index] = fractions.next("a knot")?;
            if index > 0 && figure[index] <= figure[index - 1] {
                return Err(WeightsError::Value { what: "a knot", at });
            }
        }
    }
    Ok(knots)
}

/// The name of a model's entry, without the zeros behind it.
fn name_bytes<'a>(bytes: &'a [u8], layout: &Layout, index: usize) -> &'a [u8] {
    let at = layout.profiles_at + index * PROFILE_BYTES;
    let name = &bytes[at..at + NAME_BYTES];
    let length = name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(NAME_BYTES);
    &name[..length]
}

/// The name of a model's entry.
pub(super) fn name<'a>(bytes: &'a [u8], layout: &Layout, index: usize) -> &'a str {
    core::str::from_utf8(name_bytes(bytes, layout, index)).unwrap_or_default()
}

/// A model's entry.
pub(super) fn profile(
    bytes: &[u8],
    layout: &Layout,
    index: usize,
) -> Result<Profile, WeightsError> {
    let mut fractions = Fractions {
        bytes,
        at: layout.profiles_at + index * PROFILE_BYTES + NAME_BYTES,
    };
    let mut profile = Profile {
        bias: fractions.next("a bias")?,
        english_bias: fractions.next("a bias")?,
        general: [[0.0; KNOTS]; GENERAL],
        english: [[0.0; KNOTS]; COUNT],
        factor: 0.0,
        calibration: [(0.0, 0.0); CALIBRATION_POINTS],
    };
    for weight in profile.general.as_flattened_mut() {
        *weight = fractions.next("a weight")?;
    }
    for weight in profile.english.as_flattened_mut() {
        *weight = fractions.next("a weight")?;
    }
    profile.factor = fractions.next("a factor")?;
    let mut before: Option<(f32, f32)> = None;
    for point in &mut profile.calibration {
        let at = fractions.at;
        let logit = fractions.next("a logit of the calibration")?;
        let probability = fractions.next("a probability of the calibration")?;
        let ordered = before.is_none_or(|(x, p)| logit > x && probability >= p);
        if !ordered || !(0.0..=1.0).contains(&probability) {
            return Err(WeightsError::Value {
                what: "a point of the calibration",
                at,
            });
        }
        *point = (logit, probability);
        before = Some(*point);
    }
    Ok(profile)
}
