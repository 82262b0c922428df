//! The resources and the operations on them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::answer::Answer;
use crate::rules;

/// The state of the cloud. Resources are kept by their ids in lower case; security rules and subnets inside their parents.
#[derive(Debug)]
pub(crate) struct SimState {
    resources: BTreeMap<String, Value>,
    /// The rules of groups, and the translations of firewalls, as they are in force.
    force: HashMap<String, Value>,
    operations: Vec<Operation>,
    etags: u64,
    pub(crate) settle: HashMap<String, Duration>,
    pub(crate) page_size: usize,
    pub(crate) takes_any_etag: bool,
    pub(crate) links: OperationLinks,
    /// The seconds that an answer asks a caller to wait before it polls.
    pub(crate) retry_after: u64,
}

/// The way in which an answer says where its operation can be followed (azure-resource-manager-rpc, "Asynchronous
/// operations"; the specification of Microsoft.Network names `final-state-via: location` for `SecurityRules_Delete`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OperationLinks {
    /// `Azure-AsyncOperation`, and for a delete `Location` as well.
    #[default]
    AsyncOperation,
    /// `Location` alone.
    Location,
    /// No link: the resource itself says `Updating` until the operation is done.
    None,
}

#[derive(Debug)]
pub(crate) struct Operation {
    /// The resource that it changes: for a rule, the group.
    target: String,
    done_at: Instant,
    failure: Option<&'static str>,
    /// The resource before the change.
    before: Option<Value>,
    /// The rule that the operation writes, in lower case.
    rule: Option<String>,
    is_done: bool,
}

impl Default for SimState {
    fn default() -> Self {
        Self {
            resources: BTreeMap::new(),
            force: HashMap::new(),
            operations: Vec::new(),
            etags: 0,
            settle: HashMap::new(),
            page_size: 100,
            takes_any_etag: false,
            links: OperationLinks::default(),
            retry_after: 0,
        }
    }
}

/// The parts of an id.
pub(crate) struct ResourceId<'a> {
    pub(crate) subscription: &'a str,
    pub(crate) group: &'a str,
    /// The namespace and the type.
    pub(crate) kind: String,
    pub(crate) name: &'a str,
    /// The collection and the name of a child.
    pub(crate) child: Option<(&'a str, &'a str)>,
}

impl<'a> ResourceId<'a> {
    pub(crate) fn read(id: &'a str) -> Option<Self> {
        let parts: Vec<&str> = id.trim_start_matches('/').split('/').collect();
        match parts[..] {
            [subs, subscription, groups, group, providers, namespace, kind, name, ref rest @ ..]
                if subs.eq_ignore_ascii_case("subscriptions")
                    && groups.eq_ignore_ascii_case("resourceGroups")
                    && providers.eq_ignore_ascii_case("providers") =>
            {
                let child = match rest {
                    [] => None,
                    [kind, name] => Some((*kind, *name)),
                    _ => return None,
                };
                Some(Self { subscription, group, kind: format!("{namespace}/{kind}"), name, child })
            }
            _ => None,
        }
    }
}

/// The id of a child's parent.
pub(crate) fn parent(id: &str) -> String {
    let parts: Vec<&str> = id.split('/').collect();
    parts[..parts.len() - 2].join("/")
}

/// The children that are kept in their parent: the property that holds them.
fn collection(kind: &str) -> Option<&'static str> {
    match kind.to_ascii_lowercase().as_str() {
        "securityrules" => Some("securityRules"),
        "subnets" => Some("subnets"),
        "inboundnatrules" => Some("inboundNatRules"),
        _ => None,
    }
}

