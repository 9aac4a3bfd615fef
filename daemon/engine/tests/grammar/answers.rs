//! Whole answers by the generator over a model that says anything: they fit their schema, and are the same bytes whether
//! forced tokens are taken together or one by one.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;

use andon_engine::generate::{
    Event, FinishReason, Forward, GenerationId, GenerationRequest, Generator, GeneratorOptions,
    PassError, StartError,
};
use andon_engine::grammar::{Constraint, Grammar};
use andon_engine::sample::{LogitRow, SamplingOptions};
use andon_engine::speculate::{Corpus, Sources};
use andon_engine::tokenizer::Tokenizer;
use andon_engine::{Chunk, LogitsFor};
use serde_json::{Map, Value, json};

use crate::vocabulary;

/// Logits that follow from all tokens before, without any sense.
struct Chaos {
    passes: usize,
    batch: usize,
}

impl Forward for Chaos {
    type Sequence = Vec<u32>;

    fn tokenizer(&self) -> &Tokenizer {
        vocabulary::tokenizer()
    }
    fn vocabulary_count(&self) -> usize {
        // Some models have rows for more tokens than there are.
        vocabulary::COUNT + 7
    }
    fn context_tokens_max(&self) -> usize {
        4096
    }
    fn batch_tokens_max(&self) -> usize {
        self.batch
    }
    fn kv_page_tokens(&self) -> usize {
        16
    }
    fn kv_tokens_free(&self) -> usize {
        1 << 20
    }
    fn sequence(&self, _: &[u32]) -> (Vec<u32>, usize) {
        (Vec::new(), 0)
    }
    fn fork(&mut self, sequence: &Vec<u32>) -> Option<Vec<u32>> {
        Some(sequence.clone())
    }
    fn keep(&mut self, sequence: &mut Vec<u32>, tokens: usize) {
        assert!(tokens <= sequence.len());
        sequence.truncate(tokens);
    }
    fn pass(
        &mut self,
        chunks: &mut [Chunk<'_, Vec<u32>>],
        _: &dyn Fn() -> bool,
        row: &mut dyn FnMut(LogitRow<'_>),
    ) -> Result<(), PassError> {
        self.passes += 1;
        let tokens: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        assert!((1..=self.batch).contains(&tokens));
        for chunk in chunks {
            chunk.sequence.extend_from_slice(chunk.tokens);
            let guesses = match chunk.logits {
                LogitsFor::None => continue,
                LogitsFor::Guesses(guesses) => guesses,
                _ => 0,
            };
            let count = chunk.sequence.len();
            for end in count - guesses..=count {
                row((&logits(&chunk.sequence[..end])).into());
            }
        }
        Ok(())
    }
}

fn logits(history: &[u32]) -> Vec<f32> {
    let mix = |state: u32, token: u32| (state ^ token).wrapping_mul(0x9E37_79B1).rotate_left(13);
    let state = history.iter().fold(17, |state, &token| mix(state, token));
    let score = |id: u32| (mix(state, id).wrapping_mul(0x85EB_CA6B) >> 20) as f32 / 512.0;
    (0..vocabulary::COUNT as u32 + 7).map(score).collect()
}

fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object", "properties": {
            "severity": {"type": "string", "enum": ["critical", "major", "minor"]},
            "reason": {"type": "string", "maxLength": 12}, "in_limits": {"type": "boolean"},
            "deviation": {"type": "number"}},
            "required": ["severity", "reason", "in_limits", "deviation"], "additionalProperties": false}),
        json!({"type": "object", "properties": {
            "values": {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 500}, "maxItems": 4},
            "kind": {"anyOf": [{"const": null}, {"type": "string", "pattern": "^[a-c]{2,4}-\\d$"}]},
            "at": {"type": "string", "format": "date"}},
            "required": ["kind"], "additionalProperties": false}),
        json!({"$defs": {"node": {"type": "object", "properties": {
            "name": {"type": "string", "maxLength": 3},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["name", "next"], "additionalProperties": false}}, "$ref": "#/$defs/node"}),
    ]
}

