//! Postern's rules in an Azure Firewall. Everything else of a firewall is written back as it was read, byte for byte.
//!
//! The rules of a firewall are fields of the firewall: each change writes all of it, and takes minutes. Changes that arrive
//! while one is under way wait, and the next write makes them together. Another broker or another principal may write the same
//! firewall: the change is over only when a fresh read shows it. Postern writes only rules that allow here: a rule that denies
//! would cut established connections (I3).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use postern_core::{Port, Protocol, SourcePrefix};
use postern_provider::kit::CallError;
use postern_runtime::tasks;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::oneshot;

use crate::arm::{Arm, NETWORK};
use crate::clock;
use crate::id::{ArmId, brief};
use crate::json::{Fields, etag, nested};
use crate::settings::FirewallSettings;
use crate::transport::busy_waits;

/// The time that a change is retried while other principals change the firewall: each of their writes takes up to five minutes.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(600);

/// A rule that Postern adds to a firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewNatRule {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) sources: BTreeSet<SourcePrefix>,
    pub(crate) protocol: Protocol,
    pub(crate) public: IpAddr,
    pub(crate) machine: IpAddr,
    pub(crate) port: Port,
}

/// A change of one firewall.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FirewallEdit {
    pub(crate) add: Vec<NewNatRule>,
    /// The rules to remove, by name.
    pub(crate) remove: BTreeSet<String>,
}

/// The reason that an edit of a firewall is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EditError {
    #[error("the firewall cannot be parsed, so it cannot be changed: {0}")]
    Unreadable(String),
    #[error("the firewall has the policy {0}, and its own rules have no effect")]
    Policy(String),
    #[error("there is no free port from {} to {} at {public}; widen azure.firewall.ports", .ports.start(), .ports.end())]
    NoPort { ports: RangeInclusive<u16>, public: IpAddr },
}

#[derive(Serialize, Deserialize)]
struct NatRuleBody {
    name: String,
    description: String,
    #[serde(rename = "sourceAddresses")]
    sources: Vec<String>,
    #[serde(rename = "destinationAddresses")]
    destinations: Vec<String>,
    #[serde(rename = "destinationPorts")]
    ports: Vec<String>,
    protocols: Vec<String>,
    #[serde(rename = "translatedAddress")]
    translated_address: String,
    #[serde(rename = "translatedPort")]
    translated_port: String,
}

/// The fields of a rule that an edit reads, whether the rule is Postern's or a customer's.
#[derive(Deserialize)]
struct ExistingRule {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "destinationAddresses")]
    destinations: Vec<String>,
    #[serde(default, rename = "destinationPorts")]
    ports: Vec<String>,
    #[serde(default)]
    protocols: Vec<String>,
    #[serde(default, rename = "translatedAddress")]
    translated_address: Option<String>,
    #[serde(default, rename = "translatedPort")]
    translated_port: Option<String>,
}

impl ExistingRule {
    /// Reports whether the rule translates connections to this port of the address.
    fn takes(&self, public: IpAddr, protocol: Protocol, port: u16) -> bool {
        let at = |text: &String| text == "*" || text.parse() == Ok(public) || text.contains('/');
        let of = |text: &String| {
            text.eq_ignore_ascii_case("any") || text.eq_ignore_ascii_case(&protocol.to_string())
        };
        self.destinations.iter().any(at)
            && self.protocols.iter().any(of)
            && self
                .ports
                .iter()
                .any(|text| crate::wire::ports(text).is_none_or(|ports| ports.contains(&port)))
    }

    /// Reports whether the rule leads to the same port of the same machine as the new one.
    fn leads_like(&self, rule: &NewNatRule) -> bool {
        self.translated_address.as_ref().and_then(|text| text.parse().ok()) == Some(rule.machine)
            && self.translated_port.as_ref().and_then(|text| text.parse().ok()) == Some(rule.port.get())
    }
}

