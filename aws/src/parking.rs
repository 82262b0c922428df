//! The plan that parks and restores the rules of one customer's group. Pure.
//!
//! A lockdown must take the protected ports out of a customer's rules, and a release must put the rules back
//! exactly, also from a broker whose store is empty (I6). So every original that a lockdown splits is
//! *parked*: copied, with its description and tags, to a security group of Postern's that is attached to
//! nothing. EC2 is the only record.
//!
//! The words: an *original* is a rule as the customer wrote it; its *copy* is the rule in the parked group;
//! its *pieces* are the rules around the protected ports that take its place in the customer's group
//! ([`split`]). A *holder* is an instance under lockdown that needs some ports of the group shut; the parked
//! group's tags list the holders and their ports.
//!
//! A resource carries 50 tags and a group 60 rules, so a customer's group has as many parked groups as its
//! copies and holders need; together they are one record, and their `number` is in their names.
//!
//! The rule that is kept: the pieces and restored originals in the customer's group follow from the parked
//! originals and the union of the holders' ports, and from nothing else. [`plan`] computes the steps from
//! what is there to what should be there. Locking, releasing, locking for one more instance, and resuming
//! after a crash are therefore the same plan with other holders, and planning again after any interruption
//! goes on from there (I8).
//!
//! The order of the steps keeps unprotected ports open at every moment: an original is parked first, its
//! pieces are added, and only then is it removed; if the quota has no room for both sets, removal goes first.
//! On release the original is back before its copy goes, and the parked group goes last.
//!
//! On failure: a group without room for the pieces is refused before anything is touched ([`DoesNotFit`]). If
//! another principal deletes a copy, its pieces stay and are the customer's rules from there on. If the
//! customer's group itself is gone, its parked group goes with the last holder.

mod record;

use std::collections::{BTreeMap, BTreeSet};

use postern_core::ProtectedPort;

use crate::resource::NewGroupRule;
use crate::rule::{Ec2Traffic, GroupRule, RuleSource, Tags};
use crate::split::{Loss, SplitOutcome, split};
use crate::tags;

/// A customer's group, and the rules that are parked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CustomerGroup {
    /// The group's id.
    pub(crate) id: String,
    /// EC2 still shows the group.
    pub(crate) exists: bool,
    /// The group's VPC.
    pub(crate) vpc: String,
    /// The ingress rules.
    pub(crate) rules: Vec<GroupRule>,
    /// The parked groups, by number.
    pub(crate) parked: Vec<ParkedGroup>,
}

/// A group that keeps copies of originals, and tags of holders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParkedGroup {
    /// The group's id.
    pub(crate) id: String,
    /// The number, from 1, among the parked groups of the same customer's group.
    pub(crate) number: usize,
    /// The copies.
    pub(crate) rules: Vec<GroupRule>,
    /// The instances that need ports shut, of those that this group's tags list.
    pub(crate) holders: Holders,
    /// The number of its tags that list no holder.
    pub(crate) other_tags: usize,
}

/// Instances, with the ports that each needs shut.
pub(crate) type Holders = BTreeMap<String, BTreeSet<ProtectedPort>>;

/// A change of a customer's group or of its parked group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GroupStep {
    /// Make the parked group with this number, which lists these holders.
    MakeParked(usize, Holders),
    /// Record in the parked group with this number that an instance needs ports shut.
    Hold(usize, String, BTreeSet<ProtectedPort>),
    /// Copy an original to the parked group with this number.
    Park(usize, NewGroupRule),
    /// Add a rule to the customer's group.
    Add(NewGroupRule),
    /// Remove a rule of the customer's group.
    Remove(GroupRule),
    /// Remove a copy from its parked group: its original is back.
    Unpark(GroupRule),
    /// Record in the parked group with this number that an instance no longer needs anything shut.
    ReleaseHolder(usize, String),
    /// Delete the parked group with this number.
    DeleteParked(usize),
}

/// The quota of rules in a group, and how prefix lists count against it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Rules in one direction and family.
    pub(crate) rules: usize,
    /// The number of rules that each prefix list counts as; a list whose number EC2 does not tell is missing.
    pub(crate) prefix_lists: BTreeMap<String, usize>,
}

