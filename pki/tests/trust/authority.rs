//! The authority's files, and the certificates that it signs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use postern_pki::{Authority, Credentials, KeyPair, PkiError, SpiffeId, TrustDomain};
use rcgen::{CertificateParams, DnType, SanType};

use crate::parties::{Ca, HOUR, agent, alice, now};

/// Loads the authority; an intermediate that cannot be used is the error itself.
fn load(ca: &Ca) -> Result<Authority, PkiError> {
    Authority::load(ca.dir.path(), &TrustDomain::default())
        .map_err(|error| if let PkiError::NoIntermediate(cause) = error { *cause } else { error })
}

#[test]
fn an_authority_is_made_once_and_signs_without_its_root_key() {
    let ca = Ca::new();
    let files = || {
        ["root.key", "root.pem", "intermediate.key", "intermediate.pem"]
            .map(|name| fs::read(ca.dir.path().join(name)).ok())
    };
    let made_again = || Authority::init(ca.dir.path(), &TrustDomain::default(), now());
    let before = files();
    assert!(matches!(made_again(), Err(PkiError::Exists { path }) if path.ends_with("intermediate.key")));
    assert_eq!(files(), before);
    fs::remove_file(ca.dir.path().join("root.key")).unwrap();
    assert!(matches!(made_again(), Err(PkiError::Exists { path }) if path.ends_with("root.pem")));
    assert_eq!(files()[1..], before[1..]);
    let loaded = load(&ca).unwrap();
    assert_eq!(loaded.fingerprint(), ca.authority.fingerprint());
    let key = KeyPair::generate().unwrap();
    loaded.issue(&key.csr().unwrap(), &agent(), HOUR, now()).unwrap();
}

#[test]
fn an_interrupted_init_is_completed_by_the_next_one_with_the_keys_that_it_made() {
    let names = ["root.key", "root.pem", "people.key", "people.pem", "intermediate.key", "intermediate.pem"];
    let whole = Ca::new();
    for made in 0..=names.len() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        for name in &names[..made] {
            fs::copy(whole.dir.path().join(name), dir.path().join(name)).unwrap();
        }
        let again = Authority::init(dir.path(), &TrustDomain::default(), now());
        if made > 4 {
            // The authority is there: only its copy for people may be missing.
            assert!(matches!(again, Err(PkiError::Exists { .. })), "{made}");
            Authority::load(dir.path(), &TrustDomain::default()).unwrap();
            continue;
        }
        let authority = again.unwrap();
        for name in &names[..made] {
            assert_eq!(read(name), fs::read(whole.dir.path().join(name)).unwrap(), "{made}: {name}");
        }
        for identity in [agent(), alice()] {
            let key = KeyPair::generate().unwrap();
            authority.issue(&key.csr().unwrap(), &identity, HOUR, now()).unwrap();
        }
        assert_eq!(authority.previous(now()).unwrap(), []);
    }
    // A lost intermediate is no interrupted init where a copy of it, or a mark of a life before, is left.
    for left in ["intermediate.pem", "previous.pem", "revoked.txt"] {
        let ca = Ca::new();
        let files = ["intermediate.key", "intermediate.pem"];
        let copy = fs::read(ca.dir.path().join("intermediate.pem")).unwrap();
        files.iter().for_each(|name| fs::remove_file(ca.dir.path().join(name)).unwrap());
        fs::write(ca.dir.path().join(left), copy).unwrap();
        let again = Authority::init(ca.dir.path(), &TrustDomain::default(), now());
        assert!(matches!(again, Err(PkiError::Exists { .. })), "{left}");
    }
}

#[test]
fn a_key_that_other_users_can_read_is_refused_by_name_and_mode() {
    let ca = Ca::new();
    for name in ["root.key", "intermediate.key"] {
        let path = ca.dir.path().join(name);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o644] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = load(&ca).err().unwrap().to_string();
            assert!(error.contains(name) && error.contains(&format!("{mode:04o}")), "{error}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    load(&ca).unwrap();

    let dir = ca.dir.path().join("agent");
    ca.agent().save(&dir).unwrap();
    fs::set_permissions(dir.join("key.pem"), Permissions::from_mode(0o644)).unwrap();
    let error = Credentials::load(&dir).err().unwrap();
    assert!(matches!(error, PkiError::ExposedKey { mode: 0o644, .. }), "{error}");
}

#[test]
fn a_key_is_a_plain_file() {
    let ca = Ca::new();
    let (path, elsewhere) = (ca.dir.path().join("intermediate.key"), ca.dir.path().join("elsewhere"));
    fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    assert!(matches!(load(&ca), Err(PkiError::NotAFile { .. })));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(load(&ca), Err(PkiError::NotAFile { .. })));
    fs::remove_dir(&path).unwrap();
    let error = load(&ca).err().unwrap().to_string();
    assert!(error.contains("intermediate.key"), "{error}");
}

