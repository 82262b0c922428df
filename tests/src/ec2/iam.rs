//! IAM, as far as the shipped policy uses it: what each call of EC2 needs, and whether a statement allows that (Service
//! Authorization Reference, "Actions, resources, and condition keys for Amazon EC2"). What it does not know it denies.

use std::collections::BTreeMap;

use serde_json::Value;

use super::protocol::Call;

/// The tags of a resource, by key.
pub(super) type Tags = BTreeMap<String, String>;

/// A permission that a call needs.
#[derive(Debug, Default)]
pub(super) struct Need {
    action: String,
    /// The kind of the resource, and its id; `*` for one that is being made.
    kind: &'static str,
    id: String,
    request_tags: Tags,
    create_action: Option<String>,
}

impl Need {
    /// The resource whose tags the policy may ask for; none for one that is being made, or for no resource at all.
    pub(super) fn resource(&self) -> Option<&str> {
        Some(self.id.as_str()).filter(|id| *id != "*" && !self.kind.is_empty())
    }
}

/// Returns the permissions that a call needs.
pub(super) fn needs(call: &Call) -> Vec<Need> {
    let values = |prefix: &str| -> Vec<String> {
        let keys = call.parameters.iter().filter(|(key, _)| key.starts_with(prefix));
        keys.map(|(_, value)| value.clone()).collect()
    };
    let tags = |prefix: &str| -> Tags {
        let all = values(&format!("{prefix}.")).len();
        let pair = |number: usize| {
            let key = call.parameter(&format!("{prefix}.{number}.Key"))?;
            let value = call.parameter(&format!("{prefix}.{number}.Value")).unwrap_or_default();
            Some((key.to_owned(), value.to_owned()))
        };
        (1..=all).filter_map(pair).collect()
    };
    let made = tags("TagSpecification.1.Tag");
    let need =
        |kind, id: &str| Need { action: call.action.clone(), kind, id: id.to_owned(), ..Need::default() };
    let tagging = |kind| Need {
        action: "CreateTags".to_owned(),
        kind,
        id: "*".to_owned(),
        request_tags: made.clone(),
        create_action: Some(call.action.clone()),
    };
    let group = || need(GROUP, call.parameter("GroupId").unwrap_or_default());
    match call.action.as_str() {
        "CreateSecurityGroup" => vec![
            Need { request_tags: made.clone(), ..need(GROUP, "*") },
            need("vpc", call.parameter("VpcId").unwrap_or_default()),
            tagging(GROUP),
        ],
        "AuthorizeSecurityGroupIngress" if made.is_empty() => vec![group(), need(RULE, "*")],
        "AuthorizeSecurityGroupIngress" => vec![group(), need(RULE, "*"), tagging(RULE)],
        "RevokeSecurityGroupIngress" | "RevokeSecurityGroupEgress" => {
            let rules = values("SecurityGroupRuleId.");
            [group()].into_iter().chain(rules.iter().map(|id| need(RULE, id))).collect()
        }
        "DeleteSecurityGroup" => vec![group()],
        "CreateTags" | "DeleteTags" => {
            let request_tags = tags("Tag");
            let need = |id: &String| Need {
                request_tags: request_tags.clone(),
                ..need(if id.starts_with("sgr-") { RULE } else { GROUP }, id)
            };
            values("ResourceId.").iter().map(need).collect()
        }
        "ModifyNetworkInterfaceAttribute" => {
            let groups = values("SecurityGroupId.");
            let interface =
                need("network-interface", call.parameter("NetworkInterfaceId").unwrap_or_default());
            [interface].into_iter().chain(groups.iter().map(|id| need(GROUP, id))).collect()
        }
        _ => vec![need("", "*")],
    }
}

const GROUP: &str = "security-group";
const RULE: &str = "security-group-rule";

