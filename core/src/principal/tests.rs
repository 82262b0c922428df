//! Keys, names for people, and the stored form.

use proptest::prelude::*;

use super::*;

const ISSUER: &str = "https://issuer.example";

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn local(text: &str) -> Principal {
    Principal::local(Role::Requester, name(text))
}

fn foreign(subject: &str, display_name: &str) -> Principal {
    let (issuer, subject) = (Issuer::new(ISSUER).unwrap(), Subject::new(subject).unwrap());
    Principal::foreign(Role::Requester, issuer, subject, DisplayName::new(display_name).unwrap())
}

#[test]
fn i7_one_name_at_two_issuers_is_two_principals() {
    let other = Principal::foreign(
        Role::Requester,
        Issuer::new("https://other.example").unwrap(),
        Subject::new("alice").unwrap(),
        DisplayName::new("alice").unwrap(),
    );
    let keys = [local("alice"), foreign("alice", "alice"), other].map(|one| one.key().clone());
    for (i, key) in keys.iter().enumerate() {
        for (j, other) in keys.iter().enumerate() {
            assert_eq!((key == other, key.to_text() == other.to_text()), (i == j, i == j));
        }
    }
    // The certificate authority's own ids do not come from elsewhere.
    let spiffe = Issuer::new("spiffe://postern").unwrap();
    let subject = Subject::new("principal/alice").unwrap();
    assert_ne!(PrincipalKey::Foreign { issuer: spiffe, subject }, PrincipalKey::Local(name("alice")));
}

#[test]
fn i7_a_display_name_is_no_part_of_a_key_and_neither_is_a_role() {
    assert_eq!(foreign("a", "Alice").key(), foreign("a", "Bob").key());
    assert_ne!(foreign("a", "Alice").key(), foreign("b", "Alice").key());
    assert_eq!(local("alice").key(), Principal::local(Role::Reader, name("alice")).key());
}

#[test]
fn i7_no_display_name_makes_a_principal_read_like_another() {
    assert_eq!(local("alice").to_string(), "requester/alice");
    let impostor = foreign("mallory@example.com", "alice").to_string();
    assert_eq!(impostor, "requester/alice <https://issuer.example#mallory@example.com>");
    // Names that would close the brackets, end the line, or hide a part of it.
    for bad in
        ["alice <https://issuer.example#alice>", "alice>", "a\nb", "alice\u{200b}", "\u{202e}ecila", " "]
    {
        assert_eq!(DisplayName::new(bad).unwrap_err().field, "display_name", "{bad:?}");
    }
    // A subject with brackets, blanks or letters of another script does not change what the brackets hold.
    let shown = foreign("x> administrator/root <y", "Eve").to_string();
    assert_eq!(shown, "requester/Eve <https://issuer.example#x%3E%20administrator/root%20%3Cy>");
    let cyrillic = foreign("\u{430}lice@example.com", "Alice").to_string();
    assert_eq!(cyrillic, "requester/Alice <https://issuer.example#%D0%B0lice@example.com>");
}

#[test]
fn i7_texts_of_an_issuer_are_bounded_and_visible() {
    for good in ["alice@example.com", "repo:org/x:ref:refs/heads/main", "auth0|4 2", "Zoë", &"é".repeat(255)]
    {
        assert!(Subject::new(good).is_ok() && Issuer::new(good).is_ok(), "{good:?}");
    }
    // Cc, Cf in several planes, Zl, Zp, and letters that show as nothing.
    let invisible = [
        "\0",
        "\t",
        "\u{7f}",
        "\u{ad}",
        "\u{61c}",
        "\u{200d}",
        "\u{2028}",
        "\u{2029}",
        "\u{2066}",
        "\u{feff}",
        "\u{110bd}",
        "\u{e0041}",
        "\u{3164}",
        "\u{fe0f}",
    ];
    for bad in invisible.map(|c| format!("a{c}b")).iter().map(String::as_str).chain(["", &"x".repeat(256)]) {
        let errors = [
            Issuer::new(bad).unwrap_err(),
            Subject::new(bad).unwrap_err(),
            DisplayName::new(bad).unwrap_err(),
        ];
        let fields = errors.each_ref().map(|error| error.field.as_str());
        assert_eq!(fields, ["issuer", "subject", "display_name"], "{bad:?}");
        assert!(errors[0].remedy.contains("1 to 255"), "{bad:?}");
    }
}

