//! Setting up: `init` makes the authority and the store once, and `issue` a certificate for each client.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::{Name, Principal, Role};
use postern_pki::{Authority, Credentials, KeyPair, SpiffeId};
use postern_runtime::files;
use postern_runtime::private_place::private_place;

use crate::clock::wall;
use crate::config::BrokerConfig;
use crate::run::open_store;
use crate::store::Transaction;

/// The life of the first administrator's certificate.
const ADMIN_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// The longest life of a client's certificate.
const MAX_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Makes the authority, the store and the first administrator's identity.
///
/// # Errors
/// It was done before, or a file cannot be written.
pub async fn init(config: &BrokerConfig, administrator: Name) -> anyhow::Result<()> {
    let dir = &config.data_dir;
    private_place(dir).context("cannot keep keys in data_dir")?;
    files::make_private_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let now = wall();
    let authority = Authority::init(&config.authority_dir(), &config.trust_domain, now)
        .context("cannot set up the authority")?;
    let (store, coordination) = open_store(config).await.context("cannot make the store")?;
    let principal = Principal::local(Role::Administrator, administrator.clone());
    sign(&authority, Role::Administrator, administrator, ADMIN_LIFETIME, now)?
        .save(&config.admin_dir())
        .context("cannot write the administrator's identity")?;
    let event = AuditEvent::done(now, "broker", "broker.initialised").with("administrator", &principal);
    store.commit(Transaction::default().audit(event)).await.context("cannot write the first audit record")?;
    coordination.leave().await.context("cannot leave the store")?;
    Ok(())
}

/// Makes the client certificate of a principal in `out`, and returns its end. It needs the authority's files, and no running broker.
///
/// # Errors
/// A lifetime past a year, an identity that is there already, a directory that others can write, or a file that cannot be read or written.
pub fn issue(
    config: &BrokerConfig,
    role: Role,
    name: Name,
    lifetime: Duration,
    out: &Path,
) -> anyhow::Result<Timestamp> {
    anyhow::ensure!(
        !lifetime.is_zero() && lifetime <= MAX_LIFETIME,
        "--valid-for is out of range; use at most 365d"
    );
    anyhow::ensure!(
        !out.join("key.pem").exists(),
        "{} has an identity already; name another directory",
        out.display()
    );
    let place = private_place(out).context("cannot write a key to --out")?;
    let now = wall();
    let authority = Authority::load(&config.authority_dir(), &config.trust_domain)?;
    let credentials = sign(&authority, role, name, lifetime, now)?;
    credentials.save(&place)?;
    Ok(credentials.not_after())
}

fn sign(
    authority: &Authority,
    role: Role,
    name: Name,
    lifetime: Duration,
    now: Timestamp,
) -> anyhow::Result<Credentials> {
    let key = KeyPair::generate()?;
    let issued = authority.issue(&key.csr()?, &SpiffeId::Principal { role, name }, lifetime, now)?;
    Ok(Credentials::new(key, issued.chain, authority.roots())?)
}
