//! A span for each call: log lines of the call carry its RPC and its caller, and the trace has its code.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use postern_core::text::{MAX_REPEATED, clipped};
use tonic::Code;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field};

use crate::api::peer::Peer;

/// Puts a span around each call.
#[derive(Debug, Clone)]
pub(in crate::api) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;
    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner }
    }
}

/// A service with a span around each call.
#[derive(Debug, Clone)]
pub(in crate::api) struct Trace<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Trace<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let span = span(&request);
        let call = span.in_scope(|| self.inner.call(request));
        Box::pin(
            async move {
                let answer = call.await;
                if let Ok(response) = &answer {
                    Span::current().record("code", field::debug(code(response)));
                }
                answer
            }
            .instrument(span),
        )
    }
}

fn span(request: &Request<Body>) -> Span {
    // The authentication records the caller.
    // A path that is in no table may be as long as a request's headers.
    let (rpc, empty) = (clipped(request.uri().path(), MAX_REPEATED), field::Empty);
    let span = tracing::info_span!("rpc", rpc, caller = empty, code = empty);
    // The sender of a trace decides whether it is sent: a stranger must not decide that for every call.
    if request.extensions().get::<Peer>().is_some_and(|peer| peer.certificate.is_some()) {
        crate::traces::continues(&span, request.headers());
    }
    span
}

/// Returns the code of an answer. An error has it in its headers; a stream that begins is no error yet.
fn code(response: &Response<Body>) -> Code {
    response.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use postern_proto::status::plain;

    use super::*;

    #[test]
    fn the_code_of_an_error_is_in_its_headers() {
        assert_eq!(code(&Response::new(Body::empty())), Code::Ok);
        assert_eq!(code(&plain(Code::NotFound, "NOT_FOUND", "none").into_http()), Code::NotFound);
    }
}
