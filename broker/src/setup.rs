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

/// Makes the authority, the store and the first administrator's identity.
///
/// # Errors
/// It was done before, or a file cannot be written.
pub async fn init(config: &BrokerConfig, administrator: Name) -> anyhow::Result<()> {
    check_people_key(config, &config.people_key)?;
    let dir = &config.data_dir;
    let place = private_place(dir).context("cannot keep keys in data_dir")?;
    files::make_private_dir_all(&place).with_context(|| format!("cannot make {}", dir.display()))?;
    let now = wall();
    let authority =
        Authority::init_with(&config.authority_dir(), &config.people_key, &config.trust_domain, now)
            .context("cannot set up the authority")?;
    let (store, coordination) = open_store(config).await.context("cannot make the store")?;
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
    async fn i9_the_first_identity_is_written_after_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let file = dir.path().join("broker.toml");
        let config =
            format!("data_dir = {data:?}\nlisten = \"127.0.0.1:7443\"\nnames = [\"broker.example.org\"]\n");
        fs::write(&file, config).unwrap();
        let config = BrokerConfig::load(&file).unwrap();
        // A file in the place of its directory: the identity cannot be written.
        files::make_private_dir_all(&data).unwrap();
        fs::write(config.admin_dir(), "").unwrap();
        let failed = init(&config, name("root")).await.unwrap_err();
        assert!(failed.to_string().contains("the administrator's identity"), "{failed:#}");
        let (store, _) = open_store(&config).await.unwrap();
        let known = store.issued_principals().await.unwrap();
        assert_eq!(known.len(), 1, "a certificate without a record could be used without one");
    }
}
