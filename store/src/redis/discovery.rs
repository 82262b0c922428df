//! The discovery of the primary. Every connection finds it again: no code here keeps to a server that once was the primary,
//! and no server counts as the primary before it has said so itself.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use postern_runtime::error_chain::error_chain;
use postern_runtime::private_file;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo as _, RedisError, RedisResult, TlsCertificates,
};

use super::settings::{Endpoint, PLAIN_REMEDY, RedisSettings, Sentinels, TlsFiles, is_loopback};

/// The longest time for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest time for a command: longer than WAIT.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time for connecting to a sentinel, and for its answer.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest time for connecting to a primary that a sentinel has named: the next sentinel may name another.
const NAMED_PRIMARY_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest time for which the kernel sends data that the server does not acknowledge.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(6);
/// The most redirections from one node of a cluster to another.
const REDIRECTIONS: usize = 4;

/// Finds the primary.
pub(super) struct Discovery {
    settings: RedisSettings,
    /// A key of the store: a cluster redirects by it to the node that has the store.
    probe: String,
    /// The address at which any task last found the primary.
    last: Mutex<Option<String>>,
    /// Connections to sentinels that answered.
    sentinels: Mutex<HashMap<String, MultiplexedConnection>>,
}

/// A primary, with the connection on which it said that it is one.
pub(super) struct Primary {
    pub(super) connection: MultiplexedConnection,
    pub(super) address: String,
    client: Client,
}

impl Discovery {
    pub(super) fn new(settings: RedisSettings, probe: String) -> Self {
        Self { settings, probe, last: Mutex::default(), sentinels: Mutex::default() }
    }

    /// Finds the primary, and connects to it.
    pub(super) async fn primary(&self) -> RedisResult<Primary> {
        let primary = match &self.settings.endpoint {
            Endpoint::Url(url) => self.at_url(url).await,
            Endpoint::Sentinels(sentinels) => self.named(sentinels).await,
        }?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(primary.address.clone());
        Ok(primary)
    }

    /// Opens a connection for messages.
    pub(super) async fn messages(&self) -> RedisResult<PubSub> {
        let primary = self.primary().await?;
        tokio::time::timeout(CONNECT_TIMEOUT, primary.client.get_async_pubsub())
            .await
            .unwrap_or_else(|_| Err(timed_out(&primary.address)))
    }

    /// Reports whether the primary was last found at this address.
    pub(super) fn is_last(&self, address: &str) -> bool {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(address)
    }

    /// Reports whether the sentinels still name this server; also true if none answers, and if there are none.
    pub(super) async fn is_still_named(&self, address: &str) -> bool {
        let Endpoint::Sentinels(sentinels) = &self.settings.endpoint else { return true };
        let (answers, _) = self.ask_all(sentinels).await;
        answers.first().is_none_or(|answer| answer.address() == address)
    }

    async fn at_url(&self, url: &str) -> RedisResult<Primary> {
        let info = url.into_connection_info()?;
        let mut primary = self.open(info.clone(), CONNECT_TIMEOUT).await?;
        for _ in 0..REDIRECTIONS {
            match role(&mut primary.connection).await {
                Ok(role) if role == "master" => {}
                Ok(role) => return Err(not_a_primary(&primary.address, &role)),
                // The user may not ask for the role; a replica refuses the first write in any case.
                Err(error) if error.code() == Some("NOPERM") => {}
                Err(error) => return Err(error),
            }
            let mut get = redis::cmd("GET");
            let elsewhere =
                match get.arg(&self.probe).query_async::<Option<String>>(&mut primary.connection).await {
                    Ok(_) => return Ok(primary),
                    Err(error) => {
                        match error.redirect_node().and_then(|(address, _)| address.rsplit_once(':')) {
                            // A redirection without a host means the host of this node.
                            Some(("", port)) => (host_of(info.addr()), port.to_owned()),
                            Some((host, port)) => (host.to_owned(), port.to_owned()),
                            None => return Err(error),
                        }
                    }
                };
            let port = elsewhere.1.parse().map_err(|_| failed("MOVED names no port".to_owned()))?;
            let addr = with_address(info.addr(), elsewhere.0, port);
            primary = self.open(info.clone().set_addr(addr), CONNECT_TIMEOUT).await?;
        }
        Err(failed(format!("{} and other nodes of its cluster redirect in a loop", primary.address)))
    }

