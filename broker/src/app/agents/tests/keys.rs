//! The keys of agents: clones, lost renewals, and two machines with one key.

use std::net::IpAddr;

use super::*;

#[tokio::test(start_paused = true)]
async fn i7_a_copy_of_an_agent_is_refused_audited_and_shown_once_the_other_has_gone_on() {
    let test = TestApp::new();
    let stolen = enrolled_long_ago(&test).await;
    // The machine renews and uses the result; the copy comes after that.
    let renewed = renew(&test.app, &with(&stolen), &csr()).await.unwrap();
    session_of(&test, &with(&renewed)).await.unwrap();
    for _ in 0..3 {
        assert!(is_forbidden(&session_of(&test, &with(&stolen)).await));
        assert!(is_forbidden(&renew(&test.app, &with(&stolen), &csr()).await));
    }
    assert!(is_forbidden(&session_of(&test, &unknown()).await));

    let audited = test.audited("agent.cloned").await;
    let reason = "this key was renewed, and the renewed key has been used since".to_owned();
    assert_eq!(audited, [("agent/host:vm-1".into(), Outcome::Denied, reason.clone())], "one in a minute");
    let alarm = admitted(&test.app, &vm()).await.unwrap().record.cloned.unwrap();
    assert_eq!((alarm.attempts, alarm.reason), (1, reason));
    let (listed, _) = list(&test.app, 10, None).await.unwrap();
    assert!(listed[0].record.cloned.is_some());

    // A minute later the next attempt counts those in between.
    let minute = Duration::from_secs(61);
    change(&test, |record| record.cloned.as_mut().unwrap().last_at -= minute).await;
    assert!(is_forbidden(&session_of(&test, &with(&stolen)).await));
    let record = test.events().await.into_iter().rfind(|event| event.action == "agent.cloned").unwrap();
    assert_eq!(record.details["count"], "7");
    assert_eq!(record.details["address"], "192.0.2.10");
    assert_eq!(admitted(&test.app, &vm()).await.unwrap().record.cloned.unwrap().attempts, 8);

    // The machine goes on all the while, and a ban and an enrolment end the alarm.
    session_of(&test, &with(&renewed)).await.unwrap();
    enrolled(&test).await;
    assert_eq!(admitted(&test.app, &vm()).await.unwrap().record.cloned, None);
}

