//! The store on Redis in the configuration.

use std::path::{Path, PathBuf};

use postern_core::Invalid;
use postern_pki::TrustDomain;
use redis::{ConnectionAddr, IntoConnectionInfo as _};
use rustls::pki_types::ServerName;
use serde::Deserialize;

use postern_store::redis::{Endpoint, PLAIN_REMEDY, RedisSettings, Sentinels, TlsFiles, is_loopback};

/// The most replicas that a commit may wait for.
const REPLICAS: usize = 10;
/// The schemes of a server, and those of a sentinel.
const SCHEMES: [&str; 4] = ["redis://", "rediss://", "redis+unix://", "unix://"];
const SENTINEL_SCHEMES: [&str; 2] = ["redis://", "rediss://"];

/// The section `[store]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreSection {
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    sentinels: Option<Vec<String>>,
    #[serde(default)]
    master: Option<String>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    password_file: Option<PathBuf>,
    #[serde(default)]
    sentinel_password_file: Option<PathBuf>,
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    client_cert_file: Option<PathBuf>,
    #[serde(default)]
    client_key_file: Option<PathBuf>,
    #[serde(default)]
    tls_server_name: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    replicas: usize,
    #[serde(default)]
    insecure: bool,
}

impl StoreSection {
    /// # Errors
    /// The first key that is wrong.
    pub(super) fn checked(self, trust_domain: &TrustDomain) -> Result<RedisSettings, Invalid> {
        for (key, file) in [
            ("store.password_file", &self.password_file),
            ("store.sentinel_password_file", &self.sentinel_password_file),
            ("store.ca_file", &self.ca_file),
            ("store.client_cert_file", &self.client_cert_file),
            ("store.client_key_file", &self.client_key_file),
        ] {
            whole(key, file.as_deref())?;
        }
        let tls = TlsFiles { ca: self.ca_file, client: client(self.client_cert_file, self.client_key_file)? };
        let endpoint =
            endpoint(self.url, self.sentinels, self.master, self.user, self.sentinel_password_file)?;
        if !self.insecure {
            refuse_plain(&endpoint)?;
        }
        let only_tls = [
            ("store.ca_file", tls.ca.is_some()),
            ("store.client_cert_file", tls.client.is_some()),
            ("store.tls_server_name", self.tls_server_name.is_some()),
        ];
        if let Some((key, _)) = only_tls.into_iter().find(|(_, is_there)| *is_there && !endpoint.has_tls()) {
            return Err(Invalid::new(key, "is for TLS alone", "write the URL with rediss://"));
        }
        let is_host = |name: &str| ServerName::try_from(name).is_ok();
        if self.tls_server_name.as_deref().is_some_and(|name| !is_host(name)) {
            let remedy = "write the DNS name or the address that the servers' certificates have";
            return Err(Invalid::new("store.tls_server_name", "is not a name in a certificate", remedy));
        }
        let tenant = self.tenant.unwrap_or_else(|| trust_domain.to_string());
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if tenant.is_empty() || tenant.len() > 253 || !tenant.bytes().all(is_plain) {
            let problem = format!("{tenant:?} is not a name");
            return Err(Invalid::new(
                "store.tenant",
                problem,
                "use letters, digits, dots, dashes and underscores",
            ));
        }
        if self.replicas > REPLICAS {
            let problem = format!("{} is out of range", self.replicas);
            return Err(Invalid::new("store.replicas", problem, "use 0 to 10"));
        }
        Ok(RedisSettings {
            endpoint,
            password_file: self.password_file,
            tls,
            tls_server_name: self.tls_server_name,
            tenant,
            replicas: self.replicas,
            insecure: self.insecure,
        })
    }
}

/// Returns the files with secrets, each with its key.
pub(super) fn private_files(settings: &RedisSettings) -> Vec<(&'static str, PathBuf)> {
    let sentinels = match &settings.endpoint {
        Endpoint::Url(_) => None,
        Endpoint::Sentinels(sentinels) => sentinels.password_file.clone(),
    };
    let key = settings.tls.client.as_ref().map(|(_, key)| key.clone());
    [
        ("store.password_file", settings.password_file.clone()),
        ("store.sentinel_password_file", sentinels),
        ("store.client_key_file", key),
    ]
    .into_iter()
    .filter_map(|(name, file)| Some((name, file?)))
    .collect()
}

/// Refuses servers and sentinels in plain text at addresses other than the loopback's.
fn refuse_plain(endpoint: &Endpoint) -> Result<(), Invalid> {
    let Some(i) = endpoint.urls().iter().position(|url| is_plain(url)) else { return Ok(()) };
    let key = match endpoint {
        Endpoint::Url(_) => "store.url".to_owned(),
        Endpoint::Sentinels(_) => format!("store.sentinels[{i}]"),
    };
    Err(Invalid::new(&key, "is plain text over a network", PLAIN_REMEDY))
}

