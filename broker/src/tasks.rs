//! The only module that spawns. A task of the broker runs as long as the broker: one that ends, fails or panics takes the process
//! down with it, so that no loop can be dead while the broker looks alive.

use std::future::Future;

use tokio::task::JoinSet;

/// The broker's tasks.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Tasks {
    /// Starts a task that must not end.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits until the first task ends, which no task should.
    ///
    /// # Errors
    /// Always: the name of the task, and the reason of its end.
    pub async fn first_end(&mut self) -> anyhow::Error {
        match self.set.join_next().await {
            None => anyhow::anyhow!("no task was started"),
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the task {name} ended"),
            Some(Ok((name, Err(error)))) => error.context(format!("the task {name} failed")),
            Some(Err(panic)) => anyhow::Error::new(panic).context("a task panicked"),
        }
    }
}
