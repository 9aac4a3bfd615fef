//! Who may ask for what: the rules of `[[access]]`, and what follows from them for one caller.
//!
//! Front ends know a [`Caller`]; [`crate::workers::Workers::submit`] is where every request comes by, and asks here what
//! its caller may. Rules can be replaced while the daemon runs: each request goes by those that hold when it is handed
//! over, and keeps what it was granted.
//!
//! Invariant: without rules every caller has every right; with rules, one that none fits has no right at all. Nothing that
//! is asked for is made less silently: it is granted or refused by name.

mod denied;
mod rules;
mod token;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use andon_os::Peer;
use andon_policy::client::Rates;
use andon_policy::route::Policy;

pub use self::denied::Denied;
pub use self::rules::Rules;
pub use self::token::Token;
use crate::request::{Egress, Input, Priority, Request};

/// The name of those who come by the loopback listener.
const LOOPBACK: &str = "loopback";
/// What the name of a user of this machine begins with.
const USER: &str = "uid-";

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A process of this machine, by a Unix socket: as the kernel says.
    User(Arc<Peer>),
    /// Whoever knows the token, by the loopback listener.
    Loopback,
    /// A client of the broker, by its name in the topic: as true as the broker's access list makes it.
    Client(Arc<str>),
}

impl Caller {
    /// The name that requests, records and the journal have for it.
    pub fn name(&self) -> Arc<str> {
        match self {
            Caller::User(peer) => format!("{USER}{}", peer.uid).into(),
            Caller::Loopback => LOOPBACK.into(),
            Caller::Client(name) => Arc::clone(name),
        }
    }

    /// Tells the journal what was denied it, and why.
    pub fn note_denied(&self, why: &dyn fmt::Display) {
        note_denied(&self.name(), why);
    }

    /// The groups of the process, if it is one.
    pub fn groups(&self) -> &[u32] {
        match self {
            Caller::User(peer) => &peer.groups,
            Caller::Loopback | Caller::Client(_) => &[],
        }
    }

    /// Who asked over HTTP, from the name and the groups that were kept. A name that none is stands for nobody.
    pub fn of_kept(name: &str, groups: Vec<u32>) -> Caller {
        if name == LOOPBACK {
            return Caller::Loopback;
        }
        let uid = name.strip_prefix(USER).and_then(|uid| uid.parse().ok());
        Caller::User(Arc::new(Peer {
            pid: 0,
            uid: uid.unwrap_or(u32::MAX),
            groups,
        }))
    }
}

/// Tells the journal what was denied to the caller of this name, and why.
pub fn note_denied(client: &str, why: &dyn fmt::Display) {
    crate::event!(AccessDenied, client, %why, "a request was not allowed");
}

/// What a caller may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// The most urgent class.
    pub priority_max: Priority,
    /// How often; what is not said is as `[limits]` says.
    pub rates: Rates,
    /// How far requests may travel at most. Whatever sends bytes off the gateway asks [`Request::travels`].
    pub egress: Egress,
    /// Who answers where neither request nor task says.
    pub policy: Option<Policy>,
    /// The models; `None` is all.
    pub(self) models: Option<Vec<String>>,
    /// The tasks, and nothing else; `None` is anything.
    pub(self) tasks: Option<Vec<String>>,
}

impl Default for Rights {
    /// Every right there is.
    fn default() -> Rights {
        Rights {
            priority_max: Priority::Alarm,
            rates: Rates::default(),
            egress: Egress::Any,
            policy: None,
            models: None,
            tasks: None,
        }
    }
}

impl Rights {
    /// Whether a task of this name, or without one anything that is none, may be asked of a model.
    ///
    /// # Errors
    /// The first thing that may not.
    pub fn may_ask(&self, model: &str, task: Option<&str>) -> Result<(), Denied> {
        let is_among = |names: &[String], name: &str| names.iter().any(|other| other == name);
        if let Some(tasks) = &self.tasks
            && !task.is_some_and(|task| is_among(tasks, task))
        {
            return Err(Denied::task(task, tasks));
        }
        match &self.models {
            Some(models) if !is_among(models, model) => Err(Denied::model(model, models)),
            _ => Ok(()),
        }
    }

    /// Whether a request of this class may be asked.
    ///
    /// # Errors
    /// If it is more urgent than may be.
    pub fn may_be(&self, priority: Priority) -> Result<(), Denied> {
        if priority > self.priority_max {
            return Err(Denied::Priority {
                asked: priority,
                most: self.priority_max,
            });
        }
        Ok(())
    }

    /// Whether a request may be asked, of the model of this name. `by_task` is the class that its task has, as far as
    /// that is known.
    ///
    /// # Errors
    /// The first thing that may not.
    pub fn check(
        &self,
        request: &Request,
        model: &str,
        by_task: Option<Priority>,
    ) -> Result<(), Denied> {
        let task = match &request.input {
            Input::Task { name, .. } => Some(name.as_str()),
            _ => None,
        };
        self.may_ask(model, task)?;
        if let Some(priority) = request.priority.or(by_task) {
            self.may_be(priority)?;
        }
        // A task's word is the operator's, as the rule is: the narrower of the two holds. A client's own is refused.
        if request.egress == Some(Egress::Any) && self.egress == Egress::Local {
            return Err(Denied::Egress);
        }
        Ok(())
    }
}

