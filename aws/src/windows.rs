//! Opening and closing all windows of a grant with one call each, on what the last look and the calls since have told.
//!
//! After any error what is known is forgotten, and the next call looks first.

use std::collections::BTreeSet;

use postern_core::TargetId;
use postern_core::plan::CloudWindow;
use postern_provider::{CloudError, Observation};
use tokio::time::Instant;

use crate::api::{Ec2, Find};
use crate::error::CallError;
use crate::fleet;
use crate::look::{Look, View};
use crate::marking::{self, Closing, Marking, Opening, Slot};
use crate::patience;
use crate::resource::NewRule;
use crate::rule::{Rule, Source, Traffic};
use crate::tags::{self, Marks};
use crate::window::{self, Held};
use crate::written::Written;

/// What is known of one target between two calls.
#[derive(Debug, Default)]
pub(crate) struct Book {
    own: Option<Own>,
    /// Windows whose opening got no answer: a look that does not show them is not believed at once.
    doubts: Vec<CloudWindow>,
    /// Openings of a moment ago, which a read may not show yet.
    written: Written,
    /// Whether the read after a close showed something else than what is known.
    pub(crate) surprised: bool,
}

impl Book {
    /// Forgets what looks have shown: the next call looks first. What EC2 has answered stays.
    pub(crate) fn forget(&mut self) {
        (self.own, self.surprised) = (None, false);
    }

    /// Forgets what does not agree with a look: one of the two is not the newest.
    pub(crate) fn doubt(&mut self, look: &Look, deployment: &str) {
        let agrees = |own: &Own| {
            let mut held = look.held(deployment);
            held.sort_by(|one, other| one.id.cmp(&other.id));
            let mut known = own.rules.clone();
            known.sort_by(|one, other| one.id.cmp(&other.id));
            known == held && own.locked == (look.state() == tags::LOCKED)
        };
        self.own = self.own.take().filter(agrees);
    }
}

/// The own group and its rules.
#[derive(Debug)]
struct Own {
    group: String,
    rules: Vec<Held>,
    /// The ids of its rules that are no windows.
    strays: Vec<String>,
    /// Whether the lockdown is complete: only then may a window open.
    locked: bool,
}

/// One instance in its place.
pub(crate) struct Desk<'a> {
    pub(crate) ec2: &'a Ec2,
    pub(crate) view: View<'a>,
}

