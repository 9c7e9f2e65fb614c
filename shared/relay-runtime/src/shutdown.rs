//! Ending in order. The first SIGTERM or SIGINT stops the groups of tasks one after the other (stop taking work,
//! finish, flush); a second one, or the end of the grace time, gives up waiting. A task that ends by itself
//! while the service should run ends the process, as a failure: half a service is worse than none.

use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long an orderly end may take.
pub const GRACE: Duration = Duration::from_secs(25);

/// The end of this process. Cheap to clone.
#[derive(Clone)]
pub struct Shutdown(Arc<Inner>);

struct Inner {
    soft: CancellationToken,
    hard: CancellationToken,
    grace: Duration,
    groups: Mutex<Vec<Group>>,
    last: Mutex<Vec<Group>>,
    failed: OnceLock<TaskFailed>,
}

/// Tasks that stop together. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    name: &'static str,
    tasks: TaskTracker,
    stop: CancellationToken,
    shutdown: Shutdown,
}

/// A task that should have gone on ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{task} ended: {why}")]
pub struct TaskFailed {
    /// Its name.
    pub task: String,
    /// What happened.
    pub why: String,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new(GRACE)
    }
}

impl Shutdown {
    /// With this much time for an orderly end.
    pub fn new(grace: Duration) -> Self {
        let hard = CancellationToken::new();
        let soft = hard.child_token();
        Self(Arc::new(Inner {
            soft,
            hard,
            grace,
            groups: Mutex::default(),
            last: Mutex::default(),
            failed: OnceLock::new(),
        }))
    }

    /// Fires when the end begins.
    pub fn soft(&self) -> CancellationToken {
        self.0.soft.clone()
    }

    /// Fires when waiting is over.
    pub fn hard(&self) -> CancellationToken {
        self.0.hard.clone()
    }

    /// Begins the end.
    pub fn begin(&self) {
        self.0.soft.cancel();
    }

    /// Listens to SIGTERM and SIGINT from now on.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = self.clone();
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = term.recv() => "SIGTERM",
                    _ = int.recv() => "SIGINT",
                    () = shutdown.0.hard.cancelled() => return,
                };
                if shutdown.0.soft.is_cancelled() {
                    tracing::warn!("{name} again: ends at once");
                    shutdown.0.hard.cancel();
                } else {
                    tracing::info!("{name}: ends in order");
                    shutdown.begin();
                }
            }
        });
        Ok(())
    }

    /// A group of tasks. Groups stop in the order in which they were made, each when the one before it is done.
    pub fn group(&self, name: &'static str) -> Group {
        self.new_group(name, &self.0.groups)
    }

    /// A group that stops behind all others, whenever it is made.
    pub fn last_group(&self, name: &'static str) -> Group {
        self.new_group(name, &self.0.last)
    }

    fn new_group(&self, name: &'static str, among: &Mutex<Vec<Group>>) -> Group {
        let group = Group { name, tasks: TaskTracker::new(), stop: self.0.hard.child_token(), shutdown: self.clone() };
        among.lock().unwrap_or_else(PoisonError::into_inner).push(group.clone());
        group
    }

    fn fail(&self, task: String, why: String) {
        tracing::error!("{task} ended: {why}");
        // The first failure is the cause; later ones follow from it.
        drop(self.0.failed.set(TaskFailed { task, why }));
        self.begin();
    }

    /// Waits for the end to begin, then stops the groups. An error names the task whose end caused it.
    pub async fn finish(self) -> Result<(), TaskFailed> {
        self.0.soft.cancelled().await;
        let take =
            |groups: &Mutex<Vec<Group>>| std::mem::take(&mut *groups.lock().unwrap_or_else(PoisonError::into_inner));
        let groups = [take(&self.0.groups), take(&self.0.last)].concat();
        let in_order = async {
            for group in &groups {
                group.stop.cancel();
                group.tasks.close();
                group.tasks.wait().await;
                tracing::debug!("{} stopped", group.name);
            }
        };
        tokio::select! {
            () = in_order => {}
            () = self.0.hard.cancelled() => {}
            () = tokio::time::sleep(self.0.grace) => tracing::warn!("the grace time is over"),
        }
        self.0.hard.cancel();
        for group in groups.iter().filter(|group| !group.tasks.is_empty()) {
            tracing::warn!("{} was left with {} tasks", group.name, group.tasks.len());
        }
        self.0.failed.get().cloned().map_or(Ok(()), Err)
    }
}

impl Group {
    /// Fires when this group's turn to stop has come.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a task that should go on until [`Group::stop`] fires.
    pub fn spawn<F>(&self, task: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_fallible(task, async move {
            future.await;
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// The same for a task that can fail; its error ends the process.
    pub fn spawn_fallible<F, E>(&self, task: &'static str, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let running = self.tasks.spawn(future);
        let (stop, shutdown, name) = (self.stop.clone(), self.shutdown.clone(), self.name);
        self.tasks.spawn(async move {
            let why = match running.await {
                Ok(Ok(())) if stop.is_cancelled() => return,
                Ok(Ok(())) => "it came to an end".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(died) if died.is_panic() => "it panicked".to_owned(),
                Err(_) => return,
            };
            shutdown.fail(format!("{name}/{task}"), why);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn groups_stop_one_after_the_other() {
        let shutdown = Shutdown::default();
        let (log, mut seen) = mpsc::unbounded_channel();
        let last = shutdown.last_group("last");
        for group in [last, shutdown.group("first"), shutdown.group("second")] {
            let (name, log) = (group.name, log.clone());
            let stop = group.stop();
            group.spawn("work", async move {
                stop.cancelled().await;
                log.send(format!("{name} stops")).unwrap();
                tokio::task::yield_now().await;
                log.send(format!("{name} is done")).unwrap();
            });
        }
        drop(log);
        shutdown.begin();
        shutdown.finish().await.unwrap();
        let mut all = Vec::new();
        while let Some(line) = seen.recv().await {
            all.push(line);
        }
        assert_eq!(
            all,
            ["first stops", "first is done", "second stops", "second is done", "last stops", "last is done"]
        );
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_ends_the_process() {
        let panics = Shutdown::default();
        panics.group("g").spawn("t", async { panic!("on purpose") });
        assert_eq!(panics.finish().await.unwrap_err().to_string(), "g/t ended: it panicked");
        let ends = Shutdown::default();
        ends.group("g").spawn("t", async {});
        assert_eq!(ends.finish().await.unwrap_err().why, "it came to an end");
        let fails = Shutdown::default();
        fails.group("g").spawn_fallible("t", async { Err("no more") });
        assert_eq!(fails.finish().await.unwrap_err().why, "no more");
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_time_bounds_the_end() {
        let shutdown = Shutdown::default();
        shutdown.group("g").spawn("stuck", std::future::pending());
        shutdown.begin();
        let hard = shutdown.hard();
        shutdown.finish().await.unwrap();
        assert!(hard.is_cancelled());
    }
}
