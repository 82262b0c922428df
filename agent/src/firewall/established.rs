//! Connections that were established before our table was.
//!
//! I3: connection tracking begins with the first rule that asks for it. A connection older than that looks like a new one
//! in the middle of its life, and would be cut. Its socket tells us of it, and its packets, other than a SYN, are let
//! through.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::net::IpAddr;

use postern_core::{ProtectedPort, Protocol};
use procfs::net::{TcpNetEntries, TcpNetEntry, TcpState};
use procfs::{FromBufReadSI as _, current_system_info};

/// The sets of the table that hold them, IPv4 and IPv6.
pub(super) const ESTABLISHED_SETS: [&str; 2] = ["established4", "established6"];

/// One TCP connection to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EstablishedConnection {
    /// The other side's address.
    pub(super) peer: IpAddr,
    /// The other side's port.
    pub(super) peer_port: u16,
    /// Our port.
    pub(super) local_port: u16,
}

/// The connections to the protected ports that have been set up and not yet torn down.
pub(super) fn connections(ports: &BTreeSet<ProtectedPort>) -> Vec<EstablishedConnection> {
    let ports: BTreeSet<u16> =
        ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(|port| port.port.get()).collect();
    let entries = TABLES.into_iter().flat_map(|table| {
        read(table).unwrap_or_else(|error| {
            // A kernel without IPv6 has no such table.
            tracing::debug!(
                table,
                error = &error as &dyn std::error::Error,
                "cannot read a table of connections"
            );
            Vec::new()
        })
    });
    let established: BTreeSet<EstablishedConnection> =
        entries.filter(is_set_up).map(|entry| established(&entry)).collect();
    established.into_iter().filter(|established| ports.contains(&established.local_port)).collect()
}

/// The tables of the network that this thread, and with it the firewall that it sets, is in.
const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];

fn read(table: &str) -> procfs::ProcResult<Vec<TcpNetEntry>> {
    let file = BufReader::new(File::open(table)?);
    TcpNetEntries::from_buf_read(file, current_system_info()).map(|entries| entries.0)
}

fn is_set_up(entry: &TcpNetEntry) -> bool {
    match entry.state {
        TcpState::Established
        | TcpState::FinWait1
        | TcpState::FinWait2
        | TcpState::CloseWait
        | TcpState::LastAck
        | TcpState::Closing => true,
        TcpState::SynSent
        | TcpState::SynRecv
        | TcpState::TimeWait
        | TcpState::Close
        | TcpState::Listen
        | TcpState::NewSynRecv => false,
    }
}

/// On a dual-stack socket an IPv4 peer is written as an IPv6 address; its packets are IPv4.
fn established(entry: &TcpNetEntry) -> EstablishedConnection {
    EstablishedConnection {
        peer: entry.remote_address.ip().to_canonical(),
        peer_port: entry.remote_address.port(),
        local_port: entry.local_address.port(),
    }
}
