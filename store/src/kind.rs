//! Kinds: the facts about one sort of record that a backend needs, and the parts of a store that are made of them.

use std::fmt;

/// The count of a record's changes, from 1.
pub type Version = u64;

/// The largest version that a broker writes: a database's own numbers hold it exactly. A larger one is another program's.
pub(crate) const MAX_VERSION: Version = 999_999_999_999_999;

/// Returns the version after this one. After [`MAX_VERSION`], which only another program can have reached, versions begin again, so
/// that a broker can read what it writes over such a record.
pub(crate) fn next_version(version: Version) -> Version {
    if version < MAX_VERSION { version + 1 } else { 1 }
}

/// The last version of a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastVersion {
    /// The version; 0 if there is no document, and it left none.
    pub version: Version,
    /// Set if the document is there.
    pub is_there: bool,
}

/// A kind of record, as a backend knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The name under which a store keeps the records, in lower-case letters.
    pub name: &'static str,
    /// The noun for one record, for errors.
    pub noun: &'static str,
    /// Set if a record that is deleted and put again counts on, so that a version that was read before the deletion never
    /// fits the later record.
    pub keeps_versions: bool,
    /// Set if the event of a commit names the records that it changed, for the other brokers.
    pub is_announced: bool,
    /// Set if the records are sealed: the store takes none that another program wrote.
    pub is_sealed: bool,
    /// Set if a list of the kind is an error while one of its records is forged, because the lack of a record gives rights.
    pub is_whole: bool,
}

impl Kind {
    /// Makes a kind whose deleted records leave nothing behind, and whose changes no event names.
    ///
    /// # Panics
    /// The name is not of lower-case letters, or a store uses it for something else. A kind is a constant, so that this stops the
    /// build.
    pub const fn new(name: &'static str, noun: &'static str) -> Self {
        assert!(
            is_kind_name(name),
            "the name of a kind has lower-case letters alone, and no store uses it itself"
        );
        Self { name, noun, keeps_versions: false, is_announced: false, is_sealed: false, is_whole: false }
    }

    /// Keeps the versions of deleted records.
    #[must_use]
    pub const fn keeping_versions(self) -> Self {
        Self { keeps_versions: true, ..self }
    }

    /// Returns the last version of a record as a write counts on from it. `found` is the version of a record that is there. A version
    /// that a record of a kind that keeps none seems to have left is another program's, and counts for nothing.
    pub(crate) fn last_version(self, found: Option<Version>, last: Version) -> Version {
        if found.is_none() && !self.keeps_versions { 0 } else { last }
    }

    /// Has the events of commits name the records.
    #[must_use]
    pub const fn announced(self) -> Self {
        Self { is_announced: true, ..self }
    }

    /// Seals the records.
    #[must_use]
    pub const fn sealed(self) -> Self {
        Self { is_sealed: true, ..self }
    }

    /// Seals the records, and leaves no forged one out of a list.
    #[must_use]
    pub const fn sealed_whole(self) -> Self {
        Self { is_sealed: true, is_whole: true, ..self }
    }
}

/// The names of other things that a store keeps: on Redis, the records of a kind are a key beside these.
const RESERVED: [&str; 20] = [
    "audit",
    "base",
    "confirmed",
    "events",
    "exclusive",
    "fence",
    "head",
    "incomplete",
    "kinds",
    "leases",
    "locks",
    "losses",
    "members",
    "moved",
    "queue",
    "schema",
    "sealed",
    "statuses",
    "turn",
    "upgrading",
];

/// Reports whether a kind can have this name. Another program may have written others into the database.
pub(crate) const fn is_kind_name(name: &str) -> bool {
    let letters = name.as_bytes();
    let mut at = 0;
    while at < letters.len() {
        if !letters[at].is_ascii_lowercase() {
            return false;
        }
        at += 1;
    }
    let mut at = 0;
    while at < RESERVED.len() {
        if is_same(letters, RESERVED[at].as_bytes()) {
            return false;
        }
        at += 1;
    }
    !letters.is_empty()
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// A part of a store: the audit log, or the records of one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The audit log.
    Audit,
    /// The records of the kind with this name.
    Records(String),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Audit => f.write_str("audit records"),
            Self::Records(kind) => f.write_str(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_kind_has_a_name_of_lower_case_letters_that_no_store_uses() {
        for bad in ["", "Grants", "my grants", "grants:open", "grants/", "grants2", "audit", "head"] {
            catch_unwind(|| Kind::new(bad, "grant")).unwrap_err();
        }
        assert_eq!(Kind::new("grants", "grant").name, "grants");
    }

    #[test]
    fn a_version_after_the_largest_one_begins_again() {
        assert_eq!([0, 1, MAX_VERSION - 1, MAX_VERSION].map(next_version), [1, 2, MAX_VERSION, 1]);
    }
}