fn grammar(schema: &Value) -> Arc<Grammar> {
    let constraint = Constraint::JsonSchema(schema.clone());
    let grammar = Grammar::compile(vocabulary::shared(), &constraint, 400);
    Arc::new(grammar.expect("it compiles"))
}

pub(crate) fn request(grammar: &Arc<Grammar>, seed: u64, temperature: f32) -> GenerationRequest {
    GenerationRequest {
        prompt: vec![vocabulary::END + 1, 65, 66],
        tokens_max: Some(400),
        sampling: SamplingOptions {
            temperature,
            seed,
            repeat_penalty: 1.1,
            ..SamplingOptions::default()
        },
        constraint: Some(Arc::clone(grammar)),
        ..GenerationRequest::default()
    }
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    ids: Vec<u32>,
    pub(crate) end: Option<FinishReason>,
}

type Answers = BTreeMap<GenerationId, Answer>;

fn finish(generator: &mut Generator<Chaos>) -> Answers {
    let mut answers = Answers::new();
    while generator.active() > 0 {
        let stepped = generator.step(&mut |id, event| {
            let answer = answers.entry(id).or_default();
            match event {
                Event::PromptDone { .. } => {}
                Event::Text { text, ids, .. } => {
                    answer.text.push_str(text);
                    answer.ids.extend_from_slice(ids);
                }
                Event::Finished { reason, .. } => answer.end = Some(reason),
            }
        });
        stepped.expect("a step");
    }
    answers
}

fn generator(batch: usize) -> Generator<Chaos> {
    let options = GeneratorOptions {
        parallel_max: 4,
        prefill_chunk_tokens: 2,
        ..GeneratorOptions::default()
    };
    Generator::new(Chaos { passes: 0, batch }, options)
}

/// The answers to a request with `count` choices, and the passes they took.
pub(crate) fn run(batch: usize, request: GenerationRequest, count: u32) -> (Vec<Answer>, usize) {
    let mut generator = generator(batch);
    let count = NonZero::new(count).expect("at least one");
    generator
        .start_group(request, count)
        .expect("a start")
        .count();
    let answers = finish(&mut generator).into_values().collect();
    (answers, generator.executor().passes)
}

#[test]
fn answers_fit_their_schema_and_forcing_changes_only_the_passes() {
    let (mut passes, mut cut) = ([0; 2], 0);
    for schema in schemas() {
        let grammar = grammar(&schema);
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let corpus = Arc::new(Corpus::new(1 << 16));
        for seed in 0..40 {
            let base = request(&grammar, seed, [0.0, 1.5][seed as usize % 2]);
            let slowly = GenerationRequest {
                one_by_one: true,
                ..base.clone()
            };
            let guessing = GenerationRequest {
                sources: Sources {
                    own: true,
                    corpus: Some(Arc::clone(&corpus)),
                    learns: true,
                    ..Sources::default()
                },
                ..base.clone()
            };
            // The order of the seeds also changes how many there are at once, and how large a pass may be.
            let (together, fewer) = run(4 + seed as usize % 20, base, 1 + seed as u32 % 3);
            let (one_by_one, more) = run(64, slowly, 1 + seed as u32 % 3);
            assert_eq!(together, one_by_one, "{schema} {seed}");
            let (guessed, _) = run(64, guessing, 1 + seed as u32 % 3);
            assert_eq!(together, guessed, "{schema} {seed}");
            passes[0] += fewer;
            passes[1] += more;
            for answer in together {
                if answer.end == Some(FinishReason::Length) {
                    cut += 1;
                    continue;
                }
                assert_eq!(answer.end, Some(FinishReason::Stop));
                let value: Value = serde_json::from_str(&answer.text).expect("JSON");
                assert!(!has_space(&answer.text), "{}", answer.text);
                assert!(validator.is_valid(&value), "{schema}: {}", answer.text);
            }
        }
    }
    assert!(passes[0] < passes[1], "{passes:?}");
    // Each answer has room for its smallest form, so none is cut.
    assert_eq!(cut, 0);
    println!("passes together and one by one: {passes:?}");
}

/// Whether there is white space outside of strings.
fn has_space(text: &str) -> bool {
    let (mut inside, mut escaped) = (false, false);
    text.chars().any(|c| {
        inside ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        !inside && c.is_whitespace()
    })
}

