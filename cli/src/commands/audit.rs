//! `audit tail | verify`. A verification against an expected head trusts no broker: the command reads every record
//! itself, from a file or from the broker.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use postern_core::audit::{AuditRecord, Broken, Hash, Verifier};
use postern_proto::v1;

use super::retry::Retry;
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{Console, json, printable, table};

/// Writes the records after a given one; with `follow`, without end, and after a lost connection from the last
/// record on.
///
/// # Errors
/// The broker refuses or is away.
pub(super) async fn tail(
    broker: &BrokerClient,
    console: &mut Console,
    after: u64,
    follow: bool,
) -> Result<(), Failure> {
    let mut retry = Retry::for_stream();
    let mut last = after;
    loop {
        let before = last;
        let lost = match read_on(broker, console, &mut last, follow).await {
            Ok(()) if !follow => return Ok(()),
            Ok(()) => broker.lost("the broker ended the stream".to_owned()),
            Err(failure) if !follow => return Err(failure),
            Err(failure) => failure,
        };
        if last > before {
            retry.answered();
        }
        retry.pause_after(lost).await?;
    }
}

async fn read_on(
    broker: &BrokerClient,
    console: &mut Console,
    last: &mut u64,
    follow: bool,
) -> Result<(), Failure> {
    let request = v1::TailAuditRequest { after: *last, follow };
    let mut lines = broker.call(broker.audit().tail_audit(request)).await?;
    while let Some(answer) = lines.message().await.map_err(|status| broker.failure(status))? {
        write(console, &answer)?;
        *last = answer.seq;
    }
    Ok(())
}

fn write(console: &mut Console, answer: &v1::TailAuditResponse) -> Result<(), Failure> {
    if console.is_json() {
        return Ok(console.text(&answer.line)?);
    }
    let line = match serde_json::from_str::<AuditRecord>(&answer.line) {
        Ok(record) => table::record(&record),
        Err(_) => format!("{:>6}  {}", answer.seq, printable(&answer.line)),
    };
    Ok(console.text(&line)?)
}

/// Verifies the broker's log: the broker does so, or the command itself if a head is expected.
///
/// # Errors
/// The log is broken or lacks the head, or the broker refuses or is away.
pub(super) async fn verify(
    broker: &BrokerClient,
    console: &mut Console,
    expected: Option<Hash>,
) -> Result<(), Failure> {
    let Some(expected) = expected else {
        let answer = broker.call(broker.audit().verify_audit(v1::VerifyAuditRequest::default())).await?;
        let broken = Broken { line: answer.broken_line, problem: answer.problem.clone() };
        let sound = answer.sound;
        console.show(&answer.into(), table::verified)?;
        return if sound { Ok(()) } else { Err(broken.into()) };
    };
    let mut check = Check::new(Some(expected));
    let request = v1::TailAuditRequest { after: 0, follow: false };
    let mut lines = broker.call(broker.audit().tail_audit(request)).await?;
    while let Some(answer) = lines.message().await.map_err(|status| broker.failure(status))? {
        if !check.line(answer.line.as_bytes()) {
            break;
        }
    }
    check.finish(console)
}

/// Verifies a copy of a log, without a broker.
///
/// # Errors
/// The file cannot be read, is broken or lacks the head.
pub(super) fn verify_file(
    console: &mut Console,
    file: PathBuf,
    expected: Option<Hash>,
) -> Result<(), Failure> {
    let mut check = Check::new(expected);
    check_lines(&mut check, &file).map_err(|source| Failure::File { file, source })?;
    check.finish(console)
}

/// Splits the file at `\n` alone: the broker writes no other line end.
fn check_lines(check: &mut Check, file: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(File::open(file)?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        if !check.line(line.strip_suffix(b"\n").unwrap_or(&line)) {
            return Ok(());
        }
        line.clear();
    }
    Ok(())
}

/// A verification under way.
struct Check {
    verifier: Verifier,
    expected: Option<Hash>,
    /// True once the expected head was found, or if none is expected.
    met: bool,
    broken: Option<Broken>,
}

impl Check {
    fn new(expected: Option<Hash>) -> Self {
        let met = expected.is_none_or(|expected| expected == Hash::ZERO);
        Self { verifier: Verifier::default(), expected, met, broken: None }
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
            Ok(record) => self.met |= Some(record.hash) == self.expected,
            Err(broken) => self.broken = Some(broken),
        }
        self.broken.is_none()
    }

    fn finish(self, console: &mut Console) -> Result<(), Failure> {
        let head = self.verifier.head();
        let missing = self.expected.filter(|_| self.broken.is_none() && !self.met);
        let result = json::VerifiedJson {
            records: head.seq,
            head: head.hash.to_string(),
            sound: self.broken.is_none() && missing.is_none(),
            broken_line: self.broken.as_ref().map(|broken| broken.line),
            problem: self
                .broken
                .as_ref()
                .map(|broken| broken.problem.clone())
                .or_else(|| missing.map(|expected| format!("does not contain {expected}"))),
        };
        console.show(&result, table::verified)?;
        match (self.broken, missing) {
            (Some(broken), _) => Err(broken.into()),
            (None, Some(expected)) => Err(Failure::HeadMissing { expected }),
            (None, None) => Ok(()),
        }
    }
}
