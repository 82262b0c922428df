//! `backup`: copies the files, then the store, checks the copy, and gives it its name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use postern_pki::Authority;
use postern_runtime::private_place::private_place;
use postern_store::transfer::copy;
use postern_store::{MigrationError, Sealing, StoreError, embedded, redis};

use super::check::{self, StoreFacts, remove_lock};
use super::files::{self, Partial};
use super::manifest::{Manifest, ManifestFile};
use super::{AUTHORITY, MANIFEST, STORE};
use crate::checkpoints::MemoryFile;
use crate::clock::wall;
use crate::config::BrokerConfig;
use crate::records_key::RecordsKeyFile;

/// The most attempts at a copy of a store on Redis, or of an authority, that changes while it is read.
const MAX_ATTEMPTS: u32 = 10;
/// The pause after the first such attempt; each further one is longer by as much.
const PAUSE: Duration = Duration::from_millis(200);

/// The options of a backup.
#[derive(Debug)]
pub struct BackupCommand<'a> {
    /// The directory to make.
    pub dir: &'a Path,
    /// The file with the configuration.
    pub config: &'a Path,
    /// Copies the private keys that are kept offline as well, as far as they are in `data_dir/ca`.
    pub offline_keys: bool,
}

/// Makes a backup, with the broker running or not, and returns its manifest and warnings, one line each.
///
/// # Errors
/// The directory exists or is in a place that others can change; a file or the store cannot be read or written; the store changes too
/// often for a copy; the copy does not verify. Nothing is left.
pub async fn backup(
    config: &BrokerConfig,
    asked: BackupCommand<'_>,
) -> anyhow::Result<(Manifest, Vec<String>)> {
    let dir = place(asked.dir)?;
    let name = dir.file_name().context("the directory has no name")?.to_string_lossy();
    let parent = dir.parent().context("the directory has no parent")?;
    let hidden = parent.join(format!(".{name}.partial"));
    for attempt in 1.. {
        let partial = Partial::make(hidden.clone())?;
        let Some((manifest, warnings)) = attempt_at(config, &asked, partial.path()).await? else {
            ensure!(
                attempt < MAX_ATTEMPTS,
                "the store or the authority changed during each of {MAX_ATTEMPTS} copies; try again when the broker has less to do, or stop it"
            );
            drop(partial);
            tokio::time::sleep(PAUSE * attempt).await;
            continue;
        };
        files::write(&partial.path().join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
        files::sync_dir(&partial.path().join(AUTHORITY))?;
        files::sync_dir(partial.path())?;
        // A directory with something in it, or a file, is not replaced.
        fs::rename(partial.path(), &dir).with_context(|| format!("cannot make {}", dir.display()))?;
        partial.keep();
        files::sync_dir(parent)?;
        return Ok((manifest, warnings));
    }
    anyhow::bail!("no attempt was made")
}

/// Returns the path of the directory to make, without symbolic links on the way.
fn place(dir: &Path) -> anyhow::Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    ensure!(
        dir.symlink_metadata().is_err(),
        "{} exists; name a directory that does not, which the backup makes",
        dir.display()
    );
    let (parent, name) = (dir.parent().context("the directory has no parent")?, dir.file_name());
    let name = name.context("the directory has no name")?;
    ensure!(parent.is_dir(), "there is no {}; make it first, for its owner alone", parent.display());
    Ok(private_place(parent).context("cannot keep keys in DIR")?.join(name))
}

