//! `restore`: makes a data directory, and a store, of a backup. Nothing in it opens anything.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use postern_core::audit::{AuditEvent, AuditRecord};
use postern_core::grant::{CloseReason, Event, GrantState};
use postern_core::{Justification, Name, Principal, Role};
use postern_pki::Authority;
use postern_runtime::files::make_private_dir_all;
use postern_runtime::private_place::private_place;
use postern_store::embedded::{self, Embedded};
use postern_store::transfer::copy;
use postern_store::{
    Expect, IssuedPrincipal, Revocation, RevokedProof, Sealing, Store, TokenRecord, Transaction, redis,
};

use super::check::{self, StoreFacts, remove_lock};
use super::files::{self, Partial};
use super::manifest::Manifest;
use super::{AUTHORITY, CONFIG, STORE};
use crate::checkpoints::MemoryFile;
use crate::clock::{Clock, wall};
use crate::config::BrokerConfig;
use crate::policies_seen::PoliciesSeen;
use crate::records_key::RecordsKeyFile;

/// The directory in `data_dir` in which the files are put together.
const STAGING: &str = "restoring";
/// The records that are changed in one transaction.
const PAGE: usize = 100;
/// The name under which grants are revoked.
const ACTOR: &str = "restore";

/// The options of a restore.
#[derive(Debug)]
pub struct RestoreCommand<'a> {
    /// The directory of the backup.
    pub dir: &'a Path,
    /// The principals that have been revoked since the backup.
    pub revoke: &'a [Name],
    /// Empties a store on Redis first into which an earlier restore was not completed.
    pub overwrite_incomplete: bool,
}

/// The outcome of a restore.
#[derive(Debug)]
pub struct Restored {
    /// The manifest of the backup.
    pub manifest: Manifest,
    /// The number of grants that were revoked.
    pub grants: u64,
    /// The number of join tokens that were removed.
    pub tokens: u64,
    /// The number of forged records in the store. They give no rights.
    pub forged: usize,
}

