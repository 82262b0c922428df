//! The enforcer: makes the kernel hold a policy, and knows that it does.
//!
//! Each change is one transaction: a new table replaces the old one whole, or only the elements that differ change. After
//! the transaction the enforcer reads what the kernel holds. A process that was stopped between reading the clock and
//! sending the transaction would otherwise have opened a window for too long (I2).
//!
//! The kernel numbers its rulesets. While the number is the one that the enforcer's last transaction led to, no process has
//! changed anything. When it is another, the enforcer reads the table and compares it before it builds on it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::FirewallError;
use super::elements::{Delta, Elements, WindowSet, difference, of_windows, same_end};
use super::established;
use super::fingerprint::TableFingerprint;
use super::kernel::{Kernel, RulesetId, TableInfo, refusal};
use super::nft::Nft;
use super::ownership::{self, Ownership};
use super::policy::HostPolicy;
use super::ruleset::{self, Layout};
use super::table::{GUARD, TABLE};
use super::transactions::TransactionSocket;
use crate::clock::{self, BootTime};
use crate::host_reconciler::{HostLayer, suspended};

/// The time for which a transaction is tried again while other processes change the ruleset.
const RETRY_FOR: Duration = Duration::from_secs(3);
/// The most changes that are made over netlink; more go through `nft`, which splits what exceeds a socket's buffer.
const MAX_NETLINK_CHANGES: usize = 512;
/// The most changed elements that are read back one by one; more are read with their whole set.
const MAX_SINGLE_READS: usize = 32;
/// The time before a trial's end from which the kernel may have ended it.
const TRIAL_SLACK: Duration = Duration::from_secs(1);
/// The shortest suspend that matters: a shorter one moves every end by less.
const MIN_SUSPEND: Duration = Duration::from_millis(100);

/// The writer of Postern's table in the kernel.
#[derive(Debug)]
pub struct Enforcer {
    kernel: Kernel,
    nft: Nft,
    ownership: OwnershipState,
    known: Option<KnownTable>,
    damage: Option<String>,
}

/// The ownership of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnershipState {
    /// To be owned, if the kernel can do that, which the first policy finds out.
    Wanted { stored: bool },
    /// A socket of the agent owns the table. `stored` says whether the service manager was handed a duplicate.
    Owned { stored: bool },
    /// The table has no owner.
    Shared,
}

/// The table as the enforcer last knew it.
#[derive(Debug)]
struct KnownTable {
    /// The number of the ruleset at that time.
    ruleset: RulesetId,
    /// True where `elements` are what the kernel held then; false after a transaction that could not be verified.
    certain: bool,
    layout: Layout,
    /// The fingerprint, taken when the table was built.
    fingerprint: TableFingerprint,
    elements: Elements,
    /// The time for which the machine had been suspended since boot: timeouts stand still meanwhile.
    suspended: Duration,
}

impl Enforcer {
    /// Makes an enforcer that has not read the table yet, so that its first policy replaces the table whole.
    ///
    /// # Errors
    /// `nft` is not installed.
    pub fn new(ownership: Ownership) -> Result<Self, FirewallError> {
        let (mut kernel, nft) = (Kernel::new(), Nft::find()?);
        let ownership = match ownership {
            Ownership::Shared => OwnershipState::Shared,
            Ownership::Owned { stored } => {
                kernel.transactions = stored.and_then(take_over);
                OwnershipState::Wanted { stored: kernel.transactions.is_some() }
            }
        };
        Ok(Self { kernel, nft, ownership, known: None, damage: None })
    }

