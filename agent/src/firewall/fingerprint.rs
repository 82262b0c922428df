//! The fingerprint of the table: enough of what the kernel reports to see that no other process changed it.
//!
//! The problem: the agent must notice every edit of its table, also one that leaves the windows as they are: a rule that
//! accepts everything, a chain that is renamed, a table that is made dormant. To compare the content of rules would need a
//! second reader of nft's expressions, as exact as the kernel's, and each new kernel could print them differently.
//!
//! The fingerprint needs no content. The kernel gives each table, chain, rule and set a *handle* that it never gives
//! again, and a rule that is replaced gets a new one. So equal handles in equal order mean the same objects. What can be
//! changed in place, under the same handle, is compared by value: the flags of the table (a dormant table holds nothing),
//! the name, the policy and the flags of a chain, the default timeout of a set, and the members of the sets of
//! established connections, which never change. The elements of the windows' sets do change, and [`super::enforcer`]
//! compares them with the windows.
//!
//! The rule: the agent reads the fingerprint right after it has built the table, under the ruleset number of that
//! transaction, and keeps it. While the ruleset number is the expected one, nothing is read at all. When it is another,
//! the fingerprint is read again. A difference means that the table was changed; the agent does not search for the edit,
//! but replaces the table whole (see [`super`]). A fingerprint is of one build of the table on one boot: an agent that
//! starts has none, and replaces the table.

use std::ffi::{CStr, CString};
use std::io;

use netlink_bindings::nftables::Request;

use super::established::ESTABLISHED_SETS;
use super::kernel::{Kernel, TableInfo, inet, refusal};
use super::{FirewallError, TABLE};

/// The fingerprint of the table. A table that was changed has another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TableFingerprint {
    /// The handle, the flags and the owner of the table: a dormant table holds nothing.
    table: TableInfo,
    /// The handle, name, policy and flags of each chain.
    chains: Vec<(u64, CString, u32, u32)>,
    /// The handle of each rule, chain by chain and in order.
    rules: Vec<u64>,
    /// The handle and the default timeout of each set.
    sets: Vec<(u64, u64)>,
    /// The connections that were established before the table; the agent never adds or removes one.
    established: Vec<Vec<u8>>,
}

impl Kernel {
    /// Reads the table's fingerprint; returns `None` where there is no table.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn fingerprint(&mut self) -> Result<Option<TableFingerprint>, FirewallError> {
        let Some(table) = self.table(TABLE)? else { return Ok(None) };
        let (chains, rules, sets) = (self.chains()?, self.rules()?, self.sets()?);
        let mut established = Vec::new();
        for set in ESTABLISHED_SETS {
            match self.keys(set) {
                Ok(keys) => established.extend(keys),
                // Without the set the fingerprint differs already.
                Err(FirewallError::Netlink { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(TableFingerprint { table, chains, rules, sets, established }))
    }

    fn chains(&mut self) -> Result<Vec<(u64, CString, u32, u32)>, FirewallError> {
        let request = Request::new().op_getchain_dump(&inet());
        let mut reply = self.socket.request(&request).map_err(cannot_read)?;
        let mut chains = Vec::new();
        while let Some(part) = reply.recv() {
            let (_, chain) = part.map_err(|error| cannot_read(error.into()))?;
            // The kernel cannot list chains by table.
            if is_posterns(chain.get_table().ok()) {
                let handle = chain.get_handle().map_err(|_| missing("handle of a chain"))?;
                chains.push((
                    handle,
                    chain.get_name().map_err(|_| missing("name of a chain"))?.to_owned(),
                    chain.get_policy().unwrap_or_default(),
                    chain.get_flags().unwrap_or_default(),
                ));
            }
        }
        Ok(chains)
    }

    fn rules(&mut self) -> Result<Vec<u64>, FirewallError> {
        let mut request = Request::new().op_getrule_dump(&inet());
        request.encode().push_table_bytes(TABLE.as_bytes());
        let mut reply = self.socket.request(&request).map_err(cannot_read)?;
        let mut rules = Vec::new();
        while let Some(part) = reply.recv() {
            let (_, rule) = part.map_err(|error| cannot_read(error.into()))?;
            rules.push(rule.get_handle().map_err(|_| missing("handle of a rule"))?);
        }
        Ok(rules)
    }

    fn sets(&mut self) -> Result<Vec<(u64, u64)>, FirewallError> {
        let mut request = Request::new().op_getset_dump(&inet());
        request.encode().push_table_bytes(TABLE.as_bytes());
        let mut reply = self.socket.request(&request).map_err(cannot_read)?;
        let mut sets = Vec::new();
        while let Some(part) = reply.recv() {
            let (_, set) = part.map_err(|error| cannot_read(error.into()))?;
            let handle = set.get_handle().map_err(|_| missing("handle of a set"))?;
            sets.push((handle, set.get_timeout().unwrap_or_default()));
        }
        Ok(sets)
    }
}

fn is_posterns(table: Option<&CStr>) -> bool {
    table.is_some_and(|name| name.to_bytes() == TABLE.as_bytes())
}

fn cannot_read(source: io::Error) -> FirewallError {
    refusal("read the table inet postern")(source)
}

fn missing(what: &'static str) -> FirewallError {
    FirewallError::Answer { what }
}
