//! What goes wrong, and what was asked.

use std::time::Duration;

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// The status of its answer; none where it was not answered.
    pub status: Option<u16>,
}

impl Call {
    /// Whether it changes something of Azure Resource Manager's.
    pub fn is_change(&self) -> bool {
        matches!(self.method.as_str(), "PUT" | "PATCH" | "DELETE")
    }

    /// Whether it asks how an operation stands.
    pub fn is_poll(&self) -> bool {
        self.path.contains("/operations/") || self.path.contains("/operationResults/")
    }

    /// Whether it asks for a token.
    pub fn is_login(&self) -> bool {
        self.path.ends_with("/token")
    }
}

/// What befalls a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing and is answered with a status and a code.
    Status(u16, &'static str),
    /// It does nothing, and the connection is cut.
    Dropped,
    /// It takes effect, and the connection is cut.
    Lost,
    /// It waits so long first.
    Slow(Duration),
    /// It is accepted, and the operation fails with a code: nothing is changed in the end.
    OperationFailed(&'static str),
}

/// Where the world halts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashPoint {
    /// Which change from now on, counted from 1.
    pub change: usize,
    /// Before or after it takes effect.
    pub when: When,
}

/// Before or after a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It has not arrived.
    Before,
    /// It took effect, and is not answered.
    After,
}

/// What is to be done with a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Handling {
    Serve,
    ServeAndCut,
    ServeAndHold,
    Hold,
    Cut,
    Answer(u16, &'static str),
    Wait(Duration),
    FailLater(&'static str),
}

#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) calls: Vec<Call>,
    pub(crate) down: bool,
    waiting: Vec<(String, String, Fault)>,
    halt: Option<(CrashPoint, usize, bool)>,
}

impl Faults {
    pub(crate) fn fail(&mut self, method: &str, part: &str, times: usize, fault: Fault) {
        let one = (method.to_owned(), part.to_ascii_lowercase(), fault);
        self.waiting.extend(std::iter::repeat_n(one, times));
    }

    pub(crate) fn forgive(&mut self) {
        self.waiting.clear();
    }

    pub(crate) fn halt_at(&mut self, point: Option<CrashPoint>) {
        self.halt = point.map(|point| (point, 0, false));
    }

    pub(crate) fn has_halted(&self) -> bool {
        self.halt.is_some_and(|(_, _, reached)| reached)
    }

    /// The halting point is reached.
    pub(crate) fn reached(&mut self) {
        if let Some((_, _, reached)) = &mut self.halt {
            *reached = true;
        }
    }

    pub(crate) fn handling(&mut self, call: &Call) -> Handling {
        if self.down {
            return Handling::Cut;
        }
        if let Some((point, changes, reached)) = &mut self.halt {
            if *reached {
                return Handling::Hold;
            }
            *changes += usize::from(call.is_change());
            if call.is_change() && *changes == point.change {
                *reached = point.when == When::Before;
                return if *reached { Handling::Hold } else { Handling::ServeAndHold };
            }
        }
        let path = call.path.to_ascii_lowercase();
        let found = self
            .waiting
            .iter()
            .position(|(method, part, _)| (method == "*" || *method == call.method) && path.contains(part));
        match found.map(|at| self.waiting.remove(at).2) {
            None => Handling::Serve,
            Some(Fault::Status(status, code)) => Handling::Answer(status, code),
            Some(Fault::Dropped) => Handling::Cut,
            Some(Fault::Lost) => Handling::ServeAndCut,
            Some(Fault::Slow(span)) => Handling::Wait(span),
            Some(Fault::OperationFailed(code)) => Handling::FailLater(code),
        }
    }
}