impl SimState {
    /// Places a resource as it is given, in force at once.
    pub(crate) fn place(&mut self, id: &str, mut resource: Value) {
        let parts = ResourceId::read(id).unwrap_or_else(|| panic!("{id} is no id of a resource"));
        assert!(parts.child.is_none(), "{id}: place the parent");
        let key = id.to_ascii_lowercase();
        let known = self.resources.get(&key).and_then(|known| known["id"].as_str()).unwrap_or(id).to_owned();
        let parts = ResourceId::read(&known).unwrap_or(parts);
        resource["id"] = json!(known);
        resource["name"] = json!(parts.name);
        resource["type"] = json!(parts.kind);
        self.number_children(&known, &mut resource);
        resource["etag"] = json!(self.etag());
        if resource["properties"].is_null() {
            resource["properties"] = json!({});
        }
        resource["properties"]["provisioningState"] = json!("Succeeded");
        self.force.insert(key.clone(), enforced(&resource));
        self.resources.insert(key, resource);
    }

    fn number_children(&mut self, id: &str, resource: &mut Value) {
        for collection in ["securityRules", "subnets", "inboundNatRules"] {
            for child in resource["properties"][collection].as_array_mut().into_iter().flatten() {
                let name = child["name"].as_str().unwrap_or_default().to_owned();
                child["id"] = json!(format!("{id}/{collection}/{name}"));
                child["etag"] = json!(self.etag());
                child["properties"]["provisioningState"] = json!("Succeeded");
            }
            if resource["properties"][collection].is_null()
                && let Some(properties) = resource["properties"].as_object_mut()
            {
                properties.remove(collection);
            }
        }
    }

    pub(crate) fn erase(&mut self, id: &str) {
        let key = id.to_ascii_lowercase();
        self.resources.remove(&key);
        self.force.remove(&key);
        if key.contains("/virtualmachines/") {
            // The interfaces stay, as they do for a machine without a delete option.
            for interface in self.resources.values_mut() {
                let vm =
                    interface["properties"]["virtualMachine"]["id"].as_str().map(str::to_ascii_lowercase);
                if vm.as_deref() == Some(&key)
                    && let Some(properties) = interface["properties"].as_object_mut()
                {
                    properties.remove("virtualMachine");
                }
            }
        }
    }

    fn etag(&mut self) -> String {
        self.etags += 1;
        format!("W/\"{}\"", self.etags)
    }

    /// Ends every operation that is due.
    pub(crate) fn advance(&mut self) {
        let now = Instant::now();
        for at in 0..self.operations.len() {
            let operation = &mut self.operations[at];
            if operation.is_done || operation.done_at > now {
                continue;
            }
            operation.is_done = true;
            let (target, before, failed) =
                (operation.target.clone(), operation.before.take(), operation.failure.is_some());
            let rule = operation.rule.take();
            if failed && let Some(rule) = rule {
                // The rule stays as it was written, and is not in force: an independent server that was built from the
                // specification leaves it so.
                self.set_state(&target, |name| name.eq_ignore_ascii_case(&rule), "Failed");
                continue;
            }
            if failed {
                match before {
                    Some(before) => self.resources.insert(target.clone(), before),
                    None => self.resources.remove(&target),
                };
            }
            if let Some(resource) = self.resources.get_mut(&target) {
                resource["properties"]["provisioningState"] = json!("Succeeded");
                // Indexing would create a missing field.
                let rules = resource["properties"].get_mut("securityRules").and_then(Value::as_array_mut);
                for rule in rules.into_iter().flatten() {
                    if rule["properties"]["provisioningState"] != "Failed" {
                        rule["properties"]["provisioningState"] = json!("Succeeded");
                    }
                }
                let former = self.force.remove(&target).unwrap_or_default();
                self.force.insert(target, in_force_now(enforced(resource), &former));
            } else {
                self.erase(&target);
            }
        }
    }