/// A lockdown that the group has no room for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DoesNotFit {
    /// The plan needs more rules than the quota allows.
    #[error(
        "the pieces of its rules would make {needed} rules in {group}, and {most} are allowed; join rules, or have the quota of rules per security group raised and set rules_per_group"
    )]
    Rules {
        /// The group.
        group: String,
        /// The number of rules that the plan needs.
        needed: usize,
        /// The quota.
        most: usize,
    },
    /// EC2 does not tell the number of rules that a prefix list counts as.
    #[error(
        "it cannot be told whether {group} has room: EC2 does not say as how many rules the prefix list {list} counts; replace the list in its rules by address ranges"
    )]
    List {
        /// The group.
        group: String,
        /// The prefix list.
        list: String,
    },
    /// The originals that a release puts back need more rules than the quota allows.
    #[error(
        "with the rules that were parked {group} would have {needed} rules, and {most} are allowed; remove rules from it, or have the quota of rules per security group raised and set rules_per_group"
    )]
    Release {
        /// The group.
        group: String,
        /// The number of rules that the plan needs.
        needed: usize,
        /// The quota.
        most: usize,
    },
    /// The ports of an instance do not fit into the value of a tag.
    #[error(
        "the protected ports of {instance} take {length} characters in a tag, and EC2 allows 256; protect fewer ports, or ranges of neighbours"
    )]
    Ports {
        /// The instance.
        instance: String,
        /// The length of the value.
        length: usize,
    },
    /// A rule has so many tags that Postern's do not fit.
    #[error("{rule} carries {count} tags: take some off, Postern needs three of the 50")]
    Tags {
        /// The rule.
        rule: String,
        /// The number of its tags.
        count: usize,
    },
}

/// Returns the changes after which the group shuts the ports that these holders need shut, and lets in
/// everything else.
pub(crate) fn plan(
    customer_group: &CustomerGroup,
    holders: &Holders,
    deployment: &str,
    quota: &Quota,
) -> Result<Vec<GroupStep>, DoesNotFit> {
    if !customer_group.exists {
        return Ok(releases(customer_group, holders));
    }
    let ports: BTreeSet<ProtectedPort> = holders.values().flatten().copied().collect();
    let copies: Vec<&GroupRule> = customer_group.copies().collect();
    let (pieces, others): (Vec<&GroupRule>, Vec<&GroupRule>) = customer_group
        .rules
        .iter()
        .partition(|rule| is_piece(rule, deployment) && customer_group.keeps_original_of(rule));
    let (exposing, staying): (Vec<&GroupRule>, Vec<&GroupRule>) =
        others.into_iter().partition(|rule| split(rule, &ports) != SplitOutcome::Untouched);
    let new: Vec<&GroupRule> = exposing
        .iter()
        .filter(|rule| copies.iter().all(|copy| copy.identity() != rule.identity()))
        .copied()
        .collect();
    if let Some(rule) = new.iter().find(|rule| rule.tags.len() + 3 > tags::MAX_TAGS) {
        return Err(DoesNotFit::Tags { rule: rule.to_string(), count: rule.tags.len() });
    }

    // The rules that the group must have, by identity.
    let mut wanted: BTreeMap<(Ec2Traffic, RuleSource), NewGroupRule> = BTreeMap::new();
    let mut back = Vec::new();
    for original in copies.iter().copied().chain(new.iter().copied()) {
        let (mut original, copy) = (original.clone(), original);
        original.group.clone_from(&customer_group.id);
        match split(&original, &ports) {
            SplitOutcome::Untouched => {
                back.push(copy);
                let rule = restored(&original);
                wanted.insert((rule.traffic.clone(), rule.source.clone()), rule);
            }
            SplitOutcome::Split { kept, ask: _ } => {
                for traffic in kept {
                    let key = (traffic.clone(), original.source.clone());
                    wanted.entry(key).or_insert_with(|| piece(&original, traffic, deployment));
                }
            }
        }
    }

    let is_there = |rules: &[&GroupRule], rule: &NewGroupRule| {
        rules.iter().any(|there| there.identity() == (&rule.traffic, &rule.source))
    };
    let is_back = |rule: &NewGroupRule| !rule.tags.contains_key(tags::PIECE_OF);
    // A piece with the identity of an original that comes back must go first.
    let in_the_way: Vec<&GroupRule> = pieces
        .iter()
        .filter(|rule| wanted.get(&(rule.traffic.clone(), rule.source.clone())).is_some_and(is_back))
        .copied()
        .collect();
    let mut adds: Vec<NewGroupRule> = wanted
        .values()
        .filter(|rule| !is_there(&staying, rule) && (is_back(rule) || !is_there(&pieces, rule)))
        .cloned()
        .collect();
    // Rules with the same tags are neighbours, so that one call adds them.
    adds.sort_by(|one, other| one.tags.cmp(&other.tags));
    let stale =
        pieces.iter().filter(|rule| !wanted.contains_key(&(rule.traffic.clone(), rule.source.clone())));
    let removes: Vec<&GroupRule> = exposing.iter().chain(stale).copied().collect();

    let sources = || staying.iter().map(|rule| &rule.source).chain(wanted.values().map(|rule| &rule.source));
    let needed = quota.count(sources());
    let changes = !adds.is_empty() || !new.is_empty();
    if let Some(list) = sources().find_map(|source| quota.unknown(source)).filter(|_| changes) {
        return Err(DoesNotFit::List { group: customer_group.id.clone(), list: list.to_owned() });
    }
    if needed > quota.rules && !holders.is_empty() {
        return Err(DoesNotFit::Rules { group: customer_group.id.clone(), needed, most: quota.rules });
    }
    if needed > quota.rules && !adds.is_empty() {
        return Err(DoesNotFit::Release { group: customer_group.id.clone(), needed, most: quota.rules });
    }
    // If there is room for both sets, additions come first, so that no other port is interrupted.
    let both = quota.count(
        customer_group.rules.iter().map(|rule| &rule.source).chain(adds.iter().map(|rule| &rule.source)),
    );

    let mut steps = customer_group.steps_of_record(holders, &new, deployment, quota)?;
    steps.extend(in_the_way.into_iter().cloned().map(GroupStep::Remove));
    let adds = adds.into_iter().map(GroupStep::Add);
    let removes = removes.into_iter().cloned().map(GroupStep::Remove);
    if both > quota.rules {
        steps.extend(removes.chain(adds));
    } else {
        steps.extend(adds.chain(removes));
    }
    if !holders.is_empty() {
        steps.extend(back.into_iter().cloned().map(GroupStep::Unpark));
    }
    steps.extend(releases(customer_group, holders));
    Ok(steps)
}

