//! The fault driver: plays a schedule on replicas and their Redis, and writes down when each fault began and when what it
//! struck worked again. It is the service manager, too: a broker that ends by itself is started again.

use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use postern_tests::clock::{monotonic, wall};
use postern_tests::redis::Redis;
use postern_tests::{Line, PATIENCE, Replicas};

use crate::history::FaultSpan;
use crate::schedule::{Fault, Planned, Schedule};

/// The pause between two looks.
const STEP: Duration = Duration::from_millis(20);
/// How long a service manager waits before it starts a broker again that ended by itself.
const RESTART: Duration = Duration::from_millis(200);

/// Plays faults.
pub(crate) struct Driver<'a> {
    replicas: &'a Replicas,
    redis: &'a mut Redis,
    /// Faults that go on: what, since when.
    going: Vec<(Planned, Timestamp)>,
    /// Brokers that are to work again, and do not yet.
    starting: Vec<(Fault, Timestamp)>,
    /// When a broker that ended by itself is looked after.
    tended: Vec<Instant>,
    spans: Vec<FaultSpan>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(replicas: &'a Replicas, redis: &'a mut Redis) -> Self {
        let tended = vec![monotonic(); replicas.all().len()];
        Self { replicas, redis, going: Vec::new(), starting: Vec::new(), tended, spans: Vec::new() }
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
        while !self.starting.is_empty() || !self.replicas.all().iter().all(|replica| replica.is_ready()) {
            assert!(healed.elapsed() < PATIENCE, "a broker does not come back; seed {}", schedule.seed);
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
                return self.starting.push((fault, from));
            }
            Fault::StopBroker(n) => self.replicas.replica(n).thaw(),
            Fault::CutLine(n) | Fault::HangLine(n) => self.replicas.replica(n).line(Line::Whole),
            Fault::KillRedis => self.redis.resume(),
            Fault::StopRedis => self.redis.thaw(),
            Fault::BrokerEnded(_) => {}
        }
        self.spans.push(FaultSpan { fault, from, until: wall() });
    }

    /// Starts what ended by itself, and sees what has come up.
    fn tend(&mut self) {
        for (number, replica) in self.replicas.all().iter().enumerate() {
            if self.tended[number].elapsed() < RESTART {
                continue;
            }
            self.tended[number] = monotonic();
            let is_known = self.starting.iter().any(|(fault, _)| fault.broker() == Some(number));
            if replica.tend() && !is_known {
                self.starting.push((Fault::BrokerEnded(number), wall()));
            }
        }
        let is_up =
            |fault: Fault| fault.broker().is_none_or(|number| self.replicas.replica(number).is_ready());
        let (up, starting) = self.starting.drain(..).partition(|(fault, _)| is_up(*fault));
        self.starting = starting;
        let up: Vec<(Fault, Timestamp)> = up;
        self.spans.extend(up.into_iter().map(|(fault, from)| FaultSpan { fault, from, until: wall() }));
    }
}
