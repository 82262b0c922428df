//! Documents: records as a backend holds them, as text or as they were written.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use crate::body::{corrupt, from_body};
use crate::error::StoreError;
use crate::indexes::Indexes;
use crate::kind::Version;
use crate::record::{Record, Versioned};
use crate::seal::{Sealed, Sealer};

/// A record of a kind that the backend does not know. Cheap to clone if a cache has it.
#[derive(Debug, Clone)]
pub struct Document {
    /// The text of the key under which the database has it.
    pub key: Arc<str>,
    /// The version.
    pub version: Version,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    /// The text, as it is kept.
    Text(String),
    /// The record, as it was written or read before: a cache serves it without reading its text again.
    Record(Arc<dyn Any + Send + Sync>),
}

impl Document {
    /// Makes a document of a text that a store keeps.
    pub fn from_text(key: impl Into<Arc<str>>, version: Version, body: String) -> Self {
        Self { key: key.into(), version, content: Content::Text(body) }
    }

    /// Makes a document that no broker can have written: the database has an entry for it that cannot be read.
    pub fn unreadable(key: impl Into<Arc<str>>) -> Self {
        Self::from_text(key, 0, String::new())
    }

    /// Makes a document of a record.
    pub(crate) fn of_record(
        key: impl Into<Arc<str>>,
        version: Version,
        record: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { key: key.into(), version, content: Content::Record(record) }
    }

    /// Returns the record.
    ///
    /// # Errors
    /// [`StoreError::Forged`] if the kind is sealed and the seal does not fit; or the text cannot be read, or is of another kind.
    pub fn record<R: Record>(&self, sealer: &Sealer) -> Result<Cow<'_, R>, StoreError> {
        match &self.content {
            Content::Text(text) if R::KIND.is_sealed => {
                let of = Sealed { kind: R::KIND.name, key: &self.key, version: self.version };
                let forged = || StoreError::Forged { what: R::subject(&self.key) };
                from_body(R::KIND.noun, sealer.open(of, text).ok_or_else(forged)?).map(Cow::Owned)
            }
            Content::Text(body) => from_body(R::KIND.noun, body).map(Cow::Owned),
            Content::Record(record) => {
                record.downcast_ref().map(Cow::Borrowed).ok_or_else(|| corrupt(R::KIND.noun, OtherKind))
            }
        }
    }

    /// Returns the text as the database has it; none of it if the document is of a cache.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn text(&self) -> &str {
        match &self.content {
            Content::Text(text) => text,
            Content::Record(_) => "",
        }
    }

    /// Returns the record, and its version.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn versioned<R: Record>(&self, sealer: &Sealer) -> Result<Versioned<R>, StoreError> {
        Ok(Versioned { record: self.record::<R>(sealer)?.into_owned(), version: self.version })
    }

    /// Returns the record of an entry of an index.
    ///
    /// # Errors
    /// As [`Self::record`], and [`StoreError::Forged`] if the kind is sealed and its record is in no such index.
    pub(crate) fn indexed<R: Record>(
        &self,
        sealer: &Sealer,
        index: &str,
    ) -> Result<Versioned<R>, StoreError> {
        let found = self.versioned::<R>(sealer)?;
        // A cache has put its records into their indexes itself.
        let is_checked = !R::KIND.is_sealed || matches!(self.content, Content::Record(_));
        if is_checked || found.record.indexes().contains(index) {
            Ok(found)
        } else {
            Err(StoreError::Forged { what: format!("the entry of {} in an index", R::subject(&self.key)) })
        }
    }

    /// Returns the document with its text read, and the indexes in which its record says that it is.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub(crate) fn read<R: Record>(&self, sealer: &Sealer) -> Result<(Self, Indexes), StoreError> {
        let record = Arc::new(self.record::<R>(sealer)?.into_owned());
        let indexes = record.indexes();
        Ok((
            Self { key: Arc::clone(&self.key), version: self.version, content: Content::Record(record) },
            indexes,
        ))
    }
}

/// A record that is of another type than the caller expects.
#[derive(Debug, thiserror::Error)]
#[error("it is a record of another kind")]
struct OtherKind;
