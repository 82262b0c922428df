//! The limits, each by itself.

use std::io;

use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_proto::v1::policy_service_client::PolicyServiceClient;
use postern_proto::v1::session_request;
use postern_tests::attack::Attack;
use postern_tests::clock::monotonic;
use postern_tests::stranger::{
    END_HEADERS, END_STREAM, ENROLL, Frame, Frames, Stranger, WATCH, frame, grpc, headers, kind, whole_call,
};
use postern_tests::{FakeAgent, Refusal, STEP_TIMEOUT, a_policy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::*;

const CHECK: &str = "/grpc.health.v1.Health/Check";
/// HTTP/2's code of a stream that was refused (RFC 9113, section 7).
const REFUSED_STREAM: &[u8] = &[0, 0, 0, 7];
/// The parameter MAX_CONCURRENT_STREAMS of SETTINGS.
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// Runs a peer's side to its end.
fn run<T: Send + 'static>(
    limited: &Limited,
    peer: impl Future<Output = io::Result<T>> + Send + 'static,
) -> T {
    let peer = async { timeout(STEP_TIMEOUT, peer).await.expect("the broker acts in time") };
    limited.net.mallory.netns().run(peer).expect("the connection holds")
}

/// Waits until the broker ends a connection.
fn ends(limited: &Limited, peer: impl Future<Output = io::Result<Frames>> + Send + 'static) {
    run(limited, async { Ok(peer.await?.until_end().await) });
}

/// Has a health check answered on a connection.
async fn answers(frames: &mut Frames, stream: u32) -> io::Result<Frame> {
    frames.send(&whole_call(stream, CHECK, &[])).await?;
    frames.until(|frame| frame.stream == stream && frame.kind == kind::DATA).await
}

/// Returns the number of streams at once that the broker's first settings allow.
async fn streams(mut frames: Frames) -> io::Result<u32> {
    let settings = frames.until(|frame| frame.kind == kind::SETTINGS).await?.payload;
    let parameter = settings.chunks_exact(6).find(|p| p[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes());
    Ok(parameter.map_or(u32::MAX, |p| u32::from_be_bytes(p[2..].try_into().unwrap())))
}

#[test]
fn i10_each_class_of_peer_has_its_number_of_streams() {
    let limited = Limited::with("anonymous_streams = 3\nagent_streams = 5\nstreams = 7\n");
    let admin = limited.broker.admin(&limited.net.hub);
    let token = admin.join_token(VM, None).unwrap();
    let agent = limited.path("agent");
    FakeAgent::enroll(&limited.net.vm, limited.broker.url(), &token, &agent).unwrap();
    for (peer, expected) in
        [(limited.stranger(), 3), (limited.stranger().known_by(&agent), 5), (limited.principal("rita"), 7)]
    {
        assert_eq!(run(&limited, async move { streams(peer.http2().await?).await }), expected);
    }
    let stranger = limited.stranger();
    run(&limited, async move {
        let mut frames = stranger.http2().await?;
        for stream in [1, 3, 5, 7] {
            frames.send(&whole_call(stream, WATCH, &[])).await?;
        }
        let refused = frames.until(|frame| frame.kind == kind::RESET).await?;
        assert_eq!((refused.stream, &refused.payload[..]), (7, REFUSED_STREAM));
        Ok(())
    });
}

#[test]
fn i10_a_message_that_is_too_large_is_refused_and_the_answer_names_the_limit() {
    let limited = Limited::with("anonymous_message = 4096\nmessage = 65536\n");
    let stranger = limited.stranger();
    let enrolled = limited.net.mallory.netns().run(async move {
        let request = v1::EnrollRequest { token: "x".repeat(5_000), csr: Vec::new() };
        AgentServiceClient::new(stranger.channel()).enroll(request).await.unwrap_err()
    });
    assert!(enrolled.message().contains("anonymous_message"), "{enrolled}");
    let refusal = Refusal::from(enrolled);
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    let admin = limited.broker.admin(&limited.net.hub);
    let policy = v1::Policy { requesters: vec!["x".repeat(70_000)], ..a_policy().on(VM).wire() };
    let put = admin.run(|channel| async move {
        let request = v1::PutPolicyRequest { policy: Some(policy) };
        PolicyServiceClient::new(channel).put_policy(request).await.unwrap_err()
    });
    assert!(put.code() == Code::ResourceExhausted && put.message().contains("[limits] message"), "{put}");
    assert!(admin.put_policy(a_policy().on(VM).port("tcp/22").wire()).is_ok(), "the connection goes on");
}

#[test]
fn i10_a_peer_has_to_send_its_first_byte_and_complete_its_handshake_in_time() {
    let mut limited = Limited::with("first_byte = \"1s\"\nhandshake = \"1s\"\npreface = \"1s\"\n");
    for (limit, bytes) in [("first_byte", &[][..]), ("handshake", &[0x16, 3, 1])] {
        let stranger = limited.stranger();
        run(&limited, async move {
            let mut tcp = stranger.tcp().await?;
            tcp.write_all(bytes).await?;
            assert_eq!(tcp.read(&mut [0; 1]).await?, 0);
            Ok(())
        });
        limited.wait_for_limit(limit);
    }
    // A byte at a time is no way around it, with a certificate neither.
    for peer in [limited.stranger(), limited.principal("rita")] {
        let began = monotonic();
        run(&limited, async move {
            let mut tls = peer.tls().await?;
            for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
                if tls.write_all(&[*byte]).await.is_err() {
                    return Ok(());
                }
                sleep(Duration::from_millis(200)).await;
            }
            // An end is all that is waited for, in whatever way it comes.
            let _ = tls.read_to_end(&mut Vec::new()).await;
            Ok(())
        });
        assert!(began.elapsed() < STEP_TIMEOUT);
    }
    limited.wait_for_limit("preface");
}