/// Reports whether the policy allows the need, on a resource with these tags.
pub(super) fn allows(policy: &Value, need: &Need, resource_tags: &Tags) -> bool {
    let statements = policy["Statement"].as_array().map_or(&[][..], Vec::as_slice);
    let arn = match need.kind {
        "" => "*".to_owned(),
        kind => format!("arn:aws:ec2:eu-central-1:123456789012:{kind}/{}", need.id),
    };
    statements.iter().any(|statement| {
        statement["Effect"] == "Allow"
            && texts(&statement["Action"]).iter().any(|action| **action == format!("ec2:{}", need.action))
            && texts(&statement["Resource"]).iter().any(|pattern| matches(pattern, &arn))
            && conditions(statement)
                .all(|(operator, key, values)| holds(operator, key, &values, need, resource_tags))
    })
}

fn conditions(statement: &Value) -> impl Iterator<Item = (&str, &str, Vec<&str>)> {
    let operators = statement["Condition"].as_object().into_iter().flatten();
    operators.flat_map(|(operator, keys)| {
        let keys = keys.as_object().into_iter().flatten();
        keys.map(move |(key, values)| (operator.as_str(), key.as_str(), texts(values)))
    })
}

fn holds(operator: &str, key: &str, values: &[&str], need: &Need, resource_tags: &Tags) -> bool {
    let is = if let Some(tag) = key.strip_prefix("aws:ResourceTag/") {
        resource_tags.get(tag).map(String::as_str)
    } else if let Some(tag) = key.strip_prefix("aws:RequestTag/") {
        need.request_tags.get(tag).map(String::as_str)
    } else if key == "ec2:CreateAction" {
        need.create_action.as_deref()
    } else if key == "aws:TagKeys" {
        let each = |holds: fn(&str, &str) -> bool| {
            need.request_tags.keys().all(|tag| values.iter().any(|value| holds(value, tag)))
        };
        return match operator {
            "ForAllValues:StringLike" => each(matches),
            "ForAllValues:StringNotEquals" => each(|value, tag| value != tag),
            _ => false,
        };
    } else {
        return false;
    };
    match operator {
        "StringEquals" => is.is_some_and(|is| values.contains(&is)),
        "Null" => values.iter().any(|value| *value == if is.is_none() { "true" } else { "false" }),
        _ => false,
    }
}

/// Reads one text or a list of texts.
fn texts(value: &Value) -> Vec<&str> {
    value.as_array().map_or_else(
        || value.as_str().into_iter().collect(),
        |list| list.iter().filter_map(Value::as_str).collect(),
    )
}

/// Reports whether a text matches a pattern, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(head) else { return false };
    text.char_indices().map(|(at, _)| at).chain([text.len()]).any(|at| matches(rest, &text[at..]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_statement_allows_what_all_of_it_says_and_nothing_else() {
        let policy = json!({ "Statement": [{
            "Effect": "Allow",
            "Action": ["ec2:DeleteSecurityGroup"],
            "Resource": "arn:*:ec2:*:*:security-group/*",
            "Condition": { "StringEquals": { "aws:ResourceTag/owner": "us" } },
        }] });
        let call = |action: &str| Call {
            action: action.to_owned(),
            region: "eu-central-1".to_owned(),
            caller: "test".to_owned(),
            parameters: vec![("GroupId".to_owned(), "sg-1".to_owned())],
        };
        let allowed = |action: &str, owner: &str| {
            let tags = [("owner".to_owned(), owner.to_owned())].into();
            needs(&call(action)).iter().all(|need| allows(&policy, need, &tags))
        };
        assert!(allowed("DeleteSecurityGroup", "us"));
        assert!(!allowed("DeleteSecurityGroup", "them"));
        assert!(!allowed("AuthorizeSecurityGroupIngress", "us") && !allowed("DescribeVpcs", "us"));
    }

    #[test]
    fn a_star_is_anything() {
        assert!(matches("arn:*:ec2:*:*:vpc/*", "arn:aws:ec2:eu-central-1:123456789012:vpc/vpc-1"));
        assert!(matches("*", "") && matches("postern:*", "postern:grant") && !matches("postern:*", "Name"));
    }
}
