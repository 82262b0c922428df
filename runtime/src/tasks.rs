//! The owner of the tasks and threads of a program.
//!
//! Every one must run for as long as the program: if one ends, fails or panics, the process ends, and the service manager starts it
//! again. So no loop can be dead while the program looks alive. Shorter work belongs to the task that waits for it, or where it must
//! not stop with that task, to [`run_to_end`].

use std::future::Future;
use std::io;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// The tasks and threads of a program.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Tasks {
    /// Starts a task that must not end.
    #[expect(clippy::disallowed_methods, reason = "the one place that starts tasks")]
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Starts a thread that must not end, for work that blocks.
    ///
    /// # Errors
    /// The system cannot start another thread.
    #[expect(clippy::disallowed_methods, reason = "the one place that starts threads")]
    pub fn spawn_thread(
        &mut self,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let (ended, end) = oneshot::channel::<()>();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Dropped when the work ends, by a panic too.
            let _ended = ended;
            work();
        })?;
        self.spawn(name, async move {
            let _ = end.await;
            Ok(())
        });
        Ok(())
    }

    /// Waits until the first task or thread ends, which none should.
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

/// Starts work that ends by itself, and that must not stop half way where the caller that asked for it hangs up. The work sends its
/// result over a channel, and a panic drops the channel: its caller hears of either end.
#[expect(clippy::disallowed_methods, reason = "the one place that starts tasks")]
pub fn run_to_end(work: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(work));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_any_task_or_thread_is_noticed() {
        let mut tasks = Tasks::default();
        tasks.spawn("endless", std::future::pending());
        tasks.spawn_thread("worker", || panic!("for the test")).unwrap();
        assert_eq!(tasks.first_end().await.to_string(), "the task worker ended");

        tasks.spawn("failing", async { Err(anyhow::anyhow!("broken")) });
        assert_eq!(format!("{:#}", tasks.first_end().await), "the task failing failed: broken");
    }
}
