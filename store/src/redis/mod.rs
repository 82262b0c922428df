//! The store on Redis (7.0 or later) or Valkey, for several brokers on several machines.
//!
//! Each broker is a member, and every write names its membership, so that the server refuses a broker whose membership has
//! ended, however late its write comes. No record has a time to live: a window never ends because a key expired.
//!
//! ```text
//! {postern:<tenant>}:schema            the version of these keys
//!                    sealed            the name of the key with which records are sealed
//!                    head              the number of the last audit record, and its hash
//!                    audit             the records, one a line, from the one after the base
//!                    base              the number and the hash of the last record that has left the log, if any has
//!                    kinds             a set: the names of the kinds of records
//!                    <kind>            a hash, such as grants: a key, and a version and a body
//!                    indexed:<kind>    a hash: a key, and the names of the indexes in which it is, one a line
//!                    index:<kind>:<name>           a sorted set: keys, in order
//!                    moved, incomplete, upgrading  marks of a store that was moved, or whose migration or upgrade was not
//!                                      completed
//!                    alive:<membership>            exists while the membership lasts: a key with a time to live
//!                    members, locks                hashes: the members' descriptions, and the members that hold locks
//!                    leases, exclusive, statuses   hashes by target: lease, exclusive claim, and published status
//!                    held:<membership>             the targets of its leases
//!                    losses                        a hash: the number of a member's leases that others took
//!                    fence                         the newest lease's token
//!                    turn                          the membership that commits next; a key with a time to live
//!                    queue                         a sorted set: the memberships that wait to commit, by arrival
//!                    events                        a channel
//! ```

/// The text of a script that answers the head, with the function that does so before it.
macro_rules! script {
    ($file:literal) => {
        concat!(include_str!("known.lua"), include_str!($file))
    };
}

mod commands;
mod commit;
mod confirmed;
mod connection;
mod coordination;
mod discovery;
mod error;
mod keys;
mod marks;
mod membership;
mod probe;
mod rollback;
mod sealing;
mod server;
mod settings;
#[cfg(test)]
mod tests;
mod transfer;
mod upgrade;
mod warnings;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use postern_core::audit::Head;
use redis::{InfoDict, Script};

use crate::backend::{Backend, DocumentPage, Order, Range, Snapshot, SnapshotQuery};
use crate::batch::Batch;
use crate::body::corrupt;
use crate::coordination::Lease;
use crate::document::Document;
use crate::durable::Durable;
use crate::error::StoreError;
use crate::kind::{Kind, LastVersion};
use crate::paging::{PageBuilder, READ_ON, RawRow};
use crate::room::{Medium, Room};
use crate::seal::{Sealer, Sealing};
use crate::store::Store;
use connection::SharedConnection;
use error::{message, redis_failed, unless_refused};
use keys::{MOST_LINES, SCHEMA, pairs, parse_document};
use membership::{Membership, Scripts, lost};
use rollback::HeadReply;
use server::Server;
pub use settings::{Endpoint, PLAIN_REMEDY, RedisSettings, Sentinels, TlsFiles, is_loopback};
pub use transfer::Transfer;
use writer::Writer;

/// The store on Redis.
pub struct Redis {
    server: Server,
    reader: SharedConnection,
    writer: Writer,
    range_script: Script,
    lines_script: Script,
    membership: Arc<Membership>,
    scripts: Scripts,
    sealer: Sealer,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.server.prefix).finish_non_exhaustive()
    }
}

