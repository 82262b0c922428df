//! Work that runs to its end although its caller hangs up.
//!
//! hyper drops the future of a call together with its connection. A lockdown that stopped half way would leave some
//! targets locked and some not, without the audit line that ends it (I9). So such a call hands its work to a [`Runner`]
//! and only waits for the result.
//!
//! One future polls all the work ([`runner`] returns it, the server joins it). It ends when the last work is done and every
//! `Runner` is dropped, so that a shutdown waits for work that has begun and begins none. A panic in the work ends the
//! server, as a panic in any task of the broker does.

use std::future::Future;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::FuturesUnordered;
use postern_proto::status::plain;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status};

/// Takes work that must run to its end. Cheap to clone.
#[derive(Clone)]
pub(super) struct Runner {
    queue: mpsc::UnboundedSender<BoxFuture<'static, ()>>,
}

/// Makes a runner, and the future that runs its work: it ends once the last work is done and every runner is dropped.
pub(super) fn runner() -> (Runner, impl Future<Output = ()>) {
    let (queue, taken) = mpsc::unbounded_channel();
    (Runner { queue }, run_all(taken))
}

impl Runner {
    /// Runs the work to its end, and returns its result. A caller that drops this future does not stop the work.
    ///
    /// # Errors
    /// The broker is shutting down and begins no more work.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        // The caller may have hung up; the work is done all the same.
        let work = work.map(|result| drop(answer.send(result)));
        let ending = || plain(Code::Unavailable, "ENDING", "the broker is ending; ask again");
        self.queue.send(work.boxed()).map_err(|_| ending())?;
        answered.await.map_err(|_| ending())
    }
}

async fn run_all(mut taken: mpsc::UnboundedReceiver<BoxFuture<'static, ()>>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            work = taken.recv() => match work {
                Some(work) => running.push(work),
                None => break,
            },
            Some(()) = running.next(), if !running.is_empty() => {}
        }
    }
    while running.next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn work_runs_to_its_end_although_its_caller_hangs_up() {
        let (runner, running) = runner();
        let (go, gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let work = {
            let (go, gone) = (Arc::clone(&go), Arc::clone(&gone));
            async move {
                go.notified().await;
                gone.notify_one();
            }
        };
        let caller = async {
            // Polled once, so that the runner takes the work, then dropped.
            assert!(runner.run(work).now_or_never().is_none());
            assert_eq!(runner.run(async { 7 }).await.unwrap(), 7, "others do not wait for it");
            drop(runner);
            go.notify_one();
        };
        tokio::join!(caller, running);
        assert!(gone.notified().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_broker_that_shuts_down_begins_no_work() {
        let (runner, running) = runner();
        drop(running);
        assert_eq!(runner.run(async {}).await.unwrap_err().code(), Code::Unavailable);
    }
}
