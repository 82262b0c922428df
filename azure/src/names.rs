//! The names of Postern's rules. A name says which deployment wrote the rule, which target it is for, and all else that a broker
//! with an empty store needs (I2): Azure does not let a principal change the name of a rule, only delete the rule.
//!
//! ```text
//! postern-allow-<grant>-<end>-<owner><target>-<content>      a window: 26, 16, 4, 8 and 8 characters
//! postern-deny-<owner><target>-<protocol>-<port>-<port>...   the ports that are shut
//! postern-moved-<owner>-<priority>-<rule>                    a customer's rule was moved away from this priority
//! postern-release-<owner><target>                            a release is under way
//! ```
//!
//! Owner and target are digests: of the deployment, and of the target's id. The content is a digest of what a window
//! lets in, so that a rule that another principal edited is recognized by its name alone. A name has 80 characters at most, and a
//! description 140 (Microsoft Learn, "Network security groups").

use std::collections::BTreeSet;
use std::fmt;

use data_encoding::Encoding;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use postern_core::plan::LayerWindow;
use postern_core::{GrantId, Port, ProtectedPort, Protocol, SourcePrefix, TargetId};
use sha2::{Digest as _, Sha256};

/// The beginning of the name of each rule that Postern writes.
const PREFIX: &str = "postern-";
/// The greatest length of a description.
const MAX_DESCRIPTION: usize = 140;
/// The number of ports that fit into the name of one rule.
pub(crate) const PORTS_PER_RULE: usize = 7;

/// A digest of these many characters, 5 bits each.
fn digest(text: &str, length: usize) -> String {
    let mut digest = base32().encode(&Sha256::digest(text.as_bytes()));
    digest.truncate(length);
    digest
}

fn base32() -> Encoding {
    let mut specification = data_encoding::Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().unwrap_or(data_encoding::BASE32_DNSSEC)
}

/// The deployment that wrote a rule, and the target that the rule is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    owner: String,
    target: String,
}

impl Key {
    pub(crate) fn of(deployment: &str, target: &TargetId) -> Self {
        Self { owner: owner(deployment), target: digest(&target.to_string(), 8) }
    }

    /// Reports whether this deployment wrote it.
    pub(crate) fn is_of(&self, deployment: &str) -> bool {
        self.owner == owner(deployment)
    }

    fn read(text: &str) -> Option<Self> {
        let (owner, target) = text.split_at_checked(4)?;
        let is_digest = |text: &str| text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
        (target.len() == 8 && is_digest(text)).then(|| Self { owner: owner.into(), target: target.into() })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.owner, self.target)
    }
}

fn owner(deployment: &str) -> String {
    digest(deployment, 4)
}

/// The address family of a rule: no rule is for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(source: SourcePrefix) -> Self {
        if source.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The meaning of the name of one of Postern's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RuleName {
    Allow(AllowName),
    Deny(DenyName),
    Moved(Moved),
    Release(Key),
}

/// The name of the rule of windows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AllowName {
    pub(crate) key: Key,
    pub(crate) grant: GrantId,
    /// The end, rounded up to a second.
    pub(crate) not_after: Timestamp,
    content: String,
}

/// The name of a rule that shuts ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DenyName {
    pub(crate) key: Key,
    pub(crate) protocol: Protocol,
    pub(crate) family: Family,
    pub(crate) ports: BTreeSet<Port>,
}

impl DenyName {
    /// The ports that it shuts.
    pub(crate) fn protected(&self) -> impl Iterator<Item = ProtectedPort> + use<> {
        let protocol = self.protocol;
        self.ports.clone().into_iter().map(move |port| ProtectedPort { protocol, port })
    }
}

/// The name of the note that a customer's rule was moved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moved {
    owner: String,
    /// The priority that the rule had.
    pub(crate) priority: u16,
    rule: String,
}

impl RuleName {
    /// Reads a name; none where no deployment of Postern's has written it.
    pub(crate) fn read(name: &str) -> Option<Self> {
        let parts: Vec<&str> = name.strip_prefix(PREFIX)?.split('-').collect();
        match parts[..] {
            ["allow", grant, end, key, content] => Some(Self::Allow(AllowName {
                key: Key::read(key)?,
                grant: grant.parse().ok()?,
                not_after: read_end(end)?,
                content: content.to_owned(),
            })),
            ["deny", key, protocol, ref ports @ ..] if !ports.is_empty() => {
                let (protocol, family) = match protocol {
                    "tcp" => (Protocol::Tcp, Family::V4),
                    "udp" => (Protocol::Udp, Family::V4),
                    "tcp6" => (Protocol::Tcp, Family::V6),
                    "udp6" => (Protocol::Udp, Family::V6),
                    _ => return None,
                };
                let ports = ports.iter().map(|port| Port::new(port.parse().ok()?).ok());
                Some(Self::Deny(DenyName {
                    key: Key::read(key)?,
                    protocol,
                    family,
                    ports: ports.collect::<Option<_>>()?,
                }))
            }
            ["moved", owner, priority, rule] => Some(Self::Moved(Moved {
                owner: owner.to_owned(),
                priority: priority.parse().ok()?,
                rule: rule.to_owned(),
            })),
            ["release", key] => Key::read(key).map(Self::Release),
            _ => None,
        }
    }