#[test]
fn the_keys_and_certificates_of_two_authorities_do_not_mix() {
    let (ca, other) = (Ca::new(), Ca::new());
    let file = |ca: &Ca, name| ca.dir.path().join(name);
    fs::copy(file(&other, "intermediate.key"), file(&ca, "intermediate.key")).unwrap();
    let Err(error) = load(&ca) else { panic!("an intermediate that another root signed was loaded") };
    let error = error.to_string();
    assert!(error.contains("intermediate.key") && error.contains("root.pem"), "{error}");
    // The form of a file from before the certificate was written beside its key.
    let text = fs::read_to_string(file(&other, "intermediate.key")).unwrap();
    let key = &text[..text.find("-----BEGIN CERTIFICATE-----").unwrap()];
    fs::write(file(&ca, "intermediate.key"), key).unwrap();
    assert!(matches!(load(&ca), Err(PkiError::KeyMismatch)));
    fs::copy(file(&other, "intermediate.pem"), file(&ca, "intermediate.pem")).unwrap();
    let Err(error) = load(&ca) else { panic!("an intermediate that another root signed was loaded") };
    let error = error.to_string();
    assert!(error.contains("intermediate.pem") && error.contains("root.pem"), "{error}");
}

#[test]
fn i7_names_in_a_request_are_ignored() {
    let ca = Ca::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut requested = CertificateParams::default();
    requested.distinguished_name.push(DnType::CommonName, "administrator");
    requested.subject_alt_names = vec![
        SanType::URI("spiffe://postern/principal/administrator/eve".try_into().unwrap()),
        SanType::DnsName("broker.example.org".try_into().unwrap()),
    ];
    let request = requested.serialize_request(&key).unwrap();
    let issued = ca.authority.issue(request.der(), &alice(), HOUR, now()).unwrap();
    assert_eq!(SpiffeId::of_certificate(&issued.chain[0], &TrustDomain::default()).unwrap(), alice());
    assert!(!String::from_utf8_lossy(&issued.chain[0]).contains("broker.example.org"));
}

#[test]
fn i7_a_request_that_its_own_key_did_not_sign_is_refused() {
    let ca = Ca::new();
    let good = KeyPair::generate().unwrap().csr().unwrap();
    for at in [good.len() / 2, good.len() - 5] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let error = ca.authority.issue(&bad, &agent(), HOUR, now()).err().unwrap();
        assert!(error.is_bad_csr(), "{error}");
    }
    for garbage in [&[][..], b"not a request", &good[..good.len() - 1]] {
        assert!(ca.authority.issue(garbage, &agent(), HOUR, now()).err().unwrap().is_bad_csr());
    }
}

#[test]
fn i7_a_certificate_with_two_ids_names_no_identity() {
    let key = rcgen::KeyPair::generate().unwrap();
    let ids = [agent(), alice()]
        .map(|identity| SanType::URI(identity.to_uri(&TrustDomain::default()).try_into().unwrap()));
    for names in [&ids[..], &[]] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        let certificate = params.self_signed(&key).unwrap();
        assert!(SpiffeId::of_certificate(certificate.der(), &TrustDomain::default()).is_err());
    }
    let mut params = CertificateParams::default();
    params.subject_alt_names = ids[..1].to_vec();
    let certificate = params.self_signed(&key).unwrap();
    assert_eq!(SpiffeId::of_certificate(certificate.der(), &TrustDomain::default()).unwrap(), agent());
}

#[test]
fn credentials_read_back_and_belong_to_their_key() {
    let ca = Ca::new();
    let dir = ca.dir.path().join("alice");
    let saved = ca.principal();
    saved.save(&dir).unwrap();
    let loaded = Credentials::load(&dir).unwrap();
    assert_eq!(loaded.identity(&TrustDomain::default()).unwrap(), alice());
    assert_eq!(loaded.not_after(), saved.not_after());
    let key = KeyPair::generate().unwrap();
    let issued = ca.authority.issue(&key.csr().unwrap(), &alice(), HOUR, now()).unwrap();
    let other = KeyPair::generate().unwrap();
    let mismatch = Credentials::new(other, issued.chain, ca.authority.roots());
    assert!(matches!(mismatch, Err(PkiError::KeyMismatch)));
}

#[test]
fn i8_a_crash_while_the_first_identity_is_written_leaves_a_whole_one_or_none() {
    let ca = Ca::new();
    let whole = ca.dir.path().join("whole");
    ca.agent().save(&whole).unwrap();
    // The files in the order in which they are written, and whether there is an identity after each.
    let crashed = ca.dir.path().join("crashed");
    assert!(!Credentials::exist(&crashed), "no directory");
    fs::create_dir(&crashed).unwrap();
    for (file, is_one) in [("roots.pem", false), ("key.pem", true), ("cert.pem", true)] {
        fs::copy(whole.join(file), crashed.join(file)).unwrap();
        assert_eq!(Credentials::exist(&crashed), is_one, "after {file}");
        assert_eq!(Credentials::load(&crashed).is_ok(), is_one, "after {file}");
    }
    fs::remove_file(crashed.join("roots.pem")).unwrap();
    assert!(Credentials::exist(&crashed) && Credentials::load(&crashed).is_err(), "damaged, and not absent");
}

#[test]
fn an_authority_signs_nothing_outside_its_own_time() {
    let ca = Ca::new();
    let key = KeyPair::generate().unwrap();
    let years = Duration::from_secs(3600 * 24 * 365 * 3);
    for at in [now() - years, now() + years] {
        let outcome = ca.authority.issue(&key.csr().unwrap(), &agent(), HOUR, at);
        assert!(matches!(outcome, Err(PkiError::AuthorityNotValid { .. })));
    }
}
