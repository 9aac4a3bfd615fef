//! A request as it is sent: without the secrets that the configuration has taken out, and as a key for answers that are kept.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::Inner;
use super::redact::{Form, Redactor, Restorer, Secrets, TooLarge, Unredactable};
use crate::config::Config;
use crate::request::{Input, Request};
use crate::upstream::{Answered, Question, Shape, ToolCall};

/// What takes secrets out by the configuration in force.
#[derive(Debug, Default)]
pub(super) struct Redactors {
    made: Mutex<Option<Made>>,
}

/// Of a configuration; `None` if it cannot be made.
type Made = (Arc<Config>, Option<Arc<Redactor>>);

impl Redactors {
    /// The one of a configuration; `None` if there can be none, and then nothing may leave.
    fn of(&self, config: &Arc<Config>) -> Option<Arc<Redactor>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((of, redactor)) if Arc::ptr_eq(of, config) => redactor.clone(),
            _ => {
                let redactor = Redactor::new(&config.redact).map(Arc::new);
                let redactor = redactor
                    .inspect_err(|(rule, why)| tracing::warn!(rule, why, "nothing leaves"))
                    .ok();
                *made = Some((Arc::clone(config), redactor.clone()));
                redactor
            }
        }
    }
}

/// A whole answer of an upstream, as it came.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) text: String,
    pub(super) tools: Vec<ToolCall>,
    pub(super) answered: Answered,
}

impl Kept {
    /// Bytes of it.
    pub(super) fn bytes(&self) -> usize {
        let tools = self.tools.iter();
        let tools = tools.map(|call| call.id.len() + call.name.len() + call.arguments.len());
        tools.fold(self.text.len(), usize::saturating_add)
    }
}

impl Inner {
    /// A question without secrets, and these; `None` if they cannot be taken out.
    pub(super) fn sent(
        &self,
        request: &Request,
        question: Question,
        config: &Arc<Config>,
    ) -> Option<(Question, Secrets)> {
        let redactor = self.redactors.of(config)?;
        if redactor.is_empty() {
            return Some((question, Secrets::default()));
        }
        let taken = self.taken_out(&redactor, request, question, config);
        taken
            .inspect_err(|why| {
                tracing::info!(request_id = request.id, %why, "it does not leave");
            })
            .ok()
    }

    fn taken_out(
        &self,
        redactor: &Redactor,
        request: &Request,
        question: Question,
        config: &Config,
    ) -> Result<(Question, Secrets), Unredactable> {
        let mut redaction = redactor.begin();
        let mut question = question;
        if let Input::Task { name, input } = &request.input {
            // Fields have names only before the template is rendered with them.
            let without = Request {
                input: Input::Task {
                    name: name.clone(),
                    input: redaction.input(input)?,
                },
                ..request.clone()
            };
            let task = self.workers.resolve(&without).and_then(Result::ok);
            let tokens_max = config.limits.tokens_max_default;
            question = Question::of(&without, task.as_ref(), tokens_max)
                .map_err(|_| Unredactable::Unrendered)?;
        }
        redaction.messages(&mut question.messages)?;
        redaction.tools(&mut question.tools)?;
        if let Some(Shape::Schema(schema)) = &mut question.shape {
            redaction.schema(schema)?;
        }
        for stop in &mut question.stop {
            redaction.text(stop)?;
        }
        Ok((question, redaction.done()))
    }
}

/// Whether a request is sent by one configuration as it was by another. Where a task that comes with a model makes the question,
/// they do not say so.
pub(super) fn is_alike(request: &Request, before: &Config, now: &Config) -> bool {
    let of_task = match &request.input {
        Input::Task { name, .. } => {
            let task = before.task.get(name);
            task.is_some_and(|task| now.task.get(name) == Some(task))
        }
        _ => true,
    };
    of_task
        && before.redact == now.redact
        && before.limits.tokens_max_default == now.limits.tokens_max_default
}

/// What puts secrets back into the text of an answer to this question.
pub(super) fn restorer(question: &Question, secrets: &Secrets) -> Restorer {
    secrets.restorer(if question.shape.is_some() {
        Form::Json
    } else {
        Form::Text
    })
}

/// Puts secrets back into calls.
///
/// # Errors
/// [`TooLarge`]
pub(super) fn restored(calls: &[ToolCall], secrets: &Secrets) -> Result<Vec<ToolCall>, TooLarge> {
    let mut restorer = secrets.restorer(Form::Json);
    let restored = calls.iter().map(|call| {
        Ok(ToolCall {
            id: call.id.clone(),
            name: call.name.clone(),
            arguments: restorer.whole(&call.arguments)?,
        })
    });
    restored.collect()
}

/// Everything of a question that determines its answer.
pub(super) fn determining(question: &Question) -> Value {
    let messages = question.messages.iter().map(
        |message| json!({"role": message.role, "content": message.content, "extra": message.extra}),
    );
    let choice = &question.tool_choice;
    let sampling = &question.sampling;
    json!({
        "messages": messages.collect::<Value>(),
        "tools": question.tools,
        "tool_choice": [format!("{:?}", choice.calling), choice.only, choice.single],
        "shape": match &question.shape {
            None => Value::Null,
            Some(Shape::Object) => json!("object"),
            Some(Shape::Schema(schema)) => json!({ "schema": schema }),
        },
        "sampling": format!("{sampling:?}"),
        "tokens_max": question.tokens_max,
        "stop": question.stop,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::redact::RedactConfig;
    use crate::config::task::TaskConfig;
    use crate::request::{Message, Origin};

    #[test]
    fn what_is_sent_stays_unless_its_rules_its_task_or_its_length_change() {
        let of = |input| Request::new("1", "uid-0", Origin::Internal, input);
        let task = |name: &str| {
            let (name, input) = (name.to_owned(), Value::Null);
            of(Input::Task { name, input })
        };
        let words = of(Input::Messages(vec![Message::new("user", "why")]));
        let (explain, of_model) = (task("explain"), task("of-the-model"));
        let mut before = Config::default();
        (before.task).insert("explain".to_owned(), TaskConfig::default());
        let alike = |change: &dyn Fn(&mut Config)| {
            let mut now = before.clone();
            change(&mut now);
            [&words, &explain, &of_model].map(|request| is_alike(request, &before, &now))
        };
        assert_eq!(alike(&|_| {}), [true, true, false]);
        assert_eq!(alike(&|now| now.router.wait = true), [true, true, false]);
        let other = |now: &mut Config| {
            let task = now.task.get_mut("explain").expect("there");
            task.instructions = "why?".to_owned();
        };
        assert_eq!(alike(&other), [true, false, false]);
        assert_eq!(alike(&|now| now.task.clear()), [true, false, false]);
        assert_eq!(
            alike(&|now| now.redact.push(RedactConfig::default())),
            [false; 3]
        );
        assert_eq!(alike(&|now| now.limits.tokens_max_default += 1), [false; 3]);
    }
}
