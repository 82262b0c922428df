//! The opening and closing of one machine's windows, at every place that its connections pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::future::join_all;
use postern_core::plan::LayerWindow;
use postern_provider::CloudError;

use crate::error::WriteError;
use crate::firewall::{ChangeError, FirewallEdit, FirewallWriter, NewNatRule};
use crate::groups::WriteGuard;
use crate::id::ArmId;
use crate::layer::Azure;
use crate::machine::FrontFirewall;
use crate::names::{self, AllowName, Content, Family};
use crate::network::{Nsg, NsgRule, RuleState};
use crate::plan;
use crate::rules::{NewNsgRule, RuleMatch};
use crate::settings::Flush;
use crate::snapshot::{AllowRule, MachineView};

/// The most retries in a group after a conflict with another principal.
const MAX_RETRIES: usize = 10;

/// A change of a machine's windows in one group.
#[derive(Clone, Copy)]
enum GroupChange<'a> {
    /// Opens windows: those whose connections come straight, and those whose connections pass the firewall.
    Open { straight: &'a BTreeSet<LayerWindow>, through: &'a BTreeSet<LayerWindow> },
    /// Closes windows.
    Close(&'a BTreeSet<LayerWindow>),
}

impl Azure {
    /// Opens windows at every place: first at the firewall, which sees the true source, and then at the groups.
    pub(crate) async fn open_windows(
        &self,
        view: &MachineView<'_>,
        windows: &BTreeSet<LayerWindow>,
    ) -> Result<(), CloudError> {
        if view.machine.groups.is_empty()
            || !view.machine.groups.iter().all(|id| view.groups.contains_key(id))
        {
            return Err(CloudError::not_locked(view.target));
        }
        for family in windows.iter().map(|window| Family::of(window.source)).collect::<BTreeSet<_>>() {
            if view.machine.addresses(family).is_empty() {
                let version = if family == Family::V6 { "IPv6" } else { "IPv4" };
                return Err(CloudError::refused(format!(
                    "{} has no {version} address for a source of {version}",
                    view.target.in_words()
                )));
            }
        }
        let (through, straight) = split(view, windows);
        if let Some(front) = view.machine.front.as_ref().filter(|_| !through.is_empty()) {
            self.open_in_firewall(view, front, &through).await?;
        }
        let change = GroupChange::Open { straight: &straight, through: &through };
        let opened = join_all(view.machine.groups.iter().map(|id| self.change_in(id, view, change))).await;
        opened.into_iter().collect()
    }

    /// Changes the windows in one group, and again from a fresh read after each conflict with another principal.
    async fn change_in(
        &self,
        id: &ArmId,
        view: &MachineView<'_>,
        change: GroupChange<'_>,
    ) -> Result<(), CloudError> {
        let state = self.groups.state(id);
        let mut guard = state.lock(&self.arm, id).await;
        let (mut tries, mut is_fresh) = (0, false);
        loop {
            let done = match change {
                GroupChange::Open { straight, through } => {
                    self.try_open_in(&mut guard, view, straight, through, tries).await
                }
                GroupChange::Close(windows) => self.try_close_in(&mut guard, view, windows, tries).await,
            };
            match done {
                Err(error) if error.is_conflict() && tries < MAX_RETRIES => {
                    guard.forget();
                    tries += 1;
                }
                // The known state may be older than the change that makes the window possible.
                Err(WriteError::Refused(_)) if !is_fresh => {
                    guard.forget();
                    is_fresh = true;
                }
                done => return Ok(done?),
            }
        }
    }

    async fn try_open_in(
        &self,
        guard: &mut WriteGuard<'_>,
        view: &MachineView<'_>,
        straight: &BTreeSet<LayerWindow>,
        through: &BTreeSet<LayerWindow>,
        tries: usize,
    ) -> Result<(), WriteError> {
        let refused = |reason: String| WriteError::Refused(CloudError::refused(reason));
        let group = guard.group(self.reader()).await?;
        let group = group.ok_or_else(|| WriteError::Refused(CloudError::not_locked(view.target)))?;
        if view.denies(&group).is_empty() || view.is_releasing() {
            return Err(WriteError::Refused(CloudError::not_locked(view.target)));
        }
        if group.flushes && self.settings.flush_connection == Flush::Refuse {
            return Err(refused(format!(
                "{} has flushConnection on: the end of a window would cut connections; turn it off, or set azure.flush_connection = \"warn\"",
                group.id.name()
            )));
        }
        // A write that is under way may still fail: the rule is written again, and that call ends when the rule is in force.
        let there: BTreeSet<LayerWindow> = settled(view.window_rules(&group));
        self.write_windows(guard, view, &(straight - &there), &(through - &there), tries).await
    }

