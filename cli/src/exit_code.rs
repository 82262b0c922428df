//! The exit codes that scripts rely on, and the help text that lists them.

use std::process::ExitCode;

/// The part of the help that explains the codes.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done
  1  failed for another reason; an audit log that does not verify
  2  the command line, the configuration or the identity cannot be used
  3  denied: by policy, by role, by an approver, or no valid certificate;
     or `assess --fail-on` found an unhealthy VM
  4  not found
  5  invalid input
  6  the grant failed or was refused by a layer, or closed before it was active;
     or a VM was not locked down or released
  7  timed out while waiting; the broker continues with the request
  8  the broker cannot be reached, or is not trusted
  9  `status --check` found a problem that needs attention";

/// The exit codes, as [`HELP`] documents them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Other = 1,
    Usage = 2,
    Denied = 3,
    NotFound = 4,
    InvalidInput = 5,
    Failed = 6,
    TimedOut = 7,
    Unreachable = 8,
    Attention = 9,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
