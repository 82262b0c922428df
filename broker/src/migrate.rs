//! `migrate`: moves everything from one store to another. Both are named by URLs, or as the one of the configuration.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use jiff::Timestamp;
use postern_core::Invalid;

use crate::clock::Clock;
use crate::config::{Config, check_store_url};
use crate::store::StoreError;
use crate::store::embedded::Embedded;
use crate::store::redis::{Place, Redis, RedisSettings};
use crate::store::transfer::{Counts, How, Source, Target, transfer};

/// A store, as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// The one that the configuration names.
    Config,
    /// A database file.
    File(PathBuf),
    /// A Redis. Its tenant, and files for TLS, are those of the configuration.
    Redis(String),
}

impl FromStr for Named {
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

/// What to move, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The source.
    pub from: Named,
    /// The target.
    pub to: Named,
    /// A file with the password for the source.
    pub from_password_file: Option<PathBuf>,
    /// A file with the password for the target.
    pub to_password_file: Option<PathBuf>,
    /// Whether the source stays open for writing.
    pub keep_source: bool,
    /// Whether what an earlier migration has left of the target goes first.
    pub overwrite_incomplete: bool,
}

/// A store that was found.
enum Found {
    File(PathBuf),
    Redis(Box<RedisSettings>),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "sqlite://{}", path.display()),
            Self::Redis(settings) => write!(f, "{} (tenant {})", settings.place, settings.tenant),
        }
    }
}

/// Moves everything, and says how many records of each kind there were. Nothing may be running on either store.
///
/// # Errors
/// The source cannot be read, is broken or is written to meanwhile; the target is not empty or cannot be written to.
pub async fn migrate(config: &Config, options: Options) -> anyhow::Result<Counts> {
    let from = found(config, options.from, options.from_password_file);
    let to = found(config, options.to, options.to_password_file);
    let how = How {
        from: from.to_string(),
        to: to.to_string(),
        keep_source: options.keep_source,
        overwrite_incomplete: options.overwrite_incomplete,
    };
    anyhow::ensure!(how.from != how.to, "--from and --to are both {}", how.to);
    if let Found::File(path) = &from {
        anyhow::ensure!(path.exists(), "there is no {}", path.display());
    }
    let mut source = source(&from).await.with_context(|| format!("cannot open {from}"))?;
    let mut target = target(&to).await.with_context(|| format!("cannot open {to}"))?;
    let now = |last: Option<&postern_core::audit::AuditRecord>| {
        Clock::start(last.map_or(Timestamp::UNIX_EPOCH, |last| last.event.at)).now()
    };
    transfer(source.as_mut(), target.as_mut(), &how, now)
        .await
        .with_context(|| format!("cannot move {from} to {to}"))
}

async fn source(found: &Found) -> Result<Box<dyn Source>, StoreError> {
    Ok(match found {
        Found::File(path) => Box::new(Embedded::transfer(path)?),
        Found::Redis(settings) => Box::new(Redis::transfer(settings).await?),
    })
}

async fn target(found: &Found) -> Result<Box<dyn Target>, StoreError> {
    Ok(match found {
        Found::File(path) => Box::new(Embedded::transfer(path)?),
        Found::Redis(settings) => Box::new(Redis::transfer(settings).await?),
    })
}

fn found(config: &Config, named: Named, password_file: Option<PathBuf>) -> Found {
    match (named, &config.redis) {
        (Named::File(path), _) => Found::File(path),
        (Named::Config, None) => Found::File(config.store_path()),
        (Named::Config, Some(settings)) => {
            let password_file = password_file.or_else(|| settings.password_file.clone());
            Found::Redis(Box::new(RedisSettings { password_file, ..settings.clone() }))
        }
        (Named::Redis(url), configured) => {
            let settings = match configured {
                Some(settings) => RedisSettings { replicas: 0, ..settings.clone() },
                None => RedisSettings::at("", config.trust_domain.to_string()),
            };
            let place = Place::Url(url);
            Found::Redis(Box::new(RedisSettings { place, password_file, ..settings }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_named_by_a_url_without_a_password() {
        assert_eq!("config".parse(), Ok(Named::Config));
        assert_eq!("sqlite:///a/b.db".parse(), Ok(Named::File("/a/b.db".into())));
        assert_eq!("redis://r".parse(), Ok(Named::Redis("redis://r".to_owned())));
        for bad in ["", "/a/b.db", "sqlite://a.db", "redis://u:geheim@r", "postgres://geheim"] {
            let error = bad.parse::<Named>().unwrap_err().to_string();
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
