//! Faults: throttling, lost answers, failed operations, an outage, tokens that end, permissions that lack.

use std::time::Duration;

use postern_azure_sim::{Fault, operation_failed, refused};
use postern_core::plan::LayerWindow;
use postern_provider::{CloudError, Provider as _};

use crate::world::DoubleWorld;

const ALICE: &str = "203.0.113.7";

async fn locked_world() -> (DoubleWorld, LayerWindow) {
    let world = DoubleWorld::new().await;
    world.lock(0).await;
    let window = world.window(0, 1, "tcp/22", ALICE);
    (world, window)
}

impl DoubleWorld {
    async fn try_open(&self, window: &LayerWindow) -> Result<(), CloudError> {
        self.azure.open(&window.target, &[window.clone()].into()).await.map(drop)
    }

    async fn try_close(&self, window: &LayerWindow) -> Result<(), CloudError> {
        self.azure.close(&window.target, &[window.clone()].into()).await
    }
}

#[tokio::test]
async fn a_busy_group_is_tried_again_until_it_is_free() {
    let (world, window) = locked_world().await;
    let busy = [
        (429, "RetryableErrorDueToAnotherOperation"),
        (409, "AnotherOperationInProgress"),
        (429, "TooManyRequests"),
    ];
    for (status, code) in busy {
        world.sim.fail("PUT", "/securityRules/", 2, refused(status, code));
        world.try_open(&window).await.unwrap_or_else(|error| panic!("{status} {code}: {error}"));
        assert!(world.admits(ALICE, 0, 22));
        world.sim.fail("DELETE", "/securityRules/", 2, refused(status, code));
        world.try_close(&window).await.unwrap_or_else(|error| panic!("{status} {code}: {error}"));
        assert!(!world.admits(ALICE, 0, 22));
    }
}

