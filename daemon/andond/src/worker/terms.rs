//! What a reload changes of how requests are answered: limits, sampling where nobody says otherwise, tasks.
//!
//! Invariant: a request is answered by the terms that it was taken under, whatever is reloaded while it waits or runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::Shared;
use super::admit::scheduling;
use crate::config::task::TaskConfig;
use crate::config::{Config, Problems};
use crate::task::Tasks;

/// The terms of a moment.
#[derive(Debug)]
pub(super) struct Terms {
    /// The configuration in force then. What needs a restart is in the worker's own.
    pub(super) config: Arc<Config>,
    /// Those that can be asked.
    tasks: Tasks,
    /// Whether those are among them that come with the model.
    is_complete: bool,
}

impl Terms {
    /// The tasks that can be asked: while the model is being loaded, those of the configuration.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// All tasks, once the model is there that answers them.
    pub(super) fn all_tasks(&self) -> Option<&Tasks> {
        self.is_complete.then_some(&self.tasks)
    }
}

/// The terms now.
#[derive(Debug)]
pub(super) struct InForce {
    terms: Mutex<Arc<Terms>>,
    /// The tasks that come with the model, once it is there.
    bundled: OnceLock<BTreeMap<String, TaskConfig>>,
}

impl InForce {
    /// Those that a worker begins with.
    pub(super) fn new(config: Arc<Config>) -> InForce {
        // The configuration's check lets no other tasks through.
        let tasks = Tasks::new(&config.task).unwrap_or_default();
        let terms = Terms {
            config,
            tasks,
            is_complete: false,
        };
        InForce {
            terms: Mutex::new(Arc::new(terms)),
            bundled: OnceLock::new(),
        }
    }

    fn locked(&self) -> MutexGuard<'_, Arc<Terms>> {
        // They are replaced as a whole.
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The terms now.
    pub(super) fn get(&self) -> Arc<Terms> {
        Arc::clone(&self.locked())
    }

    /// The model is there, and with it tasks of its own. Those of the configuration win.
    pub(super) fn complete(&self, bundled: BTreeMap<String, TaskConfig>) -> Result<(), Problems> {
        let mut terms = self.locked();
        let bundled = self.bundled.get_or_init(|| bundled);
        *terms = Arc::new(complete(&terms.config, bundled)?);
        Ok(())
    }

    fn replace(&self, config: &Arc<Config>) -> Result<(), Problems> {
        let mut terms = self.locked();
        *terms = Arc::new(match self.bundled.get() {
            Some(bundled) => complete(config, bundled)?,
            None => Terms {
                tasks: Tasks::new(&config.task)?,
                config: Arc::clone(config),
                is_complete: false,
            },
        });
        Ok(())
    }
}

fn complete(
    config: &Arc<Config>,
    bundled: &BTreeMap<String, TaskConfig>,
) -> Result<Terms, Problems> {
    let mut tasks = bundled.clone();
    tasks.extend(config.task.clone());
    Ok(Terms {
        config: Arc::clone(config),
        tasks: Tasks::new(&tasks)?,
        is_complete: true,
    })
}

impl Shared {
    /// Goes by another configuration in what is taken from now on. It has been checked.
    pub(super) fn reloaded(&self, config: &Arc<Config>) {
        if let Err(problems) = self.in_force.replace(config) {
            // Its tasks were compiled when it was checked, and the model's when it was loaded.
            crate::event!(Internal, error = %problems, "the worker goes by the former configuration");
            return;
        }
        let scheduling = scheduling(config);
        let scheduler = &mut self.board().scheduler;
        scheduler.set_bounds(scheduling.bounds, scheduling.rates);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(tasks: &[(&str, &str)]) -> Arc<Config> {
        Arc::new(Config {
            task: self::tasks(tasks),
            ..Config::default()
        })
    }

    fn tasks(tasks: &[(&str, &str)]) -> BTreeMap<String, TaskConfig> {
        let task = |text: &str| TaskConfig {
            instructions: text.to_owned(),
            ..TaskConfig::default()
        };
        let named = |(name, text): &(&str, &str)| ((*name).to_owned(), task(text));
        tasks.iter().map(named).collect()
    }

    fn text(terms: &Terms, task: &str) -> Option<String> {
        let resolved = terms.tasks().resolve(task, &serde_json::json!({}));
        let messages = resolved.ok()?.messages;
        Some(messages.last()?.content.clone())
    }

    #[test]
    fn what_was_taken_keeps_its_tasks_and_the_models_own_stay() {
        let in_force = InForce::new(config(&[("a", "old")]));
        assert!(in_force.get().all_tasks().is_none());
        in_force
            .complete(tasks(&[("a", "own"), ("b", "own")]))
            .expect("in order");
        let before = in_force.get();
        in_force
            .replace(&config(&[("c", "new")]))
            .expect("in order");
        let after = in_force.get();
        assert_eq!(text(&before, "a").as_deref(), Some("old"));
        assert_eq!(text(&before, "c"), None);
        // Named by the configuration no more, it is the model's again.
        assert_eq!(text(&after, "a").as_deref(), Some("own"));
        assert_eq!(text(&after, "b").as_deref(), Some("own"));
        assert_eq!(text(&after, "c").as_deref(), Some("new"));
    }

    #[test]
    fn a_reload_before_the_model_is_there_holds_when_it_is() {
        let in_force = InForce::new(config(&[("a", "old")]));
        in_force
            .replace(&config(&[("a", "new")]))
            .expect("in order");
        assert_eq!(text(&in_force.get(), "a").as_deref(), Some("new"));
        assert!(in_force.get().all_tasks().is_none());
        in_force.complete(BTreeMap::new()).expect("in order");
        let terms = in_force.get();
        assert!(terms.all_tasks().is_some_and(|tasks| tasks.contains("a")));
        assert_eq!(text(&terms, "a").as_deref(), Some("new"));
    }
}
