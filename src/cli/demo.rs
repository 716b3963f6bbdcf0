//! `lastgood demo`: the whole job on a throw-away server, with real parts, cleaned up afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::context::Global;
use super::output;
use crate::clock;
use crate::owner::Ids;
use crate::postgres::scratch::{self, Scratch, Stop};
use crate::postgres::session::Session;

/// Show the main job on a throw-away server: snapshot, archive, disaster, found, restored, proved
///
/// Starts a PostgreSQL server of its own below a temporary directory (as root, it runs as the user postgres), drops a table on
/// purpose, and brings it back beside the living server. Touches nothing else and removes everything at the end.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lastgood demo\n  lastgood demo --bin /usr/lib/postgresql/17/bin")]
pub struct Args {
    /// Directory with PostgreSQL's programs [default: the newest below /usr/lib/postgresql]
    #[arg(long, value_name = "DIRECTORY")]
    bin: Option<PathBuf>,
    /// User who runs the server when this is root
    #[arg(long, default_value = "postgres")]
    user: String,
}

/// Removes the demo's directory at the end, whatever happens.
struct Workplace(PathBuf);

impl Drop for Workplace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub async fn run(_: &Global, args: Args) -> anyhow::Result<u8> {
    let bin = match args.bin {
        Some(bin) => bin,
        None => newest_programs()?,
    };
    let user = scratch::run_as(&args.user)?;
    let place = Workplace(std::env::temp_dir().join(format!("lastgood-demo-{}", clock::random_hex(4))));
    scratch::make_directory(&place.0, user)?;
    // The server's user must reach this program, which may lie in a home directory that it cannot enter.
    let program = place.0.join("lastgood");
    std::fs::copy(std::env::current_exe()?, &program).context("copy this program for the server's user")?;
    let demo = Demo { place: &place.0, bin, user, program };
    let began = clock::monotonic();
    demo.play().await?;
    output::line("");
    output::line(format!(
        "The whole demonstration took {}. Everything it made has been removed.",
        output::duration(began.elapsed().as_secs_f64())
    ));
    Ok(0)
}

fn newest_programs() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|v| v.file_name().to_str()?.parse::<u32>().ok()).max();
    newest
        .map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")))
        .context("no PostgreSQL below /usr/lib/postgresql; install one (apt-get install postgresql) or pass --bin")
}

struct Demo<'a> {
    place: &'a Path,
    bin: PathBuf,
    user: Option<Ids>,
    program: PathBuf,
}

