//! The settings of the store on Redis.

use std::path::PathBuf;

/// The settings of the store on Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// The server.
    pub endpoint: Endpoint,
    /// A file with the user's password, read for each connection.
    pub password_file: Option<PathBuf>,
    /// Files for TLS, besides the system's roots.
    pub tls: TlsFiles,
    /// The name in every server's certificate, with TLS; none: the host of the URL, and of a server that sentinels or a node of a cluster
    /// name. An address that a node of a cluster names has the certificate of the URL's name.
    pub tls_server_name: Option<String>,
    /// The name of this Postern among others on one server.
    pub tenant: String,
    /// The number of replicas that must have a commit before the broker answers; 0 without replicas.
    pub replicas: usize,
    /// Allows servers and sentinels in plain text at addresses other than the loopback's: who is on the way reads and changes all.
    pub insecure: bool,
}

/// The remedy for a server in plain text at another address than the loopback's.
pub const PLAIN_REMEDY: &str = "use rediss:// (TLS), or write `insecure = true` into [store] to let who is on the way read and change every record";

/// Reports whether a host is this machine, by its name or address alone.
pub fn is_loopback(host: &str) -> bool {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

impl RedisSettings {
    /// Makes the settings of a server by its URL, with defaults for the rest.
    pub fn at(url: impl Into<String>, tenant: impl Into<String>) -> Self {
        Self {
            endpoint: Endpoint::Url(url.into()),
            password_file: None,
            tls: TlsFiles::default(),
            tls_server_name: None,
            tenant: tenant.into(),
            replicas: 0,
            insecure: false,
        }
    }
}

/// The server, or the sentinels that name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `redis://` or, with TLS, `rediss://`, with user, host, port and database.
    Url(String),
    /// The primary that the sentinels name.
    Sentinels(Sentinels),
}

impl Endpoint {
    /// Returns the URLs of the server, or of the sentinels.
    pub fn urls(&self) -> &[String] {
        match self {
            Self::Url(url) => std::slice::from_ref(url),
            Self::Sentinels(sentinels) => &sentinels.urls,
        }
    }

    /// Reports whether the server has TLS.
    pub fn has_tls(&self) -> bool {
        self.urls().iter().any(|url| url.starts_with("rediss://"))
    }
}

impl std::fmt::Display for Endpoint {
    /// Shows the endpoint without a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => f.write_str(&without_user(url)),
            Self::Sentinels(Sentinels { urls, master, .. }) => {
                let urls: Vec<String> = urls.iter().map(|url| without_user(url)).collect();
                write!(f, "{master} of {}", urls.join(", "))
            }
        }
    }
}

/// The sentinels that watch the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentinels {
    /// The sentinels' URLs, with a user if the sentinels need one. With `rediss://` the primary has TLS, too.
    pub urls: Vec<String>,
    /// The name under which the sentinels know the primary.
    pub master: String,
    /// The broker's user on the primary.
    pub user: Option<String>,
    /// A file with the password for the sentinels.
    pub password_file: Option<PathBuf>,
}

/// Files in PEM for TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// The roots to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The broker's client certificate, and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Returns a URL without its user, password and query.
fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "a malformed URL".to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // A query may hold a password, too.
    let path = path.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_shown_without_its_passwords() {
        for (url, shown) in [
            ("redis://r:6379/0", "redis://r:6379/0"),
            ("rediss://u:geheim@r/0?password=geheim", "rediss://r/0"),
            ("redis://:ge@heim@[::1]:1", "redis://[::1]:1"),
            ("redis+unix:///run/redis.sock?pass=geheim", "redis+unix:///run/redis.sock"),
        ] {
            assert_eq!(Endpoint::Url(url.to_owned()).to_string(), shown);
        }
    }
}
