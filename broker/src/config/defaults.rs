//! Defaults that other parts of the broker use, too.

use std::collections::BTreeSet;

use postern_core::{Port, ProtectedPort, Protocol};

/// Returns the ports for which an assessment looks by default: SSH, RDP, and WinRM over HTTP and HTTPS.
pub fn default_management_ports() -> BTreeSet<ProtectedPort> {
    let ports = [22, 3389, 5985, 5986].into_iter().filter_map(|number| Port::new(number).ok());
    ports.map(|port| ProtectedPort { protocol: Protocol::Tcp, port }).collect()
}
