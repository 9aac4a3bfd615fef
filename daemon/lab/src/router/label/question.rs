//! Questions with known answers, of the forms in which collections have them.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::Scoring;

/// Most choices: each has a letter.
const CHOICES_MAX: usize = 26;

/// One question.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) set: String,
    pub(super) id: String,
    pub(super) task: String,
    /// As a client asks it.
    pub(super) prompt: String,
    /// Without choices and without what the answer is to look like.
    pub(super) question: String,
    pub(super) truth: Truth,
    /// What the answer is held to.
    pub(super) schema: Option<Value>,
}

/// What is right.
#[derive(Debug, PartialEq)]
pub(super) enum Truth {
    /// One of several texts, each a context and what is scored behind it.
    Choice {
        texts: Vec<String>,
        scored: Vec<(String, String)>,
        right: usize,
    },
    /// What must follow a context.
    Continuation { context: String, word: String },
    /// A number or a few words.
    Short(String),
    /// A text that says the same in other words.
    Text(String),
    /// Fields of a JSON object.
    Fields(serde_json::Map<String, Value>),
}

impl Truth {
    /// In words.
    pub(super) fn expected(&self) -> String {
        match self {
            Truth::Choice { right, .. } => letter(*right).to_string(),
            Truth::Continuation { word, .. } => word.clone(),
            Truth::Short(text) | Truth::Text(text) => text.clone(),
            Truth::Fields(fields) => Value::Object(fields.clone()).to_string(),
        }
    }

    fn suits(&self, scoring: Scoring) -> bool {
        match self {
            Truth::Choice { .. } => true,
            Truth::Continuation { .. } => scoring == Scoring::Likelihood,
            Truth::Short(_) | Truth::Text(_) | Truth::Fields(_) => scoring == Scoring::Answer,
        }
    }
}

/// The letter of a choice.
pub(super) fn letter(choice: usize) -> char {
    u8::try_from(choice).map_or('?', |choice| char::from(b'A' + choice.min(25)))
}

/// A line; what else it has is of no interest here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Record {
    id: Option<String>,
    task: Option<String>,
    subject: Option<String>,
    category: Option<String>,
    prompt: Option<String>,
    question: Option<String>,
    choices: Vec<String>,
    answer: Option<Answer>,
    context: Option<String>,
    context_options: Vec<String>,
    continuation: Option<String>,
    best_answer: Option<String>,
    incorrect_answers: Vec<String>,
    json_schema: Option<Value>,
    reference: Option<Value>,
    raw: Option<String>,
    normalised: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Answer {
    Index(usize),
    Text(String),
    Number(f64),
}

impl Answer {
    /// Which of the choices it is: by index from 0, by the whole text, or by the letter.
    fn among(&self, choices: &[String]) -> Option<usize> {
        match self {
            Answer::Index(index) => Some(*index),
            Answer::Text(text) => {
                let text = text.trim();
                let whole = choices.iter().position(|choice| choice.trim() == text);
                let lettered = || {
                    let mut letters = 0..choices.len();
                    letters.find(|&choice| text.chars().eq([letter(choice)]))
                };
                whole.or_else(lettered)
            }
            Answer::Number(_) => None,
        }
    }
}

/// The questions of a file that `scoring` can check, and how many lines have none.
pub(super) fn read(path: &Path, scoring: Scoring) -> Result<(Vec<Question>, usize)> {
    let text = crate::read_text(path)?;
    let set = path.file_stem().context("a file of questions has a name")?;
    let set = set.to_string_lossy();
    let (mut questions, mut unknown) = (Vec::new(), 0);
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let place = || format!("{}:{number}", path.display());
        let record: Record = serde_json::from_str(line).with_context(place)?;
        let id = record.id.clone().unwrap_or_else(|| number.to_string());
        match of(record, &set, &id).with_context(place)? {
            Some(question) if question.truth.suits(scoring) => questions.push(question),
            _ => unknown += 1,
        }
    }
    Ok((questions, unknown))
}

