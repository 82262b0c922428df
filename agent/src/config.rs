//! The configuration file, parsed once into values that cannot be wrong.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use postern_core::{Invalid, ProtectedPort};
pub use postern_runtime::log_format::LogFormat;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tonic::transport::Uri;

use crate::limits::StateLimits;

/// The default path of the configuration file.
pub const DEFAULT_PATH: &str = "/etc/postern/agent.toml";
const DEFAULT_STATE_DIR: &str = "/var/lib/postern-agent";

/// The ports protected when neither the ledger nor the configuration names any: SSH, RDP and WinRM, the protocols by
/// which people manage machines.
const MANAGEMENT_PORTS: [&str; 4] = ["tcp/22", "tcp/3389", "tcp/5985", "tcp/5986"];

/// The shortest and the longest trial.
const TRIAL_TIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(3600);

/// A valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The broker's address, `https://host:port`.
    pub broker: String,
    /// The directory of the identity and the ledger; absolute.
    pub state_dir: PathBuf,
    /// The format of log lines.
    pub log_format: LogFormat,
    /// The ports to protect before the first contact with a broker; may be empty.
    pub bootstrap: BTreeSet<ProtectedPort>,
    /// The bounds on a desired state.
    pub limits: StateLimits,
    /// The time of the trial in which this host closes its ports for the first time; `None` to close them at once.
    pub confirm_within: Option<Duration>,
}

/// The configuration is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}; write one, or name another with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, has an unknown key, or lacks a required one.
    #[error("the configuration {path} does not parse; correct the line that the error names")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is wrong.
    #[error("the configuration {path} has a wrong value")]
    Value {
        /// The file.
        path: PathBuf,
        /// The value, the problem and the remedy.
        #[source]
        source: Invalid,
    },
}

impl AgentConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// The file cannot be read, has an unknown key, or a wrong value.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let path = || path.to_owned();
        let text = fs::read_to_string(path()).map_err(|source| ConfigError::Read { path: path(), source })?;
        let file = toml::from_str::<FileConfig>(&text);
        let file = file.map_err(|source| ConfigError::Parse { path: path(), source: Box::new(source) })?;
        file.validate().map_err(|source| ConfigError::Value { path: path(), source })
    }

    /// Returns what a wrong configuration still tells, for a boot: where the state is, and the ports of `[bootstrap]`; the well-known
    /// management ports if it names ports and none of them can be read. So a typing error opens no port. Everything else is the default,
    /// and there is no broker.
    pub fn salvage(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        // Line by line: one wrong line spoils no other.
        let lines: Vec<toml::Table> = text.lines().filter_map(|line| toml::from_str(line).ok()).collect();
        let value = |key: &str| lines.iter().find_map(|line| line.get(key));
        let state_dir = value("state_dir").and_then(toml::Value::as_str).map(PathBuf::from);
        let named = value("ports").and_then(toml::Value::as_array);
        let ports = named.into_iter().flatten().filter_map(|port| port.as_str()?.parse().ok());
        let confirm = value("confirm").and_then(toml::Value::as_str);
        let config = Self {
            broker: String::new(),
            state_dir: state_dir.filter(|dir| dir.is_absolute()).unwrap_or_else(default_state_dir),
            log_format: LogFormat::default(),
            bootstrap: ports.collect(),
            limits: StateLimits::default(),
            confirm_within: confirm.and_then(|text| trial_time("enforce.confirm", text).ok()),
        };
        let names_none = value("bootstrap").is_none() || named.is_some_and(Vec::is_empty);
        let bootstrap = if names_none { BTreeSet::new() } else { config.fallback_ports() };
        Self { bootstrap, ..config }
    }

    /// Returns the directory of the identity.
    pub fn identity_dir(&self) -> PathBuf {
        self.state_dir.join("identity")
    }

    /// Returns the ports to protect when the ledger cannot be read: the agent denies too much rather than too little.
    pub fn fallback_ports(&self) -> BTreeSet<ProtectedPort> {
        if self.bootstrap.is_empty() {
            return MANAGEMENT_PORTS.iter().filter_map(|port| port.parse().ok()).collect();
        }
        self.bootstrap.clone()
    }
}

