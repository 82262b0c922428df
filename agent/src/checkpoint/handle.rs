//! The thread of the checkpoint keeper, and the handle through which sessions reach it. The disk blocks; the async runtime must not.

use std::sync::Arc;

use postern_pki::credentials::Credentials;
use tokio::sync::{mpsc, oneshot};

use super::CheckpointKeeper;
use crate::host_reconciler::answer_or_pending;

/// The most commands that may wait for the thread: a broker sends a checkpoint a minute.
const MAX_QUEUED: usize = 16;

/// The way to the keeper. When the keeper has ended, so has the agent, and answers never come.
#[derive(Debug, Clone)]
pub struct CheckpointHandle {
    commands: mpsc::Sender<Command>,
}

/// The queue from which the keeper's thread takes its work.
#[derive(Debug)]
pub struct Commands {
    queue: mpsc::Receiver<Command>,
}

#[derive(Debug)]
enum Command {
    Trust { credentials: Arc<Credentials>, is_enrolment: bool, reply: oneshot::Sender<()> },
    Line { credentials: Arc<Credentials>, is_enrolment: bool, reply: oneshot::Sender<String> },
    Receive { line: String },
    Flush,
}

/// Makes a handle, and the queue that [`serve`] takes.
pub fn channel() -> (CheckpointHandle, Commands) {
    let (commands, queue) = mpsc::channel(MAX_QUEUED);
    (CheckpointHandle { commands }, Commands { queue })
}

/// Serves the keeper until every handle is dropped. Blocks, so it must have a thread of its own.
pub fn serve(mut keeper: CheckpointKeeper, mut commands: Commands) {
    while let Some(command) = commands.queue.blocking_recv() {
        // A caller that no longer waits for its answer is no error.
        match command {
            Command::Trust { credentials, is_enrolment, reply } => {
                keeper.trust(credentials, is_enrolment);
                let _ = reply.send(());
            }
            Command::Line { credentials, is_enrolment, reply } => {
                let _ = reply.send(keeper.line(&credentials, is_enrolment));
            }
            Command::Receive { line } => keeper.receive(&line),
            Command::Flush => keeper.flush(),
        }
    }
}

impl CheckpointHandle {
    /// Verifies checkpoints under the roots of this identity from now on: see [`CheckpointKeeper::trust`].
    pub async fn trust(&self, credentials: Arc<Credentials>, is_enrolment: bool) {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Trust { credentials, is_enrolment, reply }).await;
        answer_or_pending(answer).await;
    }

    /// Returns the newest checkpoint for the hello of a session: see [`CheckpointKeeper::line`].
    pub async fn line(&self, credentials: Arc<Credentials>, is_enrolment: bool) -> String {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Line { credentials, is_enrolment, reply }).await;
        answer_or_pending(answer).await
    }

    /// Hands over a checkpoint that a broker sent, as its line of JSON, without waiting. If too many wait, it is dropped and that is
    /// logged.
    pub fn receive(&self, line: String) {
        if self.commands.try_send(Command::Receive { line }).is_err() {
            tracing::error!("too many checkpoints of the audit log wait for the disk; this one is dropped");
        }
    }

    /// Has the newest checkpoint written, if that is due.
    pub fn flush(&self) {
        // If the queue is full, the next heartbeat asks again.
        let _ = self.commands.try_send(Command::Flush);
    }

    async fn send(&self, command: Command) {
        // A keeper that has ended drops the command, and with it the sender of its answer: see [`answer_or_pending`].
        let _ = self.commands.send(command).await;
    }
}