impl Redis {
    /// Opens the store, or makes it, and joins its members. A store of an older schema is upgraded.
    ///
    /// # Errors
    /// The server cannot be reached, refuses or lacks a command, or the store was written by a newer broker, was sealed with another key,
    /// was moved, or is incomplete.
    pub async fn open(settings: &RedisSettings, sealing: &Sealing) -> Result<Self, StoreError> {
        let server = Server::new(settings);
        probe::check(&server).await?;
        let mut reader = server.shared_connection().reading();
        marks::check(&server, &mut reader).await?;
        let mut make = redis::cmd("SETNX");
        make.arg(server.key("schema")).arg(SCHEMA);
        make.query_async::<()>(&mut reader).await.map_err(redis_failed)?;
        upgrade::upgrade(&server, &mut reader, sealing).await?;
        sealing::name_key(&server, &mut reader, sealing).await?;
        let membership = Arc::new(Membership::new());
        let writer = Writer::start(server.clone(), Arc::clone(&membership));
        let range_script = Script::new(script!("range.lua"));
        let lines_script = Script::new(include_str!("lines.lua"));
        let (scripts, sealer) = (Scripts::new(), sealing.sealer(&settings.tenant));
        let store = Self { server, reader, writer, range_script, lines_script, membership, scripts, sealer };
        store.join().await?;
        Ok(store)
    }

    /// Returns the store over this backend, with the seals of its key.
    pub fn store(self: &Arc<Self>) -> Store {
        Store::new(Arc::clone(self) as _, self.sealer.clone())
    }

    /// Returns warnings about settings of the server that break the store's promises, each with the remedy.
    ///
    /// # Errors
    /// The server cannot be reached, refuses or lacks a command that the store needs.
    pub async fn warnings(settings: &RedisSettings) -> Result<Vec<String>, StoreError> {
        let server = Server::new(settings);
        probe::check(&server).await?;
        warnings::warnings(&server).await
    }

