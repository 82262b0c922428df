//! Targets: the VMs that JIT can protect.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::repeated;
use crate::{Invalid, Name};

/// A VM that JIT can protect, written `host:<name>`, `aws:<account>/<region>/<instance-id>` or
/// `azure:<ARM id of the virtual machine>`. Azure ids are case-insensitive and kept in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TargetId {
    /// A plain host: only the host layer.
    Host(Name),
    /// An EC2 instance.
    Aws {
        /// The account, 12 digits.
        account: String,
        /// The Region, for instance `eu-central-1`.
        region: String,
        /// The instance, `i-` and 8 or 17 hexadecimal digits.
        instance: String,
    },
    /// An Azure virtual machine.
    Azure {
        /// The subscription's UUID.
        subscription: String,
        /// The resource group.
        group: String,
        /// The virtual machine's name.
        vm: String,
    },
}

/// The cloud of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CloudKind {
    /// Amazon EC2.
    Aws,
    /// Microsoft Azure.
    Azure,
}

impl TargetId {
    /// Returns the cloud of the target's cloud layer; none for a plain host.
    pub fn cloud(&self) -> Option<CloudKind> {
        match self {
            Self::Host(_) => None,
            Self::Aws { .. } => Some(CloudKind::Aws),
            Self::Azure { .. } => Some(CloudKind::Azure),
        }
    }

    /// Returns the target in few words for people: a VM on Azure by its name and its resource group, `vm-1 (web)`. Two subscriptions
    /// may each have such a VM.
    pub fn in_words(&self) -> String {
        match self {
            Self::Azure { group, vm, .. } => format!("{vm} ({group})"),
            Self::Host(_) | Self::Aws { .. } => self.to_string(),
        }
    }

    /// Returns the target as path segments of a SPIFFE id; [`Self::from_segments`] reads them back.
    pub fn segments(&self) -> Vec<&str> {
        match self {
            Self::Host(name) => vec!["host", name.as_str()],
            Self::Aws { account, region, instance } => vec!["aws", account, region, instance],
            Self::Azure { subscription, group, vm } => vec!["azure", subscription, group, vm],
        }
    }

    /// Reads a target from the segments of [`Self::segments`].
    ///
    /// # Errors
    /// Segments that name no target.
    pub fn from_segments(segments: &[&str]) -> Result<Self, Invalid> {
        match segments {
            ["host", name] => host(name),
            ["aws", account, region, instance] => aws(account, region, instance),
            ["azure", subscription, group, vm] => azure(subscription, group, vm),
            _ => Err(Invalid::new("target", "names no kind of target", FORMS)),
        }
    }
}

const FORMS: &str = "write host:<name>, aws:<account>/<region>/<instance-id> or azure:/subscriptions/<id>/resourceGroups/<group>/providers/Microsoft.Compute/virtualMachines/<name>";

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => write!(f, "host:{name}"),
            Self::Aws { account, region, instance } => write!(f, "aws:{account}/{region}/{instance}"),
            Self::Azure { subscription, group, vm } => write!(
                f,
                "azure:/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}"
            ),
        }
    }
}

impl FromStr for TargetId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let unknown = || Invalid::new("target", format!("{} is not a target", repeated(text)), FORMS);
        let (kind, rest) = text.split_once(':').ok_or_else(unknown)?;
        match kind {
            "host" => host(rest),
            "aws" => match rest.split('/').collect::<Vec<_>>()[..] {
                [account, region, instance] => aws(account, region, instance),
                _ => Err(unknown()),
            },
            "azure" => {
                let lower = rest.to_ascii_lowercase();
                match lower.split('/').collect::<Vec<_>>()[..] {
                    [
                        "",
                        "subscriptions",
                        subscription,
                        "resourcegroups",
                        group,
                        "providers",
                        "microsoft.compute",
                        "virtualmachines",
                        vm,
                    ] => azure(subscription, group, vm),
                    _ => Err(unknown()),
                }
            }
            _ => Err(unknown()),
        }
    }
}

fn host(name: &str) -> Result<TargetId, Invalid> {
    // Hosts are machines: their names compare without case, like DNS names (RFC 4343).
    Name::new(&name.to_ascii_lowercase()).map(TargetId::Host).map_err(|e| e.named("target"))
}

