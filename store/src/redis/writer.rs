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

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postern_core::audit::{AuditRecord, Head};
use postern_runtime::clock::instant;
use postern_runtime::error_chain::error_chain;
use redis::Script;
use redis::aio::MultiplexedConnection;
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::error::{failed, message, redis_failed};
use super::keys::{request_field, token_field};
use super::membership::{Membership, ended, lost};
use super::rollback::HeadReply;
use super::server::Server;
use crate::bodies::to_body;
use crate::{Change, Expect, StoreError, Transaction};

/// The most transactions in a group.
const GROUP: usize = 64;
/// The longest turn. A broker needs a few milliseconds; one that is killed in its turn holds the others up for this long.
const TURN: Duration = Duration::from_millis(300);
/// The pause before a broker asks again whether its turn has come: the first, and the longest.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(4));
/// The longest wait of a group for its turn. Turns come in the order in which brokers asked, so that even several brokers
/// that die in their turns do not keep a group waiting for this long.
const TURN_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest wait for the replicas' confirmation.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);

/// The word for an unknown head. No head is written like this.
const NO_HEAD: &str = "?";

type Answer = Result<Head, StoreError>;

/// A transaction that waits, and the channel for its answer.
struct Job {
    transaction: Transaction,
    answer: oneshot::Sender<Answer>,
}

/// The head with which a caller has read something that it wants confirmed, and the channel for the answer.
struct Confirmation {
    head: Head,
    answer: oneshot::Sender<Result<(), StoreError>>,
}

/// The newest head that the configured number of replicas have.
#[derive(Clone)]
struct ConfirmedHead(Arc<Mutex<Head>>);

impl ConfirmedHead {
    fn get(&self) -> Head {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self, head: Head) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if head.seq > newest.seq {
            *newest = head;
        }
    }

    /// Reports whether the head is confirmed without a question to the server. An older head is not: it may be of a log that a
    /// failover has ended.
    fn is(&self, head: Head) -> bool {
        head == Head::EMPTY || head == self.get()
    }
}

/// A handle on the task that commits, which ends with the handle.
pub(super) struct Writer {
    transactions: UnboundedSender<Job>,
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

/// A transaction as the script reads it.
#[derive(Serialize)]
struct WireTransaction {
    /// The target of the lease that the transaction needs; empty: none.
    lease: String,
    token: String,
    changes: Vec<WireChange>,
}

/// A change as the script reads it.
#[derive(Serialize)]
struct WireChange {
    kind: &'static str,
    key: String,
    expect: String,
    body: String,
    open: bool,
    principal: String,
    targets: Vec<String>,
}

impl Writer {
    /// Starts the task.
    #[expect(clippy::disallowed_methods, reason = "the set owns the task, and the store notices its end")]
    pub(super) fn start(server: Server, membership: Arc<Membership>) -> Self {
        let (transactions, waiting) = unbounded_channel();
        let (confirmations, to_confirm) = unbounded_channel();
        let (replicas, confirmed) = (server.replicas, ConfirmedHead(Arc::new(Mutex::new(Head::EMPTY))));
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
        Self { transactions, confirmations, replicas, confirmed, task }
    }

    /// Commits the transaction, in a group with others that wait.
    pub(super) async fn commit(&self, transaction: Transaction) -> Answer {
        if transaction.is_unaudited() {
            return Err(StoreError::Unaudited);
        }
        let (answer, answered) = oneshot::channel();
        // A task that has ended has dropped the channel, and the answer with it.
        self.transactions.send(Job { transaction, answer }).ok();
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
        self.transactions.closed().await;
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
        let mut open = Vec::new();
        for Confirmation { head, answer } in all {
            if self.confirmed.is(head) {
                answer.send(Ok(())).ok();
            } else if !answer.is_closed() {
                open.push(Confirmation { head, answer });
            }
        }
        let heads: Vec<Head> = open.iter().map(|confirmation| confirmation.head).collect();
        let outcome = if heads.is_empty() { Ok(Vec::new()) } else { self.confirm_heads(&heads).await };
        let outcome = outcome.map_err(|error| {
            self.forget();
            error_chain(&error)
        });
        for (at, Confirmation { head, answer }) in open.into_iter().enumerate() {
            let is_there = outcome.as_ref().map(|there| there.get(at).copied().unwrap_or_default());
            let confirmed = match is_there {
                Ok(true) => Ok(()),
                Ok(false) => {
                    let what = format!("the store's log does not have audit record {} any more", head.seq);
                    Err(failed(message(&what)))
                }
                Err(reason) => Err(failed(message(reason))),
            };
            answer.send(confirmed).ok();
        }
    }