#[test]
fn log_probabilities_come_with_every_token() {
    let grammar = grammar(&schemas()[0]);
    let base = request(&grammar, 3, 1.0);
    let mut generator = generator(8);
    let asked = GenerationRequest {
        logprobs: Some(2),
        ..base.clone()
    };
    generator.start(asked).expect("a start");
    let (mut ids, mut known) = (Vec::new(), Vec::new());
    while generator.active() > 0 {
        let stepped = generator.step(&mut |_, event| {
            if let Event::Text {
                ids: new, tokens, ..
            } = event
            {
                ids.extend_from_slice(new);
                known.extend(tokens.iter().map(|token| token.id));
            }
        });
        stepped.expect("a step");
    }
    assert_eq!(ids, known);
    assert_eq!(ids, run(8, base, 1).0[0].ids);
}

#[test]
fn the_limit_and_stop_strings_end_answers_among_forced_tokens() {
    let grammar = grammar(&schemas()[0]);
    for limit in 1..6 {
        let limited = GenerationRequest {
            tokens_max: Some(limit),
            ..request(&grammar, 1, 0.0)
        };
        let (answers, _) = run(64, limited, 1);
        assert_eq!(answers[0].end, Some(FinishReason::Length));
        assert_eq!(answers[0].ids.len(), limit);
    }
    let stopped = GenerationRequest {
        stop: vec!["reason".to_owned()],
        ..request(&grammar, 1, 0.0)
    };
    let (answers, _) = run(64, stopped, 1);
    assert_eq!(answers[0].end, Some(FinishReason::Stop));
    assert!(answers[0].text.ends_with(",\""), "{}", answers[0].text);
    // Exactly as long as it needs to be is not cut.
    let constant = Constraint::JsonSchema(json!({"const": {"name": true}}));
    let grammar = Grammar::compile(vocabulary::shared(), &constant, 100).expect("it compiles");
    let (answers, _) = run(64, request(&Arc::new(grammar), 0, 0.0), 1);
    let exact = GenerationRequest {
        tokens_max: Some(answers[0].ids.len()),
        ..request(&grammar_of(&constant), 0, 0.0)
    };
    let (again, _) = run(64, exact, 1);
    assert_eq!(again, answers);
    assert_eq!(answers[0].end, Some(FinishReason::Stop));
    assert_eq!(answers[0].text, "{\"name\":true}");
}

fn grammar_of(constraint: &Constraint) -> Arc<Grammar> {
    let grammar = Grammar::compile(vocabulary::shared(), constraint, 100);
    Arc::new(grammar.expect("it compiles"))
}

#[test]
fn neighbours_and_cancelling_leave_an_answer_as_it_is() {
    let grammar = grammar(&schemas()[1]);
    let alone = run(64, request(&grammar, 5, 1.0), 1).0.remove(0);
    let mut generator = generator(9);
    let other = generator.start(request(&grammar, 6, 1.0)).expect("a start");
    let plain = GenerationRequest {
        constraint: None,
        tokens_max: Some(30),
        ..request(&grammar, 7, 1.0)
    };
    generator.start(plain).expect("a start");
    let id = generator.start(request(&grammar, 5, 1.0)).expect("a start");
    for _ in 0..4 {
        generator.step(&mut |_, _| {}).expect("a step");
    }
    assert!(generator.cancel(other));
    let answers = finish(&mut generator);
    // What came in the first steps was not kept.
    let answer = &answers[&id];
    assert!(alone.text.ends_with(&answer.text) && answer.end == alone.end);
    let space = Constraint::Regex(" low".to_owned());
    // This vocabulary drops no spaces, so even that begins.
    assert!(!matches!(
        generator.start(request(&grammar_of(&space), 0, 0.0)),
        Err(StartError::Constraint(_))
    ));
}