    /// Returns the resource as a read answers it.
    pub(crate) fn read(&self, id: &str) -> Option<Value> {
        let parts = ResourceId::read(id)?;
        let Some((kind, name)) = parts.child else {
            let mut resource = self.resources.get(&id.to_ascii_lowercase())?.clone();
            if parts.kind.eq_ignore_ascii_case("Microsoft.Network/networkSecurityGroups") {
                resource["properties"]["defaultSecurityRules"] =
                    rules::defaults(resource["id"].as_str().unwrap_or_default());
            }
            return Some(resource);
        };
        let parent = self.resources.get(&parent(id).to_ascii_lowercase())?;
        let children = parent["properties"][collection(kind)?].as_array()?;
        children
            .iter()
            .find(|child| child["name"].as_str().is_some_and(|it| it.eq_ignore_ascii_case(name)))
            .cloned()
    }

    /// The rules of a group, by priority.
    pub(crate) fn rules(&self, group: &str) -> Vec<Value> {
        let group = self.resources.get(&group.to_ascii_lowercase());
        let mut rules = group
            .and_then(|group| group["properties"]["securityRules"].as_array().cloned())
            .unwrap_or_default();
        rules.sort_by_key(|rule| rule["properties"]["priority"].as_i64());
        rules
    }

    /// The rules of a group, or the collections of a firewall's translations, that are in force.
    pub(crate) fn in_force(&self, id: &str) -> Vec<Value> {
        self.force
            .get(&id.to_ascii_lowercase())
            .and_then(|rules| rules.as_array().cloned())
            .unwrap_or_default()
    }

    /// The answer for a resource that does not exist.
    pub(crate) fn not_found(&self, id: &str) -> Answer {
        let Some(parts) = ResourceId::read(id) else {
            return Answer::error(404, "InvalidResourceType", "The resource type could not be found.");
        };
        let group = parts.group;
        if let Err(missing) = self.check_scope(parts.subscription, Some(group)) {
            return missing;
        }
        match parts.child {
            Some(_) if self.resources.contains_key(&parent(id).to_ascii_lowercase()) => {
                Answer::error(404, "NotFound", &format!("Resource {id} not found."))
            }
            Some(_) | None => {
                let words = format!(
                    "The Resource '{}/{}' under resource group '{group}' was not found.",
                    parts.kind, parts.name
                );
                Answer::error(404, "ResourceNotFound", &words)
            }
        }
    }

    /// Checks that a subscription and a resource group exist: they do if they hold a resource.
    fn check_scope(&self, subscription: &str, group: Option<&str>) -> Result<(), Answer> {
        let has = |scope: String| {
            let scope = scope.to_ascii_lowercase();
            self.resources.keys().any(|key| key.starts_with(&scope))
        };
        if !has(format!("/subscriptions/{subscription}/")) {
            let words = format!("The subscription '{subscription}' could not be found.");
            return Err(Answer::error(404, "SubscriptionNotFound", &words));
        }
        if let Some(group) = group
            && !has(format!("/subscriptions/{subscription}/resourceGroups/{group}/"))
        {
            let words = format!("Resource group '{group}' could not be found.");
            return Err(Answer::error(404, "ResourceGroupNotFound", &words));
        }
        Ok(())
    }

    /// Returns a page of the resources of a kind, in a subscription and perhaps a group.
    pub(crate) fn list(
        &self,
        subscription: &str,
        group: Option<&str>,
        kind: &str,
        skip: usize,
    ) -> Result<(Vec<Value>, bool), Answer> {
        self.check_scope(subscription, group)?;
        let found = self.resources.iter().filter(|(key, _)| {
            ResourceId::read(key).is_some_and(|id| {
                id.subscription.eq_ignore_ascii_case(subscription)
                    && id.kind.eq_ignore_ascii_case(kind)
                    && group.is_none_or(|group| id.group.eq_ignore_ascii_case(group))
            })
        });
        let rest: Vec<Value> =
            found.skip(skip).take(self.page_size + 1).filter_map(|(key, _)| self.read(key)).collect();
        let has_more = rest.len() > self.page_size;
        Ok((rest.into_iter().take(self.page_size).collect(), has_more))
    }

    /// Reports whether another operation is under way on the resource that a write of this id changes.
    pub(crate) fn is_busy(&self, id: &str) -> bool {
        let target = top(id);
        self.operations.iter().any(|operation| !operation.is_done && operation.target == target)
    }

