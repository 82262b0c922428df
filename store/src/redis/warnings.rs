//! Warnings about settings of the server under which an answered grant is not durable, each with the remedy.

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, InfoDict};

use super::error::{redis_failed, unless_refused};
use super::server::Server;
use crate::error::StoreError;

/// The oldest version with everything that the scripts use.
const OLDEST: (u64, u64) = (7, 0);
/// The longest lag, in seconds, at which a replica may count as connected: a failover may lose the rest.
const MAX_LAG: u64 = 10;

/// The facts about a server.
struct ServerFacts {
    /// None if the user may not ask.
    info: Option<InfoDict>,
    settings: Vec<(&'static str, Option<String>)>,
    /// The number of replicas that must have a commit.
    replicas: usize,
}

/// The settings that are checked.
const SETTINGS: [&str; 6] = [
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "maxmemory-policy",
    "min-replicas-to-write",
    "min-replicas-max-lag",
];

/// Returns the warnings about the primary.
pub(super) async fn warnings(server: &Server) -> Result<Vec<String>, StoreError> {
    let mut connection = server.connect().await?;
    let info = redis::cmd("INFO").query_async::<InfoDict>(&mut connection).await;
    let info = unless_refused(info).map_err(redis_failed)?;
    let mut settings = Vec::new();
    for name in SETTINGS {
        settings.push((name, setting(&mut connection, name).await));
    }
    Ok(ServerFacts { info, settings, replicas: server.replicas }.warnings())
}

/// Reads a setting; none if it cannot be read, which the user's ACL or the provider may forbid.
async fn setting(connection: &mut MultiplexedConnection, name: &str) -> Option<String> {
    let pairs: Vec<String> = redis::cmd("CONFIG").arg("GET").arg(name).query_async(connection).await.ok()?;
    pairs.into_iter().nth(1)
}

impl ServerFacts {
    fn warnings(&self) -> Vec<String> {
        let first = [self.no_info(), self.version(), self.cluster(), self.unread()];
        let mut warnings: Vec<String> = first.into_iter().flatten().collect();
        warnings.extend(self.persistence());
        warnings.extend(self.replication());
        warnings
    }

    fn of(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(known, _)| *known == name).and_then(|(_, value)| value.as_deref())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.of(name).and_then(|value| value.parse().ok())
    }

    /// Returns a fact of the server's own report.
    fn told<T: FromRedisValue>(&self, name: &str) -> Option<T> {
        self.info.as_ref()?.get(name)
    }

    fn no_info(&self) -> Option<String> {
        self.info.is_none().then(|| {
            "the server's version, replicas and memory cannot be read (INFO), so that no memory is kept to revoke, ban and \
             close: allow the user +info"
                .to_owned()
        })
    }

    /// Valkey reports the version of Redis with which it is compatible.
    fn version(&self) -> Option<String> {
        let version: String = self.told("redis_version")?;
        let mut parts = version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
        let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        (found < OLDEST).then(|| {
            format!(
                "the server is Redis {version}: nothing older than 7.0 was tried; upgrade it, or use Valkey"
            )
        })
    }

    /// A cluster fails over by itself; the settings of its other nodes are not checked.
    fn cluster(&self) -> Option<String> {
        let is_cluster = self.told::<u8>("cluster_enabled") == Some(1);
        (is_cluster && self.replicas == 0).then(|| {
            "the server is part of a cluster and store.replicas is 0: a failover there loses what was answered last; \
             set store.replicas to 1 or more"
                .to_owned()
        })
    }