#[test]
fn answers_close_before_their_limit_cuts_them() {
    let map = json!({"type": "object", "additionalProperties": {"type": "array", "items": {}}});
    let mut all = schemas();
    all.extend([
        map,
        json!({"type": "object"}),
        json!({"type": "array", "items": {"type": "string"}}),
    ]);
    let (mut short, mut names) = (0, 0);
    for schema in all {
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        for seed in 0..40 {
            let limit = 60 + seed as usize;
            let constraint = Constraint::JsonSchema(schema.clone());
            let grammar = Grammar::compile(vocabulary::shared(), &constraint, limit);
            let asked = GenerationRequest {
                tokens_max: Some(limit),
                ..request(&Arc::new(grammar.expect("it compiles")), seed, 2.0)
            };
            let slowly = GenerationRequest {
                one_by_one: true,
                ..asked.clone()
            };
            let (answers, _) = run(32, asked, 1);
            assert_eq!(answers, run(32, slowly, 1).0, "{schema} {seed}");
            let answer = &answers[0];
            assert_eq!(
                answer.end,
                Some(FinishReason::Stop),
                "{schema} {seed} {}",
                answer.text
            );
            short += usize::from(answer.ids.len() + 5 >= limit);
            let value: Value = serde_json::from_str(&answer.text).expect("JSON");
            assert!(validator.is_valid(&value), "{schema}: {}", answer.text);
            // A reader of JSON keeps one of two names that are the same, so they are counted in the text.
            if schema
                .get("additionalProperties")
                .is_some_and(Value::is_object)
            {
                names += value.as_object().expect("an object").len();
                let plain = answer.text.replace("\\\"", "");
                let depth_one = names_at_the_top(&plain);
                assert_eq!(
                    depth_one,
                    value.as_object().expect("an object").len(),
                    "{}",
                    answer.text
                );
            }
        }
    }
    println!("{short} answers ended within 5 tokens of their limit; {names} names");
}

/// Names of the outermost object of JSON without escaped quotes.
fn names_at_the_top(text: &str) -> usize {
    let (mut depth, mut inside, mut names) = (0, false, 0);
    for c in text.chars() {
        match c {
            '"' => inside = !inside,
            '{' | '[' if !inside => depth += 1,
            '}' | ']' if !inside => depth -= 1,
            ':' if !inside && depth == 1 => names += 1,
            _ => {}
        }
    }
    names
}

#[test]
fn no_object_has_a_name_twice() {
    // Names of one letter of two, so that most would be there twice.
    let schema = json!({"type": "object", "patternProperties": {"^[ab]$": {"type": "null"}},
        "additionalProperties": false});
    for seed in 0..30 {
        let grammar = grammar(&schema);
        let (answers, _) = run(32, request(&grammar, seed, 3.0), 1);
        let text = &answers[0].text;
        let names = text.matches("null").count();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("JSON: {text}"));
        assert_eq!(value.as_object().map(Map::len), Some(names), "{text}");
    }
}

#[test]
fn tokens_are_drawn_as_often_as_among_those_that_may_come() {
    let constraint = Constraint::Regex("[a-h]".to_owned());
    let grammar = Grammar::compile(vocabulary::shared(), &constraint, 4).expect("it compiles");
    let grammar = Arc::new(grammar);
    let prompt = [vocabulary::END + 1, 65, 66];
    let logits = logits(&prompt);
    let letters = u32::from(b'a')..=u32::from(b'h');
    let weight = |id: u32| f64::from(logits[id as usize]).exp();
    let all: f64 = letters.clone().map(weight).sum();
    let draws = 4000;
    for top_k in [0, 1000] {
        let mut counts = BTreeMap::<String, u32>::new();
        let batch = 64;
        let mut generator = Generator::new(Chaos { passes: 0, batch }, GeneratorOptions::default());
        for seed in 0..draws {
            let mut asked = request(&grammar, seed, 1.0);
            asked.sampling.repeat_penalty = 1.0;
            asked.sampling.top_k = top_k;
            let id = generator.start(asked).expect("a start");
            let answers = finish(&mut generator);
            *counts.entry(answers[&id].text.clone()).or_default() += 1;
        }
        for id in letters.clone() {
            let letter = char::from(id as u8).to_string();
            let seen = f64::from(counts.get(&letter).copied().unwrap_or(0));
            let expected = weight(id) / all * draws as f64;
            // Four standard deviations.
            assert!(
                (seen - expected).abs() < 4.0 * expected.sqrt(),
                "{letter} {seen} {expected}"
            );
        }
    }
}
