//! A host layer in memory, with what the kernel's has to do with time: a window ends at its deadline, whatever any caller
//! says or does not say until then. Each change of a window goes into a record.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_agent::clock::{self, BootTime};
use postern_agent::firewall::policy::HostPolicy;
use postern_agent::host_reconciler::HostLayer;

use crate::history::{HostEvent, Opening, SessionEvent, WindowChange};

/// The record of every host of a fleet.
#[derive(Debug)]
pub(crate) struct FleetRecord {
    /// The same moment on both clocks.
    moment: (BootTime, Timestamp),
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    hosts: HashMap<String, Held>,
    events: Vec<HostEvent>,
    sessions: Vec<SessionEvent>,
    numbers: HashMap<String, u64>,
    not_connected: BTreeMap<String, u64>,
}

/// The windows of one host: the source, and the deadline.
type Held = BTreeMap<String, BootTime>;

/// A host's layer.
#[derive(Debug)]
pub(super) struct MemoryHost {
    target: String,
    record: Arc<FleetRecord>,
    loaded: bool,
}

impl Default for FleetRecord {
    fn default() -> Self {
        let now = clock::moment();
        Self { moment: (now.boottime, now.wall), inner: Mutex::default() }
    }
}

impl FleetRecord {
    /// Returns what happened at the hosts until now.
    pub(crate) fn hosts(&self) -> Vec<HostEvent> {
        let mut inner = self.lock();
        let targets: Vec<_> = inner.hosts.keys().cloned().collect();
        for target in targets {
            self.lapse(&mut inner, &target, clock::boottime());
        }
        inner.events.clone()
    }

    /// Returns what happened to the sessions until now.
    pub(crate) fn sessions(&self) -> Vec<SessionEvent> {
        self.lock().sessions.clone()
    }

    /// Returns the reasons for which sessions did not open, each with its count.
    pub(crate) fn refusals(&self) -> BTreeMap<String, u64> {
        self.lock().not_connected.clone()
    }

    /// Returns the number of agents that have a session.
    pub(crate) fn connected(&self) -> usize {
        let inner = self.lock();
        let began = inner.sessions.iter().filter(|event| event.ended.is_none()).count();
        began - inner.sessions.iter().filter(|event| event.ended.is_some()).count()
    }

    /// Reports whether a window is open now.
    pub(crate) fn is_open(&self, opening: &Opening) -> bool {
        let inner = self.lock();
        let deadline = inner.hosts.get(&opening.target).and_then(|held| held.get(&opening.source));
        deadline.is_some_and(|deadline| *deadline > clock::boottime())
    }

    pub(super) fn session_began(&self, target: &str, took: Duration) {
        let mut inner = self.lock();
        let number = inner.numbers.entry(target.to_owned()).or_default();
        *number += 1;
        let (number, at) = (*number, self.wall(clock::boottime()));
        let took = took.try_into().unwrap_or_default();
        inner.sessions.push(SessionEvent { at, target: target.to_owned(), number, took, ended: None });
    }

    pub(super) fn session_ended(&self, target: &str, why: &str) {
        let mut inner = self.lock();
        let number = inner.numbers.get(target).copied().unwrap_or_default();
        let (at, ended) = (self.wall(clock::boottime()), Some(why.to_owned()));
        let took = SignedDuration::ZERO;
        inner.sessions.push(SessionEvent { at, target: target.to_owned(), number, took, ended });
    }

    pub(super) fn not_connected(&self, why: &str) {
        *self.lock().not_connected.entry(why.to_owned()).or_default() += 1;
    }

    /// Makes a host hold these windows and no others.
    fn hold(&self, target: &str, wanted: Held, now: BootTime) {
        let mut inner = self.lock();
        self.lapse(&mut inner, target, now);
        let held = inner.hosts.insert(target.to_owned(), wanted.clone()).unwrap_or_default();
        for source in held.keys().filter(|source| !wanted.contains_key(*source)) {
            self.write(&mut inner, target, source, now, WindowChange::Closed);
        }
        for (source, deadline) in wanted {
            let until = self.wall(deadline);
            match held.get(&source) {
                None => self.write(&mut inner, target, &source, now, WindowChange::Opened(until)),
                Some(known) if *known != deadline => {
                    self.write(&mut inner, target, &source, now, WindowChange::Changed(until));
                }
                Some(_) => {}
            }
        }
    }

    /// Ends what has ended by now, each window at its own moment.
    fn lapse(&self, inner: &mut Inner, target: &str, now: BootTime) {
        let Some(held) = inner.hosts.get_mut(target) else { return };
        let ended: Vec<_> = held
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .map(|(source, deadline)| (source.clone(), *deadline))
            .collect();
        held.retain(|_, deadline| *deadline > now);
        for (source, deadline) in ended {
            self.write(inner, target, &source, deadline, WindowChange::Closed);
        }
    }

    fn write(&self, inner: &mut Inner, target: &str, source: &str, at: BootTime, change: WindowChange) {
        let session = inner.numbers.get(target).copied().unwrap_or_default();
        let (at, opening) = (self.wall(at), Opening::new(target, source));
        inner.events.push(HostEvent { at, opening, change, session });
    }

    fn wall(&self, at: BootTime) -> Timestamp {
        let (boottime, wall) = self.moment;
        wall + at.since(boottime) - boottime.since(at)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryHost {
    pub(super) fn new(target: &str, record: Arc<FleetRecord>) -> Self {
        Self { target: target.to_owned(), record, loaded: false }
    }
}

impl HostLayer for MemoryHost {
    type Error = Infallible;

    fn ensure(&mut self, policy: &HostPolicy, now: BootTime) -> Result<(), Infallible> {
        let mut wanted = Held::new();
        for window in policy.windows.iter().filter(|window| window.deadline > now) {
            let source = Opening::new(&self.target, &window.source.to_string()).source;
            let deadline = wanted.entry(source).or_insert(window.deadline);
            *deadline = window.deadline.max(*deadline);
        }
        self.record.hold(&self.target, wanted, now);
        self.loaded = true;
        Ok(())
    }

    fn is_loaded(&mut self) -> Result<bool, Infallible> {
        Ok(self.loaded)
    }

    fn damage(&mut self) -> Option<String> {
        None
    }
}

#[test]
fn the_kernel_ends_a_window_at_its_deadline_whatever_comes_later() {
    let record = Arc::new(FleetRecord::default());
    let mut host = MemoryHost::new("host:a", Arc::clone(&record));
    let start = record.moment.0;
    let after = |milliseconds| start.plus(Duration::from_millis(milliseconds));
    let policy = |deadline| HostPolicy {
        mode: postern_core::Mode::Enforce,
        ports: Default::default(),
        windows: vec![postern_agent::firewall::policy::HeldWindow {
            grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
            port: "tcp/22".parse().unwrap(),
            source: "10.0.0.1".parse().unwrap(),
            deadline,
        }],
        trial_until: None,
    };
    host.ensure(&policy(after(5)), start).unwrap();
    host.ensure(&policy(after(5)), after(7)).unwrap();
    let seen: Vec<_> = record.hosts().into_iter().map(|event| (event.at, event.change)).collect();
    let end = record.wall(after(5));
    assert_eq!(seen, [(record.moment.1, WindowChange::Opened(end)), (end, WindowChange::Closed)]);
}
