//! Whether an answer is right.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::question::{Truth, letter};

/// Share of the words of a text, in both directions, that must agree.
const WORDS_AGREE: f64 = 0.75;
/// Share of the fields of an object that must.
const FIELDS_AGREE: f64 = 0.8;

/// Whether `answer`, which the model wrote, is right.
pub(super) fn is_right(answer: &str, truth: &Truth) -> bool {
    match truth {
        Truth::Choice { texts, right, .. } => chosen(answer, texts) == Some(*right),
        Truth::Short(expected) => short(answer, expected),
        Truth::Text(expected) => agreement(answer, expected) >= WORDS_AGREE,
        Truth::Fields(fields) => {
            let answer = serde_json::from_str(answer);
            answer.is_ok_and(|answer| fields_agree(&answer, fields) >= FIELDS_AGREE)
        }
        Truth::Continuation { word, .. } => answer.trim() == word.trim(),
    }
}

/// The choice that an answer names: the first letter that stands for itself, else the only text of a choice that is in it. None
/// if these are of two choices.
pub(super) fn chosen(answer: &str, texts: &[String]) -> Option<usize> {
    let alone = |at: usize| {
        let before = answer[..at].chars().next_back();
        let mut after = answer[at + 1..].chars();
        let next = after.next();
        !before.is_some_and(|before| before.is_alphanumeric() || before == '\'')
            && match next {
                None => true,
                // "A cat" names no choice, "A. cat" and "A" do.
                Some(' ') => after.next().is_none_or(|then| !then.is_lowercase()),
                Some(next) => !next.is_alphanumeric() && next != '\'',
            }
    };
    let named = answer.char_indices().find_map(|(at, given)| {
        let choice = (0..texts.len()).find(|&choice| letter(choice) == given)?;
        alone(at).then_some(choice)
    });
    let folded = answer.to_lowercase();
    let mut within = (0..texts.len()).filter(|&choice| {
        let text = texts[choice].trim().trim_end_matches('.').to_lowercase();
        !text.is_empty() && folded.contains(&text)
    });
    let quoted = within.next().filter(|_| within.next().is_none());
    match (named, quoted) {
        // The letter of one and the text of another.
        (Some(named), Some(quoted)) if named != quoted => None,
        (named, quoted) => named.or(quoted),
    }
}

/// A number: the last one of the answer is it. Words: the last line or what is boxed is them.
fn short(answer: &str, expected: &str) -> bool {
    if let Some(expected) = number(expected) {
        let given = numbers(answer).next_back();
        return given.is_some_and(|given| same(given, expected));
    }
    let expected = plain(expected);
    let boxed = answer.rsplit_once("\\boxed{");
    let boxed = boxed.and_then(|(_, rest)| rest.split_once('}'));
    let last = answer.lines().rfind(|line| !line.trim().is_empty());
    let last = last.unwrap_or_default();
    let after = last.rsplit_once([':', '=']).map(|(_, after)| after);
    boxed
        .map(|(inside, _)| inside)
        .into_iter()
        .chain([last])
        .chain(after)
        .any(|given| plain(given) == expected)
}

/// Without spaces, signs of mathematics mode and a full stop, in small letters.
fn plain(text: &str) -> String {
    let kept = text.chars().filter(|c| !c.is_whitespace() && *c != '$');
    let folded: String = kept.flat_map(char::to_lowercase).collect();
    folded.trim_end_matches('.').to_owned()
}

fn same(given: f64, expected: f64) -> bool {
    (given - expected).abs() <= 1e-6 * expected.abs().max(1.0)
}

/// A text that is a number and nothing else.
fn number(text: &str) -> Option<f64> {
    let text = text.trim().replace(',', "");
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// The numbers of a text, in order.
fn numbers(text: &str) -> impl DoubleEndedIterator<Item = f64> {
    let words = text.split(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ',' | '-')));
    words.filter_map(|word| {
        let word = word.trim_matches(['.', ',']);
        // A hyphen between words is no sign.
        let word = word.rsplit_once('-').map_or(
            word,
            |(before, after)| {
                if before.is_empty() { word } else { after }
            },
        );
        number(word).filter(|_| word.contains(|c: char| c.is_ascii_digit()))
    })
}

/// The words of a text that can be compared: letters only, and no masks such as `<num>`.
fn words(text: &str) -> HashMap<String, usize> {
    let mut words = HashMap::new();
    for word in text.split_whitespace() {
        if word.starts_with('<') && word.ends_with('>') {
            continue;
        }
        for word in word.split(|c: char| !c.is_alphabetic()) {
            if !word.is_empty() {
                *words.entry(word.to_lowercase()).or_default() += 1;
            }
        }
    }
    words
}

