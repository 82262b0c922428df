//! Durable values: the answers that a use case may give to a change.
//!
//! **The problem.** A commit that ended in an error may have been applied. With replicas this is the usual case: the primary
//! has the records, and only the replicas' confirmation is missing. A caller that repeats its call meets the records that it
//! wrote itself. "It is so already" would then be an answer about records that a failover may lose (I4).
//!
//! **The rule.** A use case answers a change with a [`Durable`] value. There are two ways to one: a commit
//! ([`Durable::commit`]), and a read that waits for the same confirmation
//! ([`crate::Store::get_durable`]). Only stores make the value of a read, so that no use case can answer a change from a plain read
//! by mistake. Calls that only read use plain reads, and may show a record before replicas have it.
//!
//! **On failure.** The read fails as the commit did, with [`crate::StoreError::Unavailable`], and the caller repeats its call.

use std::ops::Deref;

/// A value that depends only on records that are as durable as an answered commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable<T>(T);

impl<T> Durable<T> {
    /// Makes a value of a record that the store knows to be durable.
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }

    /// Makes a value of this one.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Durable<U> {
        Durable(change(self.0))
    }

    /// Returns the value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Durable<Option<T>> {
    /// Returns the value in it, if there is one.
    pub fn transpose(self) -> Option<Durable<T>> {
        self.0.map(Durable)
    }
}

impl<T> Deref for Durable<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
