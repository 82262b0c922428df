//! The netlink interface of nf_tables, for what is too frequent or too urgent to start `nft` for.
//!
//! The message formats are those of linux/netfilter/nf_tables.h. Integers in them are in network byte order.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netlink_bindings::nftables::{
    Chained, DataAttrs, IterableSetelemAttrs, IterableSetelemListAttrs, Nfgenmsg, PushDataAttrs,
    PushSetelemAttrs, PushSetelemListAttrs, Request, SetelemListAttrs,
};
use netlink_bindings::traits::Pusher;
use netlink_socket2::std::NetlinkSocket;
use postern_core::{Port, ProtectedPort, Protocol};
use rustix::io::Errno;

use super::elements::{Delta, Element, Elements, WindowSet};
use super::transactions::TransactionSocket;
use super::{FirewallError, TABLE};
use crate::clock::BootTime;

/// The address family `inet` (NFPROTO_INET).
const NFPROTO_INET: u8 = 1;
/// The subsystem that a batch is for (NFNL_SUBSYS_NFTABLES).
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// The most elements in one message: the attribute that holds them cannot be longer than 64 KiB.
const MAX_ELEMENTS_PER_MESSAGE: usize = 400;

/// The number of the ruleset. Each transaction of any process on this host increases it by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RulesetId(pub(super) u32);

impl RulesetId {
    /// Returns the number after the next transaction. The kernel leaves out zero (nf_tables_commit).
    pub(super) fn next(self) -> Self {
        Self(self.0.wrapping_add(1).max(1))
    }
}

/// A connection to nf_tables.
pub(super) struct Kernel {
    /// The socket that reads.
    pub(super) socket: NetlinkSocket,
    /// The socket that changes; opened with the first change, in the network namespace of its thread.
    pub(super) transactions: Option<TransactionSocket>,
}

/// A table as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TableInfo {
    /// The handle.
    pub(super) handle: u64,
    /// The flags (NFT_TABLE_F_*): a dormant table holds nothing.
    pub(super) flags: u32,
    /// The netlink port of the socket that owns the table.
    pub(super) owner: Option<u32>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kernel")
    }
}

impl Kernel {
    pub(super) fn new() -> Self {
        Self { socket: NetlinkSocket::new(), transactions: None }
    }

