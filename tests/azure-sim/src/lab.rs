//! The builder of resources for a test, without calls.

use serde_json::{Value, json};

use crate::sim::AzureSim;

/// A resource group that is being filled.
#[derive(Debug, Clone)]
pub struct Lab {
    sim: AzureSim,
    subscription: String,
    group: String,
}

/// A virtual machine's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// The id of the machine.
    pub id: String,
    /// The id of the interface.
    pub interface: String,
}

impl Lab {
    /// A resource group of a subscription.
    pub fn new(sim: &AzureSim, subscription: &str, group: &str) -> Self {
        Self { sim: sim.clone(), subscription: subscription.into(), group: group.into() }
    }

    /// The id of a resource of Microsoft.Network.
    pub fn id(&self, kind: &str, name: &str) -> String {
        let Self { subscription, group, .. } = self;
        format!(
            "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/{kind}/{name}"
        )
    }

    /// The id of a network security group.
    pub fn nsg_id(&self, name: &str) -> String {
        self.id("networkSecurityGroups", name)
    }

    /// A virtual network without subnets.
    pub fn vnet(&self, name: &str, prefixes: &[&str]) {
        let body = json!({"location": "westeurope", "properties": {"addressSpace": {"addressPrefixes": prefixes}, "subnets": []}});
        self.sim.put(&self.id("virtualNetworks", name), body);
    }

    /// Adds a subnet, and returns its id.
    pub fn subnet(
        &self,
        vnet: &str,
        name: &str,
        prefix: &str,
        nsg: Option<&str>,
        routes: Option<&str>,
    ) -> String {
        let vnet = self.id("virtualNetworks", vnet);
        let mut properties = json!({"addressPrefix": prefix});
        if let Some(nsg) = nsg {
            properties["networkSecurityGroup"] = json!({"id": self.nsg_id(nsg)});
        }
        if let Some(routes) = routes {
            properties["routeTable"] = json!({"id": self.id("routeTables", routes)});
        }
        self.sim.edit(&vnet, |vnet| {
            let subnets = vnet["properties"]["subnets"].as_array_mut();
            let subnet = json!({"name": name, "properties": properties});
            match subnets {
                Some(subnets) => subnets.push(subnet),
                None => vnet["properties"]["subnets"] = json!([subnet]),
            }
        });
        format!("{vnet}/subnets/{name}")
    }

    /// A network security group without rules.
    pub fn nsg(&self, name: &str) {
        let body =
            json!({"location": "westeurope", "tags": {"team": "web"}, "properties": {"securityRules": []}});
        self.sim.put(&self.nsg_id(name), body);
    }

    /// A rule for inbound connections.
    #[allow(clippy::too_many_arguments, reason = "a rule has as many parts")]
    pub fn rule(
        &self,
        nsg: &str,
        name: &str,
        priority: u16,
        access: &str,
        from: &str,
        to: &str,
        ports: &str,
    ) {
        let rule = json!({"name": name, "properties": {
            "description": "customer", "protocol": "Tcp", "sourcePortRange": "*", "destinationPortRange": ports,
            "sourceAddressPrefix": from, "destinationAddressPrefix": to, "access": access, "priority": priority,
            "direction": "Inbound", "sourcePortRanges": [], "destinationPortRanges": [],
            "sourceAddressPrefixes": [], "destinationAddressPrefixes": []
        }});
        self.sim.edit(&self.nsg_id(nsg), |nsg| match nsg["properties"]["securityRules"].as_array_mut() {
            Some(rules) => rules.push(rule),
            None => nsg["properties"]["securityRules"] = json!([rule]),
        });
    }

    /// A public address.
    pub fn public_ip(&self, name: &str, ip: &str) -> String {
        let id = self.id("publicIPAddresses", name);
        self.sim.put(
            &id,
            json!({"location": "westeurope", "sku": {"name": "Standard"}, "properties": {"ipAddress": ip}}),
        );
        id
    }

