//! Documents: records as a backend holds them, as text or as they were written.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use postern_core::text::clipped;

use crate::body::{corrupt, from_body};
use crate::error::StoreError;
use crate::indexes::Indexes;
use crate::kind::Version;
use crate::record::{Record, Versioned};
use crate::seal::{Sealed, Sealer, digest};

/// The most characters that an error or a log line repeats of a key, or of another text that another program may have written into the
/// database: the longest name of a virtual machine in a cloud fits.
const MAX_SHOWN: usize = 300;

/// Returns a text of the database as errors and logs show it: bounded, invisible characters escaped.
pub(crate) fn shown(text: &str) -> String {
    clipped(text, MAX_SHOWN)
}

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
    Record {
        record: Arc<dyn Any + Send + Sync>,
        /// The digest of its text, of a kind of which no record may be left out of a list.
        digest: Option<Arc<str>>,
    },
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

    /// Makes a document of a record and the digest of its text, if that is needed.
    pub(crate) fn of_record(
        key: impl Into<Arc<str>>,
        version: Version,
        record: Arc<dyn Any + Send + Sync>,
        digest: Option<Arc<str>>,
    ) -> Self {
        Self { key: key.into(), version, content: Content::Record { record, digest } }
    }

    /// Returns the digest of the text without its seal; an empty text if a cache has not kept it.
    pub(crate) fn digest(&self) -> Cow<'_, str> {
        match &self.content {
            Content::Text(text) => Cow::Owned(digest(text)),
            Content::Record { digest, .. } => Cow::Borrowed(digest.as_deref().unwrap_or_default()),
        }
    }

    /// Returns the record.
    ///
    /// # Errors
    /// [`StoreError::Forged`] if the kind is sealed and the seal does not fit; or the text cannot be read, or is of another kind.
    pub fn record<R: Record>(&self, sealer: &Sealer) -> Result<Cow<'_, R>, StoreError> {
        match &self.content {
            Content::Text(text) if R::KIND.is_sealed => {
                let of = Sealed { kind: R::KIND.name, key: &self.key, version: self.version };
                let forged = || StoreError::Forged { what: R::subject(&shown(&self.key)) };
                from_body(R::KIND.noun, sealer.open(of, text).ok_or_else(forged)?).map(Cow::Owned)
            }
            Content::Text(body) => from_body(R::KIND.noun, body).map(Cow::Owned),
            Content::Record { record, .. } => {
                record.downcast_ref().map(Cow::Borrowed).ok_or_else(|| corrupt(R::KIND.noun, OtherKind))
            }
        }
    }

    /// Returns the text as the database has it; none of it if the document is of a cache.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn text(&self) -> &str {
        match &self.content {
            Content::Text(text) => text,
            Content::Record { .. } => "",
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
        let is_checked = !R::KIND.is_sealed || matches!(self.content, Content::Record { .. });
        if is_checked || found.record.indexes().contains(index) {
            Ok(found)
        } else {
            let what = format!("the entry of {} in an index", R::subject(&shown(&self.key)));
            Err(StoreError::Forged { what })
        }
    }

    /// Returns the document with its text read, and the indexes in which its record says that it is.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub(crate) fn read<R: Record>(&self, sealer: &Sealer) -> Result<(Self, Indexes), StoreError> {
        let record = Arc::new(self.record::<R>(sealer)?.into_owned());
        let indexes = record.indexes();
        let digest = R::KIND.is_whole.then(|| self.digest().into());
        let content = Content::Record { record, digest };
        Ok((Self { key: Arc::clone(&self.key), version: self.version, content }, indexes))
    }
}

/// A record that is of another type than the caller expects.
#[derive(Debug, thiserror::Error)]
#[error("it is a record of another kind")]
struct OtherKind;
