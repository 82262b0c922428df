//! The watch: reports when a process changes Postern's table.
//!
//! The kernel sends messages about each transaction of any process in this network namespace: first what it touched,
//! then, in a last message, the process that made it. The agent's own transactions are among them. The watch leaves out
//! those of the agent's threads, but not those of an `nft` that the agent ran: the watch only says when to look, and the
//! reconciler compares and decides whether anything is wrong.
//!
//! The kernel removes an element whose time has come without a transaction, so the end of a window is not reported.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net;
use std::path::Path;

use netlink_bindings::builtin::Nlmsghdr;
use netlink_bindings::nftables::{GenAttrs, TableAttrs};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::TABLE;

/// The multicast group of transactions, NFNLGRP_NFTABLES (7), as a bit.
const NFNLGRP_NFTABLES: u32 = 1 << (7 - 1);
/// The size of the receive buffer, in bytes: enough for a flush of some thousand rules.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// The longest datagram accepted, in bytes. The kernel sends datagrams of a page or two.
const MAX_DATAGRAM_BYTES: usize = 64 << 10;

/// A listener on the transactions of this network namespace.
#[derive(Debug)]
pub struct TableWatch {
    /// A netlink socket. Tokio has no type for one, but waits for every kind of socket in the same way.
    socket: UnixDatagram,
    buffer: Vec<u8>,
    reader: TransactionReader,
    changes: VecDeque<TableChange>,
}

/// A change of Postern's table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableChange {
    /// The name of the process, or of its thread; empty if unknown.
    pub process: String,
    /// The process id, or thread id, in the initial PID namespace; 0 if unknown.
    pub pid: u32,
}

impl TableWatch {
    /// Starts to listen.
    ///
    /// In a user namespace, as unprivileged containers have, only the system's own limit bounds the buffer. If messages are lost there,
    /// [`Self::changed`] reports a change all the same.
    ///
    /// # Errors
    /// The kernel refused: the watch needs CAP_NET_ADMIN.
    pub fn start() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let netfilter = Some(netlink::NETFILTER);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, netfilter)?;
        set_receive_buffer(&socket)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, NFNLGRP_NFTABLES))?;
        Ok(Self {
            socket: UnixDatagram::from_std(net::UnixDatagram::from(socket))?,
            buffer: vec![0; MAX_DATAGRAM_BYTES],
            reader: TransactionReader::default(),
            changes: VecDeque::new(),
        })
    }

    /// Waits until a process has changed the table, or may have, because the kernel sent so much at once that messages were
    /// lost. Safe to cancel.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn changed(&mut self) -> io::Result<TableChange> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            match self.receive().await {
                Ok(length) => match self.buffer.get(..length) {
                    Some(datagram) => self.changes.extend(self.reader.take(datagram)),
                    None => self.changes.push_back(TableChange::default()),
                },
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {
                    self.changes.push_back(TableChange::default());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the next datagram. Returns its length, even if it does not fit into the buffer.
    async fn receive(&mut self) -> io::Result<usize> {
        let (socket, buffer) = (&self.socket, &mut self.buffer);
        let receive = || {
            let (_, length) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::TRUNC)?;
            Ok(length)
        };
        socket.async_io(Interest::READABLE, receive).await
    }
}

/// Makes the receive buffer large. To pass the system's limit takes CAP_NET_ADMIN in the initial user namespace.
fn set_receive_buffer(socket: &OwnedFd) -> io::Result<()> {
    match sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER_BYTES) {
        Err(Errno::PERM) => {
            sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER_BYTES)?;
            let bytes = sockopt::socket_recv_buffer_size(socket)? / 2;
            tracing::warn!(
                event = "watch.small_buffer",
                bytes,
                "this agent runs in a user namespace, so the kernel limits the buffer for changes of the host firewall; the agent reads \
                 the whole table again when changes are lost. To avoid that, raise net.core.rmem_max on the machine that runs the container"
            );
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}

/// The reader of messages, with what it has read of the present transaction.
#[derive(Debug, Default)]
struct TransactionReader {
    touches_table: bool,
}

impl TransactionReader {
    /// Reads a datagram of one or more messages, and returns the changes of the table whose transactions it ends.
    fn take(&mut self, mut datagram: &[u8]) -> Vec<TableChange> {
        let mut changes = Vec::new();
        while let Some((message, rest)) = Message::split_off(datagram) {
            datagram = rest;
            if let Some(change) = self.read(&message) {
                changes.push(change);
            }
        }
        changes
    }

