//! A story that is played step by step, with a count of the steps that held.

use std::any::Any;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::process::ExitCode;

/// The story so far.
#[derive(Debug)]
pub(crate) struct Story {
    passed: u32,
    failed: u32,
}

impl Default for Story {
    fn default() -> Self {
        // A failed step is printed in the story's own words instead of the usual report of a panic.
        set_hook(Box::new(|_| {}));
        Self { passed: 0, failed: 0 }
    }
}

impl Story {
    /// A line between the steps.
    pub(crate) fn tell(&self, line: &str) {
        say(&format!("\n{line}"));
    }

    /// A step that holds or does not; it says what there is to say of it, or nothing.
    pub(crate) fn check(&mut self, title: &str, step: impl FnOnce() -> String) {
        self.step(title, || ((), step()));
    }

    /// A step that later ones build on.
    pub(crate) fn step<T>(&mut self, title: &str, step: impl FnOnce() -> (T, String)) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok((made, described)) => {
                self.passed += 1;
                say(&format!("  ok    {title}{}", indented(&described)));
                Some(made)
            }
            Err(panic) => {
                self.failed += 1;
                say(&format!("  FAIL  {title}{}", indented(&words(panic.as_ref()))));
                None
            }
        }
    }

    /// The last line, and the exit code that goes with it.
    pub(crate) fn end(self) -> ExitCode {
        say(&format!("\ndemo: {} passed, {} failed", self.passed, self.failed));
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Returns the message of a panic.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("\n        {line}")).collect()
}

fn say(line: &str) {
    // A closed output is no reason to stop half way.
    let _ = writeln!(std::io::stdout(), "{line}");
}
