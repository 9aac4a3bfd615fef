//! Chat templates: messages to a prompt, by the template that a model's file carries.
//!
//! Templates are written for Jinja2 as Hugging Face Transformers sets it up; `minijinja` runs them, and the
//! modules here add what they expect beyond it: Python's methods of strings ([`python`]), its way of
//! writing JSON ([`json`]) and of writing dates ([`clock`]). A template comes with the model and its input from
//! clients, so what a rendering may cost is bounded: work and memory by fuel, its output by a limit.

mod clock;
mod json;
mod python;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde::Serialize;
use serde_json::Map;

use super::Tokenizer;
use crate::gguf::{Gguf, MetaError};

/// Bytes of a template's source. The longest in use have some 20,000.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a rendered prompt.
const PROMPT_BYTES_MAX: usize = 1 << 24;
/// What a rendering may cost before its input is counted: about as many instructions.
const FUEL_BASE: u64 = 500_000;
/// What each byte of input adds: a byte may be copied 64 times for it.
const FUEL_PER_BYTE: u64 = 1;
/// Most fuel of a rendering, whatever its input.
const FUEL_MAX: u64 = 2_000_000;
/// Stack that a rendering may use. A hostile template can nest a value once for a few units of fuel, and a nested value
/// is dropped level by level; this much holds as many levels as [`FUEL_MAX`] pays for. Only what is used is memory.
const STACK_BYTES: usize = 512 << 20;

const NAME: &str = "chat template";

/// One message of a conversation, as templates see it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else a template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Further fields a template may look at: `name`, `tool_calls`, `tool_call_id`, …
    #[serde(flatten)]
    pub extra: Map<String, serde_json::Value>,
}

impl ChatMessage {
    /// A message with nothing but a role and a content.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            extra: Map::new(),
        }
    }
}

/// Why a template cannot be used, or not for these messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A metadata entry is of the wrong kind.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The source is too long.
    #[error("the chat template has {bytes} bytes; at most {max} are read")]
    SourceTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The source is no template.
    #[error("line {line} of the chat template: {message}")]
    Syntax {
        /// Where, from 1; 0 if not known.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The template refused the messages by calling `raise_exception`. What it says is meant for whoever
    /// wrote the messages.
    #[error("the chat template refuses the messages: {message}")]
    Refused {
        /// What the template said.
        message: String,
    },
    /// The rendering cost more than it may.
    #[error("the chat template takes too much work for these messages")]
    OutOfFuel,
    /// The prompt is too long.
    #[error("the chat template makes a prompt of more than {max} bytes of these messages")]
    PromptTooLong {
        /// The limit.
        max: usize,
    },
    /// The template failed on these messages.
    #[error("line {line} of the chat template: {message}")]
    Render {
        /// Where, from 1; 0 if not known.
        line: usize,
        /// What went wrong.
        message: String,
    },
}

