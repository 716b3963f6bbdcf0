//! Keeping a repository sound: [`check`] proves the chain before it is needed, and [`exposure`] says what others could read;
//! [`verify`] reads what is stored and says what damage costs; [`sweep`] removes what a broken snapshot left behind;
//! [`mirror`] copies what another repository lacks.

pub mod check;
pub mod exposure;
pub mod mirror;
pub mod sweep;
pub mod verify;
