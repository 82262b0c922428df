//! The state of the authority's life, for other parts of the broker.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use postern_pki::life::Life;
use postern_pki::{Authority, PkiError};

use super::root_key::{RootKey, in_a_line};
use super::warnings::{Facts, warnings};
use crate::config::Config;

/// The state of the authority's life, as the keeper publishes it for other parts of the broker.
#[derive(Debug)]
pub struct Standing {
    root_key: PathBuf,
    /// The client certificate that the broker shows to Redis.
    store_certificate: Option<PathBuf>,
    published: Mutex<Published>,
}

#[derive(Debug, Default)]
struct Published {
    warnings: Vec<String>,
    failure: Option<String>,
}

impl Standing {
    /// Starts without warnings.
    pub fn of(config: &Config) -> Self {
        let client = config.redis.as_ref().and_then(|redis| redis.tls.client.as_ref());
        let store_certificate = client.map(|(certificate, _)| certificate.clone());
        Self { store_certificate, ..Self::at(config.root_key.clone()) }
    }

    /// Starts without warnings, for a root key that belongs into this file.
    pub fn at(root_key: PathBuf) -> Self {
        Self { root_key, store_certificate: None, published: Mutex::default() }
    }

    /// Looks where the root's key is.
    pub fn root_key(&self, authority: &Authority) -> RootKey {
        match authority.check_root_key(&self.root_key) {
            Ok(()) => RootKey::AtHand,
            Err(PkiError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                RootKey::Offline
            }
            Err(error) => RootKey::Unusable { reason: in_a_line(error) },
        }
    }

    /// The client certificate that the broker shows to Redis, with its life; none where there is none, or where the file
    /// cannot be read: the store says so itself.
    pub(super) fn store_certificate(&self) -> Option<(PathBuf, Life)> {
        let file = self.store_certificate.as_ref()?;
        Some((file.clone(), Life::of_file(file).ok()?))
    }

    /// The file for the root's key.
    pub fn root_key_file(&self) -> &std::path::Path {
        &self.root_key
    }

    /// The warnings that the keeper published last, one line each; empty where all is well.
    pub fn warnings(&self) -> Vec<String> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).warnings.clone()
    }

    /// Computes the warnings of this moment, with what the last attempt to renew ran into.
    pub fn look(&self, authority: &Authority, now: Timestamp) -> Vec<String> {
        let failure = self.published.lock().unwrap_or_else(PoisonError::into_inner).failure.clone();
        let facts = Facts {
            root: authority.root().life,
            intermediate: authority.intermediate().life,
            failure,
            store: self.store_certificate(),
        };
        // The root's key is read only where a warning needs it.
        let warnings = warnings(&facts, || self.root_key(authority), now);
        self.published.lock().unwrap_or_else(PoisonError::into_inner).warnings.clone_from(&warnings);
        warnings
    }

    /// Notes what the last attempt to renew, or to read what is on disk, ran into.
    pub(super) fn failed(&self, failure: Option<String>) {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).failure = failure;
    }
}
