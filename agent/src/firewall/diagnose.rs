//! The part of `doctor` about the host's firewall: Postern's table, and other tables that may close a window.
//!
//! A drop in Postern's table is final, but an accept ends only its own chain: a later base chain at the same hook (ufw,
//! firewalld, iptables) may still drop.

use std::collections::BTreeSet;

use nftables::schema::{Chain, NfListObject, Rule};
use nftables::types::{NfChainPolicy, NfFamily, NfHook};
use postern_runtime::error_chain::error_chain;
use serde::Deserialize;
use serde_json::Value;

use super::kernel::Kernel;
use super::nft::Nft;
use super::table::GUARD;
use super::{FirewallError, TABLE};
use crate::doctor::Finding;

/// The priority of the table's chains: filter - 10.
const TABLE_PRIORITY: i32 = -10;
/// The share of the connections that the kernel can track above which it soon tracks no more.
const CROWDED_PERCENT: u64 = 80;

/// The effect of another program's flush on an owned table, for people.
const FLUSH_SPARES: &str = "another program's `nft flush ruleset` leaves the table as it is: a socket owns it, and the kernel takes changes \
    from that alone";
/// The effect on a table that waits for its owner.
const FLUSH_TAKES_ORPHAN: &str =
    "another program's `nft flush ruleset` removes the table as well, until the agent runs again and owns it";
/// The effect on a table that no socket owns while the agent runs.
const FLUSH_TAKES: &str = "another program's `nft flush ruleset` removes the table as well: a running agent puts it back within some 30 ms, a \
    stopped one with its next start";

/// Checks the host firewall.
pub fn diagnose() -> Vec<Finding> {
    match findings() {
        Ok(findings) => findings,
        Err(error) => vec![Finding::error(
            error_chain(&error),
            "install the package nftables, and run this as root on a kernel with nf_tables",
        )],
    }
}

fn findings() -> Result<Vec<Finding>, FirewallError> {
    let nft = Nft::find()?;
    let version = nft.print(&["--version"])?;
    let mut findings = vec![Finding::good(format!("the host firewall is {}", version.trim()))];
    let mut kernel = Kernel::new();
    if let Some(table) = kernel.table(TABLE)? {
        findings.push(Finding::good(format!(
            "the kernel holds the table inet {TABLE}: it looks at what is dialled at an address of this host, and at what is \
             delivered on this host; connections that pass through, to pods for instance, are not looked at"
        )));
        findings.push(Finding::good(match table.owner {
            Some(_) => FLUSH_SPARES.to_owned(),
            None if table.persists() => FLUSH_TAKES_ORPHAN.to_owned(),
            None if kernel.can_own_tables()? => {
                format!("{FLUSH_TAKES}. POSTERN_TABLE_OWNER=off asks for that")
            }
            None => format!("{FLUSH_TAKES}. Linux 6.9 and later can spare it"),
        }));
        if table.owner.is_none() && kernel.has_table(GUARD)? {
            findings.push(Finding::warning(
                format!("the table inet {GUARD} is left over from a change that was interrupted: what was opened since stays closed"),
                "start the agent, which removes it",
            ));
        }
    } else {
        findings.push(Finding::error(
            format!("the kernel does not hold the table inet {TABLE}: no port is protected"),
            "start the agent; `postern-agent load` puts the last accepted state into the kernel",
        ));
    }
    let listed = nft.print(&["--json", "list", "ruleset"])?;
    let ruleset = parse(&listed).ok_or(FirewallError::Answer { what: "ruleset in nft's JSON" })?;
    findings.extend(untracking(&listed).map(|chain| {
        Finding::warning(
            format!("a rule in the chain {chain} keeps connections from being tracked (notrack)"),
            "leave the protected ports out of it: a session that the kernel does not track is cut when its window ends",
        )
    }));
    findings.extend(tracked().and_then(crowded));
    findings.extend(dropping(&ruleset).map(|chain| {
        Finding::warning(
            format!("{} comes after Postern's and may drop what a window lets in", describe(chain)),
            "let the protected ports through there: while no window is open, Postern's table drops them first",
        )
    }));
    Ok(findings)
}

/// The output of `nft --json`.
#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Value>,
}

/// Returns the objects of a listing. An object of an unknown kind is left out: it drops nothing.
fn parse(listed: &str) -> Option<Vec<NfListObject<'static>>> {
    let listing: Listing = serde_json::from_str(listed).ok()?;
    Some(listing.nftables.into_iter().filter_map(|object| serde_json::from_value(object).ok()).collect())
}

/// Returns the chains with rules that keep connections from being tracked, each once.
fn untracking(listed: &str) -> impl Iterator<Item = String> + use<> {
    let listing = serde_json::from_str::<Listing>(listed).map(|listing| listing.nftables);
    let rules = listing.unwrap_or_default().into_iter().filter_map(|mut object| {
        let rule = object.get_mut("rule")?.take();
        rule["expr"].as_array()?.iter().any(is_notrack).then(|| {
            let part = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", part("family"), part("table"), part("chain"))
        })
    });
    rules.collect::<BTreeSet<_>>().into_iter()
}

/// Reports whether an expression is `notrack`, or iptables' target for it, whose options nft does not show.
fn is_notrack(expression: &Value) -> bool {
    let target = expression["xt"]["name"].as_str();
    expression.get("notrack").is_some() || matches!(target, Some("CT" | "NOTRACK"))
}

