//! What the table is made of, as the kernel tells it: enough to see that nobody changed it.
//!
//! The kernel gives each table, chain, rule and set a handle that it never gives again, and a rule that is replaced gets
//! a new one. So handles, the order of rules and what can be changed in place are compared, and not what rules say: the
//! name and the policy of a chain, the default timeout of a set, the flags of the table. The elements of windows' sets are
//! compared with the windows, in [`super::enforcer`].

use std::ffi::{CStr, CString};
use std::io;

use netlink_bindings::nftables::Request;

use super::established::ESTABLISHED_SETS;
use super::kernel::{Kernel, inet, refusal};
use super::{FirewallError, TABLE};

/// The structure of the table. One that was changed differs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TableFingerprint {
    /// Its handle, and its flags: a dormant table holds nothing.
    table: (u64, u32),
    /// Handle, name, policy and flags of each chain.
    chains: Vec<(u64, CString, u32, u32)>,
    /// The handle of each rule, chain by chain and in order.
    rules: Vec<u64>,
    /// Handle and default timeout of each set.
    sets: Vec<(u64, u64)>,
    /// The connections that were established before the table: nothing is added to them or taken away.
    established: Vec<Vec<u8>>,
}

impl Kernel {
    /// Reads the table's fingerprint; `None` where there is no table.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn fingerprint(&mut self) -> Result<Option<TableFingerprint>, FirewallError> {
        let Some(table) = self.table()? else { return Ok(None) };
        let (chains, rules, sets) = (self.chains()?, self.rules()?, self.sets()?);
        let mut established = Vec::new();
        for set in ESTABLISHED_SETS {
            match self.keys(set) {
                Ok(keys) => established.extend(keys),
                // Without the set the structure differs already.
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
            // Chains cannot be asked for by table.
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
    refusal("read our table")(source)
}

fn missing(what: &'static str) -> FirewallError {
    FirewallError::Answer { what }
}
