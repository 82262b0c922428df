//! `postern-broker authority`: an operator's commands for the authority, with the broker running or not.

use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use postern_pki::Authority;
use postern_pki::authority::{CaCertificate, PeopleOutcome, RollPhase, is_same_file};

use super::root_key::in_a_line;
use super::{RootKey, Standing, humane};
use crate::clock::wall;
use crate::config::BrokerConfig;

/// Makes new intermediates with the root's key, and returns a text about them. The old ones may be missing. The one for people stays if
/// its key is not in `people_key`, unless `replace_people` is set.
///
/// # Errors
/// The root or its key cannot be used, or a file cannot be written.
pub fn renew(
    config: &BrokerConfig,
    root_key: &Path,
    people_key: &Path,
    replace_people: bool,
) -> anyhow::Result<String> {
    let (dir, domain, now) = (config.authority_dir(), &config.trust_domain, wall());
    check_people_key(config, people_key)?;
    // The one for people first: as soon as the one for agents is marked, only that one signs for people.
    let people = if replace_people {
        Authority::replace_people(&dir, domain, people_key, root_key, now)
            .map(|made| PeopleOutcome::Renewed(Box::new(made)))
    } else {
        Authority::renew_people(&dir, domain, people_key, root_key, now)
    };
    let people = people.context("cannot renew the authority's intermediate certificate for people")?;
    let agents = Authority::renew(&dir, domain, root_key, now)
        .context("cannot renew the authority's intermediate certificate")?;
    Ok(format!(
        "the intermediate {} for agents and brokers is good until {:.0}; a broker that runs on {} takes it up within seconds. {}",
        agents.serial,
        agents.life.not_after,
        config.data_dir.display(),
        people_outcome(&people)
    ))
}

/// Describes the outcome of a step for the intermediate for people.
pub(super) fn people_outcome(outcome: &PeopleOutcome) -> String {
    match outcome {
        PeopleOutcome::Renewed(made) => {
            format!("The intermediate {} for people is good until {:.0}", made.serial, made.life.not_after)
        }
        PeopleOutcome::Kept => "The intermediate for people stays as it is".to_owned(),
        PeopleOutcome::Offline(file) => format!(
            "The intermediate for people stays as it is, because its key is not in {}; name its file with --people-key",
            file.display()
        ),
    }
}

