//! The files that may take a new private key: no command overwrites another one.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use postern_pki::authority::{CaCertificate, PeopleOutcome};
use postern_pki::{Authority, PkiError, TrustDomain};

use crate::forgery::a_single_intermediate;
use crate::parties::{Ca, HOUR, now};

/// An authority whose keys of the root and of people are on a stick.
struct OnAStick {
    ca: Ca,
    stick: tempfile::TempDir,
}

impl OnAStick {
    fn new() -> Self {
        let (ca, stick) = (Ca::new(), tempfile::tempdir().unwrap());
        for name in ["root.key", "people.key"] {
            fs::rename(ca.dir.path().join(name), stick.path().join(name)).unwrap();
        }
        let on_a_stick = Self { ca, stick };
        on_a_stick.write("notes.txt", "where the stick is kept\n");
        on_a_stick
    }

    fn at(&self, name: &str) -> PathBuf {
        self.stick.path().join(name)
    }

    fn ca(&self, name: &str) -> PathBuf {
        self.ca.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
        fs::set_permissions(self.at(name), Permissions::from_mode(0o600)).unwrap();
    }

    fn renew(&self, people_key: &Path) -> Result<PeopleOutcome, PkiError> {
        Authority::renew_people(self.dir(), &domain(), people_key, &self.at("root.key"), now())
    }

    fn replace(&self, people_key: &Path) -> Result<CaCertificate, PkiError> {
        Authority::replace_people(self.dir(), &domain(), people_key, &self.at("root.key"), now())
    }

    fn begin(&self, new_root_key: &Path) -> Result<CaCertificate, PkiError> {
        Authority::begin_roll(self.dir(), &domain(), &self.at("root.key"), Some(new_root_key), now())
    }

    fn switch(&self, people_key: &Path) -> Result<PeopleOutcome, PkiError> {
        Authority::switch_root(self.dir(), &domain(), Some(&self.at("new.key")), people_key, now())
    }

    fn dir(&self) -> &Path {
        self.ca.dir.path()
    }

    /// Returns the content of every file.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let in_dir = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let all = in_dir(self.dir()).chain(in_dir(self.stick.path()));
        all.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }
}

fn domain() -> TrustDomain {
    TrustDomain::default()
}

#[test]
fn a_new_key_for_people_overwrites_only_the_present_one() {
    let at = OnAStick::new();
    fs::hard_link(at.at("root.key"), at.at("root-2.key")).unwrap();
    std::os::unix::fs::symlink(at.at("root.key"), at.at("link.key")).unwrap();
    let foreign = OnAStick::new();
    fs::copy(foreign.at("people.key"), at.at("foreign.key")).unwrap();
    at.begin(&at.at("new.key")).unwrap();
    let before = at.files();
    let taken = ["root.key", "root-2.key", "link.key", "new.key", "notes.txt", "foreign.key"];
    let of_the_authority = ["intermediate.key", "root.pem", "people.pem", "roll.pem"];
    let taken = taken.map(|name| at.at(name)).into_iter().chain(of_the_authority.map(|name| at.ca(name)));
    for file in taken {
        let name = file.display().to_string();
        for refused in [at.renew(&file).err(), at.replace(&file).err(), at.switch(&file).err()] {
            let refused = refused.unwrap_or_else(|| panic!("{name} is taken")).to_string();
            assert!(refused.contains(&name), "{refused}");
        }
        assert!(at.files() == before, "{name}: a command changed a file");
    }
    for absent in
        ["root.key", "previous.pem", "retired-root.key", "next-root.key", "revoked.txt", "records.key"]
    {
        let refused = at.replace(&at.ca(absent)).unwrap_err();
        assert!(matches!(refused, PkiError::NoPlaceForPeopleKey { .. }), "{absent}: {refused}");
        assert!(refused.to_string().contains("--people-key FILE"), "{refused}");
    }
    assert!(at.files() == before);
    assert!(matches!(at.renew(&at.at("people.key")).unwrap(), PeopleOutcome::Renewed(_)));
    at.replace(&at.at("another.key")).unwrap();
    at.replace(&at.at("people.key")).unwrap();
}

#[test]
fn an_authority_with_one_intermediate_gives_no_other_key_to_people() {
    let ca = a_single_intermediate();
    let root_key = ca.dir.path().join("root.key");
    for name in ["root.key", "intermediate.key"] {
        let file = ca.dir.path().join(name);
        let before = fs::read(&file).unwrap();
        Authority::renew_people(ca.dir.path(), &domain(), &file, &root_key, now()).unwrap_err();
        assert!(fs::read(&file).unwrap() == before, "{name}");
    }
    let before = fs::read(&root_key).unwrap();
    let configured = Authority::load(ca.dir.path(), &domain()).unwrap().with_people_key(&root_key);
    configured.renew_if_due(&root_key, now() + HOUR * 24 * 200).unwrap_err();
    assert!(fs::read(&root_key).unwrap() == before);
}

