//! TLS configurations: 1.3 only, HTTP/2, and certificates of Postern's own authority. A client checks the broker's SPIFFE
//! id besides its name.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    ServerConfig, SignatureScheme, SupportedProtocolVersion,
};

use crate::credentials::Credentials;
use crate::identity::{SpiffeId, TrustDomain, not_after, trust_domain_of};
use crate::renewal::GRACE;
use crate::{Fingerprint, PkiError, purpose, vouching};

const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
const ALPN: &[u8] = b"h2";

/// The identity with which a broker serves, and the roots that it trusts; the broker can replace both while it serves.
#[derive(Clone)]
pub struct ServerIdentity {
    current: Arc<ServedIdentity>,
}

struct ServedIdentity {
    served: RwLock<Served>,
    /// The names of the roots, as the broker tells them to clients. Roots that follow each other have one name.
    hints: Vec<DistinguishedName>,
    domain: TrustDomain,
}

/// What the next handshake uses.
struct Served {
    certified: Arc<CertifiedKey>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl ServerIdentity {
    /// Makes an identity of credentials.
    ///
    /// # Errors
    /// The key cannot be used, or the certificate names no identity.
    pub fn new(credentials: Credentials) -> Result<Self, PkiError> {
        let domain =
            credentials.trust_domain().map_err(|error| PkiError::malformed("the certificate", error))?;
        let served = Served::of(&credentials)?;
        let hints = served.clients.root_hint_subjects().to_vec();
        Ok(Self { current: Arc::new(ServedIdentity { served: RwLock::new(served), hints, domain }) })
    }

    /// Replaces the credentials and the roots from the next handshake on.
    ///
    /// # Errors
    /// The key or a root cannot be used; nothing changes.
    pub fn set(&self, credentials: &Credentials) -> Result<(), PkiError> {
        let served = Served::of(credentials)?;
        *self.current.served.write().unwrap_or_else(PoisonError::into_inner) = served;
        Ok(())
    }
}

impl Served {
    fn of(credentials: &Credentials) -> Result<Self, PkiError> {
        let roots = Arc::new(root_store(credentials.tls_roots())?);
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| PkiError::malformed("the list of roots", error))?;
        Ok(Self { certified: certified(credentials)?, clients })
    }
}

impl ServedIdentity {
    fn clients(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner).clients)
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerIdentity(..)")
    }
}

impl fmt::Debug for ServedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServedIdentity(..)")
    }
}

impl ResolvesServerCert for ServedIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner).certified))
    }
}

/// Returns the broker's configuration. A client may have no certificate (before it has enrolled), but a certificate that it
/// shows must be valid, and of an intermediate for its party. An agent's may have ended within [`GRACE`]: the broker must check its
/// end, because such a certificate is good for its renewal and nothing else. The broker keeps no sessions for resumption: an idle
/// connection should cost little.
///
/// # Errors
/// The configuration cannot be built.
pub fn server_config(identity: &ServerIdentity) -> Result<Arc<ServerConfig>, PkiError> {
    let verifier = Arc::new(ClientVerifier { identity: Arc::clone(&identity.current) });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(&identity.current) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Returns the configuration of an agent or a command, which shows its own certificate and trusts a broker of its own trust
/// domain.
///
/// # Errors
/// The credentials cannot be used.
pub fn client_config(credentials: &Credentials) -> Result<Arc<ClientConfig>, PkiError> {
    client_config_learning(credentials, &Arc::default())
}

/// Returns the configuration that [`client_config`] returns. Handshakes with it report the roots of the broker.
///
/// # Errors
/// The credentials cannot be used.
pub fn client_config_learning(
    credentials: &Credentials,
    learned: &Arc<LearnedRoots>,
) -> Result<Arc<ClientConfig>, PkiError> {
    let domain = credentials.trust_domain().map_err(|error| PkiError::malformed("the certificate", error))?;
    let inner = webpki(root_store(credentials.tls_roots())?)?;
    let (roots, learned) = (credentials.roots().to_vec(), Arc::clone(learned));
    let verifier = BrokerVerifier { inner, domain, roots, learned };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(credentials.tls_chain(), credentials.tls_key())?;
    Ok(with_http2(config))
}

/// The roots that a client should trust after a handshake, if they are not those that it trusts already.
#[derive(Debug, Default)]
pub struct LearnedRoots(Mutex<Option<Vec<Vec<u8>>>>);

impl LearnedRoots {
    /// Returns the roots (DER) that the newest handshake brought, once.
    pub fn take(&self) -> Option<Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, roots: Option<Vec<Vec<u8>>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = roots;
    }
}

/// Returns the configuration of an agent that has no certificate yet, and trusts a chain to the root with this fingerprint.
///
/// # Errors
/// The configuration cannot be built.
pub fn pinned_client_config(fingerprint: Fingerprint) -> Result<Arc<ClientConfig>, PkiError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier { fingerprint }))
        .with_no_client_auth();
    Ok(with_http2(config))
}

