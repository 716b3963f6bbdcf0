//! Time and randomness: the only place that asks the machine for either, so that everything else can be tested.

use std::time::Duration;

use jiff::Timestamp;

/// The host's wall clock. Times that enter the catalogue come from the database's clock instead (rule 7).
#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Monotonic time, for durations and deadlines.
#[allow(clippy::disallowed_methods)]
pub fn monotonic() -> std::time::Instant {
    std::time::Instant::now()
}

/// A moment from which to measure how long ago something was, also across pauses of which this process knows nothing.
///
/// The monotonic clock of [`monotonic`] stops while the host sleeps. The boot clock does not, but stops with a virtual machine
/// that is paused; the wall clock is set right after that. The longer of the two counts: too long costs a question, too short
/// would cost more.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    boot: Duration,
    wall: Timestamp,
}

impl Mark {
    pub fn now() -> Mark {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Mark { boot: Duration::new(boot.tv_sec.unsigned_abs(), boot.tv_nsec.unsigned_abs() as u32), wall: now() }
    }

    pub fn elapsed(&self) -> Duration {
        let now = Mark::now();
        let wall = Duration::try_from(now.wall.duration_since(self.wall)).unwrap_or_default();
        now.boot.saturating_sub(self.boot).max(wall)
    }

    /// The same mark, made earlier, by the boot clock or by the wall clock: as if one of them had gone on alone.
    #[cfg(test)]
    pub fn earlier(self, boot: Duration, wall: Duration) -> Mark {
        Mark { boot: self.boot.saturating_sub(boot), wall: self.wall - wall }
    }
}

/// `bytes` random bytes in lower-case hex, from the operating system.
pub fn random_hex(bytes: usize) -> String {
    let mut raw = vec![0u8; bytes];
    // The kernel's generator fails only before it was ever seeded; then there is nothing sensible left to do.
    getrandom::fill(&mut raw).expect("the operating system has no randomness");
    hex::encode(raw)
}

/// A random number in [0, 1), to spread what would otherwise happen at the same time.
pub fn random_fraction() -> f64 {
    let mut raw = [0u8; 4];
    getrandom::fill(&mut raw).expect("the operating system has no randomness");
    f64::from(u32::from_le_bytes(raw)) / (f64::from(u32::MAX) + 1.0)
}

/// A timestamp as people and file names like it: seconds, UTC.
pub fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
