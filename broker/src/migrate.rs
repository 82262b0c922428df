//! `migrate`: moves every record from one store to another. Each is named by a URL, or is the one of the configuration.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use jiff::Timestamp;
use postern_core::Invalid;
use postern_store::redis::{Endpoint, RedisSettings};
use postern_store::transfer::{MigrationOptions, Moved, Source, Target, transfer};
use postern_store::{Sealing, StoreError, embedded, redis};

use crate::clock::Clock;
use crate::config::{BrokerConfig, check_store_url};
use crate::records_key::RecordsKeyFile;

/// The name of a store on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreName {
    /// The configured store.
    Config,
    /// A database file.
    File(PathBuf),
    /// A Redis, with the tenant and the files for TLS of the configuration.
    Redis(String),
}

impl FromStr for StoreName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == "config" {
            return Ok(Self::Config);
        }
        let Some(path) = text.strip_prefix("sqlite://") else {
            check_store_url("the store", text)?;
            return Ok(Self::Redis(text.to_owned()));
        };
        if Path::new(path).is_absolute() {
            return Ok(Self::File(path.into()));
        }
        Err(Invalid::new(
            "the store",
            format!("{path:?} is not an absolute path"),
            "write sqlite:///path/postern.db",
        ))
    }
}

/// The options of a migration.
#[derive(Debug, Clone)]
pub struct MigrateCommand {
    /// The source.
    pub from: StoreName,
    /// The target.
    pub to: StoreName,
    /// A file with the password for the source.
    pub from_password_file: Option<PathBuf>,
    /// A file with the password for the target.
    pub to_password_file: Option<PathBuf>,
    /// Leaves the source open for writing.
    pub keep_source: bool,
    /// Empties the target first of the records that an earlier migration left there.
    pub overwrite_incomplete: bool,
}

/// A store that the command line or the configuration names.
enum StoreLocation {
    File(PathBuf),
    Redis(Box<RedisSettings>),
}

impl std::fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "sqlite://{}", path.display()),
            Self::Redis(settings) => write!(f, "{} (tenant {})", settings.endpoint, settings.tenant),
        }
    }
}

/// Moves every record, and returns the numbers of them. No broker may run on either store.
///
/// # Errors
/// The source cannot be read, is broken or is written to meanwhile; the target is not empty or cannot be written to.
pub async fn migrate(config: &BrokerConfig, options: MigrateCommand) -> anyhow::Result<Moved> {
    let from = locate(config, options.from, options.from_password_file);
    let to = locate(config, options.to, options.to_password_file);
    let how = MigrationOptions {
        from: from.to_string(),
        to: to.to_string(),
        keep_source: options.keep_source,
        overwrite_incomplete: options.overwrite_incomplete,
    };
    anyhow::ensure!(how.from != how.to, "--from and --to are both {}", how.to);
    if let StoreLocation::File(path) = &from {
        anyhow::ensure!(path.exists(), "there is no {}", path.display());
    }
    let key = RecordsKeyFile::of(config);
    let sealing = key.load_or_make().context("cannot use the records key")?;
    let mut source = open(&from, &sealing).await.with_context(|| format!("cannot open {from}"))?;
    let mut target = open(&to, &sealing).await.with_context(|| format!("cannot open {to}"))?;
    let now = |last: Option<&postern_core::audit::AuditRecord>| {
        Clock::start(last.map_or(Timestamp::UNIX_EPOCH, |last| last.event.at)).now()
    };
    let moved = transfer(source.source(), target.target(), &how, now)
        .await
        .with_context(|| format!("cannot move {from} to {to}"))?;
    key.settle()?;
    Ok(moved)
}

/// A store that is open for a migration.
enum OpenedStore {
    File(Box<embedded::Transfer>),
    Redis(Box<redis::Transfer>),
}

impl OpenedStore {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::File(store) => store.as_mut(),
            Self::Redis(store) => store.as_mut(),
        }
    }

    fn target(&mut self) -> &mut dyn Target {
        match self {
            Self::File(store) => store.as_mut(),
            Self::Redis(store) => store.as_mut(),
        }
    }
}

async fn open(found: &StoreLocation, sealing: &Sealing) -> Result<OpenedStore, StoreError> {
    Ok(match found {
        StoreLocation::File(path) => OpenedStore::File(Box::new(embedded::Transfer::open(path, sealing)?)),
        StoreLocation::Redis(settings) => {
            OpenedStore::Redis(Box::new(redis::Transfer::open(settings, sealing).await?))
        }
    })
}

fn locate(config: &BrokerConfig, named: StoreName, password_file: Option<PathBuf>) -> StoreLocation {
    match (named, &config.redis) {
        (StoreName::File(path), _) => StoreLocation::File(path),
        (StoreName::Config, None) => StoreLocation::File(config.store_path()),
        (StoreName::Config, Some(settings)) => {
            let password_file = password_file.or_else(|| settings.password_file.clone());
            StoreLocation::Redis(Box::new(RedisSettings { password_file, ..settings.clone() }))
        }
        (StoreName::Redis(url), configured) => {
            let settings = match configured {
                Some(settings) => RedisSettings { replicas: 0, tls_server_name: None, ..settings.clone() },
                None => RedisSettings::at("", config.trust_domain.to_string()),
            };
            let endpoint = Endpoint::Url(url);
            StoreLocation::Redis(Box::new(RedisSettings { endpoint, password_file, ..settings }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_named_by_a_url_without_a_password() {
        assert_eq!("config".parse(), Ok(StoreName::Config));
        assert_eq!("sqlite:///a/b.db".parse(), Ok(StoreName::File("/a/b.db".into())));
        assert_eq!("redis://r".parse(), Ok(StoreName::Redis("redis://r".to_owned())));
        for bad in ["", "/a/b.db", "sqlite://a.db", "redis://u:geheim@r", "postgres://geheim"] {
            let error = bad.parse::<StoreName>().unwrap_err().to_string();
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
