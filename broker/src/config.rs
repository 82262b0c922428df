//! The configuration: one file with known keys only, turned into checked values.

mod audit;
mod aws;
mod azure;
mod defaults;
mod limits;
mod number;
mod quotas;
mod retention;
mod span;
mod store;
mod traces;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use jiff::SignedDuration;
use postern_core::{Invalid, ProtectedPort};
use postern_pki::TrustDomain;
pub use postern_runtime::log_format::LogFormat;
use postern_runtime::private_file::{self, PrivateFileError};
use postern_store::redis::RedisSettings;
use serde::Deserialize;

use crate::limits::{Limits, Quotas};
use crate::retention::RetentionSettings;
use crate::traces::TraceSettings;
pub use audit::AuditSettings;
pub use defaults::default_management_ports;
pub use span::lifetime;
pub(crate) use store::check_store_url;
pub use store::plain_warning;

/// The broker's configuration.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// The directory for the broker's files; only the broker's user may enter it.
    pub data_dir: PathBuf,
    /// The address and port to listen on.
    pub listen: SocketAddr,
    /// The DNS names and addresses of the serving certificate; at least one.
    pub names: Vec<String>,
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The file in which the broker looks for the root's private key; the key is offline if there is no such file.
    pub root_key: PathBuf,
    /// The file for the private key of the intermediate that signs for people. A running broker does not need it.
    pub people_key: PathBuf,
    /// The format of log lines.
    pub log_format: LogFormat,
    /// The ports for which an assessment looks by default.
    pub management_ports: BTreeSet<ProtectedPort>,
    /// The address and port for metrics, if they are served.
    pub metrics_listen: Option<SocketAddr>,
    /// The interval of the sweeps of every cloud.
    pub sweep_every: Duration,
    /// The store on Redis; `None` for the embedded store.
    pub redis: Option<RedisSettings>,
    /// The name of this broker among several; at most 64 characters.
    pub replica_name: String,
    /// The time for which a broker that shuts down keeps its agents and callers, so that load balancers notice.
    pub drain: Duration,
    /// The limits on connections and calls.
    pub limits: Limits,
    /// The quotas on grants and requests.
    pub quotas: Quotas,
    /// The time for which records that are over stay in the store.
    pub retention: RetentionSettings,
    /// The settings of the audit log.
    pub audit: AuditSettings,
    /// The settings of the export of traces, if they are exported.
    pub traces: Option<TraceSettings>,
    /// The accounts of AWS, if any.
    pub aws: Option<postern_aws::AwsSettings>,
    /// The subscriptions of Azure, if any.
    pub azure: Option<postern_azure::AzureSettings>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    data_dir: PathBuf,
    listen: String,
    names: Vec<String>,
    #[serde(default)]
    trust_domain: Option<String>,
    #[serde(default)]
    log_format: LogFormat,
    #[serde(default)]
    management_ports: Option<Vec<String>>,
    #[serde(default)]
    metrics_listen: Option<String>,
    #[serde(default)]
    authority: AuthorityFile,
    #[serde(default)]
    cloud: CloudFile,
    #[serde(default)]
    store: Option<store::StoreSection>,
    #[serde(default)]
    replica: ReplicaFile,
    #[serde(default)]
    limits: limits::LimitsSection,
    #[serde(default)]
    quotas: quotas::QuotasSection,
    #[serde(default)]
    retention: retention::RetentionSection,
    #[serde(default)]
    audit: audit::AuditSection,
    #[serde(default)]
    traces: Option<traces::TracesSection>,
    #[serde(default)]
    aws: Option<aws::AwsSection>,
    #[serde(default)]
    azure: Option<azure::AzureSection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityFile {
    #[serde(default)]
    root_key: Option<PathBuf>,
    #[serde(default)]
    people_key: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudFile {
    #[serde(default)]
    sweep_every: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplicaFile {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    drain: Option<String>,
}

/// The certificate authority's directory, within `data_dir`.
const AUTHORITY_DIR: &str = "ca";
/// The longest `drain`.
const LONGEST_DRAIN: Duration = Duration::from_secs(60);
/// The default interval of the sweeps of every cloud.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// The range of that interval.
const SWEEP_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

impl BrokerConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// The file cannot be read, or has a wrong key; the error names the first.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a good configuration", path.display()))
    }

    /// Checks the text of a configuration.
    ///
    /// # Errors
    /// It has a wrong key; the error names the first.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let file: ConfigFile = toml::from_str(text)?;
        if !file.data_dir.is_absolute() {
            let problem = format!("{} is not absolute", file.data_dir.display());
            return Err(Invalid::new("data_dir", problem, "write a path that begins with /").into());
        }
        let listen = address("listen", &file.listen)?;
        let metrics_listen =
            file.metrics_listen.as_deref().map(|text| address("metrics_listen", text)).transpose()?;
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
        let aws = file.aws.map(|aws| aws.checked(&trust_domain)).transpose()?;
        let azure = file.azure.map(|azure| azure.checked(&trust_domain)).transpose()?;
        Ok(Self {
            root_key: authority_key("root_key", file.authority.root_key, &file.data_dir, "root.key")?,
            people_key: authority_key("people_key", file.authority.people_key, &file.data_dir, "people.key")?,
            retention: file.retention.checked(&file.data_dir)?,
            data_dir: file.data_dir,
            listen,
            names: file.names,
            log_format: file.log_format,
            management_ports: management_ports(file.management_ports)?,
            metrics_listen,
            sweep_every: sweep_every(file.cloud.sweep_every.as_deref())?,
            replica_name: replica_name(file.replica.name)?,
            drain: drain(file.replica.drain.as_deref())?,
            redis: file.store.map(|store| store.checked(&trust_domain)).transpose()?,
            limits: file.limits.checked()?,
            quotas: file.quotas.checked()?,
            audit: file.audit.checked()?,
            traces: file.traces.map(traces::TracesSection::checked).transpose()?,
            trust_domain,
            aws,
            azure,
        })
    }

    /// Checks the modes and the owners of the files with secrets that the broker reads, as far as they exist, and of the directory of the
    /// audit log's segments.
    ///
    /// # Errors
    /// Other users can read or change a file, or the directory; the error names the first, and the remedy.
    pub fn check_private_files(&self) -> anyhow::Result<()> {
        for (key, file) in self.private_files() {
            match private_file::open(&file) {
                // A missing file has an error of its own where it is needed.
                Ok(_) | Err(PrivateFileError::Read { .. }) => {}
                Err(error) => anyhow::bail!("{key}: {error}"),
            }
        }
        if let Some(segments) = &self.retention.audit {
            segments.check_dir().map_err(|error| anyhow::anyhow!("retention.audit_dir: {error}"))?;
        }
        Ok(())
    }

    /// Returns the files with secrets that the broker and its commands read, each with the key of the configuration that places it.
    pub(crate) fn private_files(&self) -> Vec<(&'static str, PathBuf)> {
        let dir = self.authority_dir();
        let redis = self.redis.iter().flat_map(store::private_files);
        let azure = self.azure.iter().flat_map(postern_azure::AzureSettings::private_files);
        let own = [dir.join("records.key"), dir.join("intermediate.key")].map(|file| ("data_dir", file));
        let authority = [
            ("authority.root_key", self.root_key.clone()),
            ("authority.people_key", self.people_key.clone()),
        ];
        redis.chain(azure).chain(own).chain(authority).collect()
    }

    /// Returns the certificate authority's directory.
    pub fn authority_dir(&self) -> PathBuf {
        self.data_dir.join(AUTHORITY_DIR)
    }

    /// Returns the embedded store's file.
    pub fn store_path(&self) -> PathBuf {
        self.data_dir.join("postern.db")
    }

    /// Returns the name of the audit log among those of the trust domain: the store's tenant on Redis.
    pub fn log_name(&self) -> String {
        self.redis.as_ref().map_or_else(|| self.trust_domain.to_string(), |redis| redis.tenant.clone())
    }

    /// Returns the directory for the first administrator's identity.
    pub fn admin_dir(&self) -> PathBuf {
        self.data_dir.join("admin")
    }
}

