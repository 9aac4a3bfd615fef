//! The estimator: what its files may be, and that what it says can be followed.
#![forbid(unsafe_code)]

use andon_policy::router::features::{COUNT, FIGURES, GENERAL, Question, read};
use andon_policy::router::weights::{
    CALIBRATION_POINTS, CHECKSUM_AT, Content, HEAD_BYTES, KNOTS, PROFILE_BYTES, Profile, checksum,
};
use andon_policy::router::{Estimator, Vocabulary, WeightsError};
use proptest::prelude::*;

const ENGLISH: &str =
    "Explain why the pump of line 3 stops when the pressure falls, and rank the causes.";

/// Weights in which every part counts for something.
fn content() -> Content<'static> {
    let mut knots = [[0.0; KNOTS]; COUNT];
    for (figure, points) in knots.iter_mut().enumerate() {
        for (index, point) in points.iter_mut().enumerate() {
            *point = index as f32 * 0.4 + figure as f32 * 0.01;
        }
    }
    let mut profile = Profile {
        bias: 0.25,
        english_bias: 0.125,
        general: [[0.0; KNOTS]; GENERAL],
        english: [[0.0; KNOTS]; COUNT],
        factor: 0.5,
        calibration: [(0.0, 0.0); CALIBRATION_POINTS],
    };
    for (index, weight) in profile.general.as_flattened_mut().iter_mut().enumerate() {
        *weight = ((index * 37 % 19) as f32 - 9.0) / 50.0;
    }
    for (index, weight) in profile.english.as_flattened_mut().iter_mut().enumerate() {
        *weight = ((index * 53 % 23) as f32 - 11.0) / 50.0;
    }
    for (index, point) in profile.calibration.iter_mut().enumerate() {
        let part = index as f32 / (CALIBRATION_POINTS - 1) as f32;
        *point = (part * 8.0 - 4.0, part);
    }
    let mut filter = vec![0; 1 << 12];
    let known = |filter: &mut Vec<u8>, text: &str| {
        let words = std::cell::RefCell::new(Vec::new());
        read(
            &Question::of(text),
            |word| {
                words.borrow_mut().push(word);
                false
            },
            |_| {},
        );
        for word in words.into_inner() {
            Content::teach(filter, word);
        }
    };
    known(&mut filter, ENGLISH);
    let other = Profile {
        bias: -1.0,
        ..profile.clone()
    };
    Content {
        knots,
        profiles: vec![("any", profile), ("small", other)],
        filter,
        lexical: (0..1_u32 << 12)
            .map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as i8)
            .collect(),
        rescue: None,
        lexical_scale: 0.01,
    }
}

fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&bytes[CHECKSUM_AT + 8..]);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn weights_can_be_written_and_read() {
    let bytes = content().to_bytes().unwrap();
    let estimator = Estimator::from_bytes(&bytes).unwrap();
    assert_eq!(estimator.models().collect::<Vec<_>>(), ["any", "small"]);
    let any = estimator.estimate(&Question::of(ENGLISH));
    assert!(any.will_do > 0.0 && any.will_do < 1.0, "{any:?}");
    assert_eq!(any.known, 1.0);
    let small = estimator.for_model("small").unwrap();
    assert_eq!(small.model(), "small");
    assert!(small.estimate(&Question::of(ENGLISH)).will_do < any.will_do);
    assert!(small.for_model("large").is_none());
}

#[test]
fn what_a_stronger_model_does_has_weights_of_its_own() {
    let without = content().to_bytes().unwrap();
    let with = {
        let mut content = content();
        let (_, mut profile) = content.profiles[1].clone();
        for point in &mut profile.calibration {
            point.1 /= 2.0;
        }
        let lexical = content.lexical.iter().map(|weight| weight / 2).collect();
        content.rescue = Some((profile, lexical));
        content.to_bytes().unwrap()
    };
    let question = Question::of(ENGLISH);
    let without = Estimator::from_bytes(&without).unwrap().estimate(&question);
    assert_eq!(without.rescue, 1.0);
    assert_eq!(without.gain(), 1.0 - without.will_do);
    let estimator = Estimator::from_bytes(&with).unwrap();
    assert_eq!(estimator.models().collect::<Vec<_>>(), ["any", "small"]);
    let with = estimator.estimate(&question);
    assert_eq!(with.will_do, without.will_do);
    assert!(with.rescue > 0.0 && with.rescue < 0.5, "{with:?}");
    assert_eq!(with.gain(), (1.0 - with.will_do) * with.rescue);
    assert_eq!(with.as_good(), 1.0 - with.gain());
    let other = estimator.estimate(&Question::of("Pressure falls"));
    assert_ne!(with.rescue, other.rescue);
}