    /// Reads the documents of an index between two keys, which are excluded and may be no text, and the head at that instant. A
    /// snapshot has more documents besides.
    async fn read_range(
        &self,
        kind: Kind,
        range: Range<'_>,
        (after, before): (Option<&[u8]>, Option<&[u8]>),
        snapshot: Option<(&Lease, SnapshotQuery<'_>)>,
    ) -> Result<FoundRange, StoreError> {
        let mut script = self.range_script.key(&self.server.prefix);
        script.arg(kind.name).arg(range.index);
        let bound = |key: Option<&[u8]>, none: &str| {
            key.map_or_else(|| none.as_bytes().to_vec(), |key| [b"(", key].concat())
        };
        script.arg(bound(after, "-")).arg(bound(before, "+"));
        script.arg(if range.order == Order::Descending { "-" } else { "+" });
        script.arg(range.limit()).arg(snapshot.map_or("", |(_, wanted)| wanted.whole.name));
        if let Some((lease, SnapshotQuery { one, beside, .. })) = snapshot {
            script.arg(self.membership.id()).arg(lease.target.to_string()).arg(lease.token);
            script.arg(one.0.name).arg(one.1).arg(beside.0.name).arg(beside.1);
        }
        let mut reader = self.reader.clone();
        let command = |known| async move {
            script.arg(self.server.text_of(&known));
            let answer: RangeAnswer = script.invoke_async(&mut reader).await.map_err(redis_failed)?;
            let (head, indexed, all, one, beside) = answer;
            if let Some((lease, _)) = snapshot.filter(|_| head == "lost") {
                return Err(lost(&lease.target.to_string()));
            }
            Ok((HeadReply::parse(&head)?, indexed, all, one, beside))
        };
        let (reply, indexed, all, one, beside) =
            self.server.guard.ask(command, |(reply, ..)| Ok(Some(*reply))).await?;
        // An index that names a document that is not there was changed by another program.
        let missing = |key: &[u8]| {
            if kind.is_sealed {
                return Ok(Document::unreadable(&*String::from_utf8_lossy(key)));
            }
            let what = format!("index of {}", kind.name);
            Err(corrupt(&what, message(&format!("a {} in it is not there", kind.noun))))
        };
        let indexed = pairs(indexed).map(|(key, text)| {
            let found = document(kind, &key, &text)?;
            let document = found.map_or_else(|| missing(&key), Ok)?;
            Ok(RawRow { key, document })
        });
        let indexed = indexed.collect::<Result<_, StoreError>>()?;
        let mut found = FoundRange { head: reply.head, indexed, whole: Vec::new(), one: None, beside: None };
        if let Some((_, wanted)) = snapshot {
            let read = |(kind, key): (Kind, &str), text: Vec<u8>| {
                if text.is_empty() { Ok(None) } else { document(kind, key.as_bytes(), &text) }
            };
            found.whole = in_order(wanted.whole, all)?;
            found.one = read(wanted.one, one)?;
            found.beside = read(wanted.beside, beside)?;
        }
        Ok(found)
    }
}

/// The answer of `range.lua`. Another program may have written texts that are no text.
type RangeAnswer = (String, Vec<RawText>, Vec<RawText>, RawText, RawText);
type RawText = Vec<u8>;

/// The documents of a range, and those that a snapshot has besides.
struct FoundRange {
    head: Head,
    indexed: Vec<RawRow>,
    whole: Vec<Document>,
    one: Option<Document>,
    beside: Option<Document>,
}

/// Reads the alternating keys and documents of a hash, which has no order.
fn in_order(kind: Kind, texts: Vec<Vec<u8>>) -> Result<Vec<Document>, StoreError> {
    let mut texts: Vec<(Vec<u8>, Vec<u8>)> = pairs(texts).collect();
    texts.sort();
    texts.into_iter().filter_map(|(key, text)| document(kind, &key, &text).transpose()).collect()
}

/// Returns the memory below `maxmemory`, as the server counts it before it refuses a command; none without a maximum.
fn room(info: &InfoDict) -> Option<Room> {
    let size: u64 = info.get("maxmemory").filter(|size| *size > 0)?;
    let used: u64 = info.get("used_memory")?;
    let not_counted: u64 = info.get("mem_not_counted_for_evict").unwrap_or(0);
    let free = size.saturating_sub(used.saturating_sub(not_counted));
    Some(Room { medium: Medium::Memory, free, size })
}

/// Reads a document; none for a deleted one. A sealed one without a version, or that is no text, is another program's, and must not
/// keep others from being read.
fn document(kind: Kind, key: &[u8], text: &[u8]) -> Result<Option<Document>, StoreError> {
    match (str::from_utf8(key), parse_document(text)) {
        (Ok(_), Some((_, ""))) => Ok(None),
        (Ok(key), Some((version, body))) => Ok(Some(Document::from_text(key, version, body.to_owned()))),
        _ if kind.is_sealed => Ok(Some(Document::unreadable(&*String::from_utf8_lossy(key)))),
        _ => Err(corrupt(kind.noun, message("it has no version, or is no text"))),
    }
}

#[async_trait]
impl Backend for Redis {
    async fn apply(&self, batch: Batch) -> Result<Head, StoreError> {
        self.writer.commit(batch).await
    }

    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Document>, StoreError> {
        let mut get = redis::cmd("HGET");
        get.arg(self.server.key(kind.name)).arg(key);
        let text: Option<Vec<u8>> = get.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?;
        text.map_or(Ok(None), |text| document(kind, key.as_bytes(), &text))
    }

    async fn last_version(&self, kind: Kind, key: &str) -> Result<LastVersion, StoreError> {
        let mut get = redis::cmd("HGET");
        get.arg(self.server.key(kind.name)).arg(key);
        let text: Option<Vec<u8>> = get.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?;
        let read = |text: &[u8]| match parse_document(text) {
            Some((version, body)) => LastVersion { version, is_there: !body.is_empty() },
            // As `commit.lua` takes it.
            None => LastVersion { version: 0, is_there: true },
        };
        Ok(text.as_deref().map(read).unwrap_or_default())
    }

