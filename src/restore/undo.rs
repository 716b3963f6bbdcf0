//! Putting back what a restore moved aside.
//!
//! The cluster that stands in the place now is moved aside in turn, with its WAL saved, and the guard asks for it as it does for a
//! restore: it may have become production meanwhile. An exchange that was interrupted is taken back from wherever it stopped.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::RestoreError;
use super::ground::{self, Exchanged};
use super::guard::{Approval, Care};
use super::loss::{self, Loss};
use super::place;
use super::present::Present;
use super::replaced::{self, Around, Replaced};
use super::salvage::{self, Saved};
use super::standing::{self, Occupant};
use super::switch::{self, Hold, Pair, Switched};
use crate::clock;
use crate::durable;
use crate::monitor::Monitor;
use crate::postgres::data_directory::{REPLACED_NOTE, RESTORING_MARK, SWITCHED_MARK, UNDOING_MARK};
use crate::postgres::postmaster::{self, Living};
use crate::timeline::archive::Archive;
use crate::timeline::tail;

/// What an undo is about to do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub into: PathBuf,
    pub switched: Switched,
    /// What stands in the place now and will be moved aside.
    pub present: Occupant,
    /// The restore was interrupted before what stands there could ever be started.
    pub never_started: bool,
    pub replaced: Replaced,
    /// Transactions of the present cluster since it left its original's timeline.
    pub loss: Option<Loss>,
    /// What will be put back, and where it is now.
    pub old: Occupant,
    pub old_at: PathBuf,
    /// Where other clusters with the same tablespaces may be.
    #[serde(skip)]
    pub elsewhere: Vec<PathBuf>,
}

impl Plan {
    /// A server that runs in either of the two.
    pub fn living(&self) -> Option<(PathBuf, Living)> {
        let of = |path: &PathBuf, occupant: &Occupant| Some((path.clone(), occupant.living.clone()?));
        of(&self.into, &self.present).or_else(|| of(&self.old_at, &self.old))
    }

