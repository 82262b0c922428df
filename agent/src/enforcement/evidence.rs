//! The evidence that a new connection gets in: the connection of the session in which a command runs.
//!
//! The session's connection is the one that `SSH_CONNECTION` names, or one whose socket a process above the command holds: sudo takes the
//! variable away, and the sockets stay. It counts only while the kernel has it as established, to a protected port, and if it is not one of
//! those that were there when the table closed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use postern_core::{ProtectedPort, Protocol};
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process};

use super::{OlderConnections, TcpConnection};
use crate::firewall::tcp_entries;

/// The most processes above a command that are looked at.
const MAX_ANCESTORS: usize = 64;
/// The most connections that a mark holds.
const MAX_OLDER: usize = 4096;

/// The judgement on a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The session came in through the closed table.
    CameIn(TcpConnection),
    /// The session is older than the closed table.
    Older,
    /// There were too many connections to tell.
    CannotTell,
    /// The session has no connection to a protected port: it is a console, or runs inside a multiplexer.
    NoConnection,
}

/// Judges the connections of a session.
pub(super) fn judge(session: &[TcpConnection], older: &OlderConnections) -> Evidence {
    let older = match older {
        _ if session.is_empty() => return Evidence::NoConnection,
        OlderConnections::NotClosedYet | OlderConnections::TooMany => return Evidence::CannotTell,
        OlderConnections::Listed(older) => older,
    };
    session.iter().find(|it| !older.contains(it)).map_or(Evidence::Older, |it| Evidence::CameIn(*it))
}

/// Returns every connection to these ports that is set up, or that is being set up and may have passed the table before it closed.
pub(crate) fn present(ports: &BTreeSet<ProtectedPort>) -> OlderConnections {
    let is_present = |entry: &TcpNetEntry| !matches!(entry.state, TcpState::Listen | TcpState::Close);
    let present: BTreeSet<_> =
        tcp_entries().iter().filter(|entry| is_present(entry)).map(connection).collect();
    let present: Vec<_> = present.into_iter().filter(|it| is_protected(it, ports)).collect();
    if present.len() > MAX_OLDER { OlderConnections::TooMany } else { OlderConnections::Listed(present) }
}

/// Returns the connections to these ports of the session in which this process runs. `ssh_connection` is the variable of that name.
pub(super) fn of_this_session(
    ports: &BTreeSet<ProtectedPort>,
    ssh_connection: Option<&str>,
) -> Vec<TcpConnection> {
    let established: BTreeMap<u64, TcpConnection> = tcp_entries()
        .iter()
        .filter(|entry| entry.state == TcpState::Established)
        .map(|entry| (entry.inode, connection(entry)))
        .filter(|(_, connection)| is_protected(connection, ports))
        .collect();
    let named = ssh_connection.and_then(parse).filter(|named| established.values().any(|it| it == named));
    let held = sockets_above().into_iter().filter_map(|inode| established.get(&inode).copied());
    // The variable names the session best: the processes above may hold connections of other sessions as well.
    named.map_or_else(|| held.collect(), |named| vec![named])
}

/// Parses `SSH_CONNECTION`: the client's address and port, and the server's.
fn parse(variable: &str) -> Option<TcpConnection> {
    let mut words = variable.split_ascii_whitespace();
    let peer: IpAddr = words.next()?.split('%').next()?.parse().ok()?;
    let peer_port = words.next()?.parse().ok()?;
    let local_port = words.nth(1)?.parse().ok()?;
    Some(TcpConnection { peer: peer.to_canonical(), peer_port, local_port })
}

/// Returns the inodes of the sockets that the processes above this one hold, without those of the first process of the machine.
fn sockets_above() -> BTreeSet<u64> {
    let mut sockets = BTreeSet::new();
    let mut parent = Process::myself().and_then(|process| process.stat()).map_or(0, |stat| stat.ppid);
    for _ in 0..MAX_ANCESTORS {
        if parent <= 1 {
            break;
        }
        let Ok(process) = Process::new(parent) else { break };
        for descriptor in process.fd().into_iter().flatten().flatten() {
            if let FDTarget::Socket(inode) = descriptor.target {
                sockets.insert(inode);
            }
        }
        parent = process.stat().map_or(0, |stat| stat.ppid);
    }
    sockets
}

fn is_protected(connection: &TcpConnection, ports: &BTreeSet<ProtectedPort>) -> bool {
    ports.iter().any(|port| port.protocol == Protocol::Tcp && port.port.get() == connection.local_port)
}

/// Returns the connection of an entry. A dual-stack socket shows an IPv4 peer as an IPv6 address.
fn connection(entry: &TcpNetEntry) -> TcpConnection {
    TcpConnection {
        peer: entry.remote_address.ip().to_canonical(),
        peer_port: entry.remote_address.port(),
        local_port: entry.local_address.port(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(peer: &str, peer_port: u16) -> TcpConnection {
        TcpConnection { peer: peer.parse().unwrap(), peer_port, local_port: 22 }
    }

    #[test]
    fn only_a_connection_that_is_not_older_than_the_closed_table_is_evidence() {
        let (old, new) = (from("192.0.2.7", 40000), from("192.0.2.7", 40001));
        let older = OlderConnections::Listed(vec![old]);
        assert_eq!(judge(&[old, new], &older), Evidence::CameIn(new));
        assert_eq!(judge(&[old], &older), Evidence::Older);
        assert_eq!(judge(&[], &older), Evidence::NoConnection);
        for unknown in [OlderConnections::TooMany, OlderConnections::NotClosedYet] {
            assert_eq!(judge(&[new], &unknown), Evidence::CannotTell);
        }
    }

    #[test]
    fn the_variable_of_ssh_names_a_connection_of_either_family() {
        assert_eq!(parse("192.0.2.7 40000 198.51.100.1 22"), Some(from("192.0.2.7", 40000)));
        assert_eq!(parse("::ffff:192.0.2.7 40000 ::1 22"), Some(from("192.0.2.7", 40000)));
        assert_eq!(parse("fe80::1%eth0 40000 fe80::2%eth0 22"), Some(from("fe80::1", 40000)));
        for wrong in ["", "192.0.2.7", "192.0.2.7 40000 198.51.100.1", "web-1 1 web-2 2", "192.0.2.7 x y 22"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
