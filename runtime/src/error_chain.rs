//! Errors with their causes on one line, for the log, for an answer and for stderr.

use std::error::Error;

/// Returns an error with all its causes on one line, the outermost first. A cause that the line already ends with is left out.
pub fn error_chain(error: &dyn Error) -> String {
    with_causes(error.to_string(), error)
}

/// Returns `text` with the causes of an error, as [`error_chain`] does: for an error whose own `Display` says too much.
pub fn with_causes(text: String, error: &dyn Error) -> String {
    causes(error)
        .map(ToString::to_string)
        .fold(text, |line, cause| if says(&line, &cause) { line } else { format!("{line}: {cause}") })
}

/// Reports whether the line ends with this cause: many errors repeat their source. A cause whose words only stand somewhere in the
/// line is another one.
fn says(line: &str, cause: &str) -> bool {
    let before = line.strip_suffix(cause);
    before.is_some_and(|before| cause.is_empty() || before.is_empty() || before.ends_with(": "))
}

/// Returns the causes of an error, the outermost first and without the error itself.
pub fn causes(error: &dyn Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Caused(&'static str, Option<Box<Caused>>);

    impl fmt::Display for Caused {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Caused {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    fn chain(words: &[&'static str]) -> Caused {
        let (first, rest) = words.split_first().unwrap();
        Caused(first, (!rest.is_empty()).then(|| Box::new(chain(rest))))
    }

    #[test]
    fn an_error_and_its_causes_are_one_line() {
        assert_eq!(error_chain(&chain(&["alone"])), "alone");
        let error = chain(&["the store failed", "no connection", "no route"]);
        assert_eq!(error_chain(&error), "the store failed: no connection: no route");
        assert_eq!(causes(&error).last().unwrap().to_string(), "no route");
    }

    #[test]
    fn a_cause_that_the_line_already_has_is_left_out() {
        let error = chain(&["the call failed: no route", "no route", "no route", "", "down"]);
        assert_eq!(error_chain(&error), "the call failed: no route: down");
        assert_eq!(with_causes("short".to_owned(), &error), "short: no route: down");
    }

    #[test]
    fn a_cause_whose_words_the_line_only_contains_is_kept() {
        let error = chain(&["cannot read the key file", "file", "denied", "denied by the kernel"]);
        assert_eq!(error_chain(&error), "cannot read the key file: file: denied: denied by the kernel");
    }
}
