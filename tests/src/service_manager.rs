//! A double of the part of systemd that keeps a service's descriptors: sd_notify(3) with FDSTORE=1, and sd_listen_fds(3).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::agent::Agent;
use crate::binaries::binary;
use crate::netns::tied;

/// A service manager that keeps what a service hands over. Dropping it closes that.
#[derive(Debug)]
pub struct ServiceManager {
    path: PathBuf,
    stored: Arc<Mutex<Vec<Stored>>>,
}

/// A descriptor that a service handed over.
#[derive(Debug)]
struct Stored {
    name: String,
    descriptor: OwnedFd,
}

impl ServiceManager {
    /// Starts to receive notices, on a socket in this directory.
    ///
    /// # Panics
    /// The socket cannot be made.
    pub fn start(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket can be bound");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
        let stored = Arc::new(Mutex::new(Vec::new()));
        let weak = Arc::downgrade(&stored);
        thread::spawn(move || {
            while let Some(stored) = weak.upgrade() {
                match receive(&socket) {
                    Some(Notice::Store(descriptor)) => lock(&stored).push(descriptor),
                    Some(Notice::Remove(name)) => lock(&stored).retain(|stored| stored.name != name),
                    // Another notice, or the end of the time to read.
                    None => {}
                }
            }
        });
        Self { path, stored }
    }

    /// Starts the agent as a service, with the descriptors that are kept, which are one at most.
    ///
    /// # Panics
    /// A descriptor cannot be duplicated.
    pub fn run(&self, agent: &mut Agent) {
        let kept = lock(&self.stored);
        let Some(Stored { name, descriptor }) = kept.first() else {
            drop(kept);
            let mut command = tied(binary("postern-agent"));
            command.env("NOTIFY_SOCKET", &self.path);
            return agent.run_as(command);
        };
        let input = Stdio::from(descriptor.try_clone().expect("a descriptor can be duplicated"));
        let mut command = tied("sh");
        command.args(["-c", "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$0\" \"$@\""]);
        command.arg(binary("postern-agent"));
        command.env("NOTIFY_SOCKET", &self.path).env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name);
        drop(kept);
        agent.run_reading(command, input);
    }

    /// Returns the names of the descriptors that are kept.
    pub fn names(&self) -> Vec<String> {
        lock(&self.stored).iter().map(|stored| stored.name.clone()).collect()
    }

    /// Closes what is kept, as when the unit is stopped.
    pub fn close_all(&self) {
        lock(&self.stored).clear();
    }
}

/// A notice about descriptors.
enum Notice {
    Store(Stored),
    Remove(String),
}

/// Receives a notice. Returns `None` if it is not about descriptors.
fn receive(socket: &UnixDatagram) -> Option<Notice> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 4096];
    let message =
        recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let text = String::from_utf8_lossy(text.get(..message.bytes)?).into_owned();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let name = value("FDNAME=").unwrap_or("stored").to_owned();
    if value("FDSTOREREMOVE=") == Some("1") {
        return Some(Notice::Remove(name));
    }
    value("FDSTORE=").filter(|value| *value == "1")?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Some(Notice::Store(Stored { name, descriptor: descriptors.pop()? }))
}

fn lock(stored: &Mutex<Vec<Stored>>) -> MutexGuard<'_, Vec<Stored>> {
    stored.lock().unwrap_or_else(PoisonError::into_inner)
}