fn address(key: &str, text: &str) -> Result<SocketAddr, Invalid> {
    let problem = || format!("{text:?} is not an address and a port");
    text.parse().map_err(|_| Invalid::new(key, problem(), "write it like 0.0.0.0:7443"))
}

/// Returns the configured file, or the one that `init` makes.
fn authority_key(
    key: &str,
    file: Option<PathBuf>,
    data_dir: &Path,
    default: &str,
) -> Result<PathBuf, Invalid> {
    let file = file.unwrap_or_else(|| data_dir.join(AUTHORITY_DIR).join(default));
    if !file.is_absolute() {
        let problem = format!("{} is not absolute", file.display());
        return Err(Invalid::new(format!("authority.{key}"), problem, "write a path that begins with /"));
    }
    Ok(file)
}

fn management_ports(texts: Option<Vec<String>>) -> Result<BTreeSet<ProtectedPort>, Invalid> {
    let Some(texts) = texts else { return Ok(default_management_ports()) };
    if texts.is_empty() {
        return Err(Invalid::new("management_ports", "is empty", "leave it out for the usual four"));
    }
    let parse = |(i, text): (usize, &String)| {
        text.parse().map_err(|e: Invalid| e.named(&format!("management_ports[{i}]")))
    };
    texts.iter().enumerate().map(parse).collect()
}