    /// Returns the present number of the ruleset.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn ruleset_id(&mut self) -> Result<RulesetId, FirewallError> {
        let failed = refusal("return the number of the ruleset");
        let request = Request::new().op_getgen_do(&Nfgenmsg::new());
        let mut reply = self.socket.request(&request).map_err(&failed)?;
        let (_, generation) = reply.recv_one().map_err(|error| failed(error.into()))?;
        generation.get_id().map(RulesetId).map_err(|_| FirewallError::Answer { what: "ruleset number" })
    }

    /// Reports whether a table of this name exists.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn has_table(&mut self, name: &str) -> Result<bool, FirewallError> {
        Ok(self.table(name)?.is_some())
    }

    /// Returns the description of a table; `None` where there is none.
    pub(super) fn table(&mut self, name: &str) -> Result<Option<TableInfo>, FirewallError> {
        let failed = refusal("look up the table inet postern");
        let mut request = Request::new().op_gettable_do(&inet());
        request.encode().push_name_bytes(name.as_bytes());
        let mut reply = self.socket.request(&request).map_err(&failed)?;
        match reply.recv_one() {
            Ok((_, table)) => {
                let handle =
                    table.get_handle().map_err(|_| FirewallError::Answer { what: "handle of the table" })?;
                let (flags, owner) = (table.get_flags().unwrap_or_default(), table.get_owner().ok());
                Ok(Some(TableInfo { handle, flags, owner }))
            }
            Err(error) if is(error.as_io_error(), Errno::NOENT) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Makes all changes or none, if the ruleset still has this number.
    ///
    /// # Errors
    /// [`FirewallError::Interfered`] where the ruleset has another number; [`FirewallError::Unverified`] where the kernel does
    /// not hold an element that the changes remove; any other error where the kernel refused. Nothing was changed.
    pub(super) fn change(
        &mut self,
        delta: &Delta,
        ruleset: RulesetId,
        now: BootTime,
    ) -> Result<(), FirewallError> {
        let mut batch = begin_batch(Some(ruleset));
        let removed: Vec<(Element, Option<BootTime>)> =
            delta.remove.iter().map(|element| (*element, None)).collect();
        for part in by_set(&removed) {
            push(batch.request().op_delsetelem_do(&inet()).encode(), part, now);
        }
        let added = delta.add.iter().filter(|(_, end)| **end > now);
        let added: Vec<(Element, Option<BootTime>)> =
            added.map(|(element, end)| (*element, Some(*end))).collect();
        for part in by_set(&added) {
            push(batch.request().set_create().op_newsetelem_do(&inet()).encode(), part, now);
        }
        match self.commit(batch) {
            Ok(()) => Ok(()),
            Err(error) if is_interference(&error) => Err(FirewallError::Interfered),
            // A window has just ended, or has not quite ended yet.
            Err(error) if is(&error, Errno::NOENT) || is(&error, Errno::EXIST) => {
                Err(FirewallError::Unverified {
                    what: "the windows are not those that were last seen".into(),
                })
            }
            Err(source) => Err(refusal("change the windows")(source)),
        }
    }

    /// Returns the time left of an element; `None` where the kernel does not hold it.
    ///
    /// # Errors
    /// The kernel refused, or its answer cannot be understood.
    pub(super) fn time_left(&mut self, element: &Element) -> Result<Option<Duration>, FirewallError> {
        let failed = refusal("read a window");
        let mut request = Request::new().op_getsetelem_do(&inet());
        push(request.encode(), &[(*element, None)], BootTime(0));
        let mut reply = self.socket.request(&request).map_err(&failed)?;
        let answer = reply.recv_one().map(|(_, answer)| read(element.set, &answer)).map_err(io::Error::from);
        match answer {
            Ok(found) => Ok(found?.into_iter().find(|(read, _)| read == element).map(|(_, left)| left)),
            Err(error) if is(&error, Errno::NOENT) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Returns every element of a set with its end; `now` reads the clock.
    ///
    /// # Errors
    /// The kernel refused, or its answer cannot be understood.
    pub(super) fn elements(
        &mut self,
        set: WindowSet,
        now: impl Fn() -> BootTime,
    ) -> Result<Elements, FirewallError> {
        let failed = refusal("read the windows");
        let mut request = Request::new().op_getsetelem_dump(&inet());
        request.encode().push_table_bytes(TABLE.as_bytes()).push_set_bytes(set.name().as_bytes());
        let mut reply = self.socket.request(&request).map_err(&failed)?;
        // The kernel computes the time left when it writes a part, which is while the part before it is received. Parts are
        // only parsed after the last, or the later ones would be old.
        let mut parts = Vec::new();
        let mut written = now();
        while let Some(part) = reply.recv() {
            let (_, part) = part.map_err(|error| failed(error.into()))?;
            parts.push((written, part.get_buf().to_vec()));
            written = now();
        }
        let mut elements = Elements::new();
        for (written, part) in parts {
            let part = read(set, &SetelemListAttrs::new(&part))?;
            elements.extend(part.into_iter().map(|(element, left)| (element, written.plus(left))));
        }
        Ok(elements)
    }
}

impl Kernel {
    /// Makes all changes of a batch or none.
    pub(super) fn commit(&mut self, mut batch: Chained<'static>) -> io::Result<()> {
        batch.request().op_batch_end_do(&batch_header());
        self.transactions()?.send(batch.finalize().buf())
    }

    pub(super) fn transactions(&mut self) -> io::Result<&TransactionSocket> {
        let socket = match self.transactions.take() {
            Some(socket) => socket,
            None => TransactionSocket::open()?,
        };
        Ok(self.transactions.insert(socket))
    }

    /// Returns the sorted keys of a set whose elements have no end.
    ///
    /// # Errors
    /// The kernel refused, or its answer cannot be understood.
    pub(super) fn keys(&mut self, set: &str) -> Result<Vec<Vec<u8>>, FirewallError> {
        let failed = refusal("read the connections that were there before the table");
        let mut request = Request::new().op_getsetelem_dump(&inet());
        request.encode().push_table_bytes(TABLE.as_bytes()).push_set_bytes(set.as_bytes());
        let mut reply = self.socket.request(&request).map_err(&failed)?;
        let mut keys = Vec::new();
        while let Some(part) = reply.recv() {
            let (_, part) = part.map_err(|error| failed(error.into()))?;
            // An empty set is dumped without a list.
            let Ok(list) = part.get_elements() else { continue };
            for elem in list.get_elem() {
                let value = elem.get_key().and_then(|key| key.get_value());
                keys.push(value.map_err(|_| FirewallError::Answer { what: "key of a connection" })?.to_vec());
            }
        }
        keys.sort();
        Ok(keys)
    }
}

/// Returns parts that are each of one set, and small enough for one message.
fn by_set(elements: &[(Element, Option<BootTime>)]) -> impl Iterator<Item = &[(Element, Option<BootTime>)]> {
    elements
        .chunk_by(|(one, _), (other, _)| one.set == other.set)
        .flat_map(|part| part.chunks(MAX_ELEMENTS_PER_MESSAGE))
}

/// Writes elements of one set; an element with an end gets the time left at `now` as its timeout.
fn push<P: Pusher>(request: PushSetelemListAttrs<P>, part: &[(Element, Option<BootTime>)], now: BootTime) {
    let Some((Element { set, .. }, _)) = part.first() else { return };
    let request = request.push_table_bytes(TABLE.as_bytes()).push_set_bytes(set.name().as_bytes());
    let mut list = request.nested_elements();
    for (element, end) in part {
        let elem = push_key(list.nested_elem(), element);
        list = match end {
            // A timeout of zero would mean no timeout.
            Some(end) => elem.push_timeout(milliseconds(end.since(now)).max(1).to_be()).end_nested(),
            None => elem.end_nested(),
        };
    }
}

fn push_key<P: Pusher>(elem: PushSetelemAttrs<P>, element: &Element) -> PushSetelemAttrs<P> {
    let elem = elem.nested_key().push_value(&key(element.first, element.port)).end_nested();
    if element.set.is_interval() {
        let key_end = PushDataAttrs::new(elem.nested_expressions());
        key_end.push_value(&key(element.last, element.port)).end_nested().end_nested()
    } else {
        elem
    }
}

/// Returns the last key of an interval.
///
/// netlink-bindings 0.3.5 leaves out NFTA_SET_ELEM_PAD (8) and so numbers the attributes after it one too low: the
/// attribute that it calls the expressions is the kernel's NFTA_SET_ELEM_KEY_END (10). A test in a namespace checks that.
fn key_end<'a>(elem: &IterableSetelemAttrs<'a>) -> Option<&'a [u8]> {
    DataAttrs::new(elem.get_expressions().ok()?.get_buf()).get_value().ok()
}

fn read(
    set: WindowSet,
    list: &IterableSetelemListAttrs<'_>,
) -> Result<Vec<(Element, Duration)>, FirewallError> {
    // An empty set is dumped without a list.
    let Ok(list) = list.get_elements() else { return Ok(Vec::new()) };
    list.get_elem().map(|elem| read_element(set, &elem)).collect()
}

fn read_element(
    set: WindowSet,
    elem: &IterableSetelemAttrs<'_>,
) -> Result<(Element, Duration), FirewallError> {
    let missing = |what| FirewallError::Answer { what };
    let value = elem.get_key().and_then(|key| key.get_value()).map_err(|_| missing("key of a window"))?;
    let (first, port) = read_key(set, value).ok_or_else(|| missing("readable key of a window"))?;
    let last = match key_end(elem) {
        Some(value) => read_key(set, value).ok_or_else(|| missing("readable last key of a window"))?,
        None => (first, port),
    };
    // A window has one port, but an interval may span ports and protocols as well as addresses.
    let last = Some(last.0).filter(|_| last.1 == port).ok_or_else(|| missing("single port of a window"))?;
    // An element without a timeout was not made by the agent, and never ends.
    let left = elem.get_expiration().map_or(Duration::MAX, |left| Duration::from_millis(u64::from_be(left)));
    Ok((Element { set, port, first, last }, left))
}

/// Returns the concatenation address . protocol . port, each padded to four bytes.
fn key(address: IpAddr, port: ProtectedPort) -> Vec<u8> {
    let mut key = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let [high, low] = port.port.get().to_be_bytes();
    key.extend([port.protocol.number(), 0, 0, 0, high, low, 0, 0]);
    key
}

fn read_key(set: WindowSet, key: &[u8]) -> Option<(IpAddr, ProtectedPort)> {
    let (address, rest) = key.split_at_checked(if set.is_ipv4() { 4 } else { 16 })?;
    let address = match <[u8; 4]>::try_from(address) {
        Ok(octets) => IpAddr::from(Ipv4Addr::from(octets)),
        Err(_) => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
    };
    let &[protocol, _, _, _, high, low, ..] = rest else { return None };
    let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.number() == protocol)?;
    let port = Port::new(u16::from_be_bytes([high, low]).into()).ok()?;
    Some((address, ProtectedPort { protocol, port }))
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn inet() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = NFPROTO_INET;
    header
}

