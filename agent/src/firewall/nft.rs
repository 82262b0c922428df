//! Runs `nft` by its absolute path, with its output captured and its time bounded.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::FirewallError;

/// The paths where distributions install `nft`. `PATH` is not used: the environment must not choose what runs as root.
const NFT_PATHS: [&str; 3] = ["/usr/sbin/nft", "/usr/bin/nft", "/sbin/nft"];
/// The longest time for a transaction; one with 10,000 windows takes about a second.
const NFT_TIMEOUT: Duration = Duration::from_secs(30);

/// The command `nft`.
#[derive(Debug)]
pub(super) struct Nft {
    path: &'static str,
}

impl Nft {
    /// Finds `nft`.
    ///
    /// # Errors
    /// The command is not installed.
    pub(super) fn find() -> Result<Self, FirewallError> {
        let path = NFT_PATHS.into_iter().find(|place| Path::new(place).is_file());
        path.map(|path| Self { path })
            .ok_or_else(|| FirewallError::NftMissing { places: NFT_PATHS.join(", ") })
    }

    /// Runs a script as one transaction.
    ///
    /// # Errors
    /// The kernel refused the script, and nothing was changed; or `nft` could not be run.
    pub(super) fn run(&self, script: &str) -> Result<String, FirewallError> {
        self.output(&["--file", "-"], script)
    }

    /// Runs a command.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(super) fn print(&self, arguments: &[&str]) -> Result<String, FirewallError> {
        self.output(arguments, "")
    }

    fn output(&self, arguments: &[&str], input: &str) -> Result<String, FirewallError> {
        let failed = |source| FirewallError::NftFailed { nft: self.path, source };
        let mut command = Command::new(self.path);
        // The agent shows its messages to people and compares none; its numbers must be in one form.
        command.args(arguments).env_clear().env("LC_ALL", "C");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let Some(output) = run_bounded(command, input).map_err(failed)? else {
            return Err(FirewallError::NftSlow { timeout: NFT_TIMEOUT });
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let message = said.lines().next().unwrap_or("it gave no reason").to_owned();
            return Err(FirewallError::NftRefused { message });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Runs a command to its end. Returns `None` where it took too long and was killed.
fn run_bounded(mut command: Command, input: &str) -> io::Result<Option<Output>> {
    let mut child = command.spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        let watchdog = scope.spawn(move || kill_when_late(&process));
        if let Some(mut stdin) = stdin {
            // A command that ends before it has read everything writes the reason to stderr.
            stdin.write_all(input.as_bytes()).ok();
        }
        let output = child.wait_with_output()?;
        let late = watchdog.join().unwrap_or(Ok(false))?;
        Ok((!late).then_some(output))
    })
}

/// Waits for the process's end, and kills it if that is late. Returns whether it was late.
fn kill_when_late(process: &OwnedFd) -> io::Result<bool> {
    let timeout = Timespec { tv_sec: NFT_TIMEOUT.as_secs().cast_signed(), tv_nsec: 0 };
    let ended = retry_on_intr(|| poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)))? > 0;
    if !ended {
        pidfd_send_signal(process, Signal::KILL)?;
    }
    Ok(!ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_the_message_of_nft() {
        let nft = Nft::find().unwrap();
        let error = nft.run("add rule inet nowhere nothing drop\n").unwrap_err();
        assert!(matches!(error, FirewallError::NftRefused { .. }), "{error}");
        assert!(nft.print(&["--version"]).unwrap().starts_with("nftables v"));
    }
}