/// Makes the data directory and the store of the configuration from a backup. No broker may run on either.
///
/// # Errors
/// The backup is damaged, is in a place that others can change, or is of another trust domain; the data directory or the store is not
/// empty; something cannot be read or written. Nothing is left in the data directory.
pub async fn restore(config: &BrokerConfig, asked: RestoreCommand<'_>) -> anyhow::Result<Restored> {
    ensure!(
        asked.dir.is_dir(),
        "{} is not a directory; name the one that `backup` made",
        asked.dir.display()
    );
    let dir = private_place(asked.dir).context("cannot trust the backup")?;
    let manifest = Manifest::read(&dir)?;
    ensure!(
        manifest.trust_domain == config.trust_domain.to_string(),
        "the backup is of the trust domain {:?}, and the configuration says {:?}; correct trust_domain",
        manifest.trust_domain,
        config.trust_domain.to_string()
    );
    // Before anything is written.
    for (name, expected) in &manifest.files {
        files::verify(&dir.join(name), expected)?;
    }
    let data_dir = private_place(&config.data_dir).context("cannot keep keys in data_dir")?;
    make_private_dir_all(&data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    let first = fs::read_dir(&data_dir)?.next().transpose()?;
    if let Some(found) = first {
        anyhow::bail!(
            "{} is not empty (it has {}); move what is there away, and begin again",
            data_dir.display(),
            found.file_name().display()
        );
    }
    let staging = Partial::make(data_dir.join(STAGING))?;
    let restored = prepare(config, &asked, manifest, &dir, staging.path()).await?;
    put_in_place(staging, &data_dir)?;
    Ok(restored)
}

/// Copies the backup into the staging directory, checks it, and takes away what must not open again.
async fn prepare(
    config: &BrokerConfig,
    asked: &RestoreCommand<'_>,
    manifest: Manifest,
    dir: &Path,
    staging: &Path,
) -> anyhow::Result<Restored> {
    files::make_dir(&staging.join(AUTHORITY))?;
    for (name, expected) in manifest.files.iter().filter(|(name, _)| *name != CONFIG) {
        let copied = files::copy(fs::File::open(dir.join(name))?, &staging.join(name), expected.mode)?;
        ensure!(
            (copied.bytes, &copied.sha256) == (expected.bytes, &expected.sha256),
            "{name} was changed while it was copied"
        );
    }
    let authority_dir = staging.join(AUTHORITY);
    let authority =
        Authority::load(&authority_dir, &config.trust_domain).context("the authority cannot be read")?;
    let key = RecordsKeyFile::in_dir(&authority_dir);
    ensure!(key.path().exists(), "the backup has no ca/records.key");
    let sealing = key.load_or_make()?;
    let memory = MemoryFile::of(staging).read()?;
    let database = staging.join(STORE);
    let facts = check::check(&database, &sealing, &memory, &authority, &manifest.trust_domain)
        .await
        .context("the store of the backup does not verify")?;
    ensure!(
        manifest.audit_head == facts.head.into()
            // A later version may keep other kinds of records.
            && (manifest.version != env!("CARGO_PKG_VERSION") || facts.records == manifest.records),
        "the store of the backup is not the one that its manifest describes"
    );
    let (grants, tokens) = close_everything(&database, &sealing, asked, &manifest, &facts).await?;
    let seen = PoliciesSeen::load(staging)?.at_start().max(facts.generation);
    PoliciesSeen::write_newer(staging, seen)?;
    if let Some(settings) = &config.redis {
        let to = format!("{} (tenant {})", settings.endpoint, settings.tenant);
        let from = format!("the backup of {}", manifest.made_at);
        let mut source = embedded::Transfer::open(&database, &sealing)?;
        let mut target =
            redis::Transfer::open(settings, &sealing).await.with_context(|| format!("cannot open {to}"))?;
        copy(&mut source, &mut target, &from, asked.overwrite_incomplete)
            .await
            .with_context(|| format!("cannot write the store to {to}"))?;
        drop(source);
        for file in with_log(&database) {
            postern_runtime::files::remove(&file)?;
        }
    }
    remove_lock(&database)?;
    for file in with_log(&database).into_iter().filter(|file| file.exists()) {
        fs::File::open(&file)?.sync_all()?;
    }
    Ok(Restored { manifest, grants, tokens, forged: facts.forged })
}

/// Revokes each grant that is not over, removes each join token, revokes the named principals, and audits the restore. Returns the
/// numbers of grants and tokens.
async fn close_everything(
    database: &Path,
    sealing: &Sealing,
    asked: &RestoreCommand<'_>,
    manifest: &Manifest,
    facts: &StoreFacts,
) -> anyhow::Result<(u64, u64)> {
    let store = Embedded::open(database, sealing)?;
    let clock = Clock::start(newest_record(&store).await?);
    let (by, now) = (Principal::local(Role::Administrator, Name::new(ACTOR)?), clock.now());
    let reason =
        Justification::new(&format!("the store was restored from the backup of {:.0}", manifest.made_at))?;
    let event = AuditEvent::done(now, "broker", "store.restored")
        .with("backup", manifest.made_at)
        .with("seq", facts.head.seq)
        .with("hash", facts.head.hash);
    store.commit(Transaction::default().audit(event)).await?;
    let (mut grants, mut tokens) = (0, 0);
    let open = store.open_grants().await?;
    for page in open.chunks(PAGE) {
        let mut changes = Transaction::default();
        for grant in page.iter().filter(|grant| !matches!(grant.record.state, GrantState::Closing(_))) {
            let close = CloseReason::Revoked { by: by.clone(), reason: Some(reason.clone()) };
            let next = grant.record.after(Event::Close(close), now)?;
            let event =
                AuditEvent::done(now, "broker", "grant.revoked").on_grant(next.id).with("reason", &reason);
            changes = changes.put_grant(next, Expect::Version(grant.version)).audit(event);
            grants += 1;
        }
        if changes.writes() > 0 {
            store.commit(changes).await?;
        }
    }
    let mut from = None;
    loop {
        let page = store.scan::<TokenRecord>(from.as_deref(), PAGE).await?;
        let mut changes = Transaction::default();
        for token in &page.found {
            let event = AuditEvent::done(now, "broker", "token.removed")
                .on_target(&token.record.target)
                .with("reason", &reason);
            changes = changes.delete_found(token).audit(event);
            tokens += 1;
        }
        if changes.writes() > 0 {
            store.commit(changes).await?;
        }
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    for name in asked.revoke {
        // A name is one principal in whatever role.
        let key = Principal::local(Role::Requester, name.clone()).key().clone();
        let event = AuditEvent::done(now, "broker", "principal.revoked")
            .with("principal", &key)
            .with("reason", &reason);
        // As a broker does: also a certificate of a clock that was ahead, and nothing of an earlier revocation comes back.
        let issued = store.genuine::<IssuedPrincipal>(&key).await?.map(|issued| issued.record);
        let issued = issued.into_iter().flat_map(|issued| issued.certificates.into_values());
        let proof = RevokedProof::Principal(key);
        let before = store.genuine::<Revocation>(&proof).await?.map(|before| before.record.at);
        let at = issued.map(|certificate| certificate.issued_at).chain(before).fold(wall(), Ord::max);
        let revocation = Revocation { proof, by: by.clone(), at, reason: Some(reason.clone()) };
        store.commit(Transaction::default().put_revocation(revocation, Expect::Any).audit(event)).await?;
    }
    drop(store);
    Ok((grants, tokens))
}

async fn newest_record(store: &Store) -> anyhow::Result<Timestamp> {
    let head = store.audit_head().await?;
    let lines = store.audit_lines(head.seq.saturating_sub(1), 1).await?;
    let (_, line) = lines.first().context("the audit log of the backup is empty")?;
    Ok(serde_json::from_str::<AuditRecord>(line)?.event.at)
}

/// Moves what was put together into the data directory, `ca` last: without it no broker starts.
fn put_in_place(staging: Partial, data_dir: &Path) -> anyhow::Result<()> {
    let mut names: Vec<_> = fs::read_dir(staging.path())?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort_by_key(|name| name == AUTHORITY);
    files::sync_dir(&staging.path().join(AUTHORITY))?;
    for name in names {
        let (from, to) = (staging.path().join(&name), data_dir.join(&name));
        if name == AUTHORITY {
            files::sync_dir(data_dir)?;
        }
        fs::rename(&from, &to).with_context(|| format!("cannot make {}", to.display()))?;
    }
    // Empty by now.
    drop(staging);
    files::sync_dir(data_dir)
}

/// Returns the paths of a database and of SQLite's files beside it.
fn with_log(database: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|suffix| {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    })
}
