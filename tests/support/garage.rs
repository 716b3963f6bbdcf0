//! A real Garage server as a process, one for each test that asks: one node, a bucket and a key of its own.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use lastgood::clock;
use lastgood::config;
use lastgood::storage::s3::S3Storage;
use lastgood::storage::{ObjectKey, Storage};

use super::s3::write_credentials;

pub const BUCKET: &str = "backups";
pub const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
const STARTS: usize = 5;
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Killed when dropped, and by the kernel when the test's thread dies.
pub struct Garage {
    server: Child,
    home: tempfile::TempDir,
    port: u16,
}

impl Garage {
    /// Starts a server and waits until it answers for its bucket.
    pub async fn start() -> Garage {
        Self::start_below(&std::env::temp_dir()).await
    }

    /// The same with its data in a directory below `parent`.
    pub async fn start_below(parent: &Path) -> Garage {
        // Another test may take a free port between our finding and Garage's binding it; then Garage ends at once.
        for _ in 0..STARTS {
            if let Some(garage) = Self::start_once(parent).await {
                return garage;
            }
        }
        panic!("Garage did not start {STARTS} times; is it installed? tests/tools/install test");
    }

    async fn start_once(parent: &Path) -> Option<Garage> {
        let home = tempfile::tempdir_in(parent).unwrap();
        let [port, rpc_port] = free_ports();
        let secret_key = clock::random_hex(32);
        std::fs::write(home.path().join("garage.toml"), configuration(home.path(), port, rpc_port)).unwrap();
        write_credentials(&home.path().join("credentials"), ACCESS_KEY, &secret_key);
        let log = File::create(home.path().join("log")).unwrap();
        let mut command = Command::new(program());
        command
            .arg("-c")
            .arg(home.path().join("garage.toml"))
            .args(["server", "--single-node", "--default-bucket", "--default-access-key"])
            .env("GARAGE_DEFAULT_BUCKET", BUCKET)
            .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY)
            .env("GARAGE_DEFAULT_SECRET_KEY", &secret_key)
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?));
        }
        let server = command.spawn().unwrap_or_else(|error| panic!("{}: {error}; tests/tools/install test", program().display()));
        let mut garage = Garage { server, home, port };
        garage.is_ready().await.then_some(garage)
    }

    async fn is_ready(&mut self) -> bool {
        let store = S3Storage::connect(BUCKET, "", &self.config()).await.unwrap();
        let began = clock::monotonic();
        let mut last = None;
        while began.elapsed() < START_DEADLINE {
            if self.server.try_wait().unwrap().is_some() {
                return false;
            }
            match store.stat(&ObjectKey::new("nothing")).await {
                Ok(_) => return true,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        panic!("Garage is not ready after {START_DEADLINE:?}: {last:?}\n{log}");
    }

    /// Garage 2.5 ignores `If-None-Match` of a PUT.
    pub fn config(&self) -> config::S3 {
        config::S3 {
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            region: Some("garage".into()),
            path_style: true,
            credentials_file: Some(self.home.path().join("credentials")),
            conditional_create: false,
            ..config::S3::default()
        }
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The server, whether it is installed or not.
pub fn program() -> PathBuf {
    tools().join("garage-2.5.0/bin/garage")
}

/// Where `tests/tools/install` puts what is no Debian package.
pub fn tools() -> PathBuf {
    std::env::var_os("LASTGOOD_TOOLS").map(PathBuf::from).unwrap_or_else(|| {
        if rustix::process::geteuid().is_root() {
            "/var/cache/lastgood-tools".into()
        } else {
            Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/lastgood-tools")
        }
    })
}

fn free_ports<const N: usize>() -> [u16; N] {
    // All at the same time, so that they differ.
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// What is stored is compressed already: Garage need not try again.
fn configuration(home: &Path, port: u16, rpc_port: u16) -> String {
    format!(
        "metadata_dir = \"{home}/meta\"\ndata_dir = \"{home}/data\"\ndb_engine = \"lmdb\"\nreplication_factor = 1\n\
         metadata_fsync = false\ndata_fsync = false\ncompression_level = \"none\"\n\
         rpc_bind_addr = \"127.0.0.1:{rpc_port}\"\nrpc_public_addr = \"127.0.0.1:{rpc_port}\"\nrpc_secret = \"{secret}\"\n\
         [s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"127.0.0.1:{port}\"\nroot_domain = \".s3.garage\"\n",
        home = home.display(),
        secret = clock::random_hex(32),
    )
}
