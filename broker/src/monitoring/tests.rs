//! The answers of the port, and the bounds that a peer meets.

#![allow(clippy::disallowed_methods, reason = "tests start what they need, and wait by tokio's clock")]

use std::pin::pin;

use axum::body::to_bytes;
use http::{Method, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::*;
use crate::signals::parts::{ENDING, RECONCILER, STORE};

fn shown() -> MonitoringState {
    MonitoringState {
        metrics: telemetry::recorder().unwrap().handle(),
        readiness: Readiness::default(),
        rounds: Arc::default(),
    }
}

async fn ask(shown: &MonitoringState, method: Method, path: &str) -> Response<Body> {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    router(shown.clone()).oneshot(request).await.unwrap()
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().into()).unwrap()
}

async fn get(shown: &MonitoringState, path: &str) -> (u16, String) {
    let response = ask(shown, Method::GET, path).await;
    (response.status().as_u16(), text(response).await)
}

#[tokio::test]
async fn liveness_is_that_the_reconciler_goes_round() {
    let shown = shown();
    let reconciler = shown.rounds.reporter(Task::Reconciler, None, boottime());
    assert_eq!(get(&shown, "/livez").await, (503, "reconciler: it has not gone round yet\n".into()));
    reconciler.succeeded(boottime());
    assert_eq!(get(&shown, "/livez").await, (200, "alive\n".into()));
    reconciler.succeeded(boottime() - Duration::from_secs(31));
    assert_eq!(get(&shown, "/livez").await, (503, "reconciler: it has not gone round for 31 s\n".into()));
}

#[tokio::test]
async fn readiness_is_that_no_part_has_a_reason_and_shows_each() {
    let shown = shown();
    let (code, body) = get(&shown, "/readyz").await;
    assert!(code == 503 && body.contains("store: ") && body.contains("reconciler: "), "{body}");
    shown.readiness.clear(STORE);
    shown.readiness.clear(RECONCILER);
    assert_eq!(get(&shown, "/readyz").await, (200, "ready\n".into()));
    shown.readiness.set(ENDING, "the broker is ending");
    assert_eq!(get(&shown, "/readyz").await, (503, "ending: the broker is ending\n".into()));
}

#[tokio::test]
async fn nothing_else_is_there_and_nothing_can_be_changed() {
    let shown = shown();
    for path in ["/", "/metrics/", "/livez/more"] {
        let expected = (404, "here are /metrics, /livez and /readyz\n".to_owned());
        assert_eq!(get(&shown, path).await, expected, "{path}");
    }
    for path in ["/metrics", "/livez", "/readyz", "/"] {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE] {
            let response = ask(&shown, method, path).await;
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert_eq!(response.headers()[ALLOW], "GET, HEAD");
            assert_eq!(text(response).await, "use GET\n");
        }
    }
}

#[tokio::test]
async fn head_is_get_without_the_body_and_every_answer_is_plain_text() {
    let shown = shown();
    for (path, content_type) in [
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/livez", "text/plain; charset=utf-8"),
        ("/readyz", "text/plain; charset=utf-8"),
        ("/", "text/plain; charset=utf-8"),
    ] {
        let (got, head) = (ask(&shown, Method::GET, path).await, ask(&shown, Method::HEAD, path).await);
        assert_eq!((head.status(), head.headers()), (got.status(), got.headers()), "{path}");
        assert_eq!(head.headers()[CONTENT_TYPE], content_type, "{path}");
        assert_eq!(text(head).await, "", "{path}");
    }
    let refused = ask(&shown, Method::POST, "/metrics").await;
    assert_eq!(refused.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
}

/// Serves one connection that holds so many bytes in each direction, and returns the time that it lasted.
async fn served<F: Future<Output = ()>>(buffer: usize, peer: impl FnOnce(DuplexStream) -> F) -> Duration {
    let began = Instant::now();
    let (stream, served) = duplex(buffer);
    let served = async {
        connection(served, router(shown())).await;
        began.elapsed()
    };
    tokio::join!(served, peer(stream)).0
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_ends_is_cut_at_its_deadline() {
    let lasted = served(1024, async |mut stream| {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a").await.unwrap();
        while stream.write_all(b"a").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    assert!(lasted >= READ_TIMEOUT && lasted < READ_TIMEOUT * 2, "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_not_awaited() {
    let lasted = served(1024, async |mut stream| {
        stream.write_all(b"POST /metrics HTTP/1.1\r\ncontent-length: 1000000000\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.ends_with("use GET\n"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    });
    assert!(lasted.await < READ_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_is_closed_after_its_last_answer() {
    let lasted = served(1024, async |mut stream| {
        let mut answers = String::new();
        for _ in 0..2 {
            sleep(READ_TIMEOUT / 2).await;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        }
        stream.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers.matches("HTTP/1.1 404 ").count(), 2, "{answers}");
    })
    .await;
    assert!(lasted >= READ_TIMEOUT * 2 && lasted < READ_TIMEOUT * 3, "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_slow_is_cut_at_the_age_of_the_connection() {
    let lasted = served(64, async |mut stream| {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        // The buffer holds less than the answer's head, so the answer is never written to its end.
        while stream.read_u8().await.is_ok() {
            sleep(MAX_AGE / 10).await;
        }
    })
    .await;
    assert!(lasted >= MAX_AGE && lasted < MAX_AGE + READ_TIMEOUT, "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_head_of_half_a_megabyte_is_refused() {
    let lasted = served(1024 * 1024, async |mut stream| {
        let head = format!("GET /metrics HTTP/1.1\r\nx: {}", "a".repeat(512 * 1024));
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    });
    assert!(lasted.await < READ_TIMEOUT);
}

#[tokio::test]
async fn a_further_connection_closes_the_oldest_alone() {
    async fn answered(stream: &mut TcpStream) {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"/readyz\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
    }
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shown = shown();
    let reporter = shown.rounds.reporter(Task::Metrics, Some(UPKEEP_INTERVAL), boottime());
    let mut peers = pin!(async {
        let mut connected = Vec::new();
        // The last is one too many.
        for _ in 0..=MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            answered(&mut stream).await;
            connected.push(stream);
        }
        let mut rest = Vec::new();
        // Reading ends: with the end of the stream, or with a reset.
        connected[0].read_to_end(&mut rest).await.ok();
        answered(&mut connected[1]).await;
    });
    tokio::select! {
        () = &mut peers => {}
        result = serve(listener, shown, reporter) => panic!("the port is not served any more: {result:?}"),
    }
}
