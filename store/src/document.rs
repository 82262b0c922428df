//! Documents: records as a backend holds them, as text or as they were written.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use crate::body::{corrupt, from_body};
use crate::error::StoreError;
use crate::kind::Version;
use crate::record::{Record, Versioned};

/// A record of a kind that the backend does not know. Cheap to clone if a cache has it.
#[derive(Debug, Clone)]
pub struct Document {
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
    pub fn from_text(version: Version, body: String) -> Self {
        Self { version, content: Content::Text(body) }
    }

    /// Makes a document of a record.
    pub(crate) fn of_record(version: Version, record: Arc<dyn Any + Send + Sync>) -> Self {
        Self { version, content: Content::Record(record) }
    }

    /// Returns the record.
    ///
    /// # Errors
    /// The text cannot be read, or is of another kind.
    pub fn record<R: Record>(&self) -> Result<Cow<'_, R>, StoreError> {
        match &self.content {
            Content::Text(body) => from_body(R::KIND.noun, body).map(Cow::Owned),
            Content::Record(record) => {
                record.downcast_ref().map(Cow::Borrowed).ok_or_else(|| corrupt(R::KIND.noun, OtherKind))
            }
        }
    }

    /// Returns the record, and its version.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn versioned<R: Record>(&self) -> Result<Versioned<R>, StoreError> {
        Ok(Versioned { record: self.record::<R>()?.into_owned(), version: self.version })
    }

    /// Returns the document with its text read.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub(crate) fn read<R: Record>(self) -> Result<Self, StoreError> {
        let record = Arc::new(self.record::<R>()?.into_owned());
        Ok(Self { content: Content::Record(record), ..self })
    }
}

/// A record that is of another type than the caller expects.
#[derive(Debug, thiserror::Error)]
#[error("it is a record of another kind")]
struct OtherKind;
