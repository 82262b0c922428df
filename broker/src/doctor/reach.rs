//! The checks of the broker's port, as agents and callers use it: each name, what it resolves to, and the certificate there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use postern_pki::{Authority, Fingerprint, tls};
use postern_proto::client;
use postern_runtime::error_chain::error_chain;
use postern_runtime::findings::Finding;
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::config::BrokerConfig;

/// The longest wait for an answer, and for a name to resolve.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Checks the port under each name, and on this machine itself.
pub(super) async fn check(config: &BrokerConfig) -> Vec<Finding> {
    let Ok(authority) = Authority::load(&config.authority_dir(), &config.trust_domain) else {
        // The check of the authority has said so.
        return Vec::new();
    };
    let (fingerprint, port) = (authority.fingerprint(), config.listen.port());
    let here = SocketAddr::new(loopback(config.listen.ip()), port);
    let mut findings = Vec::new();
    let runs = match tokio::time::timeout(ANSWER_TIMEOUT, TcpStream::connect(here)).await {
        Ok(Ok(_)) => {
            findings.push(on_this_machine(config, here, fingerprint).await);
            true
        }
        Ok(Err(error)) => {
            findings.push(absent(here, &error.to_string()));
            false
        }
        Err(_) => {
            findings.push(absent(here, &no_answer()));
            false
        }
    };
    let names = config.names.iter().map(|name| of_name(name, port, fingerprint, runs));
    findings.extend(join_all(names).await.into_iter().flatten());
    findings
}

/// Checks the listener on this machine, under the first name for which its certificate is good.
async fn on_this_machine(config: &BrokerConfig, here: SocketAddr, fingerprint: Fingerprint) -> Finding {
    let mut last = "`names` is empty".to_owned();
    for name in &config.names {
        match ask(name, here.port(), here, fingerprint).await {
            Ok(ServingStatus::Serving) => {
                return Finding::good(format!("the broker answers at {here}, and is ready"));
            }
            Ok(_) => {
                let what = format!("the broker answers at {here}, and is not ready");
                return Finding::error(what, "see its log, and /readyz at metrics_listen");
            }
            Err(error) => last = error,
        }
    }
    let remedy =
        "restart the broker if `names` was changed; see which program listens there if it is another";
    Finding::error(format!("this broker does not answer at {here} under any of its names: {last}"), remedy)
}

fn absent(here: SocketAddr, why: &str) -> Finding {
    let remedy = "start it with `systemctl start postern-broker`, and see its log";
    Finding::error(format!("no broker answers at {here}: {why}"), remedy)
}

fn no_answer() -> String {
    format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())
}

/// Returns the address by which this machine reaches a listener.
fn loopback(listen: IpAddr) -> IpAddr {
    if !listen.is_unspecified() {
        return listen;
    }
    match listen {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        // A listener for every address takes both families.
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Checks a name: what it resolves to, and who answers there.
async fn of_name(name: &str, port: u16, fingerprint: Fingerprint, runs: bool) -> Vec<Finding> {
    let unresolved = |why: String| {
        let remedy = "add the name to DNS, or correct `names`";
        vec![Finding::error(format!("{name} does not resolve here: {why}"), remedy)]
    };
    let resolved = match tokio::time::timeout(ANSWER_TIMEOUT, tokio::net::lookup_host((name, port))).await {
        Err(_) => return unresolved(no_answer()),
        Ok(Err(error)) => return unresolved(error.to_string()),
        Ok(Ok(resolved)) => resolved.take(MAX_ADDRESSES).collect::<Vec<_>>(),
    };
    if resolved.is_empty() {
        return unresolved("it has no address".to_owned());
    }
    if !runs {
        let addresses: Vec<String> = resolved.iter().map(|at| at.ip().to_string()).collect();
        let what =
            format!("{name} resolves to {}; without a broker nothing was tried there", addresses.join(", "));
        return vec![Finding::warning(what, "run this again once the broker runs")];
    }
    join_all(resolved.into_iter().map(|at| async move {
        match ask(name, port, at, fingerprint).await {
            Ok(_) => Finding::good(format!("{name} leads to {at}, and the certificate there is good for it")),
            Err(error) => Finding::error(
                format!("{name} leads to {at}, and not to this broker from here: {error}"),
                "agents that use this name may not reach the broker: correct DNS, the firewall or `names`, and restart the broker",
            ),
        }
    }))
    .await
}

/// Asks for the broker's health over TLS, as an agent that has no certificate yet: the chain must lead to this authority's root, and the
/// certificate must be good for the name.
async fn ask(
    name: &str,
    port: u16,
    at: SocketAddr,
    fingerprint: Fingerprint,
) -> Result<ServingStatus, String> {
    let host = if name.parse::<Ipv6Addr>().is_ok() { format!("[{name}]") } else { name.to_owned() };
    let tls = tls::pinned_client_config(fingerprint).map_err(|error| error_chain(&error))?;
    let channel = client::channel_to(&format!("https://{host}:{port}"), tls, at)
        .map_err(|error| error_chain(&error))?;
    let mut health = HealthClient::new(channel);
    match tokio::time::timeout(ANSWER_TIMEOUT, health.check(HealthCheckRequest::default())).await {
        Err(_) => Err(no_answer()),
        // The message has the whole chain of a failed handshake.
        Ok(Err(status)) => Err(status.message().to_owned()),
        Ok(Ok(answer)) => Ok(answer.into_inner().status()),
    }
}
