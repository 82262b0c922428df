//! The socket that sends transactions to nf_tables.
//!
//! A table with an owner belongs to a socket, not to a process: the kernel takes changes of it from that socket alone, and the table
//! stays owned until the last descriptor of the socket is closed. So the agent has one socket for all its transactions, and a
//! duplicate of its descriptor can be kept elsewhere ([`super::ownership`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_bindings::builtin::Nlmsghdr;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// The type of a message that acknowledges or refuses (NLMSG_ERROR).
const NLMSG_ERROR: u16 = 2;
/// The size of the buffer for answers, in bytes. Each answer is a datagram of its own; the rest of a longer one is only an echo.
const ANSWER_BYTES: usize = 8 << 10;

/// A netlink socket for transactions.
#[derive(Debug)]
pub(super) struct TransactionSocket {
    socket: OwnedFd,
    port: u32,
}

impl TransactionSocket {
    /// Opens a socket in the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn open() -> io::Result<Self> {
        let netfilter = Some(netlink::NETFILTER);
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            netfilter,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Self::of(socket)
    }

    /// Takes over a socket that an earlier agent opened.
    ///
    /// # Errors
    /// The descriptor is no netlink socket for netfilter.
    pub(super) fn stored(socket: OwnedFd) -> io::Result<Self> {
        let is_netfilter = sockopt::socket_domain(&socket)? == AddressFamily::NETLINK
            && sockopt::socket_protocol(&socket)? == Some(netlink::NETFILTER);
        if !is_netfilter {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no netlink socket for netfilter"));
        }
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        Self::of(socket)
    }

    fn of(socket: OwnedFd) -> io::Result<Self> {
        let port = SocketAddrNetlink::try_from(rustix::net::getsockname(&socket)?)?.pid();
        Ok(Self { socket, port })
    }

    /// Returns the netlink port, by which the kernel names the owner of a table.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Sends a batch of messages, and reads the kernel's answers.
    ///
    /// # Errors
    /// The first refusal of the kernel.
    pub(super) fn send(&self, batch: &[u8]) -> io::Result<()> {
        // An earlier agent may have left answers unread.
        self.answers()?;
        let sent = rustix::net::send(&self.socket, batch, SendFlags::empty())?;
        if sent != batch.len() {
            return Err(io::Error::other("the kernel took only a part of the batch"));
        }
        let answers = self.answers()?;
        match answers.refusal {
            Some(refusal) => Err(refusal),
            None if answers.lost => Err(Errno::NOBUFS.into()),
            None if answers.count == 0 => Err(io::Error::other("the kernel gave no answer")),
            None => Ok(()),
        }
    }

    /// Reads the answers. The kernel works on a batch while it is sent, so all of them are there by then.
    fn answers(&self) -> io::Result<Answers> {
        let mut answers = Answers::default();
        let mut buffer = vec![0; ANSWER_BYTES];
        loop {
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => answers.take(buffer.get(..length).unwrap_or_default()),
                Err(Errno::AGAIN) => return Ok(answers),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => answers.lost = true,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for TransactionSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The answers to a batch.
#[derive(Debug, Default)]
struct Answers {
    count: usize,
    refusal: Option<io::Error>,
    /// True where the kernel had no room for some.
    lost: bool,
}

impl Answers {
    fn take(&mut self, datagram: &[u8]) {
        let Some((header, rest)) = datagram.split_at_checked(Nlmsghdr::len()) else { return };
        let kind = Nlmsghdr::new_from_slice(header).map(|header| header.r#type);
        let (Some(NLMSG_ERROR), Some(code)) = (kind, rest.first_chunk()) else { return };
        self.count += 1;
        let code = i32::from_ne_bytes(*code);
        if code != 0 && self.refusal.is_none() {
            self.refusal = Some(io::Error::from_raw_os_error(code.saturating_neg()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_netlink_socket_for_netfilter_is_taken_over() {
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        TransactionSocket::stored(other.into()).unwrap_err();
        let own = TransactionSocket::open().unwrap();
        let port = own.port();
        assert_eq!(TransactionSocket::stored(own.socket).unwrap().port(), port);
    }

    #[test]
    fn the_first_refusal_counts() {
        let answer = |code: i32| [&[0; 4], &2u16.to_ne_bytes()[..], &[0; 10], &code.to_ne_bytes()].concat();
        let mut answers = Answers::default();
        for datagram in [answer(0), answer(-2), answer(-1), vec![1; 9], Vec::new()] {
            answers.take(&datagram);
        }
        assert_eq!((answers.count, answers.refusal.unwrap().raw_os_error()), (3, Some(2)));
    }
}
