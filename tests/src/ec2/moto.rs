//! A moto server for each test, forked from one process that has imported moto.
//!
//! To import moto costs more than a second of a processor, and a test runner starts each test in a process of its own. So the first
//! test that needs a moto starts `moto_forks.py`, which listens on an abstract Unix socket, and the tests after it find it there. A
//! caller sends the socket on which its moto should listen, which is thus in the caller's network namespace, and a file for the log.
//! The server ends with the connection over which it was asked for: when [`Moto`] is dropped, and also when the test is killed.
//!
//! The process is never asked to end: it does so after some seconds without a caller. If it is gone, or goes before it has answered,
//! the caller starts another. Only one can be bound to the name, so of several callers one starts it and the others connect to it.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::clock::monotonic;
use crate::netns::Netns;

/// The program of the process from which the servers are forked.
const FORKS: &str = include_str!("moto_forks.py");
/// The versions with which that process was installed.
const REQUIREMENTS: &str = include_str!("../../moto-requirements.txt");
/// The time within which a server has to start, on a machine that is busy.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// A moto server. It ends when this is dropped, and shows its log if the test has failed.
#[derive(Debug)]
pub(super) struct Moto {
    log: PathBuf,
    #[allow(dead_code, reason = "the server ends with this connection")]
    life: UnixStream,
}

impl Moto {
    /// Starts a server at an address of a namespace, with a log in `dir`.
    ///
    /// # Panics
    /// moto is not installed, or does not come up.
    pub(super) fn start(netns: &Netns, address: &'static str, dir: &Path) -> Self {
        let listener = netns.run(async move { TcpListener::bind(address) });
        let listener = listener.unwrap_or_else(|error| panic!("{address}: {error}"));
        let log = dir.join("moto.log");
        let file = File::create(&log).expect("a log can be made");
        let start = monotonic();
        loop {
            match fork(listener.as_fd(), file.as_fd()) {
                Ok(life) => return Self { log, life },
                Err(error) => {
                    let said = fs::read_to_string(&log).unwrap_or_default();
                    assert!(start.elapsed() < START_TIMEOUT, "moto does not start: {error}\n{said}");
                }
            }
            start_forks(&file);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(clippy::print_stderr, reason = "the test runner looks there for the cause of a failure")]
            {
                eprintln!("--- log of moto ---\n{}", fs::read_to_string(&self.log).unwrap_or_default());
            }
        }
    }
}

/// Has a server forked that serves on the socket.
fn fork(listener: BorrowedFd<'_>, log: BorrowedFd<'_>) -> std::io::Result<UnixStream> {
    let mut connection = UnixStream::connect_addr(&name())?;
    let descriptors = [listener, log];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    assert!(rights.push(SendAncillaryMessage::ScmRights(&descriptors)), "two descriptors have room");
    sendmsg(&connection, &[IoSlice::new(b"+")], &mut rights, SendFlags::empty())?;
    connection.set_read_timeout(Some(START_TIMEOUT))?;
    connection.read_exact(&mut [0])?;
    Ok(connection)
}

/// Starts the process from which servers are forked, unless one has the name. It writes its errors to `log`.
fn start_forks(log: &File) {
    // Another test may have been faster.
    let Ok(calls) = UnixListener::bind_addr(&name()) else { return };
    let mut forks = Command::new(python());
    let log = log.try_clone().expect("a descriptor can be duplicated");
    forks.args(["-c", FORKS]).stdin(OwnedFd::from(calls)).stdout(Stdio::null()).stderr(log);
    // It leaves its parent, which ends with this status, before it imports anything.
    let status = forks.status().expect("the Python of moto can be started");
    assert!(status.success(), "the Python of moto does not start: {status}");
}

/// The name of the socket, which is another one for another version, program or user.
fn name() -> SocketAddr {
    let mut hasher = DefaultHasher::new();
    (FORKS, REQUIREMENTS, python()).hash(&mut hasher);
    let user = rustix::process::geteuid().as_raw();
    let name = format!("postern-moto-{user}-{:016x}", hasher.finish());
    SocketAddr::from_abstract_name(name).expect("the name is short")
}

/// The Python of the virtual environment that `make install-deps` makes.
///
/// # Panics
/// It is not there.
pub fn python() -> PathBuf {
    let server = std::env::var_os("POSTERN_MOTO").map_or_else(
        || {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
            cache.unwrap_or_else(home).join("postern-moto-5.2.5/bin/moto_server")
        },
        PathBuf::from,
    );
    assert!(server.is_file(), "{} is missing: run `make install-deps` first", server.display());
    server.with_file_name("python")
}
