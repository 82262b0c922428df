//! Commits on Redis, and the turns of the brokers that commit at once.
//!
//! **The problem.** The audit log is a chain: each record contains the hash of the one before it. So a broker must know the
//! head of the log before it can make its records, and every commit of another broker moves the head. A broker that only
//! tried again could lose that race forever.
//!
//! **The words.**
//!
//! - A *group* is the transactions of one broker that wait at the same time, [`GROUP`] at most. One script (`commit.lua`)
//!   applies the whole group or nothing.
//! - A *turn* is the right to commit next. One broker has it, for [`TURN`] at most.
//! - The *queue* has the brokers that wait for the turn, in the order in which they asked.
//!
//! **The course of a commit.** The writer makes the records after the head that it knows, and sends them with that head.
//!
//! 1. The head still holds and no other broker has the turn: the script applies the group. A broker that writes alone always
//!    ends here, and never takes a turn.
//! 2. The head has moved: the script applies nothing, returns the head, and gives this broker the turn. The writer makes its
//!    records again after that head; no other broker can move it meanwhile.
//! 3. Another broker has the turn: the script puts this broker into the queue. The writer asks again after some milliseconds
//!    ([`ASK_AGAIN`]).
//!
//! A commit in a turn hands the turn to the first broker in the queue. So no group is overtaken twice, and the writer never
//! gives a commit up because other brokers write: it waits, and its turn comes.
//!
//! **The rule.** Every write names the broker's membership, and its lease if it needs one. The server refuses a broker that
//! was replaced, however late its write comes.
//!
//! **The task.** One task of the store's own does all this, and its callers only wait for its answers. A caller that leaves
//! stops nothing: a group that has begun goes on, and only the transactions of callers that have left before their group
//! began are dropped. If the task ends, every call fails, and the broker ends ([`Writer::ended`]).
//!
//! **On failure.** A broker that dies in its turn holds the others up for [`TURN`]. A conflict or a lost lease takes one
//! transaction out of its group, and the rest goes again in the same turn. After an error the outcome is unknown: the writer
//! drops its connection and its head, and answers every transaction of the group with the error. A group that gets no turn
//! for [`TURN_TIMEOUT`] gets an error, too; nothing of it was applied.

use std::sync::Arc;
use std::time::Duration;

use postern_core::audit::Head;
use postern_runtime::clock::instant;
use postern_runtime::error_chain::error_chain;
use redis::Script;
use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::commit::{CommitOutcome, Group};
use super::confirmed::{CONFIRM_TIMEOUT, Confirmation, ConfirmedHead};
use super::error::{failed, message, redis_failed};
use super::membership::{Membership, ended, lost};
use super::server::Server;
use crate::batch::{AuditCut, Batch, Requirement, Write};
use crate::error::StoreError;

/// The most transactions in a group.
const GROUP: usize = 64;
/// The longest turn. A broker needs a few milliseconds; one that is killed in its turn holds the others up for this long.
const TURN: Duration = Duration::from_millis(300);
/// The pause before a broker asks again whether its turn has come: the first, and the longest.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(4));
/// The longest wait of a group for its turn. Turns come in the order in which brokers asked, so that even several brokers
/// that die in their turns do not keep a group waiting for this long.
const TURN_TIMEOUT: Duration = Duration::from_secs(15);

/// The word for an unknown head. No head is written like this.
const NO_HEAD: &str = "?";

type Answer = Result<Head, StoreError>;

/// A batch that waits, and the channel for its answer.
struct Job {
    batch: Batch,
    answer: oneshot::Sender<Answer>,
}

/// A handle on the task that commits, which ends with the handle.
pub(super) struct Writer {
    batches: UnboundedSender<Job>,
    confirmations: UnboundedSender<Confirmation>,
    /// The number of replicas that have to confirm.
    replicas: usize,
    confirmed: ConfirmedHead,
    #[allow(dead_code, reason = "the task is there as long as the handle")]
    task: JoinSet<()>,
}

/// The task: it commits transactions on the server, one group after the other.
struct Committer {
    server: Server,
    /// The broker's membership.
    membership: Arc<Membership>,
    commit: Script,
    waiting: UnboundedReceiver<Job>,
    confirmations: UnboundedReceiver<Confirmation>,
    confirmed: ConfirmedHead,
    /// A connection for commits alone: WAIT counts the writes of its own connection.
    connection: Option<MultiplexedConnection>,
    head: Option<Head>,
}

