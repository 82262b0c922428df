//! The indexes of a record: the lists by which a store finds it without its key.

use std::collections::BTreeSet;

/// The index that has every record of its kind, for a kind that is read in pages. A database that orders its keys needs no
/// entries for it.
pub const ALL: &str = "all";

/// The names of the indexes in which a record is.
///
/// A store keeps them beside the record, so that a change of the record takes it out of those in which it is no longer. A
/// name has no line break.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes(BTreeSet<String>);

impl Indexes {
    /// Adds an index.
    #[must_use]
    pub fn and(mut self, name: impl Into<String>) -> Self {
        self.extend([name.into()]);
        self
    }

    /// Adds an index if the condition holds.
    #[must_use]
    pub fn and_if(self, holds: bool, name: impl Into<String>) -> Self {
        if holds { self.and(name) } else { self }
    }

    /// Reports whether the record is in the index.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Returns the names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Returns the names that are here and not in the other.
    pub(crate) fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        self.0.difference(&other.0).map(String::as_str)
    }

    /// Returns the text that a store keeps: one name a line.
    pub(crate) fn to_text(&self) -> String {
        self.names().collect::<Vec<_>>().join("\n")
    }

    /// Reads the text that a store keeps.
    pub(crate) fn from_text(text: &str) -> Self {
        Self(text.lines().map(str::to_owned).collect())
    }
}

impl Extend<String> for Indexes {
    fn extend<T: IntoIterator<Item = String>>(&mut self, names: T) {
        for name in names {
            debug_assert!(!name.is_empty() && !name.contains(['\n', '\r']), "{name:?} names no index");
            self.0.insert(name);
        }
    }
}

impl FromIterator<String> for Indexes {
    fn from_iter<T: IntoIterator<Item = String>>(names: T) -> Self {
        let mut indexes = Self::default();
        indexes.extend(names);
        indexes
    }
}
