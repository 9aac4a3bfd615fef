//! How templates write calls, found out from the templates: shapes that models in use have, and those that cannot be
//! held to.
//!
//! `ANDON_CHAT_TEMPLATES` names a folder of further templates, whose formats are printed.

use andon_engine::calls::{CallEvent, CallReader, Opener, ToolStyle};
use andon_engine::tokenizer::{ChatInput, ChatMessage, ChatTemplate};
use serde_json::{Value, json};

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_source(source, "<s>", "</s>").expect("a template")
}

#[test]
fn templates_of_a_folder() {
    let Ok(folder) = std::env::var("ANDON_CHAT_TEMPLATES") else {
        return;
    };
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let mut native = 0;
    for path in &paths {
        let source = std::fs::read_to_string(path).expect("a text");
        let style = ToolStyle::of(&template(&source), None);
        native += usize::from(style.is_native());
        println!("{}\n    {style:?}", path.display());
    }
    println!("{native} of {}", paths.len());
}

/// Tools told in the system's turn, as some families have it; turns between these marks.
const HEAD: &str = "{%- if tools %}{{- '<|s|>system\\n' + (messages[0].content + '\\n' if messages[0].role == 'system' else '') }}\
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}{{- '<|e|>\\n' }}{%- endif %}";
const TAIL: &str = "{%- if add_generation_prompt %}{{- '<|s|>assistant\\n' }}{%- endif %}";

/// A template that writes the turn of an assistant with calls as `calls`.
fn turns(calls: &str) -> String {
    format!(
        "{HEAD}{{%- for message in messages %}}\
         {{%- if message.role == 'assistant' and message.tool_calls %}}\
         {{{{- '<|s|>assistant\\n' + (message.content or '') }}}}{calls}{{{{- '<|e|>\\n' }}}}\
         {{%- elif message.role != 'system' or not tools %}}\
         {{{{- '<|s|>' + message.role + '\\n' + message.content + '<|e|>\\n' }}}}\
         {{%- endif %}}{{%- endfor %}}{TAIL}"
    )
}

const HERMES: &str = "{%- for call in message.tool_calls %}{%- if not loop.first or message.content %}{{- '\\n' }}{%- endif %}\
    {{- '<tool_call>\\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' \
    + call.function.arguments | tojson + '}\\n</tool_call>' }}{%- endfor %}";
const LIST: &str = "{{- '[TOOL_CALLS][' }}{%- for call in message.tool_calls %}\
    {%- if call.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{%- endif %}\
    {{- call.function | tojson | replace('}}', '}') + ', \"id\": \"' + call.id + '\"}' }}\
    {%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' }}";
const NAMED: &str = "{%- for call in message.tool_calls %}\
    {%- if call.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{%- endif %}{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id \
    + '[ARGS]' + call.function.arguments | tojson }}{%- endfor %}";
const BARE: &str = "{%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}\
    {{- '{\"name\": \"' + message.tool_calls[0].function.name + '\", \"parameters\": ' \
    + message.tool_calls[0].function.arguments | tojson + '}' }}";
const FENCED: &str = "{{- '<|calls|>' }}{%- for call in message.tool_calls %}{{- '<|call|>function<|sep|>' + call.function.name \
    + '\\n```json\\n' + call.function.arguments + '\\n```<|end|>' }}{%- endfor %}{{- '<|done|>' }}";
const KEYED: &str = "{{- '<|tools|>[' }}{%- for call in message.tool_calls %}{{- '{\"' + call.function.name + '\": ' \
    + call.function.arguments | tojson + '}' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']<|/tools|>' }}";
const MARKUP: &str = "{%- for call in message.tool_calls %}{{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}\
    {%- for name, value in call.function.arguments | items %}{{- '<parameter=' ~ name ~ '>\\n' ~ value ~ '\\n</parameter>\\n' }}\
    {%- endfor %}{{- '</function>\\n</tool_call>' }}{%- endfor %}";

fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// A question, an answer with two calls (or one), their results, and another question.
fn conversation(count: usize) -> Vec<ChatMessage> {
    let mut calls = ChatMessage::new("assistant", "");
    let made = [
        call("call_1", "status", "{\"line\": 3, \"why\": \"jam\"}"),
        call("call_2", "stop", "{}"),
    ];
    calls
        .extra
        .insert("tool_calls".to_owned(), json!(made[..count]));
    let mut all = vec![ChatMessage::new("user", "What of line 3?"), calls];
    for (id, result) in [("call_1", "worn"), ("call_2", "stopped")]
        .into_iter()
        .take(count)
    {
        let mut message = ChatMessage::new("tool", result);
        message.extra.insert("tool_call_id".to_owned(), json!(id));
        all.push(message);
    }
    all
}

fn tools() -> Vec<Value> {
    ["status", "stop"]
        .map(|name| json!({"type": "function", "function": {"name": name, "description": "d"}}))
        .to_vec()
}

fn prompt(style: &ToolStyle, template: &ChatTemplate, count: usize, calls: bool) -> String {
    let (messages, tools) = (conversation(count), tools());
    let input = ChatInput {
        messages: &messages,
        add_generation_prompt: true,
        tools: &tools,
        ..ChatInput::default()
    };
    style.render(template, &input, calls).expect("a prompt")
}

/// The calls in a text, read in pieces.
fn read(style: &ToolStyle, text: &str) -> Vec<CallEvent> {
    let mut reader = CallReader::new(style.format().clone());
    let mut events: Vec<CallEvent> = text
        .split_inclusive(['"', '\n', '|'])
        .flat_map(|piece| reader.push(piece))
        .collect();
    events.extend(reader.finish());
    events
}

#[test]
fn the_format_of_a_template_is_written_and_read_back() {
    for (calls, opener, several) in [
        (HERMES, "<tool_call>", true),
        (LIST, "[TOOL_CALLS]", true),
        (NAMED, "[TOOL_CALLS]", true),
        (BARE, "{\"name\"", false),
        (FENCED, "<|calls|><|call|>function<|sep|>", true),
        (KEYED, "<|tools|>", true),
    ] {
        let template = template(&turns(calls));
        let style = ToolStyle::of(&template, None);
        assert!(style.is_native() && style.tells(), "{calls}\n{style:?}");
        let format = style.format();
        assert_eq!(format.opener().text(), opener, "{style:?}");
        assert_eq!(matches!(format.opener(), Opener::Start(_)), calls == BARE);
        assert_eq!(format.takes_several(), several, "{style:?}");
        // What the template makes of calls in a conversation is what the reader makes calls of.
        let count = if several { 2 } else { 1 };
        let prompt = prompt(&style, &template, count, true);
        let (_, said) = prompt
            .split_once("<|s|>assistant\n")
            .expect("a turn of calls");
        let (said, _) = said.split_once("<|e|>").expect("its end");
        let events = read(&style, said);
        let begun = events.iter().filter_map(|event| match event {
            CallEvent::Begin(name) => Some(name.as_str()),
            _ => None,
        });
        assert_eq!(
            begun.collect::<Vec<_>>(),
            ["status", "stop"][..count],
            "{said}"
        );
        let arguments: String = events
            .iter()
            .filter_map(|event| match event {
                CallEvent::Arguments(text) => Some(text.as_str()),
                CallEvent::Text(text) => panic!("{text} in {said}"),
                _ => None,
            })
            .collect();
        let values: Vec<Value> = serde_json::Deserializer::from_str(&arguments)
            .into_iter()
            .map(|value| value.expect("JSON"))
            .collect();
        assert_eq!(
            values,
            [json!({"line": 3, "why": "jam"}), json!({})][..count],
            "{said}"
        );
        assert!(prompt.contains("\"description\""), "{prompt}");
    }
}

