//! The ids of resources, compared without case and kept in lower case.

use std::fmt;

/// The id of a resource, in lower case: `/subscriptions/<id>/resourcegroups/<group>/providers/<namespace>/<type>/<name>`, and
/// a type and a name for each child. It holds no character with a meaning in a path, so that it can be sent as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ArmId(String);

impl ArmId {
    /// Reads an id in any letter case; none where the text is no such id, or holds a character that would change the path.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let lower = text.to_lowercase();
        let segments: Vec<&str> = lower.strip_prefix('/')?.split('/').collect();
        let is_id =
            matches!(segments[..], ["subscriptions", _, "resourcegroups", _, "providers", _, _, _, ..])
                && segments.len().is_multiple_of(2)
                && segments
                    .iter()
                    .enumerate()
                    .all(|(at, segment)| is_plain(segment) || at == 3 && is_group(segment));
        is_id.then_some(Self(lower))
    }

    /// The id of a virtual machine.
    pub(crate) fn of_vm(subscription: &str, group: &str, vm: &str) -> Option<Self> {
        Self::new(&format!(
            "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.compute/virtualmachines/{vm}"
        ))
    }

    /// The subscription's id.
    pub(crate) fn subscription(&self) -> &str {
        self.segment(1)
    }

    /// The resource group.
    pub(crate) fn group(&self) -> &str {
        self.segment(3)
    }

    /// The name of the resource, or of the innermost child.
    pub(crate) fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The resource in few words: its name and its resource group.
    pub(crate) fn in_words(&self) -> String {
        format!("{} ({})", self.name(), self.group())
    }

    /// The path.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn segment(&self, index: usize) -> &str {
        self.0.split('/').nth(index + 1).unwrap_or_default()
    }
}

impl fmt::Display for ArmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns a path in few words: a resource by its type, its name and its resource group, or a list by its type and its subscription.
pub(crate) fn brief(path: &str) -> String {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match segments[..] {
        [_, _, _, group, _, _, .., kind, name] if ArmId::new(path).is_some() => {
            format!("{kind}/{name} ({group})")
        }
        ["subscriptions", subscription, "providers", _, kind] => {
            format!("{kind} of subscription {subscription}")
        }
        _ => path.to_owned(),
    }
}

/// Reports whether a segment is the name of a resource group, which may have letters and digits of any script.
fn is_group(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
        && segment.len() <= 260
        && segment.chars().all(|letter| letter.is_alphanumeric() || "._-()".contains(letter))
}

/// Reports whether a segment is letters, digits and `. _ - ( )`, and no step in a path (Microsoft Learn, "Naming rules and
/// restrictions for Azure resources").
pub(crate) fn is_plain(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
        && segment.len() <= 260
        && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-()".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_same_in_any_letter_case_and_know_their_parts() {
        let text = "/subscriptions/S/resourceGroups/My_RG(1)/providers/Microsoft.Network/virtualNetworks/Net/subnets/A.b";
        let id = ArmId::new(text).unwrap();
        assert_eq!(Some(&id), ArmId::new(&text.to_ascii_uppercase()).as_ref());
        assert_eq!((id.subscription(), id.group(), id.name()), ("s", "my_rg(1)", "a.b"));
    }

    #[test]
    fn a_path_in_few_words_has_its_type_name_and_resource_group() {
        let of = "/subscriptions/s/resourcegroups/web/providers/microsoft.network";
        assert_eq!(brief(&format!("{of}/networkinterfaces/nic-1")), "networkinterfaces/nic-1 (web)");
        assert_eq!(
            brief(&format!("{of}/networksecuritygroups/nsg/securityrules/ssh")),
            "securityrules/ssh (web)"
        );
        assert_eq!(
            brief("/subscriptions/s/providers/Microsoft.Network/azureFirewalls"),
            "azureFirewalls of subscription s"
        );
        assert_eq!(brief("/odd"), "/odd");
    }

    #[test]
    fn resource_groups_have_letters_of_any_script() {
        let text = |group: &str| {
            format!("/subscriptions/s/resourceGroups/{group}/providers/Microsoft.Network/networkInterfaces/n")
        };
        let id = ArmId::new(&text("Größe_(1)")).unwrap();
        assert_eq!((id.group(), Some(&id)), ("größe_(1)", ArmId::new(&text("GRÖßE_(1)")).as_ref()));
        for bad in ["a b", "a/b", "a%2fb", "..", "", "a?b", "\u{2028}"] {
            assert!(ArmId::new(&text(bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn names_with_path_characters_and_what_is_no_resource_are_refused() {
        let of_name = |name: &str| {
            format!("/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/{name}")
        };
        assert!(ArmId::new(&of_name("nic-1")).is_some());
        for bad in ["", ".", "..", "a/b", "a?b", "a#b", "a%2fb", "a b", "a\\b", "a;b", "ä"] {
            assert!(ArmId::new(&of_name(bad)).is_none(), "{bad}");
        }
        for bad in ["", "/", "/subscriptions/s", "/subscriptions/s/resourceGroups/g"] {
            assert!(ArmId::new(bad).is_none(), "{bad}");
        }
    }
}
