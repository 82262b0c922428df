//! The broker and the identity: from flags, then from the environment, then from `~/.config/postern/config.toml`.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::args::ConnectionArgs;

/// The broker to connect to, and the credentials to show it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The broker's address, as it was written.
    pub broker: String,
    /// The directory with key.pem, cert.pem and roots.pem.
    pub identity: PathBuf,
}

/// Settings that are missing or unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// A setting that neither flag, environment nor file has.
    #[error("{key}: is not set; give {flag}, set {variable}, or write {key} = \"...\" into {file}")]
    Missing {
        /// The key in the file.
        key: &'static str,
        /// The flag.
        flag: &'static str,
        /// The environment variable.
        variable: &'static str,
        /// The file.
        file: PathBuf,
    },
    /// The file exists but cannot be read.
    #[error("cannot read the configuration {file}; correct its permissions")]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key.
    #[error("cannot parse the configuration {file}; correct the line named here")]
    Parse {
        /// The file.
        file: PathBuf,
        /// The line and the cause.
        #[source]
        source: Box<toml::de::Error>,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsFile {
    broker: Option<String>,
    identity: Option<PathBuf>,
}

impl Settings {
    /// Resolves both settings; clap has already replaced missing flags by the environment.
    ///
    /// # Errors
    /// A setting is missing, or the file cannot be used. The file is not read unless it is needed.
    pub(crate) fn resolve(connection: &ConnectionArgs, file: &Path) -> Result<Self, SettingsError> {
        let broker = connection.broker.clone().filter(|broker| !broker.is_empty());
        let identity = connection.identity.clone().filter(|identity| !identity.as_os_str().is_empty());
        if let (Some(broker), Some(identity)) = (&broker, &identity) {
            return Ok(Self { broker: broker.clone(), identity: identity.clone() });
        }
        let from_file = read(file)?;
        let missing =
            |key, flag, variable| SettingsError::Missing { key, flag, variable, file: file.to_owned() };
        Ok(Self {
            broker: broker
                .or(from_file.broker)
                .ok_or_else(|| missing("broker", "--broker", "POSTERN_BROKER"))?,
            identity: identity
                .or(from_file.identity.map(|identity| beside(file, &identity)))
                .ok_or_else(|| missing("identity", "--identity", "POSTERN_IDENTITY"))?,
        })
    }
}

/// Returns `$XDG_CONFIG_HOME/postern/config.toml`, which is usually `~/.config/postern/config.toml`.
pub(crate) fn default_file() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    config.unwrap_or_default().join("postern/config.toml")
}

/// Reads the file. A missing file sets nothing; any other problem is an error.
fn read(file: &Path) -> Result<SettingsFile, SettingsError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SettingsFile::default()),
        Err(source) => return Err(SettingsError::Read { file: file.to_owned(), source }),
    };
    toml::from_str(&text)
        .map_err(|source| SettingsError::Parse { file: file.to_owned(), source: Box::new(source) })
}

/// Resolves a path in the file: a relative path starts at the file's directory, `~/` at the home directory.
fn beside(file: &Path, path: &Path) -> PathBuf {
    if let (Ok(rest), Some(home)) = (path.strip_prefix("~"), std::env::var_os("HOME")) {
        return PathBuf::from(home).join(rest);
    }
    file.parent().unwrap_or(Path::new("")).join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        (dir, file)
    }

    fn given(broker: Option<&str>, identity: Option<&str>) -> ConnectionArgs {
        ConnectionArgs { broker: broker.map(str::to_owned), identity: identity.map(PathBuf::from) }
    }

    #[test]
    fn a_flag_takes_precedence_over_the_file() {
        let (dir, file) = a_file("broker = \"https://file:7443\"\nidentity = \"me\"\n");
        let settings = Settings::resolve(&given(Some("https://flag:7443"), None), &file).unwrap();
        let identity = dir.path().join("me");
        assert_eq!(settings, Settings { broker: "https://flag:7443".into(), identity });
    }

    #[test]
    fn a_missing_setting_is_named_with_every_way_to_set_it() {
        let error = Settings::resolve(&given(None, Some("/id")), Path::new("/nowhere/config.toml"))
            .unwrap_err()
            .to_string();
        for part in ["broker: is not set", "--broker", "POSTERN_BROKER", "/nowhere/config.toml"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let (_dir, file) = a_file("brokr = \"https://x:1\"\n");
        let error = Settings::resolve(&given(None, None), &file).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("brokr"), "{source}");
    }
}
