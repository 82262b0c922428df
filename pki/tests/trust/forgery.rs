//! Certificates that the authority would never sign, made with its stolen keys.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use postern_pki::purpose::Purpose;
use postern_pki::{Authority, Credentials, SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::parties::{Ca, NAME, now};

/// A thief who has the key of one intermediate.
pub(crate) struct Forgery<'a> {
    ca: &'a Ca,
    signer: &'static str,
    before: Vec<Vec<u8>>,
    after: Vec<Vec<u8>>,
}

impl<'a> Forgery<'a> {
    pub(crate) fn by(ca: &'a Ca, signer: &'static str) -> Self {
        Self { ca, signer, before: Vec::new(), after: Vec::new() }
    }

    /// Puts more certificates into the chain, before or after the signer's.
    pub(crate) fn with(self, more: Vec<Vec<u8>>, before: bool) -> Self {
        if before { Self { before: more, ..self } } else { Self { after: more, ..self } }
    }

    fn pem(&self, name: &str) -> String {
        fs::read_to_string(self.ca.dir.path().join(name)).unwrap()
    }

    /// Returns the certificate of an intermediate.
    pub(crate) fn certificate(&self, name: &str) -> Vec<u8> {
        CertificateDer::from_pem_slice(self.pem(&format!("{name}.pem")).as_bytes()).unwrap().to_vec()
    }

    fn key(&self) -> rcgen::KeyPair {
        rcgen::KeyPair::from_pem(&self.pem(&format!("{}.key", self.signer))).unwrap()
    }

    /// Returns a certificate of the stolen key, with the signer's name and another mark. The root did not sign it.
    pub(crate) fn remarked(&self, mark: Purpose) -> Vec<u8> {
        let template = match mark {
            Purpose::Agents => "intermediate",
            Purpose::People => "people",
        };
        let mark = self.certificate(template);
        let (_, mark) = x509(&mark);
        let policies = mark.extensions().iter().find(|extension| extension.oid.to_id_string() == "2.5.29.32");
        let mut params = ca_params(&self.signer_name());
        params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(
            &[2, 5, 29, 32],
            policies.unwrap().value.to_vec(),
        ));
        params.self_signed(&self.key()).unwrap().der().to_vec()
    }

    /// Returns a root of the stolen key that has the signer's name.
    pub(crate) fn root(&self) -> Vec<u8> {
        ca_params(&self.signer_name()).self_signed(&self.key()).unwrap().der().to_vec()
    }

    fn signer_name(&self) -> String {
        let signer = self.certificate(self.signer);
        let (_, signer) = x509(&signer);
        signer.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
    }

    /// Returns credentials of a party, with the name and the usages of a server besides.
    pub(crate) fn of(&self, id: &SpiffeId) -> Credentials {
        let certificate = self.certificate(self.signer);
        let issuer =
            Issuer::from_ca_cert_der(&CertificateDer::from(certificate.as_slice()), self.key()).unwrap();
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let uri = id.to_uri(&TrustDomain::default());
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap().der().to_vec();
        let chain: Vec<Vec<u8>> =
            [vec![leaf], self.before.clone(), vec![certificate], self.after.clone()].concat();
        // Only files make credentials of a foreign key.
        let dir = tempfile::tempdir().unwrap();
        let pems: String = chain.iter().map(|der| pem(der)).collect();
        let file = dir.path().join("key.pem");
        fs::write(&file, format!("{}{pems}", key.serialize_pem())).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let roots: String = self.ca.authority.roots().iter().map(|der| pem(der)).collect();
        fs::write(dir.path().join("roots.pem"), roots).unwrap();
        Credentials::load(dir.path()).unwrap()
    }
}

/// Returns an authority as an earlier version made it: one intermediate without a mark signs for every party.
pub(crate) fn a_single_intermediate() -> Ca {
    let mut ca = Ca::new();
    let file = |name: &str| ca.dir.path().join(name);
    let root = CertificateDer::from_pem_slice(&fs::read(file("root.pem")).unwrap()).unwrap();
    let root_key = rcgen::KeyPair::from_pem(&fs::read_to_string(file("root.key")).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&root, root_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = ca_params("Postern intermediate (postern)");
    let begin = time::OffsetDateTime::from_unix_timestamp(now().as_second()).unwrap();
    params.not_before = begin - time::Duration::minutes(1);
    params.not_after = begin + time::Duration::days(365);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    fs::write(file("intermediate.key"), format!("{}{}", key.serialize_pem(), pem(certificate.der())))
        .unwrap();
    fs::write(file("intermediate.pem"), pem(certificate.der())).unwrap();
    for name in ["people.key", "people.pem"] {
        fs::remove_file(file(name)).unwrap();
    }
    ca.authority = Authority::load(ca.dir.path(), &TrustDomain::default()).unwrap();
    ca
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec()))
}

fn x509(der: &[u8]) -> (&[u8], x509_parser::certificate::X509Certificate<'_>) {
    x509_parser::parse_x509_certificate(der).unwrap()
}
