//! The accounts and the Region of the tests' EC2.

/// The account of the tests' own credentials.
pub const ACCOUNT: &str = "123456789012";
/// Another account, reached by a role.
pub const OTHER_ACCOUNT: &str = "210987654321";
/// The Region in which things are unless said otherwise.
pub const REGION: &str = "eu-central-1";
