//! What `restore` takes and says of a standby, and of where `pg_wal` goes.

use super::output;
use crate::restore::plan::Plan;
use crate::restore::standby::Standby;

/// A standby is made.
#[derive(Debug, Clone, clap::Args)]
pub struct StandbyFlags {
    /// Make a standby: with --to latest; it follows its primary, and archives when it is promoted
    #[arg(long, conflicts_with_all = ["before", "after", "exclusive"])]
    standby: bool,
    /// How the standby reaches its primary, without a password [default: it lives from the archive alone]
    #[arg(long, value_name = "CONNINFO", requires = "standby")]
    primary_conninfo: Option<String>,
    /// Replication slot on the primary, which must be there
    #[arg(long, value_name = "NAME", requires_all = ["standby", "primary_conninfo"])]
    slot: Option<String>,
}

impl StandbyFlags {
    pub fn asked(&self) -> Option<Standby> {
        let StandbyFlags { standby, primary_conninfo, slot } = self.clone();
        standby.then_some(Standby { primary_conninfo, slot, timeline: None })
    }
}

/// Where `pg_wal` goes, where that is not the usual place, or was not.
pub fn show_wal(plan: &Plan) {
    let Some(wal) = &plan.wal else { return };
    let was = wal.was.as_ref().map(|was| was.display());
    match (&wal.into, &wal.standing, was) {
        (Some(into), standing, _) => {
            let there = standing.as_ref().map(|standing| format!(" (there is {})", standing.words())).unwrap_or_default();
            output::entry("pg_wal", format!("in {}{there}, with a link to it", into.display()));
        }
        (None, _, Some(was)) => output::entry(
            "pg_wal",
            format!(
                "was a place of its own, {was}, when the snapshot was taken; it becomes a directory in {}. For a disk of its own, say \
                 --wal-directory DIRECTORY",
                plan.into.display()
            ),
        ),
        (None, _, None) => {}
    }
}

/// What becomes of it in the plan.
pub fn show(standby: &Standby) {
    let from = match (&standby.primary_conninfo, &standby.slot) {
        (Some(conninfo), Some(slot)) => format!("the archive and from {conninfo}, slot {slot}"),
        (Some(conninfo), None) => format!("the archive and from {conninfo}"),
        (None, _) => "the archive alone: it is behind by what is not archived yet (--primary-conninfo lets it stream)".into(),
    };
    output::entry("then", format!("it is a standby, which follows with WAL from {from}"));
    match standby.timeline {
        Some(timeline) => output::entry(
            "NOTE",
            format!(
                "it follows timeline {timeline} alone, because the archive has a higher one that nobody follows; after the next failover \
                 set recovery_target_timeline = 'latest'"
            ),
        ),
        None => output::entry("", "on the newest timeline; when it is promoted it archives, and nobody has to release it"),
    }
}

/// What to do with it.
pub fn show_result(plan: &Plan) {
    let directory = output::shell_words(&[plan.into.display().to_string()]);
    output::line("  it is a standby: start it beside its primary, never alone, and never promote it while the primary lives");
    output::line(format!("  start it with: pg_ctl -D {directory} start"));
    if plan.standby.as_ref().is_some_and(|standby| standby.primary_conninfo.is_some()) {
        output::line("  it streams when SELECT status FROM pg_stat_wal_receiver says streaming");
    }
}
