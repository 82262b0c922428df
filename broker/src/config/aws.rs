//! The accounts of AWS in the configuration.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::{Invalid, TargetId};
use postern_pki::TrustDomain;
use serde::Deserialize;

use postern_aws::AwsSettings;

/// The section `[aws]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AwsSection {
    #[serde(default)]
    endpoint: Option<String>,
    #[serde(default)]
    rules_per_group: Option<usize>,
    #[serde(default)]
    groups_per_interface: Option<usize>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    accounts: Vec<AccountSection>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountSection {
    id: String,
    regions: Vec<String>,
    #[serde(default)]
    role_arn: Option<String>,
    #[serde(default)]
    external_id: Option<String>,
}

/// The default quota of an account (Amazon VPC quotas).
const RULES_PER_GROUP: usize = 60;
const GROUPS_PER_INTERFACE: usize = 5;
/// The most tags of the configuration on a group.
const MOST_TAGS: usize = 5;

impl AwsSection {
    /// # Errors
    /// The first key that is wrong.
    pub(super) fn checked(self, trust_domain: &TrustDomain) -> Result<AwsSettings, Invalid> {
        if let Some(endpoint) = &self.endpoint
            && !endpoint.starts_with("https://")
            && !endpoint.starts_with("http://")
        {
            let problem = format!("{endpoint:?} is not a URL");
            return Err(Invalid::new("aws.endpoint", problem, "write it like https://ec2.example.org"));
        }
        let rules_per_group = self.rules_per_group.unwrap_or(RULES_PER_GROUP);
        if !(1..=1000).contains(&rules_per_group) {
            let problem = format!("{rules_per_group} is out of range");
            return Err(Invalid::new("aws.rules_per_group", problem, "use 1 to 1000, as the quota is"));
        }
        let groups_per_interface = self.groups_per_interface.unwrap_or(GROUPS_PER_INTERFACE);
        if !(2..=16).contains(&groups_per_interface) {
            let problem = format!("{groups_per_interface} is out of range");
            return Err(Invalid::new("aws.groups_per_interface", problem, "use 2 to 16, as the quota is"));
        }
        let reserved =
            |key: &str| key.starts_with("postern:") || key.to_ascii_lowercase().starts_with("aws:");
        for (key, value) in &self.tags {
            if reserved(key) || !(1..=128).contains(&key.chars().count()) || value.chars().count() > 256 {
                let problem = format!("the tag {key:?} cannot be written");
                let remedy = "use a key of 1 to 128 characters that begins neither with postern: nor with aws:, and a value of 256 at most";
                return Err(Invalid::new("aws.tags", problem, remedy));
            }
        }
        if self.tags.len() > MOST_TAGS {
            let problem = format!("there are {}", self.tags.len());
            return Err(Invalid::new(
                "aws.tags",
                problem,
                "name 5 tags at most: Postern's own need the rest of the 50",
            ));
        }
        if self.accounts.is_empty() {
            let remedy = "name an account in [[aws.accounts]], or take [aws] out";
            return Err(Invalid::new("aws.accounts", "is empty", remedy));
        }
        let mut seen = BTreeSet::new();
        let mut accounts = Vec::new();
        for (i, account) in self.accounts.into_iter().enumerate() {
            let within = |error: Invalid| error.within(&format!("aws.accounts[{i}]"));
            if !seen.insert(account.id.clone()) {
                let problem = format!("{} is there twice", account.id);
                return Err(within(Invalid::new("id", problem, "join the two")));
            }
            accounts.push(account.checked().map_err(within)?);
        }
        Ok(AwsSettings {
            deployment: trust_domain.to_string(),
            endpoint: self.endpoint,
            rules_per_group,
            groups_per_interface,
            tags: self.tags,
            accounts,
        })
    }
}