/// Returns the number of connections that the kernel tracks, and the most that it can track; `None` if it does not say.
fn tracked() -> Option<(u64, u64)> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
        text.ok()?.trim().parse().ok()
    };
    Some((read("count")?, read("max")?))
}

/// Judges the room that the kernel has to track connections: past its limit it drops new ones, or lets them pass untracked.
fn crowded((count, most): (u64, u64)) -> Option<Finding> {
    // No limit is 0.
    (most > 0 && count.saturating_mul(100) >= most.saturating_mul(CROWDED_PERCENT)).then(|| {
        Finding::warning(
            format!("the kernel tracks {count} connections, of {most} at most"),
            "raise net.netfilter.nf_conntrack_max: a session that the kernel cannot track is cut when its window ends",
        )
    })
}

/// Returns the base chains of other tables, after Postern's, that may drop something.
fn dropping<'a>(ruleset: &'a [NfListObject<'static>]) -> impl Iterator<Item = &'a Chain<'static>> {
    let chains = ruleset
        .iter()
        .filter_map(|object| if let NfListObject::Chain(chain) = object { Some(chain) } else { None });
    chains.filter(|chain| {
        let is_posterns = chain.table == TABLE && chain.family == NfFamily::INet;
        let hooked = matches!(chain.hook, Some(NfHook::Input | NfHook::Forward));
        let later = chain.prio.is_some_and(|priority| priority >= TABLE_PRIORITY);
        !is_posterns
            && hooked
            && later
            && (chain.policy == Some(NfChainPolicy::Drop) || has_rules(ruleset, chain))
    })
}

/// Reports whether the chain has rules. Their effect may depend on other chains, so any of them may drop.
fn has_rules(ruleset: &[NfListObject<'static>], chain: &Chain<'static>) -> bool {
    let of = |rule: &Rule<'static>| {
        (rule.family, &rule.table, &rule.chain) == (chain.family, &chain.table, &chain.name)
    };
    ruleset.iter().any(|object| if let NfListObject::Rule(rule) = object { of(rule) } else { false })
}

fn describe(chain: &Chain<'_>) -> String {
    let family = serde_json::to_value(chain.family).unwrap_or_default();
    let policy =
        if chain.policy == Some(NfChainPolicy::Drop) { "policy drop" } else { "policy accept, with rules" };
    format!("the chain {} {} {} ({policy})", family.as_str().unwrap_or_default(), chain.table, chain.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_keep_connections_from_being_tracked_are_named() {
        let rule = |chain: &str, expression: &str| {
            format!(
                r#"{{"rule": {{"family": "inet", "table": "t", "chain": "{chain}", "handle": 2, "expr": [{{"counter": null}}, {expression}]}}}}"#
            )
        };
        let objects = [
            rule("a", r#"{"notrack": null}"#),
            rule("a", r#"{"notrack": null}"#),
            rule("b", r#"{"drop": null}"#),
            rule("c", r#"{"xt": {"type": "target", "name": "CT"}}"#),
            rule("d", r#"{"xt": {"type": "target", "name": "LOG"}}"#),
        ];
        let listed = format!(r#"{{"nftables": [{}]}}"#, objects.join(", "));
        assert_eq!(untracking(&listed).collect::<Vec<_>>(), ["inet t a", "inet t c"]);
        assert_eq!(untracking("no JSON").count(), 0);
    }

    #[test]
    fn a_kernel_that_can_soon_track_no_more_connections_is_named() {
        assert_eq!(crowded((79, 100)), None);
        assert!(crowded((80, 100)).is_some_and(|finding| finding.what.contains("80 connections, of 100")));
        assert_eq!(crowded((80, 0)), None, "no limit");
    }

    #[test]
    fn chains_of_others_that_may_drop_after_posterns_are_named() {
        let chain = |family: &str, table: &str, name: &str, hook: &str, priority: i32, policy: &str| {
            format!(
                r#"{{"chain": {{"family": "{family}", "table": "{table}", "name": "{name}", "handle": 1, "type": "filter", "hook": "{hook}", "prio": {priority}, "policy": "{policy}"}}}}"#
            )
        };
        let objects = [
            r#"{"metainfo": {"version": "1.0.6", "release_name": "x", "json_schema_version": 1}}"#.to_owned(),
            r#"{"of a later nft": {}}"#.to_owned(),
            chain("inet", "postern", "input", "input", -10, "accept"),
            chain("ip", "filter", "INPUT", "input", 0, "drop"),
            chain("ip", "filter", "OUTPUT", "output", 0, "drop"),
            chain("ip", "early", "in", "input", -300, "drop"),
            chain("inet", "firewalld", "filter_INPUT", "input", 10, "accept"),
            chain("inet", "empty", "input", "input", 10, "accept"),
            r#"{"rule": {"family": "inet", "table": "firewalld", "chain": "filter_INPUT", "handle": 2, "expr": [{"drop": null}]}}"#.to_owned(),
        ];
        let ruleset = parse(&format!(r#"{{"nftables": [{}]}}"#, objects.join(", "))).unwrap();
        let named: Vec<_> = dropping(&ruleset).map(describe).collect();
        assert_eq!(
            named,
            [
                "the chain ip filter INPUT (policy drop)",
                "the chain inet firewalld filter_INPUT (policy accept, with rules)"
            ]
        );
    }
}