/// Returns the last steps: the holders that need nothing shut any more go, and with the last of them the
/// parked groups.
fn releases(customer_group: &CustomerGroup, holders: &Holders) -> Vec<GroupStep> {
    let parked = customer_group.parked.iter().rev();
    if holders.is_empty() {
        return parked.map(|parked| GroupStep::DeleteParked(parked.number)).collect();
    }
    let mut listed: BTreeSet<&String> = BTreeSet::new();
    let mut gone = Vec::new();
    for parked in &customer_group.parked {
        for instance in parked.holders.keys() {
            // The tag of a holder that is listed twice goes as well: the steps before wrote the first.
            if !holders.contains_key(instance) || !listed.insert(instance) {
                gone.push(GroupStep::ReleaseHolder(parked.number, instance.clone()));
            }
        }
    }
    gone
}

/// Returns the rules that a lockdown for these holders removes, each with the losses that an administrator
/// must accept.
pub(crate) fn losses<'a>(
    customer_group: &'a CustomerGroup,
    holders: &Holders,
    deployment: &str,
) -> Vec<(&'a GroupRule, Vec<String>)> {
    let ports: BTreeSet<ProtectedPort> = holders.values().flatten().copied().collect();
    let lost = |rule: &'a GroupRule| match split(rule, &ports) {
        SplitOutcome::Untouched => None,
        SplitOutcome::Split { ask, .. } => {
            let reserved: Vec<_> = rule.tags.keys().filter(|key| tags::is_reserved(key)).cloned().collect();
            let mut words: Vec<String> = ask.iter().map(Loss::to_string).collect();
            if !reserved.is_empty() {
                words.push(format!(
                    "its tags {} are AWS's own and cannot be written back",
                    reserved.join(", ")
                ));
            }
            Some((rule, words))
        }
    };
    let is_original =
        |rule: &&GroupRule| !(is_piece(rule, deployment) && customer_group.keeps_original_of(rule));
    customer_group.rules.iter().filter(is_original).filter_map(lost).collect()
}

impl CustomerGroup {
    /// Returns the copies of all its parked groups.
    pub(crate) fn copies(&self) -> impl Iterator<Item = &GroupRule> {
        self.parked.iter().flat_map(|parked| &parked.rules)
    }

    /// Returns the holders that the tags of its parked groups list.
    pub(crate) fn holders(&self) -> Holders {
        let mut all = Holders::new();
        for (instance, ports) in self.parked.iter().flat_map(|parked| &parked.holders) {
            all.entry(instance.clone()).or_default().extend(ports);
        }
        all
    }

