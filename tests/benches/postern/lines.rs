//! Samples, and the lines that report them.

use std::io::Write as _;
use std::time::Duration;

/// The durations of one operation, done many times.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// Takes in the samples of another run.
    pub(crate) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// The number of samples.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the value that this percentage of the samples does not exceed, in milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted[rank].as_secs_f64() * 1e3
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// Prints one result.
pub(crate) fn line(name: &str, value: f64, beside: &str, bare: f64, unit: &str) {
    say(&format!("bench: {name} {value:.3} {unit} vs {beside} {bare:.3} {unit} ratio {:.2}", value / bare));
}

/// Prints one result that has nothing beside it.
pub(crate) fn value(name: &str, value: f64, unit: &str) {
    say(&format!("bench: {name} {value:.3} {unit}"));
}

/// Prints the median and the 99th percentile beside those of something bare.
pub(crate) fn percentiles(name: &str, samples: &Samples, beside: &str, bare: &Samples) {
    for percent in [50, 99] {
        let (value, bare) = (samples.percentile(percent), bare.percentile(percent));
        line(&format!("{name}-p{percent}"), value, &format!("{beside}-p{percent}"), bare, "ms");
    }
}

/// Prints a remark.
pub(crate) fn note(text: &str) {
    say(&format!("# {text}"));
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("someone reads what is measured");
}