#[test]
fn an_authority_that_is_set_up_keeps_each_key_in_a_place_of_its_own() {
    for name in ["root.key", "root.pem", "intermediate.key", "people.pem", "roll.pem"] {
        let dir = tempfile::tempdir().unwrap();
        let (ca, above) = (dir.path().join("ca"), dir.path().join("ca/../ca"));
        fs::create_dir(&ca).unwrap();
        let refused = Authority::init_with(&ca, &above.join(name), &domain(), now()).unwrap_err();
        assert!(refused.to_string().contains(name), "{refused}");
        assert_eq!(fs::read_dir(&ca).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn a_switch_leaves_a_key_that_is_not_the_next_roots_where_it_is() {
    let (ca, stick) = (Ca::new(), tempfile::tempdir().unwrap());
    let file = |name: &str| ca.dir.path().join(name);
    let (root_key, new) = (fs::read(file("root.key")).unwrap(), stick.path().join("new.key"));
    Authority::begin_roll(ca.dir.path(), &domain(), &file("root.key"), Some(&new), now()).unwrap();
    // A begin that was interrupted before has left its key.
    let other = OnAStick::new();
    other.begin(&other.at("new.key")).unwrap();
    fs::copy(other.at("new.key"), file("next-root.key")).unwrap();
    Authority::switch_root(ca.dir.path(), &domain(), Some(&new), &file("people.key"), now()).unwrap();
    assert!(fs::read(file("root.key")).unwrap() == root_key && !file("retired-root.key").exists());
}

#[test]
fn the_key_of_a_certificate_is_no_new_roots() {
    let at = OnAStick::new();
    // The key of an intermediate in a file without its certificate, of the present one and of one that was replaced.
    let bare = |name: &str, to: &str| {
        let text = fs::read_to_string(at.at(name)).unwrap();
        at.write(to, &text[..text.find("-----BEGIN CERTIFICATE-----").unwrap()]);
    };
    bare("people.key", "replaced.key");
    at.renew(&at.at("people.key")).unwrap();
    bare("people.key", "bare.key");
    at.ca.agent().save(&at.at("agent")).unwrap();
    fs::rename(at.at("agent/key.pem"), at.at("agent.pem")).unwrap();
    fs::remove_dir_all(at.at("agent")).unwrap();
    let before = at.files();
    let taken = ["root.key", "people.key", "bare.key", "replaced.key", "agent.pem", "notes.txt"];
    let absent = ["root.key", "people.key", "retired-root.key", "revoked.txt", "records.key"];
    let intermediate = [at.ca("intermediate.key"), at.ca("people.pem"), at.ca("roll.pem")];
    let absent = absent.map(|name| at.ca(name)).into_iter().chain(intermediate);
    for file in taken.map(|name| at.at(name)).into_iter().chain(absent) {
        let refused = at.begin(&file).expect_err(&file.display().to_string()).to_string();
        assert!(refused.contains(&file.display().to_string()), "{refused}");
        assert!(at.files() == before, "{}: a command changed a file", file.display());
    }
    at.begin(&at.at("new.key")).unwrap();
}

#[test]
fn a_second_begin_names_the_file_of_the_key_or_is_refused() {
    let at = OnAStick::new();
    let next = at.begin(&at.at("new.key")).unwrap();
    let before = at.files();
    for other in ["other.key", "people.key", "root.key"] {
        let refused = at.begin(&at.at(other)).unwrap_err();
        assert!(matches!(refused, PkiError::OtherNextRootKey { .. }), "{other}: {refused}");
    }
    assert!(at.files() == before);
    assert_eq!(at.begin(&at.at("new.key")).unwrap(), next);
    let repeated = Authority::begin_roll(at.dir(), &domain(), &at.at("root.key"), None, now()).unwrap();
    assert_eq!(repeated, next);
}

#[test]
fn an_intermediate_for_people_that_another_file_replaced_is_listed() {
    let at = OnAStick::new();
    fs::copy(at.at("people.key"), at.at("copy.key")).unwrap();
    at.begin(&at.at("new.key")).unwrap();
    let renewed = |outcome: PeopleOutcome| match outcome {
        PeopleOutcome::Renewed(made) => *made,
        PeopleOutcome::Kept | PeopleOutcome::Offline(_) => panic!("it is not renewed"),
    };
    let one = renewed(at.switch(&at.at("people.key")).unwrap());
    let other = renewed(at.switch(&at.at("copy.key")).unwrap());
    let load = |key: &str| Authority::load(at.dir(), &domain()).unwrap().with_people_key(&at.at(key));
    let lists = |key: &str, made: &CaCertificate| load(key).previous(now()).unwrap().contains(made);
    assert!(lists("absent.key", &one) && load("absent.key").people().unwrap().as_ref() == Some(&other));
    // With the older file at hand the newer intermediate is no less trusted.
    assert!(lists("people.key", &other) && load("people.key").people().unwrap().as_ref() == Some(&one));
    assert_eq!(at.switch(&at.at("people.key")).unwrap(), PeopleOutcome::Kept);
    assert!(lists("absent.key", &other) && load("absent.key").people().unwrap() == Some(one));
}
