//! What a chat template does with tools and calls, found out by rendering conversations that are known.
//!
//! The turn of an assistant that says a known text, and those of one that makes one and two known calls, begin and end
//! alike; what is between is how calls are written.

use std::ops::Range;

use serde_json::{Map, Value, json};

use super::format::{CallFormat, Seen};
use crate::tokenizer::{ChatInput, ChatMessage, ChatTemplate, TemplateError, Tokenizer};

const NAMES: [&str; 2] = ["probe_alpha", "probe_omega"];
const VALUES: [&str; 2] = ["first value", "second value"];
/// As many characters as templates ask of ids ([`super::ID_CHARACTERS`]).
const IDS: [&str; 2] = ["pRobeId01", "pRobeId02"];
/// What stands for them once they are found.
const ID: &str = "\u{1}";
const KEY: &str = "probe_key";
const MORE: &str = "probe_more";
/// Begins and ends as no structure of a prompt does.
const SAID: &str = "Zq probe said 7";
const RESULT: &str = "probe result 7";
/// What the variable is called that some templates take tools in.
const VARIABLE: &str = "xml_tools";

/// How the model is told of its tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The template does it.
    Template,
    /// The template does it, if they are in [`VARIABLE`].
    Variable,
    /// The template does it, if they are a text in the system's message.
    Message,
    /// What the system says has to.
    System,
}

/// What a template does with tools and calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolStyle {
    pub(super) told: Told,
    /// Whether the template writes calls and their results itself; else calls become text.
    pub(super) writes: bool,
    /// Whether it shows messages of tools; else they become the user's.
    pub(super) results: bool,
    /// Whether the calls that it writes are read back: calls are made in the format that the model was tuned for.
    pub(super) native: bool,
    /// Messages with calls alone have null as their content, where an empty text fails.
    pub(super) null_content: bool,
    /// Arguments are texts, where objects fail.
    pub(super) text_arguments: bool,
    /// Whether the system may say something.
    pub(super) has_system: bool,
    pub(super) format: CallFormat,
}

impl ToolStyle {
    /// What `template` does. Without `tokenizer` its control tokens are taken for text.
    #[must_use]
    pub fn of(template: &ChatTemplate, tokenizer: Option<&Tokenizer>) -> Self {
        let mut style = Self {
            told: Told::System,
            writes: false,
            results: false,
            native: false,
            null_content: false,
            text_arguments: false,
            has_system: true,
            format: CallFormat::plain(tokenizer),
        };
        let user = ChatMessage::new("user", "probe");
        let plain_turn = |style: &Self, messages: &[ChatMessage]| style.probe(template, messages);
        let system = ChatMessage::new("system", SAID);
        style.has_system =
            plain_turn(&style, &[system, user.clone()]).is_ok_and(|prompt| prompt.contains(SAID));
        for told in [Told::Template, Told::Variable, Told::Message] {
            let asked = Self {
                told,
                ..style.clone()
            };
            if plain_turn(&asked, std::slice::from_ref(&user))
                .is_ok_and(|prompt| prompt.contains(NAMES[0]))
            {
                style = asked;
                break;
            }
        }
        for (null_content, text_arguments) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            let asked = Self {
                null_content,
                text_arguments,
                writes: true,
                ..style.clone()
            };
            let mut messages = vec![user.clone(), asked.calling(1)];
            let shows = |messages: &[ChatMessage], text: &str| {
                asked.probe(template, messages).ok().filter(|prompt| {
                    prompt.rfind(text).is_some_and(|at| {
                        // Not where the tools are told of.
                        prompt[..at].contains("probe")
                    })
                })
            };
            if shows(&messages, VALUES[0]).is_none() {
                continue;
            }
            messages.push(result());
            if shows(&messages, RESULT).is_none() {
                continue;
            }
            style = asked;
            break;
        }
        if style.writes {
            style.results = true;
            if let Some(format) = style.seen(template, tokenizer, &user) {
                style.native = true;
                style.format = format;
            }
        } else {
            let said = ChatMessage::new("assistant", SAID);
            let prompt = plain_turn(&style, &[user.clone(), said, result()]);
            // One that shows any role says nothing of tools by that.
            style.results =
                style.told != Told::System && prompt.is_ok_and(|prompt| prompt.contains(RESULT));
            if style.told != Told::System
                && let Ok(prompt) = plain_turn(&style, &[user])
                && let Some(format) = CallFormat::hinted(&prompt, tokenizer)
            {
                style.native = true;
                style.format = format;
            }
        }
        style
    }

    /// How calls are written where they can be made.
    #[must_use]
    pub fn format(&self) -> &CallFormat {
        &self.format
    }

    /// Whether that is the format of the model's own template.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.native
    }

    /// Whether the template tells the model of tools by itself.
    #[must_use]
    pub fn tells(&self) -> bool {
        self.told != Told::System
    }

    /// The variables of a prompt that tells of tools.
    pub(super) fn variables(
        &self,
        variables: Option<&Map<String, Value>>,
        tools: &[Value],
    ) -> Option<Map<String, Value>> {
        let mut variables = variables.cloned();
        if self.told == Told::Variable && !tools.is_empty() {
            // As that template's model saw them: the functions, without what is around them.
            let functions = tools
                .iter()
                .filter_map(|tool| tool.get("function").cloned());
            let all = variables.get_or_insert_default();
            all.insert(VARIABLE.to_owned(), functions.collect());
        }
        variables
    }

    fn probe(
        &self,
        template: &ChatTemplate,
        messages: &[ChatMessage],
    ) -> Result<String, TemplateError> {
        let tools = match self.told {
            Told::System => Vec::new(),
            _ => NAMES.map(tool).to_vec(),
        };
        let variables = self.variables(None, &tools);
        let mut messages = messages.to_vec();
        if self.told == Told::Message {
            self.put(&mut messages, &tools);
        }
        template.render(&ChatInput {
            messages: &messages,
            add_generation_prompt: false,
            tools: &tools,
            documents: &[],
            variables: variables.as_ref(),
        })
    }

    /// A message with the first `count` calls.
    fn calling(&self, count: usize) -> ChatMessage {
        let calls = (0..count).map(|index| {
            let arguments = arguments(index);
            let arguments = match self.text_arguments {
                true => Value::String(arguments.to_string()),
                false => arguments,
            };
            json!({"id": IDS[index], "type": "function",
                "function": {"name": NAMES[index], "arguments": arguments}})
        });
        let content = match self.null_content {
            true => Value::Null,
            false => Value::String(String::new()),
        };
        let mut message = ChatMessage::new("assistant", content);
        message
            .extra
            .insert("tool_calls".to_owned(), calls.collect());
        message
    }

    /// The format that the template writes calls in, if it is one that can be held to and read.
    fn seen(
        &self,
        template: &ChatTemplate,
        tokenizer: Option<&Tokenizer>,
        user: &ChatMessage,
    ) -> Option<CallFormat> {
        let turn = |message: ChatMessage| self.probe(template, &[user.clone(), message]).ok();
        let said = turn(ChatMessage::new("assistant", SAID))?;
        let one = turn(self.calling(1))?;
        let start = turn_start(&said, &one);
        // What ends every turn is no part of calls.
        let body = |whole: &str| -> Option<String> {
            let whole = whole.get(start..)?;
            let length = whole.len() - turn_end(&said, whole);
            let body = whole[..length].replace(IDS[0], ID);
            Some(body.replace(IDS[1], ID))
        };
        let one = body(&one)?;
        let cut = cut(&one, 1)?;
        let (name, arguments) = cut.first()?;
        let (before, between) = (&one[..name.start], &one[name.end..arguments.start]);
        let written = &one[arguments.clone()];
        let mut end = &one[arguments.end..];
        let two = turn(self.calling(2)).and_then(|two| body(&two));
        let mut next = None;
        if let Some(two) = &two
            && let Some([(name, first), (other, second)]) = self::cut(two, 2).as_deref()
            && two.get(..name.start) == Some(before)
            && two.get(name.end..first.start) == Some(between)
            && two.get(other.end..second.start) == Some(between)
        {
            next = two.get(first.end..other.start);
            // Some templates end one call less well than two.
            end = two.get(second.end..)?;
        }
        let spaced = written.contains("\": ") && written.contains(", \"");
        let seen = Seen {
            before,
            between,
            next,
            end,
            spaced,
            id: ID,
        };
        CallFormat::of(&seen, tokenizer)
    }
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {
        "name": name,
        "description": "Probes.",
        "parameters": {
            "type": "object",
            "properties": {
                KEY: {"type": "string", "description": "A key."},
                MORE: {"type": "integer", "description": "More."},
            },
            "required": [KEY],
        },
    }})
}