/// The configuration as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    broker: String,
    #[serde(default = "default_state_dir")]
    state_dir: PathBuf,
    #[serde(default)]
    log_format: LogFormat,
    #[serde(default)]
    bootstrap: Bootstrap,
    #[serde(default)]
    limits: FileLimits,
    #[serde(default)]
    enforce: FileEnforce,
}

/// The way to enforcement as it stands in the file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEnforce {
    confirm: Option<String>,
}

/// The bounds as they stand in the file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    windows: Option<usize>,
    ports: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bootstrap {
    ports: Vec<String>,
}

fn default_state_dir() -> PathBuf {
    DEFAULT_STATE_DIR.into()
}

impl FileConfig {
    fn validate(self) -> Result<AgentConfig, Invalid> {
        let ports =
            self.bootstrap.ports.iter().enumerate().map(|(i, text)| {
                text.parse().map_err(|e: Invalid| e.named(&format!("bootstrap.ports[{i}]")))
            });
        let bootstrap = ports.collect::<Result<_, _>>()?;
        check_broker(&self.broker)?;
        let usual = StateLimits::default();
        let limits = StateLimits::new(
            self.limits.windows.unwrap_or(usual.windows),
            self.limits.ports.unwrap_or(usual.ports),
        )?;
        let confirm_within = self.enforce.confirm.as_deref();
        let confirm_within = confirm_within.map(|text| trial_time("enforce.confirm", text)).transpose()?;
        if !self.state_dir.is_absolute() {
            let problem = format!("{} is not absolute", self.state_dir.display());
            return Err(Invalid::new(
                "state_dir",
                problem,
                format!("write a path such as {DEFAULT_STATE_DIR}"),
            ));
        }
        Ok(AgentConfig {
            broker: self.broker,
            state_dir: self.state_dir,
            log_format: self.log_format,
            bootstrap,
            limits,
            confirm_within,
        })
    }
}

/// Parses the time of a trial, 10 s to 1 h, such as `5m`; `field` names it in the error.
///
/// # Errors
/// The text is no time, or the time is out of range.
pub fn trial_time(field: &str, text: &str) -> Result<Duration, Invalid> {
    let time = text.parse::<SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
    time.filter(|time| TRIAL_TIMES.contains(time)).ok_or_else(|| {
        Invalid::new(field, format!("{text:?} is no time of a trial"), "write 10s to 1h, such as 5m")
    })
}

