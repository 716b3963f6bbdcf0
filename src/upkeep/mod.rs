//! Keeping a repository sound: [`check`] proves the chain before it is needed, and [`exposure`] says what others could read;
//! [`verify`] reads what is stored and says what damage costs; [`sweep`] removes what a broken snapshot left behind;
//! [`reindex`] makes roll-ups of the WAL index that are missing.

pub mod check;
pub mod exposure;
pub mod reindex;
pub mod sweep;
pub mod verify;
