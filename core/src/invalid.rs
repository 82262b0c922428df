//! What is wrong with a value from outside: which field, what the problem is, and what would mend it.

/// A value that cannot become a domain type. Shown to whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {remedy}")]
pub struct Invalid {
    /// The field as the caller wrote it, for instance `sources[1]`.
    pub field: String,
    /// What is wrong, without the field's name.
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

impl Invalid {
    /// Names the field, the problem and the remedy.
    pub fn new(field: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// The same complaint about the field that holds this one: `ports[2]` + `number` = `ports[2].number`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = if self.field.is_empty() { outer.to_owned() } else { format!("{outer}.{}", self.field) };
        self
    }

    /// The same complaint under another field name.
    #[must_use]
    pub fn named(mut self, field: &str) -> Self {
        field.clone_into(&mut self.field);
        self
    }
}