#[test]
fn i10_a_request_that_does_not_arrive_is_answered_and_its_connection_goes_on() {
    let mut limited = Limited::with("receive = \"1s\"\n");
    let stranger = limited.stranger();
    run(&limited, async move {
        let mut frames = stranger.http2().await?;
        frames.send(&frame(kind::HEADERS, END_HEADERS, 1, &headers(ENROLL))).await?;
        frames.send(&frame(kind::DATA, 0, 1, &grpc(&[0; 100])[..50])).await?;
        let answer = frames.until(|frame| frame.stream == 1).await?;
        assert_eq!((answer.kind, answer.flags & END_STREAM), (kind::HEADERS, END_STREAM));
        answers(&mut frames, 3).await
    });
    limited.wait_for_limit("receive");
}

#[test]
fn i10_an_address_has_its_share_of_connections_and_a_listed_balancer_has_none() {
    let mut limited = Limited::with("anonymous_per_address = 2\n");
    let (stranger, known) = (limited.stranger(), limited.principal("rita"));
    run(&limited, async move {
        let mut certified = Vec::new();
        for _ in 0..3 {
            certified.push(known.http2().await?);
        }
        let mut first = stranger.http2().await?;
        answers(&mut first, 1).await?;
        let mut later = [stranger.http2().await?, stranger.http2().await?];
        for frames in later.iter_mut().chain(&mut certified) {
            answers(frames, 1).await?;
        }
        first.until_end().await;
        for frames in later.iter_mut().chain(&mut certified) {
            answers(frames, 3).await?;
        }
        Ok(())
    });
    limited.wait_for_limit("anonymous_per_address");

    let limited = Limited::with("anonymous_per_address = 2\nload_balancers = [\"192.0.2.30\"]\n");
    let stranger = limited.stranger();
    run(&limited, async move {
        let mut all = Vec::new();
        for _ in 0..6 {
            all.push(stranger.http2().await?);
        }
        for stream in [1, 3] {
            for frames in &mut all {
                answers(frames, stream).await?;
            }
        }
        Ok(())
    });
}

#[test]
fn i10_a_connection_without_a_certificate_ends_at_its_age_and_others_do_not() {
    let limited = Limited::with("anonymous_age = \"5s\"\n");
    let (quiet, watching, known) = (limited.stranger(), limited.stranger(), limited.principal("rita"));
    let known = run(&limited, async move { known.http2().await });
    run(&limited, async move {
        let mut frames = quiet.http2().await?;
        answers(&mut frames, 1).await?;
        let seen = frames.until_end().await;
        assert!(seen.iter().any(|frame| frame.kind == kind::GOAWAY), "{seen:?}");
        Ok(())
    });
    // A call that never ends does not keep it.
    ends(&limited, async move {
        let mut frames = watching.http2().await?;
        frames.send(&whole_call(1, WATCH, &[])).await?;
        Ok(frames)
    });
    run(&limited, async move {
        let mut known = known;
        answers(&mut known, 1).await
    });
}

#[test]
fn i10_a_connection_without_a_certificate_sends_its_share_of_bytes_and_no_more() {
    let mut limited = Limited::with("anonymous_bytes = 65536\n");
    let (stranger, known) = (limited.stranger(), limited.principal("rita"));
    // Frames that are no calls have no other bound: 14 bytes each, four times the share.
    let flood = |from: Stranger| async move {
        let mut frames = from.http2().await?;
        answers(&mut frames, 1).await?;
        let batch = frame(kind::PRIORITY, 0, 3, &[0, 0, 0, 0, 15]).repeat(1_024);
        let mut sent = 0;
        while sent < 19 && frames.send(&batch).await.is_ok() {
            sent += 1;
        }
        io::Result::Ok(frames)
    };
    run(&limited, async move {
        let seen = flood(stranger).await?.until_end().await;
        assert!(seen.iter().all(|frame| frame.kind != kind::DATA), "{seen:?}");
        Ok(())
    });
    limited.wait_for_limit("anonymous_bytes");
    run(&limited, async move { answers(&mut flood(known).await?, 3).await });
}