/// Reports whether a URL names a server in plain text at another address than the loopback's.
fn is_plain(url: &str) -> bool {
    let info = url.into_connection_info();
    info.is_ok_and(|info| matches!(info.addr(), ConnectionAddr::Tcp(host, _) if !is_loopback(host)))
}

/// Returns the warning about a store that is reached in plain text over a network; none for any other.
pub fn plain_warning(settings: &RedisSettings) -> Option<String> {
    settings.endpoint.urls().iter().any(|url| is_plain(url)).then(|| {
        format!(
            "store.insecure: {} is reached in plain text; who is on the way reads and changes every record, so use rediss://",
            settings.endpoint
        )
    })
}

/// Checks that the keys name either one server or its sentinels, and no key of the other.
fn endpoint(
    url: Option<String>,
    sentinels: Option<Vec<String>>,
    master: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
) -> Result<Endpoint, Invalid> {
    let Some(urls) = sentinels else {
        let url =
            url.ok_or_else(|| Invalid::new("store.url", "is missing", "write it, or store.sentinels"))?;
        check_url("store.url", &url, &SCHEMES)?;
        for (key, is_there, remedy) in [
            ("store.master", master.is_some(), "leave it out, or write store.sentinels instead of store.url"),
            ("store.user", user.is_some(), "write the user into store.url"),
            ("store.sentinel_password_file", password_file.is_some(), "leave it out"),
        ] {
            if is_there {
                return Err(Invalid::new(key, "is for store.sentinels alone", remedy));
            }
        }
        return Ok(Endpoint::Url(url));
    };
    if url.is_some() {
        return Err(Invalid::new("store.url", "is there beside store.sentinels", "write one of the two"));
    }
    if urls.is_empty() {
        return Err(Invalid::new(
            "store.sentinels",
            "is empty",
            "name each sentinel like redis://10.0.0.1:26379",
        ));
    }
    for (i, url) in urls.iter().enumerate() {
        check_url(&format!("store.sentinels[{i}]"), url, &SENTINEL_SCHEMES)?;
    }
    if urls.iter().any(|url| url.starts_with("rediss://"))
        && !urls.iter().all(|url| url.starts_with("rediss://"))
    {
        return Err(Invalid::new(
            "store.sentinels",
            "has TLS in some and not in all",
            "write all with rediss://",
        ));
    }
    let master = master.filter(|master| !master.is_empty()).ok_or_else(|| {
        Invalid::new(
            "store.master",
            "is missing",
            "name the primary as the sentinels' \"sentinel monitor\" does",
        )
    })?;
    if user.as_deref().is_some_and(|user| user.is_empty() || user.contains(char::is_whitespace)) {
        return Err(Invalid::new(
            "store.user",
            "is not the name of a user",
            "write it as in the server's ACL",
        ));
    }
    Ok(Endpoint::Sentinels(Sentinels { urls, master, user, password_file }))
}

/// Checks a server's URL on a command line.
///
/// # Errors
/// The text is not a URL of a Redis, or has a password in it.
pub(crate) fn check_store_url(what: &str, url: &str) -> Result<(), Invalid> {
    check_url(what, url, &SCHEMES)
}

fn check_url(key: &str, url: &str, schemes: &[&str]) -> Result<(), Invalid> {
    let remedy = "write it like rediss://postern@redis.example.org:6379/0";
    if !schemes.iter().any(|scheme| url.starts_with(scheme)) {
        return Err(Invalid::new(key, "is not the URL of a Redis", remedy));
    }
    // More people read the configuration than a file that holds only a password.
    let info =
        url.into_connection_info().map_err(|_| Invalid::new(key, "is not the URL of a Redis", remedy))?;
    if info.redis_settings().password().is_some() {
        let remedy = "put the password into a file of its own, and name that as store.password_file";
        return Err(Invalid::new(key, "has a password in it", remedy));
    }
    if url.contains('#') {
        return Err(Invalid::new(key, "has a fragment", "leave out everything from # on"));
    }
    Ok(())
}

fn whole(key: &str, file: Option<&Path>) -> Result<(), Invalid> {
    let Some(file) = file.filter(|file| !file.is_absolute()) else { return Ok(()) };
    Err(Invalid::new(key, format!("{} is not an absolute path", file.display()), "write the whole path"))
}