impl Demo<'_> {
    async fn play(&self) -> anyhow::Result<()> {
        let mut server = self.server("original")?;
        title("1. A server, as it might run anywhere");
        server.initdb(&["--data-checksums"])?;
        server
            .configure("wal_level = replica\narchive_mode = on\narchive_timeout = '60s'\nfsync = off\nmax_wal_size = '256MB'")?;
        server.start().await?;
        let session = Session::open(&server.connection()).await?;
        // A backup session sees nothing but the catalogue; this one is a user's.
        session.run("SET search_path = public").await?;
        self.configure(&server)?;
        self.lastgood(&["init", "--apply"])?;
        session.run("CREATE TABLE orders (id bigserial PRIMARY KEY, at timestamptz DEFAULT now(), what text)").await?;
        session.run("INSERT INTO orders (what) SELECT 'order ' || i FROM generate_series(1, 100000) i; ANALYZE").await?;
        output::line("  a table `orders` with 100000 rows");

        title("2. The nightly snapshot");
        self.lastgood(&["backup"])?;

        title("3. A day of traffic, then somebody drops the table");
        let (xid, kept) = self.disaster(&session).await?;
        let table = session.value("SELECT coalesce(pg_catalog.to_regclass('orders')::text, 'gone')").await?;
        output::line(format!("  transaction {xid} was: DROP TABLE orders. On the living server it is now: {table}"));
        // As archive_timeout would a minute later.
        let last = session.switch_segment("after the disaster").await?;
        self.wait_until_archived(&session, &last).await?;

        title("4. Found: what happened, and what can be restored?");
        self.lastgood(&["timeline", "--since", "1h"])?;
        self.lastgood(&["list"])?;

        title("5. Restored beside it, to just before the table was dropped");
        let into = self.place.join("restored").display().to_string();
        let event = ["--before", "drop of orders", "--target-action", "promote"];
        self.lastgood(&[&["restore"], &event[..], &["--into", &into]].concat())?;
        let mut restored = self.server("restored")?;
        restored.start().await?;
        let recovered = Session::open(&restored.connection()).await?;
        while recovered.in_recovery().await? {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }

        title("6. Proved");
        recovered.run("SET search_path = public").await?;
        let rows = recovered.value("SELECT count(*) FROM orders").await?;
        let newest = recovered.value("SELECT what FROM orders ORDER BY id DESC LIMIT 1").await?;
        output::line(format!("  rows before the disaster: {kept}; rows restored: {rows}; the newest: {newest:?}"));
        output::line(format!("  archive_mode in the restored server: {}", recovered.value("SHOW archive_mode").await?));
        if rows != kept {
            bail!("the restored table has {rows} rows instead of {kept}");
        }
        self.lastgood(&["verify"])?;
        restored.stop(Stop::Fast);
        server.stop(Stop::Fast);
        Ok(())
    }

    fn server(&self, name: &str) -> anyhow::Result<Scratch> {
        Ok(Scratch::new(&self.bin, &self.place.join(name), &self.place.join(format!("{name}.sockets")), self.user)?)
    }

    fn configure(&self, server: &Scratch) -> anyhow::Result<()> {
        let text = format!(
            "[repository]\nurl = \"{0}/repository\"\n\n[cluster]\nname = \"demo\"\n\n[postgres]\nhost = \"{1}\"\nuser = \"postgres\"\n\n\
             [archive]\nspool = \"{0}/spool\"\n",
            self.place.display(),
            server.sockets().display()
        );
        let path = self.place.join("lastgood.toml");
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(())
    }

    /// Runs this program the way a person would, as the server's user.
    fn lastgood(&self, args: &[&str]) -> anyhow::Result<()> {
        use std::os::unix::process::CommandExt;
        let words: Vec<String> = args.iter().map(|word| word.to_string()).collect();
        output::line(format!("  $ lastgood {}", output::shell_words(&words)));
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.place.join("lastgood.toml")).args(args).current_dir(self.place);
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        let done = command.output().context("run this program again")?;
        for line in String::from_utf8_lossy(&done.stdout).lines() {
            output::line(format!("    {line}"));
        }
        if !done.status.success() {
            bail!("lastgood {} failed ({}):\n{}", args[0], done.status, String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    }

    /// Traffic and the drop; answers the transaction that dropped, and how many rows there were before it.
    async fn disaster(&self, session: &Session) -> anyhow::Result<(String, String)> {
        for day in 1..=20 {
            session
                .run(&format!("INSERT INTO orders (what) SELECT 'day order {day}.' || i FROM generate_series(1, 1000) i"))
                .await?;
        }
        let rows = session.value("SELECT count(*) FROM orders").await?;
        output::line(format!("  20 transactions later: {rows} rows"));
        session.run("BEGIN; DROP TABLE orders").await?;
        let xid = session.value("SELECT txid_current()").await?;
        session.run("COMMIT").await?;
        session.run("CREATE TABLE later (x int); INSERT INTO later VALUES (1)").await?;
        Ok((xid, rows))
    }

    async fn wait_until_archived(&self, session: &Session, segment: &str) -> anyhow::Result<()> {
        loop {
            let state = session.archiver().await?;
            if state.last_archived.is_some_and(|archived| archived.as_str() >= segment) {
                return Ok(());
            }
            if state.failed > 0 {
                bail!("archive_command failed for {}", state.last_failed.unwrap_or_default());
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

fn title(text: &str) {
    output::line("");
    output::line(text);
}
