//! The lines of the harness: that they are cut and hang as a network does.

use std::net::SocketAddr;
use std::time::Duration;

use postern_tests::clock::wait_until;
use postern_tests::redis::Redis;
use postern_tests::{Balancer, Host, Line, Net, Relay, RelayTarget, STEP_TIMEOUT};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const RELAY: &str = "127.0.0.1:6401";
/// The time within which an answer must arrive, if one comes at all, on a machine that is busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Returns Redis's answer to a line; none where there is no connection, an empty one where nothing comes.
fn say(host: &Host, words: &'static str) -> Option<String> {
    host.netns().run(async move {
        let mut stream = TcpStream::connect(RELAY).await.ok()?;
        stream.write_all(words.as_bytes()).await.ok()?;
        let mut answer = [0; 64];
        match timeout(ANSWER_TIMEOUT, stream.read(&mut answer)).await {
            Err(_) => Some(String::new()),
            Ok(Ok(length)) if length > 0 => Some(String::from_utf8_lossy(&answer[..length]).into_owned()),
            Ok(_) => None,
        }
    })
}

#[test]
fn a_cut_line_breaks_and_refuses_and_a_hung_one_delivers_late() {
    let net = Net::new();
    let redis = Redis::start(&net.hub);
    let target = RelayTarget::Socket(redis.socket());
    let relay = net.hub.netns().run(Relay::start(RELAY.parse().unwrap(), target));
    assert_eq!(say(&net.hub, "SET key 1\r\n").as_deref(), Some("+OK\r\n"));

    let mut open = net.hub.netns().run(TcpStream::connect(RELAY)).unwrap();
    relay.set(Line::Cut);
    let ended = net.hub.netns().run(async move { timeout(ANSWER_TIMEOUT, open.read(&mut [0; 1])).await });
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    assert_eq!(say(&net.hub, "GET key\r\n"), None);

    relay.set(Line::Whole);
    let answers = || say(&net.hub, "GET key\r\n").as_deref() == Some("$1\r\n1\r\n");
    wait_until("the line to be whole again", STEP_TIMEOUT, answers);
    relay.set(Line::Hung);
    assert_eq!(say(&net.hub, "SET key 2\r\n").as_deref(), Some(""), "nothing comes back");
    relay.set(Line::Whole);
    // What was written arrives although its sender has gone.
    let arrived = || say(&net.hub, "GET key\r\n").as_deref() == Some("$1\r\n2\r\n");
    wait_until("what was written to arrive", STEP_TIMEOUT, arrived);
}

#[test]
fn a_balancer_goes_round_those_that_accept() {
    let net = Net::new();
    let backends = [7001, 7002, 7003];
    net.hub.listen_tcp(backends[0]);
    net.hub.listen_tcp(backends[2]);
    let addresses = backends.map(|port| SocketAddr::new(net.hub.v4(), port));
    let balancer = Balancer::start(&net.hub, 7000, addresses);
    let connections: Vec<_> = (0..6).map(|_| net.alice.connect(net.hub.tcp(7000))).collect();
    assert!(connections.iter().all(|connection| connection.echoes()));
    let taken = balancer.taken();
    assert!(taken[0] > 1 && taken[1] == 0 && taken[2] > 1, "{taken:?}");
}

#[test]
fn a_balancer_that_asks_gives_nothing_to_a_backend_that_is_not_ready() {
    let net = Net::new();
    let hub = &net.hub;
    let (hung, ready) = ([7001, 9001], [7002, 9002]);
    for port in [hung[0], ready[0]] {
        hub.listen_tcp(port);
    }
    let health = SocketAddr::new(hub.v4(), ready[1]);
    let _health = hub.netns().start(async move {
        let listener = TcpListener::bind(health).await.unwrap();
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok();
        }
    });
    let backends = [hung, ready].map(|ports| ports.map(|port| SocketAddr::new(hub.v4(), port)));
    let balancer = Balancer::checking(hub, 7000, backends.map(|[backend, health]| (backend, health)));
    // The balancer asks twice a second, and gives each answer two seconds.
    std::thread::sleep(ANSWER_TIMEOUT);
    for _ in 0..4 {
        assert!(net.alice.connect(hub.tcp(7000)).echoes());
    }
    assert_eq!(balancer.taken(), [0, 4]);
}
