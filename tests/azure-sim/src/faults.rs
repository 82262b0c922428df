//! The faults that a test orders, and the record of calls.

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

impl postern_testkit::Call for Call {
    /// A method, or `*`, and a part of the path, in lower case.
    type Pattern = (String, String);
    type Refusal = Refusal;

    fn is_change(&self) -> bool {
        self.is_change()
    }

    fn matches(&self, (method, part): &(String, String)) -> bool {
        (method == "*" || *method == self.method) && self.path.to_ascii_lowercase().contains(part)
    }
}

/// A refusal of Azure Resource Manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The call has no effect, and is answered with a status and a code.
    Status(u16, &'static str),
    /// The call is accepted, and its operation fails with a code: nothing is changed in the end.
    Operation(&'static str),
}

/// A fault of a call.
pub type Fault = postern_testkit::Fault<Refusal>;

/// Returns the fault of a call that is answered with a status and a code.
pub fn refused(status: u16, code: &'static str) -> Fault {
    Fault::Refused(Refusal::Status(status, code))
}

/// Returns the fault of a call whose operation fails with a code.
pub fn operation_failed(code: &'static str) -> Fault {
    Fault::Refused(Refusal::Operation(code))
}
