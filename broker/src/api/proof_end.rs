//! The end of a stream at the end of its caller's proof.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::sleep;
use tonic::Status;

use super::authentication::{Authenticated, REVOKED};
use crate::clock::wall;
use crate::principals::Revocations;

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Ends a stream of answers, with the refusal that the caller's next call would get, when the caller's proof ends or is revoked
/// (I7). The caller shows a new proof and begins the stream again.
pub(super) fn until_proof_ends<T: 'static>(
    caller: Option<&Arc<Authenticated>>,
    revocations: &Arc<Revocations>,
    answers: Answers<T>,
) -> Answers<T> {
    let Some(caller) = caller.cloned() else { return answers };
    let revocations = Arc::clone(revocations);
    let end = Box::pin(async move {
        let left = Duration::try_from(caller.not_after.duration_since(wall())).unwrap_or_default();
        tokio::select! {
            () = sleep(left) => caller.when_expired.to_status(),
            () = caller.until_revoked(&revocations) => REVOKED.to_status(),
        }
    });
    Box::pin(stream::unfold(Some((answers, end)), |state| async move {
        let (mut answers, mut end) = state?;
        tokio::select! {
            biased;
            status = &mut end => Some((Err(status), None)),
            answer = answers.next() => answer.map(|answer| (answer, Some((answers, end)))),
        }
    }))
}