/// The rules that hold.
#[derive(Debug)]
pub struct Access {
    rules: RwLock<Arc<Rules>>,
}

impl Access {
    /// These rules.
    pub fn new(rules: Rules) -> Access {
        Access {
            rules: RwLock::new(Arc::new(rules)),
        }
    }

    /// Has other rules hold from now on. What was taken before keeps what it was granted.
    pub fn replace(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// The rules that hold now.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        // A value is put in whole.
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&rules)
    }

    /// What a caller may ask for.
    ///
    /// # Errors
    /// If that is nothing.
    pub fn rights(&self, caller: &Caller) -> Result<Arc<Rights>, Denied> {
        let rights = self.rules().rights(caller);
        rights.ok_or_else(|| Denied::Caller(caller.name().to_string()))
    }

    /// Whether this is the token of the loopback listener.
    pub fn is_token(&self, shown: &[u8]) -> bool {
        let rules = self.rules();
        rules.token().is_some_and(|token| token.is(shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Origin;

    fn of(input: Input) -> Request {
        Request::new("1", "c", Origin::Http, input)
    }

    fn prompt() -> Request {
        of(Input::Prompt("x".to_owned()))
    }

    fn task(name: &str) -> Request {
        let name = name.to_owned();
        let input = serde_json::Value::Null;
        of(Input::Task { name, input })
    }

    #[test]
    fn everything_may_be_asked_unless_something_is_said() {
        let mut request = prompt();
        request.priority = Some(Priority::Alarm);
        request.egress = Some(Egress::Any);
        assert_eq!(Rights::default().check(&request, "m", None), Ok(()));
    }

    #[test]
    fn what_may_not_be_asked_is_refused_by_name() {
        let rights = Rights {
            priority_max: Priority::Interactive,
            egress: Egress::Local,
            models: Some(vec!["small".to_owned(), "tiny".to_owned()]),
            ..Rights::default()
        };
        assert_eq!(rights.check(&prompt(), "tiny", None), Ok(()));
        let said = |request: &Request, model, by_task| {
            let denied = rights.check(request, model, by_task);
            denied.expect_err("it is denied").to_string()
        };
        let text = said(&prompt(), "big", None);
        assert!(
            text.contains("big") && text.contains("small, tiny"),
            "{text}"
        );
        let mut request = prompt();
        request.priority = Some(Priority::Alarm);
        let text = said(&request, "tiny", None);
        assert!(
            text.contains("alarm") && text.contains("interactive"),
            "{text}"
        );
        // The class of the task is as good as one's own, and gives way to it.
        let text = said(&task("t"), "tiny", Some(Priority::Alarm));
        assert!(text.contains("alarm"), "{text}");
        let mut request = task("t");
        request.priority = Some(Priority::Batch);
        let by_task = Some(Priority::Alarm);
        assert_eq!(rights.check(&request, "tiny", by_task), Ok(()));
        let mut request = prompt();
        request.egress = Some(Egress::Any);
        assert!(said(&request, "tiny", None).contains("egress"));
    }

    #[test]
    fn where_tasks_are_listed_nothing_else_may_be_asked() {
        let rights = Rights {
            tasks: Some(vec!["explain".to_owned()]),
            ..Rights::default()
        };
        assert_eq!(rights.check(&task("explain"), "m", None), Ok(()));
        for request in [task("triage"), prompt()] {
            let denied = rights.check(&request, "m", None).expect_err("not listed");
            assert!(denied.to_string().contains("explain"), "{denied}");
        }
    }

    #[test]
    fn names_lead_back_to_callers() {
        let user = Caller::User(Arc::new(Peer {
            pid: 0,
            uid: 1000,
            groups: vec![7],
        }));
        for caller in [user, Caller::Loopback] {
            let kept = Caller::of_kept(&caller.name(), caller.groups().to_vec());
            assert_eq!(kept, caller);
        }
        assert_eq!(
            Caller::of_kept("uid-x", Vec::new()),
            Caller::of_kept("x", Vec::new())
        );
    }

    #[test]
    fn a_request_travels_no_further_than_its_caller_may_have_it() {
        let mut request = prompt();
        assert_eq!(request.travels(None), Egress::Local);
        assert_eq!(request.travels(Some(Egress::Any)), Egress::Any);
        request.egress = Some(Egress::Local);
        assert_eq!(request.travels(Some(Egress::Any)), Egress::Local);
        request.egress = Some(Egress::Any);
        assert_eq!(request.travels(None), Egress::Any);
        request.rights = Arc::new(Rights {
            egress: Egress::Local,
            ..Rights::default()
        });
        assert_eq!(request.travels(Some(Egress::Any)), Egress::Local);
    }
}
