//! Edits of a rule by another principal of the account.

use aws_sdk_ec2::types::{SecurityGroupRuleRequest, SecurityGroupRuleUpdate};

use super::{Cloud, RuleSpec};

/// An edit of a window's rule.
#[derive(Debug, Clone, Copy)]
pub enum Edit {
    /// `ModifySecurityGroupRules`: the id and the tags stay (EC2 API reference, `ModifySecurityGroupRules`; moto 5.2.5
    /// changes protocol, ports, IPv4 range and description there).
    Modify(fn(&mut RuleSpec)),
    /// Takes the rule away and makes another with its tags, as the console does for another kind of source. moto 5.2.5
    /// ignores IPv6 ranges, prefix lists and groups in `ModifySecurityGroupRules`, so these edits come this way.
    Replace(fn(&mut RuleSpec)),
    /// Writes the tag whose key begins so (EC2 API reference, `CreateTags`).
    Tag(&'static str, &'static str),
    /// Takes off the tag whose key begins so (EC2 API reference, `DeleteTags`).
    Untag(&'static str),
}

impl Cloud {
    /// Edits one rule of a group.
    ///
    /// # Panics
    /// EC2 refuses the edit.
    pub fn edit_rule(&self, group: &str, id: &str, rule: &RuleSpec, edit: Edit) {
        let key = |start: &str| {
            let found = rule.tags.keys().find(|key| key.starts_with(start));
            found.map_or_else(|| start.to_owned(), Clone::clone)
        };
        let mut edited = rule.clone();
        match edit {
            Edit::Modify(change) => {
                change(&mut edited);
                self.modify_rule(group, id, &edited);
            }
            Edit::Replace(change) => {
                change(&mut edited);
                self.revoke_rule(group, id);
                self.allow(group, &edited);
            }
            Edit::Tag(start, value) => self.tag(id, &key(start), value),
            Edit::Untag(start) => self.untag(id, &key(start)),
        }
    }

    fn modify_rule(&self, group: &str, id: &str, rule: &RuleSpec) {
        let wanted = SecurityGroupRuleRequest::builder()
            .ip_protocol(&rule.protocol)
            .from_port(rule.from)
            .to_port(rule.to)
            .cidr_ipv4(&rule.source)
            .description(&rule.description)
            .build();
        let update =
            SecurityGroupRuleUpdate::builder().security_group_rule_id(id).security_group_rule(wanted).build();
        let group = group.to_owned();
        self.run(|client| async move {
            client.modify_security_group_rules().group_id(group).security_group_rules(update).send().await
        })
        .unwrap_or_else(|error| panic!("{rule:?}: {error:?}"));
    }

    fn revoke_rule(&self, group: &str, id: &str) {
        let (group, rule) = (group.to_owned(), id.to_owned());
        self.run(|client| async move {
            client.revoke_security_group_ingress().group_id(group).security_group_rule_ids(rule).send().await
        })
        .unwrap_or_else(|error| panic!("{id}: {error:?}"));
    }
}
