//! `audit tail | verify`.

mod copies;
mod verify;

use postern_core::audit::AuditRecord;
use postern_proto::v1;

pub(super) use self::verify::verify;

use super::retry::Retry;
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{Console, printable, table};

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
