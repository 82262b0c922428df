//! `postern-broker authority roll`: an operator's steps to replace the root. [`postern_pki::authority::RollPhase`] has the course.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use postern_pki::Authority;
use postern_pki::authority::{PeopleOutcome, RollPhase, is_same_file};

use super::RollReport;
use super::command::{check_people_key, line, load, people_outcome};
use super::roll_report::WaitingParties;
use crate::clock::wall;
use crate::config::BrokerConfig;

/// The most names that a refusal or a status shows.
const MAX_SHOWN: usize = 20;

/// Begins to replace the root, and returns a text about it.
///
/// # Errors
/// The root or its key cannot be used, or a file cannot be written.
pub fn begin(config: &BrokerConfig, root_key: &Path, new_root_key: Option<&Path>) -> anyhow::Result<String> {
    let dir = config.authority_dir();
    if let Some(place) = new_root_key {
        for (key, other) in [("root_key", &config.root_key), ("people_key", &config.people_key)] {
            anyhow::ensure!(
                !is_same_file(place, other),
                "{} is the file of [authority] {key}; name another one with --new-root-key FILE",
                place.display()
            );
        }
    }
    let next = Authority::begin_roll(&dir, &config.trust_domain, root_key, new_root_key, wall())
        .context("cannot begin to replace the root")?;
    Ok(format!(
        "the next root {} is good until {:.0}; running brokers make it known to agents and people. Copy {} to the other brokers, wait \
         until `postern-broker authority roll status` names no agent on any of them, and then run `postern-broker authority roll switch`",
        next.serial,
        next.life.not_after,
        dir.join("roll.pem").display()
    ))
}

/// Describes the replacement of the root.
///
/// # Errors
/// The authority's files cannot be used.
pub fn status(config: &BrokerConfig) -> anyhow::Result<String> {
    let (authority, now) = (load(config)?, wall());
    let phase = authority.phase();
    let mut text = line("root", &authority.old_root(), now);
    if let Some(next) = authority.next_root() {
        text += &line("next root", &next, now);
    }
    text += match phase {
        RollPhase::Settled => "no root is being replaced\n",
        RollPhase::Begun => "the old root signs, and both are trusted\n",
        RollPhase::Switched => "the next root signs, and both are trusted\n",
    };
    if phase == RollPhase::Settled {
        return Ok(text);
    }
    // Writing into a string cannot fail.
    let _ = match RollReport::of(config).read(&authority, now) {
        Ok(waiting) => write!(text, "{}", in_words(&waiting)),
        Err(error) => writeln!(text, "agents: {error:#}"),
    };
    Ok(text)
}

/// Lets the next root sign, and returns a text about it. With `force`, agents that have not confirmed do not hinder it.
///
/// # Errors
/// An agent has not confirmed that it trusts the next root, no broker runs that says so, the next root's key cannot be used, or a file
/// cannot be written.
pub fn switch(
    config: &BrokerConfig,
    new_root_key: Option<&Path>,
    people_key: &Path,
    force: bool,
) -> anyhow::Result<String> {
    check_people_key(config, people_key)?;
    let authority = load(config)?;
    if authority.phase() == RollPhase::Begun && !force {
        let waiting = RollReport::of(config).read(&authority, wall()).context(FORCE_SWITCH)?;
        anyhow::ensure!(
            waiting.agents.is_empty(),
            "agents have not confirmed that they trust the next root: {}. Wait for them, end those that are gone with `postern agents \
             forget TARGET`, or add --force: an agent that has not learned the next root trusts it by the old one until the end of the \
             replacement",
            shown(&waiting.agents)
        );
    }
    let (dir, domain) = (config.authority_dir(), &config.trust_domain);
    let people = Authority::switch_root(&dir, domain, new_root_key, people_key, wall())
        .context("cannot let the next root sign")?;
    let mut text = format!(
        "the next root signs; a broker that runs on {} takes it up within seconds. {}. ",
        config.data_dir.display(),
        people_outcome(&people)
    );
    if matches!(people, PeopleOutcome::Offline(_)) {
        text += "Run this command again with --people-key and that key. ";
    }
    text += "Run it on the other brokers, issue new certificates to people, wait until `postern-broker authority roll status` names no agent \
             and no person on any broker, and then run `postern-broker authority roll finish` on each";
    Ok(text)
}

/// Ends the replacement: the old root is not trusted any more. Returns a text about it. With `force`, parties that need the old root
/// do not hinder it.
///
/// # Errors
/// The next root does not sign yet, a party needs the old root, no broker runs that says so, or a file cannot be written.
pub fn finish(config: &BrokerConfig, force: bool) -> anyhow::Result<String> {
    let authority = load(config)?;
    if authority.phase() == RollPhase::Switched && !force {
        let waiting = RollReport::of(config).read(&authority, wall()).context(FORCE_FINISH)?;
        anyhow::ensure!(
            waiting.agents.is_empty() && waiting.people.is_empty(),
            "certificates under the old root are in use. {}. Wait for the agents, or end those that are gone with `postern agents forget \
             TARGET`; issue new certificates to the people; or add --force: agents that are left must be enrolled again",
            in_words(&waiting).trim_end().replace('\n', ". ")
        );
    }
    let root = Authority::finish_roll(&config.authority_dir(), wall(), force)
        .context("cannot end the replacement of the root")?;
    Ok(format!(
        "the root is {}, good until {:.0}; the old root is not trusted any more. If {} exists, destroy it once every broker is done",
        root.serial,
        root.life.not_after,
        config.authority_dir().join("retired-root.key").display()
    ))
}

const FORCE_SWITCH: &str = "cannot tell whether every agent trusts the next root; start the broker, or add --force to switch all the same";
const FORCE_FINISH: &str = "cannot tell which agents and people need the old root; start the broker, or add --force to finish all the same";

fn in_words(waiting: &WaitingParties) -> String {
    let agents = match (waiting.agents.as_slice(), waiting.switched) {
        ([], false) => "every agent trusts the next root".to_owned(),
        ([], true) => "every agent has a certificate of the new intermediate".to_owned(),
        (agents, false) => format!("agents that have not confirmed the next root: {}", shown(agents)),
        (agents, true) => format!("agents with a certificate from before the switch: {}", shown(agents)),
    };
    let people = match waiting.people.as_slice() {
        [] => String::new(),
        people => format!("people with a certificate from before the switch: {}\n", shown(people)),
    };
    format!("{agents}\n{people}")
}

fn shown(names: &[String]) -> String {
    let more = names.len().saturating_sub(MAX_SHOWN);
    let first: Vec<&str> = names.iter().take(MAX_SHOWN).map(String::as_str).collect();
    let first = first.join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}