fn aws(account: &str, region: &str, instance: &str) -> Result<TargetId, Invalid> {
    let bad = |problem: &str| {
        Err(Invalid::new("target", problem, "write aws:123456789012/eu-central-1/i-0123456789abcdef0"))
    };
    if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
        return bad("the account is not 12 digits");
    }
    let region_ok = !region.is_empty()
        && region.len() <= 32
        && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !region_ok {
        return bad("the region is not a Region's code");
    }
    let hex = instance.strip_prefix("i-").unwrap_or_default();
    if !matches!(hex.len(), 8 | 17) || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    {
        return bad("the instance id is not i- and 8 or 17 hexadecimal digits");
    }
    Ok(TargetId::Aws { account: account.into(), region: region.into(), instance: instance.into() })
}

fn azure(subscription: &str, group: &str, vm: &str) -> Result<TargetId, Invalid> {
    let bad = |problem: &str| Err(Invalid::new("target", problem, FORMS));
    let uuid_shape =
        |(i, b): (usize, u8)| if matches!(i, 8 | 13 | 18 | 23) { b == b'-' } else { b.is_ascii_hexdigit() };
    if subscription.len() != 36 || !subscription.bytes().enumerate().all(uuid_shape) {
        return bad("the subscription is not a UUID");
    }
    // Path characters would change the resource that a URL names; SPIFFE segments allow fewer still.
    let plain = |text: &str| {
        text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && text != "."
            && text != ".."
    };
    if group.is_empty() || group.len() > 90 || !plain(group) {
        return bad("the resource group is not 1 to 90 of a-z 0-9 . _ -");
    }
    if vm.is_empty() || vm.len() > 64 || !plain(vm) {
        return bad("the virtual machine is not 1 to 64 of a-z 0-9 . _ -");
    }
    let lower = str::to_ascii_lowercase;
    Ok(TargetId::Azure { subscription: lower(subscription), group: lower(group), vm: lower(vm) })
}

impl TryFrom<String> for TargetId {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<TargetId> for String {
    fn from(id: TargetId) -> String {
        id.to_string()
    }
}

/// A selector of the targets that a policy covers: one target, or every target whose written form starts with a
/// prefix (`host:web-*`, `aws:123456789012/*`, `*`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TargetSelector {
    /// Selects this target alone.
    One(TargetId),
    /// Selects every target whose written form starts with this prefix.
    Prefix(String),
}

impl TargetSelector {
    /// Reports whether the selector covers the target.
    pub fn covers(&self, target: &TargetId) -> bool {
        match self {
            Self::One(one) => one == target,
            Self::Prefix(prefix) => target.to_string().starts_with(prefix),
        }
    }

    /// Reports whether any target can exist that the selector covers: `aws:123/*` names no account, and protects nothing.
    pub fn can_match(&self) -> bool {
        match self {
            Self::One(_) => true,
            Self::Prefix(prefix) => match prefix.split_once(':') {
                None => prefix.is_empty(),
                Some(("host", name)) => name.is_empty() || may_begin(name, "a", host),
                Some(("aws", rest)) => may_begin_aws(rest),
                Some(("azure", rest)) => may_begin_azure(rest),
                Some(_) => false,
            },
        }
    }
}

/// Reports whether a name of this kind may begin so, followed by `end` or by nothing.
fn may_begin<T>(text: &str, end: &str, read: impl Fn(&str) -> Result<T, Invalid>) -> bool {
    read(text).is_ok() || read(&format!("{text}{end}")).is_ok()
}

/// Reports whether the part after `aws:` may begin so: each segment before the last is whole.
fn may_begin_aws(rest: &str) -> bool {
    // A target that is whole, of which the prefix replaces the beginning.
    let whole = ["000000000000", "a", "i-00000000000000000"];
    let segments: Vec<&str> = rest.split('/').collect();
    let Some((last, before)) = segments.split_last() else { return true };
    let filled = |at: usize| {
        let full = whole.get(at)?;
        let has_room = at == 1 || last.len() <= full.len();
        let rest = if at == 1 && !last.is_empty() { "" } else { full.get(last.len()..).unwrap_or_default() };
        has_room.then(|| format!("{last}{rest}"))
    };
    let Some(filled) = filled(before.len()) else { return false };
    let all: Vec<&str> = before
        .iter()
        .copied()
        .chain([filled.as_str()])
        .chain(whole.into_iter().skip(segments.len()))
        .collect();
    matches!(all[..], [account, region, instance] if aws(account, region, instance).is_ok())
}

/// Reports whether the part after `azure:` may begin so.
fn may_begin_azure(rest: &str) -> bool {
    const FIXED: [&str; 9] = [
        "",
        "subscriptions",
        "*",
        "resourcegroups",
        "*",
        "providers",
        "microsoft.compute",
        "virtualmachines",
        "*",
    ];
    let rest = rest.to_ascii_lowercase();
    let segments: Vec<&str> = rest.split('/').collect();
    if rest.is_empty() {
        return true;
    }
    let last = segments.len() - 1;
    segments.len() <= FIXED.len()
        && segments.iter().zip(FIXED).enumerate().all(|(at, (segment, fixed))| match (at == last, fixed) {
            (true, "*") => true,
            (true, _) => fixed.starts_with(segment),
            (false, "*") => !segment.is_empty(),
            (false, _) => *segment == fixed,
        })
}