/// Describes the authority, and returns the description with the number of warnings in it.
///
/// # Errors
/// The authority's files cannot be used.
pub fn status(config: &BrokerConfig) -> anyhow::Result<(String, usize)> {
    let (authority, now) = (load(config)?, wall());
    let standing = Standing::of(config);
    let mut text = line("root", &authority.root(), now);
    if let (RollPhase::Begun, Some(next)) = (authority.phase(), authority.next_root()) {
        text += &line("next root", &next, now);
    }
    if authority.phase() == RollPhase::Switched {
        text += &line("old root, still trusted", &authority.old_root(), now);
    }
    let (agents, people) = (authority.intermediate(), authority.people().map_err(in_a_line));
    let revoked = authority.revoked()?;
    let mut add = |line: String| text += &line;
    let of_state = |role: &str, state: &str, found: &CaCertificate| {
        let state = if revoked.contains(&found.key) { ", revoked" } else { state };
        line(&format!("{role}{state}"), found, now)
    };
    add(of_state("intermediate", "", &agents));
    let signs = match (agents.purpose, &people) {
        (None, Ok(None)) => {
            "for agents, brokers and people: `postern-broker authority renew --root-key FILE` makes two of it".to_owned()
        }
        (None, Ok(Some(_)) | Err(_)) => "for agents and brokers; it is not marked, so that its key can also make a certificate of a person: \
                            `postern-broker authority renew --root-key FILE` marks it"
            .to_owned(),
        (Some(purpose), _) => format!("for {}", purpose.parties()),
    };
    add(format!("  it signs {signs}\n"));
    if let Err(reason) = &people {
        add(format!("intermediate for people: cannot be read: {reason}\n"));
    }
    if let Ok(Some(people)) = people {
        add(of_state("intermediate for people", "", &people));
        let file = authority.people_key_file().display().to_string();
        let is_there = authority.people_key_file().exists();
        add(format!(
            "  its key is {}\n",
            if is_there { format!("in {file}") } else { format!("offline (there is no {file})") }
        ));
    }
    for previous in authority.previous(now)? {
        add(of_state("replaced", ", still trusted", &previous));
    }
    for key in &revoked {
        add(format!("revoked: {key}\n"));
    }
    let file = config.root_key.display();
    let root_key = match standing.root_key(&authority) {
        RootKey::AtHand => format!("at hand in {file}; the broker renews the intermediates by itself"),
        RootKey::Offline => format!("offline (there is no {file})"),
        RootKey::Unusable { reason } => format!("not usable: {reason}"),
    };
    add(format!("root key: {root_key}\n"));
    let warnings = standing.look(&authority, now);
    for warning in &warnings {
        add(format!("warning: {warning}\n"));
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

/// Checks that the file for the key that signs for people is not the place of the root's key, which may be offline.
pub(crate) fn check_people_key(config: &BrokerConfig, people_key: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        !is_same_file(people_key, &config.root_key),
        "{} is the place of the root's private key; name another file with --people-key FILE or in [authority] people_key",
        people_key.display()
    );
    Ok(())
}

/// Reads the authority of a broker.
pub(super) fn load(config: &BrokerConfig) -> anyhow::Result<Authority> {
    let authority = Authority::load(&config.authority_dir(), &config.trust_domain)
        .with_context(|| format!("cannot use the authority in {}", config.authority_dir().display()))?;
    Ok(authority.with_people_key(&config.people_key))
}

/// Describes one of the authority's certificates in two lines.
pub(super) fn line(role: &str, certificate: &CaCertificate, now: Timestamp) -> String {
    let CaCertificate { subject, serial, life, key, .. } = certificate;
    let left = life.not_after.duration_since(now);
    let left = match left.is_positive() {
        true if life.is_early(now) => "not valid yet".to_owned(),
        true => format!("{} left", humane(left)),
        false => "ended".to_owned(),
    };
    format!(
        "{role}: {subject}, serial {serial}, {:.0} to {:.0}, {left}\n  key {key}\n",
        life.not_before, life.not_after
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{revoke_command, roll_command};
    use super::*;
    use crate::testing::authority::an_authority;

    #[test]
    fn a_replaced_intermediate_that_is_revoked_is_not_shown_as_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let (config, root_key) = an_authority(dir.path());
        let key = load(&config).unwrap().intermediate().key;
        renew(&config, &root_key, &config.people_key, false).unwrap();
        assert_eq!(status(&config).unwrap().0.matches("replaced, still trusted: ").count(), 2);
        revoke_command::revoke(&config, key, None, &config.people_key).unwrap();
        let text = status(&config).unwrap().0;
        assert_eq!(text.matches("replaced, still trusted: ").count(), 1, "{text}");
        assert_eq!(text.matches("replaced, revoked: ").count(), 1, "{text}");
    }

    #[test]
    fn the_place_of_a_key_that_is_offline_takes_no_other_key() {
        let dir = tempfile::tempdir().unwrap();
        let (config, root_key) = an_authority(dir.path());
        let elsewhere = dir.path().join("people.key");
        fs::rename(&config.people_key, &elsewhere).unwrap();
        let place_of_root = config.root_key.clone();
        let begun = roll_command::begin(&config, &root_key, Some(&config.people_key));
        let refused = [
            renew(&config, &root_key, &place_of_root, true).err(),
            roll_command::begin(&config, &root_key, Some(&place_of_root)).err(),
            begun.err(),
            roll_command::switch(&config, None, &place_of_root, true).err(),
        ];
        assert!(refused.iter().all(Option::is_some), "{refused:?}");
        assert!(!place_of_root.exists() && !config.people_key.exists());
    }
}