    fn unread(&self) -> Option<String> {
        let unread: Vec<&str> =
            self.settings.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| *name).collect();
        (!unread.is_empty()).then(|| {
            let names = unread.join(", ");
            format!("{names} cannot be read (CONFIG GET): allow the user +config|get, or check them yourself")
        })
    }

    fn persistence(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let is_append_only = self.of("appendonly").is_none_or(|value| value == "yes");
        if !is_append_only {
            warnings.push(
                "appendonly is no: a restart of the server loses what was answered, also with save points; set it to yes"
                    .to_owned(),
            );
        }
        if let Some(value) = self.of("appendfsync").filter(|value| *value != "always") {
            let lost = if value == "everysec" { "the last second or two" } else { "half a minute and more" };
            warnings.push(format!("appendfsync is {value}: a power cut loses {lost}; set it to always"));
        }
        if is_append_only && self.of("no-appendfsync-on-rewrite") == Some("yes") {
            warnings.push(
                "no-appendfsync-on-rewrite is yes: while the log is rewritten a power cut loses what was answered; set it \
                 to no"
                    .to_owned(),
            );
        }
        if let Some(value) = self.of("maxmemory-policy").filter(|value| *value != "noeviction") {
            warnings.push(format!(
                "maxmemory-policy is {value}: without memory the server may throw grants and the audit log away; set it to \
                 noeviction"
            ));
        }
        warnings
    }

    fn replication(&self) -> Vec<String> {
        let (mut warnings, replicas) = (Vec::new(), self.replicas);
        let connected = self.told::<usize>("connected_slaves").unwrap_or(0);
        if connected > 0 && replicas == 0 {
            warnings.push(format!(
                "{connected} replicas are connected and store.replicas is 0: a failover loses what was answered and not yet \
                 replicated; set store.replicas to 1 or more"
            ));
        }
        if connected < replicas && self.info.is_some() {
            warnings.push(format!(
                "store.replicas is {replicas} and {connected} are connected: nothing can be committed until more are; add \
                 replicas, or set store.replicas to what there is"
            ));
        }
        if connected == 0 && replicas == 0 {
            return warnings;
        }
        match self.number("min-replicas-to-write") {
            Some(0) => warnings.push(
                "min-replicas-to-write is 0: a primary that is cut off goes on taking writes that a failover throws away; \
                 set it to 1"
                    .to_owned(),
            ),
            Some(_) => {
                let lag = self.number("min-replicas-max-lag").filter(|lag| *lag == 0 || *lag > MAX_LAG);
                if let Some(lag) = lag {
                    warnings.push(format!(
                        "min-replicas-max-lag is {lag}: a primary that is cut off goes on taking writes for that long (0: \
                         for ever); set it to 1 to {MAX_LAG}"
                    ));
                }
            }
            None => {}
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(info: &str, changed: &[(&'static str, &str)], replicas: usize) -> String {
        let good = ["yes", "always", "no", "noeviction", "1", "10"];
        let mut settings: Vec<_> =
            SETTINGS.into_iter().zip(good).map(|(name, value)| (name, Some(value.to_owned()))).collect();
        for (name, value) in changed {
            let known = settings.iter_mut().find(|(known, _)| known == name).unwrap();
            known.1 = Some((*value).to_owned()).filter(|value| !value.is_empty());
        }
        let info = InfoDict::new(&format!("redis_version:7.0.15\r\ncluster_enabled:0\r\n{info}"));
        ServerFacts { info: Some(info), settings, replicas }.warnings().join("\n")
    }

    #[test]
    fn a_server_that_does_not_report_on_itself_is_one_warning() {
        let settings = SETTINGS.into_iter().zip(["yes", "always", "no", "noeviction", "1", "10"]);
        let settings = settings.map(|(name, value)| (name, Some(value.to_owned()))).collect();
        let warnings = ServerFacts { info: None, settings, replicas: 1 }.warnings();
        assert!(matches!(&warnings[..], [one] if one.contains("+info")), "{warnings:?}");
    }

    #[test]
    fn good_settings_are_not_warned_of() {
        assert_eq!(found("connected_slaves:0\r\n", &[], 0), "");
        assert_eq!(found("connected_slaves:0\r\n", &[("min-replicas-to-write", "0")], 0), "");
        assert_eq!(found("connected_slaves:1\r\n", &[], 1), "");
        assert_eq!(found("redis_version:7.2.4\r\nserver_name:valkey\r\n", &[], 0), "");
    }

    #[test]
    fn each_setting_that_does_not_keep_the_promise_is_named_with_the_remedy() {
        let one = "connected_slaves:1\r\n";
        for (info, changed, replicas, named, remedy) in [
            ("", &[("appendonly", "no")][..], 0, "appendonly is no", "yes"),
            ("", &[("appendfsync", "everysec")], 0, "appendfsync is everysec", "always"),
            ("", &[("no-appendfsync-on-rewrite", "yes")], 0, "no-appendfsync-on-rewrite is yes", "no"),
            ("", &[("maxmemory-policy", "allkeys-lru")], 0, "maxmemory-policy is allkeys-lru", "noeviction"),
            ("", &[("maxmemory-policy", "")], 0, "maxmemory-policy cannot be read", "+config|get"),
            ("redis_version:6.2.14\r\n", &[], 0, "Redis 6.2.14", "upgrade"),
            ("cluster_enabled:1\r\n", &[], 0, "store.replicas is 0", "store.replicas to 1"),
            (one, &[], 0, "store.replicas is 0", "store.replicas to 1"),
            ("", &[], 2, "store.replicas is 2 and 0 are connected", "add"),
            (one, &[("min-replicas-to-write", "0")], 1, "min-replicas-to-write is 0", "to 1"),
            (one, &[("min-replicas-max-lag", "60")], 1, "min-replicas-max-lag is 60", "1 to 10"),
            (one, &[("min-replicas-max-lag", "0")], 1, "min-replicas-max-lag is 0", "1 to 10"),
        ] {
            let warnings = found(info, changed, replicas);
            assert!(warnings.contains(named) && warnings.contains(remedy), "{named}: {warnings}");
            assert_eq!(warnings.lines().count(), 1, "{named}: {warnings}");
        }
    }
}
