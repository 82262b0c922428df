//! The broker's identity: every kind of credential, their rotation, and the hosts that get no token.

use std::sync::Arc;
use std::time::Duration;

use postern_azure::{Azure, Credential};
use postern_provider::{CallerToken, CloudError, Provider as _};
use serde_json::json;
use tokio::task::JoinSet;

use crate::world::{DoubleWorld, application};

const CERTIFICATE: &str = include_str!("keys/test.pem");
const KEY: &str = include_str!("keys/test.key");

impl DoubleWorld {
    fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        postern_runtime::files::replace(&path, text.as_bytes(), 0o600).unwrap();
        path
    }

    fn provider_with(&self, credential: Credential) -> Arc<Azure> {
        let mut settings = self.settings.clone();
        settings.credential = credential;
        Arc::new(Azure::connect(settings).unwrap())
    }

    async fn try_observe(&self, azure: &Azure) -> Result<(), CloudError> {
        azure.observe(&self.target(0)).await.map(drop)
    }
}

#[tokio::test]
async fn a_client_secret_is_read_again_when_it_is_needed() {
    let world = DoubleWorld::new().await;
    world.try_observe(&world.azure).await.unwrap();
    world.sim.client("tenant", "broker", "rotated");
    world.sim.forget_tokens();
    world.write("secret", "rotated\n");
    // The first call finds that the token is revoked.
    world.try_observe(&world.azure).await.ok();
    world.try_observe(&world.azure).await.unwrap();
}

#[tokio::test]
async fn a_certificate_signs_for_its_application() {
    let world = DoubleWorld::new().await;
    let (certificate, key) = (world.write("cert.pem", CERTIFICATE), world.write("key.pem", KEY));
    let credential = Credential::ClientCertificate { application: application(), certificate, key };
    let azure = world.provider_with(credential.clone());
    let unknown = world.try_observe(&azure).await;
    assert!(matches!(unknown, Err(CloudError::Unavailable { .. })), "{unknown:?}");
    world.sim.client_certificate("tenant", "broker", pem::parse(CERTIFICATE).unwrap().contents());
    world.try_observe(&azure).await.unwrap();

    world.write("key.pem", "not a key");
    let broken = world.try_observe(&world.provider_with(credential)).await;
    let Err(CloudError::Unavailable { reason }) = broken else { panic!("{broken:?}") };
    assert!(reason.contains("RSA key") && !reason.contains("not a key"), "{reason}");
}

#[tokio::test]
async fn a_federated_token_is_read_again_for_each_login() {
    let world = DoubleWorld::new().await;
    world.sim.federated("tenant", "broker", "issued-2");
    let token_file = world.write("token", "issued-1");
    let azure = world.provider_with(Credential::WorkloadIdentity { application: application(), token_file });
    assert!(world.try_observe(&azure).await.is_err());
    world.write("token", "issued-2\n");
    world.try_observe(&azure).await.unwrap();
}

