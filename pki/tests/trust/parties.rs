//! A broker, agents and clients of one authority, or of another.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::{Name, Role};
use postern_pki::tls::{ServerIdentity, server_config};
use postern_pki::{Authority, Credentials, KeyPair, SpiffeId, TrustDomain};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, SanType};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// The name that brokers serve under.
pub(crate) const NAME: &str = "broker.example.org";

/// Returns the time on the wall clock, against which rustls checks certificates.
pub(crate) fn now() -> Timestamp {
    postern_runtime::clock::wall()
}

/// An authority in a directory of its own.
pub(crate) struct Ca {
    pub(crate) authority: Authority,
    pub(crate) dir: TempDir,
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::made_at(now())
    }

    pub(crate) fn made_at(at: Timestamp) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { authority: Authority::init(dir.path(), &TrustDomain::default(), at).unwrap(), dir }
    }

    /// Issues credentials of an identity at `issued_at`.
    pub(crate) fn issue(
        &self,
        identity: &SpiffeId,
        issued_at: Timestamp,
        valid_for: Duration,
    ) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let issued = self.authority.issue(&key.csr().unwrap(), identity, valid_for, issued_at).unwrap();
        Credentials::new(key, issued.chain, self.authority.roots()).unwrap()
    }

    pub(crate) fn agent(&self) -> Credentials {
        self.issue(&agent(), now(), HOUR)
    }

    pub(crate) fn principal(&self) -> Credentials {
        self.issue(&alice(), now(), HOUR)
    }

    /// Returns the configuration of a broker.
    pub(crate) fn broker(&self) -> Arc<ServerConfig> {
        self.broker_issued_at(now())
    }

    /// Returns the configuration of a broker whose certificate is valid for an hour from then on.
    pub(crate) fn broker_issued_at(&self, at: Timestamp) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let names = [NAME.to_owned(), "192.0.2.1".to_owned()];
        let issued = self.authority.issue_server(&key.csr().unwrap(), &names, HOUR, at).unwrap();
        self.serving(Credentials::new(key, issued.chain, self.authority.roots()).unwrap())
    }

    /// Returns the configuration of a server with a certificate that this authority would never make: it has these ids,
    /// and a broker's name and usages besides.
    pub(crate) fn forged(&self, ids: &[&str]) -> Arc<ServerConfig> {
        let pem = |name: &str| fs::read_to_string(self.dir.path().join(name)).unwrap();
        let authority = CertificateDer::from_pem_slice(pem("intermediate.pem").as_bytes()).unwrap();
        let signing = rcgen::KeyPair::from_pem(&pem("intermediate.key")).unwrap();
        let issuer = Issuer::from_ca_cert_der(&authority, signing).unwrap();
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        params.subject_alt_names.extend(ids.iter().map(|id| SanType::URI((*id).try_into().unwrap())));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let chain = vec![leaf.der().clone(), authority, self.authority.roots().remove(0).into()];
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// Returns the configuration of a server with these credentials.
    pub(crate) fn serving(&self, credentials: Credentials) -> Arc<ServerConfig> {
        server_config(&ServerIdentity::new(credentials).unwrap()).unwrap()
    }
}

pub(crate) fn agent() -> SpiffeId {
    SpiffeId::Agent("host:vm-1".parse().unwrap())
}

pub(crate) fn alice() -> SpiffeId {
    SpiffeId::Principal { role: Role::Requester, name: Name::new("alice").unwrap() }
}

/// The outcome of a handshake.
pub(crate) struct Handshake {
    /// The identity that the server sees; `None` for a client without a certificate.
    pub(crate) peer: Option<SpiffeId>,
}

/// Connects, and sends a byte each way: in TLS 1.3 a client learns only then whether the server accepted it.
pub(crate) async fn handshake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: &str,
) -> Result<Handshake, String> {
    let (near, far) = tokio::io::duplex(16 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let serve = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        stream.read_u8().await?;
        Ok::<_, std::io::Error>(leaf)
    };
    let connect = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.read_u8().await?;
        stream.write_all(b"x").await?;
        stream.flush().await
    };
    let (served, connected) = tokio::join!(serve, connect);
    connected.map_err(|error| error.to_string())?;
    let leaf = served.map_err(|error| error.to_string())?;
    let peer = leaf.map(|leaf| SpiffeId::of_certificate(&leaf, &TrustDomain::default()).unwrap());
    Ok(Handshake { peer })
}