    pub fn care(&self) -> &Care {
        // What was never finished holds nothing that anybody wrote.
        if self.never_started { &Care::Free } else { &self.replaced.care }
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Undone {
    pub aside: PathBuf,
    pub saved: Saved,
}

/// Looks at both clusters; writes nothing.
pub async fn plan(around: &Around<'_>, mut archive: Archive, into: &Path) -> Result<Plan, RestoreError> {
    if !fs::symlink_metadata(into).is_ok_and(|m| m.is_dir()) {
        return Err(RestoreError::NothingToUndo { path: into.into() });
    }
    let switched = Switched::read(into)?;
    if switched.data.place != into {
        // Moved by hand, or built for another place: what it replaced never stood here.
        return Err(RestoreError::NothingToUndo { path: into.into() });
    }
    let old_at = switched.data.now_at().filter(|at| *at != into).map(Path::to_path_buf);
    let vanished = || RestoreError::Vanished { path: into.into(), aside: switched.data.aside.clone() };
    let old_at = old_at.ok_or_else(vanished)?;
    let present = standing::look(into)?;
    let replaced = replaced::look(around, &mut archive, into, &present).await?;
    let old = standing::look(&old_at)?;
    let loss = since_it_left(&archive, &replaced, &present, (&old_at, &old)).await?;
    let elsewhere: Vec<PathBuf> = around.data_directory.map(PathBuf::from).into_iter().collect();
    check_shared(&[into, &old_at], &switched, &elsewhere)?;
    Ok(Plan {
        into: into.into(),
        never_started: !is_there(&into.join(switch::CONTROL))? && is_there(&into.join(RESTORING_MARK))?,
        present,
        replaced,
        loss,
        old,
        old_at,
        switched,
        elsewhere,
    })
}

/// Transactions of the present cluster that the old one does not have: since their histories parted, or since the old one ended.
async fn since_it_left(
    archive: &Archive,
    replaced: &Replaced,
    present: &Occupant,
    old: (&Path, &Occupant),
) -> Result<Option<Loss>, RestoreError> {
    if present.system() != Some(archive.system) {
        return Ok(None);
    }
    let (old_at, old) = old;
    let present = match &replaced.present {
        Some(Ok(present)) => present,
        Some(Err(why)) => return Ok(Some(Loss::unknown(why.clone()))),
        None => return Ok(None),
    };
    let Some(control) = old.control.as_ref().filter(|control| control.system_identifier == archive.system) else {
        return Ok(Some(Loss::unknown("the cluster that is put back is another, or its pg_control cannot be read")));
    };
    let mut found = match tail::in_directory(&old_at.join("pg_wal"), archive.system) {
        Ok(found) => found,
        Err(error) => return Ok(Some(Loss::unknown(format!("pg_wal in {} cannot be read: {error}", old_at.display())))),
    };
    let unarchived = salvage::find(archive, &mut found).await?;
    let past = match Present::of(archive, old_at, control.timeline, &found, &unarchived) {
        Ok(past) => past,
        Err(why) => return Ok(Some(Loss::unknown(why))),
    };
    let end = past.end(old_at).await.unwrap_or(control.checkpoint);
    // Where the old one left the archive's history, the archive's later WAL is none of it.
    let end = past.parted.map_or(end, |(at, _)| at.min(end));
    loss::beyond(present, &past.path, end, true).await.map(Some)
}

/// Puts the old cluster back as planned.
pub async fn execute(plan: &Plan, _approval: &Approval, monitor: &dyn Monitor) -> Result<Undone, RestoreError> {
    check_unchanged(plan)?;
    check_shared(&[&plan.into, &plan.old_at], &plan.switched, &plan.elsewhere)?;
    let saved = match &plan.replaced {
        Replaced { archive: Some(archive), unarchived, .. } if !unarchived.is_empty() && !plan.never_started => {
            monitor.phase("save unarchived WAL", 0);
            salvage::save(archive.cluster(), archive, &plan.into.join("pg_wal"), unarchived, monitor).await
        }
        _ => Saved::default(),
    };
    monitor.phase("exchange", 0);
    let aside = exchange(plan).map_err(|error| match error {
        Exchange::Refused(error) => *error,
        Exchange::Io(source) => RestoreError::Io { doing: "put back what stood in", path: plan.into.clone(), source },
    })?;
    Ok(Undone { aside, saved })
}

/// What cannot be told is an error: who was never started needs no care.
fn is_there(path: &Path) -> Result<bool, RestoreError> {
    path.try_exists().map_err(|source| RestoreError::Io { doing: "look at", path: path.into(), source })
}

/// Whether no server uses the tablespaces that will be exchanged. Of those that do not run, the exchange itself says that they are copies.
fn check_shared(dirs: &[&Path], switched: &Switched, known: &[PathBuf]) -> Result<(), RestoreError> {
    for pair in &switched.tablespaces {
        let own = pair.place.file_name().unwrap_or_default().to_string_lossy();
        let locations = [durable::parent(&pair.place).to_path_buf()];
        ground::check_shared(&Exchanged { dirs, locations: &locations, own: &own, known, is_original: true })?;
    }
    Ok(())
}

fn check_unchanged(plan: &Plan) -> Result<(), RestoreError> {
    for (path, then) in [(&plan.into, &plan.present), (&plan.old_at, &plan.old)] {
        let metadata = fs::symlink_metadata(path).map_err(|_| RestoreError::Changed { path: path.clone() })?;
        if metadata.is_symlink() {
            return Err(RestoreError::Changed { path: path.clone() });
        }
        let now = standing::look(path)?;
        if let Some(living) = now.living {
            return Err(RestoreError::Living { path: path.clone(), living });
        }
        if now.fingerprint != then.fingerprint {
            return Err(RestoreError::Changed { path: path.clone() });
        }
    }
    place::check_movable(&plan.into)
}

enum Exchange {
    Refused(Box<RestoreError>),
    Io(io::Error),
}

impl From<io::Error> for Exchange {
    fn from(error: io::Error) -> Self {
        Exchange::Io(error)
    }
}

fn exchange(plan: &Plan) -> Result<PathBuf, Exchange> {
    let (into, old_at) = (&plan.into, &plan.old_at);
    let back = match fs::read(into.join(UNDOING_MARK)) {
        // A first try was interrupted: its names hold.
        Ok(journal) => serde_json::from_slice(&journal).map_err(io::Error::from)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => way_back(plan)?,
        Err(error) => return Err(error.into()),
    };
    let aside = back.data.aside.clone();
    check_unchanged(plan).map_err(|error| Exchange::Refused(Box::new(error)))?;
    let hold = Hold::take(into)?;
    if let Some(living) = postmaster::living(into)?.filter(|living| living.pid != Some(std::process::id() as i32)) {
        return Err(Exchange::Refused(Box::new(RestoreError::Living { path: into.clone(), living })));
    }
    back.write_as(into, UNDOING_MARK)?;
    // From here on the present cluster cannot be started, and a second undo finds what to do.
    if into.join(switch::CONTROL).try_exists()? {
        switch::rename(&into.join(switch::CONTROL), &into.join(switch::WITHHELD_CONTROL))?;
    }
    for (pair, new) in plan.switched.tablespaces.iter().zip(&back.tablespaces) {
        let tablespace = durable::parent(&pair.place);
        let new_aside = durable::parent(&new.aside);
        if let Some(old) = pair.now_at().filter(|old| *old != pair.place).map(Path::to_path_buf) {
            switch::exchange(&pair.place, &old)?;
            let emptied = durable::parent(&old);
            if emptied != tablespace && !new_aside.exists() {
                switch::rename(emptied, new_aside)?;
            }
        }
        point_links(into, tablespace, new_aside)?;
        point_links(old_at, durable::parent(&pair.aside), tablespace)?;
    }
    back.write(old_at)?;
    switch::exchange(into, old_at)?;
    hold.release(old_at);
    // One that an interrupted undo had put aside comes back whole.
    let unfinished = into.join(RESTORING_MARK).try_exists()? || into.join(switch::CONTROL).try_exists()?;
    if !unfinished && into.join(switch::WITHHELD_CONTROL).try_exists()? {
        switch::rename(&into.join(switch::WITHHELD_CONTROL), &into.join(switch::CONTROL))?;
    }
    // The present one stands aside now, whole again.
    remove_if_there(&old_at.join(SWITCHED_MARK))?;
    remove_if_there(&old_at.join(UNDOING_MARK))?;
    remove_if_there(&into.join(UNDOING_MARK))?;
    if !plan.never_started && old_at.join(switch::WITHHELD_CONTROL).try_exists()? {
        switch::rename(&old_at.join(switch::WITHHELD_CONTROL), &old_at.join(switch::CONTROL))?;
    }
    back.leave_note(old_at)?;
    switch::rename(old_at, &aside)?;
    remove_if_there(&into.join(REPLACED_NOTE))?;
    remove_if_there(&into.join(RESTORING_MARK))?;
    Ok(aside)
}

/// Everything that will be moved, with the names it gets.
fn way_back(plan: &Plan) -> io::Result<Switched> {
    let (into, at) = (&plan.into, clock::now());
    let mut tablespaces = Vec::new();
    for pair in &plan.switched.tablespaces {
        let tablespace = durable::parent(&pair.place);
        let aside = switch::aside(&tablespace.join("lastgood"), "undone", at).join(pair.place.file_name().unwrap_or_default());
        // The present one stands in the place, or, when the exchange never came to it, where it was built.
        let present = if pair.now_at() == Some(&pair.place) { &pair.staging } else { &pair.place };
        tablespaces.push(Pair { place: pair.place.clone(), ..Pair::new(present.clone(), present.clone(), aside)? });
    }
    let data = Pair::new(into.clone(), plan.old_at.clone(), switch::aside(into, "undone", at))?;
    Ok(Switched { at, what: format!("undo of the {}", plan.switched.what), data, tablespaces })
}

/// Makes the links of a cluster that lead to one directory lead to another.
pub fn point_links(cluster: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let links = cluster.join("pg_tblspc");
    for link in fs::read_dir(&links)? {
        let link = link?.path();
        let leads = |target: PathBuf| {
            target == from || fs::canonicalize(&target).is_ok_and(|real| Ok(real) == fs::canonicalize(from).map_err(|_| ()))
        };
        let target = match fs::read_link(&link) {
            // A relative one is seen from where the link is.
            Ok(target) => links.join(target),
            // No link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => continue,
            Err(error) => return Err(error),
        };
        if leads(target) {
            let new = durable::temporary_beside(&link);
            symlink(to, &new)?;
            fs::rename(&new, &link)?;
        }
    }
    durable::sync_directory(&links)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