/// Copies everything; none if the store or the authority changed meanwhile.
async fn attempt_at(
    config: &BrokerConfig,
    asked: &BackupCommand<'_>,
    dir: &Path,
) -> anyhow::Result<Option<(Manifest, Vec<String>)>> {
    let authority_dir = config.authority_dir();
    let key = RecordsKeyFile::of(config);
    ensure!(
        key.path().exists(),
        "there is no {}; start a broker of this version once, which seals the store",
        key.path().display()
    );
    let made_at = wall();
    files::make_dir(&dir.join(AUTHORITY))?;
    let mut written = BTreeMap::new();
    // Before the store, which then has all that they speak of.
    let kept = files::to_keep(&config.data_dir, &authority_dir, asked.config, asked.offline_keys)?;
    for (name, path) in &kept {
        let Some(facts) = copy_one(path, &dir.join(name))? else { continue };
        written.insert(name.clone(), facts);
    }
    let sealing = key.load_or_make().context("cannot use the records key")?;
    let database = dir.join(STORE);
    let Some(store) = copy_store(config, &sealing, &database).await? else { return Ok(None) };
    // A renewal replaces several files of the authority.
    let again = files::to_keep(&config.data_dir, &authority_dir, asked.config, asked.offline_keys)?;
    let is_authority = |(name, _): &&(String, PathBuf)| name.starts_with("ca/");
    if again.iter().filter(is_authority).ne(kept.iter().filter(is_authority)) {
        return Ok(None);
    }
    for (name, path) in again.iter().filter(is_authority) {
        if written.get(name) != Some(&files::describe(path)?) {
            return Ok(None);
        }
    }
    let authority = Authority::load(&dir.join(AUTHORITY), &config.trust_domain)
        .context("the copied authority cannot be read")?;
    let memory = MemoryFile::of(dir).read()?;
    let trust_domain = config.trust_domain.to_string();
    let StoreFacts { base, head, checkpoint, generation, records, forged } =
        check::check(&database, &sealing, &memory, &authority, &trust_domain)
            .await
            .context("the copied store does not verify")?;
    fs::File::open(&database)?.sync_all()?;
    written.insert(STORE.to_owned(), ManifestFile { mode: 0o600, ..files::describe(&database)? });
    let mut warnings = Vec::new();
    if forged > 0 {
        warnings.push(format!(
            "{forged} records in the store are forged, and so they are in the backup: they give no rights"
        ));
    }
    if memory.alarm.is_some() {
        warnings.push(
            "the broker has an alarm about the audit log; see `postern-broker audit status`".to_owned(),
        );
    }
    if let Some(segments) = &config.retention.audit {
        warnings.push(format!(
            "the segments of the audit log in {} are not in the backup: copy them as well, they never change",
            segments.dir.display()
        ));
    }
    let manifest = Manifest {
        format: Manifest::FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        made_at,
        trust_domain,
        store,
        audit_base: base.into(),
        audit_head: head.into(),
        checkpoint,
        policy_generation: generation,
        records,
        offline_keys: asked.offline_keys,
        needs_besides: needs_besides(config),
        files: written,
    };
    Ok(Some((manifest, warnings)))
}

/// Copies a file; none if it is gone, as a certificate that a broker has recorded meanwhile.
fn copy_one(from: &Path, to: &Path) -> anyhow::Result<Option<ManifestFile>> {
    if from.symlink_metadata().is_err() {
        return Ok(None);
    }
    let opened = files::open(from)?;
    let mode = std::os::unix::fs::MetadataExt::mode(&opened.metadata()?);
    files::copy(opened, to, mode).map(Some)
}

/// Copies the store, and returns its address; none if it changed meanwhile.
async fn copy_store(config: &BrokerConfig, sealing: &Sealing, to: &Path) -> anyhow::Result<Option<String>> {
    let Some(settings) = &config.redis else {
        let path = config.store_path();
        ensure!(path.exists(), "there is no {}; was `postern-broker init` run?", path.display());
        embedded::snapshot(&path, to).with_context(|| format!("cannot copy {}", path.display()))?;
        return Ok(Some(format!("sqlite://{}", path.display())));
    };
    let address = format!("{} (tenant {})", settings.endpoint, settings.tenant);
    let mut source =
        redis::Transfer::read(settings, sealing).await.with_context(|| format!("cannot open {address}"))?;
    let mut target = embedded::Transfer::open(to, sealing).context("cannot make the copy of the store")?;
    let copied = copy(&mut source, &mut target, &address, false).await;
    drop(target);
    remove_lock(to)?;
    match copied {
        Ok(_) => Ok(Some(address)),
        Err(StoreError::Migration(MigrationError::Changed | MigrationError::Lost { .. })) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot copy {address}")),
    }
}

/// Returns the files with secrets that are elsewhere, and the keys that are not in `data_dir/ca`.
fn needs_besides(config: &BrokerConfig) -> BTreeMap<String, String> {
    let authority = config.authority_dir();
    let elsewhere = config.private_files().into_iter().filter(|(_, path)| !path.starts_with(&authority));
    elsewhere.map(|(key, path)| (key.to_owned(), path.display().to_string())).collect()
}
