//! `audit verify`: the chain of the log, and the signed checkpoints that it must agree with.
//!
//! Three sources of checkpoints vouch for a log: those in the log itself, the one that the broker answers with, and those that
//! are kept elsewhere: in a file that an operator names, and in this command's own memory ([`crate::remembered`]). All are
//! verified under the root of the identity, so that a rewritten store cannot make one.
//!
//! Without a head or a checkpoint to expect, the broker reads the log, and the command compares only the record that it
//! remembers. With one, the command trusts no broker: it reads every record itself, from the broker or from a file.

use std::collections::HashMap;

use postern_core::audit::{Broken, Hash, Head, head_of_line};
use postern_core::checkpoint::{Checkpoint, Relation};
use postern_pki::{LogVerifier, SignedCheckpoint, credentials};
use postern_proto::v1;

use super::copies::{Copies, Interrupted, base_of};
use crate::args::{ConnectionArgs, VerifyArgs};
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::json::{TrustedJson, VerifiedJson};
use crate::output::{Console, table};
use crate::remembered::Remembered;

/// Verifies the log of a broker, or a copy of one.
///
/// # Errors
/// The log is broken or contradicts a checkpoint, the broker refuses or is away, or a file cannot be read.
pub(crate) async fn verify(
    connection: &ConnectionArgs,
    console: &mut Console,
    args: VerifyArgs,
) -> Result<(), Failure> {
    if !args.file.is_empty() {
        let roots = roots_for_file(connection, &args)?;
        if roots.is_empty() {
            console.note("no root certificate is known, so the checkpoints in the log are not verified; name one with --root");
        }
        let mut copies = Copies::open(&args.file, args.from).map_err(failed)?;
        let mut check = Check::new(roots, None, &args, copies.base(), Source::Copy, console)?;
        check_copies(&mut check, &mut copies)?;
        return check.finish(console);
    }
    let broker = BrokerClient::of(connection)?;
    if args.expect_head.is_none() && args.checkpoint.is_none() {
        return by_the_broker(&broker, console, args.full).await;
    }
    let request = v1::TailAuditRequest { after: 0, follow: false };
    let mut lines = broker.call(broker.audit().tail_audit(request)).await?;
    let mut answer = lines.message().await.map_err(|status| broker.failure(status))?;
    let mut base = Head::EMPTY;
    if let Some(first) = answer.as_ref().filter(|answer| answer.seq > 1) {
        // Records that were sealed into segments are in the store no more.
        base = base_of(first.line.as_bytes()).unwrap_or(base);
        console.note(&format!(
            "the broker's log begins with record {}: verify the segments of those before with --file",
            first.seq
        ));
    }
    let (roots, trust_domain) = (broker.roots().to_vec(), broker.trust_domain());
    let mut check = Check::new(roots, trust_domain, &args, base, Source::Broker, console)?;
    while let Some(found) = answer {
        if !check.line(found.line.as_bytes()) {
            break;
        }
        answer = lines.message().await.map_err(|status| broker.failure(status))?;
    }
    check.finish(console)
}

/// Has the broker verify its log, and compares the log with the checkpoint that is remembered.
async fn by_the_broker(broker: &BrokerClient, console: &mut Console, full: bool) -> Result<(), Failure> {
    let answer = broker.call(broker.audit().verify_audit(v1::VerifyAuditRequest { full })).await?;
    let newest = match answer.checkpoint.as_str() {
        "" => None,
        line => {
            Some(verified(line, broker.roots(), broker.trust_domain().as_deref()).map_err(|problem| {
                Failure::BadAnswer { what: format!("its checkpoint of the audit log is not good: {problem}") }
            })?)
        }
    };
    let mut remembered = Remembered::read(broker.roots())?;
    let kept = remembered.of_log(newest.as_ref().map(|newest| newest.checkpoint.log.as_str())).cloned();
    let mut broken =
        (!answer.sound).then(|| Broken { line: answer.broken_line, problem: answer.problem.clone() });
    if let (None, Some(kept)) = (&broken, &kept) {
        broken = compare(broker, kept, newest.as_ref()).await?;
    }
    let mut result = VerifiedJson::from(answer);
    result.trusted = newest.as_ref().map(TrustedJson::from);
    result.remembered = kept.as_ref().map(TrustedJson::from);
    result.set_broken(broken.as_ref());
    console.show(&result, table::verified)?;
    if let Some(broken) = broken {
        return Err(broken.into());
    }
    if let Some(newest) = newest {
        remember(console, &mut remembered, newest);
    }
    Ok(())
}

