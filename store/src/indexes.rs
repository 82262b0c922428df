//! The indexes of a record: the lists by which a store finds it without its key.

/// The index that has every record of its kind, for a kind that is read in pages. A database that orders its keys needs no
/// entries for it.
pub const ALL: &str = "all";

/// The names of the indexes in which a record is.
///
/// A store keeps them beside the record, so that a change of the record takes it out of those in which it is no longer. A
/// name has no line break.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes {
    /// The names, one a line.
    text: String,
}

impl Indexes {
    /// Adds an index.
    #[must_use]
    pub fn and(mut self, name: &str) -> Self {
        debug_assert!(!name.is_empty() && !name.contains(['\n', '\r']), "{name:?} names no index");
        if !self.contains(name) {
            if !self.text.is_empty() {
                self.text.push('\n');
            }
            self.text.push_str(name);
        }
        self
    }

    /// Adds an index if the condition holds.
    #[must_use]
    pub fn and_if(self, holds: bool, name: &str) -> Self {
        if holds { self.and(name) } else { self }
    }

    /// Reports whether the record is in the index.
    pub fn contains(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }

    /// Returns the names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.text.lines()
    }

    /// Returns the names that are here and not in the other.
    pub(crate) fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        self.names().filter(|name| self.text != other.text && !other.contains(name))
    }

    /// Returns the text that a store keeps: one name a line.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Reads the text that a store keeps.
    pub(crate) fn from_text(text: String) -> Self {
        Self { text }
    }
}
