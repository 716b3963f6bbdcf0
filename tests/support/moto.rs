//! A moto server as a process: an S3 in memory that answers HEAD with encryption and storage class, as AWS does. It does
//! not check signatures (its own check does not know all that the SDK for Rust signs); who a request says it comes from is
//! believed, and held to the policies of that user when the test says [`Moto::enforce`].

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use lastgood::{clock, config};

use super::garage;
use super::s3::write_credentials;
use super::world::PATIENCE;

pub const BUCKET: &str = "backups";

/// `moto_server` without the check of signatures, and one request after the other: its own check of `If-None-Match` is not atomic. Its
/// answer about versioning has another root element than S3's, which the SDK for Rust does not take.
const SERVER: &str = "import sys, moto.iam.access_control as control, moto.server\n\
    import threading\n\
    lock, run = threading.Lock(), moto.server.run_simple\n\
    def one_by_one(app):\n\
    \x20   def call(environment, start):\n\
    \x20       with lock: return app(environment, start)\n\
    \x20   return call\n\
    moto.server.run_simple = lambda host, port, app, **more: run(host, port, one_by_one(app), **more)\n\
    control.IAMRequestBase.check_signature = lambda self: None\n\
    import moto.s3.responses as s3\n\
    def versioning(self):\n\
    \x20   status = self.backend.get_bucket_versioning(self.bucket_name)\n\
    \x20   inside = '<Status>' + status + '</Status>' if status else ''\n\
    \x20   return 200, {}, '<VersioningConfiguration>' + inside + '</VersioningConfiguration>'\n\
    s3.S3Response.get_bucket_versioning = versioning\n\
    moto.server.main(sys.argv[1:])";

/// What the bucket is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// What is deleted is gone.
    Nothing,
    /// Older versions.
    Versions,
    /// Older versions, and locks on them.
    Locks,
}

/// Killed when dropped, and by the kernel when the test's thread dies.
pub struct Moto {
    server: Child,
    home: tempfile::TempDir,
    address: String,
}

impl Moto {
    /// Starts a server, waits until it listens, and makes the bucket.
    pub fn start() -> Moto {
        Moto::keeping(Kept::Nothing)
    }

