//! The settings of the provider.

use std::collections::BTreeMap;

/// The accounts and Regions that Postern manages, and how to reach them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsSettings {
    /// The value of the tag `postern:managed-by`, by which this deployment knows its own resources; another
    /// deployment in the same account has another value. 1 to 256 characters.
    pub deployment: String,
    /// The endpoint of EC2 and STS that replaces AWS's own.
    pub endpoint: Option<String>,
    /// The most rules that a group may hold in one direction and family: the account's quota, 60 unless it
    /// was raised (Amazon VPC quotas).
    pub rules_per_group: usize,
    /// The most security groups that a network interface may have: the account's quota, 5 unless it was
    /// raised, and 16 at most (Amazon VPC quotas).
    pub groups_per_interface: usize,
    /// The tags that every security group of Postern's gets besides its own, for organisations that demand
    /// tags on creation. Keys begin neither with `postern:` nor with `aws:`.
    pub tags: BTreeMap<String, String>,
    /// The accounts.
    pub accounts: Vec<AwsAccount>,
}

/// An account and its Regions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsAccount {
    /// Its id, 12 digits.
    pub id: String,
    /// The codes of the Regions, such as `eu-central-1`.
    pub regions: Vec<String>,
    /// The role to assume there; without one the broker's own credentials must be the account's.
    pub role_arn: Option<String>,
    /// The external id that the role's trust policy asks for.
    pub external_id: Option<String>,
}
