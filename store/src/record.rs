//! Records: the one description from which every backend keeps, finds and moves a type.
//!
//! A new kind of record is one file: a type, and its [`Record`]. `Transaction::put` and `delete`, `Store::get`, `list` and
//! `range` take it from there; no backend, no script and no migration of a store names a kind.

use std::fmt::{Debug, Display};

use postern_core::TargetId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::indexes::Indexes;
use crate::kind::{Kind, Version};

/// A type of which a store keeps records.
pub trait Record: Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    /// The kind.
    const KIND: Kind;

    /// The key, by which one record is found. Its text has no line break.
    type Key: Display;

    /// Returns the indexes in which a store lists this record, in the order of the keys. They may change with the record.
    fn indexes(&self) -> Indexes {
        Indexes::default()
    }

    /// Returns the targets to look at when this record changes, for the event of the commit.
    fn targets(&self) -> Vec<&TargetId> {
        Vec::new()
    }

    /// Names the record with this key, for an error.
    fn subject(key: &str) -> String {
        format!("the {} {key}", Self::KIND.noun)
    }
}

/// A record with its key, as a scan finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T> {
    /// The text of the key.
    pub key: String,
    /// The record.
    pub record: T,
    /// The version.
    pub version: Version,
}

/// A record and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The record.
    pub record: T,
    /// The version, for the compare-and-set of the next change.
    pub version: Version,
}
