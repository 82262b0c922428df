//! The commit of a group, as `commit.lua` takes and answers it.

use postern_core::audit::{AuditRecord, Head};
use serde::Serialize;

use super::error::{failed, message};
use super::keys::text_of;
use super::rollback::HeadReply;
use crate::batch::{Batch, Expect, Write};
use crate::body::to_body;
use crate::error::StoreError;

/// A group as the script takes it.
pub(super) struct Group {
    /// The batches, as JSON.
    pub(super) entries: String,
    /// The audit records, one line each.
    pub(super) lines: Vec<String>,
    /// The head after each batch.
    pub(super) heads: Vec<Head>,
    before: Head,
}

/// A batch as the script reads it.
#[derive(Serialize)]
struct WireBatch<'a> {
    /// The target of the lease that the batch needs; empty: none.
    lease: String,
    token: String,
    requires: Vec<WireRequirement<'a>>,
    writes: Vec<WireWrite<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<WireCut>,
}

/// The records that leave the audit log, as the script reads it.
#[derive(Serialize)]
struct WireCut {
    /// The base before; empty: none has left yet.
    from: String,
    /// The base after.
    upto: String,
    /// The hash of the last record that leaves.
    hash: String,
    /// The number of records that leave.
    count: u64,
}

/// A requirement as the script reads it.
#[derive(Serialize)]
struct WireRequirement<'a> {
    kind: &'a str,
    key: &'a str,
    expect: String,
}

/// A write as the script reads it.
#[derive(Serialize)]
struct WireWrite<'a> {
    kind: &'a str,
    key: &'a str,
    expect: String,
    /// The body; empty to delete the document.
    body: &'a str,
    /// Set if a deleted document leaves its version.
    keep: bool,
    /// Set if the event of the commit names the document.
    announced: bool,
    /// The names of the indexes, one a line.
    indexes: &'a str,
    targets: &'a [String],
}

impl Group {
    /// Makes the records that follow this head.
    pub(super) fn after<'a>(
        before: Head,
        batches: impl Iterator<Item = &'a Batch>,
    ) -> Result<Self, StoreError> {
        let (mut after, mut heads, mut lines, mut entries) = (before, Vec::new(), Vec::new(), Vec::new());
        for batch in batches {
            for event in &batch.audit {
                let record = AuditRecord::following(&after, event.clone());
                after = record.head();
                lines.push(record.to_line());
            }
            heads.push(after);
            entries.push(WireBatch::of(batch));
        }
        Ok(Self { entries: to_body(&entries)?, lines, heads, before })
    }

    /// Returns the head after the last batch.
    pub(super) fn head(&self) -> Head {
        self.heads.last().copied().unwrap_or(self.before)
    }
}

impl<'a> WireBatch<'a> {
    fn of(batch: &'a Batch) -> Self {
        let lease = batch.under.as_ref();
        Self {
            lease: lease.map(|lease| lease.target.to_string()).unwrap_or_default(),
            token: lease.map(|lease| lease.token.to_string()).unwrap_or_default(),
            requires: batch
                .requires
                .iter()
                .map(|required| WireRequirement {
                    kind: required.kind.name,
                    key: &required.key,
                    expect: to_wire(required.expect),
                })
                .collect(),
            writes: batch.writes.iter().map(WireWrite::of).collect(),
            cut: batch.cut.as_deref().map(|cut| WireCut {
                from: text_of(&cut.from),
                upto: text_of(&cut.upto),
                hash: cut.upto.hash.to_string(),
                count: cut.count(),
            }),
        }
    }
}

fn to_wire(expect: Expect) -> String {
    match expect {
        Expect::Absent => "absent".to_owned(),
        Expect::AbsentAfter(version) => format!("absent {version}"),
        Expect::Any => "any".to_owned(),
        Expect::Version(version) => version.to_string(),
    }
}

impl<'a> WireWrite<'a> {
    fn of(write: &'a Write) -> Self {
        let put = write.put.as_ref();
        Self {
            kind: write.kind.name,
            key: &write.key,
            expect: to_wire(write.expect),
            body: put.map_or("", |put| &put.body),
            keep: write.kind.keeps_versions,
            announced: write.kind.is_announced,
            indexes: put.map_or("", |put| put.indexes.text()),
            targets: put.map_or(&[], |put| &put.targets),
        }
    }
}

/// The outcome of a commit.
pub(super) enum CommitOutcome {
    /// The group was applied; with the head after each batch.
    Done(Vec<Head>),
    /// A write of a batch cannot be made; nothing was changed.
    Conflict { transaction: usize, write: usize },
    /// The audit log does not begin as a batch expects it; nothing was changed.
    Uncut { transaction: usize },
    /// A requirement of a batch does not hold; nothing was changed.
    Unmet { transaction: usize, requirement: usize },
    /// Another broker has committed, and this broker has the turn now; nothing was changed.
    Moved(HeadReply),
    /// Another broker has the turn; nothing was changed.
    Wait,
    /// Another broker holds the lease of one batch; nothing was changed.
    Lost { transaction: usize },
    /// The membership has ended; nothing was changed.
    Fenced,
}

impl CommitOutcome {
    /// Reads the script's answer.
    pub(super) fn parse(answer: &[String]) -> Result<Self, StoreError> {
        let number = |at: usize| answer.get(at).and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
        match answer.first().map(String::as_str) {
            Some("ok") => Ok(Self::Done(Vec::new())),
            Some("fenced") => Ok(Self::Fenced),
            Some("moved") => Err(failed(message("the store was moved elsewhere: stop this broker"))),
            Some("head") => Ok(Self::Moved(HeadReply::parse(answer.get(1).map_or("", String::as_str))?)),
            Some("wait") => Ok(Self::Wait),
            Some("lost") => Ok(Self::Lost { transaction: number(1) }),
            Some("uncut") => Ok(Self::Uncut { transaction: number(1) }),
            Some("unmet") => Ok(Self::Unmet { transaction: number(1), requirement: number(2) }),
            Some("conflict") => Ok(Self::Conflict { transaction: number(1), write: number(2) }),
            Some(_) | None => Err(failed(message("the script gave an unexpected answer"))),
        }
    }

    /// Returns the head in the answer, if it has one.
    pub(super) fn moved_to(&self) -> Option<HeadReply> {
        match self {
            Self::Moved(reply) => Some(*reply),
            Self::Done(_)
            | Self::Wait
            | Self::Conflict { .. }
            | Self::Unmet { .. }
            | Self::Uncut { .. }
            | Self::Lost { .. }
            | Self::Fenced => None,
        }
    }
}