fn sweep_every(text: Option<&str>) -> Result<Duration, Invalid> {
    let Some(text) = text else { return Ok(SWEEP_EVERY) };
    let span = text.parse::<SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    span.filter(|span| SWEEP_RANGE.contains(span)).ok_or_else(|| {
        Invalid::new("cloud.sweep_every", format!("{text:?} is not a span of 1s to 24h"), "write it like 10m")
    })
}

/// Returns the configured name, or the host's.
fn replica_name(name: Option<String>) -> Result<String, Invalid> {
    let name = match name {
        Some(name) => name,
        None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_plain) {
        let problem = format!("{name:?} is not a name");
        return Err(Invalid::new(
            "replica.name",
            problem,
            "use letters, digits, dots, dashes and underscores",
        ));
    }
    Ok(name)
}

fn drain(text: Option<&str>) -> Result<Duration, Invalid> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    let span = text.parse::<SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    span.filter(|span| *span <= LONGEST_DRAIN).ok_or_else(|| {
        Invalid::new("replica.drain", format!("{text:?} is not a span of 0s to 60s"), "write it like 5s")
    })
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
        let config = BrokerConfig::parse(GOOD).unwrap();
        assert_eq!(config.listen.port(), 7443);
        assert_eq!(config.trust_domain, TrustDomain::default());
        assert_eq!(config.root_key, Path::new("/var/lib/postern-broker/ca/root.key"));
        assert_eq!((config.management_ports.len(), config.sweep_every, config.aws), (4, SWEEP_EVERY, None));
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
            ("names", "management_ports = [\"tcp/22\", \"ssh\"]\nnames", "management_ports[1]"),
            ("names", "management_ports = []\nnames", "management_ports"),
            ("names", "metrics_listen = \"9464\"\nnames", "metrics_listen"),
            ("names", "cloud.sweep_every = \"0s\"\nnames", "cloud.sweep_every"),
            ("names", "authority.root_key = \"root.key\"\nnames", "authority.root_key"),
            ("names", "authority.people_key = \"people.key\"\nnames", "authority.people_key"),
            ("names", "cloud.sweep = \"1s\"\nnames", "sweep"),
            ("names", "replica.name = \"a b\"\nnames", "replica.name"),
            ("names", "replica.drain = \"1h\"\nnames", "replica.drain"),
            ("names", "limits.anonymous = 0\nnames", "limits.anonymous"),
            ("names", "limits.strangers = 1\nnames", "strangers"),
            ("names", "quotas.grants_per_principal = 0\nnames", "quotas.grants_per_principal"),
            ("names", "retention.grants = \"0d\"\nnames", "retention.grants"),
            ("names", "audit.checkpoint_records = 0\nnames", "audit.checkpoint_records"),
        ] {
            let error = BrokerConfig::parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(format!("{error:#}").contains(key), "{error:#}");
        }
    }
}
