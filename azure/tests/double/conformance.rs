//! The suite that every provider runs.

use postern_provider::conformance::{Subject, run};

use crate::world::{DoubleWorld, SUBSCRIPTION};

#[tokio::test]
async fn azure_conforms() {
    let world = DoubleWorld::new().await;
    let before = (world.group_rules("nsg-subnet"), world.group_rules("nsg-nic"));
    // The suite locks tcp/22 and tcp/3389 again, with every concern accepted.
    world.lock(0).await;
    world.lock(1).await;
    let missing = format!(
        "azure:/subscriptions/{SUBSCRIPTION}/resourceGroups/Web/providers/Microsoft.Compute/virtualMachines/none"
    );
    let targets = [world.target(0), world.target(1)];
    let subject = Subject {
        provider: world.azure.as_ref(),
        targets: targets.clone(),
        missing: missing.parse().unwrap(),
    };
    run(&subject).await;
    for target in &targets {
        postern_provider::Provider::release(world.azure.as_ref(), target).await.unwrap();
    }
    assert_eq!(
        (world.group_rules("nsg-subnet"), world.group_rules("nsg-nic")),
        before,
        "the customer's rules are as they were"
    );
}