/// Returns the firewall with the edits made, one after the other, and its etag; none where nothing changes.
///
/// `collection` is the name of Postern's collection.
///
/// # Errors
/// An edit is impossible; then none is made.
pub(crate) fn edit(
    body: &[u8],
    edits: &[FirewallEdit],
    collection: &str,
    settings: &FirewallSettings,
) -> Result<Option<(Bytes, Option<String>)>, EditError> {
    let unreadable = |error: serde_json::Error| EditError::Unreadable(error.to_string());
    let mut firewall: Fields = serde_json::from_slice(body).map_err(unreadable)?;
    let etag = etag(&firewall);
    let mut properties: Fields = nested(&firewall, "properties").map_err(unreadable)?;
    if let Some(policy) = properties.get("firewallPolicy").filter(|policy| policy.get() != "null") {
        let policy: serde_json::Value = serde_json::from_str(policy.get()).map_err(unreadable)?;
        let id = policy.get("id").and_then(serde_json::Value::as_str).unwrap_or_default();
        return Err(EditError::Policy(id.to_owned()));
    }
    let mut collections: Vec<Box<RawValue>> =
        nested(&properties, "natRuleCollections").map_err(unreadable)?;
    let names = edits.iter().flat_map(|edit| &edit.remove).collect();
    let is_stripped = strip(&mut collections, collection, &names).map_err(unreadable)?;
    let mut kept = Collections::read(&collections, collection).map_err(unreadable)?;
    let before: Vec<String> = kept.managed_rules.iter().map(|rule| rule.get().to_owned()).collect();
    for edit in edits {
        kept.remove(&edit.remove).map_err(unreadable)?;
        for rule in &edit.add {
            kept.add(rule, settings)?;
        }
    }
    if !is_stripped && before.iter().map(String::as_str).eq(kept.managed_rules.iter().map(|rule| rule.get()))
    {
        return Ok(None);
    }
    let made = kept.collection(collection, settings).map_err(unreadable)?;
    match (kept.at, made) {
        (Some(at), Some(made)) => collections[at] = made,
        (Some(at), None) => drop(collections.remove(at)),
        (None, Some(made)) => collections.push(made),
        (None, None) => {}
    }
    properties.insert("natRuleCollections".into(), to_raw_value(&collections).map_err(unreadable)?);
    firewall.insert("properties".into(), to_raw_value(&properties).map_err(unreadable)?);
    let body = serde_json::to_vec(&firewall).map_err(unreadable)?;
    Ok(Some((Bytes::from(body), etag)))
}

/// Takes these rules out of every collection but Postern's: another principal gave the collection another name, or copied a
/// rule. Reports whether there was one. A collection that held nothing else is removed.
fn strip(
    collections: &mut Vec<Box<RawValue>>,
    managed_collection: &str,
    names: &BTreeSet<&String>,
) -> serde_json::Result<bool> {
    let mut is_stripped = false;
    let mut left = Vec::new();
    for collection in collections.drain(..) {
        let mut fields: Fields = serde_json::from_str(collection.get())?;
        let mut properties: Fields = nested(&fields, "properties")?;
        let rules: Vec<Box<RawValue>> = nested(&properties, "rules")?;
        let known: Vec<ExistingRule> = nested(&properties, "rules")?;
        let left_in_place = rules.iter().zip(&known).filter(|(_, known)| !names.contains(&known.name));
        let kept: Vec<&Box<RawValue>> = left_in_place.map(|(rule, _)| rule).collect();
        if kept.len() == rules.len() || nested::<String>(&fields, "name")? == managed_collection {
            left.push(collection);
            continue;
        }
        is_stripped = true;
        if !kept.is_empty() {
            properties.insert("rules".into(), to_raw_value(&kept)?);
            fields.insert("properties".into(), to_raw_value(&properties)?);
            left.push(to_raw_value(&fields)?);
        }
    }
    *collections = left;
    Ok(is_stripped)
}

/// The collections of rules that translate.
struct Collections {
    /// The index of Postern's collection.
    at: Option<usize>,
    /// The fields of Postern's collection.
    fields: Fields,
    /// The rules in it.
    managed_rules: Vec<Box<RawValue>>,
    /// The rules of every other collection.
    customer_rules: Vec<ExistingRule>,
    /// The priorities of the other collections.
    customer_priorities: BTreeSet<u64>,
}

impl Collections {
    fn read(collections: &[Box<RawValue>], name: &str) -> serde_json::Result<Self> {
        let mut read = Self {
            at: None,
            fields: Fields::new(),
            managed_rules: Vec::new(),
            customer_rules: Vec::new(),
            customer_priorities: BTreeSet::new(),
        };
        for (at, collection) in collections.iter().enumerate() {
            let fields: Fields = serde_json::from_str(collection.get())?;
            let properties: Fields = nested(&fields, "properties")?;
            let is_managed = nested::<String>(&fields, "name")? == name;
            if is_managed {
                read.managed_rules = nested(&properties, "rules")?;
                (read.at, read.fields) = (Some(at), fields);
            } else {
                read.customer_rules.extend(nested::<Vec<ExistingRule>>(&properties, "rules")?);
                read.customer_priorities.insert(nested(&properties, "priority")?);
            }
        }
        Ok(read)
    }

    fn remove(&mut self, names: &BTreeSet<String>) -> serde_json::Result<()> {
        let mut left = Vec::new();
        for rule in self.managed_rules.drain(..) {
            let known: ExistingRule = serde_json::from_str(rule.get())?;
            if !names.contains(&known.name) {
                left.push(rule);
            }
        }
        self.managed_rules = left;
        Ok(())
    }

