//! Networks of namespaces: every host is a namespace of its own, all on one bridge, with addresses from the ranges that
//! are set aside for documentation (RFC 5737, RFC 3849).
//!
//! A namespace has a name only while it is being made. From then on its [`Netns`] and the processes in it hold it, so that it
//! goes when they go, also after a panic or a kill: nothing is ever left behind.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::netns::Netns;

/// The prefix length of every host's IPv4 network.
const V4_LEN: u8 = 24;
/// The prefix length of every host's IPv6 network.
const V6_LEN: u8 = 64;
/// The networks in which clients may take further addresses; every host reaches them over its own link.
const FURTHER: [&str; 2] = ["198.51.100.0/24", "203.0.113.0/24"];

/// A broker's host, a VM and two clients, on one bridge.
#[derive(Debug)]
pub struct Net {
    /// The broker's host.
    pub hub: Host,
    /// The agent's host.
    pub vm: Host,
    /// A client that is allowed in.
    pub alice: Host,
    /// A client that is not.
    pub mallory: Host,
    switch: Netns,
}

/// A host: a namespace with one interface.
#[derive(Debug)]
pub struct Host {
    name: &'static str,
    netns: Netns,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

/// A transport address to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP.
    Tcp(SocketAddr),
    /// UDP.
    Udp(SocketAddr),
}

impl Net {
    /// Makes the network.
    ///
    /// # Panics
    /// Without root, or without iproute2 and util-linux.
    #[allow(clippy::new_without_default, reason = "it makes network namespaces, which no default should")]
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "scenarios make network namespaces: run them as root");
        let switch = namespace("switch");
        let netns = Netns::open("switch", switch);
        ip(&netns, "link add br0 type bridge forward_delay 0\nlink set br0 up\n");
        let host = |name, number| Host::join(name, number, &netns);
        Self {
            hub: host("hub", 1),
            vm: host("vm", 10),
            alice: host("alice", 20),
            mallory: host("mallory", 30),
            switch: netns,
        }
    }

    /// Takes a host off the bridge, as if its cable were pulled.
    pub fn unplug(&self, host: &Host) {
        ip(&self.switch, &format!("link set {} down\n", host.name));
    }

    /// Puts a host back on the bridge.
    pub fn plug(&self, host: &Host) {
        ip(&self.switch, &format!("link set {} up\n", host.name));
    }
}

impl Host {
    fn join(name: &'static str, number: u8, bridge: &Netns) -> Self {
        let own = namespace(name);
        let at = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        let host = Self {
            name,
            v4: Ipv4Addr::new(192, 0, 2, number),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)),
            netns: Netns::open(name, own.try_clone().expect("a descriptor can be duplicated")),
        };
        ip(bridge, &format!("link add {name} type veth peer name eth0 netns {}\n", at(&own)));
        ip(bridge, &format!("link set {name} master br0 up\n"));
        let mut commands = format!(
            "link set lo up\nlink set eth0 up\naddr add {}/{V4_LEN} dev eth0\naddr add {}/{V6_LEN} dev eth0 nodad\n",
            host.v4, host.v6
        );
        for net in FURTHER {
            commands.push_str(&format!("route add {net} dev eth0\n"));
        }
        ip(&host.netns, &commands);
        host
    }

    /// The host's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The host's IPv4 address.
    pub fn v4(&self) -> IpAddr {
        self.v4.into()
    }

    /// The host's IPv6 address.
    pub fn v6(&self) -> IpAddr {
        self.v6.into()
    }

    /// A TCP port of it, over IPv4.
    pub fn tcp(&self, port: u16) -> Endpoint {
        Endpoint::Tcp((self.v4, port).into())
    }

    /// A TCP port of it, over IPv6.
    pub fn tcp6(&self, port: u16) -> Endpoint {
        Endpoint::Tcp((self.v6, port).into())
    }

    /// A UDP port of it, over IPv4.
    pub fn udp(&self, port: u16) -> Endpoint {
        Endpoint::Udp((self.v4, port).into())
    }

    /// A UDP port of it, over IPv6.
    pub fn udp6(&self, port: u16) -> Endpoint {
        Endpoint::Udp((self.v6, port).into())
    }

    /// The thread in the host's namespace, to run things there.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Gives the host more IPv4 addresses, each from 198.51.100.0/24 or 203.0.113.0/24.
    pub fn add_addresses(&self, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        let lines = addresses.into_iter().map(|address| format!("addr add {address}/32 dev eth0\n"));
        ip(&self.netns, &lines.collect::<String>());
    }

    /// Runs a program to its end, as root on this host.
    ///
    /// # Panics
    /// The program cannot be started.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments);
        self.netns.output(command).unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
    }

    /// Runs a program that must succeed, and returns what it printed.
    ///
    /// # Panics
    /// The program cannot be started or fails.
    pub fn must(&self, program: &str, arguments: &[&str]) -> String {
        succeeded(&format!("{program} {}", arguments.join(" ")), &self.output(program, arguments))
    }
}

impl Endpoint {
    /// The address and the port.
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Tcp(address) | Self::Udp(address) => address,
        }
    }
}

/// Returns the output of a program that must succeed.
///
/// # Panics
/// It failed.
pub(crate) fn succeeded(what: &str, output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "`{what}` failed ({}):\n{out}{err}", output.status);
    out
}

/// A new namespace without a name.
fn namespace(purpose: &str) -> OwnedFd {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("postern-{}-{}-{purpose}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let netns = |verb: &str| {
        let output = Command::new("ip").args(["netns", verb, &name]).output().expect("iproute2 is installed");
        succeeded(&format!("ip netns {verb} {name}"), &output);
    };
    netns("add");
    let opened = File::open(Path::new("/run/netns").join(&name));
    netns("del");
    opened.unwrap_or_else(|error| panic!("cannot open the namespace {name}: {error}")).into()
}

/// Runs lines of `ip -batch` in a namespace.
fn ip(netns: &Netns, lines: &str) {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = netns.spawn(command).expect("iproute2 is installed");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(lines.as_bytes()).expect("ip reads its lines");
    drop(stdin);
    let output = child.wait_with_output().expect("ip ends");
    succeeded(&format!("ip -batch: {lines}"), &output);
}
