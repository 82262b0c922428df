//! The seals of a batch: each needs the version that its record has after the write.
//!
//! Most writes say it themselves: a new record has version 1, and a changed one the version after the one that the write expects.
//! For the others the store reads the last version first, and has the database refuse the batch if it has moved since; then the
//! store reads again. A batch with a policy also writes the manifest of the policies (`records/manifest.rs`).

use std::collections::BTreeMap;

use postern_core::Policy;

use crate::backend::Backend;
use crate::batch::{Batch, Expect, Write};
use crate::error::StoreError;
use crate::kind::{Kind, LastVersion, next_version};
use crate::record::Record as _;
use crate::records::manifest::PolicyMark;
use crate::seal::{Sealed, Sealer, digest};

/// A batch with seals.
#[derive(Debug)]
pub(crate) struct SealedBatch {
    pub(crate) batch: Batch,
    /// The versions that were read for it, in the order of the writes.
    pub(crate) read: Vec<LastVersion>,
    /// The policies that it puts, as they are after it, and those that it deletes.
    pub(crate) policies: BTreeMap<String, Option<PolicyMark>>,
}

/// Reports whether every seal of the batch can be made without a look at the store.
pub(crate) fn says_its_versions(batch: &Batch) -> bool {
    let says = |write: &Write| !write.kind.is_sealed || write.put.is_none() || version_of(write).is_some();
    batch.writes.iter().all(|write| says(write) && write.kind != Policy::KIND)
}

/// Seals the records of a batch that says their versions: see [`says_its_versions`].
pub(crate) fn seal_as_said(batch: &mut Batch, sealer: &Sealer) {
    for write in batch.writes.iter_mut().filter(|write| write.kind.is_sealed) {
        let version = version_of(write).unwrap_or(0);
        if let Some(put) = &mut write.put {
            put.body = sealer.seal(Sealed { kind: write.kind.name, key: &write.key, version }, &put.body);
        }
    }
}

/// Seals the records of a batch.
///
/// # Errors
/// A version cannot be read.
pub(crate) async fn seal(
    mut batch: Batch,
    sealer: &Sealer,
    backend: &dyn Backend,
) -> Result<SealedBatch, StoreError> {
    let (mut known, mut read): (BTreeMap<(&str, String), LastVersion>, _) = (BTreeMap::new(), Vec::new());
    let keys: Vec<(Kind, String)> =
        batch.writes.iter().map(|write| (write.kind, write.key.clone())).collect();
    for (at, write) in batch.writes.iter_mut().enumerate().filter(|(_, write)| write.kind.is_sealed) {
        let place = (write.kind.name, write.key.clone());
        let is_written_again =
            || keys.iter().skip(at + 1).any(|(kind, key)| *kind == write.kind && *key == write.key);
        let before = known.get(&place).copied();
        let after = match (version_of(write), before) {
            (Some(version), _) if write.put.is_some() => LastVersion { version, is_there: true },
            _ if write.put.is_none() && !is_written_again() => continue,
            (_, Some(before)) => after(write, before),
            (_, None) => {
                let before = backend.last_version(write.kind, &write.key).await?;
                read.push(before);
                let found = before.is_there.then_some(before.version);
                let version = write.kind.last_version(found, before.version);
                after(write, LastVersion { version, ..before })
            }
        };
        if let Some(put) = &mut write.put {
            let of = Sealed { kind: write.kind.name, key: &write.key, version: after.version };
            put.body = sealer.seal(of, &put.body);
        }
        known.insert(place, after);
    }
    let policies = batch.writes.iter().filter(|write| write.kind == Policy::KIND).map(|write| {
        let after = known.get(&(write.kind.name, write.key.clone())).zip(write.put.as_ref());
        let mark = after.map(|(after, put)| PolicyMark { version: after.version, digest: digest(&put.body) });
        (write.key.clone(), mark)
    });
    let policies = policies.collect();
    Ok(SealedBatch { batch, read, policies })
}

/// Returns the version that a put gives its record, if the put says it.
fn version_of(write: &Write) -> Option<u64> {
    write.expect.version_after(write.kind)
}

/// Makes a write depend on the version before it, and returns the one after it.
fn after(write: &mut Write, before: LastVersion) -> LastVersion {
    let is_deleted = write.put.is_none();
    if !is_deleted {
        write.expect = match write.expect {
            // The write conflicts: the record is there.
            Expect::Absent | Expect::AbsentAfter(_) => Expect::AbsentAfter(before.version),
            Expect::Any if !before.is_there => Expect::AbsentAfter(before.version),
            Expect::Any => Expect::Version(before.version),
            Expect::Version(version) => Expect::Version(version),
        };
        return LastVersion { version: next_version(before.version), is_there: true };
    }
    let kept = if write.kind.keeps_versions { next_version(before.version) } else { 0 };
    LastVersion { version: kept, is_there: false }
}
