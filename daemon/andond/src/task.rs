//! Tasks: questions whose words stand in the configuration, so that a client sends only the fields.
//!
//! A [`Task`] turns an input (a JSON object) into the chat messages of a request and fills what the
//! request left unsaid. What the model's chat template makes of the messages is the worker's part.
//!
//! Invariant: an input is answered with exactly the instructions it was meant for. A field the template
//! needs and the input lacks is an error, and so is a field that no template knows: it is more often a
//! misspelt name than a wish to be ignored. Rendering is bounded in steps and in bytes, whatever the
//! input is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::time::Duration;

use andon_policy::route::Policy;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

use crate::config::Problems;
use crate::config::task::TaskConfig;
use crate::fault::{Fault, FaultCode};
use crate::request::{AnswerFormat, Egress, Message, Priority, Sampling};

/// Most template instructions of one rendering.
const RENDER_STEPS_MAX: u64 = 200_000;
/// Largest rendered text, in bytes.
const RENDER_BYTES_MAX: usize = 1024 * 1024;
/// Deepest nesting of blocks and macros in a rendering.
const RENDER_DEPTH_MAX: usize = 64;
/// Most missing or surplus names listed in one message.
const NAMES_LISTED_MAX: usize = 8;
/// Longest name quoted in a message, in characters: input names come from outside.
const NAME_QUOTED_CHARS_MAX: usize = 64;
/// The variable that holds the whole input.
const WHOLE_INPUT: &str = "input";

/// A template that does not compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    line: Option<usize>,
    what: String,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "is not a template: {} in its line {line}", self.what),
            None => write!(f, "is not a template: {}", self.what),
        }
    }
}

impl std::error::Error for TemplateError {}

/// One configured task.
#[derive(Debug, Clone)]
pub struct Task {
    instructions: String,
    system: Option<String>,
    /// Paths the templates look up, such as `code` or `machine.line`.
    paths: BTreeSet<String>,
    model: Option<String>,
    priority: Option<Priority>,
    deadline: Option<Duration>,
    egress: Option<Egress>,
    policy: Option<Policy>,
    waits: Option<bool>,
    tokens_max: Option<usize>,
    format: Option<AnswerFormat>,
    temperature: Option<f32>,
    input_bytes_max: usize,
}

impl Task {
    /// Compiles a task.
    ///
    /// # Errors
    /// The first template that does not compile.
    pub fn new(config: &TaskConfig) -> Result<Task, TemplateError> {
        let environment = environment();
        let mut paths = look_ups(&environment, &config.instructions)?;
        if let Some(system) = &config.system {
            paths.append(&mut look_ups(&environment, system)?);
        }
        Ok(Task {
            instructions: config.instructions.clone(),
            system: config.system.clone(),
            paths,
            model: config.model.clone(),
            priority: config.priority,
            deadline: config.deadline_ms.map(Duration::from_millis),
            egress: config.egress,
            policy: config.policy,
            waits: config.wait,
            tokens_max: config.tokens_max,
            // What does not parse is a problem of the configuration, and was reported as one.
            format: config.format().ok().flatten(),
            temperature: config.temperature,
            input_bytes_max: config.input_bytes_max,
        })
    }

