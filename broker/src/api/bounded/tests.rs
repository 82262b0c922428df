//! The bounds before a service that reads its request to the end, or does not answer at all.

#![allow(clippy::disallowed_methods, reason = "tests start what they need, and wait by tokio's clock")]

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;

use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use proptest::prelude::*;

use super::*;
use crate::testing::counted::Counted;

const ENROLL: &str = "/postern.v1.AgentService/Enroll";
const POLICY: &str = "/postern.v1.PolicyService/PutPolicy";
const REVOKE: &str = "/postern.v1.AccessService/RevokeAccess";
const SESSION: &str = "/postern.v1.AgentService/Session";

/// Reads the request, and answers with the status of what went wrong.
#[derive(Clone)]
struct Reads;

impl Service<Request<Body>> for Reads {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move {
            Ok(match request.into_body().collect().await {
                Ok(_) => Response::new(Body::empty()),
                Err(status) => status.into_http(),
            })
        })
    }
}

/// A body of these chunks, which ends or goes on without a byte.
fn body(chunks: Vec<Vec<u8>>, ends: bool) -> Body {
    let chunks = futures_util::stream::iter(chunks.into_iter().map(Bytes::from));
    let chunks = match ends {
        true => chunks.boxed(),
        false => chunks.chain(futures_util::stream::pending()).boxed(),
    };
    Body::new(http_body_util::StreamBody::new(chunks.map(|chunk| Ok::<_, Status>(Frame::data(chunk)))))
}

fn message(length: u32) -> Vec<u8> {
    [&[0][..], &length.to_be_bytes()].concat()
}

async fn call(path: &str, body: Body, timeout: Option<&str>) -> Result<(), (Code, String)> {
    call_within(Limits::default(), path, body, timeout).await
}

async fn call_within(
    limits: Limits,
    path: &str,
    body: Body,
    timeout: Option<&str>,
) -> Result<(), (Code, String)> {
    let admission = Admission::new(limits);
    let layer = BoundedLayer::new(admission, &[postern_proto::FILE_DESCRIPTOR_SET]).unwrap();
    let mut request = Request::builder().uri(path);
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let mut request = request.body(body).unwrap();
    request
        .extensions_mut()
        .insert(Peer { address: SocketAddr::from(([192, 0, 2, 7], 1)), certificate: None });
    let response = layer.layer(Reads).call(request).await.unwrap();
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err((status.code(), status.message().to_owned())),
        Some(_) | None => Ok(()),
    }
}

#[tokio::test]
async fn i10_a_message_is_refused_by_the_length_that_it_announces() {
    let (counted, limits) = (Counted::here(), Limits::default());
    for (path, most, key) in [
        (ENROLL, limits.anonymous_message, "anonymous_message"),
        (SESSION, limits.agent_message, "agent_message"),
        (REVOKE, limits.small_message, "small_message"),
        (REQUEST_CALLS[0], limits.request_message, "request_message"),
        (POLICY, limits.message, "message"),
    ] {
        let most = u32::try_from(most).unwrap();
        let whole = [message(most), vec![0; most as usize]].concat();
        assert_eq!(call(path, body(vec![whole], true), None).await, Ok(()), "{path}");
        // Five bytes are enough; the broker does not wait for the rest.
        let (code, text) = call(path, body(vec![message(most + 1)], false), None).await.unwrap_err();
        assert_eq!(code, Code::ResourceExhausted);
        assert!(text.contains(&(most + 1).to_string()) && text.contains(key), "{text}");
        let second = [message(1), vec![0], message(u32::MAX)].concat();
        assert!(call(path, body(vec![second], false), None).await.is_err(), "{path}");
        assert_eq!(counted.all()[key], 2);
    }
}