#[tokio::test]
async fn i8_twenty_grants_at_once_on_one_group_all_open_and_all_close_through_a_storm() {
    let world = DoubleWorld::new().await;
    world.lock(0).await;
    world.lock(1).await;
    world.sim.settle("Microsoft.Network/networkSecurityGroups", Duration::from_millis(5));
    for (status, code, times) in [
        (429, "RetryableErrorDueToAnotherOperation", 6),
        (409, "AnotherOperationInProgress", 6),
        (412, "PreconditionFailed", 2),
        (500, "InternalServerError", 2),
    ] {
        world.sim.fail("PUT", "/securityRules/postern-allow", times, refused(status, code));
    }
    world.sim.fail("PUT", "/securityRules/postern-allow", 2, Fault::Lost);
    world.sim.fail("PUT", "/securityRules/postern-allow", 2, Fault::Dropped);
    let windows: Vec<LayerWindow> = (1..=20)
        .map(|grant| {
            world.window(usize::from(grant % 2 == 0), grant, "tcp/22", &format!("203.0.113.{grant}"))
        })
        .collect();
    // The driver repeats a call whose outcome it does not know.
    let insist = |window: LayerWindow, opens: bool| {
        let world = &world;
        async move {
            for _ in 0..20 {
                let done = if opens { world.try_open(&window).await } else { world.try_close(&window).await };
                match done {
                    Ok(()) => return,
                    Err(CloudError::Unavailable { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            panic!("{window:?} did not come through");
        }
    };
    futures_util::future::join_all(windows.iter().cloned().map(|window| insist(window, true))).await;
    for (at, window) in windows.iter().enumerate() {
        let from = format!("203.0.113.{}", at + 1);
        assert!(world.admits(&from, usize::from((at + 1) % 2 == 0), 22), "{window:?}");
    }
    world.sim.fail("DELETE", "/securityRules/", 8, refused(429, "RetryableErrorDueToAnotherOperation"));
    world.sim.fail("DELETE", "/securityRules/", 2, Fault::Lost);
    futures_util::future::join_all(windows.iter().cloned().map(|window| insist(window, false))).await;
    for number in [0, 1] {
        let observed = world.observe(number).await;
        assert_eq!((observed.windows, observed.partial, observed.drift), ([].into(), [].into(), vec![]));
    }
    let priorities = |nsg: &str| -> Vec<u64> {
        world.group_rules(nsg).iter().map(|rule| rule["properties"]["priority"].as_u64().unwrap()).collect()
    };
    assert!(priorities("nsg-subnet").is_sorted_by(|a, b| a < b));
}

#[tokio::test]
async fn a_lost_answer_is_an_error_and_asking_again_finds_what_it_did() {
    let (world, window) = locked_world().await;
    world.sim.fail("PUT", "/securityRules/", 1, Fault::Lost);
    let lost = world.try_open(&window).await;
    assert!(matches!(lost, Err(CloudError::Unavailable { .. })), "{lost:?}");
    world.try_open(&window).await.unwrap();
    assert_eq!(world.observe(0).await.windows, [window.clone()].into());
    let allows =
        world.managed_rules("nsg-subnet").into_iter().filter(|name| name.starts_with("postern-allow-"));
    assert_eq!(allows.count(), 1, "it was not written twice");
    world.sim.fail("DELETE", "/securityRules/", 1, Fault::Lost);
    let lost = world.try_close(&window).await;
    assert!(matches!(lost, Err(CloudError::Unavailable { .. })), "{lost:?}");
    world.try_close(&window).await.unwrap();
    assert_eq!(world.observe(0).await.windows, [].into());
}

#[tokio::test]
async fn a_failed_operation_is_an_error_with_azures_words() {
    let (world, window) = locked_world().await;
    world.sim.settle("Microsoft.Network/networkSecurityGroups", Duration::from_millis(20));
    world.sim.fail("PUT", "/securityRules/", 1, operation_failed("InternalServerError"));
    let failed = world.try_open(&window).await;
    assert!(
        matches!(&failed, Err(CloudError::Unavailable { reason }) if reason.contains("InternalServerError"))
    );
    assert!(!world.admits(ALICE, 0, 22));
    world.try_open(&window).await.unwrap();
    assert!(world.admits(ALICE, 0, 22), "and it is in force once open has answered");
}

#[tokio::test]
async fn a_window_is_open_only_once_its_operation_is_done() {
    let (world, window) = locked_world().await;
    world.sim.settle("Microsoft.Network/networkSecurityGroups", Duration::from_secs(4));
    world.sim.forget_calls();
    let opening = world.try_open(&window);
    let watching = async {
        world.written("/securityRules/").await;
        let observed = world.another().observe(&window.target).await.unwrap();
        assert_eq!(observed.windows, [].into(), "what is being written is not open");
    };
    let (opened, ()) = tokio::join!(opening, watching);
    opened.unwrap();
    assert!(world.admits(ALICE, 0, 22));
}

#[tokio::test]
async fn an_outage_is_an_outage_and_nothing_is_not_found() {
    let (world, window) = locked_world().await;
    world.try_open(&window).await.unwrap();
    world.sim.outage(true);
    let answers = [
        world.azure.observe(&window.target).await.map(drop),
        world.try_open(&world.window(0, 2, "tcp/22", ALICE)).await,
        world.try_close(&window).await,
        world.azure.release(&window.target).await.map(drop),
    ];
    for answer in answers {
        assert!(matches!(answer, Err(CloudError::Unavailable { .. })), "{answer:?}");
    }
    let sweep = world.azure.sweep().await;
    assert!(sweep.unread.len() == 1 && sweep.sightings.is_empty(), "{sweep:?}");
    world.sim.outage(false);
    world.try_close(&window).await.unwrap();
    assert!(!world.admits(ALICE, 0, 22));
}

#[tokio::test]
async fn only_what_azure_calls_not_found_is_not_found() {
    let (world, window) = locked_world().await;
    world.try_open(&window).await.unwrap();
    let vm = "/virtualMachines/";
    for (status, code) in
        [(404, "SubscriptionNotFound"), (404, "InvalidResourceType"), (403, "AuthorizationFailed")]
    {
        world.sim.fail("GET", vm, 1, refused(status, code));
        let observed = world.azure.observe(&window.target).await;
        assert!(
            matches!(&observed, Err(CloudError::Refused { reason }) if reason.contains(code)),
            "{code}: {observed:?}"
        );
    }
    for (status, code) in [(404, "ResourceNotFound"), (404, "ResourceGroupNotFound")] {
        world.sim.fail("GET", vm, 1, refused(status, code));
        let observed = world.azure.observe(&window.target).await;
        assert!(matches!(observed, Err(CloudError::NotFound { .. })), "{code}: {observed:?}");
    }
}

#[tokio::test]
async fn a_token_that_ends_or_is_taken_back_is_replaced() {
    let (world, window) = locked_world().await;
    world.sim.forget_tokens();
    // The first call finds the token revoked; the driver's next call has a new one.
    let first = world.try_open(&window).await;
    assert!(matches!(first, Ok(()) | Err(CloudError::Unavailable { .. })), "{first:?}");
    world.try_open(&window).await.unwrap();
    assert!(world.admits(ALICE, 0, 22));
    world.sim.token_lifetime(Duration::from_secs(4));
    world.sim.forget_tokens();
    let short = world.another();
    short.observe(&window.target).await.unwrap();
    tokio::time::sleep(Duration::from_millis(4100)).await;
    short.close(&window.target, &[window.clone()].into()).await.unwrap();
    assert!(!world.admits(ALICE, 0, 22));
}

#[tokio::test]
async fn a_login_that_fails_is_an_outage_and_says_whose_fault_it_is() {
    let (world, window) = locked_world().await;
    std::fs::write(world.dir.path().join("secret"), "wrong").unwrap();
    let refused = world.another().observe(&window.target).await;
    let Err(CloudError::Unavailable { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("Entra") && reason.contains("AADSTS7000215"), "{reason}");
    assert!(!reason.contains("wrong"), "the error holds no secret");
}

#[tokio::test]
async fn a_full_group_refuses_a_window_in_words_and_lets_the_others_be() {
    let (world, window) = locked_world().await;
    world.sim.edit(&world.lab.nsg_id("nsg-subnet"), |nsg| {
        let rules = nsg["properties"]["securityRules"].as_array_mut().unwrap();
        let template = rules.iter().find(|rule| rule["name"] == "https").unwrap().clone();
        for at in 0..1000 - rules.len() {
            let mut rule = template.clone();
            rule["name"] = format!("filler-{at}").into();
            rule["properties"]["priority"] = (2000 + at).into();
            rules.push(rule);
        }
    });
    let full = world.try_open(&window).await;
    assert!(matches!(&full, Err(CloudError::Refused { .. })), "{full:?}");
    assert!(!world.admits(ALICE, 0, 22));
    world.try_close(&window).await.unwrap();
    assert_eq!(world.observe(0).await.partial, [].into());
}
