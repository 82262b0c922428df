//! Ten thousand windows on one host.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use postern_agent::clock::{self as agent_clock, BootTime};
use postern_agent::firewall::policy::{HeldWindow, HostPolicy};
use postern_agent::firewall::{Enforcer, Ownership};
use postern_agent::host_reconciler::HostLayer as _;
use postern_core::Mode;
use postern_tests::clock::monotonic;
use postern_tests::{Host, Net};

use crate::bare;
use crate::lines::{Samples, line, note, percentiles};

const WINDOWS: u32 = 10_000;
const ROUNDS: u32 = 200;

pub(crate) fn measure() {
    let net = Net::new();
    let before = kernel_memory();
    let bare_build = bare_build(&net.alice);
    let bare_kernel = kernel_memory() - before;
    let before = kernel_memory();
    let (build, one, grown) = through_the_agent(&net.vm);
    let kernel = kernel_memory() - before;
    let bare_one = one_beside(&net.alice);
    note(
        "the windows are single addresses; the bare cost is nft loading the same sets and rules from a file",
    );
    line("ten-thousand-windows-from-nothing", millis(build), "nft-file", millis(bare_build), "ms");
    percentiles("one-window-beside-them", &one, "netlink-in-process", &bare_one);
    line("kernel-memory-of-ten-thousand", kernel, "nft-file", bare_kernel, "MiB");
    line("agent-memory-of-ten-thousand", grown, "kernel-memory", kernel.max(0.001), "MiB");
}

fn through_the_agent(vm: &Host) -> (Duration, Samples, f64) {
    vm.netns().run(async {
        let deadline = agent_clock::boottime().plus(Duration::from_secs(3600));
        let (many, more) = (policy(WINDOWS, deadline), policy(WINDOWS + 1, deadline));
        let mut enforcer = Enforcer::new(Ownership::Owned { stored: None }).unwrap();
        let resident = resident();
        let began = monotonic();
        enforcer.ensure(&many, agent_clock::boottime()).unwrap();
        let build = began.elapsed();
        let grown = self::resident() - resident;
        let rounds = (0..ROUNDS).flat_map(|_| [&more, &many]).map(|policy| {
            let began = monotonic();
            enforcer.ensure(policy, agent_clock::boottime()).unwrap();
            began.elapsed()
        });
        (build, rounds.collect(), grown)
    })
}

fn policy(windows: u32, deadline: BootTime) -> HostPolicy {
    let window = |number| HeldWindow {
        grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
        port: "tcp/22".parse().unwrap(),
        source: address(number).to_string().parse().unwrap(),
        deadline,
    };
    HostPolicy {
        mode: Mode::Enforce,
        ports: ["tcp/22".parse().unwrap()].into(),
        windows: (0..windows).map(window).collect(),
        trial_until: None,
    }
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + number)
}

fn bare_build(host: &Host) -> Duration {
    let mut script = String::from(
        "table inet many {\nset hosts { type ipv4_addr . inet_proto . inet_service; flags timeout; elements = {",
    );
    for number in 0..WINDOWS {
        write!(script, "{} . tcp . 22 timeout 1h, ", address(number)).unwrap();
    }
    script.push_str("} }\nchain input { type filter hook input priority -10;\nip saddr . meta l4proto . th dport @hosts accept\n}\n}\n");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.nft");
    fs::write(&path, script).unwrap();
    let began = monotonic();
    host.must("nft", &["-f", &path.to_string_lossy()]);
    began.elapsed()
}

/// Adds and removes one element beside ten thousand others.
fn one_beside(host: &Host) -> Samples {
    bare::make_set(host);
    bare::netlink(host, WINDOWS);
    bare::netlink(host, ROUNDS)
}

/// Returns the memory that the kernel has allocated for itself, in MiB. Other work of the machine changes it, too: it is
/// good to a MiB or so.
fn kernel_memory() -> f64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap();
    let of = |name: &str| kibibytes(&info, name);
    (of("SUnreclaim:") + of("Percpu:") + of("VmallocUsed:")) / 1024.0
}

/// Returns the resident memory of this process, in MiB.
fn resident() -> f64 {
    kibibytes(&fs::read_to_string("/proc/self/status").unwrap(), "VmRSS:") / 1024.0
}

/// A line of a file under /proc, in KiB.
pub(crate) fn kibibytes(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}
