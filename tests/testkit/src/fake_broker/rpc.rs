//! The calls of a fake broker, as its fault plan sees them.

use tonic::Status;

use crate::faults::Call;

/// The first words of the RPCs that change nothing.
const READS: [&str; 6] = ["Get", "List", "Watch", "Tail", "Verify", "Assess"];

/// A call of an RPC.
#[derive(Debug)]
pub struct RpcCall {
    /// The name of the RPC, without its service.
    name: String,
}

impl RpcCall {
    /// Makes the call of a path, which ends with the name of the RPC.
    pub(super) fn at(path: &str) -> Self {
        Self { name: path.rsplit('/').next().unwrap_or_default().to_owned() }
    }
}

impl Call for RpcCall {
    /// The name of an RPC, or `*`.
    type Pattern = &'static str;
    type Refusal = Status;

    fn is_change(&self) -> bool {
        !READS.iter().any(|read| self.name.starts_with(read))
    }

    fn matches(&self, pattern: &&'static str) -> bool {
        *pattern == "*" || *pattern == self.name
    }
}