fn with_http2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// Verifies that a client's certificate, with the chain behind it, leads to one of these roots at `at`.
pub(crate) fn verify_client(
    chain: &[CertificateDer<'_>],
    roots: &[Vec<u8>],
    at: Timestamp,
) -> Result<(), PkiError> {
    let roots = roots.iter().cloned().map(CertificateDer::from).collect();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(root_store(roots)?), provider())
        .build()
        .map_err(|error| PkiError::malformed("the list of roots", error))?;
    let (leaf, intermediates) =
        chain.split_first().ok_or_else(|| PkiError::malformed("the certificate chain", "it is empty"))?;
    let seconds = u64::try_from(at.as_second()).unwrap_or_default();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    verifier.verify_client_cert(leaf, intermediates, at)?;
    Ok(check_purpose(leaf, intermediates)?)
}

/// The check of a client's certificate: the usual one, and that its intermediate may sign for the client. An agent whose
/// certificate ended within the grace is admitted.
#[derive(Debug)]
struct ClientVerifier {
    identity: Arc<ServedIdentity>,
}

impl ClientVerifier {
    /// Returns the last second of an agent's certificate that ended within the grace.
    fn last_second(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Option<UnixTime> {
        if !matches!(SpiffeId::of_certificate(leaf, &self.identity.domain), Ok(SpiffeId::Agent(_))) {
            return None;
        }
        let end = u64::try_from(not_after(leaf).ok()?.as_second()).ok()?;
        let ended_for = Duration::from_secs(now.as_secs().checked_sub(end)?);
        (ended_for <= GRACE).then(|| UnixTime::since_unix_epoch(Duration::from_secs(end.saturating_sub(1))))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        use CertificateError::{Expired, ExpiredContext};
        let clients = self.identity.clients();
        let verified = match clients.verify_client_cert(leaf, intermediates, now) {
            Err(rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. })) => {
                let then = self.last_second(leaf, now).ok_or(Expired)?;
                clients.verify_client_cert(leaf, intermediates, then)
            }
            outcome => outcome,
        }?;
        check_purpose(leaf, intermediates)?;
        Ok(verified)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.identity.hints
    }

    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.identity.clients().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.identity.clients().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.identity.clients().supported_verify_schemes()
    }
}

/// The check of the broker's certificate: the usual one, that its intermediate may sign for brokers, and that it carries the
/// broker's SPIFFE id, because an agent has a certificate of the same authority and must not serve.
#[derive(Debug)]
struct BrokerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    domain: TrustDomain,
    /// The roots that the client trusts.
    roots: Vec<Vec<u8>>,
    learned: Arc<LearnedRoots>,
}

impl ServerCertVerifier for BrokerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(leaf, intermediates, name, ocsp, now)?;
        check_broker(leaf, intermediates, &self.domain)?;
        // A chain that the next roots do not verify is no reason to drop one: a thief could show any root that is public.
        let leads_to = |roots: &Vec<Vec<u8>>| {
            let roots = roots.iter().cloned().map(CertificateDer::from).collect();
            let next = root_store(roots).and_then(webpki);
            next.is_ok_and(|next| next.verify_server_cert(leaf, intermediates, name, ocsp, now).is_ok())
        };
        self.learned.put(vouching::next_roots(&self.roots, intermediates).filter(leads_to));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The check of an enrolling agent: finds the pinned root in the chain that the broker shows, checks the chain as usual, and
/// that it is a broker's, because only a broker may receive the join token. The token names no trust domain, so the
/// check takes the certificate's own.
#[derive(Debug)]
struct PinnedVerifier {
    fingerprint: Fingerprint,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|der| Fingerprint::of(der) == self.fingerprint);
        let root = pinned.ok_or(CertificateError::UnknownIssuer)?.clone().into_owned();
        let general = |_| rustls::Error::General("the pinned root cannot be used".into());
        let inner = webpki(root_store(vec![root]).map_err(general)?).map_err(general)?;
        let verified = inner.verify_server_cert(leaf, intermediates, name, ocsp, now)?;
        let domain = trust_domain_of(leaf).map_err(|_| CertificateError::ApplicationVerificationFailure)?;
        check_broker(leaf, intermediates, &domain)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn check_broker(
    leaf: &[u8],
    others: &[CertificateDer<'_>],
    domain: &TrustDomain,
) -> Result<(), rustls::Error> {
    match SpiffeId::of_certificate(leaf, domain) {
        Ok(SpiffeId::Broker) => check_purpose(leaf, others),
        Ok(SpiffeId::Agent(_) | SpiffeId::Principal { .. }) | Err(_) => {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }
}

/// Checks that the intermediate that signed a certificate may sign for its party: see [`purpose`].
fn check_purpose(leaf: &[u8], others: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
    purpose::check(leaf, others).map_err(|error| CertificateError::Other(OtherError(Arc::new(error))).into())
}

fn webpki(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, PkiError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| PkiError::malformed("the list of roots", error))
}

fn root_store(roots: Vec<CertificateDer<'static>>) -> Result<RootCertStore, PkiError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root)?;
    }
    Ok(store)
}

/// Returns the key and the chain to serve. The chain ends with the root, so that a client that only knows its fingerprint
/// can find it.
fn certified(credentials: &Credentials) -> Result<Arc<CertifiedKey>, PkiError> {
    let key = provider().key_provider.load_private_key(credentials.tls_key())?;
    let chain = credentials.tls_chain().into_iter().chain(credentials.tls_roots()).collect();
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(ring::default_provider())))
}
