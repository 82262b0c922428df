//! Runner: calls that are done to their end, also where their caller goes away meanwhile. A call is dropped with its
//! connection; what must not be left half done is done here instead, and the call only waits for it.

use std::future::Future;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::FuturesUnordered;
use postern_proto::status::plain;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status};

/// Takes errands.
#[derive(Clone)]
pub(super) struct Runner {
    queue: mpsc::UnboundedSender<BoxFuture<'static, ()>>,
}

/// A taker of errands, and what does them: it ends once the last is done and every taker is gone. An work that panics
/// takes it down.
pub(super) fn runner() -> (Runner, impl Future<Output = ()>) {
    let (queue, taken) = mpsc::unbounded_channel();
    (Runner { queue }, run_all(taken))
}

impl Runner {
    /// Waits until the work is done.
    ///
    /// # Errors
    /// The broker is ending, and does not begin any more.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        // Whoever waited may be gone; the work was done all the same.
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
    async fn an_errand_is_done_although_its_caller_went_away() {
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
            // Polled once, so that the work is taken, and dropped.
            assert!(runner.run(work).now_or_never().is_none());
            assert_eq!(runner.run(async { 7 }).await.unwrap(), 7, "others do not wait for it");
            drop(runner);
            go.notify_one();
        };
        tokio::join!(caller, running);
        assert!(gone.notified().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_broker_that_ends_begins_nothing() {
        let (runner, running) = runner();
        drop(running);
        assert_eq!(runner.run(async {}).await.unwrap_err().code(), Code::Unavailable);
    }
}
