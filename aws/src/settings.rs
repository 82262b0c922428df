//! What the provider runs with.

/// Which accounts and Regions are Postern's, and how they are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The value of the tag `postern:managed-by`, by which this Postern knows what is its own; another one in the same
    /// account has another. 1 to 256 characters.
    pub deployment: String,
    /// Where EC2 and STS are reached instead of AWS's own endpoints.
    pub endpoint: Option<String>,
    /// How many rules a group may hold in one direction and family: the account's quota, 60 unless it was raised (Amazon
    /// VPC quotas).
    pub rules_per_group: usize,
    /// The accounts.
    pub accounts: Vec<Account>,
}

/// An account and its Regions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its id, 12 digits.
    pub id: String,
    /// The codes of the Regions, such as `eu-central-1`.
    pub regions: Vec<String>,
    /// The role to assume there; the broker's own credentials must be the account's where there is none.
    pub role_arn: Option<String>,
    /// What the role's trust policy asks for.
    pub external_id: Option<String>,
}
