//! The answer to a call, on its way to the caller.
//!
//! A message that cannot be read is the caller's error. tonic calls it INTERNAL, as it calls every error of its own, and gives it
//! no details; every INTERNAL of the broker has details (`postern_proto::status`). So an INTERNAL without details becomes
//! INVALID_ARGUMENT here, for every RPC, and for a stream wherever the message stands in it. The words of every status that is not the
//! broker's own are cut, as they may repeat what was sent.
//!
//! The answer also keeps the place of its call until the caller has taken it, so that a principal that reads no answers has no
//! more of them than it may have calls.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use postern_core::text::clipped;
use postern_proto::status::plain;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::limits::CallPlace;

/// The characters of tonic's words on a message that it cannot read.
const MAX_WORDS: usize = 160;

/// The body of an answer.
pub(super) struct Answer {
    inner: Body,
    _place: Option<CallPlace>,
}

impl Answer {
    /// Puts this before an answer, whose status may be in its headers.
    pub(super) fn over(mut answer: Response<Body>, place: Option<CallPlace>) -> Response<Body> {
        judge_foreign(answer.headers_mut());
        answer.map(|inner| Body::new(Self { inner, _place: place }))
    }
}

/// Replaces a status that is not the broker's own.
fn judge_foreign(headers: &mut HeaderMap) {
    let Some(status) = Status::from_header_map(headers) else { return };
    if status.code() == Code::Ok || !status.details().is_empty() {
        return;
    }
    let words = clipped(status.message(), MAX_WORDS);
    let cut = if status.code() == Code::Internal {
        let message =
            format!("the request cannot be read: {words}; send one that fits the protocol of postern.v1");
        plain(Code::InvalidArgument, "MALFORMED_MESSAGE", message)
    } else {
        Status::new(status.code(), words)
    };
    headers.remove("grpc-status");
    headers.remove("grpc-message");
    // The new parts are text that a header may hold.
    let _ = cut.add_header(headers);
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut polled = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            judge_foreign(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(status: &Status) -> Status {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        judge_foreign(&mut headers);
        Status::from_header_map(&headers).unwrap()
    }

    #[test]
    fn a_message_that_cannot_be_read_is_an_invalid_argument_and_an_error_of_the_broker_stays() {
        let malformed = named(&Status::internal(format!("invalid wire type {}", "x".repeat(10_000))));
        assert_eq!(malformed.code(), Code::InvalidArgument);
        assert!(malformed.message().contains("invalid wire type") && malformed.message().len() < 400);
        let own = named(&plain(Code::Internal, "SIGNING_FAILED", "the broker could not sign"));
        assert_eq!((own.code(), own.message()), (Code::Internal, "the broker could not sign"));
        let foreign = named(&Status::not_found("x".repeat(10_000)));
        assert!(foreign.code() == Code::NotFound && foreign.message().len() < 200, "{foreign}");
    }
}
