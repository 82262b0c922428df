//! Connections that were established before the table.
//!
//! I3: the kernel begins to track connections with the first rule that asks for it. An older connection looks like a new one
//! in the middle of its life, and the rules would cut it. The agent finds it by its socket, and the table accepts its
//! packets other than a SYN.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::net::IpAddr;

use postern_core::{ProtectedPort, Protocol};
use procfs::net::{TcpNetEntries, TcpNetEntry, TcpState};
use procfs::{FromBufReadSI as _, current_system_info};

/// The names of the sets that hold them, for IPv4 and IPv6.
pub(super) const ESTABLISHED_SETS: [&str; 2] = ["established4", "established6"];

/// A TCP connection to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EstablishedConnection {
    /// The peer's address.
    pub(super) peer: IpAddr,
    /// The peer's port.
    pub(super) peer_port: u16,
    /// The port of this host.
    pub(super) local_port: u16,
}

/// Returns the connections to the protected ports that have been set up and not yet torn down.
pub(super) fn connections(ports: &BTreeSet<ProtectedPort>) -> Vec<EstablishedConnection> {
    let ports: BTreeSet<u16> =
        ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(|port| port.port.get()).collect();
    let established: BTreeSet<EstablishedConnection> =
        tcp_entries().iter().filter(|entry| is_set_up(entry)).map(established).collect();
    established.into_iter().filter(|established| ports.contains(&established.local_port)).collect()
}

/// Returns the entry of every TCP socket in the network namespace of this thread.
pub(crate) fn tcp_entries() -> Vec<TcpNetEntry> {
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
    entries.collect()
}

/// The tables of connections in the network namespace of this thread, which is that of the firewall it sets.
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

/// Returns the connection of an entry. A dual-stack socket shows an IPv4 peer as an IPv6 address; its packets are IPv4.
fn established(entry: &TcpNetEntry) -> EstablishedConnection {
    EstablishedConnection {
        peer: entry.remote_address.ip().to_canonical(),
        peer_port: entry.remote_address.port(),
        local_port: entry.local_address.port(),
    }
}