#[test]
fn other_templates_get_a_format_of_ours() {
    // One that tells of tools and forgets calls, one with markup for arguments, one that knows nothing of tools, and one
    // where there is no system.
    let plain = "{%- for m in messages %}{{- '<|s|>' + m.role + '\n' + m.content + '<|e|>\n' }}{%- endfor %}";
    let silent = "{%- for m in messages %}{%- if m.role == 'system' %}{{- raise_exception('no system') }}{%- endif %}\
        {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('turns alternate') }}{%- endif %}\
        {{- '<|s|>' + m.role + '\n' + m.content + '<|e|>\n' }}{%- endfor %}";
    for (source, system) in [
        (turns(MARKUP), true),
        (plain.to_owned(), true),
        (silent.to_owned(), false),
    ] {
        let template = template(&source);
        let style = ToolStyle::of(&template, None);
        assert!(!style.is_native(), "{style:?}");
        assert_eq!(style.format().opener().text(), "<tool_call>");
        let prompt = prompt(&style, &template, 2, true);
        let expected = "assistant\n<tool_call>\n{\"name\": \"status\", \"arguments\": {\"line\": 3, \"why\": \"jam\"}}\n\
            </tool_call>\n<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call><|e|>";
        assert!(prompt.contains(expected), "{prompt}");
        assert!(
            prompt.contains("{\"name\":\"stop\",\"description\":\"d\"}"),
            "{prompt}"
        );
        let first = if system {
            "<|s|>system\nYou can call"
        } else {
            "<|s|>user\nYou can call"
        };
        assert!(prompt.starts_with(first), "{prompt}");
        assert!(
            prompt.contains("worn") && prompt.contains("stopped"),
            "{prompt}"
        );
    }
    // Where none is to be called, a template has its own way.
    let template = template(&turns(MARKUP));
    let style = ToolStyle::of(&template, None);
    let prompt = prompt(&style, &template, 1, false);
    assert!(prompt.contains("<parameter=line>\n3\n"), "{prompt}");
    assert!(!prompt.contains("You can call"), "{prompt}");
}

#[test]
fn some_templates_take_tools_by_another_name() {
    let turn = "{%- for m in messages %}{{- '<|s|>' + m.role + '\n' + m.content + '<|e|>\n' }}{%- endfor %}";
    let hint = "Call as <tool_call>{}</tool_call>.";
    let variable = format!(
        "{{%- if xml_tools %}}{{{{- xml_tools | tojson + '{hint}' }}}}{{%- endif %}}{turn}"
    );
    let field = "{%- for m in messages %}{%- if m.role == 'system' and 'tools' in m and m.tools is not none %}\
        {{- '<|s|>' + m.role + '\n' + m.content + '<|tool|>' + m.tools + '<|/tool|>' + '<tool_call></tool_call><|e|>' }}{%- else %}\
        {{- '<|s|>' + m.role + '\n' + m.content + '<|e|>\n' }}{%- endif %}{%- endfor %}";
    for source in [variable.as_str(), field] {
        let template = template(source);
        let style = ToolStyle::of(&template, None);
        assert!(style.is_native() && style.tells(), "{style:?}");
        let prompt = prompt(&style, &template, 2, true);
        assert!(
            prompt.contains("\"name\":") && prompt.contains("status"),
            "{prompt}"
        );
        assert!(!prompt.contains("You can call"), "{prompt}");
        assert!(prompt.contains("<|s|>tool\nworn<|e|>"), "{prompt}");
    }
    // A list behind a tag, as the prompt says.
    let list = format!(
        "{{%- if tools %}}{{{{- 'Say <|tool_call|> and a list of ' + tools | tojson }}}}{{%- endif %}}{turn}"
    );
    let style = ToolStyle::of(&template(&list), None);
    assert!(style.is_native(), "{style:?}");
    let events = read(
        &style,
        "<|tool_call|>[{\"name\": \"stop\", \"arguments\": {}}]",
    );
    assert_eq!(events.first(), Some(&CallEvent::Begin("stop".to_owned())));
    assert_eq!(events.last(), Some(&CallEvent::End));
}