    /// A virtual machine with one interface that has these private addresses.
    pub fn vm(&self, name: &str, subnet: &str, addresses: &[&str], nsg: Option<&str>) -> Vm {
        let Self { subscription, group, .. } = self;
        let id = format!(
            "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Compute/virtualMachines/{name}"
        );
        let interface = self.id("networkInterfaces", &format!("{name}-nic"));
        let ends: Vec<Value> = addresses
            .iter()
            .enumerate()
            .map(|(at, ip)| {
                let version = if ip.contains(':') { "IPv6" } else { "IPv4" };
                json!({"id": format!("{interface}/ipConfigurations/ip-{at}"), "name": format!("ip-{at}"), "properties": {
                    "privateIPAddress": ip, "privateIPAddressVersion": version, "primary": at == 0, "subnet": {"id": subnet}
                }})
            })
            .collect();
        let mut properties = json!({"ipConfigurations": ends, "virtualMachine": {"id": id}});
        if let Some(nsg) = nsg {
            properties["networkSecurityGroup"] = json!({"id": self.nsg_id(nsg)});
        }
        self.sim.put(&interface, json!({"location": "westeurope", "properties": properties}));
        let properties = json!({"hardwareProfile": {"vmSize": "Standard_B1s"}, "networkProfile": {"networkInterfaces": [{"id": interface}]}});
        self.sim.put(&id, json!({"location": "westeurope", "properties": properties}));
        Vm { id, interface }
    }

    /// A route table that sends outbound traffic for the internet to an appliance.
    pub fn route_table(&self, name: &str, appliance: &str) {
        let route = json!({"name": "default", "properties": {"addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance", "nextHopIpAddress": appliance}});
        self.sim.put(
            &self.id("routeTables", name),
            json!({"location": "westeurope", "properties": {"routes": [route]}}),
        );
    }

    /// A firewall with rules of its own, in a subnet, at a public address. It has fields that no model knows.
    pub fn firewall(&self, name: &str, private: &str, public: &str, subnet: &str) -> String {
        let public = self.public_ip(&format!("{name}-ip"), public);
        let id = self.id("azureFirewalls", name);
        self.sim.put(&id, json!({
            "location": "westeurope", "zones": ["1", "2"], "tags": {}, "x-unknown": {"deep": [1, 2.50, null, {"a": "ä"}]},
            "properties": {
                "sku": {"name": "AZFW_VNet", "tier": "Standard"}, "threatIntelMode": "Alert",
                "ipConfigurations": [{"name": "front", "properties": {"privateIPAddress": private, "subnet": {"id": subnet}, "publicIPAddress": {"id": public}}}],
                "networkRuleCollections": [], "applicationRuleCollections": [], "additionalProperties": {"Network.DNS.EnableProxy": "true"},
                "natRuleCollections": [{"name": "customer", "properties": {"priority": 200, "action": {"type": "Dnat"}, "unknown": 1e3, "rules": [{
                    "name": "web", "description": "", "sourceAddresses": ["*"], "destinationAddresses": [self.sim.get(&public).unwrap()["properties"]["ipAddress"]],
                    "destinationPorts": ["443"], "protocols": ["TCP"], "translatedAddress": "10.9.9.9", "translatedPort": "443", "sourceIpGroups": []
                }]}}]
            }
        }));
        id
    }

    /// A firewall whose rules are in a policy.
    pub fn policy_firewall(&self, name: &str, private: &str, public: &str, subnet: &str) -> String {
        let id = self.firewall(name, private, public, subnet);
        let policy = self.id("firewallPolicies", "central");
        self.sim.edit(&id, |firewall| {
            firewall["properties"]["firewallPolicy"] = json!({"id": policy});
            firewall["properties"]["natRuleCollections"] = json!([]);
        });
        id
    }

    /// A load balancer that leads a port of its own to a machine's.
    pub fn load_balancer(&self, name: &str, public: &str, frontend_port: u16, backend_port: u16, vm: &Vm) {
        let public = self.public_ip(&format!("{name}-ip"), public);
        let id = self.id("loadBalancers", name);
        let front = format!("{id}/frontendIPConfigurations/front");
        self.sim.put(&id, json!({"location": "westeurope", "properties": {
            "frontendIPConfigurations": [{"id": front, "name": "front", "properties": {"publicIPAddress": {"id": public}}}],
            "inboundNatRules": [{"name": "ssh", "properties": {
                "frontendIPConfiguration": {"id": front}, "protocol": "Tcp", "frontendPort": frontend_port, "backendPort": backend_port
            }}]
        }}));
        self.sim.edit(&vm.interface, |interface| {
            interface["properties"]["ipConfigurations"][0]["properties"]["loadBalancerInboundNatRules"] =
                json!([{"id": format!("{id}/inboundNatRules/ssh")}]);
        });
    }
}