#[test]
fn i7_a_principal_is_stored_in_one_of_two_forms_and_none_other_is_read() {
    let stored = |principal: &Principal| serde_json::to_string(principal).unwrap();
    // The form of every record from before there were foreign issuers.
    assert_eq!(stored(&local("alice")), r#"{"role":"requester","name":"alice"}"#);
    let text = r#"{"role":"requester","issuer":"https://issuer.example","subject":"alice@example.com","display_name":"Alice"}"#;
    assert_eq!(stored(&foreign("alice@example.com", "Alice")), text);
    for principal in [local("alice"), foreign("alice@example.com", "Alice")] {
        assert_eq!(serde_json::from_str::<Principal>(&stored(&principal)).unwrap(), principal);
    }
    for bad in [
        r#"{"role":"requester"}"#,
        r#"{"role":"requester","issuer":"https://issuer.example","subject":"a"}"#,
        r#"{"role":"requester","issuer":"https://issuer.example","display_name":"a"}"#,
        r#"{"role":"requester","name":"alice","issuer":"https://issuer.example","subject":"a","display_name":"A"}"#,
        r#"{"role":"requester","name":"alice","display_name":"Bob"}"#,
        r#"{"role":"requester","name":"https://issuer.example#alice"}"#,
    ] {
        assert!(serde_json::from_str::<Principal>(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_text_that_is_no_key_is_refused_with_its_remedy() {
    let refused = |text: &str| PrincipalKey::parse(text).unwrap_err();
    assert!(refused("al ice").remedy.ends_with("or <issuer>#<subject>"));
    assert_eq!(refused("al ice").field, "principal");
    assert_eq!((refused("#a").field, refused("a#").field), ("issuer".to_owned(), "subject".to_owned()));
    // Each key has one text.
    assert_eq!(refused("https://issuer.example#%61lice").remedy, "use https://issuer.example#alice");
    assert_eq!(refused("a#b#c").remedy, "use a#b%23c");
    assert_eq!(refused("a#%d0%b0").remedy, "use a#%D0%B0");
    assert_eq!(refused("a#%").remedy, "use a#%25");
    assert_eq!(refused("a#%ff").field, "principal");
}

/// A text as an issuer may write it.
fn text() -> impl Strategy<Value = String> {
    let parts = prop_oneof!["[a-z#%:/@ <>|]{1,8}", "\\PC{1,8}"];
    proptest::collection::vec(parts, 1..4)
        .prop_map(|parts| parts.concat())
        .prop_filter("visible", |text| Subject::new(text).is_ok())
}

/// A key of either kind.
fn key() -> impl Strategy<Value = PrincipalKey> {
    let foreign = (text(), text()).prop_map(|(issuer, subject)| PrincipalKey::Foreign {
        issuer: Issuer::new(&issuer).unwrap(),
        subject: Subject::new(&subject).unwrap(),
    });
    let local = "[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}".prop_map(|text| PrincipalKey::Local(name(&text)));
    prop_oneof![local, foreign]
}

proptest! {
    #[test]
    fn i7_the_text_of_a_key_is_its_own(one in key(), other in key()) {
        prop_assert_eq!(&PrincipalKey::parse(&one.to_text()).unwrap(), &one);
        prop_assert_eq!(one.to_text() == other.to_text(), one == other);
        let json = serde_json::to_string(&one).unwrap();
        prop_assert_eq!(&serde_json::from_str::<PrincipalKey>(&json).unwrap(), &one);
    }

    #[test]
    fn i7_the_text_of_a_foreign_key_is_printable_ascii_without_blanks_and_no_name(
        issuer in text(), subject in text()
    ) {
        let (issuer, subject) = (Issuer::new(&issuer).unwrap(), Subject::new(&subject).unwrap());
        let text = PrincipalKey::Foreign { issuer, subject }.to_text();
        prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>".contains(&byte)), "{}", text);
        prop_assert!(Name::new(&text).is_err());
    }

    #[test]
    fn i7_where_the_issuer_ends_is_part_of_the_key(whole in text(), at in 0usize..24) {
        // One text cut at two places makes two keys, although both have the same characters in the same order.
        let cuts: Vec<usize> = whole.char_indices().map(|(at, _)| at).skip(1).collect();
        prop_assume!(cuts.len() > 1);
        let cut = |at: usize| {
            let (issuer, subject) = whole.split_at(cuts[at % cuts.len()]);
            PrincipalKey::Foreign { issuer: Issuer::new(issuer).unwrap(), subject: Subject::new(subject).unwrap() }
        };
        prop_assert_ne!(cut(at).to_text(), cut(at + 1).to_text());
    }
}