    /// Returns the name as that of the rule of windows, if it is one.
    pub(crate) fn allow(self) -> Option<AllowName> {
        if let Self::Allow(allow) = self { Some(allow) } else { None }
    }

    /// Returns the name as that of a rule that shuts ports, if it is one.
    pub(crate) fn deny(self) -> Option<DenyName> {
        if let Self::Deny(deny) = self { Some(deny) } else { None }
    }

    /// Returns the name as that of the note that a rule was moved, if it is one.
    pub(crate) fn moved(self) -> Option<Moved> {
        if let Self::Moved(moved) = self { Some(moved) } else { None }
    }

    /// The target that the rule is for; none for a note, which is for the group.
    pub(crate) fn key(&self) -> Option<&Key> {
        match self {
            Self::Allow(AllowName { key, .. }) | Self::Deny(DenyName { key, .. }) | Self::Release(key) => {
                Some(key)
            }
            Self::Moved(_) => None,
        }
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(AllowName { key, grant, not_after, content }) => {
                let end = not_after.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ");
                write!(f, "{PREFIX}allow-{grant}-{end}-{key}-{content}")
            }
            Self::Deny(DenyName { key, protocol, family, ports }) => {
                let six = if *family == Family::V6 { "6" } else { "" };
                write!(f, "{PREFIX}deny-{key}-{protocol}{six}")?;
                ports.iter().try_for_each(|port| write!(f, "-{port}"))
            }
            Self::Moved(Moved { owner, priority, rule }) => {
                write!(f, "{PREFIX}moved-{owner}-{priority}-{rule}")
            }
            Self::Release(key) => write!(f, "{PREFIX}release-{key}"),
        }
    }
}

impl AllowName {
    pub(crate) fn new(key: &Key, grant: GrantId, not_after: Timestamp, content: &Content) -> Self {
        Self { key: key.clone(), grant, not_after: full_second(not_after), content: content.digest() }
    }

    /// Reports whether a rule of this name still has the content that it was written with.
    pub(crate) fn is_of(&self, content: &Content) -> bool {
        self.content == content.digest()
    }
}

impl Moved {
    pub(crate) fn new(deployment: &str, priority: u16, rule: &str) -> Self {
        Self { owner: owner(deployment), priority, rule: rule_digest(rule) }
    }

    /// Reports whether this deployment wrote it.
    pub(crate) fn is_of(&self, deployment: &str) -> bool {
        self.owner == owner(deployment)
    }

    /// Reports whether the note is of this rule. Names of rules are compared without case.
    pub(crate) fn was(&self, rule: &str) -> bool {
        self.rule == rule_digest(rule)
    }
}

/// The name of Postern's rule collection in an Azure Firewall.
pub(crate) fn collection(deployment: &str) -> String {
    format!("{PREFIX}{}", owner(deployment))
}

/// A number that is the same each time for a rule's name and an attempt.
pub(crate) fn name_hash(name: &str, tries: usize) -> usize {
    let digest = Sha256::digest(format!("{name} {tries}"));
    digest.iter().take(4).fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn rule_digest(rule: &str) -> String {
    digest(&rule.to_ascii_lowercase(), 12)
}

/// The content of one rule of windows: every source to every port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Content {
    pub(crate) protocol: Protocol,
    pub(crate) ports: BTreeSet<Port>,
    pub(crate) sources: BTreeSet<SourcePrefix>,
}

impl Content {
    fn digest(&self) -> String {
        let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
        let sources: Vec<String> = self.sources.iter().map(ToString::to_string).collect();
        digest(&format!("{}|{}|{}", self.protocol, ports.join(","), sources.join(",")), 8)
    }

    /// The windows that a rule of this content opens.
    pub(crate) fn windows(
        &self,
        target: &TargetId,
        grant: GrantId,
        not_after: Timestamp,
    ) -> BTreeSet<LayerWindow> {
        let window = |port: &Port, source: &SourcePrefix| LayerWindow {
            target: target.clone(),
            grant,
            port: ProtectedPort { protocol: self.protocol, port: *port },
            source: *source,
            not_after,
        };
        self.ports
            .iter()
            .flat_map(|port| self.sources.iter().map(move |source| window(port, source)))
            .collect()
    }