    fn read(&mut self, message: &Message<'_>) -> Option<TableChange> {
        let Some(change) = message.end() else {
            self.touches_table |= message.touches_table();
            return None;
        };
        let touches_table = std::mem::take(&mut self.touches_table);
        (touches_table && !is_own_thread(change.pid)).then_some(change)
    }
}

/// A message of nf_tables (linux/netfilter/nfnetlink.h, nf_tables.h).
struct Message<'a> {
    kind: u16,
    family: u8,
    attributes: &'a [u8],
}

/// NFNL_SUBSYS_NFTABLES (10) and NFT_MSG_NEWGEN (15).
const NEWGEN: u16 = (10 << 8) | 15;
/// NFPROTO_INET.
const NFPROTO_INET: u8 = 1;

impl<'a> Message<'a> {
    /// Returns the first message of a datagram, and the rest.
    fn split_off(datagram: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let header = Nlmsghdr::new_from_slice(datagram.get(..Nlmsghdr::len())?)?;
        let length = usize::try_from(header.len).ok()?;
        let body = datagram.get(Nlmsghdr::len()..length)?;
        let (&[family, ..], attributes) = body.split_first_chunk::<4>()?;
        let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((Self { kind: header.r#type, family, attributes }, rest))
    }

    /// Returns the process that made the transaction, if this message ends it.
    fn end(&self) -> Option<TableChange> {
        let attributes = GenAttrs::new(self.attributes);
        (self.kind == NEWGEN).then(|| TableChange {
            process: attributes
                .get_proc_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            pid: attributes.get_proc_pid().unwrap_or_default(),
        })
    }

    /// Reports whether the message is about Postern's table or a part of it. In every message but the last of a transaction
    /// the table's name is the first attribute.
    fn touches_table(&self) -> bool {
        let table = TableAttrs::new(self.attributes).get_name();
        self.family == NFPROTO_INET && table.is_ok_and(|name| name.to_bytes() == TABLE.as_bytes())
    }
}

/// Reports whether the id is that of a thread of this process. In a container the kernel counts in another PID namespace,
/// and the answer is always no.
fn is_own_thread(id: u32) -> bool {
    id != 0 && Path::new("/proc/self/task").join(id.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a message, of NFT_MSG_DELTABLE for instance.
    fn message(kind: u16, family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        for (number, value) in attributes {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(number.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = u32::try_from(body.len() + 16).unwrap().to_ne_bytes().to_vec();
        message.extend(((10 << 8) | kind).to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    fn end(name: &[u8]) -> Vec<u8> {
        message(15, 0, &[(1, &[0, 0, 0, 9]), (2, &u32::MAX.to_be_bytes()), (3, name)])
    }

    fn changes(datagrams: &[Vec<u8>]) -> Vec<TableChange> {
        let mut reader = TransactionReader::default();
        datagrams.iter().flat_map(|datagram| reader.take(datagram)).collect()
    }

    fn by(process: &str) -> TableChange {
        TableChange { process: process.into(), pid: u32::MAX }
    }

    #[test]
    fn a_change_is_reported_at_the_end_of_its_transaction_in_one_datagram_or_in_several() {
        let own = message(2, NFPROTO_INET, &[(1, b"postern\0")]);
        let other = message(0, NFPROTO_INET, &[(1, b"posterns\0")]);
        let whole = [other.clone(), own.clone(), end(b"nft\0"), other.clone(), end(b"iptables\0")].concat();
        assert_eq!(changes(&[whole]), [by("nft")]);
        assert_eq!(changes(&[own.clone(), other.clone()]), []);
        assert_eq!(changes(&[other.clone(), own, other, end(b"nft\0"), end(b"nft\0")]), [by("nft")]);
    }

    #[test]
    fn a_table_of_another_family_is_ignored() {
        assert_eq!(changes(&[message(0, 2, &[(1, b"postern\0")]), end(b"nft\0")]), []);
    }

    #[test]
    fn a_transaction_of_a_thread_of_this_process_is_left_out() {
        let own = message(15, 0, &[(2, &std::process::id().to_be_bytes())]);
        assert_eq!(changes(&[message(2, NFPROTO_INET, &[(1, b"postern\0")]), own]), []);
    }

    #[test]
    fn an_unreadable_message_ends_only_its_datagram() {
        let cut = end(b"nft\0");
        for length in 0..cut.len() {
            assert_eq!(changes(&[cut[..length].to_vec()]), []);
        }
        let own = message(2, NFPROTO_INET, &[(1, b"postern\0")]);
        assert_eq!(changes(&[own, vec![255; 40], end(b"\xff\0")]), [by("\u{fffd}")]);
        assert_eq!(changes(&[message(9, NFPROTO_INET, &[]), end(b"nft\0")]), []);
    }
}