    /// Creates or replaces a resource or a child; returns the number of the operation, and whether the resource is new.
    pub(crate) fn write(
        &mut self,
        id: &str,
        body: Value,
        failure: Option<&'static str>,
    ) -> Result<(usize, bool), Answer> {
        let parts = ResourceId::read(id).ok_or_else(|| self.not_found(id))?;
        let target = top(id);
        let before = self.resources.get(&target).cloned();
        let is_new = match parts.child {
            Some((kind, name)) => {
                self.write_child(&target, collection(kind).ok_or_else(|| self.not_found(id))?, name, body)?
            }
            None => {
                if parts.kind.eq_ignore_ascii_case("Microsoft.Network/networkSecurityGroups") {
                    rules::check_group(&body)?;
                }
                if parts.kind.eq_ignore_ascii_case("Microsoft.Network/azureFirewalls") {
                    rules::check_firewall(&body, |id| self.read(id))?;
                }
                let force = self.force.remove(&target);
                self.place(id, body);
                self.force.insert(target.clone(), force.unwrap_or_default());
                before.is_none()
            }
        };
        let rule = parts.child.filter(|(kind, _)| kind.eq_ignore_ascii_case("securityRules"));
        let rule = rule.map(|(_, name)| name.to_ascii_lowercase());
        Ok((self.begin(&target, before, failure, rule), is_new))
    }

    fn write_child(
        &mut self,
        parent: &str,
        collection: &'static str,
        name: &str,
        mut body: Value,
    ) -> Result<bool, Answer> {
        let Some(known) = self.resources.get(parent) else {
            let words =
                format!("Failed to write '{name}': the parent resource '{parent}' could not be found.");
            return Err(Answer::error(404, "ParentResourceNotFound", &words));
        };
        let mut children = known["properties"][collection].as_array().cloned().unwrap_or_default();
        let parent_id = known["id"].as_str().unwrap_or_default().to_owned();
        if collection == "securityRules" {
            rules::check_rule(name, &body, &children)?;
        }
        let at = children
            .iter()
            .position(|child| child["name"].as_str().is_some_and(|it| it.eq_ignore_ascii_case(name)));
        let name = at.and_then(|at| children[at]["name"].as_str()).unwrap_or(name).to_owned();
        body["id"] = json!(format!("{parent_id}/{collection}/{name}"));
        body["name"] = json!(name);
        body["etag"] = json!(self.etag());
        body["properties"]["provisioningState"] = json!("Updating");
        match at {
            Some(at) => children[at] = body,
            None => children.push(body),
        }
        self.set_children(parent, collection, children);
        Ok(at.is_none())
    }

    fn set_children(&mut self, parent: &str, collection: &str, children: Vec<Value>) {
        let etag = self.etag();
        if let Some(resource) = self.resources.get_mut(parent) {
            resource["properties"][collection] = json!(children);
            resource["etag"] = json!(etag);
            resource["properties"]["provisioningState"] = json!("Updating");
        }
    }

    /// Deletes a resource or a child; returns the number of the operation, or none where there was no resource.
    pub(crate) fn delete(
        &mut self,
        id: &str,
        failure: Option<&'static str>,
    ) -> Result<Option<usize>, Answer> {
        if self.read(id).is_none() {
            return Ok(None);
        }
        let parts = ResourceId::read(id).ok_or_else(|| self.not_found(id))?;
        let target = top(id);
        let before = self.resources.get(&target).cloned();
        match parts.child {
            Some((kind, name)) => {
                let collection = collection(kind).ok_or_else(|| self.not_found(id))?;
                let mut children = before
                    .as_ref()
                    .and_then(|it| it["properties"][collection].as_array().cloned())
                    .unwrap_or_default();
                children
                    .retain(|child| !child["name"].as_str().is_some_and(|it| it.eq_ignore_ascii_case(name)));
                self.set_children(&target, collection, children);
            }
            None => {
                if parts.kind.eq_ignore_ascii_case("Microsoft.Network/networkSecurityGroups")
                    && self.is_used(&target)
                {
                    let words =
                        format!("Network security group {id} cannot be deleted because it is in use.");
                    return Err(Answer::error(400, "InUseNetworkSecurityGroupCannotBeDeleted", &words));
                }
                // The references to it are removed when the operation is done.
                self.resources.remove(&target);
            }
        }
        Ok(Some(self.begin(&target, before, failure, None)))
    }

