//! `postern-broker authority revoke-intermediate`: what an operator does when the key of an intermediate was stolen.

use std::path::Path;

use anyhow::Context as _;
use postern_core::KeyHash;
use postern_pki::Authority;
use postern_pki::purpose::Purpose;

use super::command::{check_people_key, load};
use crate::clock::wall;
use crate::config::BrokerConfig;

/// Revokes an intermediate, and returns a text about it. One that signs now is replaced first, with the root's key.
///
/// # Errors
/// The intermediate signs now and no root key is given, a key cannot be used, or a file cannot be written. A repeated call completes
/// an interrupted one.
pub fn revoke(
    config: &BrokerConfig,
    key: KeyHash,
    root_key: Option<&Path>,
    people_key: &Path,
) -> anyhow::Result<String> {
    let (authority, now) = (load(config)?, wall());
    let (dir, domain) = (config.authority_dir(), &config.trust_domain);
    let known = authority.known_intermediate(key, now);
    let signs_for_agents = authority.intermediate().key == key;
    let signs_for_people = authority.people().is_some_and(|people| people.key == key);
    if signs_for_agents || signs_for_people {
        let root_key = root_key.context(
            "this intermediate signs now, so that it must be replaced first; add --root-key FILE with the root's private key",
        )?;
        check_people_key(config, people_key)?;
        let failed = "cannot replace the intermediate";
        if signs_for_people {
            Authority::replace_people(&dir, domain, people_key, root_key, now).context(failed)?;
        } else if authority.people().is_none() {
            // It signs for people as well.
            Authority::renew_people(&dir, domain, people_key, root_key, now).context(failed)?;
        }
        if signs_for_agents {
            Authority::renew(&dir, domain, root_key, now).context(failed)?;
        }
    }
    let is_news = Authority::revoke_intermediate(&dir, key).context("cannot revoke the intermediate")?;
    let parties = match known.as_ref().map(|known| known.purpose) {
        Some(Some(Purpose::Agents)) => {
            "Agents renew their certificates within minutes, each by the key that the broker has recorded; no person is affected"
        }
        Some(Some(Purpose::People)) => {
            "Every person under it needs a new certificate from `postern-broker issue`"
        }
        Some(None) => {
            "Agents renew their certificates within minutes, each by the key that the broker has recorded; every person under it needs a \
             new certificate from `postern-broker issue`"
        }
        None => "It is none of this authority's own; another broker under the root may have it",
    };
    let already = if is_news { "" } else { " already" };
    Ok(format!(
        "the intermediate {key} is revoked{already}; a broker that runs on {} refuses it within two seconds, and so does every broker on \
         its store. {parties}",
        config.data_dir.display()
    ))
}
