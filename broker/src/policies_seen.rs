//! The newest policies that this broker has seen: their manifest, which it keeps in `data_dir/policies-seen`.
//!
//! **The problem.** A store that is put back as a whole fits itself: policies that an administrator has replaced give rights again. A store
//! that has lost a policy and its manifest fits itself as well: a change of another policy would make that loss the rule, and hosts would
//! lose their protection.
//!
//! **The rule.** The broker writes the manifest of the policies (the generation, and each policy's version and digest) into its own file,
//! durably, before it answers a change of a policy, and within a second after a change by another broker. It reads no policies of a lower
//! generation ([`postern_store::StoreError::PoliciesLost`]): requests are refused, and hosts keep their protection, until an administrator
//! has applied or deleted each policy that differs. If the manifest in the store is lost, forged or older, a change goes on from the one in
//! the file.
//!
//! **On failure.** A manifest that was not written is tried again each second, and counts once it is written. A file that cannot be read stops
//! the start. Without a file (a first start, a new `data_dir`) the broker takes the policies that it finds. A file of an earlier version has
//! the generation alone.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use postern_runtime::files;
use postern_store::{SeenPolicies, Store};
use tokio::sync::Mutex;

use crate::limits::log_due;

/// The file with the manifest.
const FILE: &str = "policies-seen";

/// The newest policies that this broker has seen.
#[derive(Debug)]
pub struct PoliciesSeen {
    path: PathBuf,
    /// The content of the file.
    written: Mutex<SeenPolicies>,
    /// The content at the start.
    at_start: SeenPolicies,
}

impl PoliciesSeen {
    /// Reads the file in a data directory.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(data_dir: &Path) -> anyhow::Result<Self> {
        let path = data_dir.join(FILE);
        let seen: SeenPolicies = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| {
                format!(
                    "{} is malformed; compare the policies with your files, move it away, and start the broker again",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => SeenPolicies::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(Self { path, written: Mutex::new(seen.clone()), at_start: seen })
    }

    /// Returns the generation in the file at the start; 0 without a file.
    pub(crate) fn at_start(&self) -> u64 {
        self.at_start.generation
    }

    /// Writes that a broker on this data directory has seen newer policies than those of a generation: a store that has that
    /// generation counts as one that went back.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_newer(data_dir: &Path, than: u64) -> anyhow::Result<()> {
        let path = data_dir.join(FILE);
        let seen = SeenPolicies { generation: than.saturating_add(1), policies: None };
        files::replace_durably_for_owner_of_dir(&path, &serde_json::to_vec(&seen)?, files::PRIVATE)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Has the store refuse policies that are older than those of the file.
    pub fn tell(&self, store: &Store) {
        store.has_seen(&self.at_start);
    }

    /// Looks at the policies of the store, and writes their manifest durably if its generation is higher than any before.
    ///
    /// # Errors
    /// The file cannot be written, which is logged; nothing is lost if the caller looks again.
    pub async fn look(&self, store: &Store) -> anyhow::Result<()> {
        let mut written = self.written.lock().await;
        let found = match store.durable_manifest().await {
            Ok(manifest) => SeenPolicies::from(manifest.unwrap_or_default()),
            // A store that does not answer is shown as that, and a forged manifest by each read of the policies.
            Err(_) => return Ok(()),
        };
        let is_whole = found.generation == written.generation && written.policies.is_none();
        if found.generation > written.generation || (is_whole && found.generation > 0) {
            self.write(&found).inspect_err(|error| {
                if let Some(omitted) = log_due("policies that are seen") {
                    let error = format!("{error:#}");
                    tracing::error!(
                        error,
                        omitted,
                        "the broker cannot keep the manifest of the policies, will retry"
                    );
                }
            })?;
            *written = found;
        }
        // Also if another store of this process has told of it.
        store.has_seen(&written);
        Ok(())
    }

    fn write(&self, seen: &SeenPolicies) -> anyhow::Result<()> {
        files::replace_durably_for_owner_of_dir(&self.path, &serde_json::to_vec(seen)?, files::PRIVATE)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use postern_core::audit::AuditEvent;
    use postern_store::testing::memory::Memory;
    use postern_store::{Expect, StoreError, Transaction};

    use super::*;
    use crate::testing::builders::{a_policy, at};

    #[tokio::test]
    async fn i7_a_broker_that_starts_on_an_older_store_reads_none_of_its_policies() {
        let dir = tempfile::tempdir().unwrap();
        let put = async |store: &Memory| {
            let event = AuditEvent::done(at(0), "a test", "policy.put");
            let change = Transaction::default().put_policy(a_policy().build(), Expect::Any).audit(event);
            store.commit(change).await.unwrap();
        };
        let newer = Memory::default();
        let seen = PoliciesSeen::load(dir.path()).unwrap();
        seen.look(&newer.store()).await.unwrap();
        assert!(!seen.path.exists(), "there is nothing to keep");
        for generation in [1, 2, 3] {
            put(&newer).await;
            seen.look(&newer.store()).await.unwrap();
            assert_eq!(newer.store().seen_generation(), generation);
        }
        assert_eq!(std::fs::metadata(&seen.path).unwrap().permissions().mode() & 0o777, 0o600);

        let older = Memory::default();
        put(&older).await;
        let store = older.store();
        let seen = PoliciesSeen::load(dir.path()).unwrap();
        seen.tell(&store);
        for _ in 0..2 {
            assert!(matches!(store.policies().await, Err(StoreError::PoliciesLost { .. })));
            seen.look(&store).await.unwrap();
        }
        let change = Transaction::default().put_policy(a_policy().build(), Expect::Any);
        store.commit(change.audit(AuditEvent::done(at(0), "a test", "policy.put"))).await.unwrap();
        seen.look(&store).await.unwrap();
        assert_eq!((store.policies().await.unwrap().len(), store.seen_generation()), (1, 4));

        // A file of an earlier version has the generation alone, and gets the rest.
        std::fs::write(&seen.path, r#"{"generation":4}"#).unwrap();
        let earlier = PoliciesSeen::load(dir.path()).unwrap();
        earlier.look(&store).await.unwrap();
        assert!(std::fs::read_to_string(&seen.path).unwrap().contains("usual"), "with the policies");

        std::fs::write(&seen.path, "half of a").unwrap();
        let error = format!("{:#}", PoliciesSeen::load(dir.path()).unwrap_err());
        assert!(error.contains("policies-seen is malformed"), "{error}");
    }
}
