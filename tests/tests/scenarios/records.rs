//! Records of the embedded store that a scenario edits, while the broker is down: as a broker would, with its key.

use postern_core::audit::AuditEvent;
use postern_store::embedded::Embedded;
use postern_store::{AgentRecord, Expect, Transaction};
use postern_tests::HostWorld;
use serde_json::Value;

/// Changes the agent's record.
pub(crate) fn edit_agent_record(world: &mut HostWorld, change: impl FnOnce(&mut Value)) {
    world.broker.process().terminate();
    let store = Embedded::open(&world.broker.database(), &world.broker.sealing()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let known = store.agents().await.unwrap().pop().unwrap();
        let mut record = serde_json::to_value(&known.record).unwrap();
        change(&mut record);
        let agent: AgentRecord = serde_json::from_value(record).unwrap();
        let event = AuditEvent::done(postern_runtime::clock::wall(), "a test", "a test");
        let put = Transaction::default().put_agent(agent, Expect::Version(known.version)).audit(event);
        store.commit(put).await.unwrap();
    });
    drop(store);
    world.broker.serve();
}
