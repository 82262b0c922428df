//! The schedule of a storm's faults: made from a seed before the run, so that one seed plays one run again.
//!
//! At every moment at least one replica works, where there are several; a lone broker is let work between its faults.
//! Redis goes away only for a moment, and is let work for a while before it goes again.

use std::fmt;
use std::time::Duration;

use rand::prelude::*;
use rand::rngs::StdRng;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A broker is killed, and started again at the end of the span.
    KillBroker(usize),
    /// A broker is stopped, and goes on at the end of the span.
    StopBroker(usize),
    /// A broker's line to Redis is cut.
    CutLine(usize),
    /// A broker's line to Redis hangs: what is on its way arrives at the end of the span.
    HangLine(usize),
    /// Redis is killed, and started again at the end of the span. It keeps what it has answered.
    KillRedis,
    /// Redis is stopped, and goes on at the end of the span.
    StopRedis,
    /// A broker ended by itself. Never planned.
    BrokerEnded(usize),
}

impl Fault {
    /// The broker that it strikes, if it is one.
    pub(crate) fn broker(self) -> Option<usize> {
        match self {
            Self::KillBroker(n)
            | Self::StopBroker(n)
            | Self::CutLine(n)
            | Self::HangLine(n)
            | Self::BrokerEnded(n) => Some(n),
            Self::KillRedis | Self::StopRedis => None,
        }
    }

    /// The name of the fault's kind.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::KillBroker(_) => "kill -9 of a broker",
            Self::StopBroker(_) => "stop of a broker",
            Self::CutLine(_) => "cut line to Redis",
            Self::HangLine(_) => "hung line to Redis",
            Self::KillRedis => "kill -9 of Redis",
            Self::StopRedis => "stop of Redis",
            Self::BrokerEnded(_) => "broker that ended by itself",
        }
    }

    /// The range of the fault's duration, in milliseconds.
    fn span(self) -> std::ops::Range<u64> {
        match self {
            Self::KillBroker(_) => 100..2_000,
            Self::StopBroker(_) => 1_000..12_000,
            Self::CutLine(_) | Self::HangLine(_) => 1_000..8_000,
            Self::KillRedis => 100..2_000,
            Self::StopRedis => 300..3_000,
            Self::BrokerEnded(_) => 1..2,
        }
    }
}

/// A fault to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    /// The time of the fault, from the beginning of the run.
    pub(crate) at: Duration,
    /// The fault.
    pub(crate) fault: Fault,
    /// The duration of the fault.
    pub(crate) span: Duration,
}

impl Planned {
    /// The time at which the fault is over.
    pub(crate) fn end(&self) -> Duration {
        self.at + self.span
    }
}

/// Returns all faults to come, the first one first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    pub(crate) faults: Vec<Planned>,
}

/// The time for which a broker works after a fault of its own before the next; it has to start, and to be found again.
const REST: Duration = Duration::from_secs(4);
/// The time for which Redis works between faults.
const REDIS_REST: Duration = Duration::from_secs(7);
/// The time for which everything works at the beginning.
const CALM: Duration = Duration::from_secs(2);

impl Schedule {
    /// The faults of a run of this length over so many brokers.
    pub(crate) fn of(seed: u64, brokers: usize, length: Duration) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut faults: Vec<Planned> = Vec::new();
        let (mut at, most) = (CALM, (brokers - 1).max(1));
        loop {
            let fault = fault(&mut rng, brokers);
            let span = Duration::from_millis(rng.random_range(fault.span()));
            let planned = Planned { at, fault, span };
            // What is not allowed now is let go: the next draw may be.
            if is_allowed(&faults, &planned, most) {
                faults.push(planned);
            }
            at += Duration::from_millis(rng.random_range(200..2_500));
            if at >= length {
                break;
            }
        }
        faults.retain(|planned| planned.end() < length);
        Self { seed, faults }
    }
}

fn fault(rng: &mut StdRng, brokers: usize) -> Fault {
    let broker = rng.random_range(0..brokers);
    match rng.random_range(0..10) {
        0..3 => Fault::KillBroker(broker),
        3..5 => Fault::StopBroker(broker),
        5..7 => Fault::CutLine(broker),
        7 => Fault::HangLine(broker),
        8 => Fault::KillRedis,
        _ => Fault::StopRedis,
    }
}

fn is_allowed(before: &[Planned], next: &Planned, most: usize) -> bool {
    let within = |rest: Duration| move |earlier: &&Planned| next.at < earlier.end() + rest;
    let Some(broker) = next.fault.broker() else {
        return !before
            .iter()
            .filter(|earlier| earlier.fault.broker().is_none())
            .any(|e| within(REDIS_REST)(&e));
    };
    let struck: Vec<_> =
        before.iter().filter(within(REST)).filter_map(|earlier| earlier.fault.broker()).collect();
    struck.len() < most && !struck.contains(&broker)
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {} faults", self.seed, self.faults.len())?;
        for Planned { at, fault, span } in &self.faults {
            writeln!(f, "  {:>7.2} s  {fault:?} for {:.2} s", at.as_secs_f64(), span.as_secs_f64())?;
        }
        Ok(())
    }
}

#[test]
fn one_seed_makes_one_schedule() {
    let of = |seed| Schedule::of(seed, 3, Duration::from_secs(60));
    assert_eq!(of(7), of(7));
    assert_ne!(of(7).faults, of(8).faults);
}

#[test]
fn one_replica_works_at_every_moment() {
    for seed in 0..200 {
        let schedule = Schedule::of(seed, 3, Duration::from_secs(60));
        assert!(schedule.faults.len() > 8, "{schedule}");
        for moment in &schedule.faults {
            let struck = schedule.faults.iter().filter(|f| f.at <= moment.at && moment.at < f.end());
            assert!(struck.filter_map(|f| f.fault.broker()).count() < 3, "{schedule}");
        }
    }
}
