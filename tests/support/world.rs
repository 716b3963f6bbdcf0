//! A server, a repository, and the program between them: what a test plays with.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lastgood::config::S3;
use lastgood::owner::Ids;
use lastgood::postgres::scratch::{self, Scratch};
use lastgood::postgres::session::Session;

/// Longest that anything is waited for; a condition is asked for all the while.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where the programs of a major version are: Debian's 15, everything else from npm.
pub fn programs(major: u32) -> PathBuf {
    if major == 15 {
        return "/usr/lib/postgresql/15/bin".into();
    }
    super::garage::tools().join(format!("postgresql-{major}/bin"))
}

/// What a run of the program said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Both streams, for messages whose stream does not matter.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    /// The last JSON line.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.out.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

pub struct World {
    // First, so that the server is stopped before its directory goes.
    pub server: Scratch,
    dir: tempfile::TempDir,
    bin: PathBuf,
    user: Option<Ids>,
    program: PathBuf,
    session: Option<Session>,
}

impl World {
    /// A running server of `major` that archives into a directory, registered, without a snapshot.
    pub async fn new(major: u32) -> World {
        World::with(major, &["--data-checksums"], "", None).await
    }

    /// The same with options for initdb, lines for postgresql.conf, and an S3 store instead of the directory.
    pub async fn with(major: u32, initdb: &[&str], settings: &str, s3: Option<(&str, S3)>) -> World {
        let mut world = World::bare(major, initdb, settings, s3).await;
        world.start().await;
        world.ok(&["init", "--apply"]);
        world
    }

    /// A server that is not started, and a configuration.
    pub async fn bare(major: u32, initdb: &[&str], settings: &str, s3: Option<(&str, S3)>) -> World {
        let user = scratch::run_as("postgres").unwrap();
        let dir = tempfile::Builder::new().prefix("lastgood-test-").tempdir_in("/tmp").unwrap();
        scratch::make_directory(dir.path(), user).unwrap();
        let program = dir.path().join("lastgood");
        let built = Path::new(env!("CARGO_BIN_EXE_lastgood"));
        if std::fs::hard_link(built, &program).is_err() {
            std::fs::copy(built, &program).unwrap();
        }
        let bin = programs(major);
        let server = Scratch::new(&bin, &dir.path().join("data"), &dir.path().join("sockets"), user).unwrap();
        server.initdb(initdb).unwrap_or_else(|e| panic!("{e}; is PostgreSQL {major} installed? tests/tools/install test"));
        let archiving = "archive_mode = on\nwal_level = replica\nfsync = off\nshared_buffers = '16MB'\nmax_wal_size = '256MB'";
        server.configure(&format!("{archiving}\n{settings}")).unwrap();
        let world = World { server, dir, bin, user, program, session: None };
        world.write_config(s3, "");
        world
    }

    pub async fn start(&mut self) {
        self.server.start().await.unwrap();
        self.session = Some(self.connect().await);
    }

    pub async fn connect(&self) -> Session {
        let session = Session::open(&self.server.connection()).await.unwrap();
        session.run("SET search_path = public, pg_catalog").await.unwrap();
        session
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    pub fn config(&self) -> PathBuf {
        self.path("lastgood.toml")
    }

    pub fn user(&self) -> Option<Ids> {
        self.user
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Writes the configuration, with `more` at its end.
    pub fn write_config(&self, s3: Option<(&str, S3)>, more: &str) {
        let repository = match &s3 {
            None => format!("url = \"{}\"\n", self.repository().display()),
            Some((url, s3)) => {
                let credentials = self.path("credentials");
                self.write_private("credentials", &std::fs::read_to_string(s3.credentials_file.as_ref().unwrap()).unwrap());
                format!(
                    "url = \"{url}\"\n[repository.s3]\nendpoint = \"{}\"\nregion = \"{}\"\npath_style = {}\n\
                     conditional_create = {}\ncredentials_file = \"{}\"\n",
                    s3.endpoint.as_ref().unwrap(),
                    s3.region.as_ref().unwrap(),
                    s3.path_style,
                    s3.conditional_create,
                    credentials.display()
                )
            }
        };
        let lock = s3.as_ref().and_then(|(_, s3)| s3.object_lock_days).map(|days| format!("object_lock_days = {days}\n"));
        let versions = s3.as_ref().is_some_and(|(_, s3)| s3.delete_versions).then_some("delete_versions = true\n");
        let repository = format!("{repository}{}{}", lock.unwrap_or_default(), versions.unwrap_or_default());
        let text = format!(
            "[repository]\n{repository}\n[cluster]\nname = \"shop\"\n\n[postgres]\nhost = \"{}\"\n\n[archive]\nspool = \"{}\"\n{more}",
            self.server.sockets().display(),
            self.path("spool").display()
        );
        std::fs::write(self.config(), text).unwrap();
        std::fs::set_permissions(self.config(), std::fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// A file that only the server's user can read.
    pub fn write_private(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        if let Some(user) = self.user {
            std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)).unwrap();
        }
        path
    }

    /// The program with this world's configuration, as the server's user.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.config()).args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        for name in ["PGHOST", "PGPORT", "PGUSER", "LASTGOOD_REPO", "LASTGOOD_CLUSTER", "LASTGOOD_CONFIG"] {
            command.env_remove(name);
        }
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        said(&mut self.command(args))
    }