    fn step(&mut self, policy: &HostPolicy) -> Result<(), FirewallError> {
        let ruleset = self.kernel.ruleset_id()?;
        let layout =
            Layout { mode: policy.mode, ports: policy.ports.clone(), trial_until: policy.trial_until };
        let known = match self.known.take() {
            Some(known) if known.certain && known.ruleset == ruleset && !known.slept() => Some(known),
            Some(known) => self.inspect(known, ruleset)?,
            None => None,
        };
        let wanted = of_windows(&policy.windows, clock::boottime());
        let mut known = match known {
            Some(known) if known.layout == layout => known,
            Some(_) | None => self.replace(layout, &wanted)?,
        };
        let outcome = self.change(&mut known, wanted);
        self.known = Some(known);
        outcome
    }

    /// Reads the table after another process changed the ruleset, or after a suspend. Notes every difference as damage.
    /// Returns `None` where the table must be replaced.
    fn inspect(
        &mut self,
        mut known: KnownTable,
        ruleset: RulesetId,
    ) -> Result<Option<KnownTable>, FirewallError> {
        match self.kernel.fingerprint()? {
            None => return Ok(self.note_and_rebuild("the table is gone")),
            Some(fingerprint) if fingerprint != known.fingerprint => {
                return Ok(self.note_and_rebuild("the table's chains or rules or sets were changed"));
            }
            Some(_) => {}
        }
        if known.is_on_trial()
            && self.kernel.keys(ruleset::TRIAL_SET)?.len() != ruleset::TRIAL_PROTOCOLS.len()
        {
            return Ok(self.note_and_rebuild("the set of the trial was changed"));
        }
        let found = match self.read_all() {
            Ok(found) => found,
            // An element that cannot be read as a window cannot be removed as one either.
            Err(FirewallError::Answer { what }) => {
                return Ok(self.note_and_rebuild(&format!("a set holds something without the {what}")));
            }
            Err(error) => return Err(error),
        };
        if known.certain
            && !known.slept()
            && let Some(what) = difference(&found, &known.elements, clock::boottime())
        {
            self.note(&what);
        }
        known.elements = with_known_ends(found, &known.elements);
        known.ruleset = ruleset;
        known.certain = true;
        known.suspended = suspended(clock::boottime());
        // A change of the table while it is read changes the number.
        if self.kernel.ruleset_id()? == ruleset { Ok(Some(known)) } else { Err(FirewallError::Interfered) }
    }

    fn change(&mut self, known: &mut KnownTable, wanted: Elements) -> Result<(), FirewallError> {
        let now = clock::boottime();
        known.elements.retain(|_, end| *end > now);
        let delta = Delta::between(&known.elements, &wanted);
        if delta.is_empty() {
            return Ok(());
        }
        let outcome = self.apply(known, delta, &wanted);
        // Where other processes interfered nothing was changed, and the next step sees another number and reads the table.
        known.certain = matches!(outcome, Ok(()) | Err(FirewallError::Interfered));
        outcome
    }

    fn apply(
        &mut self,
        known: &mut KnownTable,
        mut delta: Delta,
        wanted: &Elements,
    ) -> Result<(), FirewallError> {
        if delta.len() > MAX_NETLINK_CHANGES && !delta.only_moves_ends() && self.owns_table()? {
            *known = self.replace(known.layout.clone(), wanted)?;
            delta = Delta::between(&known.elements, wanted);
        } else if delta.len() > MAX_NETLINK_CHANGES && !delta.only_moves_ends() {
            self.nft.run(&ruleset::changes(&delta, clock::boottime()))?;
            known.ruleset = known.ruleset.next();
            known.elements = with_known_ends(self.read_all()?, wanted);
            delta = Delta::between(&known.elements, wanted);
        }
        // A large transaction takes a while, so the time left that each window was given at its start is too long at its
        // end. Small transactions correct the ends.
        for part in delta.parts(MAX_NETLINK_CHANGES) {
            self.kernel.change(&part, known.ruleset, clock::boottime())?;
            known.ruleset = known.ruleset.next();
        }
        known.elements.clone_from(wanted);
        self.verify(&delta, wanted)
    }