    /// Whether `text` is a template.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn check_template(text: &str) -> Result<(), TemplateError> {
        look_ups(&environment(), text).map(drop)
    }

    /// The chat messages for an input.
    ///
    /// # Errors
    /// An input that is no object, is too large, lacks a field or has one too many, and a rendering that
    /// passes its bounds; the message names the field.
    pub fn messages(&self, input: &Value) -> Result<Vec<Message>, Fault> {
        let Value::Object(fields) = input else {
            return Err(invalid("the input of a task is a JSON object"));
        };
        let bytes = json_bytes(input);
        if bytes > self.input_bytes_max {
            let message = format!(
                "the input has {bytes} bytes, the task takes {}",
                self.input_bytes_max
            );
            return Err(Fault {
                param: Some("input"),
                ..Fault::new(FaultCode::TooLarge, message)
            });
        }
        self.check_surplus(fields)?;
        let environment = environment();
        let mut context = fields.clone();
        if !context.contains_key(WHOLE_INPUT)
            && self.paths.iter().any(|path| first(path) == WHOLE_INPUT)
        {
            context.insert(WHOLE_INPUT.to_owned(), input.clone());
        }
        let mut messages = Vec::with_capacity(2);
        if let Some(system) = &self.system {
            let content = self.render(&environment, system, &context)?;
            messages.push(Message::new("system", content));
        }
        let content = self.render(&environment, &self.instructions, &context)?;
        messages.push(Message::new("user", content));
        Ok(messages)
    }

    fn check_surplus(&self, fields: &Map<String, Value>) -> Result<(), Fault> {
        let known: BTreeSet<&str> = self.paths.iter().map(|path| first(path)).collect();
        if known.contains(WHOLE_INPUT) {
            return Ok(());
        }
        let surplus = list(
            fields
                .keys()
                .map(String::as_str)
                .filter(|name| !known.contains(name)),
        );
        if surplus.is_empty() {
            return Ok(());
        }
        let known = list(known.into_iter());
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known
        };
        Err(invalid(format!(
            "the task has no input field {surplus}; it knows {known}"
        )))
    }

    fn render(
        &self,
        environment: &Environment<'_>,
        template: &str,
        context: &Map<String, Value>,
    ) -> Result<String, Fault> {
        let mut out = Bounded::default();
        let outcome = environment
            .template_from_str(template)
            .and_then(|template| {
                template
                    .render_captured_to(minijinja::value::Serde(context), &mut out)
                    .map(drop)
            });
        match outcome {
            Ok(()) => String::from_utf8(out.bytes)
                .map(|text| text.trim().to_owned())
                .map_err(|_| invalid("the input does not render to text")),
            Err(_) if out.full => Err(Fault {
                param: Some("input"),
                ..Fault::new(
                    FaultCode::TooLarge,
                    format!("the task's text passes {RENDER_BYTES_MAX} bytes"),
                )
            }),
            Err(error) if error.kind() == ErrorKind::OutOfFuel => Err(invalid(format!(
                "the task's template takes more than {RENDER_STEPS_MAX} steps with this input"
            ))),
            Err(error) if error.kind() == ErrorKind::UndefinedError => {
                let missing = list(
                    self.paths
                        .iter()
                        .map(String::as_str)
                        .filter(|path| !has(context, path)),
                );
                Err(if missing.is_empty() {
                    invalid("the input lacks a value the task needs")
                } else {
                    invalid(format!("the input lacks the field {missing}"))
                })
            }
            Err(error) => Err(invalid(format!(
                "the task's template cannot use this input: {}",
                describe(&error)
            ))),
        }
    }
}

/// What a task makes of a request's input; each `None` leaves the daemon's default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resolved {
    /// The conversation to answer.
    pub messages: Vec<Message>,
    /// The task's model, overridden by the request's.
    pub model: Option<String>,
    /// The task's sampling, overridden by the request's.
    pub sampling: Sampling,
    /// The task's token limit, overridden by the request's.
    pub tokens_max: Option<usize>,
    /// The task's shape of answers, overridden by the request's.
    pub format: Option<AnswerFormat>,
    /// The task's stop strings, beside the request's.
    pub stop: Vec<String>,
    /// The task's class, overridden by the request's.
    pub priority: Option<Priority>,
    /// The task's deadline from submission, overridden by the request's.
    pub deadline: Option<Duration>,
    /// The task's egress; the narrower of it and the request's holds.
    pub egress: Option<Egress>,
    /// Who answers, overridden by the request's.
    pub policy: Option<Policy>,
    /// Whether it may wait for upstream, overridden by the request's.
    pub waits: Option<bool>,
}

/// All configured tasks, their templates checked.
#[derive(Debug, Default)]
pub struct Tasks {
    tasks: BTreeMap<String, Task>,
}

impl Tasks {
    /// Takes every task of a configuration.
    ///
    /// # Errors
    /// Every task with a template that does not compile.
    pub fn new(config: &BTreeMap<String, TaskConfig>) -> Result<Tasks, Problems> {
        let mut problems = Problems::default();
        let mut tasks = BTreeMap::new();
        for (name, config) in config {
            match Task::new(config) {
                Ok(task) => {
                    tasks.insert(name.clone(), task);
                }
                Err(error) => problems.add(
                    format!("task.{name}.instructions"),
                    error.to_string(),
                    "mend the template",
                ),
            }
        }
        problems.into_result(Tasks { tasks })
    }

