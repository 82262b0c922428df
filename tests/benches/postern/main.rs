//! Benchmarks, each beside the bare cost of its parts: every measurement is taken next to the cost of what it cannot do
//! without, in the same run. Each result is one line: `bench: <name> <value> <unit> vs <name> <value> <unit> ratio <r>`.
//!
//! `make bench` builds and runs it. With words as arguments, only the measurements whose name has one of them are taken.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod across;
mod agent_fleet;
mod azure;
mod bare;
mod bare_server;
mod cloud;
mod ends;
mod grants;
mod limits;
mod lines;
mod many;
mod opening;
mod sessions;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    if let Some((child, rest)) = arguments.split_first()
        && child == bare_server::SERVER
    {
        return bare_server::serve(rest);
    }
    raise_descriptor_limit();
    let measurements: [(&str, fn()); 12] = [
        ("opening", opening::measure),
        ("ends", ends::measure),
        ("grants", grants::measure),
        ("across", across::measure),
        ("many", many::measure),
        ("sessions", sessions::measure),
        ("limits", limits::measure),
        ("cloud-grants", cloud::grants),
        ("cloud-sweep", cloud::sweep),
        ("azure-grants", azure::grants),
        ("azure-burst", azure::burst),
        ("azure-sweep", azure::sweep),
    ];
    for (name, measure) in measurements {
        if arguments.is_empty() || arguments.iter().any(|word| name.contains(word.as_str())) {
            measure();
        }
    }
}

/// Raises the limit of descriptors: there are thousands of connections, each with a descriptor at both ends.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}
