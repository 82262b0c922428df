//! Hearing when our table is changed.
//!
//! The kernel tells each transaction of anyone in this network namespace: first what it touched, then, in one last
//! message, who made it. Our own are told too. Those of our threads are passed over here, those of an `nft` that we ran
//! are not: whether anything is wrong is for the reconciler to see, who compares, and this only says when to look.
//!
//! Elements whose time has come are removed by the kernel without a transaction, and so without waking anyone.

use std::collections::VecDeque;
use std::io;
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

/// The group that is told of transactions, NFNLGRP_NFTABLES (7), as a bit.
const NFNLGRP_NFTABLES: u32 = 1 << (7 - 1);
/// How much may wait to be read, in bytes: a flush of some thousand rules.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// The longest datagram taken, in bytes. The kernel makes them of a page or two.
const MAX_DATAGRAM_BYTES: usize = 64 << 10;

/// Listens to the transactions of this network namespace.
#[derive(Debug)]
pub struct TableWatch {
    /// A netlink socket. Tokio has no type for it, and waits until one is readable in the same way for all.
    socket: UnixDatagram,
    buffer: Vec<u8>,
    reader: TransactionReader,
    changes: VecDeque<TableChange>,
}

/// Someone touched our table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableChange {
    /// The name of the process, or of its thread; empty if unknown.
    pub process: String,
    /// Its process id, or thread id, as the initial PID namespace counts; 0 if unknown.
    pub pid: u32,
}

impl TableWatch {
    /// Listens from now on.
    ///
    /// # Errors
    /// The kernel refused: this needs CAP_NET_ADMIN.
    pub fn start() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let netfilter = Some(netlink::NETFILTER);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, netfilter)?;
        sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, NFNLGRP_NFTABLES))?;
        Ok(Self {
            socket: UnixDatagram::from_std(net::UnixDatagram::from(socket))?,
            buffer: vec![0; MAX_DATAGRAM_BYTES],
            reader: TransactionReader::default(),
            changes: VecDeque::new(),
        })
    }

    /// Waits until someone has touched our table, or may have: so much was told at once that some of it was lost. Safe
    /// to cancel.
    ///
    /// # Errors
    /// The socket is broken.
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

    /// Waits for the next datagram. Returns its length, whatever of it fits into the buffer.
    async fn receive(&mut self) -> io::Result<usize> {
        let (socket, buffer) = (&self.socket, &mut self.buffer);
        let receive = || {
            let (_, length) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::TRUNC)?;
            Ok(length)
        };
        socket.async_io(Interest::READABLE, receive).await
    }
}

/// What was heard of the transaction that is being told.
#[derive(Debug, Default)]
struct TransactionReader {
    touches_table: bool,
}

impl TransactionReader {
    /// Takes one datagram, of one or more messages, and returns the changes of our table that it ends.
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

/// One message of nf_tables (linux/netfilter/nfnetlink.h, nf_tables.h).
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
    /// The first message of a datagram, and what follows it.
    fn split_off(datagram: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let header = Nlmsghdr::new_from_slice(datagram.get(..Nlmsghdr::len())?)?;
        let length = usize::try_from(header.len).ok()?;
        let body = datagram.get(Nlmsghdr::len()..length)?;
        let (&[family, ..], attributes) = body.split_first_chunk::<4>()?;
        let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((Self { kind: header.r#type, family, attributes }, rest))
    }

    /// Who made the transaction, if this message ends it.
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

    /// Whether it is about our table or something in it. In every other message the table's name is the first attribute.
    fn touches_table(&self) -> bool {
        let table = TableAttrs::new(self.attributes).get_name();
        self.family == NFPROTO_INET && table.is_ok_and(|name| name.to_bytes() == TABLE.as_bytes())
    }
}

/// Where the kernel counts processes from elsewhere than this one does, in a container, this is never so.
fn is_own_thread(id: u32) -> bool {
    id != 0 && Path::new("/proc/self/task").join(id.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of NFT_MSG_DELTABLE, for instance.
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
    fn a_transaction_of_a_thread_of_this_process_is_passed_over() {
        let own = message(15, 0, &[(2, &std::process::id().to_be_bytes())]);
        assert_eq!(changes(&[message(2, NFPROTO_INET, &[(1, b"postern\0")]), own]), []);
    }

    #[test]
    fn what_cannot_be_read_ends_its_datagram_only() {
        let cut = end(b"nft\0");
        for length in 0..cut.len() {
            assert_eq!(changes(&[cut[..length].to_vec()]), []);
        }
        let own = message(2, NFPROTO_INET, &[(1, b"postern\0")]);
        assert_eq!(changes(&[own, vec![255; 40], end(b"\xff\0")]), [by("\u{fffd}")]);
        assert_eq!(changes(&[message(9, NFPROTO_INET, &[]), end(b"nft\0")]), []);
    }
}