fn arguments(index: usize) -> Value {
    json!({KEY: VALUES[index], MORE: 7})
}

fn result() -> ChatMessage {
    let mut message = ChatMessage::new("tool", RESULT);
    for (name, value) in [("tool_call_id", IDS[0]), ("name", NAMES[0])] {
        message.extra.insert(name.to_owned(), value.into());
    }
    message
}

/// Where the names and arguments of `count` calls stand; `None` if those are not JSON behind the names.
fn cut(turn: &str, count: usize) -> Option<Vec<(Range<usize>, Range<usize>)>> {
    let mut calls = Vec::with_capacity(count);
    let mut done = 0;
    for (index, name) in NAMES.iter().enumerate().take(count) {
        let start = done + turn.get(done..)?.find(name)?;
        let end = start + name.len();
        let key = end + turn.get(end..)?.find(&format!("\"{KEY}\""))?;
        let brace = end + turn.get(end..key)?.rfind('{')?;
        let mut values = serde_json::Deserializer::from_str(turn.get(brace..)?).into_iter();
        if values.next()?.ok() != Some(arguments(index)) {
            return None;
        }
        done = brace + values.byte_offset();
        calls.push((start..end, brace..done));
    }
    // A name that is written twice is not where it was taken to be.
    let others = |text: &str| NAMES.iter().any(|name| text.contains(name));
    (!others(turn.get(done..)?)).then_some(calls)
}

/// Where the turns begin to differ, not within a tag.
fn turn_start(one: &str, other: &str) -> usize {
    let pairs = one.char_indices().zip(other.chars());
    let mut pairs = pairs.skip_while(|((_, a), b)| a == b);
    let start = pairs
        .next()
        .map_or(one.len().min(other.len()), |((at, _), _)| at);
    let same = &one[..start];
    match same.rfind('<') {
        Some(at) if !same[at..].contains(|c: char| c == '>' || c.is_whitespace()) => at,
        _ => start,
    }
}

/// Bytes at their ends that are the same, not within a tag.
fn turn_end(one: &str, other: &str) -> usize {
    let pairs = one.chars().rev().zip(other.chars().rev());
    let same = pairs.take_while(|(a, b)| a == b);
    let bytes: usize = same.map(|(a, _)| a.len_utf8()).sum();
    let text = &other[other.len() - bytes..];
    match text.find('>') {
        Some(at) if !text[..at].contains('<') => bytes - at - 1,
        _ => bytes,
    }
}
