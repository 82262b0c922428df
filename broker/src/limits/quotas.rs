//! Every quota, with its default.

/// The quotas on what principals hold and ask for, as in the section `[quotas]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quotas {
    /// Grants of one principal that are not over.
    pub grants_per_principal: usize,
    /// Windows of those grants.
    pub windows_per_principal: usize,
    /// Windows on one target, of grants that are not over. One principal may have half of them.
    pub windows_per_target: usize,
    /// Requests of one principal each minute.
    pub requests_per_minute: u32,
}

/// Renewals of the certificate of one agent each minute. An agent makes two an hour, and a few more while it cannot write one to
/// its disk.
pub(crate) const RENEWALS_PER_MINUTE: u32 = 10;

impl Default for Quotas {
    fn default() -> Self {
        Self {
            grants_per_principal: 256,
            windows_per_principal: 2_048,
            windows_per_target: 1_024,
            requests_per_minute: 300,
        }
    }
}