impl Writer {
    /// Starts the task.
    #[expect(clippy::disallowed_methods, reason = "the set owns the task, and the store notices its end")]
    pub(super) fn start(server: Server, membership: Arc<Membership>) -> Self {
        let (batches, waiting) = unbounded_channel();
        let (confirmations, to_confirm) = unbounded_channel();
        let (replicas, confirmed) = (server.replicas, ConfirmedHead::new(Arc::clone(&server.guard)));
        let committer = Committer {
            server,
            membership,
            commit: Script::new(script!("commit.lua")),
            waiting,
            confirmations: to_confirm,
            confirmed: confirmed.clone(),
            connection: None,
            head: None,
        };
        let mut task = JoinSet::new();
        task.spawn(committer.run());
        Self { batches, confirmations, replicas, confirmed, task }
    }

    /// Commits the batch, in a group with others that wait.
    pub(super) async fn commit(&self, batch: Batch) -> Answer {
        if batch.is_unaudited() {
            return Err(StoreError::Unaudited);
        }
        let (answer, answered) = oneshot::channel();
        // A task that has ended has dropped the channel, and the answer with it.
        self.batches.send(Job { batch, answer }).ok();
        answered.await.unwrap_or_else(|_| Err(no_task()))
    }

    /// Waits until the configured number of replicas have the log up to this head, which any broker may have written.
    ///
    /// # Errors
    /// They do not confirm it in time, or the log does not have it any more: what was read may be lost with a primary.
    pub(super) async fn confirmed(&self, head: Head) -> Result<(), StoreError> {
        if self.replicas == 0 || self.confirmed.is(head) {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        self.confirmations.send(Confirmation { head, answer }).ok();
        answered.await.unwrap_or_else(|_| Err(no_task()))
    }

    /// Waits until the task has ended, which it does only by a panic.
    pub(super) async fn ended(&self) {
        self.batches.closed().await;
    }

    /// Ends the task where it is, as a panic would.
    #[cfg(test)]
    pub(super) async fn end(&mut self) {
        self.task.shutdown().await;
    }
}

fn no_task() -> StoreError {
    failed(message("the store's writer has ended"))
}

impl Committer {
    /// Serves its callers until the handle is dropped.
    async fn run(mut self) {
        loop {
            tokio::select! {
                Some(first) = self.waiting.recv() => {
                    let mut group = Vec::new();
                    self.join(&mut group, first);
                    self.top_up(&mut group);
                    self.commit_group(group).await;
                }
                Some(first) = self.confirmations.recv() => self.confirm(first).await,
                else => return,
            }
        }
    }

    /// Confirms the heads of every caller that waits for it.
    async fn confirm(&mut self, first: Confirmation) {
        let mut all = vec![first];
        while let Ok(next) = self.confirmations.try_recv() {
            all.push(next);
        }
        self.confirmed.confirm(&self.server, &mut self.connection, all).await;
        if self.connection.is_none() {
            self.forget();
        }
    }

    /// Drops the connection and the known head: after an error neither is valid.
    fn forget(&mut self) {
        (self.connection, self.head) = (None, None);
    }

    /// Adds a transaction to the group, unless its caller has left: nothing of it was sent yet.
    fn join(&self, group: &mut Vec<Job>, job: Job) {
        if !job.answer.is_closed() {
            group.push(job);
        }
    }

    /// Adds transactions that wait to the group.
    fn top_up(&mut self, group: &mut Vec<Job>) {
        while group.len() < GROUP
            && let Ok(job) = self.waiting.try_recv()
        {
            self.join(group, job);
        }
    }

