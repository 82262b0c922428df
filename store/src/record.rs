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

/// A record whose seal does not fit, as a page finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgedRecord {
    /// The text of the key.
    pub key: String,
    /// The version; 0 if it cannot be read.
    pub version: Version,
}

/// A page of an index.
#[derive(Debug)]
pub struct RecordPage<T> {
    /// The records, in the order of the range.
    pub records: Vec<Versioned<T>>,
    /// The forged ones among them.
    pub forged: Vec<ForgedRecord>,
    /// The key of the last document, forged or not, at which the next page begins; none if the index has no more.
    pub next: Option<String>,
}

/// A page of a scan.
#[derive(Debug)]
pub struct FoundPage<T> {
    /// The records.
    pub found: Vec<Found<T>>,
    /// The forged ones among them.
    pub forged: Vec<ForgedRecord>,
    /// The beginning of the next page; none after the last one.
    pub next: Option<String>,
}

/// A record and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The record.
    pub record: T,
    /// The version, for the compare-and-set of the next change.
    pub version: Version,
}
