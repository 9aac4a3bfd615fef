//! The schemas of a plant's prompts, where they lie beside the repository: all compile, and whatever a model says under
//! them is an instance, the same whether forced tokens are taken together or one by one.

use std::path::Path;
use std::sync::Arc;

use andon_engine::generate::{FinishReason, GenerationRequest};
use andon_engine::grammar::{Constraint, Grammar};
use serde_json::Value;

use crate::answers::{request, run};
use crate::vocabulary;

/// Tokens of an answer that its tasks have room for.
const TOKENS_MAX: usize = 256;

fn schemas() -> Vec<Value> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/factory_prompts.jsonl");
    let Ok(text) = std::fs::read_to_string(path) else {
        return Vec::new();
    };
    let mut schemas = Vec::new();
    for line in text.lines() {
        let mut prompt: Value = serde_json::from_str(line).expect("a prompt");
        if let Some(schema) = prompt.get_mut("json_schema").map(Value::take)
            && schema.is_object()
            && !schemas.contains(&schema)
        {
            schemas.push(schema);
        }
    }
    schemas
}

#[test]
fn every_schema_of_a_plants_prompts_holds_its_answers() {
    let schemas = schemas();
    let mut passes = [0; 2];
    for schema in &schemas {
        let constraint = Constraint::JsonSchema(schema.clone());
        let grammar = Grammar::compile(vocabulary::shared(), &constraint, TOKENS_MAX);
        let grammar = Arc::new(grammar.unwrap_or_else(|error| panic!("{schema}: {error}")));
        let validator = jsonschema::validator_for(schema).expect("a schema");
        for seed in 0..8 {
            let together = GenerationRequest {
                tokens_max: Some(TOKENS_MAX),
                ..request(&grammar, seed, [0.0, 0.7, 2.0][seed as usize % 3])
            };
            let slowly = GenerationRequest {
                one_by_one: true,
                ..together.clone()
            };
            let (answers, fewer) = run(64, together, 1);
            let (same, more) = run(64, slowly, 1);
            assert_eq!(answers, same, "{schema} {seed}");
            passes[0] += fewer;
            passes[1] += more;
            let answer = &answers[0];
            assert_eq!(answer.end, Some(FinishReason::Stop), "{}", answer.text);
            let value: Value = serde_json::from_str(&answer.text).expect("JSON");
            assert!(validator.is_valid(&value), "{schema}: {}", answer.text);
        }
    }
    println!(
        "{} schemas; passes together and one by one: {passes:?}",
        schemas.len()
    );
}
