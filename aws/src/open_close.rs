//! Opens and closes all windows of a grant with one call each, from a cache of the instance's own group.
//!
//! The cache holds what the last read showed, updated by the calls since. After any error the cache is
//! dropped, and the next call reads first; the windows whose opening got no answer, and the openings that EC2
//! did answer (`written`), are kept, because a read may not show them yet. Only the next opening waits for a
//! read that tells whether they are open: an observation reports them as open in part, and a close removes
//! them by their properties, so that closing never waits for what became of an opening. While nothing unforeseen happens,
//! opening costs one call and closing costs a call and the read that proves it.

use std::collections::BTreeSet;

use postern_core::TargetId;
use postern_core::plan::LayerWindow;
use postern_provider::kit::{Attempt, CallError, Known, attempt_until};
use postern_provider::{CloudError, Observation};
use postern_runtime::clock;
use tokio::time::Instant;

use crate::backoff::backoff;
use crate::ec2::{Ec2, Find};
use crate::names;
use crate::resource::NewGroupRule;
use crate::rule::{Ec2Traffic, GroupRule, RuleSource};
use crate::rule_codec::{self, MarkedRule};
use crate::rule_plan::{self, ClosePlan, OpenPlan, RuleKey, TagChange};
use crate::snapshot::{InstanceContext, InstanceSnapshot};
use crate::tags::{self, Marks};
use crate::written::{SHOWN_AFTER, Written};

/// The cached state of one target between two calls.
#[derive(Debug, Default)]
pub(crate) struct InstanceCache {
    own: Known<OwnGroup>,
    /// Windows whose opening got no answer, with the time of the call: a read may not show them yet.
    unconfirmed: Vec<(LayerWindow, Instant)>,
    /// Recent openings, which a read may not show yet.
    written: Written,
    /// The read after a close showed a rule that is not in the cache.
    pub(crate) needs_observation: bool,
}

impl InstanceCache {
    /// Drops what reads have shown, so that the next call reads first. Keeps EC2's answers to openings.
    pub(crate) fn forget(&mut self) {
        self.own.forget();
        self.needs_observation = false;
    }

    /// Drops the doubts about windows that a read shows, and those that are so old that every read would.
    fn keep_doubts(&mut self, shown: &BTreeSet<LayerWindow>, has_own: bool) {
        let now = clock::instant();
        self.unconfirmed.retain(|(window, at)| {
            has_own && !shown.contains(window) && now.saturating_duration_since(*at) < SHOWN_AFTER
        });
    }

    /// Drops the cached group if it differs from a snapshot: one of the two is out of date.
    pub(crate) fn drop_if_stale(&mut self, snapshot: &InstanceSnapshot, deployment: &str) {
        let agrees = |own: &OwnGroup| {
            let mut held = snapshot.window_rules(deployment);
            held.sort_by(|one, other| one.id.cmp(&other.id));
            let mut known = own.rules.clone();
            known.sort_by(|one, other| one.id.cmp(&other.id));
            known == held && own.locked == (snapshot.state() == tags::LOCKED)
        };
        self.own.forget_unless(agrees);
    }
}

/// The cached own group and its rules.
#[derive(Debug)]
struct OwnGroup {
    group: String,
    rules: Vec<MarkedRule>,
    /// The ids of its rules that are not windows.
    strays: Vec<String>,
    /// The lockdown is complete: only then may a window open.
    locked: bool,
}

/// The operations on one instance.
pub(crate) struct InstanceOps<'a> {
    pub(crate) ec2: &'a dyn Ec2,
    pub(crate) context: InstanceContext<'a>,
}