/// Compares the broker's log with the checkpoint that this command remembers.
async fn compare(
    broker: &BrokerClient,
    kept: &SignedCheckpoint,
    newest: Option<&SignedCheckpoint>,
) -> Result<Option<Broken>, Failure> {
    let Checkpoint { seq, hash, at, .. } = &kept.checkpoint;
    let broken = |problem: String| Ok(Some(Broken { line: *seq, problem }));
    let newest = newest.map(|newest| (newest, kept.checkpoint.relation_of(&newest.checkpoint)));
    if let Some((_, Relation::WentBack | Relation::Rewritten)) = newest {
        return broken(format!(
            "contradicts the checkpoint that this command has kept since {at}: the log went back"
        ));
    }
    if newest.is_some_and(|(newest, _)| newest.checkpoint.accepted > kept.checkpoint.accepted) {
        // An operator accepted another log since; the broker's signature says so.
        return Ok(None);
    }
    let request = v1::TailAuditRequest { after: seq.saturating_sub(1), follow: false };
    let mut lines = broker.call(broker.audit().tail_audit(request)).await?;
    let line = lines.message().await.map_err(|status| broker.failure(status))?;
    let base = line.as_ref().and_then(|answer| base_of(answer.line.as_bytes()));
    match line.and_then(|answer| head_of_line(&answer.line)) {
        Some(found) if found == kept.checkpoint.head() => Ok(None),
        // The log begins after the record, and names it.
        Some(_) if base == Some(kept.checkpoint.head()) => Ok(None),
        // Its segment has left the store, and a broker vouches for what follows.
        Some(found)
            if found.seq > *seq && newest.is_some_and(|(_, relation)| relation == Relation::Newer) =>
        {
            Ok(None)
        }
        Some(_) => broken(format!(
            "is another than the checkpoint that this command has kept since {at} vouches for ({hash}): the log was rewritten"
        )),
        None => broken(format!(
            "is missing, and the checkpoint that this command has kept since {at} vouches for it: the end of the log was cut off"
        )),
    }
}

fn remember(console: &mut Console, remembered: &mut Remembered, newest: SignedCheckpoint) {
    if let Err(error) = remembered.keep(newest) {
        console.note(&format!("cannot remember the newest checkpoint for the next verification: {error}"));
    }
}

/// Returns the roots that vouch for the checkpoints in a file; none if none is known.
fn roots_for_file(connection: &ConnectionArgs, args: &VerifyArgs) -> Result<Vec<Vec<u8>>, Failure> {
    if let Some(file) = &args.root {
        let unusable = |source| Failure::Identity { dir: file.clone(), source };
        return credentials::load_certificates(file).map_err(unusable);
    }
    Ok(BrokerClient::of(connection).map(|broker| broker.roots().to_vec()).unwrap_or_default())
}

fn verified(line: &str, roots: &[Vec<u8>], trust_domain: Option<&str>) -> Result<SignedCheckpoint, String> {
    let checkpoint = SignedCheckpoint::parse(line).map_err(|error| error.to_string())?;
    checkpoint.verify(roots, trust_domain).map_err(|error| error.to_string())?;
    Ok(checkpoint)
}

/// Returns the failure of a verification whose files cannot be read as one log.
fn failed(interrupted: Interrupted) -> Failure {
    match interrupted {
        Interrupted::File(file, source) => Failure::File { file, source },
        Interrupted::Broken(broken) => broken.into(),
    }
}

/// Checks the lines of copies of a log up to the first that is broken.
fn check_copies(check: &mut Check, copies: &mut Copies) -> Result<(), Failure> {
    loop {
        match copies.next() {
            Ok(Some(line)) if check.line(&line) => {}
            Ok(_) => return Ok(()),
            Err(Interrupted::Broken(broken)) => {
                check.broken = Some(broken);
                return Ok(());
            }
            Err(file) => return Err(failed(file)),
        }
    }
}

/// The source of the lines that the command verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The broker, whose log goes on to the present.
    Broker,
    /// A copy, which may have been made before what the command remembers.
    Copy,
}

/// A verification by the command itself.
struct Check {
    source: Source,
    base: Head,
    verifier: LogVerifier,
    expected: Option<Hash>,
    /// True once the expected head was found, or if none is expected.
    met: bool,
    broken: Option<Broken>,
    remembered: Remembered,
    /// The hashes of the records that remembered checkpoints name; none for those that were not read.
    named: HashMap<u64, Option<Hash>>,
}