    fn replace(&mut self, layout: Layout, wanted: &Elements) -> Result<KnownTable, FirewallError> {
        if self.owns_table()? {
            self.replace_owned(layout, wanted)
        } else {
            self.replace_shared(layout, wanted)
        }
    }

    /// Replaces the table in one transaction. Any program can change it then.
    fn replace_shared(&mut self, layout: Layout, wanted: &Elements) -> Result<KnownTable, FirewallError> {
        let established = established::connections(&layout.ports);
        let before = self.kernel.ruleset_id()?;
        let exists = self.kernel.changeable_table(TABLE)?.is_some();
        let now = clock::boottime();
        self.run_nft(&ruleset::replacement(exists, &layout, wanted, &established, now), before)?;
        let mut ruleset = before.next();
        if self.kernel.delete_table(GUARD)? {
            ruleset = ruleset.next();
        }
        let known = self.read_table(ruleset, layout, wanted)?;
        if self.kernel.ruleset_id()? != ruleset {
            return Err(FirewallError::Interfered);
        }
        Ok(known)
    }

    /// Replaces the table by one that this agent owns: see [`super::ownership`].
    fn replace_owned(&mut self, layout: Layout, wanted: &Elements) -> Result<KnownTable, FirewallError> {
        // Before a second table stands beside one that this agent cannot replace.
        self.kernel.changeable_table(TABLE)?;
        let established = established::connections(&layout.ports);
        // A guard that an interrupted replacement left alone with the ports stays until the table stands again.
        let stands = |table: Option<TableInfo>| table.is_some_and(|table| table.owner.is_some());
        let guards_alone = stands(self.kernel.table(GUARD)?) && !stands(self.kernel.table(TABLE)?);
        let tables: &[&str] = if guards_alone { &[TABLE] } else { &[GUARD, TABLE] };
        for &table in tables {
            let ruleset = self.kernel.ruleset_id()?;
            self.kernel.begin_table(table, ruleset)?;
            let now = clock::boottime();
            self.run_nft(&ruleset::contents(table, &layout, wanted, &established, now), ruleset.next())?;
            self.kernel.adopt(table, ruleset.next().next())?;
            self.store_socket()?;
        }
        self.kernel.delete_table(GUARD)?;
        // Only this agent can change the table now, so it does not matter when the number is read.
        let ruleset = self.kernel.ruleset_id()?;
        self.read_table(ruleset, layout, wanted)
    }

    fn read_table(
        &mut self,
        ruleset: RulesetId,
        layout: Layout,
        wanted: &Elements,
    ) -> Result<KnownTable, FirewallError> {
        let fingerprint = self.kernel.fingerprint()?.ok_or(FirewallError::Interfered)?;
        let elements = with_known_ends(self.read_all()?, wanted);
        let suspended = suspended(clock::boottime());
        Ok(KnownTable { ruleset, certain: true, layout, fingerprint, elements, suspended })
    }

    /// Runs `nft`. A refusal after another process has changed the ruleset is that process's doing.
    fn run_nft(&mut self, script: &str, before: RulesetId) -> Result<(), FirewallError> {
        match self.nft.run(script) {
            Ok(_) => Ok(()),
            Err(FirewallError::NftRefused { .. }) if self.kernel.ruleset_id()? != before => {
                Err(FirewallError::Interfered)
            }
            Err(error) => Err(error),
        }
    }

    /// Reports whether the agent owns the table, or will once it has built it.
    fn owns_table(&mut self) -> Result<bool, FirewallError> {
        if let OwnershipState::Wanted { stored } = self.ownership {
            if self.kernel.can_own_tables()? {
                tracing::info!(
                    event = "table.owned",
                    "the agent owns its table while it runs: no other program can change or flush it"
                );
                self.ownership = OwnershipState::Owned { stored };
            } else {
                tracing::info!(
                    event = "table.shared",
                    "this kernel has no tables with an owner that persist (Linux 6.9 has): the agent undoes what other programs change"
                );
                self.ownership = OwnershipState::Shared;
            }
        }
        Ok(self.ownership != OwnershipState::Shared)
    }

