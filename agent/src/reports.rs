//! Reports of tampering, and of contradicting checkpoints, on their way to the broker. They wait here, in memory, while there is no session. A report that was
//! sent is kept until the broker acknowledges it: a report that arrives twice is better than one that is lost (I9).

use std::collections::VecDeque;
use std::time::Duration;

use postern_proto::convert::duration_to_wire;
use postern_proto::v1;
use postern_proto::v1::session_request::Message as ToBroker;
use tokio::sync::mpsc;

use crate::clock::BootTime;

/// The most reports that may wait. The first ones name the process; those after a flood are dropped and logged.
const MAX_QUEUED: usize = 256;
/// The most reports that may be sent and not yet acknowledged.
const MAX_UNACKNOWLEDGED: usize = 32;
/// The longest text that the broker takes, in characters.
const MAX_TEXT: usize = 200;

/// A report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A change of the table.
    Repair(RepairReport),
    /// Two checkpoints of the audit log that contradict each other.
    Checkpoint(CheckpointReport),
}

/// Two checkpoints of the audit log that contradict each other, as their lines of JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointReport {
    /// The checkpoint that the agent has kept.
    pub kept: String,
    /// The checkpoint that came later.
    pub received: String,
}

/// A change of the table by another process, which the agent has repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairReport {
    /// The change, in words.
    pub what: String,
    /// The process that made the change; empty if unknown.
    pub process: String,
    /// The process id; 0 if unknown.
    pub pid: u32,
    /// The time for which the table was changed.
    pub exposed_for: Duration,
}

/// The end of the queue that takes reports.
#[derive(Debug, Clone)]
pub struct Reporter {
    queue: mpsc::Sender<Report>,
}

/// The end of the queue from which sessions take reports.
#[derive(Debug)]
pub struct Reports {
    queue: mpsc::Receiver<Report>,
    unsent: VecDeque<Report>,
    unacknowledged: VecDeque<(BootTime, Report)>,
}

/// Makes an empty queue of reports.
pub fn channel() -> (Reporter, Reports) {
    let (sender, queue) = mpsc::channel(MAX_QUEUED);
    (Reporter { queue: sender }, Reports { queue, unsent: VecDeque::new(), unacknowledged: VecDeque::new() })
}

impl Reporter {
    /// Queues a report. If the queue is full, the report is dropped and that is logged.
    pub fn report(&self, report: Report) {
        if self.queue.try_send(report).is_err() {
            tracing::error!("too many reports wait for the broker; this one is dropped");
        }
    }
}

impl Reports {
    /// Begins a session: every report that the last session sent without an acknowledgement is sent again.
    pub fn begin_session(&mut self) {
        while let Some((_, report)) = self.unacknowledged.pop_back() {
            self.unsent.push_front(report);
        }
    }

    /// Returns the next report to send; waits until there is one, and while too many are unacknowledged. Safe to cancel.
    pub async fn next(&mut self) -> Report {
        if self.unacknowledged.len() >= MAX_UNACKNOWLEDGED {
            return std::future::pending().await;
        }
        if let Some(report) = self.unsent.pop_front() {
            return report;
        }
        match self.queue.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }

    /// Notes that the report was sent, stamped with this moment.
    pub fn sent(&mut self, at: BootTime, report: Report) {
        self.unacknowledged.push_back((at, report));
    }

    /// Notes that the broker has received everything that was sent up to this moment.
    pub fn acknowledged(&mut self, up_to: BootTime) {
        while self.unacknowledged.front().is_some_and(|(sent_at, _)| *sent_at <= up_to) {
            self.unacknowledged.pop_front();
        }
    }
}

impl Report {
    /// Converts the report for the wire.
    pub fn to_wire(&self) -> ToBroker {
        match self {
            Self::Repair(report) => ToBroker::Tampering(report.to_wire()),
            Self::Checkpoint(CheckpointReport { kept, received }) => {
                let (kept, received) = (kept.clone(), received.clone());
                ToBroker::CheckpointReport(v1::CheckpointReport { kept, received })
            }
        }
    }
}

impl RepairReport {
    /// Converts the report for the wire. A process chooses its own name, so the name is made printable and short: the
    /// broker would refuse it otherwise, and end the session.
    pub fn to_wire(&self) -> v1::Tampering {
        v1::Tampering {
            what: printable(&self.what),
            process: printable(&self.process),
            pid: self.pid,
            exposed_for: Some(duration_to_wire(self.exposed_for)),
        }
    }
}

fn printable(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
    plain.take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn report(pid: u32) -> RepairReport {
        RepairReport {
            what: "table deleted".into(),
            process: "nft".into(),
            pid,
            exposed_for: Duration::from_millis(3),
        }
    }

    #[test]
    fn i9_a_report_is_sent_again_until_the_broker_acknowledges_it() {
        let (reporter, mut reports) = channel();
        reporter.report(Report::Repair(report(1)));
        reporter.report(Report::Repair(report(2)));
        for (at, pid) in [(10, 1), (20, 2)] {
            let next = reports.next().now_or_never().unwrap();
            assert_eq!(next, Report::Repair(report(pid)));
            reports.sent(BootTime(at), next);
        }
        reports.acknowledged(BootTime(15));
        reports.begin_session();
        assert_eq!(
            reports.next().now_or_never().unwrap(),
            Report::Repair(report(2)),
            "the first was acknowledged"
        );
        assert!(reports.next().now_or_never().is_none());
    }

    #[test]
    fn a_flood_neither_grows_nor_blocks() {
        let (reporter, mut reports) = channel();
        (0..2000).for_each(|pid| reporter.report(Report::Repair(report(pid))));
        for pid in 0..32 {
            let next = reports.next().now_or_never().unwrap();
            assert_eq!(next, Report::Repair(report(pid)), "the earliest are kept");
            reports.sent(BootTime(1), next);
        }
        assert!(reports.next().now_or_never().is_none(), "too many are unacknowledged");
    }

    #[test]
    fn a_process_cannot_name_itself_so_that_the_broker_refuses_the_session() {
        let wire = RepairReport { process: "\u{202e}\n".repeat(500), ..report(1) }.to_wire();
        postern_core::text::free_text("process", &wire.process, 200).unwrap();
    }
}