    /// Whether a task of this name is configured.
    pub fn contains(&self, name: &str) -> bool {
        self.tasks.contains_key(name)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// The class of a task and its deadline, needed before its input is rendered.
    pub fn defaults(&self, name: &str) -> Option<(Option<Priority>, Option<Duration>)> {
        self.tasks
            .get(name)
            .map(|task| (task.priority, task.deadline))
    }

    /// How far requests of a task may travel, unless they say less.
    #[must_use]
    pub fn egress(&self, name: &str) -> Option<Egress> {
        self.tasks.get(name)?.egress
    }

    /// Whether answers to some task have a shape.
    #[must_use]
    pub fn have_formats(&self) -> bool {
        self.tasks.values().any(|task| task.format.is_some())
    }

    /// Whether answers to a task have a shape.
    #[must_use]
    pub fn has_format(&self, name: &str) -> bool {
        self.tasks
            .get(name)
            .is_some_and(|task| task.format.is_some())
    }

    /// Renders a task's instructions over the input's fields.
    ///
    /// # Errors
    /// [`FaultCode::UnknownTask`], or [`FaultCode::InvalidRequest`] or [`FaultCode::TooLarge`] if the input
    /// does not suit the task; the message names the field.
    pub fn resolve(&self, name: &str, input: &Value) -> Result<Resolved, Fault> {
        let task = self.tasks.get(name).ok_or_else(|| Fault {
            param: Some("task"),
            ..Fault::new(
                FaultCode::UnknownTask,
                format!("no task {:?} is configured", quoted(name)),
            )
        })?;
        Ok(Resolved {
            messages: task.messages(input)?,
            model: task.model.clone(),
            sampling: Sampling {
                temperature: task.temperature,
                ..Sampling::default()
            },
            tokens_max: task.tokens_max,
            format: task.format.clone(),
            stop: Vec::new(),
            priority: task.priority,
            deadline: task.deadline,
            egress: task.egress,
            policy: task.policy,
            waits: task.waits,
        })
    }
}

fn environment() -> Environment<'static> {
    // Only delimiters can make a syntax invalid, and these are the default ones.
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .unwrap_or_default();
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_syntax(syntax);
    environment.set_recursion_limit(RENDER_DEPTH_MAX);
    environment.set_fuel(Some(RENDER_STEPS_MAX));
    environment
}

/// The paths a template looks up and does not set itself.
fn look_ups(environment: &Environment<'_>, text: &str) -> Result<BTreeSet<String>, TemplateError> {
    let template = environment
        .template_from_str(text)
        .map_err(|error| TemplateError {
            line: error.line(),
            what: describe(&error),
        })?;
    let globals: BTreeSet<String> = environment
        .globals()
        .map(|(name, _)| name.to_owned())
        .collect();
    let mut paths: BTreeSet<String> = template.undeclared_variables(true).into_iter().collect();
    paths.retain(|path| !globals.contains(first(path)));
    Ok(paths)
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    }
}

fn first(path: &str) -> &str {
    path.split('.').next().unwrap_or(path)
}

fn has(fields: &Map<String, Value>, path: &str) -> bool {
    let mut levels = path.split('.');
    let mut value = levels.next().and_then(|level| fields.get(level));
    for level in levels {
        value = match value {
            Some(Value::Object(fields)) => fields.get(level),
            // Looking into anything but an object is the template's own affair.
            other => return other.is_some(),
        };
    }
    value.is_some()
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for (index, name) in names.enumerate() {
        if index == NAMES_LISTED_MAX {
            text.push_str(", …");
            break;
        }
        if index > 0 {
            text.push_str(", ");
        }
        text.push_str(&format!("{:?}", quoted(name)));
    }
    text
}

fn quoted(name: &str) -> String {
    name.chars().take(NAME_QUOTED_CHARS_MAX).collect()
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::invalid("input", message)
}

