//! Whether an answer from elsewhere is what was asked for. An upstream may not know of shapes and tools, or not care.
//!
//! Invariant: what passes is JSON of the schema in which no object has a name twice, and calls what may be called.

use std::sync::Arc;

use serde_json::Value;
use tokio::task::spawn_blocking;

use super::answer::{FaultKind, ToolCall};
use super::client::Refusal;
use super::instance;
use super::question::{Question, Shape};
use super::reply::Complete;
use crate::request::{Calling, tool_name};
use crate::worker::Finish;

fn misshapen(what: impl Into<String>) -> Refusal {
    Refusal::new(FaultKind::Misshapen, what)
}

/// Checks an answer and what was held back of its text, and gives both back, the text without white space around it. What may
/// take long does so on a thread of its own.
///
/// # Errors
/// What the answer is not.
pub(super) async fn answer(
    question: Arc<Question>,
    complete: Complete,
    held: String,
) -> Result<(Complete, String), Refusal> {
    let is_short = question.shape.is_none() && complete.calls.is_empty();
    let check = move || {
        calls(&complete.calls, &question)?;
        let held = held.trim();
        if let Some(shape) = &question.shape
            && complete.finish == Finish::Stop
        {
            text(held, shape)?;
        }
        let held = held.to_owned();
        Ok((complete, held))
    };
    if is_short {
        return check();
    }
    let stopping = |_| Err(Refusal::new(FaultKind::Unavailable, "the daemon stops"));
    spawn_blocking(check).await.unwrap_or_else(stopping)
}

/// Checks the text of an answer that has to have a shape.
///
/// # Errors
/// What it is not.
fn text(text: &str, shape: &Shape) -> Result<(), Refusal> {
    let value = andon_engine::grammar::parse_json(text.as_bytes())
        .map_err(|_| misshapen("the answer is not JSON"))?;
    match shape {
        Shape::Object if value.is_object() => Ok(()),
        Shape::Object => Err(misshapen("the answer is not an object")),
        Shape::Schema(schema) => fits(schema, &value, "the answer"),
    }
}

fn fits(schema: &Value, value: &Value, what: &str) -> Result<(), Refusal> {
    instance::check(schema, value)
        .map_err(|mismatch| misshapen(format!("{what} does not fit its schema: {mismatch}")))
}

/// Checks the calls of an answer.
///
/// # Errors
/// What they may not be.
fn calls(calls: &[ToolCall], question: &Question) -> Result<(), Refusal> {
    let choice = &question.tool_choice;
    match (choice.calling.clone(), calls.len()) {
        (Calling::Never, 1..) => return Err(misshapen("the answer calls tools and may not")),
        (Calling::Must, 0) => return Err(misshapen("the answer calls no tool and has to")),
        (_, 2..) if choice.single => return Err(misshapen("the answer calls more than one tool")),
        _ => {}
    }
    for call in calls {
        let is_it = |tool: &&Value| tool_name(tool) == Some(&call.name);
        let may = |only: &Vec<String>| only.contains(&call.name);
        let tool = question.tools.iter().find(is_it);
        let Some(tool) = tool.filter(|_| choice.only.as_ref().is_none_or(may)) else {
            return Err(misshapen("the answer calls a tool that it may not"));
        };
        let arguments = andon_engine::grammar::parse_json(call.arguments.as_bytes());
        let arguments = arguments.ok().filter(Value::is_object);
        let arguments = arguments.ok_or_else(|| misshapen("arguments of a call are no object"))?;
        if let Some(parameters) = tool.pointer("/function/parameters") {
            fits(parameters, &arguments, "a call")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::request::ToolChoice;

    fn call(name: &str, arguments: &str) -> ToolCall {
        ToolCall {
            id: "1".to_owned(),
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        }
    }

    #[test]
    fn an_answer_has_its_shape() {
        let schema = Shape::Schema(
            json!({"type": "object", "properties": {"a": {"type": "integer"}},
            "required": ["a"], "additionalProperties": false}),
        );
        assert_eq!(text("{\n \"a\": 1 }", &schema), Ok(()));
        for bad in [
            "",
            "{\"a\": 1",
            "{\"a\":1,\"a\":2}",
            "{\"a\":\"secret\"}",
            "{}",
            "{\"a\":1,\"b\":2}",
            "```json\n{\"a\":1}\n```",
        ] {
            let refusal = text(bad, &schema).expect_err(bad);
            assert_eq!(refusal.kind, FaultKind::Misshapen);
            assert!(!refusal.what.contains("secret"), "{}", refusal.what);
        }
        assert_eq!(text("{\"x\":[]}", &Shape::Object), Ok(()));
        assert!(text("[]", &Shape::Object).is_err());
    }

    #[test]
    fn calls_are_of_the_tools_that_may_be_called_and_fit_them() {
        let tool = |name: &str| {
            json!({"type": "function", "function": {"name": name, "parameters":
                {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}})
        };
        let mut question = Question::new(Vec::new());
        question.tools = vec![tool("f"), tool("g")];
        question.tool_choice = ToolChoice {
            calling: Calling::Maybe,
            only: Some(vec!["f".to_owned()]),
            single: true,
        };
        let good = call("f", "{\"x\": 1}");
        assert_eq!(calls(&[], &question), Ok(()));
        assert_eq!(calls(std::slice::from_ref(&good), &question), Ok(()));
        for bad in [
            vec![good.clone(), good.clone()],
            vec![call("g", "{\"x\":1}")],
            vec![call("h", "{\"x\":1}")],
            vec![call("f", "{}")],
            vec![call("f", "{\"x\":\"1\"}")],
            vec![call("f", "{\"x\":1")],
            vec![call("f", "1")],
            vec![call("f", "")],
        ] {
            assert!(calls(&bad, &question).is_err(), "{bad:?}");
        }
        question.tool_choice.calling = Calling::Must;
        assert!(calls(&[], &question).is_err());
        question.tool_choice.calling = Calling::Never;
        assert!(calls(&[good], &question).is_err());
    }
}