/// A compiled chat template. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of those tokens, empty where there are none.
    ///
    /// # Errors
    /// [`TemplateError`] if it is too long or does not parse.
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::SourceTooLong {
                bytes: source.len(),
                max: TEMPLATE_BYTES_MAX,
            });
        }
        let mut environment = Environment::new();
        let whitespace = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| syntax(&error))?;
        environment.set_syntax(whitespace);
        environment.set_unknown_method_callback(python::call_method);
        environment.set_formatter(python::format);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", clock::strftime_now);
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|error| syntax(&error))?;
        Ok(Self {
            environment: Arc::new(environment),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// The template of a file, `None` if it has none.
    ///
    /// # Errors
    /// [`TemplateError`] if there is one that cannot be used.
    pub fn from_gguf(
        gguf: &Gguf<'_>,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, TemplateError> {
        let source = match gguf.str("tokenizer.chat_template") {
            Ok(source) => source,
            Err(MetaError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Self::for_tokenizer(source, tokenizer).map(Some)
    }

    /// Compiles a template for the beginning and end tokens of a tokenizer.
    ///
    /// # Errors
    /// [`TemplateError`] if it is too long or does not parse.
    pub fn for_tokenizer(source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let text = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id])).unwrap_or_default();
        Self::from_source(source, &text(tokenizer.bos()), &text(tokenizer.eos()))
    }

    /// The template that most models follow that were tuned without one of their own: each message as
    /// `<|im_start|>role`, a line end, the content, `<|im_end|>`, a line end.
    ///
    /// # Errors
    /// None in practice; the type is that of [`ChatTemplate::from_source`].
    pub fn chatml() -> Result<Self, TemplateError> {
        const SOURCE: &str = "{% for message in messages %}\
            {{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\
            {% endfor %}\
            {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        Self::from_source(SOURCE, "", "<|im_end|>")
    }

    /// The prompt for these messages. `extra` adds variables (`tools`, `documents`, …), and replaces those
    /// that there are already.
    ///
    /// # Errors
    /// [`TemplateError`] if the template refuses the messages, fails on them, or takes too much.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        extra: &Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        let mut variables = BTreeMap::from([
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
            // Templates ask whether these are none rather than whether they are defined.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        for (name, value) in extra {
            variables.insert(name, Value::from(Serde(value)));
        }
        let input = count_bytes(messages).saturating_add(count_bytes(extra));
        let fuel = FUEL_BASE
            .saturating_add(input.saturating_mul(FUEL_PER_BYTE))
            .min(FUEL_MAX);

        // The fuel depends on the input, and belongs to the environment; its templates are shared.
        let mut environment = (*self.environment).clone();
        environment.set_fuel(Some(fuel));
        let template = environment
            .get_template(NAME)
            .map_err(|error| failure(&error))?;
        let mut prompt = Bounded {
            bytes: Vec::new(),
            max: PROMPT_BYTES_MAX,
            overflowed: false,
        };
        let rendered = on_deep_stack(|| {
            template
                .render_captured_to(variables, &mut prompt)
                .map(drop)
        })?;
        if prompt.overflowed {
            return Err(TemplateError::PromptTooLong {
                max: PROMPT_BYTES_MAX,
            });
        }
        rendered.map_err(|error| failure(&error))?;
        String::from_utf8(prompt.bytes).map_err(|error| TemplateError::Render {
            line: 0,
            message: error.to_string(),
        })
    }
}

/// Runs `work` on a thread of its own with [`STACK_BYTES`] of stack.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, TemplateError> {
    let failed = |message: String| TemplateError::Render { line: 0, message };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| failed(format!("no thread to render on: {error}")))?;
        thread
            .join()
            .map_err(|_| failed("rendering panicked".to_owned()))
    })
}

/// Bytes that a value takes as JSON: what it takes to read it.
fn count_bytes<T: Serialize + ?Sized>(value: &T) -> u64 {
    struct Count(u64);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len() as u64);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What cannot be written as JSON has no bytes here and fails where the template uses it.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

/// Collects output up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
    overflowed: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.max.saturating_sub(self.bytes.len()) {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template said through `raise_exception`, carried inside the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(
        minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception")
            .with_source(Refusal(message)),
    )
}

fn failure(error: &minijinja::Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::OutOfFuel;
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(Refusal(message)) = inner.downcast_ref() {
            return TemplateError::Refused {
                message: message.clone(),
            };
        }
        let inner_kind = inner.downcast_ref().map(minijinja::Error::kind);
        if inner_kind == Some(ErrorKind::OutOfFuel) {
            return TemplateError::OutOfFuel;
        }
        cause = inner.source();
    }
    TemplateError::Render {
        line: error.line().unwrap_or(0),
        message: describe(error),
    }
}

fn syntax(error: &minijinja::Error) -> TemplateError {
    TemplateError::Syntax {
        line: error.line().unwrap_or(0),
        message: describe(error),
    }
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// The source with `{% generation %}` and `{% endgeneration %}` made into a condition that always holds: they
/// mark for training what the assistant said, and mean nothing when a prompt is made.
fn without_generation_marks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        result.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else {
            break;
        };
        let (inside, after) = tag.split_at(end);
        let word = inside.trim_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        result.push_str(&inside.replacen(word, replacement, 1));
        rest = after;
    }
    result.push_str(rest);
    result
}
