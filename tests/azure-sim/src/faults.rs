//! The faults that a test orders, and the record of calls.

use std::time::Duration;

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The status of the answer; none where the call was not answered.
    pub status: Option<u16>,
}

impl Call {
    /// Reports whether the call changes a resource.
    pub fn is_change(&self) -> bool {
        matches!(self.method.as_str(), "PUT" | "PATCH" | "DELETE")
    }

    /// Reports whether the call asks for the state of an operation.
    pub fn is_poll(&self) -> bool {
        self.path.contains("/operations/") || self.path.contains("/operationResults/")
    }

    /// Reports whether the call asks for a token.
    pub fn is_login(&self) -> bool {
        self.path.ends_with("/token")
    }
}

/// A fault of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Has no effect, and answers with a status and a code.
    Status(u16, &'static str),
    /// Has no effect, and cuts the connection.
    Dropped,
    /// Takes effect, and cuts the connection.
    Lost,
    /// Waits for a time first.
    Slow(Duration),
    /// Accepts the call, and fails the operation with a code: nothing is changed in the end.
    OperationFailed(&'static str),
}

/// The point at which the world halts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashPoint {
    /// The number of the change from now on, counted from 1.
    pub change: usize,
    /// Before or after it takes effect.
    pub when: When,
}

/// Before or after a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before the change arrives.
    Before,
    /// After the change took effect, without an answer.
    After,
}

/// The handling of a call.
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

    /// Records that the halting point is reached.
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
