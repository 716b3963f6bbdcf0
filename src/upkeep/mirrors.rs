//! What `check` says of mirrors: whether each is there, is a copy of this repository, and how far it is.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use super::check::Findings;
use crate::clock;
use crate::repo::object;
use crate::repo::repository::{Cluster, Repository, read_record};
use crate::repo::vault::Vault;
use crate::storage::Storage;

const SUBJECT: &str = "mirror";
/// How long a mirror may take to answer before it is called silent.
const PATIENCE: Duration = Duration::from_secs(20);

/// A mirror as the configuration has it.
#[derive(Debug)]
pub struct Mirror<'a> {
    pub name: &'a str,
    pub required: bool,
    /// Since when something waits in this host's spool for being copied.
    pub behind_since: Option<Timestamp>,
    pub max_age_hours: u64,
}

/// Looks at one mirror of `repository`.
pub async fn mirror(
    findings: &mut Findings,
    repository: &Repository,
    cluster: &str,
    mirror: &Mirror<'_>,
    storage: std::sync::Arc<dyn Storage>,
) {
    let name = mirror.name;
    let mut trouble = |what: String, mend: &str| match mirror.required {
        true => findings.fail(SUBJECT, format!("{what}; nothing is archived while it is required"), mend),
        false => findings.warn(SUBJECT, what, mend),
    };
    let looked = tokio::time::timeout(PATIENCE, read_record(&*storage)).await;
    let record = match looked {
        Err(_) => return trouble(format!("{name} ({}) does not answer", storage.place()), "see `lastgood check --storage`"),
        Ok(read) => object::absent(read),
    };
    match record {
        Err(error) => return trouble(format!("{name} cannot be reached: {error}"), "see the message"),
        Ok(None) => return trouble(format!("{name} ({}) holds no copy yet", storage.place()), "run: lastgood mirror"),
        Ok(Some(record)) if record.id != repository.record().id => {
            let what = format!("{name} ({}) is another repository, not a copy of this one", storage.place());
            return trouble(what, "give it an empty place of its own");
        }
        Ok(Some(_)) => {}
    }
    let there = Repository::again(Vault::new(storage, repository.vault().seal().cloned())).await;
    let compared = match there {
        Ok(there) => missing(&repository.cluster(cluster), &there.cluster(cluster)).await,
        Err(error) => Err(error),
    };
    let missing = match compared {
        Ok(missing) => missing,
        Err(error) => return trouble(format!("{name} cannot be compared: {error}"), "see the message"),
    };
    let old = |since: &Timestamp| {
        let age = clock::now().duration_since(*since).as_hours();
        u64::try_from(age).is_ok_and(|hours| hours >= mirror.max_age_hours)
    };
    let snapshots = match missing {
        0 => "has every snapshot".to_string(),
        1 => "lacks 1 snapshot".to_string(),
        count => format!("lacks {count} snapshots"),
    };
    match mirror.behind_since {
        Some(since) if old(&since) => trouble(
            format!("{name} is behind since {}, and {snapshots}", clock::seconds(since)),
            "run lastgood mirror, and let cron run it often",
        ),
        Some(since) => findings.ok(SUBJECT, format!("{name} {snapshots}, and is behind since {}", clock::seconds(since))),
        None if missing > 0 => findings.warn(SUBJECT, format!("{name} {snapshots}"), "run: lastgood mirror"),
        None => findings.ok(SUBJECT, format!("{name} {snapshots}")),
    }
}

/// Snapshots that only the first has.
async fn missing(here: &Cluster, there: &Cluster) -> Result<usize, crate::repo::RepoError> {
    let (here, there) = tokio::try_join!(here.snapshot_ids(), there.snapshot_ids())?;
    let there: BTreeSet<String> = there.into_iter().collect();
    Ok(here.iter().filter(|id| !there.contains(*id)).count())
}
