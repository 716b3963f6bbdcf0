//! The order of things in a drill.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::place::{self, Place};
use super::prepare::{Drill, Prepared, Request, check_memory, phase};
use super::server::{Server, Setup, Trouble};
use super::target::{Expected, Reached};
use super::{DrillError, amcheck, catalogue, dump, is_about_the_backup, is_damage, own_settings, pages, questions, verdict};
use crate::clock;
use crate::monitor::Monitor;
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory::Scope;
use crate::postgres::quarantine;
use crate::repo::RepoError;
use crate::repo::lease::Lease;
use crate::repo::report::{Phase, REPLAY, RESTORE, Report};
use crate::restore::execute::{self, Options};
use crate::restore::guard::{self, Brought, Seal};
use crate::restore::pinned;
use crate::storage::Fault;

/// A server that was left for people.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Kept {
    pub directory: PathBuf,
    pub data: PathBuf,
    pub sockets: PathBuf,
    pub port: u16,
    pub role: String,
    pub pid: Option<u32>,
    pub bin: PathBuf,
}

impl Drill<'_> {
    /// Restores, starts, proves, asks. What it finds is in the report, which is concluded when this returns. `restore_command` gets the
    /// directory for prefetched WAL.
    pub async fn carry_out(
        &self,
        place: Place,
        prepared: Prepared,
        request: &Request,
        restore_command: String,
        report: &mut Report,
        monitor: Arc<dyn Monitor>,
    ) -> Result<Option<Kept>, DrillError> {
        let lease = self.pin(&prepared, &*monitor).await?;
        let kept = self.guarded(place, prepared, request, restore_command, report, monitor).await;
        if let Some(lease) = lease {
            lease.release().await;
        }
        report.ended = clock::now();
        if kept.is_ok() {
            verdict::conclude(report);
        }
        kept
    }

    /// Holds the snapshot and its WAL for as long as the server replays; a restore holds them only while it reads.
    async fn pin(&self, prepared: &Prepared, monitor: &dyn Monitor) -> Result<Option<Lease>, DrillError> {
        let operation = format!("drill-{}", clock::random_hex(4));
        match Lease::take(self.around.cluster, &operation, &prepared.plan.snapshot).await {
            Ok(lease) => Ok(Some(lease)),
            Err(RepoError::Storage(error)) if matches!(error.fault, Fault::Denied | Fault::ReadOnly | Fault::Full) => {
                monitor.warn(&format!("{error}; the drill goes on without a lease: let nothing expire meanwhile"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn guarded(
        &self,
        place: Place,
        mut prepared: Prepared,
        request: &Request,
        restore_command: String,
        report: &mut Report,
        monitor: Arc<dyn Monitor>,
    ) -> Result<Option<Kept>, DrillError> {
        if !self.restore(&prepared, restore_command, report, monitor.clone()).await? {
            return Ok(None);
        }
        let data = place.data();
        if !self.adjust(&data, &place, &mut prepared, report)? {
            return Ok(None);
        }
        // Before they are replaced.
        own_settings::check(&prepared.bin, &data, prepared.user, report);
        let setup = Setup {
            bin: prepared.bin.clone(),
            data: data.clone(),
            sockets: place.sockets(),
            settings: place.settings(),
            user: prepared.user,
            quarantine: prepared.quarantine.clone(),
            roles: self.roles(&prepared),
            major: prepared.plan.major,
            stall_s: self.config.stall_s,
            is_kept: request.keep,
        };
        let mut server = Server::new(setup)?;
        monitor.phase("replay WAL", 0);
        let reached = self.replay(&mut server, &prepared, report).await?;
        place::withdraw_environment(&place.environment(), prepared.user)?;
        if let Some(reached) = reached {
            self.question(&mut server, &prepared, request, &reached, report, &*monitor).await;
        }
        if !request.keep {
            return Ok(None);
        }
        let (bin, directory) = (prepared.bin.clone(), place.keep()?);
        let (sockets, role, pid) = server.leave();
        Ok(Some(Kept { directory, data, sockets, port: 5432, role, pid, bin }))
    }

    /// `false` when the backup cannot be restored.
    async fn restore(
        &self,
        prepared: &Prepared,
        restore_command: String,
        report: &mut Report,
        monitor: Arc<dyn Monitor>,
    ) -> Result<bool, DrillError> {
        let plan = &prepared.plan;
        let began = clock::monotonic();
        match plan.manifest().contradiction(self.around.cluster).await {
            Ok(None) => {}
            Ok(Some(problem)) => {
                report.fail("manifest", format!("the manifest of snapshot {} contradicts itself: {problem}", plan.snapshot));
                return Ok(false);
            }
            Err(error) if is_damage(&error) => {
                report.fail("manifest", error.to_string());
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        report.phases.push(phase("manifest", began.elapsed(), 0));
        let began = clock::monotonic();
        let options = Options { restore_command, port: None, threads: self.threads, read_back: self.read_back };
        // A place of our own that holds nothing: the guard has nothing to ask.
        let approval = guard::pass(&plan.into, "replaced", plan.care(), &Seal::of(&"drill", ""), &Brought::default())?;
        let cluster = self.around.cluster;
        let restored = match pinned::pin(cluster, plan, &*monitor).await {
            Ok(pinned) => execute::execute(cluster, plan, &approval, pinned, &options, monitor).await,
            Err(error) => Err(error),
        };
        report.phases.push(Phase { files: plan.files, ..phase(RESTORE, began.elapsed(), plan.bytes) });
        match restored {
            Ok(mut restored) => {
                // The drill holds a pin of its own.
                if let Some(pin) = restored.pin.take() {
                    pin.release().await;
                }
                report.ok("restore", format!("{} files with {} bytes, each proven by its SHA-256", plan.files, plan.bytes));
                Ok(true)
            }
            Err(error) if is_about_the_backup(&error) => {
                report.fail("restore", error.to_string());
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Owner, limits, libraries.
    fn adjust(&self, data: &Path, place: &Place, prepared: &mut Prepared, report: &mut Report) -> Result<bool, DrillError> {
        if let Some(user) = prepared.user {
            for path in [data.to_path_buf(), place.spaces()] {
                quarantine::own_all(&path, user).map_err(|source| DrillError::Io {
                    doing: "change the owner of",
                    path,
                    source,
                })?;
            }
        }
        match ControlFile::read(data) {
            Ok(control) => {
                prepared.quarantine.limits = control.limits.or_higher(prepared.plan.limits);
                check_memory(&prepared.quarantine)?;
                Ok(true)
            }
            Err(error) => {
                report.fail("restore", error.to_string());
                Ok(false)
            }
        }
    }

    fn roles(&self, prepared: &Prepared) -> Vec<String> {
        let owner = prepared.plan.manifest().owner.as_str();
        let candidates = [self.config.role.as_deref(), Some("postgres"), Some(owner), self.role];
        let mut roles: Vec<String> = Vec::new();
        for role in candidates.into_iter().flatten() {
            if !roles.iter().any(|known| known == role) {
                roles.push(role.into());
            }
        }
        roles
    }

    /// Where it stands, when that is the target.
    async fn replay(&self, server: &mut Server, prepared: &Prepared, report: &mut Report) -> Result<Option<Reached>, DrillError> {
        let began = clock::monotonic();
        let recovered = server.recover().await;
        let took = began.elapsed();
        let (_, reached) = match recovered {
            Ok(recovered) => recovered,
            // What this host or the configuration cannot do says nothing about the backup.
            Err(Trouble::Failed(error)) => return Err(error),
            Err(trouble) => {
                report.phases.push(phase(REPLAY, took, 0));
                report.fail("replay", trouble.to_string());
                return Ok(None);
            }
        };
        let start = prepared.plan.manifest().start_lsn;
        let replayed = reached.lsn.0.saturating_sub(start.0);
        report.phases.push(phase(REPLAY, took, replayed));
        report.last_transaction = reached.last_transaction;
        let expected = Expected::of(&prepared.plan, prepared.time);
        let problems = expected.problems(&reached);
        if !problems.is_empty() {
            problems.into_iter().for_each(|problem| report.fail("target", problem));
            return Ok(None);
        }
        report.replayed_to = Some(reached.lsn);
        let of = |name: &str| report.phase(name).map_or(0.0, |phase| phase.seconds);
        report.rto_s = Some(of(RESTORE) + of(REPLAY));
        if prepared.is_latest {
            let last = reached.last_transaction.unwrap_or(prepared.plan.manifest().stop_time);
            report.rpo_s = Some(report.began.duration_since(last).as_secs_f64().max(0.0));
        }
        let how = if reached.is_paused { "paused there" } else { "recovery ended there" };
        report
            .ok("target", format!("{replayed} bytes of WAL replayed, from {start} to {}, {how}; pg_control agrees", reached.lsn));
        Ok(Some(reached))
    }

    /// Everything that can be asked of a server that stands at its target.
    async fn question(
        &self,
        server: &mut Server,
        prepared: &Prepared,
        request: &Request,
        reached: &Reached,
        report: &mut Report,
        monitor: &dyn Monitor,
    ) {
        let plan = &prepared.plan;
        let expected = Expected::of(plan, prepared.time);
        monitor.phase("ask", 0);
        let began = clock::monotonic();
        let databases = match questions::databases(server, report).await {
            Ok(databases) => databases,
            Err(error) => return report.fail("databases", error.to_string()),
        };
        let locked = questions::ask(server, &self.config.question, report).await;
        match catalogue::check(server, &plan.archive, (plan.manifest(), &expected), reached, report).await {
            Ok(()) => {}
            Err(error) if is_damage(&error) => report.fail("catalogue", error.to_string()),
            Err(error) => report.warn("catalogue", format!("nothing was compared: {error}")),
        }
        report.phases.push(phase("ask", began.elapsed(), 0));
        self.read_pages(plan.into.clone(), plan.manifest(), report, monitor);
        let began = clock::monotonic();
        // A transaction that was going on at the target ends here, and with it its locks.
        let promoted = server.promote().await;
        questions::ask_again(server, &locked, report).await;
        let waited = began.elapsed();
        if request.dump {
            self.dump(server, &databases, report, monitor).await;
        }
        monitor.phase("amcheck", 0);
        let began = clock::monotonic();
        match promoted {
            Ok(()) => {
                let budget = Duration::from_secs(self.config.check_budget_s);
                amcheck::check(server, &databases, budget, report, monitor).await;
            }
            Err(trouble) => report.fail("amcheck", format!("the server could not be made writable: {trouble}")),
        }
        report.phases.push(phase("amcheck", waited + began.elapsed(), 0));
    }

    fn read_pages(&self, data: PathBuf, manifest: &crate::repo::manifest::Manifest, report: &mut Report, monitor: &dyn Monitor) {
        let began = clock::monotonic();
        monitor.phase("read pages", 0);
        let request = pages::Request {
            data: &data,
            scope: Scope::new(manifest.major, manifest.catalog_version),
            blocks_per_file: manifest.blocks_per_file,
            has_checksums: manifest.data_checksums,
            budget: Duration::from_secs(self.config.check_budget_s),
        };
        let read = tokio::task::block_in_place(|| pages::check(&request, monitor));
        match read {
            Ok(found) => tell_pages(found, manifest.data_checksums, began.elapsed(), report),
            Err(error) => report.fail("pages", error.to_string()),
        }
    }

    async fn dump(&self, server: &Server, databases: &[String], report: &mut Report, monitor: &dyn Monitor) {
        let began = clock::monotonic();
        monitor.phase("dump", 0);
        let mut dumped = 0;
        for database in databases {
            match dump::database(server, database, monitor).await {
                Ok(bytes) => dumped += bytes,
                Err(problem) => report.fail("dump", problem),
            }
        }
        report.checked.dumped_bytes = dumped;
        report.phases.push(phase("dump", began.elapsed(), dumped));
        if report.failures().all(|finding| finding.subject != "dump") {
            report.ok("dump", format!("{} databases dumped to nowhere, {dumped} bytes", databases.len()));
        }
    }
}

fn tell_pages(found: pages::Pages, has_checksums: bool, took: Duration, report: &mut Report) {
    use crate::postgres::page::PAGE_BYTES;
    (report.checked.pages, report.checked.pages_there) = (found.read, found.there);
    report.phases.push(phase("pages", took, found.read * PAGE_BYTES as u64));
    for place in &found.named {
        report.fail("pages", format!("the checksum of {place} does not hold"));
    }
    if found.damaged > found.named.len() as u64 {
        report.fail("pages", format!("{} pages are damaged", found.damaged));
    }
    for problem in &found.unreadable {
        report.fail("pages", format!("cannot be read: {problem}"));
    }
    let sample = if found.read < found.there { ", by chance" } else { "" };
    if found.damaged == 0 && found.read > 0 {
        report.ok("pages", format!("{} of {} pages read{sample}", found.read, found.there));
    }
    if !has_checksums {
        report.warn("pages", "data checksums are off in this cluster, so only the headers of pages could be checked");
    }
}