#[tokio::test]
async fn a_managed_identity_is_asked_of_the_metadata_service() {
    let world = DoubleWorld::new().await;
    for client_id in [None, Some("one-of-two".to_owned())] {
        let azure = world.provider_with(Credential::ManagedIdentity { client_id: client_id.clone() });
        assert!(world.try_observe(&azure).await.is_err(), "{client_id:?} is not there yet");
        world.sim.managed_identity(client_id.as_deref());
        world.try_observe(&azure).await.unwrap();
    }
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_renewed_before_its_end() {
    let world = DoubleWorld::new().await;
    world.sim.token_lifetime(Duration::from_secs(30));
    let logins = |world: &DoubleWorld| world.sim.calls().iter().filter(|call| call.is_login()).count();
    for _ in 0..5 {
        world.try_observe(&world.azure).await.unwrap();
    }
    assert_eq!(logins(&world), 1);
    tokio::time::sleep(Duration::from_millis(15_100)).await;
    world.try_observe(&world.azure).await.unwrap();
    assert_eq!(logins(&world), 2, "past the half of a short life");
}

#[tokio::test]
async fn no_answer_leads_the_token_to_another_host() {
    let world = DoubleWorld::new().await;
    world.lock(0).await;
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    // The same double, by another name.
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = format!("http://{}", proxy.local_addr().unwrap());
    let mut proxying = JoinSet::new();
    proxying.spawn(crate::world::misleading(proxy, world.server.address(), other.local_addr().unwrap()));
    let mut settings = world.settings.clone();
    settings.environment.resource_manager = through;
    let azure = Azure::connect(settings).unwrap();

    let window = world.window(0, 1, "tcp/22", "203.0.113.7");
    let misled = azure.open(&window.target, &[window.clone()].into()).await;
    let Err(CloudError::Unavailable { reason }) = misled else { panic!("{misled:?}") };
    assert!(reason.contains("not Azure Resource Manager"), "{reason}");
    world.sim.page_size(1);
    let sweep = azure.sweep().await;
    assert_eq!(sweep.unread.len(), 1, "{sweep:?}");
    let connected = tokio::time::timeout(Duration::from_millis(100), other.accept()).await;
    assert!(connected.is_err(), "a call went elsewhere");
}

#[tokio::test]
async fn i7_azure_says_with_the_callers_own_token_who_may_ask() {
    let world = DoubleWorld::new().await;
    let mut settings = world.settings.clone();
    settings.authorize_callers = true;
    let azure = Azure::connect(settings).unwrap();
    let target = world.target(0);
    let vm = world.vms[0].id.clone();
    let initiate = "Microsoft.Security/locations/jitNetworkAccessPolicies/initiate/action";
    let permissions =
        |actions: &[&str], not: &[&str]| json!({"value": [{"actions": actions, "notActions": not}]});
    world.sim.caller("may", permissions(&[initiate, "Microsoft.Compute/virtualMachines/read"], &[]), &[&vm]);
    world.sim.caller("cannot-see", permissions(&[initiate], &[]), &[]);
    world.sim.caller("may-look", permissions(&["*/read"], &[]), &[&vm]);
    world.sim.caller("all-but", permissions(&["*"], &["Microsoft.Security/*"]), &[&vm]);
    let ask = |token: &'static str| {
        let (azure, target) = (&azure, &target);
        async move { azure.authorize(target, Some(&CallerToken::new(token).unwrap())).await }
    };
    assert_eq!(ask("may").await, Ok(()));
    for (token, says) in [
        ("cannot-see", "may not read"),
        ("may-look", initiate),
        ("all-but", initiate),
        ("invented", "does not take your token"),
    ] {
        let refused = ask(token).await;
        let Err(CloudError::Refused { reason }) = refused else { panic!("{token}: {refused:?}") };
        assert!(reason.contains(says) && !reason.contains(token), "{token}: {reason}");
    }
    let none = azure.authorize(&target, None).await;
    assert!(matches!(&none, Err(CloudError::Refused { reason }) if reason.contains("no token")), "{none:?}");
    // The broker's own token lives on, and a broker that is configured not to ask makes no such call.
    world.try_observe(&azure).await.unwrap();
    world.sim.forget_calls();
    assert_eq!(world.azure.authorize(&target, None).await, Ok(()));
    assert!(world.sim.calls().is_empty());
    world.sim.outage(true);
    let silent = ask("may").await;
    assert!(matches!(silent, Err(CloudError::Unavailable { .. })), "an outage is no refusal: {silent:?}");
}

#[tokio::test]
async fn the_role_in_packaging_gives_what_is_used_and_nothing_else() {
    let role: serde_json::Value =
        serde_json::from_str(include_str!("../../../packaging/azure/role.json")).unwrap();
    let actions: Vec<String> = serde_json::from_value(role["Actions"].clone()).unwrap();
    let world = crate::firewall::behind_a_firewall().await;
    world.lab.rule("nsg", "first", 100, "Allow", "*", "*", "22");
    // A rule for an application security group leaves no room either: a move joins that group once more.
    let role = world.lab.id("applicationSecurityGroups", "web");
    world.sim.edit(&world.vms[0].interface, |nic| {
        nic["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] =
            json!([{"id": role}]);
    });
    world.sim.edit(&world.lab.nsg_id("nsg"), |nsg| {
        let rule = &mut nsg["properties"]["securityRules"][0]["properties"];
        rule.as_object_mut().unwrap().remove("destinationAddressPrefix");
        rule["destinationApplicationSecurityGroups"] = json!([{"id": role}]);
    });
    world.lab.load_balancer("lb", "198.51.100.3", 2222, 22, &world.vms[0]);
    world.sim.permissions(Some(actions.clone()));
    world.sim.forget_calls();
    world.lock(0).await;
    let window = world.window(0, 1, "tcp/22", "203.0.113.7");
    world.open(&window).await;
    assert_eq!(world.azure.sweep().await.unread, []);
    assert_eq!(world.azure.assess(&["tcp/22".parse().unwrap()].into()).await.unread, []);
    world.close(&window).await;
    world.azure.repair(&world.target(0)).await.unwrap();
    world.azure.release(&world.target(0)).await.unwrap();
    let used = world.sim.actions();
    // The double does not check permissions on the URLs of operations.
    let given: Vec<&String> = actions.iter().filter(|action| !action.contains("/locations/")).collect();
    for action in &given {
        assert!(used.contains(action), "{action} is given, and not used");
    }
    for action in &used {
        assert!(given.contains(&action), "{action} is used, and not given");
    }

    // Without one of them the error names the role.
    let less = actions.into_iter().filter(|action| !action.ends_with("securityRules/write")).collect();
    world.sim.permissions(Some(less));
    let refused = world.azure.lockdown(&world.order(0, crate::world::posterns_first())).await;
    let Err(CloudError::Refused { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("AuthorizationFailed") && reason.contains("role.json"), "{reason}");
}
