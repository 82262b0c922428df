//! The receipt of a certificate: the moment at which this host received it, by each of its clocks.
//!
//! A certificate's dates are those of the authority's clock. A host whose wall clock is two hours ahead would take each new certificate
//! for one that has ended, and renew without end. So the agent judges its own certificate by its age: the time since the receipt, on a
//! clock that does not step. After a reboot that clock starts from zero, and the age is the time that has passed on the wall clock since the
//! receipt: a wall clock that is wrong by the same time at both moments gives the right age. Only a certificate without a receipt, of
//! an earlier version of the agent, is judged by its dates.
//!
//! A receipt says nothing about trust: brokers and TLS judge certificates by their dates.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_pki::credentials::Credentials;
use postern_pki::life::BACKDATE;
use postern_pki::renewal::granted;
use postern_runtime::files;
use serde::{Deserialize, Serialize};

use crate::clock::Moment;

/// The name of the file, beside the identity.
const FILE: &str = "received.json";

/// The receipt of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The hash of the certificate's key.
    key: String,
    /// The moment of receipt.
    at: Moment,
}

impl Receipt {
    /// Makes the receipt of a certificate that came at `now`; `None` if the certificate cannot be read.
    pub fn of(credentials: &Credentials, now: &Moment) -> Option<Self> {
        Some(Self { key: credentials.key_hash().ok()?.to_string(), at: now.clone() })
    }

    /// Reads the receipt of a certificate; `None` if there is none that can be read.
    pub fn load(identity_dir: &Path, credentials: &Credentials) -> Option<Self> {
        let content = std::fs::read(path(identity_dir)).ok()?;
        serde_json::from_slice::<Self>(&content).ok().filter(|receipt| receipt.is_of(credentials))
    }

    /// Writes the receipt beside the identity.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, identity_dir: &Path) -> io::Result<()> {
        let content = serde_json::to_vec(self)?;
        files::replace_durably(&path(identity_dir), &content, files::PRIVATE)
    }

    /// Reports whether this is the receipt of a certificate.
    pub fn is_of(&self, credentials: &Credentials) -> bool {
        credentials.key_hash().is_ok_and(|key| key.to_string() == self.key)
    }

    fn age(&self, now: &Moment) -> Duration {
        if self.at.boot.same(&now.boot) && now.boottime >= self.at.boottime {
            now.boottime.since(self.at.boottime)
        } else {
            Duration::try_from(now.wall.duration_since(self.at.wall)).unwrap_or_default()
        }
    }
}

/// Returns the age of a certificate at `now`: by its receipt, or by its dates if it has none.
pub fn age(credentials: &Credentials, receipt: Option<&Receipt>, now: &Moment) -> Duration {
    receipt.map_or_else(
        || {
            let since = Duration::try_from(now.wall.duration_since(credentials.not_before()));
            since.unwrap_or_default().saturating_sub(BACKDATE)
        },
        |receipt| receipt.age(now),
    )
}

/// Returns the time for which a certificate was granted.
pub fn life(credentials: &Credentials) -> Duration {
    granted(credentials.not_before(), credentials.not_after())
}

/// Returns the path of the file beside an identity.
pub fn path(identity_dir: &Path) -> PathBuf {
    identity_dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{BootId, BootTime};
    use jiff::Timestamp;

    fn moment(boot: &str, boottime: u64, wall: i64) -> Moment {
        let boottime = BootTime(boottime * 1_000_000_000);
        Moment { boot: BootId(boot.into()), boottime, wall: Timestamp::from_second(wall).unwrap() }
    }

    #[test]
    fn an_age_counts_on_a_clock_that_does_not_step_and_across_a_reboot_on_the_wall_clock() {
        let receipt = Receipt { key: String::new(), at: moment("a", 100, 10_000) };
        for (now, age) in [
            (moment("a", 160, 10_060), 60),
            // Steps of the wall clock.
            (moment("a", 160, 17_260), 60),
            (moment("a", 160, 2), 60),
            // A reboot.
            (moment("b", 30, 10_090), 90),
            (moment("b", 300, 9_000), 0),
            // A boot without an id, or one that runs backwards, is another.
            (moment("", 160, 10_070), 70),
            (moment("a", 50, 10_080), 80),
        ] {
            assert_eq!(receipt.age(&now), Duration::from_secs(age), "{now:?}");
        }
    }
}