fn check_broker(address: &str) -> Result<(), Invalid> {
    let wrong = || {
        let problem = format!("{address:?} is not a broker's address");
        Invalid::new("broker", problem, "write it like https://broker.example.org:7443")
    };
    let uri: Uri = address.parse().map_err(|_| wrong())?;
    let host = uri.host().ok_or_else(wrong)?.trim_start_matches('[').trim_end_matches(']');
    let whole = uri.scheme_str() == Some("https") && uri.port_u16().is_some() && uri.path() == "/";
    if !whole || ServerName::try_from(host).is_err() {
        return Err(wrong());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<AgentConfig, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        AgentConfig::load(file.path())
    }

    /// Returns the whole chain of an error, as `main` prints it.
    fn error_of(text: &str) -> String {
        let error = anyhow::Error::new(load(text).unwrap_err());
        format!("{error:#}")
    }

    #[test]
    fn a_broker_is_enough() {
        let config = load("broker = \"https://broker.example.org:7443\"").unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/postern-agent"));
        assert_eq!((config.log_format, config.bootstrap.len()), (LogFormat::Text, 0));
        assert_eq!(config.fallback_ports().len(), 4, "denied even if the ledger cannot be read");
        assert_eq!(config.limits, StateLimits { windows: 4096, ports: 1024 });
    }

    #[test]
    fn i1_a_wrong_configuration_still_tells_where_the_state_is_and_which_ports_to_protect() {
        let salvage = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), text).unwrap();
            let config = AgentConfig::salvage(file.path());
            let ports: Vec<String> = config.bootstrap.iter().map(ToString::to_string).collect();
            (config.state_dir.display().to_string(), ports.join(" "))
        };
        let management = "tcp/22 tcp/3389 tcp/5985 tcp/5986";
        for (text, state_dir, ports) in [
            ("", "/var/lib/postern-agent", ""),
            ("broker = 7\nstate_dir = \"/srv/agent\"\n", "/srv/agent", ""),
            ("state_dir = \"srv\"\n[bootstrap]\nports = []\n", "/var/lib/postern-agent", ""),
            ("state_dir = \"/srv/agent\"\nbroker = \"https://b\nlog = [\n", "/srv/agent", ""),
            (
                "broker =\n[bootstrap]\nports = [\"tcp/22\", \"tcp/none\"]\n",
                "/var/lib/postern-agent",
                "tcp/22",
            ),
            ("[bootstrap]\nports = [\"22\"]\n", "/var/lib/postern-agent", management),
            ("[bootstrap]\nport = [\"tcp/22\"]\n", "/var/lib/postern-agent", management),
        ] {
            assert_eq!(salvage(text), (state_dir.to_owned(), ports.to_owned()), "{text}");
        }
    }

    #[test]
    fn every_key_can_be_set() {
        let config = load(
            "broker = \"https://[2001:db8::1]:7443\"\nstate_dir = \"/srv/agent\"\nlog_format = \"json\"\n[bootstrap]\nports = [\"tcp/22\", \"udp/161\"]\n[limits]\nwindows = 5000\nports = 7\n[enforce]\nconfirm = \"5m\"",
        )
        .unwrap();
        assert_eq!((config.log_format, config.bootstrap.len()), (LogFormat::Json, 2));
        assert_eq!(config.limits, StateLimits { windows: 5000, ports: 7 });
        assert_eq!(config.confirm_within, Some(Duration::from_secs(300)));
        assert_eq!(config.fallback_ports(), config.bootstrap);
        assert_eq!(config.identity_dir(), Path::new("/srv/agent/identity"));
    }

    #[test]
    fn a_wrong_value_is_named_with_its_remedy() {
        let with_broker = |rest: &str| format!("broker = \"https://b:1\"\n{rest}");
        for (text, key, remedy) in [
            ("broker = \"http://b:7443\"".to_owned(), "broker:", "https://broker.example.org:7443"),
            ("broker = \"https://b\"".to_owned(), "broker:", "https://broker.example.org:7443"),
            ("broker = \"https://b:1/path\"".to_owned(), "broker:", "https://broker.example.org:7443"),
            (with_broker("state_dir = \"here\""), "state_dir:", "/var/lib/postern-agent"),
            (with_broker("bootstrap.ports = [\"tcp/22\", \"22\"]"), "bootstrap.ports[1]:", "tcp/22"),
            (with_broker("log_format = \"xml\""), "log_format", "expected `text` or `json`"),
            (with_broker("brocker = 1"), "brocker", "expected one of `broker`"),
            (with_broker("[bootstrap]\nport = []"), "port", "expected `ports`"),
            (with_broker("[limits]\nwindows = 0"), "limits.windows:", "use 1 to 65536"),
            (with_broker("[limits]\nports = 4097"), "limits.ports:", "use 1 to 4096"),
            (with_broker("[enforce]\nconfirm = \"9s\""), "enforce.confirm:", "10s to 1h"),
            (with_broker("[enforce]\nconfirm = \"2h\""), "enforce.confirm:", "10s to 1h"),
            (with_broker("[enforce]\nconfirm = \"soon\""), "enforce.confirm:", "10s to 1h"),
            (String::new(), "broker", "missing field"),
        ] {
            let error = error_of(&text);
            assert!(error.contains(key) && error.contains(remedy), "{text}: {error}");
        }
        assert!(
            AgentConfig::load(Path::new("/does/not/exist")).unwrap_err().to_string().contains("--config")
        );
    }
}
