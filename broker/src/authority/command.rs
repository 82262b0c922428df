//! `postern-broker authority`: an operator's commands for the authority, with the broker running or not.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use postern_pki::{Authority, authority::CaCertificate};

use super::{RootKey, Standing, humane};
use crate::clock::wall;
use crate::config::BrokerConfig;

/// Makes a new intermediate with the root's key, and returns a text about it. The old one may be missing.
///
/// # Errors
/// The root or its key cannot be used, or a file cannot be written.
pub fn renew(config: &BrokerConfig, root_key: &Path) -> anyhow::Result<String> {
    let intermediate = Authority::renew(&config.authority_dir(), &config.trust_domain, root_key, wall())
        .context("cannot renew the authority's intermediate certificate")?;
    Ok(format!(
        "the intermediate {} is good until {:.0}; a broker that runs on {} takes it up within seconds",
        intermediate.serial,
        intermediate.life.not_after,
        config.data_dir.display()
    ))
}

/// Describes the authority, and returns the description with the number of warnings in it.
///
/// # Errors
/// The authority's files cannot be used.
pub fn status(config: &BrokerConfig) -> anyhow::Result<(String, usize)> {
    let (authority, now) = (load(config)?, wall());
    let standing = Standing::of(config);
    let mut text = line("root", &authority.root(), now);
    text += &line("intermediate", &authority.intermediate(), now);
    for previous in authority.previous(now)? {
        text += &line("replaced, still trusted", &previous, now);
    }
    let file = config.root_key.display();
    let root_key = match standing.root_key(&authority) {
        RootKey::AtHand => format!("at hand in {file}; the broker renews the intermediate by itself"),
        RootKey::Offline => format!("offline (there is no {file})"),
        RootKey::Unusable { reason } => format!("not usable: {reason}"),
    };
    // Writing into a string cannot fail.
    let _ = writeln!(text, "root key: {root_key}");
    let warnings = standing.look(&authority, now);
    for warning in &warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    Ok((text, warnings.len()))
}

/// Returns the warnings about the authority; none before `init` has made it.
///
/// # Errors
/// The authority's files cannot be used.
pub fn warnings(config: &BrokerConfig) -> anyhow::Result<Vec<String>> {
    if !config.authority_dir().exists() {
        return Ok(Vec::new());
    }
    Ok(Standing::of(config).look(&load(config)?, wall()))
}

fn load(config: &BrokerConfig) -> anyhow::Result<Authority> {
    Authority::load(&config.authority_dir(), &config.trust_domain)
        .with_context(|| format!("cannot use the authority in {}", config.authority_dir().display()))
}

fn line(role: &str, certificate: &CaCertificate, now: Timestamp) -> String {
    let CaCertificate { subject, serial, life, .. } = certificate;
    let left = life.not_after.duration_since(now);
    let left = match left.is_positive() {
        true if life.is_early(now) => "not valid yet".to_owned(),
        true => format!("{} left", humane(left)),
        false => "ended".to_owned(),
    };
    format!("{role}: {subject}, serial {serial}, {:.0} to {:.0}, {left}\n", life.not_before, life.not_after)
}
