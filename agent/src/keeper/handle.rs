//! The keeper's thread, and the handle through which tasks reach it. Firewall and disk block; the runtime must not.

use tokio::sync::{mpsc, oneshot};

use super::{HostLayer, Keeper, Mended};
use crate::clock::{self, BootTime, Moment};
use crate::desired::Desired;
use crate::explain::chain;
use crate::status::Board;
use crate::trace;

/// Reaches the keeper. When the keeper has ended, so has the agent, and answers never come.
///
/// The queue has no bound of its own: whoever sends a command waits for its answer before the next.
#[derive(Debug, Clone)]
pub struct KeeperHandle {
    commands: mpsc::UnboundedSender<Command>,
}

/// What the keeper's thread takes its work from.
#[derive(Debug)]
pub struct Commands {
    queue: mpsc::UnboundedReceiver<Command>,
}

/// The answer to a desired state: nothing, or the error with its causes, for the broker.
pub type Answer = oneshot::Receiver<Result<(), String>>;

#[derive(Debug)]
enum Command {
    BeginSession { reply: oneshot::Sender<u64> },
    Accept { told: Desired, reply: oneshot::Sender<Result<(), String>> },
    CloseWindows { generation: u64, reply: oneshot::Sender<Result<(), String>> },
    Mend { reply: oneshot::Sender<Mended> },
    Tick { reply: oneshot::Sender<Mended> },
}

/// A handle, and what [`serve`] takes.
pub fn channel() -> (KeeperHandle, Commands) {
    let (commands, queue) = mpsc::unbounded_channel();
    (KeeperHandle { commands }, Commands { queue })
}

/// Serves the keeper until every handle is gone. Blocks: it is to have a thread of its own.
pub fn serve<H: HostLayer>(mut keeper: Keeper<H>, mut commands: Commands, board: &Board) {
    let boot = clock::boot_id();
    while let Some(command) = commands.queue.blocking_recv() {
        let now = Moment { boot: boot.clone(), boottime: clock::boottime(), wall: clock::wall() };
        // An answer that nobody waits for any more is no error.
        match command {
            Command::BeginSession { reply } => {
                let _ = reply.send(keeper.begin_session());
            }
            Command::Accept { told, reply } => {
                let (generation, news) = (told.generation, trace::news(keeper.accepted(), &told));
                let answer = keeper.accept(told, &now).map_err(|error| chain(&error));
                if let Err(error) = &answer {
                    trace::refused(generation, &news, error);
                }
                let _ = reply.send(answer);
            }
            Command::CloseWindows { generation, reply } => {
                let answer = keeper.close_windows(generation, &now).map_err(|error| chain(&error));
                let _ = reply.send(answer);
            }
            Command::Mend { reply } => {
                let _ = reply.send(keeper.mend(&now));
            }
            Command::Tick { reply } => {
                let _ = reply.send(keeper.tick(&now, suspended(now.boottime)));
            }
        }
        board.keeper(keeper.protects());
    }
}

/// How long the machine has been suspended since boot.
pub fn suspended(now: BootTime) -> std::time::Duration {
    now.since(BootTime(0)).saturating_sub(clock::monotonic())
}

impl KeeperHandle {
    /// See [`Keeper::begin_session`].
    pub async fn begin_session(&self) -> u64 {
        let (reply, answer) = oneshot::channel();
        self.send(Command::BeginSession { reply });
        forever(answer).await
    }

    /// Hands a desired state over; the answer comes when kernel and ledger have it.
    pub fn accept(&self, told: Desired) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Accept { told, reply });
        answer
    }

    /// See [`Keeper::close_windows`]; the answer comes when kernel and ledger have it.
    pub fn close_windows(&self, generation: u64) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.send(Command::CloseWindows { generation, reply });
        answer
    }

    /// See [`Keeper::mend`].
    pub async fn mend(&self) -> Mended {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Mend { reply });
        forever(answer).await
    }

    /// See [`Keeper::tick`]; returns when it is done.
    pub async fn tick(&self) -> Mended {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Tick { reply });
        forever(answer).await
    }

    fn send(&self, command: Command) {
        // A keeper that has ended drops the command, and with it the way for its answer: see [`forever`].
        let _ = self.commands.send(command);
    }
}

/// The answer, or nothing ever: then the keeper's thread has ended, and [`crate::tasks`] ends the process.
pub async fn forever<T>(answer: impl Future<Output = Result<T, oneshot::error::RecvError>>) -> T {
    match answer.await {
        Ok(answer) => answer,
        Err(_) => std::future::pending().await,
    }
}
