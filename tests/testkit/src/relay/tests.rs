//! Lines to an echo, in each of their states.

use super::*;
use crate::clock::within;
use crate::connections::serve_each;

const A_WHILE: Duration = Duration::from_millis(100);

/// Starts a service that sends every byte back at once, and a relay before it.
async fn echo() -> (Relay, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let echoing = serve_each(listener, |mut stream| async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.ok();
        });
        echoing.await.unwrap();
    });
    let relay = Relay::start("127.0.0.1:0".parse().unwrap(), RelayTarget::Address(address)).await;
    (relay, serving)
}

/// Reports whether a byte comes within a while.
async fn comes(stream: &mut TcpStream) -> bool {
    timeout(A_WHILE, stream.read_u8()).await.is_ok_and(|byte| byte.is_ok())
}

#[tokio::test]
async fn a_line_is_slow_hangs_one_way_and_breaks() {
    let (relay, _serving) = echo().await;
    let mut stream = TcpStream::connect(relay.address()).await.unwrap();
    stream.write_u8(1).await.unwrap();
    assert_eq!(within("the echo", stream.read_u8()).await.unwrap(), 1);

    relay.set(Line::Slow(A_WHILE));
    stream.write_u8(2).await.unwrap();
    assert!(!comes(&mut stream).await, "a slow line delivers late");
    assert_eq!(within("the echo", stream.read_u8()).await.unwrap(), 2);

    for line in [Line::Hung, Line::OnlyThere, Line::OnlyBack] {
        relay.set(line);
        stream.write_u8(3).await.unwrap();
        assert!(!comes(&mut stream).await, "{line:?}");
        relay.set(Line::Whole);
        assert_eq!(within("the echo", stream.read_u8()).await.unwrap(), 3, "{line:?}");
    }

    relay.set(Line::Cut);
    assert!(within("the end", stream.read_u8()).await.is_err());
}

#[tokio::test]
async fn a_line_with_one_answer_takes_the_next_question_and_keeps_its_answer() {
    let (relay, _serving) = echo().await;
    relay.set(Line::OneAnswer);
    let mut stream = TcpStream::connect(relay.address()).await.unwrap();
    for word in [1, 2] {
        stream.write_u8(word).await.unwrap();
        assert_eq!(within("the echo", stream.read_u8()).await.unwrap(), word, "a few bytes are no question");
    }
    stream.write_all(&[3; 100]).await.unwrap();
    assert!(!comes(&mut stream).await);
    relay.set(Line::Whole);
    assert_eq!(within("the echo", stream.read_u8()).await.unwrap(), 3, "the service had it");
}

#[tokio::test]
async fn a_half_of_a_line_carries_its_direction() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = RelayTarget::Address(listener.local_addr().unwrap());
    let relay = Relay::start("127.0.0.1:0".parse().unwrap(), target).await;
    let mut client = TcpStream::connect(relay.address()).await.unwrap();
    let (mut service, _) = within("the connection", listener.accept()).await.unwrap();
    for line in [Line::OnlyThere, Line::OnlyBack] {
        relay.set(line);
        client.write_u8(1).await.unwrap();
        service.write_u8(2).await.unwrap();
        let (through, held) =
            if line == Line::OnlyThere { (&mut service, &mut client) } else { (&mut client, &mut service) };
        within("the byte", through.read_u8()).await.unwrap();
        assert!(!comes(held).await, "{line:?}");
        relay.set(Line::Whole);
        within("the byte that waited", held.read_u8()).await.unwrap();
    }
}