    /// The same with a bucket that keeps what is deleted. Where it has locks, the server's clock can be moved.
    pub fn keeping(kept: Kept) -> Moto {
        let home = tempfile::tempdir().unwrap();
        write_credentials(&home.path().join("credentials"), "AKIATEST", "secret");
        let log = File::create(home.path().join("log")).unwrap();
        let program = garage::tools().join("moto-5.2.5/bin/python");
        let mut command = Command::new(&program);
        command.args(["-c", SERVER, "-H", "127.0.0.1", "-p", "0"]).stdout(log.try_clone().unwrap()).stderr(log);
        if kept == Kept::Locks {
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/travel.c");
            let built = home.path().join("travel.so");
            let done = Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&built).arg(source).status().unwrap();
            assert!(done.success());
            command.env("LD_PRELOAD", built).env("LASTGOOD_TEST_CLOCK_FILE", home.path().join("clock"));
        }
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?));
        }
        let server = command.spawn().unwrap_or_else(|error| panic!("{}: {error}; tests/tools/install test", program.display()));
        let mut moto = Moto { server, home, address: String::new() };
        moto.address = moto.wait_for_address();
        let locks = if kept == Kept::Locks { "x-amz-bucket-object-lock-enabled: true\r\n" } else { "" };
        assert!(moto.send("PUT", "", locks, "").starts_with("HTTP/1.1 200"));
        if kept == Kept::Versions {
            let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
            assert!(moto.send("PUT", "?versioning", "", on).starts_with("HTTP/1.1 200"));
        }
        moto
    }

    /// From now on it is so many days later, for this server alone.
    pub fn travel(&self, days: u64) {
        // Renamed over, so that nobody reads half of it.
        let (new, clock) = (self.home.path().join("clock-new"), self.home.path().join("clock"));
        std::fs::write(&new, (days * 86_400).to_string()).unwrap();
        std::fs::rename(new, clock).unwrap();
    }

    /// How many requests there were so far whose line in the server's log has this in it.
    pub fn asked(&self, what: &str) -> usize {
        std::fs::read_to_string(self.home.path().join("log")).unwrap().lines().filter(|line| line.contains(what)).count()
    }

    /// How many versions and delete markers there are below a prefix.
    pub fn versions(&self, prefix: &str) -> (usize, usize) {
        let answer = self.ask("GET", &format!("?versions&prefix={prefix}"));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("<IsTruncated>false"), "{answer}");
        (answer.matches("<Version>").count(), answer.matches("<DeleteMarker>").count())
    }

    /// The kernel chooses the port; the server says which, once it listens.
    fn wait_for_address(&mut self) -> String {
        let began = clock::monotonic();
        loop {
            let log = std::fs::read_to_string(self.home.path().join("log")).unwrap();
            let told = log.split_once("Running on http://").and_then(|(_, rest)| rest.split_once('\n'));
            if let Some((address, _)) = told {
                return address.trim().into();
            }
            assert!(self.server.try_wait().unwrap().is_none() && began.elapsed() < PATIENCE, "moto does not start: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a request without a body about a key of the bucket (or `?` and what else), without the SDK, and answers all that comes back.
    pub fn ask(&self, method: &str, key: &str) -> String {
        self.send(method, key, "", "")
    }

    /// The same with further headers, each with its end of line, and a body.
    pub fn send(&self, method: &str, key: &str, headers: &str, body: &str) -> String {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let path = format!("/{BUCKET}/{key}");
        let head = format!("{method} {} HTTP/1.1\r\nHost: {}\r\n", path.trim_end_matches('/'), self.address);
        // Not the anonymous: moto believes whoever says who he is.
        let head = format!("{head}Authorization: AWS4-HMAC-SHA256 Credential=AKIATEST/20300101/us-east-1/s3/aws4_request\r\n");
        let head = format!("{head}{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        socket.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Sends a form to moto itself or, as an administrator, to its IAM.
    fn post(&self, path: &str, body: &str) -> String {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n", self.address, body.len());
        let head = format!("{head}Authorization: AWS4-HMAC-SHA256 Credential=AKIATEST/20300101/us-east-1/iam/aws4_request\r\n");
        let kind = if path == "/" { "application/x-www-form-urlencoded" } else { "text/plain" };
        let head = format!("{head}Content-Type: {kind}\r\nConnection: close\r\n\r\n");
        socket.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path} {body}: {answer}");
        answer
    }

    /// From now on a request may do what the policies of its access key's user allow.
    pub fn enforce(&self, on: bool) {
        self.post("/moto-api/reset-auth", if on { "0" } else { "inf" });
    }

    /// Makes a user without rights; answers the access key and the secret.
    pub fn user(&self, name: &str) -> (String, String) {
        self.post("/", &format!("Action=CreateUser&Version=2010-05-08&UserName={name}"));
        let answer = self.post("/", &format!("Action=CreateAccessKey&Version=2010-05-08&UserName={name}"));
        let of = |tag: &str| {
            let (_, rest) = answer.split_once(&format!("<{tag}>")).unwrap();
            rest.split('<').next().unwrap().to_string()
        };
        (of("AccessKeyId"), of("SecretAccessKey"))
    }

    /// Replaces the policy of a user; nothing may be enforced meanwhile.
    pub fn set_policy(&self, user: &str, policy: &serde_json::Value) {
        let escape = |byte: u8| if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") };
        let document: String = policy.to_string().bytes().map(escape).collect();
        let rest = format!("UserName={user}&PolicyName=only&PolicyDocument={document}");
        self.post("/", &format!("Action=PutUserPolicy&Version=2010-05-08&{rest}"));
    }

    pub fn config(&self) -> config::S3 {
        config::S3 {
            endpoint: Some(format!("http://{}", self.address)),
            region: Some("us-east-1".into()),
            path_style: true,
            credentials_file: Some(self.home.path().join("credentials")),
            ..config::S3::default()
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
