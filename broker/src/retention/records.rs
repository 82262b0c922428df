//! The removal of records that are over.

use anyhow::Context as _;
use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::{Grant, GrantId};
use postern_store::{
    ALL, Expect, ForgedRecord, Found, IssuedPrincipal, Range, Record, RequestKey, RequestRecord, Store,
    StoreError, TokenRecord, Transaction, Versioned,
};

use super::settings::{BATCH, PAUSE};

/// Removes the records that were over before the cutoff.
///
/// # Errors
/// The store failed; what was removed before stays removed.
pub(super) async fn remove(store: &Store, cutoff: Timestamp, now: Timestamp) -> anyhow::Result<()> {
    remove_grants(store, cutoff, now).await.context("cannot remove grants")?;
    remove_tokens(store, cutoff, now).await.context("cannot remove join tokens")?;
    remove_principals(store, cutoff, now).await.context("cannot remove principals")
}

/// A batch that is being filled.
#[derive(Default)]
struct Batch {
    changes: Transaction,
    /// The number of records of each kind that it removes, by the name in its audit record.
    counts: Vec<(&'static str, usize)>,
}

impl Batch {
    fn count(&mut self, name: &'static str) {
        match self.counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((name, 1)),
        }
    }

    /// Commits the batch, if there is anything in it, and pauses.
    async fn commit(self, store: &Store, cutoff: Timestamp, now: Timestamp) -> Result<(), StoreError> {
        if self.counts.is_empty() {
            return Ok(());
        }
        let event = AuditEvent::done(now, "broker", "retention.removed").with("before", cutoff);
        let event = self.counts.iter().fold(event, |event, (name, count)| event.with(name, count));
        match store.commit(self.changes.audit(event)).await {
            Ok(_) => {
                tracing::info!(event = "retention.removed", counts = ?self.counts, "records that are over left the store");
            }
            // A record of the batch has changed since it was read: it is read again in the next round.
            Err(error @ StoreError::Conflict { .. }) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "a batch was overtaken, will retry"
                );
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Removes the grants that closed before the cutoff, each with the idempotency key that made it.
async fn remove_grants(store: &Store, cutoff: Timestamp, now: Timestamp) -> Result<(), StoreError> {
    // A grant is not closed before it is requested, and ids sort by the time of the request.
    let end = GrantId::from_parts(cutoff, 0).to_string();
    let mut after: Option<String> = None;
    loop {
        let (before, after_key) = (Some(end.as_str()), after.as_deref());
        // Each may take its idempotency key with it.
        let range = Range { after: after_key, before, limit: BATCH / 2, ..Range::all(ALL) };
        let page = store.page::<Grant>(range).await?;
        remove_forged::<Grant>(store, &page.forged, cutoff, now).await?;
        after = page.next;
        let mut batch = Batch::default();
        for Versioned { record: grant, version } in
            page.records.into_iter().filter(|grant| is_over(&grant.record, cutoff))
        {
            batch.changes = batch.changes.delete::<Grant>(&grant.id, Expect::Version(version));
            batch.count("grants");
            let Some(key) = &grant.idempotency_key else { continue };
            let key = RequestKey::new(grant.principal.key(), key);
            let is_its_own = match store.get::<RequestRecord>(&key).await {
                Ok(request) => request.is_some_and(|request| request.record.grant == grant.id),
                // It is this grant's key, and keeps no grant in the store.
                Err(StoreError::Forged { .. }) => true,
                Err(error) => return Err(error),
            };
            if is_its_own {
                batch.changes = batch.changes.delete::<RequestRecord>(&key, Expect::Any);
                batch.count("requests");
            }
        }
        batch.commit(store, cutoff, now).await?;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Removes forged records, apart from the genuine ones: whatever another program does to them, it holds up no other removal.
async fn remove_forged<R: Record>(
    store: &Store,
    forged: &[ForgedRecord],
    cutoff: Timestamp,
    now: Timestamp,
) -> Result<(), StoreError> {
    for page in forged.chunks(BATCH) {
        let mut batch = Batch::default();
        for record in page {
            // An index may name one that is not there, and a broker may have written over it.
            if store.is_still_forged::<R>(record).await? {
                batch.changes = batch.changes.delete_forged::<R>(record);
                batch.count("forged");
            }
        }
        batch.commit(store, cutoff, now).await?;
    }
    Ok(())
}

fn is_over(grant: &Grant, cutoff: Timestamp) -> bool {
    grant.state.is_final() && grant.closed_at.unwrap_or(grant.not_after) < cutoff
}

/// Removes the join tokens that expired before the cutoff. One that was used is gone already.
async fn remove_tokens(store: &Store, cutoff: Timestamp, now: Timestamp) -> Result<(), StoreError> {
    let mut from = None;
    loop {
        let page = store.scan::<TokenRecord>(from.as_deref(), BATCH).await?;
        remove_forged::<TokenRecord>(store, &page.forged, cutoff, now).await?;
        for page in page.found.chunks(BATCH) {
            let mut batch = Batch::default();
            for token in page.iter().filter(|token| token.record.expires_at < cutoff) {
                batch.changes = batch.changes.delete_found(token);
                batch.count("tokens");
            }
            batch.commit(store, cutoff, now).await?;
        }
        from = page.next;
        if from.is_none() {
            return Ok(());
        }
    }
}

/// Removes the certificates that ended before the cutoff, and the principals that have no other.
async fn remove_principals(store: &Store, cutoff: Timestamp, now: Timestamp) -> Result<(), StoreError> {
    let mut from = None;
    loop {
        let page = store.scan::<IssuedPrincipal>(from.as_deref(), BATCH).await?;
        remove_forged::<IssuedPrincipal>(store, &page.forged, cutoff, now).await?;
        for page in page.found.chunks(BATCH) {
            let mut batch = Batch::default();
            for principal in page {
                remove_certificates(&mut batch, principal, cutoff);
            }
            batch.commit(store, cutoff, now).await?;
        }
        from = page.next;
        if from.is_none() {
            return Ok(());
        }
    }
}

fn remove_certificates(batch: &mut Batch, found: &Found<IssuedPrincipal>, cutoff: Timestamp) {
    let mut left = found.record.clone();
    left.certificates.retain(|_, certificate| certificate.not_after >= cutoff);
    let ended = found.record.certificates.len() - left.certificates.len();
    if ended == 0 {
        return;
    }
    let changes = std::mem::take(&mut batch.changes);
    if left.certificates.is_empty() {
        batch.changes = changes.delete_found(found);
        batch.count("principals");
    } else {
        batch.changes = changes.put_issued_principal(left, Expect::Version(found.version));
    }
    (0..ended).for_each(|_| batch.count("certificates"));
}
