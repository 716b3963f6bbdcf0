//! Exit codes, in one place. `docs/errors.md` documents them; they do not change.

use super::recover::{NoTerminal, Stopped};
use crate::archive::get::GetError;
use crate::archive::push::PushError;
use crate::config::ConfigError;
use crate::drill::DrillError;
use crate::postgres::programs::NoPrograms;
use crate::postgres::session::SessionError;
use crate::repo::RepoError;
use crate::restore::RestoreError;
use crate::snapshot::SnapshotError;
use crate::storage::{Fault, StorageError};
use crate::timeline::before::EventError;
use crate::timeline::find::FindError;
use crate::timeline::target::TargetError;
use crate::upkeep::expire::ExpireError;

/// `archive-get`: proven absent.
pub const ABSENT: u8 = 1;
pub const CONFIGURATION: u8 = 3;
pub const REPOSITORY: u8 = 4;
pub const REFUSED: u8 = 5;
pub const TARGET: u8 = 6;
pub const DAMAGE: u8 = 7;
pub const POSTGRES: u8 = 8;
pub const CHECK_FAILED: u8 = 9;
pub const OTHER: u8 = 10;
/// `drill`: the report says why.
pub const DRILL_FAILED: u8 = 11;
/// `archive-get` on a standby: every failure that does not prove absence. A standby goes on with what it has, streams, and asks again; a
/// code above 125 would shut it down for good (rule 30).
pub const ASK_AGAIN: u8 = 75;
/// `archive-get` elsewhere: every failure that does not prove absence. PostgreSQL stops recovery at codes above 125 (rule 30).
pub const COULD_NOT_TELL: u8 = 126;

/// The exit code of an error, by its kind.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(code) = known(cause) {
            return code;
        }
    }
    OTHER
}

fn known(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<RepoError>() {
        return Some(repo(error));
    }
    if let Some(error) = cause.downcast_ref::<SnapshotError>() {
        return Some(snapshot(error));
    }
    if let Some(error) = cause.downcast_ref::<ExpireError>() {
        return Some(match error {
            ExpireError::Repo(error) => repo(error),
            ExpireError::Refused { .. } | ExpireError::Begun { .. } | ExpireError::Pinned { .. } => REFUSED,
            ExpireError::NotLost { .. } => TARGET,
            ExpireError::Unseen { .. } => REFUSED,
            ExpireError::Left { .. } => REPOSITORY,
        });
    }
    if let Some(error) = cause.downcast_ref::<RestoreError>() {
        return Some(restore(error));
    }
    if let Some(error) = cause.downcast_ref::<DrillError>() {
        return Some(drill(error));
    }
    if let Some(error) = cause.downcast_ref::<PushError>() {
        return Some(match error {
            PushError::Repo(error) => repo(error),
            PushError::NoFile { .. } | PushError::Read { .. } | PushError::Name(_) => OTHER,
            _ => REFUSED,
        });
    }
    if let Some(error) = cause.downcast_ref::<FindError>() {
        return Some(find(error));
    }
    if let Some(error) = cause.downcast_ref::<EventError>() {
        return Some(match error {
            EventError::Repo(error) => repo(error),
            _ => TARGET,
        });
    }
    if let Some(GetError::Repo(error)) = cause.downcast_ref::<GetError>() {
        return Some(repo(error));
    }
    let by_type = [
        (cause.is::<ConfigError>() || cause.is::<NoPrograms>(), CONFIGURATION),
        (cause.is::<StorageError>(), REPOSITORY),
        (cause.is::<SessionError>(), POSTGRES),
        (cause.is::<NoTerminal>() || cause.is::<Stopped>(), REFUSED),
        (cause.is::<TargetError>(), TARGET),
    ];
    by_type.into_iter().find(|(is, _)| *is).map(|(_, code)| code)
}

fn repo(error: &RepoError) -> u8 {
    match error {
        RepoError::Damaged { .. } => DAMAGE,
        RepoError::Storage(error) if error.fault == Fault::Frozen => DAMAGE,
        RepoError::WrongKey { .. }
        | RepoError::WriterKey { .. }
        | RepoError::NeedsReader { .. }
        | RepoError::UnknownEpoch { .. }
        | RepoError::Sealed { .. }
        | RepoError::NotSealed { .. }
        | RepoError::NoWayIn { .. }
        | RepoError::Slot(_) => CONFIGURATION,
        RepoError::KeyFile { .. } => OTHER,
        RepoError::LastReader { .. } | RepoError::NoSlot { .. } | RepoError::SlotsLeft { .. } => REFUSED,
        RepoError::Apart { .. } | RepoError::Foreign { .. } | RepoError::OtherRepository { .. } | RepoError::Conflict { .. } => {
            REFUSED
        }
        RepoError::Held { .. } | RepoError::LeaseLost { .. } | RepoError::Busy { .. } => REFUSED,
        _ => REPOSITORY,
    }
}

fn find(error: &FindError) -> u8 {
    match error {
        FindError::Repo(error) => repo(error),
        _ => TARGET,
    }
}

fn snapshot(error: &SnapshotError) -> u8 {
    use SnapshotError::*;
    match error {
        Repo(error) => repo(error),
        NotReleased { .. }
        | Unregistered { .. }
        | OtherDirectory { .. }
        | OtherDisk { .. }
        | Clock { .. }
        | DataDirectory(_)
        | OtherWal { .. } => REFUSED,
        Session(_)
        | Archiving { .. }
        | Promoted
        | TimelineChanged { .. }
        | WalMissing { .. }
        | Control(_)
        | BlockSize { .. }
        | SegmentSize { .. } => POSTGRES,
        _ => OTHER,
    }
}

fn restore(error: &RestoreError) -> u8 {
    match error {
        RestoreError::Repo(error) => repo(error),
        RestoreError::Find(error) => find(error),
        RestoreError::Place { .. } | RestoreError::NoRoom { .. } | RestoreError::UnknownTablespace { .. } => REFUSED,
        RestoreError::TwoPlaces { .. } => REFUSED,
        RestoreError::Standby { .. } => TARGET,
        RestoreError::Unconfirmed { .. } | RestoreError::Code { .. } | RestoreError::Typed { .. } => REFUSED,
        RestoreError::Living { .. } | RestoreError::Changed { .. } | RestoreError::Release { .. } => REFUSED,
        RestoreError::NothingToUndo { .. } | RestoreError::Vanished { .. } => REFUSED,
        RestoreError::NotACopy { .. } => REFUSED,
        RestoreError::Gone { .. } => REPOSITORY,
        RestoreError::Expired { .. } => TARGET,
        RestoreError::Missing { .. } | RestoreError::Frozen { .. } => DAMAGE,
        RestoreError::NoControl | RestoreError::ReadBack { .. } => DAMAGE,
        RestoreError::Io { .. } => OTHER,
    }
}

fn drill(error: &DrillError) -> u8 {
    match error {
        DrillError::Restore(error) => restore(error),
        DrillError::Repo(error) => repo(error),
        DrillError::Place { .. } | DrillError::NoMemory { .. } => REFUSED,
        DrillError::Programs(_) | DrillError::NoRole { .. } => CONFIGURATION,
        DrillError::Scratch(_) | DrillError::Io { .. } | DrillError::Interrupted => OTHER,
    }
}