impl AccountSection {
    fn checked(self) -> Result<postern_aws::AwsAccount, Invalid> {
        if self.regions.is_empty() {
            return Err(Invalid::new("regions", "is empty", "name at least one, such as eu-central-1"));
        }
        let mut seen = BTreeSet::new();
        for (i, region) in self.regions.iter().enumerate() {
            // The rules for targets decide which accounts and Regions are valid.
            let instance = "i-00000000000000000";
            TargetId::from_segments(&["aws", &self.id, "eu-central-1", instance]).map_err(|_| {
                Invalid::new("id", format!("{:?} is not an account", self.id), "write its 12 digits")
            })?;
            let field = format!("regions[{i}]");
            TargetId::from_segments(&["aws", &self.id, region, instance]).map_err(|_| {
                Invalid::new(
                    &field,
                    format!("{region:?} is not a Region"),
                    "write its code, such as eu-central-1",
                )
            })?;
            if !seen.insert(region) {
                return Err(Invalid::new(&field, format!("{region} is there twice"), "take one out"));
            }
        }
        if let Some(role) = &self.role_arn {
            let parts: Vec<&str> = role.splitn(6, ':').collect();
            let is_role = matches!(parts[..], ["arn", _, "iam", "", account, name] if account == self.id && name.starts_with("role/"));
            if !is_role {
                let problem = format!("{role:?} is not a role of the account");
                let remedy = format!("write it like arn:aws:iam::{}:role/postern", self.id);
                return Err(Invalid::new("role_arn", problem, &remedy));
            }
        }
        if self.external_id.is_some() && self.role_arn.is_none() {
            return Err(Invalid::new(
                "external_id",
                "is there without a role",
                "give role_arn, or take it out",
            ));
        }
        let Self { id, regions, role_arn, external_id } = self;
        Ok(postern_aws::AwsAccount { id, regions, role_arn, external_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        endpoint = "http://127.0.0.1:5000"
        [[accounts]]
        id = "123456789012"
        regions = ["eu-central-1", "us-east-1"]
        role_arn = "arn:aws-cn:iam::123456789012:role/path/postern"
        external_id = "x"
        [[accounts]]
        id = "210987654321"
        regions = ["eu-central-1"]
    "#;

    fn parse(text: &str) -> Result<AwsSettings, String> {
        let file: AwsSection = toml::from_str(text).map_err(|error| error.to_string())?;
        file.checked(&TrustDomain::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_section_becomes_settings() {
        let settings = parse(GOOD).unwrap();
        assert_eq!((settings.accounts.len(), settings.rules_per_group), (2, 60));
        assert_eq!(settings.deployment, TrustDomain::default().to_string());
    }

    #[test]
    fn a_bad_section_names_the_key() {
        for (from, to, key) in [
            ("http://", "", "aws.endpoint"),
            ("endpoint =", "rules_per_group = 0\nendpoint =", "aws.rules_per_group"),
            ("endpoint =", "groups_per_interface = 17\nendpoint =", "aws.groups_per_interface"),
            ("endpoint =", "tags = { \"postern:x\" = \"y\" }\nendpoint =", "aws.tags"),
            ("endpoint =", "tags = { \"AWS:x\" = \"y\" }\nendpoint =", "aws.tags"),
            ("\"210987654321\"", "\"123456789012\"", "aws.accounts[1].id"),
            ("\"210987654321\"", "\"21098765432\"", "aws.accounts[1].id"),
            ("[\"eu-central-1\", \"us-east-1\"]", "[]", "aws.accounts[0].regions"),
            ("\"us-east-1\"", "\"eu-central-1\"", "aws.accounts[0].regions[1]"),
            ("\"us-east-1\"", "\"US\"", "aws.accounts[0].regions[1]"),
            ("::123456789012:role", "::1:role", "aws.accounts[0].role_arn"),
            ("role_arn =", "#", "aws.accounts[0].external_id"),
            ("external_id", "external", "external"),
        ] {
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(key), "{key}: {error}");
        }
        assert!(parse("").unwrap_err().contains("aws.accounts"));
    }
}
