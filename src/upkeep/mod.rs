//! Keeping a repository sound: [`check`] proves the chain before it is needed, and [`exposure`] says what others could read,
//! [`alarms`] what nobody acknowledged, [`drills`] whether restores are tried, [`mirrors`] how mirrors are; [`verify`] reads what is
//! stored and says what damage costs, [`documents`] those of it that no restore needs, [`rounds`] reads it in portions; [`sweep`]
//! removes what a broken snapshot left behind, and [`expire`] what no rule keeps, [`orphans`] are snapshots whose manifest is missing;
//! [`mirror`] copies what another repository lacks, and [`repair`] puts sound copies in the place of damaged ones; [`reindex`] makes
//! roll-ups of the WAL index that are missing, and [`rebuild`] a cluster's record. In buckets, [`locks`] keeps locked what stays, [`hidden`]
//! finds what somebody deleted and versions still have, and [`protection`] says how all that is set up. [`apart`] names the
//! directories of ours on this host.

pub mod alarms;
pub mod apart;
pub mod check;
pub mod documents;
pub mod drills;
pub mod expire;
pub mod exposure;
pub mod hidden;
pub mod locks;
pub mod mirror;
pub mod mirrors;
pub mod orphans;
pub mod protection;
pub mod rebuild;
pub mod reindex;
pub mod repair;
pub mod rounds;
pub mod sweep;
pub mod verify;