impl Check {
    /// Begins after this head.
    fn new(
        roots: Vec<Vec<u8>>,
        trust_domain: Option<String>,
        args: &VerifyArgs,
        base: Head,
        source: Source,
        console: &mut Console,
    ) -> Result<Self, Failure> {
        let remembered = Remembered::read(&roots)?;
        let mut verifier = LogVerifier::from_head(base, roots.clone());
        if let Some(file) = &args.checkpoint {
            let text = std::fs::read_to_string(file)
                .map_err(|source| Failure::File { file: file.clone(), source })?;
            let bad = |problem| Failure::BadCheckpoint { file: file.clone(), problem };
            let kept = verified(&text, &roots, trust_domain.as_deref()).map_err(bad)?;
            if kept.checkpoint.seq < base.seq {
                console.note(&format!(
                    "the checkpoint names record {}, which is before the first one here, so a later checkpoint in the log must vouch for it: \
                     to compare the record itself, verify its segment with --file as well",
                    kept.checkpoint.seq
                ));
            }
            verifier.expect(kept);
        }
        let expected = args.expect_head;
        let met = expected.is_none_or(|expected| expected == base.hash);
        let mut named: HashMap<_, _> = remembered.records().into_iter().map(|seq| (seq, None)).collect();
        if let Some(hash) = named.get_mut(&base.seq) {
            *hash = Some(base.hash);
        }
        Ok(Self { source, base, verifier, expected, met, broken: None, remembered, named })
    }

    /// Takes the next line, and reports whether the log is sound so far.
    fn line(&mut self, line: &[u8]) -> bool {
        let verified = match std::str::from_utf8(line) {
            Ok(line) => self.verifier.line(line),
            Err(error) => {
                Err(Broken { line: self.verifier.head().seq + 1, problem: format!("is not text: {error}") })
            }
        };
        match verified {
            Ok(record) => {
                self.met |= Some(record.hash) == self.expected;
                if let Some(hash) = self.named.get_mut(&record.seq) {
                    *hash = Some(record.hash);
                }
            }
            Err(broken) => self.broken = Some(broken),
        }
        self.broken.is_none()
    }

    /// Compares a log whose lines follow from each other with the checkpoint that the command remembers of it. Returns what a reader of a
    /// copy should know, if there is anything.
    ///
    /// # Errors
    /// The log contradicts the checkpoint.
    fn compare_remembered(&self) -> Result<Option<String>, Broken> {
        let newest = self.verifier.coverage().newest.as_ref().map(|newest| &newest.checkpoint);
        let Some(kept) = self.remembered.of_log(newest.map(|newest| newest.log.as_str())) else {
            return Ok(None);
        };
        let Checkpoint { seq, hash, at, accepted, .. } = &kept.checkpoint;
        if newest.is_some_and(|newest| newest.accepted > *accepted) {
            // An operator accepted another log since.
            return Ok(None);
        }
        let broken = |line, problem| Err(Broken { line, problem });
        let (first, last) = (self.base.seq + 1, self.verifier.head().seq);
        match (self.named.get(seq).copied().flatten(), self.source) {
            (Some(found), _) if found == *hash => Ok(None),
            (Some(_), _) => broken(
                *seq,
                format!(
                    "is another than the checkpoint that this command has kept since {at} vouches for ({hash}): the log was rewritten"
                ),
            ),
            // Only a later checkpoint can vouch for what is left, as for a record that a broker sealed.
            (None, _) if *seq < first && newest.is_some() => Ok(None),
            (None, Source::Broker) if *seq < first => broken(
                first,
                format!(
                    "is the first one, after record {seq} that this command has kept a checkpoint of since {at}, and no signed checkpoint in the \
                 log vouches for what follows: the log was rewritten"
                ),
            ),
            (None, Source::Broker) => broken(
                last + 1,
                format!(
                    "is missing, and the checkpoint that this command has kept since {at} vouches for {seq} records: the end of the log was cut \
                 off"
                ),
            ),
            (None, Source::Copy) => Ok(Some(format!(
                "this command remembers a checkpoint of record {seq}, which is not in the copy (records {first} to {last}), so the two were not \
                 compared"
            ))),
        }
    }

    fn finish(mut self, console: &mut Console) -> Result<(), Failure> {
        let head = self.verifier.head();
        if self.broken.is_none() {
            self.broken = self.verifier.end().err();
        }
        if self.broken.is_none() {
            match self.compare_remembered() {
                Ok(note) => note.iter().for_each(|note| console.note(note)),
                Err(broken) => self.broken = Some(broken),
            }
        }
        let missing = self.expected.filter(|_| self.broken.is_none() && !self.met);
        let coverage = self.verifier.coverage();
        let mut result = VerifiedJson {
            records: head.seq,
            head: head.hash.to_string(),
            sound: missing.is_none(),
            problem: missing.map(|expected| format!("does not contain {expected}")),
            trusted: coverage.newest.as_ref().map(TrustedJson::from),
            uncovered: coverage.newest.as_ref().map(|_| coverage.uncovered),
            ..VerifiedJson::default()
        };
        result.set_broken(self.broken.as_ref());
        console.show(&result, table::verified)?;
        match (self.broken, missing) {
            (Some(broken), _) => return Err(broken.into()),
            (None, Some(expected)) => return Err(Failure::HeadMissing { expected }),
            (None, None) => {}
        }
        if let Some(newest) = coverage.newest.clone() {
            remember(console, &mut self.remembered, newest);
        }
        Ok(())
    }
}
