//! Time and randomness: the only place that asks the machine for either, so that everything else can be tested.

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