/// The question of a line; `None` if no answer is known that can be checked.
fn of(record: Record, set: &str, id: &str) -> Result<Option<Question>> {
    let asked = record.question.or(record.prompt);
    let asked = asked.map(|text| text.strip_prefix("Question: ").unwrap_or(&text).to_owned());
    let task = record.task.or(record.subject).or(record.category);
    let task = task.unwrap_or_else(|| set.to_owned());
    let made = |question: String, form: &str, truth| {
        let prompt = if form.is_empty() {
            question.clone()
        } else {
            format!("{question}\n{form}")
        };
        Question {
            set: set.to_owned(),
            id: id.to_owned(),
            task: task.clone(),
            prompt,
            question,
            truth,
            schema: None,
        }
    };
    let choice = |question: String, texts: Vec<String>, scored, right: usize| {
        ensure!(
            (2..=CHOICES_MAX).contains(&texts.len()) && right < texts.len(),
            "choice {right} of {}; there must be 2 to {CHOICES_MAX}",
            texts.len()
        );
        let mut form = String::new();
        for (index, text) in texts.iter().enumerate() {
            form.push_str(&format!("{}. {text}\n", letter(index)));
        }
        form.push_str("Answer with the letter of the right choice.");
        let truth = Truth::Choice {
            texts,
            scored,
            right,
        };
        Ok(Some(made(question, &form, truth)))
    };
    // A part of a sentence is gone on with, a question is answered.
    let after = |question: &str, texts: &[String]| -> Vec<(String, String)> {
        let context = if question.contains("Question: ") {
            format!("{question}\nAnswer:")
        } else if question.trim_end().ends_with('?') {
            format!("Question: {question}\nAnswer:")
        } else {
            question.to_owned()
        };
        let each = |text: &String| (context.clone(), format!(" {}", text.trim_start()));
        texts.iter().map(each).collect()
    };
    match (asked, record.answer) {
        (Some(question), Some(answer)) if !record.choices.is_empty() => {
            let right = answer.among(&record.choices);
            let right = right.context("`answer` is none of the `choices`")?;
            let scored = after(&question, &record.choices);
            choice(question, record.choices, scored, right)
        }
        (None, Some(Answer::Index(right))) if !record.context_options.is_empty() => {
            let end = record.continuation.context("no `continuation`")?;
            let whole = |context: &String| format!("{context} {end}");
            let texts: Vec<_> = record.context_options.iter().map(whole).collect();
            let scored = |context: String| (context, format!(" {end}"));
            let scored = record.context_options.into_iter().map(scored).collect();
            let question = "Which of these makes sense?".to_owned();
            choice(question, texts, scored, right)
        }
        (Some(question), None) if record.best_answer.is_some() => {
            let best = record.best_answer.unwrap_or_default();
            let mut texts = record.incorrect_answers;
            texts.truncate(CHOICES_MAX - 1);
            // Anywhere among the others, but always at the same place.
            let sum = id.bytes().fold(0_usize, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(usize::from(byte))
            });
            let right = sum % (texts.len() + 1);
            texts.insert(right, best);
            let scored = after(&question, &texts);
            choice(question, texts, scored, right)
        }
        (Some(question), Some(answer)) => {
            let answer = match answer {
                Answer::Text(text) => text,
                Answer::Index(number) => number.to_string(),
                Answer::Number(number) => number.to_string(),
            };
            let form = "Write the answer alone on the last line.";
            Ok(Some(made(question, form, Truth::Short(answer))))
        }
        (Some(prompt), None) => Ok(match (record.json_schema, record.reference) {
            (Some(schema), Some(Value::Object(mut fields))) => {
                fields.retain(|name, _| schema["properties"].get(name).is_some());
                (!fields.is_empty()).then(|| Question {
                    schema: Some(schema),
                    ..made(prompt, "", Truth::Fields(fields))
                })
            }
            (None, Some(Value::String(text))) => Some(made(prompt, "", Truth::Text(text))),
            (None, Some(Value::Object(fields))) => {
                let text = fields.get("normalised_masked").and_then(Value::as_str);
                text.map(|text| made(prompt, "", Truth::Text(text.to_owned())))
            }
            _ => None,
        }),
        (None, None) => Ok(match (record.raw, record.normalised) {
            (Some(raw), Some(plain)) => {
                let prompt = format!(
                    "Rewrite this maintenance note in plain English, abbreviations written out, nothing added: {raw}"
                );
                Some(made(prompt, "", Truth::Text(plain)))
            }
            _ => record
                .context
                .zip(record.continuation)
                .map(|(context, word)| {
                    made(context.clone(), "", Truth::Continuation { context, word })
                }),
        }),
        (None, Some(_)) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(line: &str) -> Option<Question> {
        let record = serde_json::from_str(line).expect("a record");
        of(record, "set", "7").expect("sound")
    }

    #[test]
    fn choices_have_letters_and_are_scored_behind_the_question() {
        let asked = question(
            r#"{"question": "Question: Which is red?", "choices": ["sky", "blood"], "answer": 1}"#,
        )
        .expect("known");
        assert_eq!(
            asked.prompt,
            "Which is red?\nA. sky\nB. blood\nAnswer with the letter of the right choice."
        );
        let Truth::Choice { scored, right, .. } = asked.truth else {
            panic!("a choice");
        };
        let context = "Question: Which is red?\nAnswer:".to_owned();
        assert_eq!(scored[1], (context, " blood".to_owned()));
        assert_eq!(right, 1);
    }

    #[test]
    fn half_a_sentence_is_gone_on_with() {
        let asked =
            question(r#"{"question": "Blood is", "choices": ["red", "blue"], "answer": 0}"#);
        let Truth::Choice { scored, .. } = asked.expect("known").truth else {
            panic!("a choice");
        };
        assert_eq!(scored[0], ("Blood is".to_owned(), " red".to_owned()));
    }

    #[test]
    fn each_form_has_its_truth() {
        let truth = |line| question(line).map(|question| question.truth);
        assert_eq!(
            truth(r#"{"question": "1 + 1?", "answer": "2"}"#),
            Some(Truth::Short("2".to_owned()))
        );
        assert_eq!(
            truth(r#"{"context": "the", "continuation": "end"}"#),
            Some(Truth::Continuation {
                context: "the".to_owned(),
                word: "end".to_owned()
            })
        );
        let fields = truth(
            r#"{"prompt": "p", "json_schema": {"properties": {"a": {}}}, "reference": {"a": 1, "b": 2}}"#,
        );
        let Some(Truth::Fields(fields)) = fields else {
            panic!("fields");
        };
        assert_eq!(Value::Object(fields), serde_json::json!({"a": 1}));
        assert_eq!(truth(r#"{"prompt": "write a poem"}"#), None);
    }

    #[test]
    fn a_choice_is_named_by_index_text_or_letter() {
        let right = |answer: &str| {
            let line =
                format!(r#"{{"question": "?", "choices": ["red", "B", "C"], "answer": {answer}}}"#);
            let record = serde_json::from_str(&line).expect("a record");
            match of(record, "set", "7") {
                Ok(Some(Question {
                    truth: Truth::Choice { right, .. },
                    ..
                })) => Some(right),
                Ok(_) => panic!("a choice"),
                Err(_) => None,
            }
        };
        assert_eq!(right("1"), Some(1));
        assert_eq!(right("\"red\""), Some(0));
        assert_eq!(right("\"A\""), Some(0));
        // The text comes before the letter.
        assert_eq!(right("\"C\""), Some(2));
        for wrong in ["3", "\"D\"", "\"blue\"", "0.5"] {
            assert_eq!(right(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_best_answer_has_a_place_of_its_own() {
        let line = r#"{"question": "?", "best_answer": "x", "incorrect_answers": ["y", "z"]}"#;
        let Some(Truth::Choice { texts, right, .. }) = question(line).map(|asked| asked.truth)
        else {
            panic!("a choice");
        };
        assert_eq!((texts.len(), texts[right].as_str()), (3, "x"));
    }
}