    /// Writes the rules of the windows that are missing.
    async fn write_windows(
        &self,
        guard: &mut WriteGuard<'_>,
        view: &MachineView<'_>,
        straight: &BTreeSet<LayerWindow>,
        through: &BTreeSet<LayerWindow>,
        tries: usize,
    ) -> Result<(), WriteError> {
        for (windows, front) in [(straight, None), (through, view.machine.front.as_ref())] {
            for (allow, content, one) in rules_of(view, windows.iter(), front.is_some()) {
                let group = guard.group(self.reader()).await?;
                let group = group.ok_or_else(|| WriteError::Refused(CloudError::not_locked(view.target)))?;
                let sources =
                    front.map_or(content.sources.clone(), |front| front.seen_as.iter().copied().collect());
                let name = names::RuleName::Allow(allow).to_string();
                let rule = self.window_rule(view, &group, (name, tries), &content, sources, &one)?;
                guard.put(&rule).await?;
            }
        }
        Ok(())
    }

    /// Returns the rule of a window in a group, at a priority where it has an effect.
    fn window_rule(
        &self,
        view: &MachineView<'_>,
        group: &Nsg,
        (name, tries): (String, usize),
        content: &Content,
        sources: BTreeSet<postern_core::SourcePrefix>,
        one: &LayerWindow,
    ) -> Result<NewNsgRule, WriteError> {
        let refused = |reason: String| Err(WriteError::Refused(CloudError::refused(reason)));
        let (family, group_name) = (Family::of(one.source), group.id.name());
        let obstacle = view.obstacle(group, content.protocol, &content.ports, &sources);
        let (rule, priorities) = (obstacle.as_ref().map(|it| it.rule), &self.settings.priorities);
        let free = |rule| plan::window_priority(view, group, priorities, (&name, tries), rule);
        let kept = group.rule(&name).map(|rule| rule.priority);
        let kept = kept.filter(|kept| rule.is_none_or(|rule| *kept < rule.priority));
        let priority = match (kept.or_else(|| free(rule)), &obstacle) {
            (Some(priority), _) => priority,
            (None, Some(obstacle)) if free(None).is_some() => {
                return refused(format!(
                    "{obstacle} of {group_name}, and no priority for a window is free before it; move or narrow that rule, or widen azure.priorities"
                ));
            }
            (None, _) => {
                return refused(format!(
                    "there is no free priority for a window in {group_name} before the rule that shuts the port; wait until a window ends, or widen azure.priorities"
                ));
            }
        };
        Ok(NewNsgRule {
            name,
            priority,
            allows: true,
            matches: RuleMatch::Ports {
                protocol: content.protocol,
                sources: Some(sources),
                addresses: view.machine.addresses(family),
                ports: content.ports.clone(),
            },
            description: names::describe_window(view.target, one.grant, one.not_after),
        })
    }

    async fn open_in_firewall(
        &self,
        view: &MachineView<'_>,
        front: &FrontFirewall,
        windows: &BTreeSet<LayerWindow>,
    ) -> Result<(), CloudError> {
        let firewall = front.firewall.name();
        // A rule in a firewall that is being written may not be in force yet: the change waits for that write, and finds it.
        let is_settled = view.firewall.is_none_or(|firewall| firewall.state == RuleState::InForce);
        let through = if is_settled { view.nat_window_rules() } else { Vec::new() };
        let there = settled(through);
        let Some(public) = front.public.filter(|public| public.is_ipv4()) else {
            return Err(CloudError::refused(format!("the firewall {firewall} has no public address")));
        };
        let machine = view.machine.addresses(Family::V4).first().copied();
        let mut edit = FirewallEdit::default();
        for (allow, content, one) in rules_of(view, windows.difference(&there), true) {
            let (Some(machine), Family::V4) = (machine, Family::of(one.source)) else {
                return Err(CloudError::refused(format!(
                    "the firewall {firewall} lets no IPv6 through; ask for an IPv4 source"
                )));
            };
            edit.add.push(nat_rule(view, (allow, content, one), public, machine));
        }
        self.edit_firewall(&front.firewall, edit).await
    }

    /// Closes windows at every place: first at the groups, which takes seconds.
    pub(crate) async fn close_windows(
        &self,
        view: &MachineView<'_>,
        windows: &BTreeSet<LayerWindow>,
    ) -> Result<(), CloudError> {
        let change = GroupChange::Close(windows);
        let closed = join_all(view.groups.keys().map(|id| self.change_in(id, view, change))).await;
        let in_firewall = match &view.machine.front {
            Some(front) => self.close_in_firewall(view, front, windows).await,
            None => Ok(()),
        };
        closed.into_iter().chain([in_firewall]).collect()
    }

    async fn try_close_in(
        &self,
        guard: &mut WriteGuard<'_>,
        view: &MachineView<'_>,
        windows: &BTreeSet<LayerWindow>,
        tries: usize,
    ) -> Result<(), WriteError> {
        // A group that does not exist holds no window.
        let Some(group) = guard.group(self.reader()).await? else { return Ok(()) };
        let held = view.window_rules(&group);
        // A rule with the name of such a window and another content goes with it: another principal edited it.
        let is_read = |name: &str| held.iter().any(|held| held.name == name);
        let is_edited = |(rule, name): &(&NsgRule, names::RuleName)| {
            let allow = name.clone().allow();
            let grant = allow.filter(|_| !is_read(&rule.name)).map(|allow| allow.grant);
            windows.iter().any(|window| Some(window.grant) == grant)
        };
        for (rule, _) in view.managed_rules(&group).filter(is_edited) {
            guard.delete(&rule.name).await?;
        }
        for held in held {
            let left: BTreeSet<LayerWindow> = &held.windows - windows;
            if left.len() == held.windows.len() {
                continue;
            }
            if !left.is_empty() {
                let (through, straight) = split(view, &left);
                // The windows that stay get a rule of their own before this one is deleted: none of them is shut meanwhile.
                self.write_windows(guard, view, &straight, &through, tries).await?;
            }
            guard.delete(&held.name).await?;
        }
        Ok(())
    }