impl Desk<'_> {
    /// Reads everything about the instance.
    pub(crate) async fn look(&self) -> Result<Look, CloudError> {
        let instance = [self.view.instance.to_owned()];
        let holder = [format!("{}{}", tags::HOLDER, self.view.instance)];
        let mut groups = self.ec2.groups(Find::Where("tag-key", &holder)).await?;
        let ours = |owner: &String| owner == self.view.deployment;
        groups.retain(|group| group.tags.get(tags::MANAGED_BY).is_some_and(ours));
        let interfaces = self.ec2.interfaces(Find::Where("attachment.instance-id", &instance)).await?;
        let exists = !interfaces.is_empty()
            || !self.ec2.instances(Find::Where("instance-id", &instance)).await?.is_empty();
        let lost = fleet::lost(&groups, &interfaces);
        if !lost.is_empty() {
            groups.extend(self.ec2.groups(Find::Where("group-id", &lost)).await?);
            groups.retain(|group| group.is_ours(self.view.deployment));
        }
        let mut look = Look { groups, interfaces, exists, ..Look::default() };
        let own = look.own().map(|own| own.id.clone());
        let ids: Vec<String> = look.customer_groups().into_iter().cloned().chain(own).collect();
        if !ids.is_empty() {
            look.rules = self.ec2.rules(Find::Where("group-id", &ids)).await?;
        }
        Ok(look)
    }

    /// A fresh look, which is remembered.
    pub(crate) async fn observe(&self, book: &mut Book) -> Result<Observation, CloudError> {
        (book.own, book.surprised) = (None, false);
        let mut waits = patience::waits();
        loop {
            let look = self.look().await?;
            let mut observation = look.observation(self.view);
            let mut rules = look.held(self.view.deployment);
            if let Some(own) = look.own().filter(|_| look.exists) {
                let strange = look.strange(self.view.deployment);
                let strange: Vec<&str> = strange.iter().map(|rule| rule.id.as_str()).collect();
                book.written.complete(&own.id, &mut rules, &strange, Instant::now());
                observation.windows = window::windows(self.view.target, &rules);
            }
            let is_missing = |window: &CloudWindow| look.exists && !observation.windows.contains(window);
            if look.own().is_some()
                && book.doubts.iter().any(is_missing)
                && let Some(wait) = waits.next()
            {
                tokio::time::sleep(wait).await;
                continue;
            }
            book.doubts.clear();
            if !look.exists {
                return Err(self.not_found());
            }
            book.own = look.own().map(|own| Own {
                group: own.id.clone(),
                rules,
                strays: look.strange(self.view.deployment).iter().map(|rule| rule.id.clone()).collect(),
                locked: look.state() == tags::LOCKED,
            });
            return Ok(observation);
        }
    }

    /// Opens windows.
    pub(crate) async fn open(
        &self,
        book: &mut Book,
        windows: &BTreeSet<CloudWindow>,
    ) -> Result<(), CloudError> {
        if book.own.is_none() {
            self.observe(book).await?;
        }
        // Taken out, and put back once the answer is there: a call that is given up has an unknown outcome.
        let Some(mut own) = book.own.take().filter(|own| own.locked) else {
            let target = self.view.target;
            return Err(CloudError::refused(format!(
                "{target} is not under lockdown; an administrator runs `postern lockdown {target}` first"
            )));
        };
        book.doubts.extend(windows.iter().cloned());
        let mut begun = BTreeSet::new();
        let opened = self.write_open(&mut own, windows, &mut begun).await;
        book.doubts.retain(|doubt| !windows.contains(doubt) || opened.is_err() && begun.contains(doubt));
        opened?;
        // What was known to be open and was not written again is no newer than the look that showed it.
        book.written.opened(&own.group, &own.rules, &begun, Instant::now());
        book.own = Some(own);
        Ok(())
    }

    /// `begun` learns the windows of which something was or may have been written.
    async fn write_open(
        &self,
        own: &mut Own,
        windows: &BTreeSet<CloudWindow>,
        begun: &mut BTreeSet<CloudWindow>,
    ) -> Result<(), CallError> {
        let mut written = |slots: &[Slot], failed: Option<&CallError>| {
            if failed.is_none_or(CallError::may_have_happened) {
                let is_on = |window: &&CloudWindow| slots.iter().any(|slot| marking::concerns(window, slot));
                begun.extend(windows.iter().filter(is_on).cloned());
            }
        };
        let Opening { marked, made } = marking::opening(&own.rules, windows);
        for marking in marked {
            let slot = marking.slot;
            let answer = self.mark(own, marking).await;
            written(&[slot], answer.as_ref().err());
            answer?;
        }
        for (marks, slots) in made {
            let rules: Vec<NewRule> = slots.iter().map(|slot| self.rule(slot, &marks)).collect();
            let answer = self.ec2.authorize(&own.group, &rules).await;
            written(&slots, answer.as_ref().err());
            let answer = answer?;
            for ((port, net), rule) in slots.into_iter().zip(&rules) {
                let made = answer.iter().find(|made| made.identity() == (&rule.traffic, &rule.source));
                let id = made.map(|made| made.id.clone()).ok_or_else(|| CallError::Silent {
                    action: "AuthorizeSecurityGroupIngress",
                    reason: "the answer does not name every rule".into(),
                })?;
                own.rules.push(Held { id, port, net, marks: marks.clone(), named: true });
            }
        }
        Ok(())
    }

    /// Gives a rule other marks.
    async fn mark(&self, own: &mut Own, marking: Marking) -> Result<(), CallError> {
        let Marking { id, untag, tag, marks, .. } = marking;
        if !untag.is_empty() {
            self.ec2.untag(&id, &untag).await?;
        }
        let named = tag.iter().any(|(key, _)| key == tags::NOT_AFTER);
        if !tag.is_empty() {
            self.ec2.tag(&id, tag).await?;
        }
        for rule in own.rules.iter_mut().filter(|rule| rule.id == id) {
            rule.marks.clone_from(&marks);
            rule.named |= named;
        }
        Ok(())
    }

    fn rule(&self, (port, net): &Slot, marks: &Marks) -> NewRule {
        let number = port.port.get();
        let owner = (tags::MANAGED_BY.to_owned(), self.view.deployment.to_owned());
        let grants = marks.iter().map(|(grant, mark)| tags::of_mark(*grant, *mark));
        NewRule {
            traffic: Traffic::Ports { protocol: port.protocol, from: number, to: number },
            source: Source::Prefix(*net),
            description: window::description(marks),
            tags: grants.chain(tags::of_latest(marks)).chain([owner]).collect(),
        }
    }

    /// Closes windows, and returns once a read shows that they are gone. One that EC2 keeps does not keep the others.
    pub(crate) async fn close(
        &self,
        book: &mut Book,
        windows: &BTreeSet<CloudWindow>,
    ) -> Result<(), CloudError> {
        if book.own.is_none() {
            self.observe(book).await?;
        }
        // Without a group of its own nothing can be open.
        let Some(mut own) = book.own.take() else { return Ok(()) };
        let Closing { marked, mut empty } = marking::closing(&own.rules, windows);
        // What is no window may be what became of one.
        empty.append(&mut own.strays);
        if marked.is_empty() && empty.is_empty() {
            book.own = Some(own);
            return Ok(());
        }
        let mut failed = self.revoke(&own.group, &empty).await.err();
        own.rules.retain(|rule| !empty.contains(&rule.id));
        for marking in marked {
            if let Err(error) = self.mark(&mut own, marking).await {
                failed.get_or_insert(error);
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        book.written.closed(&own.rules);
        let left = self.gone(&own.group, &empty, windows).await?;
        let is_known = |rule: &Rule| {
            Held::read(rule, self.view.deployment).is_some_and(|held| own.rules.contains(&held))
        };
        book.surprised = !left.iter().all(is_known);
        book.own = Some(own);
        Ok(())
    }

    /// Takes rules of the own group away that are no windows, and returns once a read shows that they are gone.
    pub(crate) async fn expel(&self, group: &str, rules: &[String]) -> Result<(), CloudError> {
        self.revoke(group, rules).await?;
        self.gone(group, rules, &BTreeSet::new()).await.map(drop)
    }

    /// The ingress rules of the own group, as soon as a read shows none of these rules and of these windows. EC2 is
    /// eventually consistent: a read that still shows one is repeated, with growing pauses.
    async fn gone(
        &self,
        group: &str,
        rules: &[String],
        windows: &BTreeSet<CloudWindow>,
    ) -> Result<Vec<Rule>, CloudError> {
        let mut waits = patience::waits();
        loop {
            let mut read = self.ec2.rules(Find::Where("group-id", &[group.to_owned()])).await?;
            let left = read.ingress.remove(group).unwrap_or_default();
            let held: Vec<Held> =
                left.iter().filter_map(|rule| Held::read(rule, self.view.deployment)).collect();
            let open = window::windows(self.view.target, &held);
            let still = left.iter().find(|rule| rules.contains(&rule.id)).map(ToString::to_string);
            let still = still.or_else(|| {
                let window = open.intersection(windows).next()?;
                Some(format!(
                    "a window of the grant {} on {} from {}",
                    window.grant, window.port, window.source
                ))
            });
            let Some(still) = still else { return Ok(left) };
            let Some(wait) = waits.next() else {
                return Err(CloudError::unavailable(format!(
                    "EC2 still shows what was removed from {group}: {still}"
                )));
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes rules away: all at once, and one by one where one of them is gone already.
    async fn revoke(&self, group: &str, rules: &[String]) -> Result<(), CallError> {
        let batches: Vec<&[String]> = match rules {
            [] => return Ok(()),
            [_] => vec![rules],
            [_, _, ..] => match self.ec2.revoke(group, rules).await {
                Ok(()) => Vec::new(),
                Err(error) if is_gone(&error) => rules.chunks(1).collect(),
                Err(error) => return Err(error),
            },
        };
        for rule in batches {
            match self.ec2.revoke(group, rule).await {
                Ok(()) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn not_found(&self) -> CloudError {
        let target: &TargetId = self.view.target;
        CloudError::NotFound { target: target.clone() }
    }
}

/// Reports whether the error says that a rule is not there (any more).
pub(crate) fn is_gone(error: &CallError) -> bool {
    matches!(
        error.code(),
        "InvalidSecurityGroupRuleId.NotFound" | "InvalidPermission.NotFound" | "InvalidGroup.NotFound"
    )
}
