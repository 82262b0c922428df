//! Commits: one script does a group of transactions or none of it.
//!
//! The records of the audit log are a chain, so that the writer has to know its end: the script is given the head that
//! the records were made after, and does nothing where that is not the head any more. Every write names its membership,
//! and what needs one its lease: a broker that was replaced is refused, however late its write comes.
//!
//! Brokers that write at once take turns. A broker whose head was moved by another one is given the turn with the answer, and
//! the script has every other broker wait until that one has committed, or for [`TURN`] where it died. So the writer never
//! gives a commit up because others write too: it waits, and its turn comes. A broker that writes alone takes no turns.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use postern_core::audit::{AuditRecord, Head};
use redis::Script;
use redis::aio::MultiplexedConnection;
use serde::Serialize;
use tokio::sync::{Mutex, oneshot};
use tokio::time::Instant;

use super::error::{failed, message, redis_failed};
use super::keys::{head_of, request_field, token_field};
use super::membership::{Membership, ended, lost};
use super::server::Server;
use crate::store::bodies::to_body;
use crate::store::{Change, Expect, StoreError, Transaction};

/// How many transactions share a script at the most.
const GROUP: usize = 64;
/// How long a broker has the turn. It needs a few milliseconds; one that was killed in its turn holds the others up for so long.
const TURN: Duration = Duration::from_millis(300);
/// The pause before a broker asks again whether its turn has come, at first and at the most.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(4));
/// How long a group waits for its turn. Turns come in the order in which brokers asked, so that even several that died in
/// theirs do not keep a group for so long.
const TURN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long replicas have to confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);

/// In the place of a head that is not known. No head is written so.
const NO_HEAD: &str = "?";

type Answer = Result<Head, StoreError>;

/// A transaction that waits, and who waits for it.
struct Job {
    transaction: Transaction,
    answer: oneshot::Sender<Answer>,
}

/// Hands transactions to the server, one group after the other.
pub(super) struct Writer {
    server: Server,
    /// Who writes.
    membership: Arc<Membership>,
    commit: Script,
    /// The newest audit record that as many replicas have as are to have it.
    confirmed: AtomicU64,
    waiting: std::sync::Mutex<Vec<Job>>,
    session: Mutex<PrimarySession>,
}

/// What whoever has the turn works with.
#[derive(Default)]
struct PrimarySession {
    /// A connection of its own: WAIT counts the writes of its own connection.
    connection: Option<MultiplexedConnection>,
    head: Option<Head>,
}

/// A transaction as the script reads it.
#[derive(Serialize)]
struct WireTransaction {
    /// The target of the lease that it needs; empty: none.
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
    pub(super) fn new(server: Server, membership: Arc<Membership>) -> Self {
        let commit = Script::new(include_str!("commit.lua"));
        let (waiting, session) = (std::sync::Mutex::default(), Mutex::default());
        Self { server, membership, commit, confirmed: AtomicU64::new(0), waiting, session }
    }

    /// Waits until replicas have the log up to this record, whoever wrote it, where they are to have it.
    ///
    /// # Errors
    /// They do not say so in time: what was read may be lost with the primary.
    pub(super) async fn confirmed(&self, seq: u64) -> Result<(), StoreError> {
        if self.server.replicas == 0 || self.confirmed.load(Ordering::SeqCst) >= seq {
            return Ok(());
        }
        let mut session = self.session.lock().await;
        if self.confirmed.load(Ordering::SeqCst) >= seq {
            return Ok(());
        }
        let confirmed = async {
            let connection = match &mut session.connection {
                Some(connection) => connection,
                none => none.insert(self.server.connect().await?),
            };
            // WAIT waits for what its own connection wrote last, and so for everything before that on this primary. The record
            // may have been read from another one, before a failover that has lost it.
            let head = self.server.head(connection).await?;
            if head.seq < seq {
                let what = format!("audit record {seq} is not there any more; the log ends at {}", head.seq);
                return Err(failed(message(&what)));
            }
            let mut write = redis::cmd("SET");
            write.arg(self.server.key("confirmed")).arg(seq);
            write.query_async::<()>(connection).await.map_err(redis_failed)?;
            self.server.confirm(connection, CONFIRM_TIMEOUT).await
        };
        let outcome = confirmed.await;
        match &outcome {
            Ok(()) => {
                self.confirmed.fetch_max(seq, Ordering::SeqCst);
                self.server.guard.confirmed(seq);
            }
            Err(_) => *session = PrimarySession::default(),
        }
        outcome
    }