    /// Reports which of the heads the log has, once the replicas have confirmed those.
    async fn confirm_heads(&mut self, heads: &[Head]) -> Result<Vec<bool>, StoreError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.server.connect().await?),
        };
        // WAIT waits for the last write of its own connection, and so for everything before it on this primary. A head may
        // have been read from another primary, before a failover that has lost it.
        self.server.head(connection).await?;
        let there = self.server.has(connection, heads).await?;
        let newest = heads.iter().zip(&there).filter(|(_, there)| **there).map(|(head, _)| *head);
        if let Some(newest) =
            newest.max_by_key(|head| head.seq).filter(|head| head.seq > self.confirmed.get().seq)
        {
            let mut write = redis::cmd("SET");
            write.arg(self.server.key("confirmed")).arg(newest.seq);
            write.query_async::<()>(connection).await.map_err(redis_failed)?;
            self.server.confirm(connection, CONFIRM_TIMEOUT).await?;
            self.has_confirmed(newest);
        }
        Ok(there)
    }

    fn has_confirmed(&self, head: Head) {
        self.confirmed.raise(head);
        self.server.guard.confirmed(head);
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
        while !group.is_empty() {
            match self.try_commit(&group).await {
                Ok(Outcome::Done(heads)) => {
                    for (job, head) in group.drain(..).zip(heads) {
                        // A caller that no longer waits reads the outcome from the store.
                        job.answer.send(Ok(head)).ok();
                    }
                }
                Ok(Outcome::Conflict { transaction, change }) if transaction < group.len() => {
                    let job = group.remove(transaction);
                    let what = job.transaction.changes.get(change).map(Change::subject).unwrap_or_default();
                    job.answer.send(Err(StoreError::Conflict { what })).ok();
                }
                Ok(Outcome::Moved(reply)) if waits_since.elapsed() < TURN_TIMEOUT => {
                    self.head = Some(reply.head);
                    pause = ASK_AGAIN.0;
                    self.top_up(&mut group);
                }
                Ok(Outcome::Wait) if waits_since.elapsed() < TURN_TIMEOUT => {
                    self.head = None;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ASK_AGAIN.1);
                }
                Ok(Outcome::Lost { transaction }) if transaction < group.len() => {
                    let job = group.remove(transaction);
                    let target =
                        job.transaction.under.map(|lease| lease.target.to_string()).unwrap_or_default();
                    job.answer.send(Err(lost(&target))).ok();
                }
                Ok(Outcome::Moved(_) | Outcome::Wait) => {
                    let seconds = TURN_TIMEOUT.as_secs();
                    give_up(
                        &mut group,
                        &format!("other brokers' commits left this one no turn for {seconds} s"),
                    );
                }
                Ok(Outcome::Conflict { .. } | Outcome::Lost { .. }) => {
                    give_up(&mut group, "the script names a transaction that it was not given");
                }
                Ok(Outcome::Fenced) => {
                    for job in group.drain(..) {
                        job.answer.send(Err(ended())).ok();
                    }
                }
                Err(error) => {
                    // The group may have been applied.
                    self.forget();
                    let full = matches!(error, StoreError::Full);
                    let reason = error_chain(&error);
                    for job in group.drain(..) {
                        let error = if full { StoreError::Full } else { failed(message(&reason)) };
                        job.answer.send(Err(error)).ok();
                    }
                }
            }
        }
    }

    async fn try_commit(&mut self, group: &[Job]) -> Result<Outcome, StoreError> {
        let Self { server, membership, commit, connection, head, .. } = self;
        let server = &*server;
        let connection = match connection {
            Some(connection) => connection,
            none => none.insert(server.connect().await?),
        };
        // Without a head the writer asks for the turn, and the answer has the head.
        let batch = head.map(|head| Batch::after(head, group)).transpose()?;
        let mut script = commit.prepare_invoke();
        script.key(&server.prefix).arg(membership.id());
        script.arg(head.map_or_else(|| NO_HEAD.to_owned(), |head| server.text_of(&head)));
        script.arg(batch.as_ref().map(|batch| server.text_of(&batch.head())).unwrap_or_default());
        script.arg(batch.as_ref().map_or("", |batch| &batch.entries)).arg(TURN.as_millis().to_string());
        let (lines, wire) = (batch.iter().flat_map(|batch| &batch.lines), &mut *connection);
        let command = |known| async move {
            script.arg(server.text_of(&known));
            for line in lines {
                script.arg(line);
            }
            let answer: Vec<String> = script.invoke_async(wire).await.map_err(redis_failed)?;
            outcome(&answer)
        };
        let head_in = |outcome: &Outcome| Ok(outcome.moved_to());
        match (server.guard.ask(command, head_in).await?, batch) {
            (Outcome::Done(_), Some(batch)) => {
                let after = batch.head();
                server.confirm(connection, CONFIRM_TIMEOUT).await?;
                *head = Some(after);
                self.has_confirmed(after);
                Ok(Outcome::Done(batch.heads))
            }
            (outcome, _) => Ok(outcome),
        }
    }
}

