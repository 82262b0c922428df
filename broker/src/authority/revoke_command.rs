//! `postern-broker authority revoke-intermediate`: what an operator does when the key of an intermediate was stolen.

use std::path::Path;

use anyhow::Context as _;
use postern_core::KeyHash;
use postern_pki::Authority;
use postern_pki::purpose::Purpose;

use super::command::{check_people_key, load};
use super::root_key::in_a_line;
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
    let signs_for_agents = authority.intermediate().key == key;
    // Unread, it could be the revoked one, or make way for another one that nothing has asked for.
    let people = authority.people().with_context(|| {
        let (key_file, copy) = (authority.people_key_file().display(), dir.join("people.pem"));
        format!(
            "cannot read the intermediate for people, so nothing is revoked; repair {key_file} and {}, or move both away and make another one \
             with `postern-broker authority renew --root-key FILE --replace-people`",
            copy.display()
        )
    })?;
    let signs_for_people = people.as_ref().is_some_and(|people| people.key == key);
    let known = authority.known_intermediate(key, now);
    if signs_for_agents || signs_for_people {
        let root_key = root_key.context(
            "this intermediate signs now, so that it must be replaced first; add --root-key FILE with the root's private key",
        )?;
        check_people_key(config, people_key)?;
        let failed = "cannot replace the intermediate";
        if signs_for_people {
            Authority::replace_people(&dir, domain, people_key, root_key, now).context(failed)?;
        } else if people.is_none() {
            // It signs for people as well.
            Authority::renew_people(&dir, domain, people_key, root_key, now).context(failed)?;
        }
        if signs_for_agents {
            Authority::renew(&dir, domain, root_key, now).context(failed)?;
        }
    }
    let is_news = Authority::revoke_intermediate(&dir, key).context("cannot revoke the intermediate")?;
    let parties = match known.map(|known| known.map(|known| known.purpose)) {
        Ok(Some(Some(Purpose::Agents))) => {
            "Agents renew their certificates within minutes, each by the key that the broker has recorded; no person is affected"
        }
        Ok(Some(Some(Purpose::People))) => {
            "Every person under it needs a new certificate from `postern-broker issue`"
        }
        Ok(Some(None)) => {
            "Agents renew their certificates within minutes, each by the key that the broker has recorded; every person under it needs a \
             new certificate from `postern-broker issue`"
        }
        Ok(None) => "It is none of this authority's own; another broker under the root may have it",
        // The list is for people alone, and must not hinder a revocation.
        Err(error) => &format!(
            "It is not one that signs now; whether it was replaced here is not known: {}",
            in_a_line(error)
        ),
    };
    let already = if is_news { "" } else { " already" };
    Ok(format!(
        "the intermediate {key} is revoked{already}; a broker that runs on {} refuses it within two seconds, and so does every broker on \
         its store. {parties}",
        config.data_dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::authority::an_authority;

    #[test]
    fn i6_while_the_intermediate_for_people_cannot_be_read_none_is_made_and_none_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let (config, root_key) = an_authority(dir.path());
        let authority = load(&config).unwrap();
        let (agents, people) = (authority.intermediate().key, authority.people().unwrap().unwrap().key);
        let whole = fs::read(&config.people_key).unwrap();
        fs::write(&config.people_key, "damaged").unwrap();
        for key in [agents, people] {
            let refused = revoke(&config, key, Some(&root_key), &config.people_key).unwrap_err();
            let refused = format!("{refused:#}");
            assert!(refused.contains("people.key") && refused.contains("--replace-people"), "{refused}");
        }
        let after = load(&config).unwrap();
        assert_eq!(after.intermediate(), authority.intermediate());
        assert_eq!((after.revoked().unwrap(), after.previous(wall()).unwrap()), (vec![], vec![]));
        let (text, warnings) = super::super::command::status(&config).unwrap();
        assert!(text.contains("intermediate for people: cannot be read") && warnings > 0, "{text}");
        fs::write(&config.people_key, whole).unwrap();
        revoke(&config, people, Some(&root_key), &config.people_key).unwrap();
        let after = load(&config).unwrap();
        assert!(after.people().unwrap().unwrap().key != people && after.intermediate().key == agents);
    }
}