impl InstanceOps<'_> {
    /// Reads everything that EC2 holds for the instance.
    pub(crate) async fn snapshot(&self) -> Result<InstanceSnapshot, CloudError> {
        let instance = [self.context.instance.to_owned()];
        let holder = [format!("{}{}", tags::HOLDER, self.context.instance)];
        let mut groups = self.ec2.groups(Find::Where("tag-key", &holder)).await?;
        let interfaces = self.ec2.interfaces(Find::Where("attachment.instance-id", &instance)).await?;
        let exists = !interfaces.is_empty()
            || !self.ec2.instances(Find::Where("instance-id", &instance)).await?.is_empty();
        let name = [names::own(self.context.instance)];
        if groups.iter().all(|group| group.name != name[0]) {
            // By name: another principal may have removed its tags.
            groups.extend(self.ec2.groups(Find::Where("group-name", &name)).await?);
        }
        groups.retain(|group| {
            group.is_managed(self.context.deployment) && group.serves().contains(self.context.instance)
        });
        let mut snapshot = InstanceSnapshot { groups, interfaces, exists, ..InstanceSnapshot::default() };
        let own = snapshot.own().map(|own| own.id.clone());
        let parked = snapshot.parked().map(|parked| parked.id.clone()).collect::<Vec<_>>();
        let ids: Vec<String> =
            snapshot.customer_groups().into_iter().cloned().chain(own).chain(parked).collect();
        if !ids.is_empty() {
            snapshot.rules = self.ec2.rules(Find::Where("group-id", &ids)).await?;
        }
        Ok(snapshot)
    }

    /// Reads the instance and caches the result.
    pub(crate) async fn observe(&self, cache: &mut InstanceCache) -> Result<Observation, CloudError> {
        cache.forget();
        let snapshot = self.snapshot().await?;
        let mut observation = snapshot.observation(self.context);
        let mut rules = snapshot.window_rules(self.context.deployment);
        let strays = snapshot.stray_rules(self.context.deployment);
        let strays: Vec<String> = strays.iter().map(|rule| rule.id.clone()).collect();
        if let Some(own) = snapshot.own().filter(|_| snapshot.exists) {
            let others: Vec<&str> = strays.iter().map(String::as_str).collect();
            cache.written.complete(&own.id, &mut rules, &others, clock::instant());
            observation.windows = rule_codec::windows(self.context.target, &rules);
        }
        if !snapshot.exists {
            cache.unconfirmed.clear();
            return Err(self.not_found());
        }
        cache.keep_doubts(&observation.windows, snapshot.own().is_some());
        observation.partial = cache.unconfirmed.iter().map(|(window, _)| window.clone()).collect();
        cache.own.learn(snapshot.own().map(|own| OwnGroup {
            group: own.id.clone(),
            rules,
            strays,
            locked: snapshot.state() == tags::LOCKED,
        }));
        Ok(observation)
    }

    /// Reads the instance until a read shows what became of these windows, or can no longer be too old to.
    async fn resolve_doubts(
        &self,
        cache: &mut InstanceCache,
        windows: &BTreeSet<LayerWindow>,
    ) -> Result<(), CloudError> {
        let mut waits = backoff();
        while cache.unconfirmed.iter().any(|(window, _)| windows.contains(window)) {
            self.observe(cache).await?;
            let Some(wait) = waits.next() else { break };
            if cache.unconfirmed.iter().any(|(window, _)| windows.contains(window)) {
                tokio::time::sleep(wait).await;
            }
        }
        Ok(())
    }

    /// Opens windows.
    pub(crate) async fn open(
        &self,
        cache: &mut InstanceCache,
        windows: &BTreeSet<LayerWindow>,
    ) -> Result<(), CloudError> {
        if cache.own.get().is_none() {
            self.observe(cache).await?;
        }
        self.resolve_doubts(cache, windows).await?;
        // The group leaves the cache until EC2 has answered: a cancelled call has an unknown outcome.
        let Some(mut own) = cache.own.take().filter(|own| own.locked) else {
            return Err(CloudError::not_locked(self.context.target));
        };
        cache.unconfirmed.retain(|(window, _)| !windows.contains(window));
        let now = clock::instant();
        cache.unconfirmed.extend(windows.iter().map(|window| (window.clone(), now)));
        let mut begun = BTreeSet::new();
        let opened = self.send_opening(&mut own, windows, &mut begun).await;
        cache
            .unconfirmed
            .retain(|(window, _)| !windows.contains(window) || opened.is_err() && begun.contains(window));
        opened?;
        // A window that was open and was not written again is no newer than the read that showed it.
        cache.written.opened(&own.group, &own.rules, &begun, clock::instant());
        cache.own.learn(own);
        Ok(())
    }

    /// Sends the calls of an opening. Adds to `begun` the windows of which EC2 wrote or may have written
    /// something.
    async fn send_opening(
        &self,
        own: &mut OwnGroup,
        windows: &BTreeSet<LayerWindow>,
        begun: &mut BTreeSet<LayerWindow>,
    ) -> Result<(), CallError> {
        let mut written = |keys: &[RuleKey], failed: Option<&CallError>| {
            if failed.is_none_or(CallError::may_have_taken_effect) {
                let is_on = |window: &&LayerWindow| keys.iter().any(|key| rule_plan::is_rule_of(window, key));
                begun.extend(windows.iter().filter(is_on).cloned());
            }
        };
        let OpenPlan { retagged, created } = rule_plan::plan_open(&own.rules, windows);
        for change in retagged {
            let key = change.key;
            let answer = self.mark(own, change).await;
            written(&[key], answer.as_ref().err());
            answer?;
        }
        for (marks, keys) in created {
            let rules: Vec<NewGroupRule> = keys.iter().map(|key| self.rule(key, &marks)).collect();
            let answer = self.ec2.authorize(&own.group, &rules).await;
            written(&keys, answer.as_ref().err());
            let answer = answer?;
            for ((port, net), rule) in keys.into_iter().zip(&rules) {
                let created =
                    answer.iter().find(|created| created.identity() == (&rule.traffic, &rule.source));
                let id = created.map(|created| created.id.clone()).ok_or_else(|| {
                    let reason = "the answer does not name every rule";
                    CallError::no_answer("AuthorizeSecurityGroupIngress", reason)
                })?;
                own.rules.push(MarkedRule { id, port, net, marks: marks.clone(), named: true });
            }
        }
        Ok(())
    }

    /// Writes the marks of a rule.
    async fn mark(&self, own: &mut OwnGroup, change: TagChange) -> Result<(), CallError> {
        let TagChange { id, untag, tag, marks, .. } = change;
        if !untag.is_empty() {
            self.ec2.untag(&id, &untag).await?;
        }
        let named = tag.iter().any(|(key, _)| key == tags::NOT_AFTER);
        if !tag.is_empty() {
            self.ec2.tag(&id, &tag.into_iter().collect()).await?;
        }
        for rule in own.rules.iter_mut().filter(|rule| rule.id == id) {
            rule.marks.clone_from(&marks);
            rule.named |= named;
        }
        Ok(())
    }

    fn rule(&self, (port, net): &RuleKey, marks: &Marks) -> NewGroupRule {
        let number = port.port.get();
        let owner = (tags::MANAGED_BY.to_owned(), self.context.deployment.to_owned());
        let grants = marks.iter().map(|(grant, mark)| tags::of_mark(*grant, *mark));
        NewGroupRule {
            traffic: Ec2Traffic::Ports { protocol: port.protocol, from: number, to: number },
            source: RuleSource::Prefix(*net),
            description: rule_codec::description(marks),
            tags: grants.chain(tags::of_latest(marks)).chain([owner]).collect(),
        }
    }

    /// Closes windows, and returns once a read shows that they are gone. A window that EC2 does not remove
    /// does not keep the others open.
    pub(crate) async fn close(
        &self,
        cache: &mut InstanceCache,
        windows: &BTreeSet<LayerWindow>,
    ) -> Result<(), CloudError> {
        if cache.own.get().is_none() {
            self.observe(cache).await?;
        }
        // Without an own group no window can be open.
        let Some(mut own) = cache.own.take() else { return Ok(()) };
        let ClosePlan { retagged, mut unused } = rule_plan::plan_close(&own.rules, windows);
        // A rule that is not a window may be an edited one.
        unused.append(&mut own.strays);
        let doubtful: BTreeSet<LayerWindow> = cache
            .unconfirmed
            .iter()
            .map(|(window, _)| window)
            .filter(|window| windows.contains(window))
            .cloned()
            .collect();
        if retagged.is_empty() && unused.is_empty() && doubtful.is_empty() {
            cache.own.learn(own);
            return Ok(());
        }
        let mut failed = self.revoke(&own.group, &unused).await.err();
        if let Err(error) = self.revoke_unshown(&own, &doubtful).await {
            failed.get_or_insert(error);
        }
        own.rules.retain(|rule| !unused.contains(&rule.id));
        for change in retagged {
            if let Err(error) = self.mark(&mut own, change).await {
                failed.get_or_insert(error);
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        cache.unconfirmed.retain(|(window, _)| !windows.contains(window));
        cache.written.closed(&own.rules);
        let left = self.wait_until_gone(&own.group, &unused, windows).await?;
        let is_known = |rule: &GroupRule| {
            MarkedRule::read(rule, self.context.deployment).is_some_and(|held| own.rules.contains(&held))
        };
        cache.needs_observation = !left.iter().all(is_known);
        cache.own.learn(own);
        Ok(())
    }

    /// Removes what openings without an answer may have written, though no read shows it yet: rules by their
    /// properties, which EC2 looks up in its own state, and tags of a rule that other grants share.
    async fn revoke_unshown(&self, own: &OwnGroup, windows: &BTreeSet<LayerWindow>) -> Result<(), CallError> {
        for window in windows {
            for net in rule_codec::nets(window.source) {
                let key = (window.port, net);
                if let Some(rule) = own.rules.iter().find(|rule| (rule.port, rule.net) == key) {
                    // Without this grant's mark: a mark that is shown is taken off as usual.
                    if !rule.marks.contains_key(&window.grant) {
                        self.ec2.untag(&rule.id, &[format!("{}{}", tags::GRANT, window.grant)]).await?;
                    }
                    continue;
                }
                let rule = self.rule(&key, &Marks::new());
                match self.ec2.revoke_like(&own.group, &rule).await {
                    Err(error) if !is_not_found(&error) => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Removes rules of the own group that are not windows, and returns once a read shows that they are gone.
    pub(crate) async fn remove_strays(&self, group: &str, rules: &[String]) -> Result<(), CloudError> {
        self.revoke(group, rules).await?;
        self.wait_until_gone(group, rules, &BTreeSet::new()).await.map(drop)
    }

    /// Reads the own group until it shows none of these rules and windows, and returns its remaining ingress
    /// rules. EC2 is eventually consistent: a read that still shows one is repeated, with growing pauses.
    async fn wait_until_gone(
        &self,
        group: &str,
        rules: &[String],
        windows: &BTreeSet<LayerWindow>,
    ) -> Result<Vec<GroupRule>, CloudError> {
        let shown = attempt_until(backoff(), || async {
            let mut read = self.ec2.rules(Find::Where("group-id", &[group.to_owned()])).await?;
            let left = read.ingress.remove(group).unwrap_or_default();
            let held: Vec<MarkedRule> =
                left.iter().filter_map(|rule| MarkedRule::read(rule, self.context.deployment)).collect();
            let open = rule_codec::windows(self.context.target, &held);
            let still = left.iter().find(|rule| rules.contains(&rule.id)).map(ToString::to_string);
            let still = still.or_else(|| {
                let window = open.intersection(windows).next()?;
                Some(format!(
                    "a window of the grant {} on {} from {}",
                    window.grant, window.port, window.source
                ))
            });
            Ok::<_, CloudError>(still.map_or(Attempt::Shown(left), Attempt::NotYet))
        });
        match shown.await? {
            Attempt::Shown(left) => Ok(left),
            Attempt::NotYet(still) => Err(CloudError::unavailable(format!(
                "EC2 still shows what was removed from {group}: {still}"
            ))),
        }
    }

    /// Removes rules, all with one call, or one by one if one of them is gone already.
    async fn revoke(&self, group: &str, rules: &[String]) -> Result<(), CallError> {
        let batches: Vec<&[String]> = match rules {
            [] => return Ok(()),
            [_] => vec![rules],
            [_, _, ..] => match self.ec2.revoke(group, rules).await {
                Ok(()) => Vec::new(),
                Err(error) if is_not_found(&error) => rules.chunks(1).collect(),
                Err(error) => return Err(error),
            },
        };
        for rule in batches {
            match self.ec2.revoke(group, rule).await {
                Ok(()) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn not_found(&self) -> CloudError {
        let target: &TargetId = self.context.target;
        CloudError::NotFound { target: target.clone() }
    }
}

/// Reports whether the error says that a rule or a group does not exist.
pub(crate) fn is_not_found(error: &CallError) -> bool {
    matches!(
        error.code(),
        "InvalidSecurityGroupRuleId.NotFound" | "InvalidPermission.NotFound" | "InvalidGroup.NotFound"
    )
}