    async fn close_in_firewall(
        &self,
        view: &MachineView<'_>,
        front: &FrontFirewall,
        windows: &BTreeSet<LayerWindow>,
    ) -> Result<(), CloudError> {
        let mut edit = FirewallEdit::default();
        let strays = view.stray_nat_rules();
        let of_these = view.managed_nat_rules().filter(|(rule, allow)| {
            strays.contains(&rule.name) && windows.iter().any(|window| window.grant == allow.grant)
        });
        edit.remove.extend(of_these.map(|(rule, _)| rule.name.clone()));
        // A write whose opening was given up may still be under way: its rules go with the next one.
        let queue = self.firewalls.get(&front.firewall);
        let adding = queue.map(|queue| queue.adding()).unwrap_or_default();
        let adding = adding.iter().filter_map(|rule| Some((rule.name.clone(), view.windows_of_new(rule)?)));
        let there = view.nat_window_rules().into_iter().map(|held| (held.name, held.windows));
        let held: BTreeMap<String, BTreeSet<LayerWindow>> = there.chain(adding).collect();
        for (name, held) in held.iter().filter(|(_, held)| !held.is_disjoint(windows)) {
            edit.remove.insert(name.clone());
            let left: BTreeSet<LayerWindow> = held - windows;
            for (allow, content, one) in rules_of(view, left.iter(), true) {
                let (Some(public), Some(machine)) =
                    (front.public, view.machine.addresses(Family::V4).first().copied())
                else {
                    continue;
                };
                edit.add.push(nat_rule(view, (allow, content, one), public, machine));
            }
        }
        self.edit_firewall(&front.firewall, edit).await
    }

    /// Changes a firewall, unless the edit is empty.
    pub(crate) async fn edit_firewall(&self, firewall: &ArmId, edit: FirewallEdit) -> Result<(), CloudError> {
        if edit == FirewallEdit::default() {
            return Ok(());
        }
        let writer = FirewallWriter {
            arm: self.arm.clone(),
            id: firewall.clone(),
            collection: self.collection(),
            settings: self.settings.firewall.clone(),
        };
        match self.firewalls.of(firewall).change(writer, edit).await {
            Ok(()) => Ok(()),
            Err(ChangeError::Call(error)) => Err(error.into()),
            Err(error @ ChangeError::Edit(_)) => {
                Err(CloudError::refused(format!("{error} (the firewall {})", firewall.in_words())))
            }
            Err(error @ ChangeError::GivenUp) => Err(CloudError::unavailable(error.to_string())),
        }
    }
}

/// Returns the rule of the firewall that opens a window.
fn nat_rule(
    view: &MachineView<'_>,
    (allow, content, one): (AllowName, Content, LayerWindow),
    public: IpAddr,
    machine: IpAddr,
) -> NewNatRule {
    NewNatRule {
        name: names::RuleName::Allow(allow).to_string(),
        description: names::describe_window(view.target, one.grant, one.not_after),
        sources: content.sources,
        protocol: content.protocol,
        public,
        machine,
        port: one.port.port,
    }
}

/// Returns the windows of the rules that are in force.
fn settled(held: Vec<AllowRule>) -> BTreeSet<LayerWindow> {
    held.into_iter().filter(|held| held.is_settled).flat_map(|held| held.windows).collect()
}

/// Splits windows into those whose connections pass the firewall, and those whose connections come straight.
fn split(
    view: &MachineView<'_>,
    windows: &BTreeSet<LayerWindow>,
) -> (BTreeSet<LayerWindow>, BTreeSet<LayerWindow>) {
    windows.iter().cloned().partition(|window| view.machine.front_of(window.source).is_some())
}

/// Returns the rules that open windows: the name, the content and one window of each. A firewall's rule is for one port.
fn rules_of<'a>(
    view: &MachineView<'_>,
    windows: impl Iterator<Item = &'a LayerWindow>,
    one_port_each: bool,
) -> Vec<(AllowName, Content, LayerWindow)> {
    let mut grants: BTreeMap<_, BTreeSet<&LayerWindow>> = BTreeMap::new();
    for window in windows {
        let port = one_port_each.then_some(window.port);
        grants.entry((window.grant, window.not_after, port)).or_default().insert(window);
    }
    let key = view.key();
    let mut rules = Vec::new();
    for ((grant, not_after, _), windows) in grants {
        for content in Content::of(windows.iter().copied()) {
            let opened = content.windows(view.target, grant, not_after);
            if let Some(one) = opened.into_iter().next() {
                rules.push((AllowName::new(&key, grant, not_after, &content), content, one));
            }
        }
    }
    rules
}
