//! Where the store is, and what is needed to get there.

use std::path::PathBuf;

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// The server.
    pub endpoint: Endpoint,
    /// A file with the user's password, read for each connection.
    pub password_file: Option<PathBuf>,
    /// What TLS needs beyond the system.
    pub tls: TlsFiles,
    /// Names this Postern among others on one server.
    pub tenant: String,
    /// How many replicas must have a commit before it is answered; 0 where there are none.
    pub replicas: usize,
}

impl RedisSettings {
    /// A server by its URL, and all else as it is when nothing is said.
    pub fn at(url: impl Into<String>, tenant: impl Into<String>) -> Self {
        Self {
            endpoint: Endpoint::Url(url.into()),
            password_file: None,
            tls: TlsFiles::default(),
            tenant: tenant.into(),
            replicas: 0,
        }
    }
}

/// How the primary is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `redis://` or, with TLS, `rediss://`, with user, host, port and database. Whatever answers there.
    Url(String),
    /// Whatever the sentinels say.
    Sentinels(Sentinels),
}

impl std::fmt::Display for Endpoint {
    /// Without a password, even where one was given.
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
    /// Their URLs, with a user of theirs where they want one. With `rediss://` the primary has TLS, too.
    pub urls: Vec<String>,
    /// The name of the primary among them.
    pub master: String,
    /// The user at the primary.
    pub user: Option<String>,
    /// A file with the password for the sentinels themselves.
    pub password_file: Option<PathBuf>,
}

/// Files in PEM for TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// The roots to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The certificate by which the broker shows itself, and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// A URL without whoever is named in it.
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
    fn a_place_is_told_without_its_passwords() {
        for (url, told) in [
            ("redis://r:6379/0", "redis://r:6379/0"),
            ("rediss://u:geheim@r/0?password=geheim", "rediss://r/0"),
            ("redis://:ge@heim@[::1]:1", "redis://[::1]:1"),
            ("redis+unix:///run/redis.sock?pass=geheim", "redis+unix:///run/redis.sock"),
        ] {
            assert_eq!(Endpoint::Url(url.to_owned()).to_string(), told);
        }
    }
}