    fn add(&mut self, rule: &NewNatRule, settings: &FirewallSettings) -> Result<(), EditError> {
        let unreadable = |error: serde_json::Error| EditError::Unreadable(error.to_string());
        let managed = self
            .managed_rules
            .iter()
            .map(|rule| serde_json::from_str(rule.get()))
            .collect::<serde_json::Result<Vec<ExistingRule>>>();
        let managed = managed.map_err(unreadable)?;
        if managed.iter().any(|known| known.name == rule.name) {
            return Ok(());
        }
        let port = self.port(&managed, rule, settings)?;
        let rule = NatRuleBody {
            name: rule.name.clone(),
            description: rule.description.clone(),
            sources: rule
                .sources
                .iter()
                .map(|source| if source.is_any() { "*".into() } else { source.to_string() })
                .collect(),
            destinations: vec![rule.public.to_string()],
            ports: vec![port.to_string()],
            protocols: vec![rule.protocol.to_string().to_ascii_uppercase()],
            translated_address: rule.machine.to_string(),
            translated_port: rule.port.to_string(),
        };
        self.managed_rules.push(to_raw_value(&rule).map_err(unreadable)?);
        Ok(())
    }

    /// Chooses the port of the firewall: the port that leads there already, or else the same one each time for a machine's
    /// port, or the next free one.
    fn port(
        &self,
        managed: &[ExistingRule],
        rule: &NewNatRule,
        settings: &FirewallSettings,
    ) -> Result<u16, EditError> {
        let same = managed.iter().find(|known| known.leads_like(rule) && known.takes_some(rule));
        if let Some(port) = same.and_then(|known| known.ports.first()?.parse().ok()) {
            return Ok(port);
        }
        let (first, count) =
            (*settings.ports.start(), u64::try_from(settings.ports.len()).unwrap_or(1).max(1));
        let begin = port_hash(rule) % count;
        (0..count)
            .filter_map(|step| first.checked_add(u16::try_from((begin + step) % count).ok()?))
            .find(|port| {
                !self
                    .customer_rules
                    .iter()
                    .chain(managed)
                    .any(|known| known.takes(rule.public, rule.protocol, *port))
            })
            .ok_or_else(|| EditError::NoPort { ports: settings.ports.clone(), public: rule.public })
    }

    /// Returns Postern's collection with its rules; none where no rule is left.
    fn collection(
        &self,
        name: &str,
        settings: &FirewallSettings,
    ) -> serde_json::Result<Option<Box<RawValue>>> {
        if self.managed_rules.is_empty() {
            return Ok(None);
        }
        let mut fields = self.fields.clone();
        let mut properties: Fields = nested(&fields, "properties")?;
        if self.at.is_none() {
            fields.insert("name".into(), to_raw_value(name)?);
            let free = (u64::from(settings.priority)..=65_000)
                .find(|priority| !self.customer_priorities.contains(priority));
            properties.insert("priority".into(), to_raw_value(&free)?);
            properties.insert("action".into(), to_raw_value(&serde_json::json!({"type": "Dnat"}))?);
        }
        properties.insert("rules".into(), to_raw_value(&self.managed_rules)?);
        fields.insert("properties".into(), to_raw_value(&properties)?);
        to_raw_value(&fields).map(Some)
    }
}

impl ExistingRule {
    /// Reports whether the rule is for the same protocol, at the same address.
    fn takes_some(&self, rule: &NewNatRule) -> bool {
        self.ports
            .first()
            .and_then(|text| text.parse().ok())
            .is_some_and(|port| self.takes(rule.public, rule.protocol, port))
    }
}

/// A number that is the same each time for a machine's port.
fn port_hash(rule: &NewNatRule) -> u64 {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(format!("{} {} {}", rule.machine, rule.protocol, rule.port));
    digest.iter().take(7).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A change that waits to be written, and the channel for its outcome. The channel is closed where its caller has given up.
type WaitingEdit = (FirewallEdit, oneshot::Sender<Result<(), ChangeError>>);

/// The changes of one firewall. One task writes them, and goes on where the caller of a change gives up: a write holds the changes of
/// others, and a write that is half way takes effect whether or not a task waits for it.
#[derive(Default)]
pub(crate) struct FirewallQueue {
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    waiting: Vec<WaitingEdit>,
    /// True while a task writes.
    is_writing: bool,
    /// The rules that the write under way adds.
    adding: Vec<NewNatRule>,
}

/// The reason that a firewall was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error("the task that was writing the firewall ended before the change was done")]
    GivenUp,
}

