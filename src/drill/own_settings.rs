//! The settings that the copy came with, with which a restored server is started.
//!
//! A drill starts its server with settings of its own, because those of the original would act. So it says nothing about whether the
//! server would come up with them: a file that is included, a library, a certificate may not be there.

use std::path::Path;

use crate::owner::Ids;
use crate::postgres::{settings_files, startable};
use crate::repo::report::Report;

const SUBJECT: &str = "settings";

/// Tries the settings in `data` with the programs in `bin`, and puts into the report what is missing. Before they are replaced.
pub fn check(bin: &Path, data: &Path, user: Option<Ids>, report: &mut Report) {
    if !settings_files::are_of_the_original(data) {
        return report
            .warn(SUBJECT, "postgresql.conf is not in the data directory, so the settings of the original were not tried");
    }
    match startable::missing(bin, data, user) {
        Ok(missing) if missing.is_empty() => {
            report.ok(SUBJECT, "the settings of the original can be read, and what they name is here")
        }
        Ok(missing) => missing.into_iter().for_each(|what| {
            report.fail(SUBJECT, format!("with the settings of the original no server starts on this host: {what}"));
        }),
        Err(said) => report.fail(SUBJECT, format!("the settings of the original cannot be read on this host: {said}")),
    }
}