    /// Commits the group, and answers each transaction.
    async fn commit_group(&mut self, mut group: Vec<Job>) {
        let (waits_since, mut pause) = (instant(), ASK_AGAIN.0);
        // Transactions that conflict, perhaps with one before them in the group. Their callers read the store next, so they are
        // answered after the group.
        let mut refused: Vec<(Job, StoreError)> = Vec::new();
        while !group.is_empty() {
            match self.try_commit(&group).await {
                Ok(CommitOutcome::Done(heads)) => {
                    for (job, head) in group.drain(..).zip(heads) {
                        // A caller that no longer waits reads the outcome from the store.
                        job.answer.send(Ok(head)).ok();
                    }
                }
                Ok(CommitOutcome::Conflict { transaction, write }) if transaction < group.len() => {
                    let job = group.remove(transaction);
                    let what = job.batch.writes.get(write).map(Write::subject).unwrap_or_default();
                    refused.push((job, StoreError::Conflict { what }));
                }
                Ok(CommitOutcome::Uncut { transaction }) if transaction < group.len() => {
                    refused.push((group.remove(transaction), AuditCut::conflict()));
                }
                Ok(CommitOutcome::Unmet { transaction, requirement }) if transaction < group.len() => {
                    let job = group.remove(transaction);
                    let required = job.batch.requires.get(requirement);
                    let what = required.map(Requirement::subject).unwrap_or_default();
                    refused.push((job, StoreError::Conflict { what }));
                }
                Ok(CommitOutcome::Moved(reply)) if waits_since.elapsed() < TURN_TIMEOUT => {
                    self.head = Some(reply.head);
                    pause = ASK_AGAIN.0;
                    self.top_up(&mut group);
                }
                Ok(CommitOutcome::Wait) if waits_since.elapsed() < TURN_TIMEOUT => {
                    self.head = None;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ASK_AGAIN.1);
                }
                Ok(CommitOutcome::Lost { transaction }) if transaction < group.len() => {
                    let job = group.remove(transaction);
                    let target = job.batch.under.map(|lease| lease.target.to_string()).unwrap_or_default();
                    job.answer.send(Err(lost(&target))).ok();
                }
                Ok(CommitOutcome::Moved(_) | CommitOutcome::Wait) => {
                    let seconds = TURN_TIMEOUT.as_secs();
                    let reason = format!("other brokers' commits left this one no turn for {seconds} s");
                    end_all(&mut group, &mut refused, || failed(message(&reason)));
                }
                Ok(
                    CommitOutcome::Conflict { .. }
                    | CommitOutcome::Uncut { .. }
                    | CommitOutcome::Unmet { .. }
                    | CommitOutcome::Lost { .. },
                ) => {
                    let reason = "the script names a transaction that it was not given";
                    end_all(&mut group, &mut refused, || failed(message(reason)));
                }
                Ok(CommitOutcome::Fenced) => end_all(&mut group, &mut refused, ended),
                Err(error) => {
                    // The group may have been applied.
                    self.forget();
                    let reason = error_chain(&error);
                    let full = if let StoreError::Full(medium) = error { Some(medium) } else { None };
                    end_all(&mut group, &mut refused, || {
                        full.map_or_else(|| failed(message(&reason)), StoreError::Full)
                    });
                }
            }
        }
        for (job, conflict) in refused {
            job.answer.send(Err(conflict)).ok();
        }
    }

    async fn try_commit(&mut self, group: &[Job]) -> Result<CommitOutcome, StoreError> {
        let Self { server, membership, commit, connection, head, .. } = self;
        let server = &*server;
        let connection = match connection {
            Some(connection) => connection,
            none => none.insert(server.connect().await?),
        };
        // Without a head the writer asks for the turn, and the answer has the head.
        let wire = head.map(|head| Group::after(head, group.iter().map(|job| &job.batch))).transpose()?;
        let mut script = commit.prepare_invoke();
        script.key(&server.prefix).arg(membership.id());
        script.arg(head.map_or_else(|| NO_HEAD.to_owned(), |head| server.text_of(&head)));
        script.arg(wire.as_ref().map(|group| server.text_of(&group.head())).unwrap_or_default());
        script.arg(wire.as_ref().map_or("", |group| &group.entries)).arg(TURN.as_millis().to_string());
        let (lines, to) = (wire.iter().flat_map(|group| &group.lines), &mut *connection);
        let command = |known| async move {
            script.arg(server.text_of(&known));
            for line in lines {
                script.arg(line);
            }
            let answer: Vec<String> = script.invoke_async(to).await.map_err(redis_failed)?;
            CommitOutcome::parse(&answer)
        };
        let head_in = |outcome: &CommitOutcome| Ok(outcome.moved_to());
        match (server.guard.ask(command, head_in).await?, wire) {
            (CommitOutcome::Done(_), Some(group)) => {
                let after = group.head();
                server.confirm(connection, CONFIRM_TIMEOUT).await?;
                *head = Some(after);
                self.confirmed.raise(after);
                Ok(CommitOutcome::Done(group.heads))
            }
            (outcome, _) => Ok(outcome),
        }
    }
}

/// Answers every transaction of the group with an error, also those that were refused before: the transaction with which one
/// of them conflicts may be among those that were not applied.
fn end_all(group: &mut Vec<Job>, refused: &mut Vec<(Job, StoreError)>, error: impl Fn() -> StoreError) {
    let refused = refused.drain(..).map(|(job, _)| job);
    for job in group.drain(..).chain(refused) {
        job.answer.send(Err(error())).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn i8_a_group_that_ends_answers_no_conflict_whose_cause_was_not_applied() {
        let job = || {
            let (answer, answered) = oneshot::channel();
            (Job { batch: Batch::default(), answer }, answered)
        };
        let ((applied_last, first), (conflicting, second)) = (job(), job());
        let mut group = vec![applied_last];
        let mut refused = vec![(conflicting, StoreError::Conflict { what: "the grant".to_owned() })];
        end_all(&mut group, &mut refused, ended);
        for answered in [first, second] {
            assert!(matches!(answered.await.unwrap(), Err(StoreError::Fenced { .. })));
        }
        assert!(group.is_empty() && refused.is_empty());
    }
}