#[tokio::test(start_paused = true)]
async fn i10_a_request_has_to_arrive_in_time_and_a_stream_has_not() {
    let (code, text) = call(ENROLL, body(vec![message(100)], false), None).await.unwrap_err();
    assert_eq!((code, text.contains("receive")), (Code::DeadlineExceeded, true), "{text}");
    let session = call(SESSION, body(vec![message(100)], false), None);
    assert!(tokio::time::timeout(Duration::from_secs(3600), session).await.is_err(), "it is a stream");
}

#[tokio::test(start_paused = true)]
async fn i10_each_deadline_of_a_call_is_counted() {
    let counted = Counted::here();
    let unfinished = || body(vec![message(100)], false);
    let (code, _) = call(ENROLL, unfinished(), None).await.unwrap_err();
    assert_eq!((code, counted.of(Limit::Receive)), (Code::DeadlineExceeded, 1));
    let limits = Limits { receive: Duration::from_secs(300), ..Limits::default() };
    let (code, _) = call_within(limits, ENROLL, unfinished(), None).await.unwrap_err();
    assert_eq!((code, counted.of(Limit::Answer)), (Code::DeadlineExceeded, 1));
}

#[test]
fn i10_only_calls_that_name_many_things_have_large_messages() {
    use crate::api::middleware::permissions::TABLE;
    let limits = Limits::default();
    let of_principals = TABLE.iter().filter(|(_, allow)| matches!(allow, Allow::Roles(_)));
    let large = of_principals.filter(|(path, _)| message_limit(&limits, path).0 > limits.small_message);
    let large: BTreeSet<&str> = large.map(|(path, _)| *path).collect();
    let expected: BTreeSet<&str> = REQUEST_CALLS.into_iter().chain([POLICY_CALL]).collect();
    assert_eq!(large, expected, "each of them is in the table");
}

#[tokio::test(start_paused = true)]
async fn a_caller_may_give_less_time() {
    let began = tokio::time::Instant::now();
    let (code, _) = call(ENROLL, body(Vec::new(), false), Some("250m")).await.unwrap_err();
    assert_eq!((code, began.elapsed().as_millis()), (Code::DeadlineExceeded, 250));
}

#[test]
fn a_timeout_is_digits_and_a_unit() {
    let parse = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        client_timeout(&headers)
    };
    assert_eq!(parse("3S"), Some(Duration::from_secs(3)));
    assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    assert_eq!(parse("5m"), Some(Duration::from_millis(5)));
    for text in ["", "S", "3", "3s", "+3S", "999999999S"] {
        assert_eq!(parse(text), None, "{text:?}");
    }
}

#[test]
fn every_slow_call_exists_and_has_one_answer() {
    let layer = BoundedLayer::new(Admission::new(Limits::default()), &[postern_proto::FILE_DESCRIPTOR_SET]);
    let shapes = layer.unwrap().shapes;
    for path in SLOW_CALLS {
        assert_eq!(shapes.get(path), Some(&Shape::default()), "{path}");
    }
    assert_eq!(shapes.get(SESSION), Some(&Shape { requests: true, answers: true }));
}

proptest! {
    #[test]
    fn framing_is_the_same_regardless_of_where_the_chunks_are_cut(
        lengths in prop::collection::vec(0_usize..40, 0..8),
        cuts in prop::collection::vec(1_usize..12, 0..40),
    ) {
        let bytes: Vec<u8> = lengths
            .iter()
            .flat_map(|length| [message(u32::try_from(*length).unwrap()), vec![7; *length]].concat())
            .collect();
        let mut framing = Framing::new(30);
        let (mut rest, mut outcome) = (&bytes[..], Ok(()));
        for cut in cuts.into_iter().chain(std::iter::repeat(1)) {
            if rest.is_empty() || outcome.is_err() {
                break;
            }
            let (chunk, after) = rest.split_at(cut.min(rest.len()));
            outcome = framing.take(chunk);
            rest = after;
        }
        let expected = lengths.iter().find(|length| **length > 30).map_or(Ok(()), |length| Err(*length));
        prop_assert_eq!(outcome, expected);
    }
}
