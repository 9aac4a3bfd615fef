//! Places for connections: as many as the configuration in force says.
//!
//! Invariant: nobody takes a place while as many are taken as there may be. Where a reload makes them fewer, connections that
//! are open stay, and there is no place until enough of them have ended.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{Config, Current};

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    taken: Arc<watch::Sender<usize>>,
    config: Current,
    most: fn(&Config) -> usize,
}

/// One of them; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<watch::Sender<usize>>);

impl Places {
    /// As many as `most` finds in the configuration.
    pub(super) fn new(config: Current, most: fn(&Config) -> usize) -> Places {
        Places {
            taken: Arc::new(watch::Sender::new(0)),
            config,
            most,
        }
    }

    /// Waits for a place. Cancel safe.
    pub(super) async fn take(&self) -> Place {
        let mut freed = self.taken.subscribe();
        let mut reloaded = self.config.watch();
        loop {
            let most = (self.most)(&self.config.get());
            let mut is_free = false;
            self.taken.send_if_modified(|taken| {
                is_free = *taken < most;
                *taken += usize::from(is_free);
                is_free
            });
            if is_free {
                return Place(Arc::clone(&self.taken));
            }
            // Both senders live as long as this.
            tokio::select! {
                _ = freed.changed() => {}
                _ = reloaded.changed() => {}
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.send_modify(|taken| *taken -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn config(most: usize) -> Arc<Config> {
        let mut config = Config::default();
        config.wire.connections_max = most;
        Arc::new(config)
    }

    #[tokio::test]
    async fn there_are_as_many_as_the_configuration_in_force_says() {
        let current = Current::new(config(1));
        let places = Places::new(current.clone(), |config| config.wire.connections_max);
        let brief = Duration::from_millis(20);
        let first = places.take().await;
        assert!(timeout(brief, places.take()).await.is_err());
        // Whoever waits gets the place that a reload makes.
        let (second, ()) = tokio::join!(places.take(), async {
            tokio::task::yield_now().await;
            current.replace(config(2));
        });
        current.replace(config(1));
        drop(first);
        assert!(timeout(brief, places.take()).await.is_err());
        drop(second);
        assert!(timeout(brief, places.take()).await.is_ok());
    }
}