    fn is_used(&self, group: &str) -> bool {
        let names = |value: &Value| {
            value["networkSecurityGroup"]["id"].as_str().is_some_and(|id| id.eq_ignore_ascii_case(group))
        };
        self.resources.values().any(|resource| {
            names(&resource["properties"])
                || resource["properties"]["subnets"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|subnet| names(&subnet["properties"]))
        })
    }

    /// Sets the state of a group, and of some of its rules: `Succeeded` brings them into force,
    /// `Failed` takes them out, and `Updating` leaves in force what was.
    pub(crate) fn set_state(&mut self, group: &str, is_one: impl Fn(&str) -> bool, state: &str) {
        let key = group.to_ascii_lowercase();
        let Some(resource) = self.resources.get_mut(&key) else { return };
        resource["properties"]["provisioningState"] = json!(state);
        let rules = resource["properties"].get_mut("securityRules").and_then(Value::as_array_mut);
        for rule in rules.into_iter().flatten() {
            if rule["name"].as_str().is_some_and(&is_one) {
                rule["properties"]["provisioningState"] = json!(state);
            }
        }
        let former = self.force.remove(&key).unwrap_or_default();
        self.force.insert(key, in_force_now(enforced(resource), &former));
    }

    fn begin(
        &mut self,
        target: &str,
        before: Option<Value>,
        failure: Option<&'static str>,
        rule: Option<String>,
    ) -> usize {
        let kind = ResourceId::read(target).map(|id| id.kind.to_ascii_lowercase()).unwrap_or_default();
        let span = self.settle.get(&kind).copied().unwrap_or_default();
        let (target, done_at) = (target.to_owned(), Instant::now() + span);
        if let Some(resource) = self.resources.get_mut(&target) {
            resource["properties"]["provisioningState"] = json!("Updating");
        }
        self.operations.push(Operation { target, done_at, failure, before, rule, is_done: false });
        self.operations.len() - 1
    }

    /// Returns the state of an operation; none where no operation has this number.
    pub(crate) fn operation(&self, number: usize) -> Option<(bool, Option<&'static str>)> {
        let operation = self.operations.get(number)?;
        Some((operation.is_done, operation.failure.filter(|_| operation.is_done)))
    }
}

/// The part of a resource that comes into force when an operation is done.
fn enforced(resource: &Value) -> Value {
    let properties = &resource["properties"];
    let rules = properties.get("securityRules").or_else(|| properties.get("natRuleCollections"));
    rules.cloned().unwrap_or_default()
}

/// The rules that are in force now: of a rule whose write failed or is not finished, the former version.
fn in_force_now(rules: Value, former: &Value) -> Value {
    let Value::Array(rules) = rules else { return rules };
    let former = |name: &Value| former.as_array()?.iter().find(|rule| rule["name"] == *name).cloned();
    let is_settled = |rule: &Value| {
        let state = &rule["properties"]["provisioningState"];
        state.is_null() || *state == "Succeeded"
    };
    let now = rules
        .into_iter()
        .filter_map(|rule| if is_settled(&rule) { Some(rule) } else { former(&rule["name"]) });
    Value::Array(now.collect())
}

/// The resource that a write of an id changes: for a child, the parent.
fn top(id: &str) -> String {
    let has_child = ResourceId::read(id).is_some_and(|id| id.child.is_some());
    if has_child { parent(id).to_ascii_lowercase() } else { id.to_ascii_lowercase() }
}
