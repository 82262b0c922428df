//! Connections: authentication, discovery of the primary, and reconnecting.

use postern_core::Role;
use postern_pki::{Authority, Credentials, KeyPair, SpiffeId, TrustDomain};
use postern_runtime::error_chain::error_chain;

use super::*;
use crate::testing::builders::name;
use postern_runtime::clock::wall;

/// The commands that a user of the server needs, besides its keys and channels; docs/operations.md lists the same.
const ALLOWED: &str =
    "-@all +@connection +@read +@write +@scripting +@pubsub -@dangerous +wait +role +time +info +config|get";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// An authority in a directory, with certificates of a server of this name and of a client below it.
pub(super) fn certificates(dir: &Path, host: &str) {
    let now = wall();
    let authority = Authority::init(&dir.join("ca"), &TrustDomain::default(), now).unwrap();
    let (server, client) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let issued = authority.issue_server(&server.csr().unwrap(), &[host.to_owned()], DAY, now).unwrap();
    Credentials::new(server, issued.chain, authority.roots()).unwrap().save(&dir.join("server")).unwrap();
    let identity = SpiffeId::Principal { role: Role::Requester, name: name("broker") };
    let issued = authority.issue(&client.csr().unwrap(), &identity, DAY, now).unwrap();
    Credentials::new(client, issued.chain, authority.roots()).unwrap().save(&dir.join("client")).unwrap();
}

#[tokio::test]
async fn tls_trusts_the_roots_that_are_named_and_shows_a_certificate() {
    let dir = TempDir::new().unwrap();
    certificates(dir.path(), "127.0.0.1");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let port = cluster::free_ports().0.to_string();
    let _server = RedisServer::start(&[
        "--bind",
        "127.0.0.1",
        "--tls-port",
        &port,
        "--tls-auth-clients",
        "yes",
        "--tls-cert-file",
        &file("server/cert.pem"),
        "--tls-key-file",
        &file("server/key.pem"),
        "--tls-ca-cert-file",
        &file("server/roots.pem"),
    ])
    .await;
    let url = format!("rediss://127.0.0.1:{port}");
    let ca = Some(dir.path().join("client/roots.pem"));
    let client = Some((dir.path().join("client/cert.pem"), dir.path().join("client/key.pem")));
    let settings =
        |ca, client| RedisSettings { tls: TlsFiles { ca, client }, ..RedisSettings::at(&*url, "t") };

    let store = Broker::open(&settings(ca.clone(), client.clone())).await.unwrap();
    store.commit(a_change(1)).await.unwrap();
    assert_eq!(store.open_grants().await.unwrap().len(), 1);
    // The system's roots know nothing of this authority.
    let error = error_chain(&Broker::open(&settings(None, client)).await.unwrap_err());
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    assert!(Broker::open(&settings(ca.clone(), None)).await.is_err(), "the server wants a certificate");
    let missing = settings(ca, Some(("/nowhere/cert.pem".into(), "/nowhere/key.pem".into())));
    let error = error_chain(&Broker::open(&missing).await.unwrap_err());
    assert!(error.contains("/nowhere/cert.pem cannot be read"), "{error}");
}

#[tokio::test]
async fn a_user_of_the_acl_needs_nothing_but_its_keys_its_channel_and_these_commands() {
    let server = RedisServer::durable().await;
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("broker").arg("on").arg(">geheim").arg("resetkeys").arg("~{postern:t}:*");
    user.arg("resetchannels").arg("&{postern:t}:*").arg(ALLOWED.split(' ').collect::<Vec<_>>());
    user.query_async::<()>(&mut connection).await.unwrap();
    let file = server.dir.path().join("password");
    postern_runtime::files::replace(&file, b"geheim\n", 0o600).unwrap();
    let url = server.url() + "?user=broker";
    let settings = RedisSettings { password_file: Some(file.clone()), ..RedisSettings::at(url, "t") };
    let store = Broker::open(&settings).await.unwrap();
    store.commit(a_change(1)).await.unwrap();
    assert_eq!(store.audit_lines(0, 10).await.unwrap().len(), 1);
    assert_eq!(Redis::warnings(&settings).await.unwrap(), [] as [&str; 0]);
    let room = async || store.backend().room().await;
    assert_eq!(room().await.unwrap(), None, "the server has no maxmemory");
    // A user that may not ask for the room keeps no reserve, and is warned of it.
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("broker").arg("-info");
    user.query_async::<()>(&mut connection).await.unwrap();
    assert_eq!(room().await.unwrap(), None);
    let warnings = Redis::warnings(&settings).await.unwrap();
    assert!(matches!(&warnings[..], [one] if one.contains("+info")), "{warnings:?}");
    let other = RedisSettings { tenant: "other".to_owned(), ..settings };
    let error = error_chain(&Broker::open(&other).await.unwrap_err());
    assert!(error.contains("NoPerm") && !error.contains("geheim"), "{error}");
}