    /// The contents of the fewest rules that open these windows of one grant, and nothing else: where every source may
    /// reach every port, one for each protocol and family.
    pub(crate) fn of<'a>(windows: impl IntoIterator<Item = &'a LayerWindow>) -> Vec<Self> {
        let mut kinds: std::collections::BTreeMap<
            _,
            std::collections::BTreeMap<Port, BTreeSet<SourcePrefix>>,
        > = std::collections::BTreeMap::new();
        for window in windows {
            let ports = kinds.entry((window.port.protocol, Family::of(window.source))).or_default();
            ports.entry(window.port.port).or_default().insert(window.source);
        }
        let mut contents: Vec<Self> = Vec::new();
        for ((protocol, family), ports) in kinds {
            for (port, sources) in ports {
                let same = contents.iter_mut().find(|content| {
                    let of_family = content.sources.iter().all(|source| Family::of(*source) == family);
                    content.protocol == protocol && of_family && content.sources == sources
                });
                match same {
                    Some(content) => {
                        content.ports.insert(port);
                    }
                    None => contents.push(Self { protocol, ports: [port].into(), sources }),
                }
            }
        }
        contents.into_iter().flat_map(Self::disjoint).collect()
    }

    /// Splits it into contents whose sources share no address: Azure refuses a rule with prefixes that lie within each other
    /// (`OverlappingSubnetsNotPermittedInSecurityRule`).
    fn disjoint(self) -> Vec<Self> {
        let mut parts: Vec<BTreeSet<SourcePrefix>> = Vec::new();
        for source in self.sources {
            let meets = |other: &SourcePrefix| other.covers(&source) || source.covers(other);
            match parts.iter_mut().find(|part| !part.iter().any(meets)) {
                Some(part) => {
                    part.insert(source);
                }
                None => parts.push([source].into()),
            }
        }
        let (protocol, ports) = (self.protocol, self.ports);
        parts.into_iter().map(|sources| Self { protocol, ports: ports.clone(), sources }).collect()
    }
}

/// The end as a name holds it: a name has no room for a part of a second.
fn full_second(at: Timestamp) -> Timestamp {
    let whole = Timestamp::from_second(at.as_second()).unwrap_or(at);
    if whole < at { whole.checked_add(1.second()).unwrap_or(at) } else { whole }
}

fn read_end(text: &str) -> Option<Timestamp> {
    let at = DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// The description of a window's rule: the grant, the exact end, and the target where there is room.
pub(crate) fn describe_window(target: &TargetId, grant: GrantId, not_after: Timestamp) -> String {
    with_target(format!("Postern: grant {grant} until {not_after}"), target)
}

/// The exact end of a window, from its rule's description; the end in the name where the description does not hold it.
pub(crate) fn very_end(name: &AllowName, description: &str) -> Timestamp {
    let said =
        description.split_once(" until ").and_then(|(_, rest)| rest.split([';', ' ']).next()?.parse().ok());
    said.filter(|end| full_second(*end) == name.not_after).unwrap_or(name.not_after)
}

/// Reports whether the description of a window's rule is the one that the broker writes for a window with this end.
pub(crate) fn is_description(target: &TargetId, name: &AllowName, not_after: Timestamp, text: &str) -> bool {
    text == describe_window(target, name.grant, not_after)
}

/// The beginning of the description of a rule that shuts ports behind the customer's rules.
const BEHIND: &str = "Postern: shut behind your rules";

/// The description of a rule that shuts ports: behind the customer's rules, or before them by the administrator's consent.
pub(crate) fn describe_deny(target: &TargetId, is_behind: bool) -> String {
    let text = if is_behind { BEHIND } else { "Postern: shut but for windows" };
    with_target(text.to_owned(), target)
}

/// Reports whether a rule that shuts ports stays behind the customer's rules: no consent was given to move those.
pub(crate) fn is_behind(description: &str) -> bool {
    description.starts_with(BEHIND)
}

/// The name of the machine in a description, after its resource group.
pub(crate) fn machine_in(description: &str) -> Option<&str> {
    description.rsplit_once("; ").map(|(_, machine)| machine)
}

/// The description of the note that a rule was moved.
pub(crate) fn describe_moved(rule: &str, priority: u16) -> String {
    format!("Postern: keeps priority {priority} for {rule}")
}

fn with_target(mut text: String, target: &TargetId) -> String {
    if let TargetId::Azure { group, vm, .. } = target
        && text.len() + group.len() + vm.len() + 3 <= MAX_DESCRIPTION
    {
        text.push_str(&format!("; {group}/{vm}"));
    }
    text
}

/// The target that a description names, in this subscription, if the key is the target's.
pub(crate) fn target_of(
    description: &str,
    subscription: &str,
    key: &Key,
    deployment: &str,
) -> Option<TargetId> {
    let (group, vm) = description.rsplit_once("; ")?.1.split_once('/')?;
    let target = TargetId::from_segments(&["azure", subscription, group, vm]).ok()?;
    (Key::of(deployment, &target) == *key).then_some(target)
}

#[cfg(test)]
mod tests;