#[test]
fn shipped_weights_are_in_order() {
    let estimator = Estimator::shipped();
    assert!(estimator.models().count() >= 1);
    for text in ["", "?", "\u{0}", "Was ist das?", ENGLISH] {
        let estimate = estimator.estimate(&Question::of(text));
        assert!(
            (0.0..=1.0).contains(&estimate.will_do),
            "{text:?}: {estimate:?}"
        );
        assert!(
            estimate.gain() > 0.0 && estimate.gain() < 1.0 - estimate.will_do,
            "{text:?}: {estimate:?}"
        );
    }
}

#[test]
fn an_entry_is_found_by_any_name_of_its_model() {
    let bytes = content().to_bytes().unwrap();
    let estimator = Estimator::from_bytes(&bytes).unwrap();
    let of = |names: &[&str]| {
        let estimator = estimator.for_any_of(names.iter().copied());
        estimator.model().to_owned()
    };
    assert_eq!(of(&[]), "any");
    assert_eq!(of(&["large"]), "any");
    assert_eq!(of(&["helper", "Publisher/Small-Q4_0.gguf"]), "small");
    let question = Question::of(ENGLISH);
    let small = estimator.clone().for_model("small").unwrap();
    assert_eq!(
        estimator.for_any_of(["SMALL"]).estimate(&question),
        small.estimate(&question)
    );
    // One that has an entry is taken for any again.
    assert_eq!(small.for_any_of([]).model(), "any");
    let shipped = Estimator::shipped();
    for name in ["SmolLM2-135M-Instruct.Q4_1", "gemma-3-270m-q4_k_m"] {
        assert_ne!(shipped.for_any_of([name]).model(), "any", "{name}");
    }
}

#[test]
fn reasons_add_up() {
    let bytes = content().to_bytes().unwrap();
    let estimator = Estimator::from_bytes(&bytes).unwrap();
    for text in [
        ENGLISH,
        "Welche Pumpe steht?",
        "",
        "- A3\n- A4\n- A4\nWhy why why?",
    ] {
        let question = Question {
            task: Some("pumps"),
            ..Question::of(text)
        };
        let why = estimator.explain(&question);
        assert_eq!(why.estimate, estimator.estimate(&question));
        let sum = why.average + why.parts.iter().map(|part| part.moved).sum::<f32>();
        assert!(
            (sum - why.estimate.logit).abs() < 1e-3,
            "{text}: {sum} {why:?}"
        );
        assert!(
            why.parts
                .is_sorted_by(|one, other| one.moved.abs() >= other.moved.abs())
        );
    }
}

#[test]
fn damaged_weights_are_refused() {
    let good = content().to_bytes().unwrap();
    let refused = |bytes: &[u8]| Estimator::from_bytes(bytes).expect_err("refused");
    assert_eq!(refused(b""), WeightsError::Magic);
    assert_eq!(
        refused(&good[..HEAD_BYTES - 1]),
        WeightsError::Length {
            found: HEAD_BYTES - 1,
            expected: HEAD_BYTES
        }
    );
    for at in [HEAD_BYTES, good.len() / 2, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        assert_eq!(refused(&bytes), WeightsError::Checksum, "{at}");
    }
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        refused(&resealed(bytes))
    };
    assert_eq!(with(8, 9), WeightsError::Version { found: 9 });
    assert!(matches!(
        with(10, 99),
        WeightsError::Features { found: 99, .. }
    ));
    assert!(matches!(
        with(12, 3),
        WeightsError::Features { found: 3, .. }
    ));
    assert!(matches!(with(15, 0), WeightsError::Bounds { at: 15, .. }));
    assert!(matches!(with(16, 40), WeightsError::Bounds { at: 16, .. }));
    assert!(matches!(with(17, 40), WeightsError::Bounds { at: 17, .. }));
    assert!(matches!(with(18, 2), WeightsError::Bounds { at: 18, .. }));
    assert!(matches!(with(20, 1), WeightsError::Bounds { at: 20, .. }));
    assert!(matches!(with(16, 13), WeightsError::Length { .. }));
    let fraction = |at: usize, value: f32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        refused(&resealed(bytes))
    };
    for value in [f32::NAN, f32::INFINITY, 1e6] {
        assert!(matches!(
            fraction(HEAD_BYTES, value),
            WeightsError::Value { at: HEAD_BYTES, .. }
        ));
    }
    // The second knot of the first figure, not above the first.
    assert!(matches!(
        fraction(HEAD_BYTES + 4, 0.0),
        WeightsError::Value { .. }
    ));
    let profiles = HEAD_BYTES + 4 * COUNT * KNOTS;
    let last_point = profiles + PROFILE_BYTES - 4;
    assert!(matches!(
        fraction(last_point, 2.0),
        WeightsError::Value { .. }
    ));
    assert!(matches!(
        fraction(last_point, 0.1),
        WeightsError::Value { .. }
    ));
    let mut twice = good.clone();
    twice.copy_within(profiles..profiles + 32, profiles + PROFILE_BYTES);
    assert_eq!(
        refused(&resealed(twice)),
        WeightsError::Name {
            at: profiles + PROFILE_BYTES
        }
    );
}

