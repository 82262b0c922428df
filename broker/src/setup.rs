//! Setting up: `init` makes the authority and the store once, and `issue` a certificate for each client.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::{CertificateSerial, Name, Principal, Role};
use postern_pki::{Authority, CertificateFacts, Credentials, KeyPair, SpiffeId};
use postern_runtime::files;
use postern_runtime::private_place::private_place;
use postern_store::{IssuedCertificate, IssuedPrincipal};

use crate::authority::command::check_people_key;
use crate::clock::wall;
use crate::config::BrokerConfig;
use crate::principals::{IssuedEntry, Journal, with_issued};
use crate::run::open_store;

/// The life of the first administrator's certificate.
const ADMIN_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// The longest life of a client's certificate.
const MAX_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Makes the authority, the store and the first administrator's identity. A call that failed or was interrupted before the authority
/// was whole is completed by the next one.
///
/// # Errors
/// It was done before, the store cannot be opened, or a file cannot be written.
pub async fn init(config: &BrokerConfig, administrator: Name) -> anyhow::Result<()> {
    check_people_key(config, &config.people_key)?;
    let dir = &config.data_dir;
    let place = private_place(dir).context("cannot keep keys in data_dir")?;
    files::make_private_dir_all(&place).with_context(|| format!("cannot make {}", dir.display()))?;
    let (now, authority_dir) = (wall(), config.authority_dir());
    let failed = "cannot set up the authority";
    Authority::check_init(&authority_dir, &config.people_key).context(failed)?;
    anyhow::ensure!(
        !Credentials::exist(&config.admin_dir()),
        "{} has an identity already; move it away first if the administrator needs a new one",
        config.admin_dir().display()
    );
    // The store first: one that cannot be reached leaves no authority behind.
    files::make_private_dir(&authority_dir)
        .with_context(|| format!("cannot make {}", authority_dir.display()))?;
    let (store, coordination) = open_store(config).await.context("cannot make the store")?;
    let authority = Authority::init_with(&authority_dir, &config.people_key, &config.trust_domain, now)
        .context(failed)?;
    let principal = Principal::local(Role::Administrator, administrator.clone());
    let (credentials, entry) = sign(&authority, &principal, administrator, ADMIN_LIFETIME, now)?;
    let event = AuditEvent::done(now, "broker", "broker.initialised")
        .with("administrator", &principal)
        .with("serial", &entry.certificate.serial)
        .with("not_after", entry.certificate.not_after);
    // Its key was made a moment ago: no record can have its certificate.
    let changes = with_issued(&store, &entry).await?.unwrap_or_default();
    store.commit(changes.audit(event)).await.context("cannot write the first audit record")?;
    let known = store.issued_principals().await.context("cannot read the principals")?;
    let known: Vec<IssuedPrincipal> = known.into_iter().map(|principal| principal.record).collect();
    Journal::of(dir).write_known(&known)?;
    // Last: an identity without a record could be used without one.
    credentials.save(&config.admin_dir()).context("cannot write the administrator's identity")?;
    coordination.leave().await.context("cannot leave the store")?;
    Ok(())
}

/// A client certificate to make.
#[derive(Debug)]
pub struct IssueCommand<'a> {
    /// The role.
    pub role: Role,
    /// The name of the principal.
    pub name: Name,
    /// The life, as far as the intermediate's own allows.
    pub lifetime: Duration,
    /// The directory for the identity.
    pub out: &'a Path,
    /// The file with the key of the intermediate for people.
    pub people_key: &'a Path,
    /// Lets the principal have the certificate although it has one in another role.
    pub allow_other_role: bool,
}

