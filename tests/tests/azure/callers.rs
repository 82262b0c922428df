//! The broker asks Azure, with the caller's own token, whether the caller may request access.

use postern_proto::v1::Layers;
use postern_tests::azure::{AzureOptions, AzureWorld};
use serde_json::json;

const INITIATE: &str = "Microsoft.Security/locations/jitNetworkAccessPolicies/initiate/action";

#[test]
fn i7_the_callers_own_token_decides_after_policy_and_appears_nowhere() {
    let options = AzureOptions {
        layers: Layers::Cloud,
        firewall: false,
        locked: true,
        more: "authorize_callers = true\n",
        sections: "",
    };
    let world = AzureWorld::with(options);
    let (arm, vm) = (&world.azure.arm, world.vm.id.clone());
    arm.caller(
        "token-of-alice",
        json!({"value": [{"actions": [INITIATE, "*/read"], "notActions": []}]}),
        &[&vm],
    );
    arm.caller("token-of-a-stranger", json!({"value": [{"actions": ["*/read"], "notActions": []}]}), &[&vm]);
    let file = |token: &str| {
        let path = world.dir().join(token);
        postern_runtime::files::replace(&path, format!("{token}\n").as_bytes(), 0o600).unwrap();
        path.display().to_string()
    };
    let (cli, target, source) = (world.alice.cli(), world.target(), world.net.alice.v4().to_string());
    let ask = |more: &[&str]| {
        let begin =
            ["request", &target, "--port", "22", "--for", "60s", "--reason", "a test", "--source", &source];
        cli.run(&[&begin, more].concat())
    };
    let refused = ask(&[]);
    assert!(!refused.succeeded() && refused.err.contains("--cloud-token"), "{refused:?}");
    let refused = ask(&["--cloud-token", &file("token-of-a-stranger")]);
    assert!(!refused.succeeded() && refused.err.contains(INITIATE), "{refused:?}");
    let missing = ask(&["--cloud-token", "/nowhere/at/all"]);
    assert!(!missing.succeeded() && missing.err.contains("--cloud-token"), "{missing:?}");
    assert!(!world.is_open() && world.alice.grants().is_empty());
    let denied = world.admin.audited("grant.requested");
    assert_eq!(denied.iter().filter(|line| line.contains("NOT_ALLOWED_BY_CLOUD")).count(), 2, "{denied:?}");

    let opened = ask(&["--cloud-token", &file("token-of-alice")]);
    assert!(opened.succeeded() && world.is_open(), "{opened:?}");
    let everything = [world.broker.log(), world.admin.audit().join("\n"), refused.err, opened.out].concat();
    assert!(!everything.contains("token-of-"), "a token appears");
}
