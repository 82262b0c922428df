//! Records of the embedded store that a scenario edits, while the broker is down.

use postern_tests::HostWorld;

/// Replaces the body of the agent's record by this expression of SQLite.
pub(crate) fn edit_agent_record(world: &mut HostWorld, body: &str) {
    world.broker.process().terminate();
    let database = rusqlite::Connection::open(world.broker.database()).unwrap();
    let sql = format!("UPDATE documents SET body = {body} WHERE place GLOB 'agents/*'");
    assert_eq!(database.execute(&sql, []).unwrap(), 1);
    database.close().unwrap();
    world.broker.serve();
}
