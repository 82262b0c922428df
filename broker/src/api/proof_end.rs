//! The end of a stream at the end of its caller's proof.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::sleep;
use tonic::Status;

use super::authentication::Authenticated;
use crate::clock::wall;

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Ends a stream of answers, with the refusal that the caller's next call would get, when the caller's proof ends (I7). The
/// caller shows a new proof and begins the stream again.
pub(super) fn until_proof_ends<T: 'static>(
    caller: Option<&Arc<Authenticated>>,
    answers: Answers<T>,
) -> Answers<T> {
    let Some(caller) = caller.cloned() else { return answers };
    let left = Duration::try_from(caller.not_after.duration_since(wall())).unwrap_or_default();
    let end = Box::pin(sleep(left));
    Box::pin(stream::unfold(Some((answers, end, caller)), |state| async move {
        let (mut answers, mut end, caller) = state?;
        tokio::select! {
            biased;
            () = &mut end => Some((Err(caller.when_expired.to_status()), None)),
            answer = answers.next() => answer.map(|answer| (answer, Some((answers, end, caller)))),
        }
    }))
}
