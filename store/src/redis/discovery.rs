//! The discovery of the primary. Every connection finds it again: no code here keeps to a server that once was the primary,
//! and no server counts as the primary before it has said so itself, if it says it at all: a single server, or a node of a cluster, may
//! lack ROLE.
//!
//! With TLS a server is checked against a name. That is the host by which it was found, unless the operator has named another
//! (`store.tls_server_name`), or a node of a cluster has named an address: certificates have names, so that the URL's name counts.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use postern_runtime::error_chain::error_chain;
use postern_runtime::private_file;
use redis::aio::MultiplexedConnection;
use redis::io::AsyncDNSResolver;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo as _, ProtocolVersion, PushInfo, PushKind, RedisError, RedisFuture, RedisResult,
    TlsCertificates,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::error::is_lacking;
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
    reached: Reached,
}

/// A server, and the name against which its certificate is checked if that is not its host.
#[derive(Debug, Clone)]
struct Reached {
    info: ConnectionInfo,
    certificate_name: Option<String>,
}

/// Messages of a channel, until the connection ends.
pub(super) struct Messages {
    connection: MultiplexedConnection,
    pushed: UnboundedReceiver<PushInfo>,
}

impl Messages {
    /// Subscribes to a channel.
    pub(super) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        self.connection.subscribe(channel).await
    }

    /// Returns the next message; none once the connection has ended.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let PushInfo { kind, data } = self.pushed.recv().await?;
            match (kind, data.into_iter().nth(1)) {
                (PushKind::Message, Some(payload)) => {
                    if let Ok(payload) = redis::from_redis_value(payload) {
                        return Some(payload);
                    }
                }
                (PushKind::Disconnection, _) => return None,
                _ => {}
            }
        }
    }
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
    pub(super) async fn messages(&self) -> RedisResult<Messages> {
        let Reached { info, certificate_name } = self.primary().await?.reached;
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let reached = Reached { info: info.set_redis_settings(redis), certificate_name };
        let (client, resolver) = self.client(reached, self.settings.password_file.as_deref())?;
        let (push, pushed) = unbounded_channel();
        let config = connection_config(CONNECT_TIMEOUT, RESPONSE_TIMEOUT, resolver).set_push_sender(push);
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(Messages { connection, pushed })
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
        let certificate_name = self.settings.tls_server_name.clone();
        let reached = Reached { info: info.clone(), certificate_name };
        let mut primary = self.open(reached, CONNECT_TIMEOUT).await?;
        for _ in 0..REDIRECTIONS {
            match role(&mut primary.connection).await {
                Ok(role) if role == "master" => {}
                Ok(role) => return Err(not_a_primary(&primary.address, &role)),
                // The server does not say its role; a replica refuses the first write in any case.
                Err(error) if is_lacking(&error) => {}
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
            let certificate_name = self.name_after_redirection(info.addr(), &elsewhere.0);
            let addr = with_address(info.addr(), elsewhere.0, port);
            let reached = Reached { info: info.clone().set_addr(addr), certificate_name };
            primary = self.open(reached, CONNECT_TIMEOUT).await?;
        }
        Err(failed(format!("{} and other nodes of its cluster redirect in a loop", primary.address)))
    }

    /// Returns the name for the certificate of a node that another node of a cluster has named.
    fn name_after_redirection(&self, configured: &ConnectionAddr, host: &str) -> Option<String> {
        let name = if let ConnectionAddr::TcpTls { host, .. } = configured { Some(host) } else { None };
        let of_url = name.filter(|name| is_address(host) && !is_address(name)).cloned();
        self.settings.tls_server_name.clone().or(of_url)
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
        let addr = if self.settings.endpoint.has_tls() {
            tls_address(host, port)
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let mut info = addr.into_connection_info()?;
        if let Some(user) = &sentinels.user {
            let redis = info.redis_settings().clone().set_username(user);
            info = info.set_redis_settings(redis);
        }
        let reached = Reached { info, certificate_name: self.settings.tls_server_name.clone() };
        let mut primary = self.open(reached, NAMED_PRIMARY_TIMEOUT).await?;
        let role = role(&mut primary.connection).await;
        if role.as_ref().is_err_and(is_lacking) {
            let what = "it does not run ROLE, which the broker needs with sentinels: allow the user +role";
            return Err(failed(what.to_owned()));
        }
        let role = role?;
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
        let reached = Reached { info: url.into_connection_info()?, certificate_name: None };
        let (client, resolver) = self.client(reached, sentinels.password_file.as_deref())?;
        let config = connection_config(SENTINEL_TIMEOUT, SENTINEL_TIMEOUT, resolver);
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    fn sentinels(&self) -> MutexGuard<'_, HashMap<String, MultiplexedConnection>> {
        self.sentinels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self, reached: Reached, within: Duration) -> RedisResult<Primary> {
        let address = reached.info.addr().to_string();
        let (client, resolver) = self.client(reached.clone(), self.settings.password_file.as_deref())?;
        let config = connection_config(within, RESPONSE_TIMEOUT, resolver);
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(Primary { connection, address, reached })
    }

    /// Makes a client, and the resolver that it needs if the certificate has another name than the host. It reads passwords, keys and
    /// certificates each time, so that a change needs no restart of the broker.
    fn client(
        &self,
        Reached { info, certificate_name }: Reached,
        password_file: Option<&Path>,
    ) -> RedisResult<(Client, Option<Toward>)> {
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
        let ConnectionAddr::TcpTls { host, port, .. } = info.addr().clone() else {
            return Ok((Client::open(info)?, None));
        };
        let resolver = certificate_name.as_ref().map(|_| Toward(without_brackets(&host).to_owned()));
        if let Some(name) = certificate_name {
            // The client connects to the name of the address and checks the certificate against it.
            info = info.set_addr(tls_address(name, port));
        }
        Ok((Client::build_with_tls(info, certificates(&self.settings.tls)?)?, resolver))
    }
}

/// Resolves every name to one host.
struct Toward(String);

impl AsyncDNSResolver for Toward {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        _: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((self.0.as_str(), port)).await?.collect();
            if found.is_empty() {
                return Err(failed(format!("{} has no address", self.0)));
            }
            Ok(Box::new(found.into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
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

fn connection_config(
    within: Duration,
    response: Duration,
    resolver: Option<Toward>,
) -> AsyncConnectionConfig {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(within))
        .set_response_timeout(Some(response));
    match resolver {
        Some(resolver) => config.set_dns_resolver(resolver),
        None => config,
    }
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
        tls_address(host, port)
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

fn tls_address(host: String, port: u16) -> ConnectionAddr {
    ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
}

fn is_address(host: &str) -> bool {
    without_brackets(host).parse::<IpAddr>().is_ok()
}

/// Returns a host without the brackets that a URL has around an address of IPv6.
fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
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