#[tokio::test]
async fn commands_that_a_server_lacks_are_named_before_anything_is_written() {
    let without = async |commands: &[&str]| {
        let renamed: Vec<&str> =
            commands.iter().flat_map(|command| ["--rename-command", command, ""]).collect();
        RedisServer::start(&[&["--appendonly", "yes"], renamed.as_slice()].concat()).await
    };
    for (lacking, replicas, named) in [
        (&["EVALSHA"][..], 0, "+evalsha"),
        (&["SCRIPT", "TIME"], 0, "SCRIPT LOAD, TIME"),
        (&["PUBLISH"], 0, "+publish &{postern:t}:*"),
        (&["WAIT"], 1, "+wait"),
    ] {
        let server = without(lacking).await;
        let settings = RedisSettings { replicas, ..server.store("t") };
        for refused in [
            Broker::open(&settings).await.map(drop),
            Transfer::open(&settings, &test_sealing()).await.map(drop),
            Redis::warnings(&settings).await.map(drop),
        ] {
            let Err(StoreError::Lacking { what }) = refused else { panic!("{lacking:?}: {refused:?}") };
            assert!(what.contains(named) && what.contains("unknown command"), "{what}");
        }
        let client = redis::Client::open(server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let keys: u64 = redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap();
        assert_eq!(keys, 0, "{lacking:?}");
    }
    // A single node needs none of these.
    let server = without(&["ROLE", "CONFIG", "WAIT"]).await;
    Broker::open(&server.store("t")).await.unwrap().commit(a_change(1)).await.unwrap();
    let warnings = Redis::warnings(&server.store("t")).await.unwrap().join("\n");
    assert!(warnings.contains("CONFIG GET"), "{warnings}");
}

#[tokio::test]
async fn a_changed_password_is_read_again_when_the_connection_comes_back() {
    let mut server = RedisServer::start(&["--requirepass", "one", "--appendonly", "yes"]).await;
    let file = server.dir.path().join("password");
    postern_runtime::files::replace(&file, b"one", 0o600).unwrap();
    let settings = RedisSettings { password_file: Some(file.clone()), ..server.store("t") };
    let store = Broker::open(&settings).await.unwrap();
    store.commit(a_change(1)).await.unwrap();
    server.kill();
    server.settings[1] = "two".to_owned();
    server.restart().await;
    assert!(store.commit(a_change(2)).await.is_err() && store.open_grants().await.is_err());
    postern_runtime::files::replace(&file, b"two", 0o600).unwrap();
    store.commit(a_change(2)).await.unwrap();
    assert_eq!(store.open_grants().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_replica_is_not_taken_for_the_store() {
    let server = RedisServer::durable().await;
    let store = Broker::open(&server.store("t")).await.unwrap();
    store.commit(a_change(1)).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut role = async |of: [&str; 2]| {
        redis::cmd("REPLICAOF").arg(&of).query_async::<()>(&mut connection).await.unwrap();
    };
    role(["127.0.0.1", "1"]).await;
    let refused = store.commit(a_change(2)).await.unwrap_err();
    assert!(error_chain(&refused).contains("ReadOnly"), "{refused:?}");
    let refused = error_chain(&Broker::open(&server.store("t")).await.unwrap_err());
    assert!(refused.contains("is a replica, not a primary"), "{refused}");
    role(["NO", "ONE"]).await;
    store.commit(a_change(2)).await.unwrap();
    assert_eq!(store.open_grants().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_shared_connection_comes_back_and_says_so_to_none_twice() {
    let mut server = RedisServer::durable().await;
    let shared = Server::new(&server.store("t")).shared_connection();
    let ping = async || redis::cmd("PING").query_async::<String>(&mut shared.clone()).await;
    assert_eq!(ping().await.unwrap(), "PONG");
    server.kill();
    let all = futures_util::future::join_all((0..50).map(|_| ping())).await;
    assert!(all.iter().all(Result::is_err));
    server.restart().await;
    let all = futures_util::future::join_all((0..50).map(|_| ping())).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
}

#[tokio::test]
async fn what_reads_does_not_notice_a_connection_that_broke() {
    let mut server = RedisServer::durable().await;
    let store = Broker::open(&server.store("t")).await.unwrap();
    store.commit(a_change(1)).await.unwrap();
    let shared = Server::new(&server.store("t")).shared_connection();
    let incr = async || redis::cmd("INCR").arg("{postern:t}:n").query_async::<u64>(&mut shared.clone()).await;
    assert_eq!(incr().await.unwrap(), 1);
    server.kill();
    server.restart().await;
    assert_eq!(store.open_grants().await.unwrap().len(), 1);
    assert!(incr().await.is_err(), "the command may have been applied: the caller has to know");
    assert_eq!(incr().await.unwrap(), 2);
}

#[tokio::test]
async fn messages_arrive_until_the_server_goes_and_then_end() {
    let mut server = RedisServer::durable().await;
    let this = Server::new(&server.store("t"));
    let channel = this.key("news");
    let mut messages = this.messages().await.unwrap();
    messages.subscribe(&channel).await.unwrap();
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(&channel).arg("a message");
    publish.query_async::<()>(&mut this.shared_connection()).await.unwrap();
    assert_eq!(messages.next().await.unwrap(), b"a message");
    server.kill();
    assert!(tokio::time::timeout(Duration::from_secs(20), messages.next()).await.unwrap().is_none());
}