/// A firewall, and all that a write of it needs.
#[derive(Clone)]
pub(crate) struct FirewallWriter {
    pub(crate) arm: Arm,
    pub(crate) id: ArmId,
    /// The name of Postern's collection.
    pub(crate) collection: String,
    pub(crate) settings: FirewallSettings,
}

impl FirewallQueue {
    /// Makes a change, in one write with every other change that waits. A change whose caller gives up before its write begins is not
    /// made; one whose write has begun is made, and [`Self::adding`] tells of it until then.
    pub(crate) async fn change(
        self: &Arc<Self>,
        writer: FirewallWriter,
        edit: FirewallEdit,
    ) -> Result<(), ChangeError> {
        let (done, answer) = oneshot::channel();
        let begins = {
            let mut state = self.lock();
            state.waiting.push((edit, done));
            !std::mem::replace(&mut state.is_writing, true)
        };
        if begins {
            tasks::run_to_end(Arc::clone(self).write_all(writer));
        }
        answer.await.unwrap_or(Err(ChangeError::GivenUp))
    }

    /// Returns the rules that the write under way adds.
    pub(crate) fn adding(&self) -> Vec<NewNatRule> {
        self.lock().adding.clone()
    }

    /// Writes until no change waits.
    async fn write_all(self: Arc<Self>, writer: FirewallWriter) {
        let _idle = IdleOnDrop(&self);
        while let Some(batch) = self.next_batch() {
            let (edits, waiting): (Vec<FirewallEdit>, Vec<_>) = batch.into_iter().unzip();
            match writer.write(&edits).await {
                // An impossible edit must not keep the others from being made.
                Err(ChangeError::Edit(_)) if edits.len() > 1 => {
                    for (edit, done) in edits.into_iter().zip(waiting) {
                        if !done.is_closed() {
                            done.send(writer.write(&[edit]).await).ok();
                        }
                    }
                }
                written => {
                    for done in waiting {
                        done.send(written.clone()).ok();
                    }
                }
            }
        }
    }

    /// Takes the changes that wait and whose callers still do; none if there is none, and then no task writes any more.
    fn next_batch(&self) -> Option<Vec<WaitingEdit>> {
        let mut state = self.lock();
        state.waiting.retain(|(_, done)| !done.is_closed());
        let batch = std::mem::take(&mut state.waiting);
        state.adding = batch.iter().flat_map(|(edit, _)| edit.add.iter().cloned()).collect();
        state.is_writing = !batch.is_empty();
        state.is_writing.then_some(batch)
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the next change begin a task, also where the task that wrote has panicked: the callers of the changes that wait hear of it.
struct IdleOnDrop<'a>(&'a FirewallQueue);

impl Drop for IdleOnDrop<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.lock() = QueueState::default();
        }
    }
}

impl FirewallWriter {
    /// Writes the firewall until a fresh read shows nothing left to change and no change under way.
    async fn write(&self, edits: &[FirewallEdit]) -> Result<(), ChangeError> {
        let Self { arm, id, collection, settings } = self;
        let deadline = clock::instant() + CHANGE_TIMEOUT;
        let mut waits = busy_waits();
        let mut last = None;
        while clock::instant() < deadline {
            if last.is_some() {
                tokio::time::sleep(waits.next().unwrap_or(Duration::from_secs(5))).await;
            }
            let body = arm.get_raw(id, NETWORK).await?;
            let edited = edit(&body, edits, collection, settings)?;
            if is_under_way(&body) {
                last = Some("another change is under way".to_owned());
                continue;
            }
            let Some((body, etag)) = edited else { return Ok(()) };
            tracing::info!(firewall = %id, changes = edits.len(), "writing the firewall; this takes minutes");
            match arm.put_raw(id.as_str(), NETWORK, body, etag.as_deref()).await {
                // Read once more: a principal that had read the firewall before this write may have written over it.
                Ok(()) => (last, waits) = (None, busy_waits()),
                Err(error) if error.is_conflict() => last = Some(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
        let reason = last.unwrap_or_else(|| "the written rules are gone again".to_owned());
        let reason = format!("other principals keep changing it: {reason}");
        Err(CallError::no_answer(format!("PUT {}", brief(id.as_str())), reason).into())
    }
}

/// Reports whether a change of the firewall is under way.
fn is_under_way(body: &[u8]) -> bool {
    #[derive(Default, Deserialize)]
    struct FirewallBody {
        #[serde(default)]
        properties: FirewallProperties,
    }
    #[derive(Default, Deserialize)]
    struct FirewallProperties {
        #[serde(default, rename = "provisioningState")]
        state: Option<String>,
    }
    let state = serde_json::from_slice::<FirewallBody>(body).unwrap_or_default().properties.state;
    state.is_some_and(|state| state.eq_ignore_ascii_case("Updating"))
}

#[cfg(test)]
mod tests;