    /// Removes all notes of earlier calls; a process that still writes one is waited for.
    pub fn forget_spool(&self) {
        let began = lastgood::clock::monotonic();
        while let Err(error) = std::fs::remove_dir_all(self.path("spool")) {
            let is_written = error.kind() == std::io::ErrorKind::DirectoryNotEmpty;
            assert!(is_written && began.elapsed() < PATIENCE, "{error}");
        }
    }

    /// Gives up snapshots that a backup left whole but for the manifest, when it was stopped in between: nobody but a person can tell them
    /// from one whose manifest was lost. Answers how many.
    pub fn forget_orphans(&self) -> usize {
        let said = self.run(&["verify", "--quick"]).all();
        let of_orphan = |line: &str| {
            let key = line.strip_prefix("DAMAGED ")?.split_once(": it is missing, and the rest of its snapshot is there")?.0;
            key.rsplit('/').next().map(String::from)
        };
        let ids: Vec<String> = said.lines().filter_map(of_orphan).collect();
        for id in &ids {
            self.confirmed(&["expire", "--forget", id]);
        }
        ids.len()
    }

    /// Runs, and wants success.
    pub fn ok(&self, args: &[&str]) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, 0, "lastgood {args:?}: {}\nserver:\n{}", said.all(), self.server.log());
        said
    }

    /// Runs, and wants this exit code and these words.
    pub fn refused(&self, args: &[&str], code: i32, words: &[&str]) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, code, "lastgood {args:?}: {}", said.all());
        for word in words {
            assert!(said.all().contains(word), "lastgood {args:?} should say {word:?}: {}", said.all());
        }
        said
    }

    pub fn session(&self) -> &Session {
        self.session.as_ref().expect("the server was started")
    }

    pub async fn sql(&self, sql: &str) {
        self.session().run(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    pub async fn value(&self, sql: &str) -> String {
        self.session().value(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// Takes a snapshot and answers its manifest.
    pub fn backup(&self, args: &[&str]) -> serde_json::Value {
        let said = self.ok(&[&["--json", "backup"], args].concat());
        said.json()["snapshot"].clone()
    }

    /// Switches the segment and waits until all before it is archived.
    pub async fn archive(&self) {
        let name = self.session().switch_segment("test").await.unwrap();
        let began = lastgood::clock::monotonic();
        loop {
            let state = self.session().archiver().await.unwrap();
            if state.last_archived.as_ref().is_some_and(|archived| archived.as_str() >= name.as_str() && archived.len() == 24) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{name} is not archived: {state:?}\n{}", self.server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Restores with `args` into a new directory, and starts a server there that has reached its target.
    pub async fn restore(&self, name: &str, args: &[&str]) -> (Scratch, Session) {
        let into = self.path(name);
        self.ok(&[&["restore", "--into", into.to_str().unwrap()], args].concat());
        self.recovered(name).await
    }

    /// The plan of a guarded command, and its code.
    pub fn planned(&self, args: &[&str]) -> (serde_json::Value, String) {
        let said = self.ok(&[&["--json"], args, &["--dry-run"]].concat());
        let plan = said.json();
        let code = plan["code"].as_str().unwrap_or_else(|| panic!("no code: {said:?}")).to_string();
        (plan["plan"].clone(), code)
    }

    /// Runs a guarded command with the code of its plan, as an automation does.
    pub fn confirmed(&self, args: &[&str]) -> Said {
        let (_, code) = self.planned(args);
        self.ok(&[args, &["--confirm", &code]].concat())
    }

    /// Declares a restored directory of this world the successor.
    pub fn release(&self, name: &str) -> Said {
        self.confirmed(&["release", "--data-directory", self.path(name).to_str().unwrap()])
    }

    /// Starts the server in a restored directory, and waits until recovery is paused or over.
    pub async fn recovered(&self, name: &str) -> (Scratch, Session) {
        let mut server = self.restored(name);
        server.start().await.unwrap_or_else(|e| panic!("{e}"));
        let session = Session::open(&server.connection()).await.unwrap();
        session.run("SET search_path = public, pg_catalog").await.unwrap();
        let began = lastgood::clock::monotonic();
        loop {
            let state =
                "SELECT CASE WHEN NOT pg_is_in_recovery() THEN 'over' WHEN pg_is_wal_replay_paused() THEN 'paused' ELSE 'on' END";
            if session.value(state).await.unwrap() != "on" {
                return (server, session);
            }
            assert!(began.elapsed() < PATIENCE, "recovery does not end:\n{}", server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A server on a directory of this world, not started.
    pub fn restored(&self, name: &str) -> Scratch {
        Scratch::new(&self.bin, &self.path(name), &self.path(&format!("{name}.sockets")), self.user).unwrap()
    }

    /// Files of the repository below `prefix`, as keys.
    pub fn objects(&self, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        collect(&self.repository(), &self.repository().join(prefix), &mut found);
        found.sort();
        found
    }
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            collect(root, &entry.path(), found);
        } else {
            found.push(entry.path().strip_prefix(root).unwrap().display().to_string());
        }
    }
}

pub fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Changes bytes of a file, to see who notices.
pub fn tamper(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}
