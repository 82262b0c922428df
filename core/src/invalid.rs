//! Errors about values from outside: the field, the problem and the remedy.

/// A value that cannot become a domain type. The sender of the value sees this error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {remedy}")]
pub struct Invalid {
    /// The field as the caller wrote it, for instance `sources[1]`.
    pub field: String,
    /// The problem, without the field's name.
    pub problem: String,
    /// The remedy: a value to write instead.
    pub remedy: String,
}

impl Invalid {
    /// Makes an error from the field, the problem and the remedy.
    pub fn new(field: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// Returns the same error for the field that contains this one: `ports[2]` + `number` = `ports[2].number`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = if self.field.is_empty() { outer.to_owned() } else { format!("{outer}.{}", self.field) };
        self
    }

    /// Returns the same error under another field name.
    #[must_use]
    pub fn named(mut self, field: &str) -> Self {
        field.clone_into(&mut self.field);
        self
    }
}