impl fmt::Display for TargetSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(one) => one.fmt(f),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl FromStr for TargetSelector {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let Some(prefix) = text.strip_suffix('*') else {
            return text.parse().map(Self::One);
        };
        let known =
            prefix.is_empty() || ["host:", "aws:", "azure:"].iter().any(|kind| prefix.starts_with(kind));
        let plain = prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/".contains(&b));
        if !known || !plain || prefix.len() > 512 {
            let problem = format!("{} selects no kind of target", repeated(text));
            return Err(Invalid::new(
                "target",
                problem,
                "write a target, or host:* aws:* azure:* or a longer prefix, or *",
            ));
        }
        Ok(Self::Prefix(prefix.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for TargetSelector {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<TargetSelector> for String {
    fn from(selector: TargetSelector) -> String {
        selector.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AZURE: &str = "azure:/subscriptions/00000000-0000-0000-0000-00000000000A/resourceGroups/RG-1/providers/Microsoft.Compute/virtualMachines/Vm.1";

    #[test]
    fn a_target_reads_back_from_its_text_and_its_segments() {
        for text in ["host:web-1", "aws:123456789012/eu-central-1/i-0123456789abcdef0", AZURE] {
            let target: TargetId = text.parse().unwrap();
            assert_eq!(target.to_string().parse::<TargetId>().unwrap(), target);
            assert_eq!(TargetId::from_segments(&target.segments()).unwrap(), target);
        }
    }

    #[test]
    fn a_vm_on_azure_is_its_name_and_its_resource_group_in_words() {
        let words = |text: &str| text.parse::<TargetId>().unwrap().in_words();
        assert_eq!(words(AZURE), "vm.1 (rg-1)");
        assert_eq!(words("host:web-1"), "host:web-1");
    }

    #[test]
    fn azure_ids_compare_without_case() {
        let lower: TargetId = AZURE.to_ascii_lowercase().parse().unwrap();
        assert_eq!(AZURE.parse::<TargetId>().unwrap(), lower);
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "web-1",
            "host:",
            "host:a/b",
            "vm:x",
            "aws:1/eu/i-0",
            "aws:123456789012/eu-central-1/i-XYZ",
            "azure:/subscriptions/x/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v",
            "azure:/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/../providers/Microsoft.Compute/virtualMachines/v",
        ] {
            assert!(bad.parse::<TargetId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_selector_covers_one_or_a_prefix() {
        let web: TargetId = "host:web-1".parse().unwrap();
        for (selector, covers) in
            [("host:web-1", true), ("host:web-*", true), ("*", true), ("host:db-*", false), ("aws:*", false)]
        {
            assert_eq!(selector.parse::<TargetSelector>().unwrap().covers(&web), covers, "{selector}");
        }
        assert!("web-*".parse::<TargetSelector>().is_err());
    }

    #[test]
    fn a_prefix_with_which_no_target_begins_matches_nothing() {
        for (selector, can) in [
            ("*", true),
            ("host:*", true),
            ("host:web-*", true),
            ("host:a/*", false),
            ("aws:*", true),
            ("aws:1234*", true),
            ("aws:123456789012/*", true),
            ("aws:123456789012/eu-*", true),
            ("aws:123456789012/eu-central-1/*", true),
            ("aws:123456789012/eu-central-1/i-0123*", true),
            ("aws:123/*", false),
            ("aws:12345678901234*", false),
            ("aws:prod*", false),
            ("aws:123456789012/EU_1*", false),
            ("aws:123456789012//i-*", false),
            ("aws:123456789012/eu-central-1/web-*", false),
            ("aws:123456789012/eu-central-1/i-0/*", false),
            ("azure:*", true),
            ("azure:/sub*", true),
            ("azure:/subscriptions/00000000-*", true),
            ("azure:/subscriptions/x/resourceGroups/rg-*", true),
            (
                "azure:/subscriptions/x/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm*",
                true,
            ),
            ("azure:subscriptions/x*", false),
            ("azure:/subscriptions//resourceGroups/*", false),
            ("azure:/subscriptions/x/groups/*", false),
        ] {
            assert_eq!(selector.parse::<TargetSelector>().unwrap().can_match(), can, "{selector}");
        }
    }
}
