//! Segments: files with the records of the audit log that have left the store.
//!
//! **The course.** The broker reads the lines after the log's base that are old enough, verifies that they are the chain that
//! goes on from there, and writes them into one file, durably: a temporary file, synced, renamed, and the directory synced. Only
//! then it removes them from the store, in one transaction with the audit record `audit.sealed`, and the hash of the last one
//! becomes the base.
//!
//! **The names.** `audit-FIRST-LAST.jsonl`, the numbers in 20 digits, so that names sort as the chain goes. A segment has at
//! most [`SEGMENT`] records. A smaller one is made once a day at most.
//!
//! **On failure.** A broker that dies in between leaves the records in the store, and perhaps the file. The next round finds the
//! file that begins after the base, and removes its records if it holds them byte for byte. If it holds others, the round fails,
//! and the records stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use postern_core::audit::{AuditEvent, Head, Verifier};
use postern_runtime::files;
use postern_store::{AuditCut, Store, StoreError, Transaction};

use super::settings::{PAUSE, Segments, cutoff};
use crate::checkpoints::Checkpoints;

/// The most records in a segment.
const SEGMENT: usize = 4096;
/// The most bytes after which a segment takes no further record.
const SEGMENT_BYTES: usize = 8 << 20;
/// The lines that one read of the store returns at most.
const PAGE: usize = 500;
/// The further age at which records are sealed although they do not fill a segment.
const PARTIAL_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Records that leave the store together.
struct Segment {
    first: u64,
    last: Head,
    /// The lines, each with its end.
    text: String,
}

/// Seals the records that are old enough and that the checkpoints let leave, segment by segment. An alarm that is raised meanwhile ends
/// it: the records that show what happened stay.
///
/// # Errors
/// The store failed, the log is broken, or a segment cannot be written: the records from there on stay in the store.
pub(super) async fn seal(
    store: &Store,
    rule: &Segments,
    now: Timestamp,
    checkpoints: &Checkpoints,
) -> anyhow::Result<()> {
    let before = cutoff(now, rule.after);
    loop {
        let base = store.audit_base().await?;
        let upto = checkpoints.sealable();
        let begun = find(&rule.dir, base.seq + 1)?;
        if begun.as_ref().is_some_and(|(_, last)| *last > upto) {
            return Ok(());
        }
        let segment = match &begun {
            // A broker was stopped after it wrote this one: the same records leave now, whatever has become old since.
            Some((_, last)) => read(store, base, Until::Record(*last), u64::MAX).await?,
            None => read(store, base, Until::Time(before), upto).await?,
        };
        let Some(segment) = segment else { return Ok(()) };
        let path = rule.dir.join(name(segment.first, segment.last.seq));
        if let Some((found, last)) = begun {
            let is_same = last == segment.last.seq
                && fs::read(&found).with_context(|| format!("cannot read {}", found.display()))?
                    == segment.text.as_bytes();
            anyhow::ensure!(
                is_same,
                "{} exists and does not hold the records {} to {last} of this store: move it elsewhere, and find out which of \
                 the two was changed; until then the records stay in the store",
                found.display(),
                segment.first
            );
        } else {
            rule.check_dir()?;
            write(&rule.dir, &path, segment.text.as_bytes())?;
        }
        // A file that is written stays: the next round goes on with it, if the log is the same then.
        if segment.last.seq > checkpoints.sealable() || !cut(store, base, &segment, &path, now).await? {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Removes the records of a segment from the store. Returns false if another broker has done so.
async fn cut(
    store: &Store,
    base: Head,
    segment: &Segment,
    path: &Path,
    now: Timestamp,
) -> anyhow::Result<bool> {
    let event = AuditEvent::done(now, "broker", "audit.sealed")
        .with("file", path.display())
        .with("first", segment.first)
        .with("last", segment.last.seq)
        .with("hash", segment.last.hash);
    let cut = AuditCut { from: base, upto: segment.last };
    match store.commit(Transaction::default().cut_audit(cut).audit(event)).await {
        Ok(_) => {
            tracing::info!(
                event = "audit.sealed",
                file = %path.display(),
                first = segment.first,
                last = segment.last.seq,
                "records of the audit log left the store"
            );
            Ok(true)
        }
        Err(StoreError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error).context("cannot remove sealed audit records"),
    }
}

/// The end of the records that a segment takes.
#[derive(Clone, Copy)]
enum Until {
    /// The records before this time, if they fill a segment or some are a day older.
    Time(Timestamp),
    /// The record with this number.
    Record(u64),
}

/// Reads the records of the next segment; none if there are too few.
async fn read(store: &Store, base: Head, until: Until, upto: u64) -> anyhow::Result<Option<Segment>> {
    // The last record stays: the broker's clock goes on from it.
    let last = store.audit_head().await?.seq.saturating_sub(1).min(upto);
    let (mut verifier, mut text, mut oldest) = (Verifier::after(base), String::new(), None);
    let mut is_full = false;
    'pages: loop {
        let lines = store.audit_lines(verifier.head().seq, PAGE).await?;
        if lines.is_empty() {
            break;
        }
        for (seq, line) in lines {
            let mut next = Verifier::after(verifier.head());
            let record =
                next.line(&line).with_context(|| format!("the audit log is broken at record {seq}"))?;
            let is_past = match until {
                Until::Time(before) => record.event.at >= before,
                Until::Record(number) => seq > number,
            };
            if is_past || seq > last {
                break 'pages;
            }
            oldest.get_or_insert(record.event.at);
            text.push_str(&line);
            text.push('\n');
            verifier = next;
            let count = usize::try_from(verifier.head().seq - base.seq).unwrap_or(usize::MAX);
            if matches!(until, Until::Time(_)) && (count >= SEGMENT || text.len() >= SEGMENT_BYTES) {
                is_full = true;
                break 'pages;
            }
        }
    }
    let Some(oldest) = oldest else { return Ok(None) };
    let is_due = match until {
        Until::Time(before) => is_full || oldest < cutoff(before, PARTIAL_AFTER),
        Until::Record(_) => true,
    };
    Ok(is_due.then(|| Segment { first: base.seq + 1, last: verifier.head(), text }))
}

fn name(first: u64, last: u64) -> String {
    format!("audit-{first:020}-{last:020}.jsonl")
}

/// Returns the segment in the directory that begins with this record, and the number of its last record.
fn find(dir: &Path, first: u64) -> anyhow::Result<Option<(PathBuf, u64)>> {
    let failed = || format!("cannot read {}", dir.display());
    let files = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        files => files.with_context(failed)?,
    };
    let prefix = format!("audit-{first:020}-");
    for file in files {
        let file = file.with_context(failed)?;
        let name = file.file_name();
        let last = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(".jsonl"));
        if let Some(last) = last.and_then(|last| last.parse().ok()) {
            return Ok(Some((file.path(), last)));
        }
    }
    Ok(None)
}

fn write(dir: &Path, path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}; the records stay in the store", path.display());
    files::make_private_dir_all(dir).with_context(failed)?;
    files::replace_durably(path, text, files::PRIVATE).with_context(failed)
}
