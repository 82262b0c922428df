//! The writer: one thread and one connection, with group commit: all transactions that wait share the next fsync.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use postern_core::audit::{AuditRecord, Head};
use rusqlite::{Connection, Transaction as SqlTransaction, params};
use tokio::sync::{oneshot, watch};

use super::base;
use super::cache::{Cache, Effect};
use super::rows::unavailable;
use super::writes;
use crate::batch::Batch;
use crate::error::StoreError;

/// The most transactions that share a commit.
const GROUP: usize = 256;

type Answer = Result<Head, StoreError>;

/// A batch that waits, and the channel for its answer.
struct Job {
    batch: Batch,
    answer: oneshot::Sender<Answer>,
}

/// A handle on the writer's thread, which ends when the handle is dropped.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// The other half is the thread's, and goes with it.
    alive: watch::Receiver<()>,
}

impl Writer {
    /// Starts the thread, with a connection of its own.
    #[expect(
        clippy::disallowed_methods,
        reason = "the writer owns the thread, and the store notices its end"
    )]
    pub(super) fn start(connection: Connection, cache: Cache) -> Result<Self, StoreError> {
        let (jobs, waiting) = channel();
        let (runs, alive) = watch::channel(());
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                let _runs = runs;
                run(connection, &cache, &waiting);
            })
            .map_err(|source| StoreError::Unavailable { source: Box::new(source) })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), alive })
    }

    /// Commits the batch durably.
    pub(super) async fn commit(&self, batch: Batch) -> Answer {
        let (answer, answered) = oneshot::channel();
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(Job { batch, answer }).is_ok());
        match answered.await {
            Ok(outcome) if sent => outcome,
            Ok(_) | Err(_) => Err(StoreError::Unavailable { source: "the store's writer has ended".into() }),
        }
    }

    /// Waits until the thread has ended, which it does only by a panic.
    pub(super) async fn ended(&self) {
        // Nothing is ever sent.
        self.alive.clone().changed().await.ok();
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

fn run(mut connection: Connection, cache: &Cache, waiting: &Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let group: Vec<Job> = std::iter::once(first).chain(waiting.try_iter().take(GROUP - 1)).collect();
        commit_group(&mut connection, cache, group);
    }
}

/// Commits the group, updates the cache, and answers each batch.
fn commit_group(connection: &mut Connection, cache: &Cache, group: Vec<Job>) {
    let (jobs, answers): (Vec<_>, Vec<_>) = group.into_iter().map(|job| (job.batch, job.answer)).unzip();
    match commit(connection, cache, jobs) {
        Ok(Committed { outcomes, effects, head }) => {
            cache.follow(effects, head);
            for (answer, outcome) in answers.into_iter().zip(outcomes) {
                // A caller that no longer waits reads the outcome from the store.
                answer.send(outcome).ok();
            }
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a commit failed");
            for answer in answers {
                answer.send(Err(again(&error))).ok();
            }
        }
    }
}

/// A durable group.
struct Committed {
    outcomes: Vec<Answer>,
    effects: Vec<Effect>,
    head: Head,
}

fn commit(connection: &mut Connection, cache: &Cache, jobs: Vec<Batch>) -> Result<Committed, StoreError> {
    let mut head = cache.head();
    let mut shared = connection.transaction().map_err(unavailable)?;
    let (mut outcomes, mut effects) = (Vec::with_capacity(jobs.len()), Vec::new());
    for batch in jobs {
        outcomes.push(match apply(&mut shared, cache, head, batch) {
            Ok(applied) => {
                effects.extend(applied.effects);
                head = applied.head;
                Ok(head)
            }
            Err(refused @ (StoreError::Conflict { .. } | StoreError::Unaudited)) => Err(refused),
            // SQLite may have rolled back the whole group by itself, so the group ends here.
            Err(failed) => return Err(failed),
        });
    }
    shared.commit().map_err(unavailable)?;
    Ok(Committed { outcomes, effects, head })
}

/// An applied batch of a group.
struct Applied {
    effects: Vec<Effect>,
    head: Head,
}

/// Applies one batch inside a savepoint, so that its failure does not affect the others in the group.
fn apply(
    shared: &mut SqlTransaction<'_>,
    cache: &Cache,
    mut head: Head,
    batch: Batch,
) -> Result<Applied, StoreError> {
    if batch.is_unaudited() {
        return Err(StoreError::Unaudited);
    }
    let savepoint = shared.savepoint().map_err(unavailable)?;
    let mut effects = Vec::with_capacity(batch.writes.len());
    batch.requires.iter().try_for_each(|requirement| writes::check(&savepoint, requirement))?;
    for write in batch.writes {
        let version = writes::apply(&savepoint, &write)?;
        effects.extend(cache.effect(write, version));
    }
    if let Some(cut) = batch.cut {
        base::cut(&savepoint, head, *cut)?;
    }
    for event in batch.audit {
        let record = AuditRecord::following(&head, event);
        head = record.head();
        savepoint
            .prepare_cached("INSERT INTO audit (seq, line) VALUES (?1, ?2)")
            .and_then(|mut statement| statement.execute(params![head.seq, record.to_line()]))
            .map_err(unavailable)?;
    }
    savepoint.commit().map_err(unavailable)?;
    Ok(Applied { effects, head })
}

/// Copies the failure for another transaction of the group.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Full(medium) => StoreError::Full(*medium),
        StoreError::Conflict { .. }
        | StoreError::Fenced { .. }
        | StoreError::LowOnSpace { .. }
        | StoreError::Unaudited
        | StoreError::NewerSchema { .. }
        | StoreError::Migration(_)
        | StoreError::Forged { .. }
        | StoreError::OtherKey
        | StoreError::Lacking { .. }
        | StoreError::PoliciesLost { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Unavailable { .. } => StoreError::Unavailable { source: error.to_string().into() },
    }
}
