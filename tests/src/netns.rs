//! [`Netns`]: one thread inside a network namespace, with a runtime of its own. Whatever runs on it has its sockets and its
//! child processes in that namespace; the rest of the process stays where it is.

use std::ffi::OsStr;
use std::future::Future;
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::resume_unwind;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A thread in a namespace. Cheap to clone; the thread ends with the last clone, and everything in it with it.
#[derive(Debug, Clone)]
pub struct Netns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    runtime: Handle,
    /// The signal to stop: it is dropped first.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// A task that runs in a namespace.
#[derive(Debug)]
pub struct Running<T> {
    netns: Netns,
    task: JoinHandle<T>,
}

impl Netns {
    /// Starts the thread in the namespace.
    pub(crate) fn open(name: &str, namespace: OwnedFd) -> Self {
        let (started, runtime) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let body = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("entering a network namespace needs root");
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            started.send(runtime.handle().clone()).expect("the opener waits for the runtime");
            // Ends with an error when the sender is dropped, which is the signal to stop.
            let _ = runtime.block_on(stopped);
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body).expect("a thread starts");
        let runtime = runtime
            .recv()
            .unwrap_or_else(|_| panic!("no thread could enter the namespace {name}; see above"));
        Self { inner: Arc::new(Inner { runtime, stop: Some(stop), thread: Some(thread) }) }
    }

    /// Runs the future in the namespace and waits for its outcome. Must not be called from the thread of a [`Netns`].
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.start(work).join()
    }

    /// Starts the future in the namespace.
    pub fn start<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Running<T> {
        Running { netns: self.clone(), task: self.inner.runtime.spawn(work) }
    }

    /// Starts a child process in the namespace.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&self, mut command: Command) -> std::io::Result<Child> {
        self.run(async move { command.spawn() })
    }

    /// Runs a child process in the namespace to its end. The thread stays free for other work meanwhile.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn output(&self, mut command: Command) -> std::io::Result<Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(command)?.wait_with_output()
    }
}

/// A command that is killed when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG).
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

impl<T: Send + 'static> Running<T> {
    /// Waits for the outcome. A panic of the task goes on here.
    pub fn join(self) -> T {
        match self.netns.inner.runtime.block_on(self.task) {
            Ok(outcome) => outcome,
            Err(error) => resume_unwind(error.into_panic()),
        }
    }

    /// Ends the task at its current point, as a kill would.
    pub fn stop(self) {
        self.task.abort();
    }

    /// Reports whether the task has ended.
    pub fn is_done(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread itself may drop the last clone, and cannot wait for its own end.
            if thread.thread().id() != thread::current().id() {
                // A thread that panicked has said so already.
                let _ = thread.join();
            }
        }
    }
}
