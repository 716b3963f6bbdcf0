//! Directories of ours on this host, as the configuration names them: no cluster holds them, and nothing is restored into them.

use crate::config::Config;
use crate::postgres::apart::Apart;
use crate::storage::open::Place;

pub fn apart(config: &Config) -> Vec<Apart> {
    let mirrors = config.mirror.iter().map(|mirror| (format!("the mirror {}", mirror.name), mirror.url.as_str()));
    let stores = [("the repository".to_string(), config.repository.url.as_str())].into_iter().chain(mirrors);
    // A URL that cannot be understood is refused where the store is opened.
    let directory = |(what, url): (String, &str)| match Place::parse(url) {
        Ok(Place::Directory(path)) => Some(Apart { what, path }),
        _ => None,
    };
    let spool = Apart { what: "the spool".into(), path: config.archive.spool.clone() };
    stores.filter_map(directory).chain([spool]).collect()
}