#[test]
fn i10_agents_keep_their_share_while_strangers_want_every_connection() {
    let limits = "connections = 64\nhandshakes = 8\nanonymous = 8\npeople = 8\nadministrators = 8\n\
                  handshakes_per_address = 8\n";
    let limited = Limited::with(limits);
    let admin = limited.broker.admin(&limited.net.hub);
    let mut token = admin.join_token(VM, None).unwrap();
    let strangers = from_addresses(&limited.broker, &limited.net.mallory, &limited.net.hub, 50);
    // The handshakes of the second attack crowd out those of the first, so that one has all that it can get before.
    let idle = Attack::Idle.start(&strangers);
    wait_until("strangers to have every seat", SENT, || idle.sent() > 16);
    let silent = Attack::Silent.start(&strangers);
    wait_until("strangers to have every handshake", SENT, || silent.sent() > 16);
    // An agent that has no certificate yet is a stranger like these, and so is tried again as the real one does.
    let url = limited.broker.url();
    let identity = limited.path("agent");
    let mut agent = None;
    wait_until("an agent to enrol", SENT, || {
        match FakeAgent::enroll(&limited.net.vm, url, &token, &identity) {
            Ok(enrolled) => agent = Some(enrolled),
            // The broker enrolled it before, and the answer went with the connection: a token is good once.
            Err(refused) if refused.code() == Code::Unauthenticated => {
                token = admin.join_token(VM, None).unwrap();
            }
            Err(_) => {}
        }
        agent.is_some()
    });
    let mut session = None;
    wait_until("its session", STEP_TIMEOUT, || {
        session = agent.as_ref().and_then(|agent| agent.session().ok());
        session.is_some()
    });
    let desired = session.unwrap().desired();
    assert!(desired.ports.is_empty() && desired.windows.is_empty(), "{desired:?}");
}

#[test]
fn i10_a_principal_that_connects_without_end_closes_only_its_own() {
    let limited = Limited::with("per_principal = 2\n");
    let (rita, admin) = (limited.principal("rita"), limited.stranger());
    let admin = admin.known_by(&limited.broker.admin_identity());
    run(&limited, async move {
        let mut other = admin.http2().await?;
        let mut first = rita.http2().await?;
        answers(&mut first, 1).await?;
        let mut later = [rita.http2().await?, rita.http2().await?];
        first.until_end().await;
        for frames in later.iter_mut().chain([&mut other]) {
            answers(frames, 1).await?;
        }
        Ok(())
    });
}

#[test]
fn i10_an_agent_that_reports_without_end_fills_no_log_and_still_receives_its_state() {
    let limited = Limited::with("denials_per_caller = 60\n");
    let admin = limited.broker.admin(&limited.net.hub);
    admin.put_policy(a_policy().on(VM).port("tcp/22").wire()).unwrap();
    let token = admin.join_token(VM, None).unwrap();
    let agent = FakeAgent::enroll(&limited.net.vm, limited.broker.url(), &token, &limited.path("agent"));
    let session = agent.unwrap().session().unwrap();
    assert_eq!(session.desired().ports.len(), 1);
    let began = monotonic();
    let report = |count: usize| {
        for _ in 0..count {
            let report = v1::Tampering { what: "a rule".to_owned(), ..v1::Tampering::default() };
            session.say(session_request::Message::Tampering(report));
        }
    };
    let recorded = || admin.audited("agent.tampering").len();
    // In small parts: HTTP/2 itself ends a connection with many small frames that are not read.
    for part in 1..=5 {
        report(10);
        wait_until("the first reports", STEP_TIMEOUT, || recorded() >= 10 * part);
    }
    report(30);
    admin.put_policy(a_policy().on(VM).port("tcp/22").port("tcp/80").wire()).unwrap();
    assert_eq!(session.desired().ports.len(), 2, "the session goes on");
    // Sixty in a minute, and one more for each second that has passed.
    let (recorded, passed) = (u64::try_from(recorded()).unwrap(), began.elapsed().as_secs());
    assert!(recorded <= 60 + passed + 1, "{recorded} after {passed} s");
}

#[test]
fn i10_readers_of_metrics_that_do_not_read_silence_no_probe() {
    let (net, dir) = (Net::new(), TempDir::with_prefix("postern-").unwrap());
    let metrics = "metrics_listen = \"0.0.0.0:9464\"\n";
    let mut broker = Broker::init_with(&net.hub, &dir.path().join("broker"), metrics);
    broker.serve();
    let address = (net.hub.v4(), 9464);
    net.mallory.netns().run(async move {
        let mut slow = Vec::new();
        for _ in 0..100 {
            let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            tcp.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").await.unwrap();
            slow.push(tcp);
        }
        let probe = reqwest::get(format!("http://{}:{}/readyz", address.0, address.1));
        assert!(timeout(STEP_TIMEOUT, probe).await.expect("it is answered in time").is_ok());
        drop(slow);
    });
}