/// Begins a batch, which the kernel refuses if the ruleset has another number by then.
pub(super) fn begin_batch(ruleset: Option<RulesetId>) -> Chained<'static> {
    let mut batch = Chained::new(1);
    let mut begin = batch.request().op_batch_begin_do(&batch_header());
    if let Some(RulesetId(number)) = ruleset {
        begin.encode().push_genid(number);
    }
    drop(begin);
    batch
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(NFNL_SUBSYS_NFTABLES);
    header
}

/// Reports whether a batch was refused because the ruleset has another number.
pub(super) fn is_interference(error: &io::Error) -> bool {
    is(error, Errno::RESTART) || is(error, Errno::AGAIN)
}

pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

pub(super) fn refusal(what: &'static str) -> impl Fn(io::Error) -> FirewallError {
    move |source| FirewallError::Netlink { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_padded_as_the_kernel_has_it_and_reads_back() {
        let port: ProtectedPort = "tcp/22".parse().unwrap();
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(key(address, port), [192, 0, 2, 7, 6, 0, 0, 0, 0, 22, 0, 0]);
        assert_eq!(read_key(WindowSet::Hosts4, &key(address, port)), Some((address, port)));
        let address: IpAddr = "2001:db8::7".parse().unwrap();
        assert_eq!(read_key(WindowSet::Nets6, &key(address, port)), Some((address, port)));
        for wrong in [&[][..], &[192, 0, 2, 7], &[192, 0, 2, 7, 1, 0, 0, 0, 0, 22, 0, 0]] {
            assert_eq!(read_key(WindowSet::Hosts4, wrong), None);
        }
    }

    #[test]
    fn the_number_of_the_ruleset_leaves_out_zero() {
        assert_eq!(RulesetId(7).next(), RulesetId(8));
        assert_eq!(RulesetId(u32::MAX).next(), RulesetId(1));
    }
}
