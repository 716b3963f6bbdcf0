//! Whom the program believes: PostgreSQL over TLS with a private authority, and stores without TLS.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lastgood::postgres::session::{Connection, Session, Tls};
use lastgood::{clock, config};

use crate::support::s3::{self, S3Server};
use crate::support::world::{self, PATIENCE, Said, World};

fn openssl(dir: &Path, arguments: &str) {
    let done = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Two authorities, and a certificate of the first for `localhost`.
fn make_certificates(dir: &Path) {
    std::fs::write(dir.join("extensions"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for name in ["ca", "other"] {
        openssl(dir, &format!("req -x509 {key} -keyout {name}.key -out {name}.pem -days 2 -subj /CN=authority-{name}"));
    }
    openssl(dir, &format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
    openssl(dir, "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.pem");
}

/// A server on the network, ended with the test.
struct Networked {
    world: World,
    server: Child,
    port: u16,
}

impl Networked {
    async fn start(ssl: bool) -> Networked {
        let world = World::bare(15, &[], "", None).await;
        let certificates = tempfile::tempdir().unwrap();
        make_certificates(certificates.path());
        for name in ["ca.pem", "other.pem", "server.pem", "server.key"] {
            world.write_private(name, &std::fs::read_to_string(certificates.path().join(name)).unwrap());
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let setting = |name: &str, file: &str| format!("{name}={}", world.path(file).display());
        let mut command = world.server.command("postgres");
        command.arg("-D").arg(world.server.data()).arg("-k").arg(world.server.sockets());
        command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-c", if ssl { "ssl=on" } else { "ssl=off" }]);
        command.args(["-c", &setting("ssl_cert_file", "server.pem"), "-c", &setting("ssl_key_file", "server.key")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::QUIT))?));
        }
        let server = command.spawn().unwrap();
        let networked = Networked { world, server, port };
        let began = clock::monotonic();
        while networked.session("127.0.0.1", Some(Tls::Disable)).await.is_err() {
            assert!(began.elapsed() < PATIENCE, "the server does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        networked
    }

    async fn session(&self, host: &str, tls: Option<Tls>) -> Result<Session, String> {
        let connection = Connection { host: Some(host.into()), port: Some(self.port), tls, ..Connection::default() };
        Session::open(&connection).await.map_err(|e| e.to_string())
    }

    fn check(&self, host: &str, lines: &str) -> Said {
        let text = format!(
            "[repository]\nurl = \"{}\"\n[cluster]\nname = \"shop\"\n[postgres]\nhost = \"{host}\"\nport = {}\n{lines}\n",
            self.world.repository().display(),
            self.port
        );
        std::fs::write(self.world.config(), text).unwrap();
        self.world.run(&["--json", "check", "--no-switch"])
    }

    fn pem(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }
}

impl Drop for Networked {
    fn drop(&mut self) {
        if let (Ok(None), Some(pid)) = (self.server.try_wait(), rustix::process::Pid::from_raw(self.server.id() as i32)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            let _ = self.server.wait();
        }
    }
}

/// The finding about a subject: its level and words.
fn finding(said: &Said, subject: &str) -> Option<(String, String)> {
    let lines = said.out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let found = lines.map(|line| line["finding"].clone()).find(|finding| finding["subject"] == subject)?;
    Some((found["level"].as_str().unwrap().into(), found["what"].as_str().unwrap().into()))
}

#[track_caller]
fn told(said: &Said, subject: &str, level: &str, words: &str) {
    let found = finding(said, subject);
    assert!(found.as_ref().is_some_and(|(l, what)| l == level && what.contains(words)), "{subject} {level} {words}: {said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_the_right_certificate_is_believed_and_no_other() {
    let net = Networked::start(true).await;
    let ca = |name: &str| format!("ca_file = \"{}\"", net.pem(name).display());
    for mode in ["", "sslmode = \"prefer\"", "sslmode = \"require\"", "sslmode = \"verify-full\""] {
        let with = |authority: &str| format!("{mode}\n{authority}");
        told(&net.check("localhost", &with(&ca("ca.pem"))), "connection", "ok", "encrypted (TLSv1.3");
        for (host, authority, words) in [
            ("localhost", ca("other.pem"), "UnknownIssuer"),
            ("localhost", String::new(), "set [postgres] ca_file"),
            ("127.0.0.1", ca("ca.pem"), "set [postgres] host to a name"),
        ] {
            let said = net.check(host, &with(&authority));
            told(&said, "server", "failure", words);
            assert!(said.code == 9 && finding(&said, "connection").is_none(), "{said:?}");
        }
    }
    told(&net.check("localhost", "sslmode = \"disable\""), "connection", "ok", "does not leave this host");
    let socket = net.world.server.sockets().display().to_string();
    told(&net.check(&socket, ""), "connection", "ok", "socket");
    let said = net.check("localhost", "sslmode = \"allow\"");
    assert!(said.all().contains("use disable, prefer or require"), "{said:?}");
}

/// Reaches this host on Linux, and does not look like it: stands for another host.
const ELSEWHERE: &str = "0.0.0.0";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_unless_it_is_on_this_host_or_meant_so() {
    let net = Networked::start(false).await;
    told(&net.check("localhost", ""), "connection", "ok", "does not leave this host");
    told(&net.check("localhost", "sslmode = \"require\""), "server", "failure", "server does not support TLS; set ssl = on");
    told(&net.check(ELSEWHERE, ""), "server", "failure", "server does not support TLS; set ssl = on");
    for mode in ["prefer", "disable"] {
        let said = net.check(ELSEWHERE, &format!("sslmode = \"{mode}\""));
        told(&said, "connection", "failure", "INSECURE");
        assert_eq!(said.code, 9);
    }
}

/// A store on the network without TLS needs a setting that says so, and stays red.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_tls_is_refused_unless_it_is_on_this_host_or_meant_so() {
    let store = S3Server::start().await;
    let url = format!("s3://{}/pg", s3::BUCKET);
    let world = World::with(15, &[], "", Some((&url, store.config()))).await;
    let base = std::fs::read_to_string(world.config()).unwrap();
    let configure = |host: &str, insecure: bool| {
        let line = if insecure { "[repository.s3]\ninsecure = true\n" } else { "[repository.s3]\n" };
        let text = base.replace("[repository.s3]\n", line).replace("http://127.0.0.1:", &format!("http://{host}:"));
        std::fs::write(world.config(), text).unwrap();
    };
    let check = || world.run(&["--json", "check", "--no-switch"]);
    told(&check(), "store", "ok", "does not leave this host");
    configure(ELSEWHERE, false);
    for args in [["list"], ["check"], ["backup"], ["verify"]] {
        world.refused(&args, 3, &["the endpoint 0.0.0.0 is reached without TLS", "insecure = true"]);
    }
    configure(ELSEWHERE, true);
    world.ok(&["list"]);
    world.backup(&[]);
    let said = check();
    told(&said, "store", "failure", "INSECURE");
    assert_eq!(said.code, 9);
    let plain = world.run(&["check", "--no-switch"]);
    assert!(plain.out.contains("FAILED  store") && !plain.out.contains('\x1b'), "no colours in a file: {plain:?}");
    // `script` gives it a terminal.
    let words = format!("{} --config {} check --no-switch", world.program().display(), world.config().display());
    let on_terminal = |no_colour: &str| {
        let mut command = Command::new("script");
        command.args(["-qec", &words, "/dev/null"]).env("NO_COLOR", no_colour).stdin(Stdio::null());
        if let Some(user) = world.user() {
            command.uid(user.uid).gid(user.gid);
        }
        world::said(&mut command).out
    };
    let coloured = on_terminal("");
    assert!(coloured.contains("\x1b[31mFAILED \x1b[0m store"), "{coloured}");
    assert!(!on_terminal("1").contains('\x1b'));
    configure("127.0.0.1", true);
    told(&check(), "store", "failure", "does not need it");
}

#[test]
fn hosts_of_endpoints_are_told_apart() {
    let plain = |endpoint: &str| {
        let s3 = config::S3 { endpoint: Some(endpoint.into()), ..config::S3::default() };
        s3.plain_host().map(str::to_string)
    };
    for endpoint in
        ["https://s3.example.com", "http://127.0.0.1:9000", "http://127.9.9.9/x", "http://localhost:1", "http://[::1]:9000"]
    {
        assert_eq!(plain(endpoint), None, "{endpoint}");
    }
    for (endpoint, host) in [
        ("http://s3.example.com:9000", "s3.example.com"),
        ("HTTP://10.0.0.1", "10.0.0.1"),
        ("http://[fd00::1]:9000/x", "fd00::1"),
        ("http://localhost.example.com", "localhost.example.com"),
        ("http://127.0.0.1@evil.example.com/", "evil.example.com"),
        ("http://evil.example.com?@127.0.0.1", "evil.example.com"),
    ] {
        assert_eq!(plain(endpoint).as_deref(), Some(host), "{endpoint}");
    }
}
