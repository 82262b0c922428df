//! The answers to messages that cannot be read, and to texts that are too long.

use super::*;

/// Every RPC of every service that the broker serves, as paths.
fn every_rpc() -> Vec<String> {
    use prost::Message as _;
    let sets = [
        postern_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.iter().flat_map(|set| prost_types::FileDescriptorSet::decode(*set).unwrap().file);
    let paths = files.flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().flat_map(move |service| {
            let prefix = format!("/{package}.{}", service.name());
            service.method.into_iter().map(move |method| format!("{prefix}/{}", method.name()))
        })
    });
    paths.collect()
}

/// The identity that may make a call.
fn who_may(path: &str) -> SpiffeId {
    let is_of_agents = path.ends_with("/Session") || path.ends_with("/Renew");
    if is_of_agents { agent() } else { person(Role::Administrator, "root") }
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_an_invalid_argument_of_every_rpc() {
    let served = Served::with(Limits::default());
    for path in every_rpc() {
        let mut send = served.http2(Some(who_may(&path))).await;
        // A field of a wire type that does not exist, one cut off in its length, and a text that is no UTF-8 in every field.
        let no_text: Vec<u8> = (1..16).flat_map(|field| [field << 3 | 2, 2, 0xc3, 0x28]).collect();
        for message in [&[0x0f][..], &[0x0a, 0x7f, b'x'], &[0xff; 16], &no_text] {
            let status =
                timeout(STEP, call(&mut send, &path, 0, message)).await.expect("it is answered").unwrap();
            // The reflection service, which is tonic's own, ends its stream instead.
            let is_ended = path.contains("ServerReflection") && status.code() == Code::Ok;
            let is_unread = is_ended || (message == no_text && status.code() != Code::Internal);
            assert!(is_unread || status.code() == Code::InvalidArgument, "{path}: {status}");
        }
        assert_ne!(call(&mut send, CHECK, 0, &[]).await.unwrap().code(), Code::InvalidArgument, "{path}");
    }
}

/// Makes a call, and returns its status if it is refused. A stream that begins is not refused.
async fn refusal(
    send: &mut SendRequest<Bytes>,
    path: &str,
    message: &[u8],
) -> Result<Option<Status>, h2::Error> {
    let request = Request::post(format!("https://broker{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    std::future::poll_fn(|context| send.poll_ready(context)).await?;
    let (answer, mut body) = send.send_request(request.body(()).unwrap(), false)?;
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    body.send_data(Bytes::from([&[0], &length[..], message].concat()), true)?;
    let answer = answer.await?;
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return Ok(Some(status));
    }
    let goes_on = ["/Watch", "/WatchGrants", "/TailAudit"].iter().any(|stream| path.ends_with(stream));
    if goes_on {
        return Ok(None);
    }
    let mut body = answer.into_body();
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        body.flow_control().release_capacity(length)?;
    }
    let trailers = body.trailers().await?.unwrap_or_else(HeaderMap::new);
    Ok(Status::from_header_map(&trailers).filter(|status| status.code() != Code::Ok))
}

#[tokio::test]
async fn i10_no_answer_and_no_log_line_repeats_a_long_text() {
    use crate::testing::captured_log::capture_log;
    let limits = Limits { small_message: 65_536, anonymous_message: 65_536, ..Limits::default() };
    let served = Served::with(limits);
    let (logged, _guard) = capture_log(tracing::Level::INFO);
    let most = postern_proto::status::MAX_MESSAGE_CHARS;
    let mut refused = 0;
    for path in every_rpc() {
        let mut send = served.http2(Some(who_may(&path))).await;
        for text in ["x", "host:", "%41#", "\u{202e}"] {
            let text = text.repeat(10_240 / text.len());
            // The text in each field alone.
            for field in 1..8_u8 {
                let low = u8::try_from(text.len() % 128).unwrap() | 0x80;
                let high = u8::try_from(text.len() / 128).unwrap();
                let alone = [&[field << 3 | 2, low, high][..], text.as_bytes()].concat();
                let Ok(status) =
                    timeout(STEP, refusal(&mut send, &path, &alone)).await.expect("it is answered")
                else {
                    send = served.http2(Some(who_may(&path))).await;
                    continue;
                };
                let Some(status) = status else { continue };
                refused += 1;
                assert!(status.message().len() <= most, "{path} {field}: {status}");
                let repeated = longest_run(status.message(), &text);
                assert!(repeated <= 4 * 80, "{path} {field} repeats {repeated} bytes: {status}");
                assert!(status.details().len() <= 4_096, "{path} {field}: {status}");
            }
        }
    }
    assert!(refused > 300, "{refused} calls are refused");
    let log = logged.text();
    let longest = log.lines().max_by_key(|line| line.len()).unwrap_or_default();
    assert!(longest.len() < 2_048, "{longest}");
}

/// The bytes of the longest part of an answer that is made of the text's characters alone.
fn longest_run(answer: &str, text: &str) -> usize {
    let part = &text[..text.char_indices().nth(8).map_or(text.len(), |(end, _)| end)];
    let Some(begin) = answer.find(part) else { return 0 };
    let rest = &answer[begin..];
    rest.char_indices().find(|(_, c)| !text.contains(*c)).map_or(rest.len(), |(end, _)| end)
}