/// How far two texts have the same words: the harmonic mean of both shares.
fn agreement(answer: &str, expected: &str) -> f64 {
    let (answer, expected) = (words(answer), words(expected));
    let (have, want): (usize, usize) = (answer.values().sum(), expected.values().sum());
    let both = answer
        .iter()
        .map(|(word, count)| expected.get(word).copied().unwrap_or(0).min(*count));
    let both: usize = both.sum();
    if have + want == 0 {
        return 1.0;
    }
    2.0 * both as f64 / (have + want) as f64
}

/// Mean over the fields of how far they agree.
fn fields_agree(answer: &Value, fields: &Map<String, Value>) -> f64 {
    let each = fields.iter().map(|(name, expected)| {
        answer
            .get(name)
            .map_or(0.0, |given| values_agree(given, expected))
    });
    each.sum::<f64>() / fields.len().max(1) as f64
}

fn values_agree(given: &Value, expected: &Value) -> f64 {
    match (given, expected) {
        (Value::Object(_), Value::Object(fields)) => fields_agree(given, fields),
        (Value::Array(given), Value::Array(expected)) => {
            let whole = given.len() + expected.len();
            if whole == 0 {
                return 1.0;
            }
            let found = expected.iter().filter(|expected| {
                given
                    .iter()
                    .any(|given| values_agree(given, expected) >= 1.0)
            });
            2.0 * found.count().min(given.len()) as f64 / whole as f64
        }
        (Value::Number(given), Value::Number(expected)) => {
            let (given, expected) = (given.as_f64(), expected.as_f64());
            // As readings are rounded.
            let near = given
                .zip(expected)
                .is_some_and(|(given, expected)| (given - expected).abs() <= 0.01);
            f64::from(u8::from(near))
        }
        (Value::String(given), Value::String(expected)) => {
            f64::from(u8::from(plain(given) == plain(expected)))
        }
        _ => f64::from(u8::from(given == expected)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_letter_that_stands_for_itself_is_the_choice() {
        let texts = ["a cave", "the ocean", "a town"].map(str::to_owned);
        let of = |answer| chosen(answer, &texts);
        assert_eq!(of("B"), Some(1));
        assert_eq!(of("C. a town"), Some(2));
        assert_eq!(of("The right choice is (A)."), Some(0));
        assert_eq!(of("**B** because"), Some(1));
        assert_eq!(of("A town is where people live"), Some(2));
        assert_eq!(of("Because of the ocean."), Some(1));
        assert_eq!(of("a cave or the ocean"), None);
        assert_eq!(of("A. the ocean"), None);
        assert_eq!(of("D"), None);
        assert_eq!(of(""), None);
        assert_eq!(of("Ärger: B"), Some(1));
    }

    #[test]
    fn the_last_number_counts() {
        assert!(short("She has 3 + 4 = 7.\nThe answer is 7.", "7"));
        assert!(short("It costs $1,200.", "1200"));
        assert!(short("-3.5", "-3.5"));
        assert!(short("16-18", "18"));
        assert!(!short("7 and then 8", "7"));
        assert!(!short("none", "7"));
    }

    #[test]
    fn words_are_compared_by_the_last_line() {
        assert!(short("so\n$x + 1$.", "x+1"));
        assert!(short("it is \\boxed{Yes} indeed", "yes"));
        assert!(short("Answer: Tuesday", "tuesday"));
        assert!(!short("Tuesday\nor Monday", "Tuesday"));
    }

    #[test]
    fn texts_agree_by_their_words() {
        let truth = Truth::Text("<id> replace hydraulic hoses to tow hitch".to_owned());
        assert!(is_right(
            "Replace the hydraulic hoses to the tow hitch.",
            &truth
        ));
        assert!(!is_right("AN426 replace hyd hoses", &truth));
    }

    #[test]
    fn fields_agree_but_for_rounding() {
        let fields = |value: Value| match value {
            Value::Object(fields) => Truth::Fields(fields),
            _ => panic!("an object"),
        };
        let truth = fields(json!({"in_limits": false, "side": "low", "deviation": -0.517}));
        assert!(is_right(
            r#"{"in_limits": false, "side": "low", "deviation": -0.52}"#,
            &truth
        ));
        assert!(!is_right(
            r#"{"in_limits": true, "side": "low", "deviation": -0.52}"#,
            &truth
        ));
        assert!(!is_right("no JSON", &truth));
        let lists = fields(json!({"objects": ["door", "switch"], "problems": []}));
        assert!(is_right(
            r#"{"objects": ["Door", "switch"], "problems": []}"#,
            &lists
        ));
        assert!(!is_right(
            r#"{"objects": ["window"], "problems": []}"#,
            &lists
        ));
    }
}