#[tokio::test(start_paused = true)]
async fn i7_an_alarm_or_an_enrolment_far_ahead_silences_no_alarm() {
    let test = TestApp::new();
    let stolen = enrolled(&test).await;
    let renewed = renew(&test.app, &with(&stolen), &csr()).await.unwrap();
    session_of(&test, &with(&renewed)).await.unwrap();
    // The former identity of an agent is no key that was renewed.
    assert!(is_forbidden(&session_of(&test, &with(&stolen)).await));
    assert_eq!(test.audited("agent.cloned").await.len(), 1, "right after an enrolment, too");
    let hour = Duration::from_secs(3600);
    change(&test, |record| record.cloned.as_mut().unwrap().last_at += hour).await;
    assert!(is_forbidden(&session_of(&test, &with(&stolen)).await));
    assert_eq!(test.audited("agent.cloned").await.len(), 2, "by a clock that was an hour ahead");
    let alarm = admitted(&test.app, &vm()).await.unwrap().record.cloned.unwrap();
    assert!(alarm.last_at <= test.app.clock.now(), "{alarm:?}");
    change(&test, |record| {
        record.cloned = None;
        record.enrolled_at += hour;
    })
    .await;
    assert!(is_forbidden(&session_of(&test, &unknown()).await));
    assert_eq!(test.audited("agent.cloned").await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn i7_the_answer_to_a_clone_waits_and_takes_no_session_away() {
    let test = TestApp::new();
    let stolen = enrolled_long_ago(&test).await;
    let renewed = renew(&test.app, &with(&stolen), &csr()).await.unwrap();
    let _machine = session_of(&test, &with(&renewed)).await.unwrap();
    let number = test.app.sessions.session_number(&vm());
    let mut waits = Vec::new();
    for _ in 0..5 {
        let start = postern_runtime::clock::instant();
        assert!(is_forbidden(&session_of(&test, &with(&stolen)).await));
        waits.push(start.elapsed().as_millis());
    }
    assert!(waits.is_sorted() && waits[0] >= 500 && (5000..5100).contains(&waits[4]), "{waits:?}");
    assert_eq!(test.app.sessions.session_number(&vm()), number);
    assert!(test.app.sessions.report(&vm()).online);
}

#[tokio::test(start_paused = true)]
async fn i7_two_machines_with_one_key_do_not_throw_each_other_out_for_ever() {
    let test = TestApp::new();
    let issued = enrolled_long_ago(&test).await;
    let (machine, mut clone) = (with(&issued), with(&issued));
    clone.address = Some([192, 0, 2, 66].into());
    let mut sessions = Vec::new();
    for number in 0..4 {
        let (caller, boot) = if number % 2 == 0 { (&machine, "boot-1") } else { (&clone, "boot-2") };
        sessions.push(connect_from(&test, caller, boot).await.unwrap());
    }
    let number = test.app.sessions.session_number(&vm());
    for _ in 0..5 {
        assert!(is_forbidden(&connect_from(&test, &machine, "boot-1").await));
    }
    assert_eq!(test.app.sessions.session_number(&vm()), number, "the session that is there stays");
    let reason = "two machines use the key of this agent at the same time".to_owned();
    assert_eq!(test.audited("agent.cloned").await, [("agent/host:vm-1".into(), Outcome::Denied, reason)]);
    // The one that is there may come back, and stays for as long as its agent sends something.
    let session = connect_from(&test, &clone, "boot-2").await.unwrap();
    for _ in 0..5 {
        test.app.clock.advance(Duration::from_secs(30));
        session.mark_seen();
        assert!(is_forbidden(&connect_from(&test, &machine, "boot-1").await));
    }
    // Once it is silent, or gone, the other may come.
    test.app.clock.advance(Duration::from_secs(7));
    sessions.push(connect_from(&test, &machine, "boot-1").await.unwrap());
    assert!(is_forbidden(&connect_from(&test, &clone, "boot-2").await));
    sessions.clear();
    connect_from(&test, &clone, "boot-2").await.unwrap();
}

#[tokio::test]
async fn i8_a_machine_that_reboots_or_moves_is_no_clone() {
    let test = TestApp::new();
    let issued = enrolled_long_ago(&test).await;
    let mut sessions = Vec::new();
    let addresses: [IpAddr; 3] =
        [[192, 0, 2, 10].into(), [198, 51, 100, 1].into(), "2001:db8::10".parse().unwrap()];
    for number in 0..40 {
        // The network breaks, and the agent reconnects within a second, by another address each time.
        let caller = AgentCaller { address: Some(addresses[number % 3]), ..with(&issued) };
        // Every tenth time the machine boots, which takes longer than that.
        let boot = format!("boot-{}", number / 10);
        sessions.push(connect_from(&test, &caller, &boot).await.unwrap());
        let pause = if number % 10 == 9 { 10_000 } else { 800 };
        test.app.clock.advance(Duration::from_millis(pause));
    }
    // A machine that boots at once displaces a session that still looks alive: once is no clone, nor is twice.
    for boot in ["boot-4", "boot-5"] {
        sessions.push(connect_from(&test, &with(&issued), boot).await.unwrap());
    }
    assert!(test.audited("agent.cloned").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn i8_a_renewal_whose_answer_was_lost_is_repeated_also_after_the_end_of_the_certificate() {
    let test = TestApp::new();
    let issued = enrolled_long_ago(&test).await;
    let lost = renew(&test.app, &with(&issued), &csr()).await.unwrap();
    let repeated = renew(&test.app, &with(&issued), &csr()).await.unwrap();
    assert!(is_forbidden(&session_of(&test, &with(&lost)).await), "only a thief can have it");
    session_of(&test, &with(&repeated)).await.unwrap();

    // The machine was off for a week, and the answer to its late renewal was lost.
    let mut ended = with(&repeated);
    ended.certificate_not_after -= Duration::from_secs(7 * 24 * 3600);
    renew_late(&test.app, &ended, &csr()).await.unwrap();
    let renewed = renew_late(&test.app, &ended, &csr()).await.unwrap();
    session_of(&test, &with(&renewed)).await.unwrap();
}

#[tokio::test]
async fn i8_a_record_of_an_earlier_version_learns_the_key_that_it_sees_first() {
    let test = TestApp::new();
    let issued = enrolled_long_ago(&test).await;
    change(&test, |record| record.keys = None).await;
    session_of(&test, &with(&issued)).await.unwrap();
    assert_eq!(key_uses(&test).await, [true], "adopted");
    assert!(is_forbidden(&session_of(&test, &unknown()).await));
    let stored = r#"{"target":"host:vm-1","enrolled_at":"1970-01-01T00:00:00Z","certificate_not_after":"1970-01-01T01:00:00Z","banned":null}"#;
    let record: AgentRecord = serde_json::from_str(stored).unwrap();
    assert_eq!((record.keys, record.cloned, record.forgotten), (None, None, None));
}

#[tokio::test]
async fn i8_an_agent_whose_newest_key_the_store_has_lost_goes_on() {
    let test = TestApp::new();
    let issued = enrolled_long_ago(&test).await;
    let mut later = unknown();
    later.certificate_not_after = issued.not_after + Duration::from_secs(1);
    session_of(&test, &later).await.unwrap();
    assert_eq!(key_uses(&test).await, [true]);
    assert!(is_forbidden(&session_of(&test, &with(&issued)).await), "the older copy is out");
}

#[tokio::test]
async fn i9_the_first_session_with_a_renewed_key_is_recorded_once() {
    let test = TestApp::new();
    let issued = enrolled(&test).await;
    session_of(&test, &with(&issued)).await.unwrap();
    assert!(test.audited("agent.key_used").await.is_empty(), "there is no key before");
    let renewed = renew(&test.app, &with(&issued), &csr()).await.unwrap();
    session_of(&test, &with(&issued)).await.unwrap();
    for _ in 0..3 {
        session_of(&test, &with(&renewed)).await.unwrap();
    }
    assert_eq!(key_uses(&test).await, [false]);
}

/// Returns for each first session with a key whether the record adopted the key.
async fn key_uses(test: &TestApp) -> Vec<bool> {
    let events = test.events().await.into_iter().filter(|event| event.action == "agent.key_used");
    events.map(|event| event.details["adopted"] == "true").collect()
}
