//! The state of the authority's life, for other parts of the broker.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use postern_pki::life::Life;
use postern_pki::{Authority, PkiError};

use super::root_key::{RootKey, in_a_line};
use super::warnings::{Facts, clock_in_words, warnings};
use crate::config::BrokerConfig;

/// The state of the authority's certificates, as the keeper publishes it for other parts of the broker.
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
    /// Set if the intermediate for agents is revoked.
    is_revoked: bool,
    /// The lead of the wall clock over the broker's clock.
    wall_ahead: SignedDuration,
}

impl Standing {
    /// Starts without warnings.
    pub fn of(config: &BrokerConfig) -> Self {
        let client = config.redis.as_ref().and_then(|redis| redis.tls.client.as_ref());
        let store_certificate = client.map(|(certificate, _)| certificate.clone());
        Self { store_certificate, ..Self::at(config.root_key.clone()) }
    }

    /// Starts without warnings, with this file for the root key.
    pub fn at(root_key: PathBuf) -> Self {
        Self { root_key, store_certificate: None, published: Mutex::default() }
    }

    /// Looks for the root's key.
    pub fn root_key(&self, authority: &Authority) -> RootKey {
        match authority.check_root_key(&self.root_key) {
            Ok(()) => RootKey::AtHand,
            Err(PkiError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                RootKey::Offline
            }
            Err(error) => RootKey::Unusable { reason: in_a_line(error) },
        }
    }

    /// Returns the client certificate that the broker shows to Redis, with its life; none if none is configured, or if the
    /// file cannot be read, which the store reports itself.
    pub(super) fn store_certificate(&self) -> Option<(PathBuf, Life)> {
        let file = self.store_certificate.as_ref()?;
        Some((file.clone(), Life::of_file(file).ok()?))
    }

    /// Returns the file for the root's key.
    pub fn root_key_file(&self) -> &std::path::Path {
        &self.root_key
    }

    /// Returns the warnings that the keeper published last, and that of the clocks, one line each; empty if there are none.
    pub fn warnings(&self) -> Vec<String> {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let of_the_clocks = clock_in_words(published.wall_ahead);
        published.warnings.iter().cloned().chain(of_the_clocks).collect()
    }

    /// Notes the lead of the wall clock over the broker's clock.
    pub fn note_clock(&self, wall_ahead: SignedDuration) {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).wall_ahead = wall_ahead;
    }

    /// Computes the current warnings about the authority, with the failure of the last attempt to renew. `now` is the time of
    /// the wall clock.
    pub fn look(&self, authority: &Authority, now: Timestamp) -> Vec<String> {
        let (failure, is_revoked) = {
            let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            (published.failure.clone(), published.is_revoked)
        };
        let people = authority.people();
        let facts = Facts {
            root: authority.root().life,
            intermediate: authority.intermediate().life,
            people: people.as_ref().ok().and_then(Option::as_ref).map(|people| people.life),
            people_failure: people.err().map(in_a_line),
            is_revoked,
            failure,
            root_key: self.root_key(authority),
            stale_copy: authority.stale_copy().map(Path::to_owned),
            store: self.store_certificate(),
        };
        let warnings = warnings(&facts, now);
        self.published.lock().unwrap_or_else(PoisonError::into_inner).warnings.clone_from(&warnings);
        warnings
    }

    /// Notes whether the intermediate for agents is revoked.
    pub(super) fn revoked(&self, is_revoked: bool) {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).is_revoked = is_revoked;
    }

    /// Notes the failure of the last attempt to renew, or to read the files.
    pub(super) fn failed(&self, failure: Option<String>) {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).failure = failure;
    }
}
