//! What a restore did, and what to do next.

use super::{estimate, output, standby};
use crate::postgres::{programs, quiet, startable};
use crate::repo::report::Span;
use crate::restore::execute::Restored;
use crate::restore::plan::Plan;
use crate::restore::start;

/// What came of it, and what it was thought to take.
pub fn tell(plan: &Plan, restored: &Restored, port: Option<u16>, (seconds, expected): (f64, Option<Span>), json: bool) {
    let lacks = lacks(plan);
    let unknown = quiet::unknown_libraries(&restored.made.libraries);
    if json {
        output::json(
            &serde_json::json!({ "event": "result", "seconds": seconds, "into": plan.into, "has_settings": restored.has_settings,
                "aside": restored.aside, "saved": restored.saved, "estimated": expected, "port": port, "lacks": lacks,
                "unknown_libraries": unknown }),
        );
        return;
    }
    output::line(format!("restored into {} in {}; every byte was verified", plan.into.display(), output::duration(seconds)));
    if !restored.has_settings {
        let from = match &plan.manifest().config_file {
            Some(file) => format!("it reads {file} where that is there"),
            None => "PostgreSQL's defaults hold".to_string(),
        };
        output::entry(
            "settings",
            format!(
                "of the original lay outside its data directory and are not in the snapshot: the copy's postgresql.conf is its own, and {from}"
            ),
        );
    }
    if let Some(port) = port {
        output::entry("port", format!("{port}, because the original is on this host"));
    }
    if !unknown.is_empty() {
        output::entry(
            "warning",
            format!(
                "nobody here knows what {} in shared_preload_libraries starts: look before the server runs beside its original",
                unknown.join(", ")
            ),
        );
    }
    lacks.iter().for_each(|what| output::entry("warning", format!("the server will not start on this host: {what}")));
    if let Some(aside) = &restored.aside {
        output::entry(
            "what stood",
            format!("there is now {}; to put it back: lastgood undo --into {}", aside.display(), plan.into.display()),
        );
    }
    standby::show_wal(plan);
    if plan.standby.is_some() {
        standby::show_result(plan);
    } else {
        let into = output::shell_words(&[plan.into.display().to_string()]);
        output::entry("start it", format!("pg_ctl -D {into} start"));
        output::entry("it replays", format!("WAL then: before you count anything, lastgood reached --data-directory {into}"));
        output::entry("take over", format!("lastgood release --data-directory {into}, restart it, lastgood backup"));
    }
    if let Some(expected) = expected {
        output::entry("estimate", format!("it was thought to take {}", estimate::span(&expected)));
    }
}

/// What the server lacks on this host, as far as its programs are here to tell.
fn lacks(plan: &Plan) -> Vec<String> {
    let (Ok(bin), Ok(user)) = (programs::find(plan.major, None), start::user(&plan.into)) else { return Vec::new() };
    startable::missing(&bin, &plan.into, user).unwrap_or_else(|said| vec![said])
}
