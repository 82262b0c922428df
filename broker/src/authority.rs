//! The authority's life in a running broker.
//!
//! The *intermediate* signs everything that agents, people and the broker itself show; it lives for a year, and everything
//! ends with it. So the [`Keeper`] renews it at half of its life, wherever the *root key* is at hand, and takes up one that
//! `postern-broker authority renew` has put on disk, without a restart. Every peer trusts the *root* and every certificate
//! comes with the intermediate that signed it, so certificates of the old intermediate and of the new are good side by side,
//! on every broker under the root.
//!
//! The rule that is kept: an end of a certificate never ends the broker. With an ended intermediate the broker starts, says
//! so in its log, its metrics and its readiness, refuses every handshake, and goes on closing: windows at hosts end by
//! themselves, and those in clouds are the reconciler's, which needs no certificate (I2).

pub mod command;
mod keeper;
mod warnings;

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use postern_pki::life::Life;
use postern_pki::{Authority, PkiError};

use crate::config::Config;
pub use keeper::Keeper;
pub(crate) use keeper::{serving as first_serving, show_readiness};
pub(crate) use warnings::humane;
use warnings::{Facts, warnings};

/// Where the root's key is, as the broker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootKey {
    /// In the configured file, and usable.
    AtHand,
    /// Not in that file.
    Offline,
    /// In that file, and not usable.
    Unusable {
        /// Why.
        reason: String,
    },
}

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
    fn store_certificate(&self) -> Option<(PathBuf, Life)> {
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
    fn failed(&self, failure: Option<String>) {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).failure = failure;
    }
}

/// An error with its causes, in one line.
fn in_a_line(error: PkiError) -> String {
    format!("{:#}", anyhow::Error::from(error)).replace('\n', " ")
}
