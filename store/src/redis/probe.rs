//! The look at a server before anything is written to it: does it run the commands that the store needs?
//!
//! Managed servers lack some commands, others have them renamed, and a user's access control may forbid them. A broker that found that
//! out by its first commit would have half made a store. So each command is run once where it changes nothing; the answer names all that
//! are missing. ROLE, INFO and CONFIG GET are not among them: the store does without (`discovery.rs`, `warnings.rs`).

use redis::{Cmd, Script, Value, cmd};

use super::error::{is_lacking, redis_failed};
use super::server::Server;
use crate::document::shown;
use crate::error::StoreError;

/// Checks that the server runs every command that the store needs.
///
/// # Errors
/// The server cannot be reached, or lacks commands ([`StoreError::Lacking`]).
pub(super) async fn check(server: &Server) -> Result<(), StoreError> {
    let mut connection = server.connect().await?;
    let mut lacking = Vec::new();
    for (name, permission, command) in commands(server) {
        match command.query_async::<Value>(&mut connection).await {
            Ok(_) => {}
            Err(error) if is_lacking(&error) => lacking.push((name, permission, shown(&error.to_string()))),
            // The script is not there, as it could not be loaded; the command is.
            Err(error) if error.code() == Some("NOSCRIPT") => {}
            Err(error) => return Err(redis_failed(error)),
        }
    }
    let Some((_, _, answer)) = lacking.first() else { return Ok(()) };
    let names = lacking.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
    let permissions = lacking.iter().map(|(_, it, _)| it.as_str()).collect::<Vec<_>>().join(" ");
    Err(StoreError::Lacking {
        what: format!(
            "{names} (it says: {answer}); allow the user {permissions}, or use a server that has them under these names"
        ),
    })
}

/// Returns each command with its name, the permission for it, and a call that changes nothing.
fn commands(server: &Server) -> Vec<(&'static str, String, Cmd)> {
    let script = "return 1";
    let (mut load, mut run, mut publish) = (cmd("SCRIPT"), cmd("EVALSHA"), cmd("PUBLISH"));
    load.arg("LOAD").arg(script);
    run.arg(Script::new(script).get_hash()).arg(0);
    // Brokers listen to another channel.
    publish.arg(server.key("probe")).arg("");
    let mut all = vec![
        ("SCRIPT LOAD", "+script|load".to_owned(), load),
        ("EVALSHA", "+evalsha".to_owned(), run),
        ("PUBLISH", format!("+publish &{}", server.key("*")), publish),
        ("TIME", "+time".to_owned(), cmd("TIME")),
    ];
    if server.replicas > 0 {
        let mut wait = cmd("WAIT");
        wait.arg(0).arg(1);
        all.push(("WAIT", "+wait".to_owned(), wait));
    }
    all
}
