//! Opening and closing windows with one call each, on what the last look and the calls since have told.
//!
//! After any error what is known is forgotten, and the next call looks first.

use postern_cloud::{CloudError, Observation};
use postern_core::TargetId;
use postern_core::plan::CloudWindow;

use crate::api::{Ec2, Find};
use crate::error::CallError;
use crate::look::{Look, View};
use crate::patience;
use crate::resource::NewRule;
use crate::rule::{Source, Tags, Traffic};
use crate::tags::{self, Mark, Marks};
use crate::window::{self, Held};

/// What is known of one target between two calls.
#[derive(Debug, Default)]
pub(crate) struct Book {
    own: Option<Own>,
    /// Windows whose opening got no answer: a look that does not show them is not believed at once.
    doubts: Vec<CloudWindow>,
}

impl Book {
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
        book.own = None;
        let mut waits = patience::waits();
        loop {
            let look = self.look().await?;
            let observation = look.observation(self.view);
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
                rules: look.held(self.view.deployment),
                locked: look.state() == tags::LOCKED,
            });
            return Ok(observation);
        }
    }

    /// Opens a window.
    pub(crate) async fn open(&self, book: &mut Book, window: &CloudWindow) -> Result<(), CloudError> {
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
        book.doubts.push(window.clone());
        let opened = self.write_open(&mut own, window).await;
        if !opened.as_ref().is_err_and(CallError::may_have_happened) {
            book.doubts.retain(|doubt| doubt != window);
        }
        opened?;
        book.own = Some(own);
        Ok(())
    }

    async fn write_open(&self, own: &mut Own, window: &CloudWindow) -> Result<(), CallError> {
        let half = window.source.is_any();
        let mut missing = Vec::new();
        for net in window::nets(window.source) {
            let Some(rule) = own.rules.iter_mut().find(|rule| rule.port == window.port && rule.net == net)
            else {
                missing.push(net);
                continue;
            };
            let before = rule.marks.get(&window.grant).filter(|mark| mark.not_after == window.not_after);
            let mark = Mark {
                not_after: window.not_after,
                whole: !half || before.is_some_and(|mark| mark.whole),
                half: half || before.is_some_and(|mark| mark.half),
            };
            if before == Some(&mark) {
                continue;
            }
            let mut marks = rule.marks.clone();
            marks.insert(window.grant, mark);
            let latest = tags::of_latest(&marks);
            self.ec2.tag(&rule.id, [tags::of_mark(window.grant, mark)].into_iter().chain(latest)).await?;
            rule.marks = marks;
        }
        if missing.is_empty() {
            return Ok(());
        }
        let marks = Marks::from([(window.grant, Mark { not_after: window.not_after, whole: !half, half })]);
        let rules: Vec<NewRule> =
            missing.into_iter().map(|net| self.rule(window, Source::Prefix(net), &marks)).collect();
        let made = self.ec2.authorize(&own.group, &rules).await?;
        for rule in rules {
            let Source::Prefix(net) = rule.source else { continue };
            let id = made.iter().find(|made| made.source == Source::Prefix(net)).map(|made| made.id.clone());
            let id = id.ok_or_else(|| CallError::Silent {
                action: "AuthorizeSecurityGroupIngress",
                reason: "the answer names no rule".into(),
            })?;
            own.rules.push(Held { id, port: window.port, net, marks: marks.clone() });
        }
        Ok(())
    }

    fn rule(&self, window: &CloudWindow, source: Source, marks: &Marks) -> NewRule {
        let port = window.port.port.get();
        let owner = (tags::MANAGED_BY.to_owned(), self.view.deployment.to_owned());
        let grants = marks.iter().map(|(grant, mark)| tags::of_mark(*grant, *mark));
        let tags: Tags = grants.chain(tags::of_latest(marks)).chain([owner]).collect();
        NewRule {
            traffic: Traffic::Ports { protocol: window.port.protocol, from: port, to: port },
            source,
            description: format!("Postern: grant {} until {}", window.grant, window.not_after),
            tags,
        }
    }

    /// Closes a window.
    pub(crate) async fn close(&self, book: &mut Book, window: &CloudWindow) -> Result<(), CloudError> {
        if book.own.is_none() {
            self.observe(book).await?;
        }
        // Without a group of its own nothing can be open.
        let Some(mut own) = book.own.take() else { return Ok(()) };
        self.write_close(&mut own, window).await?;
        book.own = Some(own);
        Ok(())
    }

    async fn write_close(&self, own: &mut Own, window: &CloudWindow) -> Result<(), CloudError> {
        let any = window.source.is_any();
        let nets = window::nets(window.source);
        let mut empty = Vec::new();
        for rule in own.rules.iter_mut().filter(|rule| rule.port == window.port && nets.contains(&rule.net)) {
            let Some(mark) = rule.marks.get(&window.grant).copied() else { continue };
            let left = Mark {
                whole: mark.whole && any,
                // A half that is named alone is left over from a window that was not opened whole.
                half: mark.half && !any && !window::is_half(rule.net),
                ..mark
            };
            let mut marks = rule.marks.clone();
            if left.whole || left.half {
                marks.insert(window.grant, left);
                self.ec2.tag(&rule.id, [tags::of_mark(window.grant, left)]).await?;
            } else {
                marks.remove(&window.grant);
                if marks.is_empty() {
                    empty.push(rule.id.clone());
                    continue;
                }
                self.ec2.untag(&rule.id, &[format!("{}{}", tags::GRANT, window.grant)]).await?;
                let latest = tags::of_latest(&marks);
                if latest != tags::of_latest(&rule.marks) {
                    self.ec2.tag(&rule.id, latest).await?;
                }
            }
            rule.marks = marks;
        }
        if empty.is_empty() {
            return Ok(());
        }
        match self.ec2.revoke(&own.group, &empty).await {
            Ok(()) => {}
            Err(error) if empty.len() == 1 && is_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
        own.rules.retain(|rule| !empty.contains(&rule.id));
        Ok(())
    }

    fn not_found(&self) -> CloudError {
        let target: &TargetId = self.view.target;
        CloudError::NotFound { target: target.clone() }
    }
}

fn is_gone(error: &CallError) -> bool {
    matches!(
        error.code(),
        "InvalidSecurityGroupRuleId.NotFound" | "InvalidPermission.NotFound" | "InvalidGroup.NotFound"
    )
}
