//! Keeping a repository sound: [`check`] proves the chain before it is needed, [`exposure`] says what others could read, [`alarms`]
//! what nobody acknowledged; [`verify`] reads what is stored and says what damage costs, [`rounds`] reads it in portions; [`sweep`]
//! removes what a broken snapshot left behind, and [`expire`] what no rule keeps.

pub mod alarms;
pub mod check;
pub mod expire;
pub mod exposure;
pub mod rounds;
pub mod sweep;
pub mod verify;