/// A group as the script takes it.
struct Batch {
    entries: String,
    /// The audit records, one line each.
    lines: Vec<String>,
    /// The head after each transaction.
    heads: Vec<Head>,
    before: Head,
}

impl Batch {
    /// Makes the records that follow this head.
    fn after(before: Head, group: &[Job]) -> Result<Self, StoreError> {
        let (mut after, mut heads, mut lines) = (before, Vec::new(), Vec::new());
        for job in group {
            for event in &job.transaction.audit {
                let record = AuditRecord::following(&after, event.clone());
                after = record.head();
                lines.push(record.to_line());
            }
            heads.push(after);
        }
        let entries: Vec<WireTransaction> =
            group.iter().map(|job| entry(&job.transaction)).collect::<Result<_, _>>()?;
        Ok(Self { entries: to_body(&entries)?, lines, heads, before })
    }

    /// Returns the head after the last transaction.
    fn head(&self) -> Head {
        self.heads.last().copied().unwrap_or(self.before)
    }
}

/// Reads the script's answer.
fn outcome(answer: &[String]) -> Result<Outcome, StoreError> {
    let number = |at: usize| answer.get(at).and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    match answer.first().map(String::as_str) {
        Some("ok") => Ok(Outcome::Done(Vec::new())),
        Some("fenced") => Ok(Outcome::Fenced),
        Some("moved") => Err(failed(message("the store was moved elsewhere: stop this broker"))),
        Some("head") => Ok(Outcome::Moved(HeadReply::parse(answer.get(1).map_or("", String::as_str))?)),
        Some("wait") => Ok(Outcome::Wait),
        Some("lost") => Ok(Outcome::Lost { transaction: number(1) }),
        Some("conflict") => Ok(Outcome::Conflict { transaction: number(1), change: number(2) }),
        Some(_) | None => Err(failed(message("the script gave an unexpected answer"))),
    }
}

enum Outcome {
    /// The group was applied; with the head after each transaction.
    Done(Vec<Head>),
    /// A change of a transaction cannot be made; nothing was changed.
    Conflict { transaction: usize, change: usize },
    /// Another broker has committed, and this broker has the turn now; nothing was changed.
    Moved(HeadReply),
    /// Another broker has the turn; nothing was changed.
    Wait,
    /// Another broker holds the lease of one transaction; nothing was changed.
    Lost { transaction: usize },
    /// The membership has ended; nothing was changed.
    Fenced,
}

impl Outcome {
    /// Returns the head in the answer, if it has one.
    fn moved_to(&self) -> Option<HeadReply> {
        match self {
            Self::Moved(reply) => Some(*reply),
            Self::Done(_) | Self::Wait | Self::Conflict { .. } | Self::Lost { .. } | Self::Fenced => None,
        }
    }
}

fn give_up(group: &mut Vec<Job>, reason: &str) {
    for job in group.drain(..) {
        job.answer.send(Err(failed(message(reason)))).ok();
    }
}

fn entry(transaction: &Transaction) -> Result<WireTransaction, StoreError> {
    let changes = transaction.changes.iter().map(wire).collect::<Result<_, _>>()?;
    let lease = transaction.under.as_ref();
    Ok(WireTransaction {
        lease: lease.map(|lease| lease.target.to_string()).unwrap_or_default(),
        token: lease.map(|lease| lease.token.to_string()).unwrap_or_default(),
        changes,
    })
}

fn wire(change: &Change) -> Result<WireChange, StoreError> {
    let plain = |kind, key: String, body: String| WireChange {
        kind,
        key,
        body,
        expect: String::new(),
        open: false,
        principal: String::new(),
        targets: Vec::new(),
    };
    let expect = |expect: &Expect| match expect {
        Expect::Absent => "absent".to_owned(),
        Expect::Any => "any".to_owned(),
        Expect::Version(version) => version.to_string(),
    };
    Ok(match change {
        Change::PutGrant { grant, expect: before } => WireChange {
            expect: expect(before),
            open: !grant.state.is_final(),
            principal: grant.principal.name.to_string(),
            targets: grant.targets().into_iter().map(ToString::to_string).collect(),
            ..plain("grant", grant.id.to_string(), to_body(grant)?)
        },
        Change::RememberRequest { principal, key, grant } => {
            plain("request", request_field(principal, key), grant.to_string())
        }
        Change::PutPolicy { policy, expect: before } => WireChange {
            expect: expect(before),
            ..plain("policy", policy.name.to_string(), to_body(policy)?)
        },
        Change::DeletePolicy { name } => plain("delete_policy", name.to_string(), String::new()),
        Change::PutAgent { agent, expect: before } => {
            WireChange { expect: expect(before), ..plain("agent", agent.target.to_string(), to_body(agent)?) }
        }
        Change::PutToken { hash, token } => plain("token", token_field(hash), to_body(token)?),
        Change::TakeToken { hash } => plain("take_token", token_field(hash), String::new()),
    })
}