    async fn get_durable(&self, kind: Kind, key: &str) -> Result<Durable<Option<Document>>, StoreError> {
        // At one instant: the log up to this head has every change of the record that was read.
        let (head, text) = self.server.head_and(&mut self.reader.clone(), Some((kind.name, key))).await?;
        self.writer.confirmed(head).await?;
        let found = text.map_or(Ok(None), |text| document(kind, key.as_bytes(), &text))?;
        Ok(Durable::new(found))
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Document>, StoreError> {
        let mut get = redis::cmd("HGETALL");
        get.arg(self.server.key(kind.name));
        in_order(kind, get.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?)
    }

    async fn range(&self, kind: Kind, range: Range<'_>) -> Result<DocumentPage, StoreError> {
        let (after, before) = (range.after.map(str::as_bytes), range.before.map(str::as_bytes));
        let found = self.read_range(kind, range, (after, before), None).await?;
        let mut page = PageBuilder::of(found.indexed, range.limit);
        while let Some(last) = page.read_after.take() {
            let bounds = match range.order {
                Order::Ascending => (Some(last.as_slice()), before),
                Order::Descending => (after, Some(last.as_slice())),
            };
            let more = Range { limit: READ_ON, ..range };
            page.read_on(self.read_range(kind, more, bounds, None).await?.indexed);
        }
        Ok(page.page)
    }

    async fn scan(&self, kind: Kind, from: Option<&str>, limit: usize) -> Result<DocumentPage, StoreError> {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(self.server.key(kind.name)).arg(from.unwrap_or("0")).arg("COUNT").arg(limit);
        let (next, texts): (String, Vec<Vec<u8>>) =
            scan.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?;
        // Redis may answer a key twice.
        let texts: BTreeMap<Vec<u8>, Vec<u8>> = pairs(texts).collect();
        let mut documents = Vec::new();
        for (key, text) in texts {
            documents.extend(document(kind, &key, &text)?);
        }
        Ok(DocumentPage { documents, next: Some(next).filter(|next| next != "0") })
    }

    async fn count(&self, kind: Kind, index: &str) -> Result<usize, StoreError> {
        let mut count = redis::cmd("ZCARD");
        count.arg(self.server.key(&format!("index:{}:{index}", kind.name)));
        count.query_async(&mut self.reader.clone()).await.map_err(redis_failed)
    }

    async fn snapshot(&self, lease: &Lease, wanted: SnapshotQuery<'_>) -> Result<Snapshot, StoreError> {
        let range = Range::all(wanted.index);
        let found = self.read_range(wanted.kind, range, (None, None), Some((lease, wanted))).await?;
        let FoundRange { head, indexed, whole, one, beside } = found;
        // Another broker's commit shows before its replicas have it: no window opens on a record that may be lost (I4).
        self.writer.confirmed(head).await?;
        let indexed = indexed.into_iter().map(|row| row.document).collect();
        Ok(Snapshot { indexed, whole, beside, one, seq: head.seq })
    }

    async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError> {
        if limit == 0 || after > MOST_LINES {
            return Ok(Vec::new());
        }
        let count = u64::try_from(limit).unwrap_or(MOST_LINES).min(MOST_LINES);
        let mut script = self.lines_script.key(&self.server.prefix);
        script.arg(after).arg(count);
        let (first, lines): (u64, Vec<Vec<u8>>) =
            script.invoke_async(&mut self.reader.clone()).await.map_err(redis_failed)?;
        let line = |(seq, line): (u64, Vec<u8>)| match String::from_utf8(line) {
            Ok(line) => Ok((seq, line)),
            Err(source) => Err(corrupt(&format!("audit record {seq}"), source)),
        };
        (first..).zip(lines).map(line).collect()
    }

    async fn audit_base(&self) -> Result<Head, StoreError> {
        self.server.base(&mut self.reader.clone()).await
    }

    async fn audit_head(&self) -> Result<Head, StoreError> {
        self.server.head(&mut self.reader.clone()).await
    }

    async fn room(&self) -> Result<Option<Room>, StoreError> {
        let mut ask = redis::cmd("INFO");
        ask.arg("memory");
        let info = unless_refused(ask.query_async::<InfoDict>(&mut self.reader.clone()).await);
        Ok(info.map_err(redis_failed)?.as_ref().and_then(room))
    }

    async fn lost(&self) -> String {
        self.server.guard.lost().await
    }

    async fn ended(&self) -> String {
        self.writer.ended().await;
        "the task that commits to the store has ended".to_owned()
    }
}
