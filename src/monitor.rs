//! How an operation tells what it is doing. Operations never print; the command line shows bars, lines or JSON.

/// Receives what happens during a long operation. Called from many threads.
pub trait Monitor: Send + Sync {
    /// A new phase begins ("copy", "wait for WAL"). `total_bytes` is 0 where it is not known.
    fn phase(&self, name: &str, total_bytes: u64);
    /// More bytes of the current phase are done.
    fn advance(&self, bytes: u64);
    /// Something worth a line, in words for people.
    fn note(&self, text: &str);
    /// Something that a person must look at, although the operation goes on.
    fn warn(&self, text: &str);
}

/// Hears everything, says nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn phase(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}