    /// Reports whether an original of a piece is parked, its own or another that covers it. A piece whose
    /// originals were deleted is all that is left of them: it is the customer's rule from there on.
    fn keeps_original_of(&self, piece: &GroupRule) -> bool {
        let original = piece.tags.get(tags::PIECE_OF);
        self.copies().any(|copy| {
            let covers = copy.source == piece.source && copy.traffic.covers(&piece.traffic);
            covers || copy.tags.get(tags::ORIGINAL) == original
        })
    }

    /// Leaves out the customer's rules that expose one of these ports and that no lockdown recorded: no
    /// administrator asked for a lockdown of them.
    pub(crate) fn without_exposing(&mut self, ports: &BTreeSet<ProtectedPort>, deployment: &str) {
        let recorded: BTreeSet<(Ec2Traffic, RuleSource)> =
            self.copies().map(|copy| (copy.traffic.clone(), copy.source.clone())).collect();
        self.rules.retain(|rule| {
            is_piece(rule, deployment)
                || recorded.contains(&(rule.traffic.clone(), rule.source.clone()))
                || split(rule, ports) == SplitOutcome::Untouched
        });
    }
}

impl Quota {
    /// Returns the prefix list of a source, if EC2 does not tell the number of rules that it counts as.
    fn unknown<'a>(&self, source: &'a RuleSource) -> Option<&'a str> {
        match source {
            RuleSource::PrefixList(list) | RuleSource::PrefixListV6(list) => {
                (!self.prefix_lists.contains_key(list)).then_some(list)
            }
            RuleSource::Prefix(_)
            | RuleSource::Group(_)
            | RuleSource::Peer { .. }
            | RuleSource::Unreadable => None,
        }
    }

    /// Returns the number of rules that these sources count as, in the address family that has more.
    fn count<'a>(&self, sources: impl Iterator<Item = &'a RuleSource>) -> usize {
        let (mut v4, mut v6) = (0, 0);
        for source in sources {
            let (in_v4, in_v6) = match source {
                RuleSource::Prefix(ipnet::IpNet::V4(_)) => (1, 0),
                RuleSource::Prefix(ipnet::IpNet::V6(_)) => (0, 1),
                RuleSource::PrefixList(list) | RuleSource::PrefixListV6(list) => {
                    let entries = self.prefix_lists.get(list).copied().unwrap_or(1);
                    (entries, entries)
                }
                RuleSource::Group(_) | RuleSource::Peer { .. } | RuleSource::Unreadable => (1, 1),
            };
            v4 += in_v4;
            v6 += in_v6;
        }
        v4.max(v6)
    }
}

/// Reports whether a lockdown made this rule of a customer's group.
pub(crate) fn is_piece(rule: &GroupRule, deployment: &str) -> bool {
    rule.tags.contains_key(tags::PIECE_OF)
        && rule.tags.get(tags::MANAGED_BY).is_some_and(|owner| owner == deployment)
}

fn piece(original: &GroupRule, traffic: Ec2Traffic, deployment: &str) -> NewGroupRule {
    let id = original.tags.get(tags::ORIGINAL).unwrap_or(&original.id).clone();
    let marks = [(tags::MANAGED_BY.to_owned(), deployment.to_owned()), (tags::PIECE_OF.to_owned(), id)];
    NewGroupRule {
        traffic,
        source: original.source.clone(),
        description: original.description.clone(),
        tags: writable(&original.tags).into_iter().chain(marks).collect(),
    }
}

fn copy_of(rule: &GroupRule, deployment: &str) -> NewGroupRule {
    let marks =
        [(tags::MANAGED_BY.to_owned(), deployment.to_owned()), (tags::ORIGINAL.to_owned(), rule.id.clone())];
    NewGroupRule {
        traffic: rule.traffic.clone(),
        source: rule.source.clone(),
        description: rule.description.clone(),
        tags: writable(&rule.tags).into_iter().chain(marks).collect(),
    }
}

fn restored(copy: &GroupRule) -> NewGroupRule {
    NewGroupRule {
        traffic: copy.traffic.clone(),
        source: copy.source.clone(),
        description: copy.description.clone(),
        tags: writable(&copy.tags),
    }
}

/// Returns the tags of a rule that are neither Postern's nor reserved by AWS.
fn writable(tags: &Tags) -> Tags {
    let keep = |key: &str| !tags::is_posterns(key) && !tags::is_reserved(key);
    tags.iter().filter(|(key, _)| keep(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests;
