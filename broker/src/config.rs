//! The configuration: one file, every key known, turned into values that cannot be wrong any more.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use postern_core::Invalid;
use postern_pki::TrustDomain;
use serde::Deserialize;

/// What the broker runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where everything is kept; only the broker's user may enter.
    pub data_dir: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// The DNS names and addresses of the serving certificate; at least one.
    pub names: Vec<String>,
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: PathBuf,
    listen: String,
    names: Vec<String>,
    #[serde(default)]
    trust_domain: Option<String>,
    #[serde(default)]
    log_format: LogFormat,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// The file cannot be read, or the first key that is wrong.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a good configuration", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text)?;
        if !file.data_dir.is_absolute() {
            let problem = format!("{} is not absolute", file.data_dir.display());
            return Err(Invalid::new("data_dir", problem, "write a path that begins with /").into());
        }
        let listen = file.listen.parse().map_err(|_| {
            Invalid::new(
                "listen",
                format!("{:?} is not an address and a port", file.listen),
                "write it like 0.0.0.0:7443",
            )
        })?;
        if file.names.is_empty() {
            let remedy = "list every DNS name and address by which the broker is reached";
            return Err(Invalid::new("names", "is empty", remedy).into());
        }
        if let Some(bad) = file.names.iter().find(|name| !is_name(name)) {
            let problem = format!("{bad:?} is neither a DNS name nor an address");
            return Err(
                Invalid::new("names", problem, "write it like broker.example.org or 192.0.2.1").into()
            );
        }
        let trust_domain =
            file.trust_domain.as_deref().map(TrustDomain::new).transpose()?.unwrap_or_default();
        Ok(Self {
            data_dir: file.data_dir,
            listen,
            names: file.names,
            trust_domain,
            log_format: file.log_format,
        })
    }

    /// The certificate authority's directory.
    pub fn authority_dir(&self) -> PathBuf {
        self.data_dir.join("ca")
    }

    /// The embedded store's file.
    pub fn store_path(&self) -> PathBuf {
        self.data_dir.join("postern.db")
    }

    /// The first administrator's identity.
    pub fn admin_dir(&self) -> PathBuf {
        self.data_dir.join("admin")
    }
}

fn is_name(name: &str) -> bool {
    rustls::pki_types::ServerName::try_from(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "data_dir = \"/var/lib/postern-broker\"\nlisten = \"[::]:7443\"\nnames = [\"broker.example.org\", \"192.0.2.1\"]\n";

    #[test]
    fn a_good_file_becomes_a_configuration() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.listen.port(), 7443);
        assert_eq!(config.trust_domain, TrustDomain::default());
    }

    #[test]
    fn a_bad_file_names_the_key() {
        for (from, to, key) in [
            ("listen", "lissen", "lissen"),
            ("[::]:7443", "7443", "listen"),
            ("\"/var", "\"var", "data_dir"),
            ("broker.example.org", "not a name", "names"),
            ("[\"broker.example.org\", \"192.0.2.1\"]", "[]", "names"),
            ("names", "trust_domain = \"UPPER\"\nnames", "trust_domain"),
            ("names", "log_format = \"xml\"\nnames", "log_format"),
        ] {
            let error = Config::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(format!("{error:#}").contains(key), "{error:#}");
        }
    }
}