    async fn named(&self, sentinels: &Sentinels) -> RedisResult<Primary> {
        let (answers, mut problems) = self.ask_all(sentinels).await;
        let mut tried: Vec<String> = Vec::new();
        for answer in answers {
            let address = answer.address();
            if tried.contains(&address) {
                continue;
            }
            match self.named_one(sentinels, &answer).await {
                Ok(primary) => return Ok(primary),
                Err(error) => problems.push(format!("{address}: {error}")),
            }
            tried.push(address);
        }
        let what = format!("no sentinel names a primary that is one: {}", problems.join("; "));
        Err(failed(what))
    }

    async fn named_one(&self, sentinels: &Sentinels, answer: &SentinelReply) -> RedisResult<Primary> {
        let (host, port) = (answer.host.clone(), answer.port);
        let addr = if sentinels.urls.iter().any(|url| url.starts_with("rediss://")) {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let mut info = addr.into_connection_info()?;
        if let Some(user) = &sentinels.user {
            let redis = info.redis_settings().clone().set_username(user);
            info = info.set_redis_settings(redis);
        }
        let mut primary = self.open(info, NAMED_PRIMARY_TIMEOUT).await?;
        let role = role(&mut primary.connection).await?;
        if role == "master" { Ok(primary) } else { Err(not_a_primary(&primary.address, &role)) }
    }

    /// Asks the sentinels. Returns their replies, the newest first, and the errors of the others. Once most have answered, it
    /// does not wait for the rest.
    async fn ask_all(&self, sentinels: &Sentinels) -> (Vec<SentinelReply>, Vec<String>) {
        let mut asked: FuturesUnordered<_> =
            sentinels.urls.iter().map(|url| self.ask(sentinels, url)).collect();
        let most = sentinels.urls.len() / 2 + 1;
        let (mut answers, mut problems) = (Vec::new(), Vec::new());
        while let Some((url, outcome)) = asked.next().await {
            match outcome {
                Ok(answer) => answers.push(answer),
                Err(error) => problems.push(format!("{}: {error}", Endpoint::Url(url.to_owned()))),
            }
            if answers.len() >= most {
                break;
            }
        }
        answers.sort_by_key(|answer| std::cmp::Reverse(answer.epoch));
        (answers, problems)
    }

    async fn ask<'a>(&self, sentinels: &Sentinels, url: &'a str) -> (&'a str, RedisResult<SentinelReply>) {
        let asked = async {
            let known = self.sentinels().remove(url);
            let mut connection = match known {
                Some(mut connection) => match master(&mut connection, sentinels).await {
                    Ok(answer) => return Ok((answer, connection)),
                    // The connection may be broken, or another sentinel may answer there by now.
                    Err(_) => self.sentinel(sentinels, url).await?,
                },
                None => self.sentinel(sentinels, url).await?,
            };
            Ok((master(&mut connection, sentinels).await?, connection))
        };
        let within = tokio::time::timeout(SENTINEL_TIMEOUT * 2, asked).await;
        let outcome = within.unwrap_or_else(|_| Err(timed_out(url))).map(|(answer, connection)| {
            self.sentinels().insert(url.to_owned(), connection);
            answer
        });
        (url, outcome)
    }

    async fn sentinel(&self, sentinels: &Sentinels, url: &str) -> RedisResult<MultiplexedConnection> {
        let client = self.client(url.into_connection_info()?, sentinels.password_file.as_deref())?;
        connect(&client, SENTINEL_TIMEOUT, SENTINEL_TIMEOUT).await
    }

    fn sentinels(&self) -> MutexGuard<'_, HashMap<String, MultiplexedConnection>> {
        self.sentinels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self, info: ConnectionInfo, within: Duration) -> RedisResult<Primary> {
        let address = info.addr().to_string();
        let client = self.client(info, self.settings.password_file.as_deref())?;
        let connection = connect(&client, within, RESPONSE_TIMEOUT).await?;
        Ok(Primary { connection, address, client })
    }

    /// Makes a client. It reads passwords, keys and certificates each time, so that a change needs no restart of the broker.
    fn client(&self, info: ConnectionInfo, password_file: Option<&Path>) -> RedisResult<Client> {
        if let ConnectionAddr::Tcp(host, _) = info.addr()
            && !self.settings.insecure
            && !is_loopback(host)
        {
            return Err(failed(format!("{} is reached in plain text: {PLAIN_REMEDY}", info.addr())));
        }
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(UNACKNOWLEDGED_TIMEOUT);
        let mut info = info.set_tcp_settings(tcp);
        if let Some(file) = password_file {
            let redis = info.redis_settings().clone().set_password(read_private(file)?.trim());
            info = info.set_redis_settings(redis);
        }
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Client::build_with_tls(info, certificates(&self.settings.tls)?);
        }
        Client::open(info)
    }
}