/// The length of a value as JSON, without building the text.
fn json_bytes(value: &Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // A counter takes everything, and a value of JSON always has a text.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(bytes.len()) > RENDER_BYTES_MAX {
            self.full = true;
            return Err(io::Error::other("the text is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(instructions: &str) -> Task {
        Task::new(&TaskConfig {
            instructions: instructions.to_owned(),
            ..TaskConfig::default()
        })
        .unwrap()
    }

    fn text(task: &Task, input: &Value) -> String {
        task.messages(input).unwrap().pop().unwrap().content
    }

    fn refusal(task: &Task, input: &Value) -> Fault {
        task.messages(input).unwrap_err()
    }

    #[test]
    fn fields_go_where_the_template_says() {
        let task = task(
            "Fault {{ code }}: {{ text }}\n{% if line is defined %}Line {{ line }}\n{% endif %}",
        );
        let short = json!({"code": "E42", "text": "<jam> & \"stop\""});
        assert_eq!(text(&task, &short), "Fault E42: <jam> & \"stop\"");
        let long = json!({"code": "E42", "text": "jam", "line": 3});
        assert_eq!(text(&task, &long), "Fault E42: jam\nLine 3");
    }

    #[test]
    fn a_missing_field_is_named() {
        let task = task("{{ code }} at {{ machine.line }}");
        let fault = refusal(&task, &json!({"code": "E42", "machine": {"row": 1}}));
        assert_eq!(fault.code, FaultCode::InvalidRequest);
        assert!(fault.message.contains("\"machine.line\""), "{fault}");
        assert!(!fault.message.contains("\"code\""), "{fault}");
    }

    #[test]
    fn a_surplus_field_is_named_and_the_known_ones_too() {
        let fault = refusal(&task("{{ code }}"), &json!({"code": 1, "cod": 2}));
        assert!(
            fault.message.contains("\"cod\"") && fault.message.contains("\"code\""),
            "{fault}"
        );
        let fault = refusal(&task("Say hello."), &json!({"x": 1}));
        assert!(fault.message.contains("none"), "{fault}");
    }

    #[test]
    fn the_whole_input_can_be_taken() {
        let task = task("Explain: {{ input | tojson }}");
        assert_eq!(
            text(&task, &json!({"a": [1, 2]})),
            r#"Explain: {"a": [1, 2]}"#
        );
    }

    #[test]
    fn functions_and_own_variables_are_no_fields() {
        let task = task("{% for i in range(2) %}{{ i }}{{ code }}{% endfor %}");
        assert_eq!(text(&task, &json!({"code": "x"})), "0x1x");
    }

    #[test]
    fn only_objects_of_bounded_size_are_inputs() {
        let task = task("{{ code }}");
        assert_eq!(
            refusal(&task, &json!("E42")).code,
            FaultCode::InvalidRequest
        );
        let fault = refusal(&task, &json!({"code": "x".repeat(20_000)}));
        assert_eq!(fault.code, FaultCode::TooLarge);
    }

    #[test]
    fn rendering_is_bounded_in_steps_and_bytes() {
        let steps =
            task("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}");
        assert!(refusal(&steps, &json!({})).message.contains("steps"));
        let bytes = task("{% for a in range(9000) %}{{ text }}{% endfor %}");
        assert_eq!(
            refusal(&bytes, &json!({"text": "x".repeat(1000)})).code,
            FaultCode::TooLarge
        );
    }

    #[test]
    fn a_broken_template_says_where() {
        let error = Task::check_template("fine\n{{ code ").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn a_task_brings_its_own_settings() {
        let config = TaskConfig {
            instructions: "{{ code }}".to_owned(),
            system: Some("You are a press.".to_owned()),
            priority: Some(Priority::Alarm),
            temperature: Some(0.5),
            tokens_max: Some(10),
            deadline_ms: Some(1000),
            ..TaskConfig::default()
        };
        let tasks = Tasks::new(&BTreeMap::from([("explain".to_owned(), config)])).unwrap();
        let resolved = tasks.resolve("explain", &json!({"code": "E1"})).unwrap();
        let texts: Vec<(&str, &str)> = resolved
            .messages
            .iter()
            .map(|message| (message.role.as_str(), message.content.as_str()))
            .collect();
        assert_eq!(texts, [("system", "You are a press."), ("user", "E1")]);
        assert_eq!(resolved.tokens_max, Some(10));
        assert_eq!(resolved.sampling.temperature, Some(0.5));
        assert_eq!(
            tasks.defaults("explain"),
            Some((Some(Priority::Alarm), Some(Duration::from_secs(1))))
        );
    }

    #[test]
    fn an_unknown_task_is_its_own_fault() {
        let fault = Tasks::default().resolve("nothing", &json!({})).unwrap_err();
        assert_eq!(fault.code, FaultCode::UnknownTask);
    }
}
