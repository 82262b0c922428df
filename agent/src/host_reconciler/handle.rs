//! The reconciler's thread, and the handle through which tasks reach it. The firewall and the disk block; the async
//! runtime must not.

use std::collections::BTreeSet;

use postern_core::KeyHash;
use postern_runtime::error_chain::error_chain;
use tokio::sync::{mpsc, oneshot};

use super::{FollowedGenerations, HostLayer, HostReconciler, RepairOutcome};
use crate::clock::{self, BootTime, Moment};
use crate::desired_state::DesiredState;
use crate::firewall::policy::HeldWindow;
use crate::status::StatusFile;
use crate::window_log;

/// The way to the reconciler. When the reconciler has ended, so has the agent, and answers never come.
///
/// The queue has no bound of its own: each caller waits for the answer to a command before it sends the next.
#[derive(Debug, Clone)]
pub struct ReconcilerHandle {
    commands: mpsc::UnboundedSender<ReconcilerCommand>,
}

/// The queue from which the reconciler's thread takes its work.
#[derive(Debug)]
pub struct Commands {
    queue: mpsc::UnboundedReceiver<ReconcilerCommand>,
}

/// The answer to a desired state: success, or the error with its causes, for the broker.
pub type CommandAnswer = oneshot::Receiver<Result<(), String>>;

#[derive(Debug)]
enum ReconcilerCommand {
    BeginSession {
        key: Option<KeyHash>,
        reply: oneshot::Sender<FollowedGenerations>,
    },
    Accept {
        desired: DesiredState,
        reply: oneshot::Sender<Result<(), String>>,
    },
    KeepProtection {
        generation: u64,
        windows: BTreeSet<HeldWindow>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Repair {
        reply: oneshot::Sender<RepairOutcome>,
    },
    Tick {
        reply: oneshot::Sender<RepairOutcome>,
    },
}

/// Makes a handle, and the queue that [`serve`] takes.
pub fn channel() -> (ReconcilerHandle, Commands) {
    let (commands, queue) = mpsc::unbounded_channel();
    (ReconcilerHandle { commands }, Commands { queue })
}

/// Serves the reconciler until every handle is dropped. Blocks, so it must have a thread of its own.
pub fn serve<H: HostLayer>(
    mut reconciler: HostReconciler<H>,
    mut commands: Commands,
    status_file: &StatusFile,
) {
    let boot = clock::boot_id();
    while let Some(command) = commands.queue.blocking_recv() {
        let now = Moment { boot: boot.clone(), boottime: clock::boottime(), wall: clock::wall() };
        // A caller that no longer waits for its answer is no error.
        match command {
            ReconcilerCommand::BeginSession { key, reply } => {
                let _ = reply.send(reconciler.begin_session(key));
            }
            ReconcilerCommand::Accept { desired, reply } => {
                let (generation, unopened) =
                    (desired.generation, window_log::not_yet_held(reconciler.accepted(), &desired.windows));
                let answer = reconciler.accept(desired, &now).map_err(|error| error_chain(&error));
                if let Err(error) = &answer {
                    window_log::refused(generation, &unopened, error);
                }
                let _ = reply.send(answer);
            }
            ReconcilerCommand::KeepProtection { generation, windows, reply } => {
                let unopened = window_log::not_yet_held(reconciler.accepted(), &windows);
                let kept = windows.len();
                let answer = reconciler.keep_protection(generation, windows, &now);
                let answer = answer.map_err(|error| error_chain(&error));
                match &answer {
                    Ok(()) => window_log::protection_alone(generation, kept),
                    Err(error) => window_log::refused(generation, &unopened, error),
                }
                let _ = reply.send(answer);
            }
            ReconcilerCommand::Repair { reply } => {
                let _ = reply.send(reconciler.repair(&now));
            }
            ReconcilerCommand::Tick { reply } => {
                reconciler.set_connected(status_file.is_connected());
                let _ = reply.send(reconciler.tick(&now, suspended(now.boottime)));
            }
        }
        status_file.set_protects(reconciler.protects());
        status_file.set_phase(reconciler.phase());
    }
}

/// Returns the time for which the machine has been suspended since boot.
pub fn suspended(now: BootTime) -> std::time::Duration {
    now.since(BootTime(0)).saturating_sub(clock::monotonic())
}

impl ReconcilerHandle {
    /// Begins a session: see [`HostReconciler::begin_session`].
    pub async fn begin_session(&self, key: Option<KeyHash>) -> FollowedGenerations {
        let (reply, answer) = oneshot::channel();
        self.send(ReconcilerCommand::BeginSession { key, reply });
        answer_or_pending(answer).await
    }

    /// Sends a desired state; the answer comes when the kernel and the ledger have it.
    pub fn accept(&self, desired: DesiredState) -> CommandAnswer {
        let (reply, answer) = oneshot::channel();
        self.send(ReconcilerCommand::Accept { desired, reply });
        answer
    }

    /// Holds these windows alone: see [`HostReconciler::keep_protection`]. The answer comes when the kernel and the ledger have it.
    pub fn keep_protection(&self, generation: u64, windows: BTreeSet<HeldWindow>) -> CommandAnswer {
        let (reply, answer) = oneshot::channel();
        self.send(ReconcilerCommand::KeepProtection { generation, windows, reply });
        answer
    }

    /// Checks and repairs the table: see [`HostReconciler::repair`].
    pub async fn repair(&self) -> RepairOutcome {
        let (reply, answer) = oneshot::channel();
        self.send(ReconcilerCommand::Repair { reply });
        answer_or_pending(answer).await
    }

    /// Does the work of time: see [`HostReconciler::tick`].
    pub async fn tick(&self) -> RepairOutcome {
        let (reply, answer) = oneshot::channel();
        self.send(ReconcilerCommand::Tick { reply });
        answer_or_pending(answer).await
    }

    fn send(&self, command: ReconcilerCommand) {
        // A reconciler that has ended drops the command, and with it the sender of its answer: see [`answer_or_pending`].
        let _ = self.commands.send(command);
    }
}

/// Waits for the answer. If the reconciler's thread has ended, waits for ever: [`postern_runtime::tasks`] then ends the process.
pub async fn answer_or_pending<T>(answer: impl Future<Output = Result<T, oneshot::error::RecvError>>) -> T {
    match answer.await {
        Ok(answer) => answer,
        Err(_) => std::future::pending().await,
    }
}