/// The longest file of a secret that is read, in bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// A sentinel's reply about the primary.
struct SentinelReply {
    host: String,
    port: u16,
    /// The number of failovers: a sentinel that knows of more of them is newer.
    epoch: u64,
}

impl SentinelReply {
    /// Reads a reply of alternating fields and values.
    fn of(fields: &[String]) -> Option<Self> {
        let field = |name: &str| {
            let at = fields.iter().step_by(2).position(|field| field == name)?;
            fields.get(2 * at + 1)
        };
        Some(Self {
            host: field("ip")?.clone(),
            port: field("port")?.parse().ok()?,
            epoch: field("config-epoch")?.parse().ok()?,
        })
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

async fn connect(
    client: &Client,
    within: Duration,
    response: Duration,
) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(within))
        .set_response_timeout(Some(response));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Asks a sentinel for the primary.
async fn master(connection: &mut MultiplexedConnection, sentinels: &Sentinels) -> RedisResult<SentinelReply> {
    let mut master = redis::cmd("SENTINEL");
    master.arg("MASTER").arg(&sentinels.master);
    let fields: Vec<String> = master.query_async(connection).await?;
    SentinelReply::of(&fields)
        .ok_or_else(|| failed("the sentinel's answer has no address of a primary".to_owned()))
}

/// Asks a server for its role: `master`, `slave` or `sentinel`.
async fn role(connection: &mut MultiplexedConnection) -> RedisResult<String> {
    let answer: Vec<redis::Value> = redis::cmd("ROLE").query_async(connection).await?;
    let first = answer.into_iter().next().ok_or_else(|| failed("ROLE has no answer".to_owned()))?;
    Ok(redis::from_redis_value(first)?)
}

fn host_of(addr: &ConnectionAddr) -> String {
    let address = addr.to_string();
    address.rsplit_once(':').map_or(address.clone(), |(host, _)| host.to_owned())
}

fn with_address(addr: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    if matches!(addr, ConnectionAddr::TcpTls { .. }) {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

fn certificates(files: &TlsFiles) -> RedisResult<TlsCertificates> {
    let client_tls = match &files.client {
        None => None,
        Some((certificate, key)) => Some(ClientTlsConfig {
            client_cert: read(certificate)?.into_bytes(),
            client_key: read_private(key)?.into_bytes(),
        }),
    };
    let root_cert = files.ca.as_deref().map(read).transpose()?.map(String::into_bytes);
    Ok(TlsCertificates { client_tls, root_cert })
}

/// Reads a secret, if no other user can read or change its file.
fn read_private(file: &Path) -> RedisResult<String> {
    private_file::read(file, MAX_SECRET_BYTES).map_err(|error| failed(error_chain(&error)))
}

fn read(file: &Path) -> RedisResult<String> {
    std::fs::read_to_string(file)
        .map_err(|error| failed(format!("{} cannot be read: {error}", file.display())))
}

fn not_a_primary(address: &str, role: &str) -> RedisError {
    let role = if role == "slave" { "replica" } else { role };
    failed(format!("{address} is a {role}, not a primary: name the primary, or store.sentinels"))
}

fn timed_out(address: &str) -> RedisError {
    let words = format!("{} does not answer in time", Endpoint::Url(address.to_owned()));
    std::io::Error::new(std::io::ErrorKind::TimedOut, words).into()
}

/// Makes an error of a text.
pub(super) fn failed(words: String) -> RedisError {
    std::io::Error::other(words).into()
}

/// Reports whether the connection is useless after this error: it is broken, or its server is not, or not yet, a primary.
pub(super) fn is_over(error: &RedisError) -> bool {
    let not_here = ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "NOAUTH"];
    error.is_unrecoverable_error()
        || error.is_timeout()
        || error.kind() == ErrorKind::Io
        || error.code().is_some_and(|code| not_here.contains(&code))
}