    /// Commits the transaction, with all that wait when its turn comes.
    pub(super) async fn commit(&self, transaction: Transaction) -> Answer {
        if transaction.is_unaudited() {
            return Err(StoreError::Unaudited);
        }
        let (answer, mut answered) = oneshot::channel();
        self.lock().push(Job { transaction, answer });
        let mut session = self.session.lock().await;
        loop {
            match answered.try_recv() {
                Ok(answer) => return answer,
                Err(oneshot::error::TryRecvError::Empty) => {}
                Err(oneshot::error::TryRecvError::Closed) => {
                    return Err(failed(message("whoever was committing gave up")));
                }
            }
            let group: Vec<Job> = {
                let mut waiting = self.lock();
                let count = waiting.len().min(GROUP);
                waiting.drain(..count).collect()
            };
            self.commit_group(&mut session, group).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Job>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits the group, and answers everyone in it.
    async fn commit_group(&self, session: &mut PrimarySession, mut group: Vec<Job>) {
        let (waits_since, mut pause) = (Instant::now(), ASK_AGAIN.0);
        while !group.is_empty() {
            match self.try_commit(session, &group).await {
                Ok(Outcome::Done(heads)) => {
                    for (job, head) in group.drain(..).zip(heads) {
                        // Whoever no longer waits finds out from the store.
                        job.answer.send(Ok(head)).ok();
                    }
                }
                Ok(Outcome::Conflict { transaction, change }) if transaction < group.len() => {
                    let job = group.remove(transaction);
                    let what = job.transaction.changes.get(change).map(Change::subject).unwrap_or_default();
                    job.answer.send(Err(StoreError::Conflict { what })).ok();
                }
                Ok(Outcome::Moved(head)) if waits_since.elapsed() < TURN_TIMEOUT => {
                    session.head = Some(head);
                    pause = ASK_AGAIN.0;
                    self.top_up(&mut group);
                }
                Ok(Outcome::Wait) if waits_since.elapsed() < TURN_TIMEOUT => {
                    session.head = None;
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
                    // Perhaps it took effect: what is known of the head and of the connection holds no more.
                    *session = PrimarySession::default();
                    let full = matches!(error, StoreError::Full);
                    let reason = error_words(&error);
                    for job in group.drain(..) {
                        let error = if full { StoreError::Full } else { failed(message(&reason)) };
                        job.answer.send(Err(error)).ok();
                    }
                }
            }
        }
    }

    /// Adds transactions that came while the group waited.
    fn top_up(&self, group: &mut Vec<Job>) {
        let mut waiting = self.lock();
        let count = waiting.len().min(GROUP.saturating_sub(group.len()));
        group.extend(waiting.drain(..count));
    }

    async fn try_commit(&self, session: &mut PrimarySession, group: &[Job]) -> Result<Outcome, StoreError> {
        let PrimarySession { connection, head } = session;
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.server.connect().await?),
        };
        // Without a head the broker asks for the turn, and the answer has the head.
        let batch = (*head).map(|head| Batch::after(head, group)).transpose()?;
        let mut script = self.commit.prepare_invoke();
        script.key(&self.server.prefix).arg(self.membership.id());
        script.arg(head.map_or_else(|| NO_HEAD.to_owned(), |head| self.server.text_of(&head)));
        script.arg(batch.as_ref().map(|batch| self.server.text_of(&batch.head())).unwrap_or_default());
        script.arg(batch.as_ref().map_or("", |batch| &batch.entries)).arg(TURN.as_millis().to_string());
        for line in batch.iter().flat_map(|batch| &batch.lines) {
            script.arg(line);
        }
        let command = async {
            let answer: Vec<String> = script.invoke_async(connection).await.map_err(redis_failed)?;
            outcome(&answer)
        };
        let head_in = |outcome: &Outcome| Ok(outcome.moved_to());
        match (self.server.guard.ask(command, head_in).await?, batch) {
            (Outcome::Done(_), Some(batch)) => {
                let after = batch.head();
                self.server.confirm(connection, CONFIRM_TIMEOUT).await?;
                self.confirmed.fetch_max(after.seq, Ordering::SeqCst);
                self.server.guard.confirmed(after.seq);
                *head = Some(after);
                Ok(Outcome::Done(batch.heads))
            }
            (outcome, _) => Ok(outcome),
        }
    }
}

/// A group's transactions as the script takes them.
struct Batch {
    entries: String,
    /// The audit records, a line each.
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
        Some("head") => Ok(Outcome::Moved(head_of(answer.get(1).map_or("", String::as_str))?)),
        Some("wait") => Ok(Outcome::Wait),
        Some("lost") => Ok(Outcome::Lost { transaction: number(1) }),
        Some("conflict") => Ok(Outcome::Conflict { transaction: number(1), change: number(2) }),
        Some(_) | None => Err(failed(message("the script answered with something else"))),
    }
}

enum Outcome {
    /// With the head after each transaction.
    Done(Vec<Head>),
    /// One change of one transaction cannot be made; nothing was.
    Conflict { transaction: usize, change: usize },
    /// Another broker wrote meanwhile, and this one has the turn now; nothing was changed.
    Moved(Head),
    /// Another broker has the turn; nothing was changed.
    Wait,
    /// The lease of one transaction is another's; nothing was changed.
    Lost { transaction: usize },
    /// The membership has ended; nothing was changed.
    Fenced,
}

impl Outcome {
    /// Returns the head that the answer names, where it names one.
    fn moved_to(&self) -> Option<Head> {
        match self {
            Self::Moved(head) => Some(*head),
            Self::Done(_) | Self::Wait | Self::Conflict { .. } | Self::Lost { .. } | Self::Fenced => None,
        }
    }
}

fn give_up(group: &mut Vec<Job>, reason: &str) {
    for job in group.drain(..) {
        job.answer.send(Err(failed(message(reason)))).ok();
    }
}

fn error_words(error: &StoreError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
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
