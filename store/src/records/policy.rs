//! Policies, by their names.

use postern_core::{Name, Policy};

use crate::batch::Expect;
use crate::durable::Durable;
use crate::error::StoreError;
use crate::kind::Kind;
use crate::record::{Record, Versioned};
use crate::store::Store;
use crate::transaction::Transaction;

impl Record for Policy {
    const KIND: Kind = Kind::new("policies", "policy").sealed_whole().keeping_versions().announced();
    type Key = Name;
}

impl Transaction {
    /// Writes a policy.
    #[must_use]
    pub fn put_policy(self, policy: Policy, expect: Expect) -> Self {
        self.put(&policy.name.clone(), policy, expect)
    }

    /// Deletes a policy; conflicts if there is none.
    #[must_use]
    pub fn delete_policy(self, name: &Name) -> Self {
        self.delete::<Policy>(name, Expect::Any)
    }
}

impl Store {
    /// Returns a policy.
    ///
    /// # Errors
    /// The store failed, or the record cannot be read.
    pub async fn policy(&self, name: &Name) -> Result<Option<Versioned<Policy>>, StoreError> {
        self.get(name).await
    }

    /// Returns a policy, or that there is none, once that is as durable as an answered commit.
    ///
    /// # Errors
    /// It may be lost with the server that has it, or cannot be read.
    pub async fn durable_policy(
        &self,
        name: &Name,
    ) -> Result<Durable<Option<Versioned<Policy>>>, StoreError> {
        self.get_durable(name).await
    }

    /// Returns every policy, in the order of their names.
    ///
    /// # Errors
    /// The store failed, a record cannot be read, or they are not the policies that were kept last.
    pub async fn policies(&self) -> Result<Vec<Versioned<Policy>>, StoreError> {
        Ok(Box::pin(self.kept_policies()).await?.policies)
    }
}