fn client(certificate: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<(PathBuf, PathBuf)>, Invalid> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        (Some(_), None) => {
            Err(Invalid::new("store.client_key_file", "is missing", "name the certificate's key"))
        }
        (None, Some(_)) => {
            Err(Invalid::new("store.client_cert_file", "is missing", "name the certificate of the key"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RedisSettings, String> {
        let file: StoreSection = toml::from_str(text).map_err(|error| error.to_string())?;
        let file = StoreSection { insecure: true, ..file };
        file.checked(&TrustDomain::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_section_becomes_settings() {
        let settings = parse("url = \"rediss://postern@redis.example.org:6379/0\"\nreplicas = 1").unwrap();
        assert_eq!((settings.replicas, settings.tenant.as_str()), (1, "postern"));
        assert!(parse("url = \"redis+unix:///run/redis.sock\"").is_ok());
        let text = "sentinels = [\"rediss://10.0.0.1:26379\", \"rediss://10.0.0.2:26379\"]
            master = \"postern\"\nuser = \"broker\"\npassword_file = \"/p\"\nsentinel_password_file = \"/s\"
            tls_server_name = \"redis.example.org\"\nca_file = \"/ca.pem\"\nclient_cert_file = \"/c.pem\"\nclient_key_file = \"/k.pem\"";
        let settings = parse(text).unwrap();
        let Endpoint::Sentinels(sentinels) = settings.endpoint else { panic!("{settings:?}") };
        assert_eq!((sentinels.urls.len(), sentinels.master.as_str()), (2, "postern"));
        assert_eq!(sentinels.password_file, Some("/s".into()));
        assert_eq!(settings.tls_server_name.as_deref(), Some("redis.example.org"));
        assert_eq!(settings.tls.client, Some(("/c.pem".into(), "/k.pem".into())));
    }

    #[test]
    fn i7_plain_text_over_a_network_is_refused_unless_the_operator_says_so() {
        let checked = |text: &str| {
            let file: StoreSection = toml::from_str(text).unwrap();
            file.checked(&TrustDomain::default()).map_err(|error| error.to_string())
        };
        for (section, key) in [
            ("url = \"redis://redis.example.org:6379\"", "store.url"),
            ("url = \"redis://10.0.0.1\"", "store.url"),
            ("url = \"redis://[fd00::1]:6379\"", "store.url"),
            (
                "sentinels = [\"redis://127.0.0.1:26379\", \"redis://10.0.0.2:26379\"]\nmaster = \"m\"",
                "store.sentinels[1]",
            ),
        ] {
            let error = checked(section).unwrap_err();
            assert!(
                error.contains(key) && error.contains("rediss://") && error.contains("insecure"),
                "{error}"
            );
            assert!(checked(&format!("{section}\ninsecure = true")).unwrap().insecure);
        }
        for good in [
            "redis://127.0.0.1:6379",
            "redis://127.8.8.8",
            "redis://[::1]:6379",
            "redis://localhost",
            "redis+unix:///run/redis.sock",
            "rediss://redis.example.org",
        ] {
            assert!(!checked(&format!("url = \"{good}\"")).unwrap().insecure, "{good}");
        }
    }

    #[test]
    fn a_bad_section_names_the_key_and_shows_no_password() {
        for (text, key) in [
            ("", "store.url"),
            ("url = \"redis.example.org\"", "store.url"),
            ("url = \"redis://u:geheim@redis.example.org\"", "store.url"),
            ("url = \"redis://:geheim@redis.example.org\"", "store.url"),
            ("url = \"redis+unix:///run/redis.sock?pass=geheim\"", "store.url"),
            ("url = \"redis://r/geheim\"", "store.url"),
            ("url = \"rediss://r/#insecure\"", "store.url"),
            ("url = \"redis://r\"\npassword_file = \"password\"", "store.password_file"),
            ("url = \"redis://r\"\nsentinels = [\"redis://s\"]\nmaster = \"m\"", "store.url"),
            ("url = \"redis://r\"\nmaster = \"m\"", "store.master"),
            ("url = \"redis://r\"\nuser = \"u\"", "store.user"),
            ("url = \"redis://r\"\nsentinel_password_file = \"/p\"", "store.sentinel_password_file"),
            ("sentinels = []\nmaster = \"m\"", "store.sentinels"),
            ("sentinels = [\"redis://s\"]", "store.master"),
            ("sentinels = [\"redis://s\", \"redis://:geheim@t\"]\nmaster = \"m\"", "store.sentinels[1]"),
            ("sentinels = [\"redis://s\", \"rediss://t\"]\nmaster = \"m\"", "store.sentinels"),
            ("sentinels = [\"redis+unix:///s\"]\nmaster = \"m\"", "store.sentinels[0]"),
            ("sentinels = [\"redis://s\"]\nmaster = \"m\"\nuser = \"\"", "store.user"),
            ("url = \"redis://r\"\nca_file = \"/ca.pem\"", "store.ca_file"),
            ("url = \"redis://r\"\ntls_server_name = \"redis.example.org\"", "store.tls_server_name"),
            ("url = \"rediss://r\"\ntls_server_name = \"two names\"", "store.tls_server_name"),
            ("url = \"rediss://r\"\nca_file = \"ca.pem\"", "store.ca_file"),
            ("url = \"rediss://r\"\nclient_cert_file = \"/c.pem\"", "store.client_key_file"),
            ("url = \"rediss://r\"\nclient_key_file = \"/k.pem\"", "store.client_cert_file"),
            ("url = \"redis://r\"\ntenant = \"a{b}\"", "store.tenant"),
            ("url = \"redis://r\"\nreplicas = 11", "store.replicas"),
            ("url = \"redis://r\"\nttl = 1", "ttl"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key) && !error.contains("geheim"), "{key}: {error}");
        }
    }
}
