//! The checks of the store: whether it is there, of this broker's schema, settled as it promises, quick enough, and has room.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::AuditRecord;
use postern_runtime::error_chain::error_chain;
use postern_runtime::findings::Finding;
use postern_store::redis::{Redis, RedisSettings};
use postern_store::transfer::Source as _;
use postern_store::{Part, embedded, redis};

use crate::clock::boottime;
use crate::config::{BrokerConfig, plain_warning};
use crate::records_key::RecordsKeyFile;

/// The time of a durable write, or of a read over the network, above which every request is slow.
const SLOW: Duration = Duration::from_millis(100);
/// The longest wait for a server.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);
/// The file that shows how long a durable write takes.
const TRIAL: &str = ".doctor";

/// Checks the store, and returns the time of the newest audit record with the findings.
pub(super) async fn check(config: &BrokerConfig) -> (Vec<Finding>, Option<Timestamp>) {
    match &config.redis {
        None => embedded(config),
        Some(settings) => {
            let timeout = tokio::time::timeout(STORE_TIMEOUT, on_redis(config, settings)).await;
            timeout.unwrap_or_else(|_| {
                let what =
                    format!("{} does not answer within {} s", settings.endpoint, STORE_TIMEOUT.as_secs());
                (vec![Finding::error(what, "start the server, or correct [store]")], None)
            })
        }
    }
}

fn embedded(config: &BrokerConfig) -> (Vec<Finding>, Option<Timestamp>) {
    let path = config.store_path();
    if !path.exists() {
        let what = format!("there is no store at {}", path.display());
        return (vec![Finding::error(what, "run `postern-broker init` as the broker's user")], None);
    }
    let found = match embedded::inspect(&path) {
        Ok(found) => found,
        Err(error) => {
            let what = format!("{}: {}", path.display(), error_chain(&error));
            return (vec![Finding::error(what, "see docs/operations.md, \"Backup\"")], None);
        }
    };
    let newest = found.newest.as_deref().and_then(time_of);
    let mut findings = vec![Finding::good(format!(
        "the store at {} has the schema {} and {} audit records",
        path.display(),
        found.schema,
        found.head
    ))];
    findings.push(durable_write(&config.data_dir));
    findings.push(room(config));
    (findings, newest)
}

/// Times a durable write in the data directory.
fn durable_write(dir: &Path) -> Finding {
    let path = dir.join(TRIAL);
    let write = || -> std::io::Result<Duration> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        let start = boottime();
        file.write_all(b"doctor")?;
        file.sync_all()?;
        Ok(boottime().saturating_sub(start))
    };
    let outcome = write();
    fs::remove_file(&path).ok();
    match outcome {
        Ok(took) if took > SLOW => Finding::warning(
            format!("a durable write in {} takes {} ms", dir.display(), took.as_millis()),
            "each change waits for one: use a faster disk",
        ),
        Ok(took) => {
            Finding::good(format!("a durable write in {} takes {} ms", dir.display(), took.as_millis()))
        }
        Err(error) => Finding::error(
            format!("{} cannot be written: {error}", dir.display()),
            "run this as root or as the broker's user, and check the disk",
        ),
    }
}

/// Compares the free space with the reserve.
fn room(config: &BrokerConfig) -> Finding {
    let reserve = config.limits.store_disk_reserve;
    match rustix::fs::statvfs(&config.data_dir) {
        Err(error) => Finding::error(
            format!("the free space of {} cannot be read: {error}", config.data_dir.display()),
            "check the disk",
        ),
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let what = format!(
                "{} MiB are free for the store; {} MiB of them are its reserve",
                free >> 20,
                reserve >> 20
            );
            if free <= reserve {
                Finding::error(
                    what,
                    "make room: requests are refused, and only revocations, bans and closes are written",
                )
            } else {
                Finding::good(what)
            }
        }
    }
}

async fn on_redis(config: &BrokerConfig, settings: &RedisSettings) -> (Vec<Finding>, Option<Timestamp>) {
    let mut findings = Vec::new();
    let add = "correct the setting that it names";
    findings.extend(plain_warning(settings).map(|warning| Finding::warning(warning, add)));
    match Redis::warnings(settings).await {
        Ok(warnings) => findings.extend(warnings.into_iter().map(|warning| Finding::warning(warning, add))),
        Err(error) => {
            let what = format!("{} cannot be reached: {}", settings.endpoint, error_chain(&error));
            findings.push(Finding::error(what, "start the server, or correct [store]"));
            return (findings, None);
        }
    }
    let key = RecordsKeyFile::of(config);
    if !key.path().exists() {
        let what = format!("there is no {}", key.path().display());
        findings.push(Finding::error(
            what,
            "run `postern-broker init`, or copy `ca` from another broker on this store",
        ));
        return (findings, None);
    }
    let read = async {
        let sealing = key.load_or_make()?;
        let mut source = redis::Transfer::read(settings, &sealing).await?;
        let start = boottime();
        let head = source.head().await?;
        let took = boottime().saturating_sub(start);
        let newest = match head.seq.checked_sub(1) {
            None => None,
            Some(before) => {
                let base = source.base().await?.seq;
                let page = source.page(&Part::Audit, Some(&before.saturating_sub(base).to_string())).await?;
                page.items.into_iter().rev().find_map(|item| match item {
                    postern_store::transfer::Item::Audit { line, .. } => time_of(&line),
                    postern_store::transfer::Item::Document { .. } => None,
                })
            }
        };
        anyhow::Ok((head, took, newest))
    };
    match read.await {
        Err(error) => {
            findings.push(Finding::error(
                format!("the store cannot be used: {error:#}"),
                "correct [store], or what the error names",
            ));
            (findings, None)
        }
        Ok((head, took, newest)) => {
            let what = format!(
                "the store on {} (tenant {}) has this broker's schema and {} audit records; a read takes {} ms",
                settings.endpoint,
                settings.tenant,
                head.seq,
                took.as_millis()
            );
            findings.push(if took > SLOW {
                Finding::warning(what, "each request waits for several: put the server nearer")
            } else {
                Finding::good(what)
            });
            (findings, newest)
        }
    }
}

fn time_of(line: &str) -> Option<Timestamp> {
    serde_json::from_str::<AuditRecord>(line).ok().map(|record| record.event.at)
}