    fn store_socket(&mut self) -> Result<(), FirewallError> {
        if self.ownership == (OwnershipState::Owned { stored: false }) {
            let socket = self.kernel.transactions().map_err(refusal("open a socket"))?;
            ownership::store(socket);
            self.ownership = OwnershipState::Owned { stored: true };
        }
        Ok(())
    }

    /// Reads back the changed elements.
    fn verify(&mut self, delta: &Delta, wanted: &Elements) -> Result<(), FirewallError> {
        let touched = delta.touched();
        if touched.len() > MAX_SINGLE_READS {
            return check_equal(&self.read_all()?, wanted, clock::boottime());
        }
        for element in touched {
            let left = self.kernel.time_left(&element)?;
            let now = clock::boottime();
            let found = left.map(|left| (element, now.plus(left))).into_iter().collect();
            let due = wanted.get(&element).map(|end| (element, *end)).into_iter().collect();
            check_equal(&found, &due, now)?;
        }
        Ok(())
    }

    fn read_all(&mut self) -> Result<Elements, FirewallError> {
        let mut found = Elements::new();
        for set in WindowSet::ALL {
            found.extend(self.kernel.elements(set, clock::boottime)?);
        }
        Ok(found)
    }

    fn note_and_rebuild(&mut self, what: &str) -> Option<KnownTable> {
        self.note(what);
        None
    }

    fn note(&mut self, what: &str) {
        // The first damage says most: the rest may be found while the first is repaired.
        self.damage.get_or_insert_with(|| what.to_owned());
    }
}

impl KnownTable {
    /// Reports whether the kernel still holds the set of a trial, if no other process changed that.
    fn is_on_trial(&self) -> bool {
        self.layout.trial_until.is_some_and(|end| clock::boottime().plus(TRIAL_SLACK) < end)
    }

    fn slept(&self) -> bool {
        suspended(clock::boottime()).saturating_sub(self.suspended) > MIN_SUSPEND
    }
}

/// Takes over the socket of an earlier agent. The service manager closes one that cannot be used.
fn take_over(socket: OwnedFd) -> Option<TransactionSocket> {
    TransactionSocket::stored(socket)
        .inspect_err(|error| {
            tracing::warn!(%error, "cannot use the socket that the service manager kept");
            ownership::forget_stored_socket();
        })
        .ok()
}

/// Returns the elements that were read, with the known end where the two are the same but for rounding. Any other end
/// differs from the wanted one, and is set again.
fn with_known_ends(found: Elements, known_ends: &Elements) -> Elements {
    let known = |(element, read)| match known_ends.get(&element) {
        Some(end) if same_end(read, *end) => (element, *end),
        Some(_) | None => (element, read),
    };
    found.into_iter().map(known).collect()
}

fn check_equal(found: &Elements, wanted: &Elements, now: BootTime) -> Result<(), FirewallError> {
    difference(found, wanted, now).map_or(Ok(()), |what| Err(FirewallError::Unverified { what }))
}

impl HostLayer for Enforcer {
    type Error = FirewallError;

    /// Makes the kernel hold the policy. Reads the clock itself: the caller's moment may be long past at each use.
    fn ensure(&mut self, policy: &HostPolicy, _: BootTime) -> Result<(), FirewallError> {
        let began = clock::boottime();
        loop {
            match self.step(policy) {
                // The next step reads what the other processes changed, or sets a window again with the time left now.
                Err(FirewallError::Interfered | FirewallError::Unverified { .. })
                    if clock::boottime().since(began) < RETRY_FOR => {}
                outcome => return outcome,
            }
        }
    }

    fn is_loaded(&mut self) -> Result<bool, FirewallError> {
        self.kernel.has_table(TABLE)
    }

    fn damage(&mut self) -> Option<String> {
        self.damage.take()
    }
}
