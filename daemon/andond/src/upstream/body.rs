//! A question as the JSON that an upstream takes.

use serde_json::{Map, Value, json};

use super::question::{Question, Shape};
use crate::config::upstream::TokensField;
use crate::request::{Calling, Message};

/// What schemas are called there, where a name has to be given.
const SCHEMA_NAME: &str = "answer";

/// The body of a question to a model.
pub(super) fn of(question: &Question, model: &str, tokens_field: TokensField) -> Vec<u8> {
    let mut body = Map::new();
    body.insert("model".to_owned(), model.into());
    let messages = question.messages.iter().map(message).collect();
    body.insert("messages".to_owned(), Value::Array(messages));
    body.insert("stream".to_owned(), true.into());
    body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    if let Some(tokens) = question.tokens_max {
        body.insert(tokens_field.name().to_owned(), tokens.into());
    }
    if !question.stop.is_empty() {
        body.insert("stop".to_owned(), question.stop.clone().into());
    }
    let sampling = &question.sampling;
    for (name, value) in [
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ] {
        if let Some(value) = value {
            body.insert(name.to_owned(), value.into());
        }
    }
    if let Some(seed) = sampling.seed {
        // Servers read it as a signed number.
        body.insert("seed".to_owned(), (seed >> 1).into());
    }
    match &question.shape {
        Some(Shape::Schema(schema)) => {
            let shape = json!({"name": SCHEMA_NAME, "schema": schema, "strict": true});
            let format = json!({"type": "json_schema", "json_schema": shape});
            body.insert("response_format".to_owned(), format);
        }
        Some(Shape::Object) => {
            body.insert("response_format".to_owned(), json!({"type": "json_object"}));
        }
        None => {}
    }
    tools(question, &mut body);
    Value::Object(body).to_string().into_bytes()
}

fn tools(question: &Question, body: &mut Map<String, Value>) {
    if question.tools.is_empty() {
        return;
    }
    let choice = &question.tool_choice;
    let may = |tool: &&Value| {
        let name = crate::request::tool_name(tool);
        let among = |only: &Vec<String>| only.iter().any(|one| Some(one.as_str()) == name);
        choice.only.as_ref().is_none_or(among)
    };
    let tools: Vec<Value> = match choice.calling {
        // They explain the calls of earlier messages.
        Calling::Never => question.tools.clone(),
        // Servers that know `allowed_tools` are few: only those are told of.
        Calling::Maybe | Calling::Must => question.tools.iter().filter(may).cloned().collect(),
    };
    let word = match choice.calling {
        Calling::Never => "none",
        Calling::Maybe => "auto",
        Calling::Must => "required",
    };
    body.insert("tools".to_owned(), Value::Array(tools));
    body.insert("tool_choice".to_owned(), word.into());
    if choice.single {
        body.insert("parallel_tool_calls".to_owned(), false.into());
    }
}

fn message(message: &Message) -> Value {
    let mut fields = Map::new();
    fields.insert("role".to_owned(), message.role.clone().into());
    fields.insert("content".to_owned(), message.content.clone().into());
    for (name, value) in &message.extra {
        let value = if name == "tool_calls" {
            calls(value)
        } else {
            value.clone()
        };
        fields.insert(name.clone(), value);
    }
    Value::Object(fields)
}

/// Calls with their arguments as text: templates are given them as values.
fn calls(value: &Value) -> Value {
    let mut value = value.clone();
    for call in value.as_array_mut().into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && !arguments.is_string()
        {
            *arguments = arguments.to_string().into();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Sampling, ToolChoice};

    #[test]
    fn what_is_asked_is_all_in_it_and_nothing_else() {
        let mut question = Question::new(vec![Message::new("user", "Why?")]);
        let value: Value =
            serde_json::from_slice(&of(&question, "m", TokensField::MaxTokens)).expect("JSON");
        assert_eq!(
            value,
            json!({"model": "m", "messages": [{"role": "user", "content": "Why?"}],
                "stream": true, "stream_options": {"include_usage": true}})
        );
        let calls = json!([{"id": "c", "type": "function",
            "function": {"name": "f", "arguments": {"x": 1}}}]);
        question.messages[0]
            .extra
            .insert("tool_calls".to_owned(), calls);
        question.tokens_max = Some(9);
        question.stop = vec!["END".to_owned()];
        question.sampling = Sampling {
            temperature: Some(0.5),
            top_p: Some(0.25),
            top_k: Some(3),
            seed: Some(u64::MAX),
            ..Sampling::default()
        };
        question.shape = Some(Shape::Schema(json!({"type": "object"})));
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        question.tools = vec![tool("f"), tool("g")];
        question.tool_choice = ToolChoice {
            calling: Calling::Must,
            only: Some(vec!["g".to_owned()]),
            single: true,
        };
        let body = of(&question, "m", TokensField::MaxCompletionTokens);
        let value: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(value["max_completion_tokens"], 9);
        assert!(value.get("max_tokens").is_none() && value.get("top_k").is_none());
        assert_eq!(value["seed"], i64::MAX);
        assert_eq!(
            (&value["temperature"], &value["top_p"]),
            (&json!(0.5), &json!(0.25))
        );
        assert_eq!(value["tools"], json!([tool("g")]));
        assert_eq!(value["tool_choice"], "required");
        assert_eq!(value["parallel_tool_calls"], false);
        assert_eq!(
            value["messages"][0]["tool_calls"][0]["function"]["arguments"],
            "{\"x\":1}"
        );
        assert_eq!(
            value["response_format"]["json_schema"]["schema"],
            json!({"type": "object"})
        );
    }
}
