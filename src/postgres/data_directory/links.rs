//! Links that lead out of a data directory: those of the tablespaces, and that of `pg_wal`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{DataDirectoryError, is_inside, is_number};

/// Where `pg_wal` is when it is a link, without further links; `None` when it is a directory, or not there.
pub fn wal_place(dir: &Path) -> io::Result<Option<PathBuf>> {
    let path = dir.join("pg_wal");
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_symlink() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    match fs::canonicalize(&path) {
        Ok(place) => Ok(Some(place)),
        // Its disk is gone: a broken cluster may be like that.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the link of a tablespace leads. The path as it was given, when it names the directory itself; else, of a relative link, or of
/// one that leads to a link, the directory that is found in the end, because a restore makes one link that leads there.
pub fn target(link: &Path) -> io::Result<PathBuf> {
    // With a slash at its end, a link would be followed before it is looked at.
    let target: PathBuf = fs::read_link(link)?.components().collect();
    if target.is_absolute() && !fs::symlink_metadata(&target).is_ok_and(|found| found.is_symlink()) {
        return Ok(target);
    }
    match fs::canonicalize(link) {
        Ok(real) => Ok(real),
        // Said by whoever looks into it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(target),
        Err(error) => Err(error),
    }
}

/// Tablespace links with the directories they lead to, checked (rule 15); in-place tablespaces are ordinary directories and not listed.
pub fn tablespaces(dir: &Path) -> Result<Vec<(String, PathBuf)>, DataDirectoryError> {
    let links = dir.join("pg_tblspc");
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| DataDirectoryError::Io { path, source }
    };
    let data = fs::canonicalize(dir).map_err(failed(dir))?;
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for entry in fs::read_dir(&links).map_err(failed(&links))? {
        let entry = entry.map_err(failed(&links))?;
        let link = entry.path();
        if !is_number(entry.file_name().as_encoded_bytes()) {
            continue;
        }
        match fs::read_link(&link) {
            Ok(_) => {}
            // Made in place, or dropped meanwhile.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => continue,
            Err(source) => return Err(DataDirectoryError::Io { path: link, source }),
        }
        let refuse = |problem: &str| Err(DataDirectoryError::Tablespace { link: link.clone(), problem: problem.into() });
        let real = match fs::canonicalize(&link) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return refuse("its target does not exist"),
            Err(source) => return Err(DataDirectoryError::Io { path: link, source }),
        };
        if is_inside(&real, &data) || is_inside(&data, &real) {
            return refuse("its target overlaps with the data directory");
        }
        if let Some((other, _)) = found.iter().find(|(_, o)| is_inside(&real, o) || is_inside(o, &real)) {
            return refuse(&format!("its target overlaps with that of tablespace {other}"));
        }
        found.push((entry.file_name().to_string_lossy().into_owned(), real));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_of_every_kind_lead_somewhere() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for path in ["data/pg_tblspc", "disk/one", "disk/two", "disk/three", "wal/pg_wal"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        let (data, disk) = (root.join("data"), root.join("disk"));
        let link = |target: &Path, name: &str| symlink(target, data.join(name)).unwrap();
        symlink(root.join("disk"), root.join("way")).unwrap();
        symlink(root.join("way/three"), root.join("second")).unwrap();
        symlink(root.join("second"), root.join("first")).unwrap();
        link(&root.join("way/one"), "pg_tblspc/11");
        link(Path::new("../../disk/two"), "pg_tblspc/12");
        link(&root.join("first"), "pg_tblspc/13");
        let expected = [("11", "one"), ("12", "two"), ("13", "three")].map(|(oid, name)| (oid.to_string(), disk.join(name)));
        assert_eq!(tablespaces(&data).unwrap(), expected);
        assert_eq!(target(&data.join("pg_tblspc/11")).unwrap(), root.join("way/one"), "as it was given");
        assert_eq!(target(&data.join("pg_tblspc/12")).unwrap(), disk.join("two"));
        assert_eq!(target(&data.join("pg_tblspc/13")).unwrap(), disk.join("three"));
        assert_eq!(wal_place(&data).unwrap(), None, "there is none");
        link(Path::new("../wal/pg_wal"), "pg_wal");
        assert_eq!(wal_place(&data).unwrap(), Some(root.join("wal/pg_wal")));
        fs::remove_dir(root.join("wal/pg_wal")).unwrap();
        assert_eq!(wal_place(&data).unwrap(), None, "its disk is gone");
        link(Path::new("../../disk/two"), "pg_tblspc/14");
        assert!(tablespaces(&data).unwrap_err().to_string().contains("overlaps"));
    }
}