/// Makes the client certificate of a principal, and returns its serial number and its end. It needs the authority's files, with the
/// key of the intermediate for people, and no running broker: it leaves a record of the certificate in the data directory, which a broker takes up.
///
/// # Errors
/// A lifetime past a year, a name that was issued in another role, an identity that is there already, a directory that others can write,
/// or a file that cannot be read or written.
pub fn issue(
    config: &BrokerConfig,
    asked: IssueCommand<'_>,
) -> anyhow::Result<(CertificateSerial, Timestamp)> {
    let IssueCommand { role, name, lifetime, out, people_key, allow_other_role } = asked;
    anyhow::ensure!(
        !lifetime.is_zero() && lifetime <= MAX_LIFETIME,
        "--valid-for is out of range; use at most 365d"
    );
    anyhow::ensure!(
        !Credentials::exist(out),
        "{} has an identity already; name another directory",
        out.display()
    );
    let place = private_place(out).context("cannot write a key to --out")?;
    let now = wall();
    let authority =
        Authority::load(&config.authority_dir(), &config.trust_domain)?.with_people_key(people_key);
    let (principal, journal) = (Principal::local(role, name.clone()), Journal::of(&config.data_dir));
    let lock = journal.lock()?;
    let others = journal.other_roles(principal.key(), role)?;
    if let (Some(other), false) = (others.first(), allow_other_role) {
        anyhow::bail!(
            "{name} has a certificate as {other}, and one name is one principal in every role: it would share its grants with \
             {name} as {role}; use another name, or --allow-other-role if both are the same person"
        );
    }
    let (credentials, entry) = sign(&authority, &principal, name, lifetime, now)?;
    // Before the identity: a certificate without a record could be used without one.
    journal.leave(&entry)?;
    drop(lock);
    credentials.save(&place)?;
    Ok((entry.certificate.serial, entry.certificate.not_after))
}

/// Signs a certificate for a principal of this name, and returns it with its entry in the journal.
fn sign(
    authority: &Authority,
    principal: &Principal,
    name: Name,
    lifetime: Duration,
    now: Timestamp,
) -> anyhow::Result<(Credentials, IssuedEntry)> {
    let (key, id) = (KeyPair::generate()?, SpiffeId::Principal { role: principal.role(), name });
    let issued = authority.issue(&key.csr()?, &id, lifetime, now)?;
    let leaf = issued.chain.first().context("the authority has signed no certificate")?;
    let CertificateFacts { serial, issued_at, not_after } = CertificateFacts::read(leaf)?;
    let certificate = IssuedCertificate { serial, issued_at, not_after };
    let entry = IssuedEntry { principal: principal.clone(), certificate };
    Ok((Credentials::new(key, issued.chain, authority.roots())?, entry))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::builders::name;

    #[tokio::test]
    async fn a_failed_init_is_completed_by_the_next_one_and_one_that_was_done_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let file = dir.path().join("broker.toml");
        let config =
            format!("data_dir = {data:?}\nlisten = \"127.0.0.1:7443\"\nnames = [\"broker.example.org\"]\n");
        fs::write(&file, config).unwrap();
        let config = BrokerConfig::load(&file).unwrap();
        // A directory in the place of the database: the store cannot be opened.
        fs::create_dir_all(config.store_path()).unwrap();
        let failed = init(&config, name("root")).await.unwrap_err();
        assert!(failed.to_string().contains("cannot make the store"), "{failed:#}");
        assert!(!config.root_key.exists(), "no authority without a store");
        fs::remove_dir(config.store_path()).unwrap();
        // Killed after the root's key and its certificate.
        let other = dir.path().join("other");
        Authority::init(&other, &config.trust_domain, wall()).unwrap();
        for made in ["root.key", "root.pem"] {
            fs::copy(other.join(made), config.authority_dir().join(made)).unwrap();
        }
        init(&config, name("root")).await.unwrap();
        let root_key = fs::read(&config.root_key).unwrap();
        assert_eq!(root_key, fs::read(other.join("root.key")).unwrap());
        Credentials::load(&config.admin_dir()).unwrap();
        let refused = format!("{:#}", init(&config, name("root")).await.unwrap_err());
        assert!(refused.contains("set up before") && refused.contains("postern-broker issue"), "{refused}");
        assert_eq!(fs::read(&config.root_key).unwrap(), root_key);
    }

    #[tokio::test]
    async fn i9_the_first_identity_is_written_after_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let file = dir.path().join("broker.toml");
        let config =
            format!("data_dir = {data:?}\nlisten = \"127.0.0.1:7443\"\nnames = [\"broker.example.org\"]\n");
        fs::write(&file, config).unwrap();
        let config = BrokerConfig::load(&file).unwrap();
        // A directory in the place of one of its files: the identity cannot be written.
        fs::create_dir_all(config.admin_dir().join("roots.pem")).unwrap();
        let failed = init(&config, name("root")).await.unwrap_err();
        assert!(failed.to_string().contains("the administrator's identity"), "{failed:#}");
        let (store, _) = open_store(&config).await.unwrap();
        let known = store.issued_principals().await.unwrap();
        assert_eq!(known.len(), 1, "a certificate without a record could be used without one");
    }
}
