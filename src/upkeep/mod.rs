//! Keeping a repository sound: [`check`] proves the chain before it is needed, and [`exposure`] says what others could read,
//! [`alarms`] what nobody acknowledged, [`drills`] whether restores are tried; [`verify`] reads what is stored and says what damage
//! costs; [`sweep`] removes what a broken snapshot left behind;
//! [`mirror`] copies what another repository lacks, [`repair`] puts
//! sound copies in the place of damaged ones, and [`mirrors`] is what `check` says of mirrors.

pub mod alarms;
pub mod check;
pub mod drills;
pub mod exposure;
pub mod mirror;
pub mod mirrors;
pub mod repair;
pub mod sweep;
pub mod verify;
