//! The bare costs: what nftables and SQLite take by themselves.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use netlink_bindings::nftables::{Chained, Nfgenmsg};
use netlink_socket2::std::NetlinkSocket;
use postern_tests::Host;
use postern_tests::clock::monotonic;

use crate::lines::Samples;

const TABLE: &str = "bare";
const SET: &str = "hosts";

/// Makes a table with a set like Postern's on a host.
pub(crate) fn make_set(host: &Host) {
    host.must("nft", &["add", "table", "inet", TABLE]);
    let set = format!(
        "add set inet {TABLE} {SET} {{ type ipv4_addr . inet_proto . inet_service; flags timeout; }}"
    );
    host.must("nft", &[&set]);
}

/// Adds one element by starting `nft`.
pub(crate) fn nft_spawned(host: &Host, count: u32) -> Samples {
    let samples = (0..count).map(|number| {
        let element = format!("{{ {} . tcp . 22 timeout 1h }}", address(number));
        let mut command = Command::new("/usr/sbin/nft");
        command.args(["add", "element", "inet", TABLE, SET, &element]);
        let began = monotonic();
        assert!(host.netns().output(command).unwrap().status.success());
        began.elapsed()
    });
    samples.collect()
}

/// Adds one element over netlink, in process.
pub(crate) fn netlink(host: &Host, count: u32) -> Samples {
    host.netns().run(async move {
        let mut socket = NetlinkSocket::new();
        (count..2 * count).map(|number| add_element(&mut socket, number)).collect()
    })
}

fn add_element(socket: &mut NetlinkSocket, number: u32) -> Duration {
    let began = monotonic();
    let mut batch = Chained::new(socket.reserve_seq(8));
    let mut header = Nfgenmsg::new();
    header.set_res_id(10);
    batch.request().op_batch_begin_do(&header);
    let mut inet = Nfgenmsg::new();
    inet.nfgen_family = 1;
    let mut key = address(number).octets().to_vec();
    key.extend([6, 0, 0, 0, 0, 22, 0, 0]);
    batch
        .request()
        .set_create()
        .op_newsetelem_do(&inet)
        .encode()
        .push_table_bytes(TABLE.as_bytes())
        .push_set_bytes(SET.as_bytes())
        .nested_elements()
        .nested_elem()
        .nested_key()
        .push_value(&key)
        .end_nested()
        .push_timeout(3_600_000u64.to_be());
    batch.request().op_batch_end_do(&header);
    socket.request_chained(&batch.finalize()).unwrap().recv_all().unwrap();
    began.elapsed()
}

fn address(number: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from_bits(0x0a00_0000 + number)
}

/// Commits a kilobyte, synced to disk, once per sample.
pub(crate) fn sqlite_commits(dir: &Path, count: u32) -> Samples {
    let database = rusqlite::Connection::open(dir.join("bare.db")).unwrap();
    database.pragma_update(None, "journal_mode", "WAL").unwrap();
    database.pragma_update(None, "synchronous", "FULL").unwrap();
    database.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)").unwrap();
    let body = "x".repeat(1024);
    let samples = (0..count).map(|_| {
        let began = monotonic();
        database.execute("INSERT INTO t (body) VALUES (?1)", [&body]).unwrap();
        began.elapsed()
    });
    samples.collect()
}
