//! Chat templates: messages to a prompt, by the template that a model's file carries.
//!
//! Templates are written for Jinja2 as Hugging Face Transformers sets it up; `minijinja` runs them, and the
//! modules here add what they expect beyond it: Python's methods of strings ([`python`]), its way of
//! writing JSON ([`json`]) and of writing dates ([`clock`]). A template comes with the model and its input from
//! clients, so what a rendering may cost is bounded: work and memory by fuel, its output by a limit.

mod choose;
mod clock;
mod error;
mod input;
mod json;
mod named;
mod python;
mod source;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};

pub use choose::{TemplateChoice, TemplateOrigin};
pub use error::TemplateError;
pub use input::{ChatInput, ChatMessage};
pub use named::NamedTemplate;

/// Bytes of a template's source. The longest in use have some 20,000.
const SOURCE_BYTES_MAX: usize = 1 << 20;
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

/// How deep calls of macros and recursive loops go into each other; a macro counts four times.
const CALLS_MAX: usize = 400;

const NAME: &str = "chat template";
const TOOL_USE: &str = "chat template for tools";

/// A compiled chat template. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// Whether there is another for conversations with tools.
    has_tool_use: bool,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of those tokens, empty where there are none.
    ///
    /// # Errors
    /// [`TemplateError`] if it is too long or does not parse.
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let whitespace = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| syntax(&error))?;
        environment.set_syntax(whitespace);
        environment.set_recursion_limit(CALLS_MAX);
        python::install(&mut environment);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", clock::strftime_now);
        add(&mut environment, NAME, source)?;
        Ok(Self {
            environment: Arc::new(environment),
            has_tool_use: false,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// This template, with another one for conversations with tools.
    ///
    /// # Errors
    /// [`TemplateError`] if that one is too long or does not parse.
    pub fn with_tool_use(self, source: &str) -> Result<Self, TemplateError> {
        let mut environment = (*self.environment).clone();
        add(&mut environment, TOOL_USE, source)?;
        Ok(Self {
            environment: Arc::new(environment),
            has_tool_use: true,
            ..self
        })
    }

    /// Whether prompts tell the model of its tools: without it, tools that are given are not in the prompt.
    #[must_use]
    pub fn uses_tools(&self) -> bool {
        self.has_tool_use
            || self
                .environment
                .get_template(NAME)
                .is_ok_and(|template| template.undeclared_variables(false).contains("tools"))
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// [`TemplateError`] if the template refuses the messages, fails on them, or takes too much.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TemplateError> {
        let bytes = input.count_bytes()?;
        let fuel = FUEL_BASE
            .saturating_add(bytes.saturating_mul(FUEL_PER_BYTE))
            .min(FUEL_MAX);
        let mut variables = BTreeMap::from([
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
        ]);
        for (name, value) in input.variables.into_iter().flatten() {
            variables.insert(name, Value::from(Serde(value)));
        }
        // Templates ask whether these are none rather than whether they are defined.
        let list = |values: &[serde_json::Value]| {
            if values.is_empty() {
                Value::from(())
            } else {
                Value::from(Serde(values))
            }
        };
        variables.extend([
            ("messages", Value::from(Serde(input.messages))),
            (
                "add_generation_prompt",
                Value::from(input.add_generation_prompt),
            ),
            ("tools", list(input.tools)),
            ("documents", list(input.documents)),
        ]);
        let name = if self.has_tool_use && !input.tools.is_empty() {
            TOOL_USE
        } else {
            NAME
        };

        // The fuel depends on the input, and belongs to the environment; its templates are shared.
        let mut environment = (*self.environment).clone();
        environment.set_fuel(Some(fuel));
        let template = environment
            .get_template(name)
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

fn add(
    environment: &mut Environment<'static>,
    name: &'static str,
    source: &str,
) -> Result<(), TemplateError> {
    if source.len() > SOURCE_BYTES_MAX {
        return Err(TemplateError::SourceTooLong {
            bytes: source.len(),
            max: SOURCE_BYTES_MAX,
        });
    }
    environment
        .add_template_owned(name, source::prepared(source))
        .map_err(|error| syntax(&error))
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

/// What `minijinja` and the modules here say of values that would be too large; they have no kind of their own.
const TOO_LARGE: [&str; 3] = ["too large", "too many elements", python::WIDE];
const TOO_DEEP: &str = "recursion limit exceeded";

fn failure(error: &minijinja::Error) -> TemplateError {
    let line = error.line().unwrap_or(0);
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(Refusal(message)) = inner.downcast_ref() {
            return TemplateError::Refused {
                message: message.clone(),
            };
        }
        if let Some(inner) = inner.downcast_ref::<minijinja::Error>() {
            let detail = inner.detail().unwrap_or_default();
            if inner.kind() == ErrorKind::OutOfFuel {
                return TemplateError::OutOfFuel;
            }
            if detail.contains(TOO_DEEP) {
                return TemplateError::TooDeep { line };
            }
            if TOO_LARGE.iter().any(|text| detail.contains(text)) {
                let message = describe(inner);
                return TemplateError::TooLarge { line, message };
            }
        }
        cause = inner.source();
    }
    TemplateError::Render {
        line,
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
