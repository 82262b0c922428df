//! Callers: the parties that an authenticator can establish.

use std::fmt;

use crate::{Principal, TargetId};

/// The party that makes a call, and its part in the deployment. It is written as the audit log names an actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallerKind {
    /// A person or a service.
    Principal(Principal),
    /// The agent of a target.
    Agent(TargetId),
    /// A broker.
    Broker,
}

impl fmt::Display for CallerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(principal) => principal.fmt(f),
            Self::Agent(target) => write!(f, "agent/{target}"),
            Self::Broker => f.write_str("broker"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Name, Role};

    #[test]
    fn i7_a_principal_reads_like_no_agent_and_no_broker() {
        let principal = Principal::local(Role::Requester, Name::new("broker").unwrap());
        assert_eq!(CallerKind::Principal(principal).to_string(), "requester/broker");
        assert_eq!(CallerKind::Broker.to_string(), "broker");
        assert_eq!(CallerKind::Agent("host:vm-1".parse().unwrap()).to_string(), "agent/host:vm-1");
    }
}
