//! Commands that fill a store while a mark is there: those of a migration, and those of an upgrade.

use redis::Script;
use redis::aio::ConnectionLike;

use super::error::redis_failed;
use super::server::Server;
use crate::body::to_body;
use crate::error::StoreError;
use crate::indexes::Indexes;

/// The number of fields that are read at once.
pub(super) const PAGE: usize = 500;

/// The words of a command. The second one is its key, without the prefix.
pub(super) type Command = Vec<String>;

/// Makes a command of its words.
pub(super) fn command<const N: usize>(words: [&str; N]) -> Command {
    words.map(str::to_owned).into()
}

/// Returns the commands that put a document into its indexes, as `commit.lua` does.
pub(super) fn index(kind: &str, key: &str, indexes: &Indexes) -> Vec<Command> {
    let mut commands: Vec<Command> =
        indexes.names().map(|name| command(["ZADD", &format!("index:{kind}:{name}"), "0", key])).collect();
    if !commands.is_empty() {
        commands.push(command(["HSET", &format!("indexed:{kind}"), key, indexes.text()]));
    }
    commands
}

/// Runs the commands at one instant, if the key of the mark still has this text. Reports whether it had.
pub(super) async fn guarded(
    server: &Server,
    connection: &mut (impl ConnectionLike + Send),
    (key, mark): (&str, &str),
    commands: &[Command],
) -> Result<bool, StoreError> {
    let script = Script::new(include_str!("guarded.lua"));
    let mut script = script.key(&server.prefix);
    script.arg(key).arg(mark).arg(to_body(&commands)?);
    script.invoke_async(connection).await.map_err(redis_failed)
}
