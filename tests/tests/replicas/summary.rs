//! The summary of a run, for people.

use std::collections::BTreeMap;
use std::fmt;

use jiff::SignedDuration;
use postern_proto::v1::{CloseReason, GrantState};

use crate::check::{Worst, worst};
use crate::history::{Answer, History};

/// The counts of a run.
pub(crate) struct Summary<'a> {
    pub(crate) seed: u64,
    pub(crate) history: &'a History,
    /// The number of times that a replica took over the work of another.
    pub(crate) takeovers: usize,
    /// The number of connections that each replica was given.
    pub(crate) taken: Vec<usize>,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let history = self.history;
        let answers =
            |is: fn(&Answer) -> bool| history.asked.iter().filter(|asked| is(&asked.answer)).count();
        let retries = history.asked.iter().map(|asked| &asked.retries);
        let retries = retries.chain(history.revoked.iter().map(|revoked| &revoked.retries)).flatten();
        writeln!(f, "storm: seed {}", self.seed)?;
        writeln!(
            f,
            "storm: requests: {} acknowledged, {} refused, {} given up; {} sent again: {:?}",
            answers(|answer| matches!(answer, Answer::Granted { .. })),
            answers(|answer| matches!(answer, Answer::Refused(_))),
            answers(|answer| matches!(answer, Answer::GivenUp)),
            retries.clone().count(),
            counted(retries),
        )?;
        let ended = history.revoked.iter().map(|revoked| match &revoked.answer {
            Some(Ok(_)) => "done".to_owned(),
            Some(Err(why)) => why.split(['"', '\'']).next().unwrap_or_default().trim().to_owned(),
            None => "given up".to_owned(),
        });
        writeln!(f, "storm: revocations: {:?}", counted(ended))?;
        let ends = history.stored.iter().map(|grant| match grant.state {
            GrantState::Closed => match grant.reason {
                CloseReason::Expired => "expired",
                CloseReason::Revoked => "revoked",
                CloseReason::Superseded => "superseded",
                CloseReason::CannotOpen | CloseReason::Unspecified => "closed for another reason",
            },
            GrantState::Failed => "failed to open",
            GrantState::Denied => "denied",
            GrantState::Unspecified
            | GrantState::PendingApproval
            | GrantState::Opening
            | GrantState::Active
            | GrantState::Closing => "not at their end",
        });
        writeln!(f, "storm: grants in the store: {:?}", counted(ends))?;
        writeln!(f, "storm: faults: {:?}", counted(history.faults.iter().map(|span| span.fault.kind())))?;
        writeln!(f, "storm: takeovers: {}; connections to each replica: {:?}", self.takeovers, self.taken)?;
        let began = history.sessions.iter().filter(|event| event.ended.is_none());
        let ended = history.sessions.iter().filter_map(|event| event.ended.clone());
        let again = began.filter(|event| event.number > 1).count();
        writeln!(f, "storm: sessions opened again: {again}; ended because: {:?}", counted(ended))?;
        let Worst { host, cloud, early } = worst(history);
        let [host, cloud, early] = [host, cloud, early].map(milliseconds);
        writeln!(
            f,
            "storm: worst end: {host} late at a host, {cloud} late in the cloud, {early} early at a host"
        )
    }
}

fn counted<T: Ord>(all: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    all.into_iter().for_each(|one| *counts.entry(one).or_default() += 1);
    counts
}

fn milliseconds(late: Option<SignedDuration>) -> String {
    late.map_or("nothing".to_owned(), |late| format!("{} ms", late.as_millis()))
}
