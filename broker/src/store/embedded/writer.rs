//! The writer: one thread, one connection, and group commit: every transaction that waits shares the next fsync.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use postern_core::audit::{AuditRecord, Head};
use rusqlite::{Connection, Transaction as SqlTransaction, params};
use tokio::sync::oneshot;

use super::changes;
use super::rows::{from_body, unavailable};
use crate::store::{StoreError, Transaction};

/// How many transactions share a commit at the most.
const GROUP: usize = 256;

type Answer = Result<Head, StoreError>;

/// A transaction that waits, and who waits for it.
struct Job {
    transaction: Transaction,
    answer: oneshot::Sender<Answer>,
}

/// Hands transactions to the writer's thread. The thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread on a connection of its own.
    pub(super) fn start(connection: Connection) -> Result<Self, StoreError> {
        let head = read_head(&connection)?;
        let (jobs, waiting) = channel();
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || run(connection, head, &waiting))
            .map_err(|source| StoreError::Unavailable { source: Box::new(source) })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Commits the transaction durably.
    pub(super) async fn commit(&self, transaction: Transaction) -> Answer {
        let (answer, answered) = oneshot::channel();
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(Job { transaction, answer }).is_ok());
        match answered.await {
            Ok(outcome) if sent => outcome,
            Ok(_) | Err(_) => Err(StoreError::Unavailable { source: "the store's writer has ended".into() }),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn run(mut connection: Connection, mut head: Head, waiting: &Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let group: Vec<Job> = std::iter::once(first).chain(waiting.try_iter().take(GROUP - 1)).collect();
        head = commit_group(&mut connection, head, group);
    }
}

/// Commits the group and answers everyone in it. Returns the head that is durable now.
fn commit_group(connection: &mut Connection, head: Head, group: Vec<Job>) -> Head {
    let mut outcomes = Vec::with_capacity(group.len());
    let mut next = head;
    let (jobs, answers): (Vec<_>, Vec<_>) =
        group.into_iter().map(|job| (job.transaction, job.answer)).unzip();
    let committed = (|| {
        let mut shared = connection.transaction().map_err(unavailable)?;
        for transaction in jobs {
            let outcome = apply(&mut shared, next, transaction);
            if let Ok(head) = &outcome {
                next = *head;
            }
            outcomes.push(outcome);
        }
        shared.commit().map_err(unavailable)
    })();
    match committed {
        Ok(()) => {
            for (answer, outcome) in answers.into_iter().zip(outcomes) {
                // Whoever no longer waits finds out from the store.
                answer.send(outcome).ok();
            }
            next
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a commit failed");
            for answer in answers {
                answer.send(Err(again(&error))).ok();
            }
            head
        }
    }
}

/// Applies one transaction inside a savepoint, so that its failure hurts nobody else in the group.
fn apply(shared: &mut SqlTransaction<'_>, head: Head, transaction: Transaction) -> Answer {
    let savepoint = shared.savepoint().map_err(unavailable)?;
    for change in &transaction.changes {
        changes::apply(&savepoint, change)?;
    }
    let mut next = head;
    for event in transaction.audit {
        let record = AuditRecord::following(&next, event);
        next = record.head();
        savepoint
            .prepare_cached("INSERT INTO audit (seq, line) VALUES (?1, ?2)")
            .and_then(|mut statement| statement.execute(params![next.seq, record.to_line()]))
            .map_err(unavailable)?;
    }
    savepoint.commit().map_err(unavailable)?;
    Ok(next)
}

fn read_head(connection: &Connection) -> Result<Head, StoreError> {
    let last = connection
        .query_row("SELECT line FROM audit ORDER BY seq DESC LIMIT 1", [], |row| row.get::<_, String>(0));
    match last {
        Ok(line) => Ok(from_body::<AuditRecord>("audit record", &line)?.head()),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(Head::EMPTY),
        Err(error) => Err(unavailable(error)),
    }
}

/// The same failure for everyone else in the group.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Full => StoreError::Full,
        StoreError::Conflict { .. }
        | StoreError::NewerSchema { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Unavailable { .. } => StoreError::Unavailable { source: error.to_string().into() },
    }
}