#[test]
fn other_languages_are_judged_by_length_and_form() {
    let bytes = content().to_bytes().unwrap();
    let estimator = Estimator::from_bytes(&bytes).unwrap();
    // Of one length and form, in words that no weights have seen.
    let one = estimator.estimate(&Question::of("Welche Pumpen laufen gerade nicht?"));
    let two = estimator.estimate(&Question::of("Welche Lampen brennen heute nicht?"));
    assert_eq!(one.english, 0.0);
    assert_eq!(one.logit, two.logit);
}

#[test]
fn a_site_s_words_count_as_covered() {
    let site = Vocabulary::of(["Pump P-101 feeds the wash line", "wash line"]);
    assert_eq!(site.len(), 6);
    let coverage = |text| {
        let question = Question {
            vocabulary: Some(&site),
            ..Question::of(text)
        };
        Estimator::shipped().estimate(&question).coverage.unwrap()
    };
    assert_eq!(coverage("PUMP feeds line"), 1.0);
    assert_eq!(coverage("opera singers"), 0.0);
    assert_eq!(coverage("pump opera"), 0.5);
    assert_eq!(
        Estimator::shipped()
            .estimate(&Question::of("pump"))
            .coverage,
        None
    );
}

fn figure(text: &str, name: &str) -> f32 {
    let index = FIGURES.iter().position(|figure| *figure == name).unwrap();
    read(&Question::of(text), |_| true, |_| {}).values[index]
}

#[test]
fn figures_are_what_their_names_say() {
    let log2 = |count: f32| (count + 1.0).log2();
    assert_eq!(figure("abc", "length"), log2(3.0));
    assert_eq!(figure("one two three", "words"), 2.0);
    assert_eq!(figure("a\nb\n\nc", "lines"), 2.0);
    assert_eq!(figure("- a\n* b\n12. c\nd", "list lines"), 2.0);
    assert_eq!(figure("12ab", "share of digits"), 0.5);
    assert_eq!(figure("12 and 3.5 and x7", "numbers"), 1.5);
    assert_eq!(figure("7 4711 12", "digits of the longest number"), 4.0);
    assert_eq!(figure("$x^2$", "mathematical signs"), log2(3.0));
    assert_eq!(figure("Is it? Why? 何？", "questions"), 2.0);
    assert_eq!(figure("ABcd", "share of capitals"), 0.5);
    assert_eq!(figure("ab abcd", "letters per word"), 3.0);
    assert_eq!(figure("go stop go go", "share of repeated words"), 0.5);
    assert_eq!(figure("Which?\nA. up\nB. down\n(c) no", "options"), 3.0);
    assert_eq!(figure("Привет pump", "share of other scripts"), 0.6);
    assert_eq!(
        figure("Find the root cause and rank it", "thinking asked for"),
        1.0
    );
    assert_eq!(
        figure("Why? Because of the root cause.", "causes asked for"),
        2.0
    );
    assert_eq!(figure("How many are left in total?", "amounts"), 2.0);
    assert_eq!(figure("If it stops, unless it is cold", "conditions"), 1.5);
    assert_eq!(
        figure("Extract a list. Rank it.\nDesign one.", "requests"),
        2.0
    );
    assert_eq!(figure("two words at most", "bounds of the answer"), 1.5);
    assert_eq!(figure("x", "conditions"), 0.0);
}

proptest! {
    #[test]
    fn any_text_has_an_estimate(text in "\\PC{0,200}|[a-z0-9 .?\\n,'’-]{0,400}", task in proptest::option::of("\\PC{0,20}")) {
        let bytes = content().to_bytes().unwrap();
        let estimator = Estimator::from_bytes(&bytes).unwrap();
        let question = Question { text: &text, task: task.as_deref(), vocabulary: None };
        let estimate = estimator.estimate(&question);
        prop_assert!((0.0..=1.0).contains(&estimate.will_do));
        prop_assert!(estimate.logit.is_finite());
        prop_assert_eq!(estimator.explain(&question).estimate, estimate);
        read(&question, |_| false, |gram| assert!(text.is_char_boundary(gram.start) && text.is_char_boundary(gram.end)));
    }

    #[test]
    fn no_bytes_are_weights_by_chance(mut bytes in proptest::collection::vec(any::<u8>(), 0..4096), good in any::<bool>()) {
        if good {
            let from = content().to_bytes().unwrap();
            let length = bytes.len().min(from.len());
            bytes[..length].copy_from_slice(&from[..length]);
        }
        prop_assert!(Estimator::from_bytes(&bytes).is_err());
    }
}

#[test]
fn long_texts_make_a_bounded_number_of_grams() {
    let text = "the pump ".repeat(100_000);
    let mut grams = 0;
    let figures = read(&Question::of(&text), |_| true, |_| grams += 1);
    assert_eq!(figures.grams, grams);
    assert!(grams < 16_000, "{grams}");
    assert!(figures.values[0] > 19.0);
}
