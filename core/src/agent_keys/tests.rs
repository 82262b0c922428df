//! The rule, by example and against every order in which two holders of one key can act.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn key(number: u32) -> KeyHash {
    KeyHash::of(&number.to_be_bytes())
}

fn shown(number: u32) -> ShownKey {
    ShownKey { key: key(number), is_later: false }
}

/// The record of one agent, as a broker keeps it.
struct Record {
    keys: Option<AgentKeys>,
}

impl Record {
    fn enrolled(number: u32) -> Self {
        Self { keys: Some(AgentKeys::enrolled(key(number))) }
    }

    fn session(&mut self, number: u32) -> Result<(), Cloned> {
        if let Some(first) = AgentKeys::session(self.keys, shown(number))? {
            self.keys = Some(first.keys);
        }
        Ok(())
    }

    fn renew(&mut self, from: u32, to: u32) -> Result<(), Cloned> {
        AgentKeys::check(self.keys, shown(from))?;
        self.keys = Some(AgentKeys::renewed(key(from), key(to)));
        Ok(())
    }
}

#[test]
fn i7_a_machine_renews_and_reconnects_for_ever() {
    let mut record = Record::enrolled(1);
    for number in 1..20 {
        record.session(number).unwrap();
        record.renew(number, number + 1).unwrap();
        record.session(number).unwrap();
        record.session(number + 1).unwrap();
    }
}

#[test]
fn i7_a_renewal_whose_answer_was_lost_works_when_it_is_repeated() {
    let mut record = Record::enrolled(1);
    record.session(1).unwrap();
    for lost in 2..6 {
        record.renew(1, lost).unwrap();
        record.session(1).unwrap();
    }
    record.renew(1, 6).unwrap();
    record.session(6).unwrap();
    record.renew(6, 7).unwrap();
    assert_eq!(record.session(5), Err(Cloned::Unknown), "a key that was replaced before it arrived");
}

#[test]
fn i7_the_key_before_is_a_clone_once_its_successor_was_used() {
    let mut record = Record::enrolled(1);
    record.renew(1, 2).unwrap();
    record.session(2).unwrap();
    assert_eq!(record.session(1), Err(Cloned::Renewed));
    assert_eq!(record.renew(1, 3), Err(Cloned::Renewed));
    record.session(2).unwrap();
    // A renewal is a use as well.
    record.renew(2, 3).unwrap();
    assert_eq!(record.session(1), Err(Cloned::Unknown));
    assert_eq!(record.renew(1, 4), Err(Cloned::Unknown));
}

#[test]
fn i7_an_enrolment_and_a_ban_replace_both_keys() {
    let mut record = Record::enrolled(1);
    record.renew(1, 2).unwrap();
    let stolen = [1, 2];
    record.keys = Some(AgentKeys::none());
    for number in stolen {
        assert_eq!(record.session(number), Err(Cloned::Unknown), "banned");
    }
    record.keys = Some(AgentKeys::enrolled(key(9)));
    for number in stolen {
        assert_eq!(record.session(number), Err(Cloned::Unknown), "enrolled again");
        assert_eq!(record.renew(number, 10), Err(Cloned::Unknown));
    }
    record.session(9).unwrap();
}

#[test]
fn i8_a_record_without_keys_adopts_the_first_that_it_sees() {
    let mut record = Record { keys: None };
    record.session(1).unwrap();
    assert_eq!(record.session(2), Err(Cloned::Unknown));
    let mut record = Record { keys: None };
    record.renew(1, 2).unwrap();
    record.session(1).unwrap();
    record.session(2).unwrap();
    assert_eq!(record.session(1), Err(Cloned::Renewed));
}

#[test]
fn i8_a_key_that_the_store_has_lost_is_adopted_and_a_ban_is_not_undone_by_it() {
    let mut record = Record::enrolled(1);
    let later = ShownKey { key: key(5), is_later: true };
    let adopted = FirstUse { keys: AgentKeys::enrolled(key(5)), adopted: true };
    assert_eq!(AgentKeys::session(record.keys, later), Ok(Some(adopted)));
    assert_eq!(AgentKeys::session(None, shown(5)), Ok(Some(adopted)));
    assert_eq!(AgentKeys::check(record.keys, later), Ok(Claim::Adopted));
    record.keys = Some(AgentKeys::renewed(key(5), key(6)));
    let known = AgentKeys::session(record.keys, shown(6)).unwrap().unwrap();
    assert!(!known.adopted, "a renewed key is no adopted one");
    record.session(6).unwrap();
    assert_eq!(AgentKeys::session(Some(AgentKeys::none()), later), Err(Cloned::Unknown));
}

#[test]
fn stored_keys_read_back() {
    let mut record = Record::enrolled(1);
    record.renew(1, 2).unwrap();
    let text = serde_json::to_string(&record.keys).unwrap();
    assert_eq!(serde_json::from_str::<Option<AgentKeys>>(&text).unwrap(), record.keys);
    assert!(text.contains(&key(2).to_string()), "{text}");
    assert!("abc".parse::<KeyHash>().is_err());
}

/// A step of the machine or of the thief.
#[derive(Debug, Clone, Copy)]
enum Step {
    Session,
    Renew,
    /// A renewal whose answer is lost.
    RenewLost,
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let step = prop_oneof![Just(Step::Session), Just(Step::Renew), Just(Step::RenewLost)];
    prop::collection::vec((any::<bool>(), step), 1..60)
}

proptest! {
    /// Both begin with one key. Whatever they do in whatever order, two that have both been refused nothing cannot both have
    /// renewed and used the result.
    #[test]
    fn i7_two_holders_of_one_key_cannot_both_go_on(order in steps()) {
        let (mut record, mut next) = (Record::enrolled(0), 0);
        let mut held = BTreeMap::from([(false, 0), (true, 0)]);
        let mut went_on = BTreeMap::from([(false, 0), (true, 0)]);
        let mut refused = false;
        for (who, step) in order {
            let own = held[&who];
            let outcome = match step {
                Step::Session => record.session(own),
                Step::Renew | Step::RenewLost => {
                    next += 1;
                    record.renew(own, next)
                }
            };
            match (outcome, step) {
                (Err(_), _) => refused = true,
                (Ok(()), Step::Renew) => drop(held.insert(who, next)),
                (Ok(()), Step::Session) if own != 0 => *went_on.get_mut(&who).unwrap() += 1,
                (Ok(()), _) => {}
            }
            if went_on.values().all(|times| *times > 0) {
                prop_assert!(refused, "both have used a renewed key, and none was refused");
            }
        }
    }

    /// A machine alone is never refused, whatever answers are lost.
    #[test]
    fn i7_a_machine_alone_is_never_called_a_clone(order in steps()) {
        let (mut record, mut next, mut own) = (Record::enrolled(0), 0, 0);
        for (_, step) in order {
            match step {
                Step::Session => record.session(own).unwrap(),
                Step::Renew | Step::RenewLost => {
                    next += 1;
                    record.renew(own, next).unwrap();
                    if matches!(step, Step::Renew) {
                        own = next;
                    }
                }
            }
        }
    }
}
