//! The check of a copied store: its chain, its checkpoint, its seals and its numbers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use postern_core::audit::{Broken, Head};
use postern_core::{Grant, Policy};
use postern_pki::{Authority, LogVerifier};
use postern_store::embedded::{Embedded, Transfer};
use postern_store::transfer::Source as _;
use postern_store::{
    AgentRecord, IssuedPrincipal, PolicyManifest, Record, RequestRecord, Revocation, RevokedIntermediate,
    Sealing, Store, StoreError, TokenRecord,
};

use crate::checkpoints::{Memory, read_on};

/// The records that are read at once.
const PAGE: usize = 500;

/// The facts about a store that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoreFacts {
    pub(super) base: Head,
    pub(super) head: Head,
    /// The number of the record that the trusted checkpoint names.
    pub(super) checkpoint: Option<u64>,
    /// The generation of the policies; 0 if there are none, or the manifest is forged.
    pub(super) generation: u64,
    /// The number of records of each kind, and of lines of the audit log.
    pub(super) records: BTreeMap<String, u64>,
    /// The number of records whose seal does not fit. They give no rights.
    pub(super) forged: usize,
}

/// Opens a copied database and checks it.
///
/// # Errors
/// The database cannot be read, is not one chain from its base (or from the record that an operator accepted) to its end, or contradicts the
/// trusted checkpoint.
pub(super) async fn check(
    database: &Path,
    sealing: &Sealing,
    memory: &Memory,
    authority: &Authority,
    trust_domain: &str,
) -> anyhow::Result<StoreFacts> {
    let mut transfer = Transfer::open(database, sealing)?;
    let counts = transfer.counts().await?;
    drop(transfer);
    let records = counts.into_iter().map(|(part, count)| (part.to_string(), count)).collect();
    let store = Embedded::open(database, sealing)?;
    let (base, head) = (store.audit_base().await?, store.audit_head().await?);
    let roots = authority.roots();
    let accepted = memory.accepted.as_ref().filter(|accepted| accepted.checkpoint.seq > base.seq);
    let mut verifier = match accepted {
        Some(accepted) => {
            accepted
                .verify(&roots, Some(trust_domain))
                .context("the accepted checkpoint cannot be verified")?;
            LogVerifier::after(accepted.clone(), roots.clone())
        }
        None => LogVerifier::from_head(base, roots.clone()),
    };
    // During an alarm the log contradicts it, and the broker says so already.
    let trusted = memory.trusted.as_ref().filter(|_| memory.alarm.is_none());
    if let Some(trusted) = trusted {
        trusted.verify(&roots, Some(trust_domain)).context("the trusted checkpoint cannot be verified")?;
        verifier.expect(trusted.clone());
    }
    if let Err(Broken { line, problem }) = read_on(&store, &mut verifier).await? {
        anyhow::bail!(
            "the audit log cannot be trusted: record {line} {problem}; see docs/operations.md, \"An audit log that went back\""
        );
    }
    ensure!(
        verifier.head() == head,
        "the audit log ends with record {}, and the store says {}",
        verifier.head().seq,
        head.seq
    );
    let generation = match store.durable_manifest().await {
        Ok(manifest) => manifest.map_or(0, |manifest| manifest.generation),
        Err(StoreError::Forged { .. }) => 0,
        Err(error) => return Err(error.into()),
    };
    let forged = forged(&store).await?;
    let facts = StoreFacts {
        base,
        head,
        checkpoint: trusted.map(|trusted| trusted.checkpoint.seq),
        generation,
        records,
        forged,
    };
    drop(store);
    remove_lock(database)?;
    Ok(facts)
}

/// Removes the file with the lock that opening a copy has made.
///
/// # Errors
/// It cannot be removed.
pub(super) fn remove_lock(database: &Path) -> anyhow::Result<()> {
    let lock = database.with_extension("lock");
    match fs::remove_file(&lock) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", lock.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Reads every sealed record, and counts those whose seal does not fit.
async fn forged(store: &Store) -> anyhow::Result<usize> {
    let mut all = 0;
    all += forged_of::<Policy>(store).await?;
    all += forged_of::<PolicyManifest>(store).await?;
    all += forged_of::<AgentRecord>(store).await?;
    all += forged_of::<TokenRecord>(store).await?;
    all += forged_of::<Grant>(store).await?;
    all += forged_of::<RequestRecord>(store).await?;
    all += forged_of::<Revocation>(store).await?;
    all += forged_of::<IssuedPrincipal>(store).await?;
    all += forged_of::<RevokedIntermediate>(store).await?;
    Ok(all)
}

async fn forged_of<R: Record>(store: &Store) -> anyhow::Result<usize> {
    let (mut from, mut forged) = (None, 0);
    loop {
        let page = store.scan::<R>(from.as_deref(), PAGE).await?;
        forged += page.forged.len();
        from = page.next;
        if from.is_none() {
            return Ok(forged);
        }
    }
}
