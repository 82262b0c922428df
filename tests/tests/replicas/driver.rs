//! The fault driver: plays a schedule on replicas and their Redis, and writes down when each fault began, and when what it
//! struck worked again: the broker serves, and every agent has a session. It is the service manager, too: a broker that
//! ends by itself is started again.

use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use postern_tests::clock::{monotonic, wall};
use postern_tests::redis::Redis;
use postern_tests::{Line, Replicas};

use crate::agent_fleet::FleetRecord;
use crate::history::FaultSpan;
use crate::schedule::{Fault, Planned, Schedule};
use crate::world::ReplicaWorld;

/// The pause between two looks.
const STEP: Duration = Duration::from_millis(20);
/// The time after which a service manager starts a broker again that ended by itself.
const RESTART: Duration = Duration::from_millis(200);

/// The time within which everything must work, once all faults are healed.
const HEALED: Duration = Duration::from_secs(40);

/// A driver of faults.
pub(crate) struct Driver<'a> {
    replicas: &'a Replicas,
    redis: &'a mut Redis,
    record: &'a FleetRecord,
    agents: usize,
    /// The faults that go on, each with its beginning.
    going: Vec<(Planned, Timestamp)>,
    /// The faults that are over, and whose effects may not be.
    healing: Vec<FaultSpan>,
    /// The time at which a broker that ended by itself is started again.
    tended: Vec<Instant>,
    spans: Vec<FaultSpan>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(world: &'a mut ReplicaWorld) -> Self {
        let (replicas, redis, record) = (&world.replicas, &mut world.redis, world.fleet.record());
        let (agents, tended) = (record.connected(), vec![monotonic(); replicas.all().len()]);
        let (going, healing, spans) = Default::default();
        Self { replicas, redis, record, agents, going, healing, tended, spans }
    }

    /// Plays a schedule for this long, heals everything, and goes on until everything works. Returns what was done.
    pub(crate) fn play(mut self, schedule: &Schedule, length: Duration) -> Vec<FaultSpan> {
        let (start, mut next) = (monotonic(), schedule.faults.iter().peekable());
        while start.elapsed() < length {
            while let Some(planned) = next.next_if(|planned| planned.at <= start.elapsed()) {
                self.begin(*planned);
            }
            self.end_until(start.elapsed());
            self.tend();
            thread::sleep(STEP);
        }
        self.end_until(Duration::MAX);
        let healed = monotonic();
        while !self.healing.is_empty() || !self.replicas.all().iter().all(|replica| replica.is_ready()) {
            assert!(healed.elapsed() < HEALED, "brokers or agents do not come back; seed {}", schedule.seed);
            self.tend();
            thread::sleep(STEP);
        }
        self.spans
    }

    fn begin(&mut self, planned: Planned) {
        let now = wall();
        match planned.fault {
            Fault::KillBroker(n) => self.replicas.replica(n).kill9(),
            Fault::StopBroker(n) => self.replicas.replica(n).freeze(),
            Fault::CutLine(n) => self.replicas.replica(n).line(Line::Cut),
            Fault::HangLine(n) => self.replicas.replica(n).line(Line::Hung),
            Fault::KillRedis => self.redis.kill9(),
            Fault::StopRedis => self.redis.freeze(),
            Fault::BrokerEnded(_) => {}
        }
        self.going.push((planned, now));
    }

    fn end_until(&mut self, elapsed: Duration) {
        let (over, going) = self.going.drain(..).partition(|(planned, _)| planned.end() <= elapsed);
        self.going = going;
        let over: Vec<(Planned, Timestamp)> = over;
        for (planned, from) in over {
            self.end(planned.fault, from);
        }
    }

    fn end(&mut self, fault: Fault, from: Timestamp) {
        match fault {
            Fault::KillBroker(n) => {
                let replica = self.replicas.replica(n);
                replica.want(true);
                replica.tend();
            }
            Fault::StopBroker(n) => self.replicas.replica(n).thaw(),
            Fault::CutLine(n) | Fault::HangLine(n) => self.replicas.replica(n).line(Line::Whole),
            Fault::KillRedis => self.redis.resume(),
            Fault::StopRedis => self.redis.thaw(),
            Fault::BrokerEnded(_) => {}
        }
        let undone = wall();
        self.healing.push(FaultSpan { fault, from, undone, until: undone });
    }

    /// Starts what ended by itself, and sees what has come up.
    fn tend(&mut self) {
        for (number, replica) in self.replicas.all().iter().enumerate() {
            if self.tended[number].elapsed() < RESTART {
                continue;
            }
            self.tended[number] = monotonic();
            let is_known = self.healing.iter().any(|span| span.fault.broker() == Some(number));
            if replica.tend() && !is_known {
                let (fault, from) = (Fault::BrokerEnded(number), wall());
                self.healing.push(FaultSpan { fault, from, undone: from, until: from });
            }
        }
        let all_connected = self.record.connected() == self.agents;
        let is_up = |fault: Fault| {
            all_connected && fault.broker().is_none_or(|number| self.replicas.replica(number).is_ready())
        };
        let (up, healing): (Vec<_>, Vec<_>) = self.healing.drain(..).partition(|span| is_up(span.fault));
        self.healing = healing;
        self.spans.extend(up.into_iter().map(|span| FaultSpan { until: wall(), ..span }));
    }
}
