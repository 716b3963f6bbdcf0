//! Credentials come from where the AWS chain finds them, each source in turn, and are fetched again in the middle of long
//! work. The program runs as a child with nothing but the environment of the test, against a store that lets in one key.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use jiff::Timestamp;
use lastgood::clock;
use lastgood::postgres::lsn::SystemId;
use lastgood::repo::record::{ClusterRecord, History};
use lastgood::repo::repository::Repository;
use lastgood::storage::s3::S3Storage;

use crate::support::loopback::{Asked, Loopback};
use crate::support::s3::{self, Key, S3Server};
use crate::support::world::{Said, said};

const SECRET: &str = "the-secret-of-a-source";
const TOKEN: &str = "the-token-of-a-source";

/// A store with a repository in which one cluster is registered, and a program that knows no credentials.
struct Stage {
    server: S3Server,
    dir: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Stage {
        let server = S3Server::start().await;
        let store = S3Storage::connect(s3::BUCKET, "pg/", &server.config()).await.unwrap();
        let (repository, _) = Repository::open_or_create(Arc::new(store), &Default::default(), None).await.unwrap();
        let (name, written) = ("shop".to_string(), clock::now());
        let history = History {
            system_identifier: SystemId(7),
            major: 15,
            catalog_version: 202209061,
            control_version: 1300,
            block_bytes: 8192,
            wal_segment_bytes: 16 << 20,
            data_checksums: true,
            registered: clock::now(),
        };
        let record = ClusterRecord {
            format: 1,
            number: 1,
            name,
            label: None,
            histories: vec![history],
            abandoned: Vec::new(),
            successors: Vec::new(),
            written,
            behind: None,
        };
        assert!(repository.cluster("shop").put_record(&record).await.unwrap());
        Stage { server, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Only `access_key` is let in from now on.
    fn admit_only(&self, access_key: &'static str, token: Option<&str>) {
        let key = Key { secret: SECRET.into(), token: token.map(str::to_string), expires: None };
        self.server.admit(move |asked| (asked == access_key).then(|| key.clone()));
    }

    /// Lists the snapshots of the cluster, with this environment and `lines` below `[repository.s3]`.
    async fn list(&self, environment: &[(&str, &str)], lines: &str) -> Said {
        let endpoint = self.server.config().endpoint.unwrap();
        let repository = format!("[repository]\nurl = \"s3://{}/pg\"\n[cluster]\nname = \"shop\"\n", s3::BUCKET);
        let s3 = format!("[repository.s3]\nendpoint = \"{endpoint}\"\npath_style = true\n{lines}\n");
        let config = self.write("lastgood.toml", &format!("{repository}{s3}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_lastgood"));
        command.args(["--json", "list", "--config"]).arg(config).env_clear().env("PATH", "/usr/bin:/bin");
        // Nobody's own ~/.aws, and nobody's metadata service unless the test says so.
        command.env("HOME", self.dir.path()).env("AWS_EC2_METADATA_DISABLED", "true").envs(environment.iter().copied());
        // The store is served by this runtime.
        tokio::task::spawn_blocking(move || said(&mut command)).await.unwrap()
    }

    /// The list worked, and all of its requests were signed with `access_key`.
    fn worked(&self, said: &Said, access_key: &str) {
        assert_eq!(said.code, 0, "{said:?}");
        assert_eq!(said.json()["cluster"], "shop");
        let seen = self.server.seen();
        assert!(!seen.is_empty() && seen.iter().all(|seen| seen == access_key), "{seen:?}");
        assert!(!said.all().contains(SECRET) && !said.all().contains(TOKEN), "{said:?}");
    }
}

/// What metadata services and agents answer.
fn json_credentials(access_key: &str) -> String {
    let expiration = clock::now() + jiff::SignedDuration::from_hours(1);
    serde_json::json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": clock::now().to_string(),
        "AccessKeyId": access_key, "SecretAccessKey": SECRET, "Token": TOKEN, "Expiration": whole_seconds(expiration),
    })
    .to_string()
}

fn whole_seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap().to_string()
}

/// Without any source the message says what to do.
#[tokio::test]
async fn no_source_at_all_is_told_with_the_way_out() {
    let stage = Stage::new().await;
    let said = stage.list(&[], "").await;
    assert_ne!(said.code, 0);
    assert!(said.err.contains("none were found; set credentials_file or profile"), "{said:?}");
    assert!(said.err.contains("AWS_ACCESS_KEY_ID"), "{said:?}");
}

/// The chain's first source: variables of the environment, with and without a session token.
#[tokio::test]
async fn the_environment_is_asked() {
    let stage = Stage::new().await;
    let keys = [("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT"), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    stage.admit_only("AKIAENVIRONMENT", None);
    stage.worked(&stage.list(&keys, "").await, "AKIAENVIRONMENT");

    stage.admit_only("AKIAENVIRONMENT", Some(TOKEN));
    let said = stage.list(&keys, "").await;
    assert!(said.code != 0 && said.err.contains("InvalidToken"), "the store looks at the token: {said:?}");
    let with_token = [keys[0], keys[1], ("AWS_SESSION_TOKEN", TOKEN)];
    stage.worked(&stage.list(&with_token, "").await, "AKIAENVIRONMENT");
}

/// With an endpoint and keys, nothing is asked of a metadata service: outside of AWS none answers, and waiting costs seconds.
#[tokio::test]
async fn no_metadata_service_is_asked_for_what_is_known() {
    let stage = Stage::new().await;
    stage.admit_only("AKIAENVIRONMENT", None);
    let metadata = Loopback::start(|_: &Asked| (404, String::new())).await;
    let environment = [
        ("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url.as_str()),
        ("AWS_EC2_METADATA_DISABLED", "false"),
    ];
    stage.worked(&stage.list(&environment, "").await, "AKIAENVIRONMENT");
    assert!(metadata.asked().is_empty(), "{:?}", metadata.asked());
}

/// A `profile` or a `credentials_file` of the configuration is the only source: the environment is not asked.
#[tokio::test]
async fn what_the_configuration_names_goes_before_the_environment() {
    let stage = Stage::new().await;
    let keys = format!("aws_access_key_id = AKIAPROFILE\naws_secret_access_key = {SECRET}\n");
    let aws_config = stage.write("aws-config", &format!("[profile nightly]\n{keys}"));
    let credentials = stage.write("credentials", &format!("[default]\n{keys}"));
    let environment = [
        ("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_CONFIG_FILE", aws_config.to_str().unwrap()),
    ];
    stage.admit_only("AKIAPROFILE", None);
    stage.worked(&stage.list(&environment, "profile = \"nightly\"").await, "AKIAPROFILE");
    let line = format!("credentials_file = \"{}\"", credentials.display());
    stage.worked(&stage.list(&environment, &line).await, "AKIAPROFILE");

    // Without them the environment goes first, as in every program that uses the chain.
    let said = stage.list(&environment, "").await;
    assert!(said.code != 0 && said.err.contains("InvalidAccessKeyId"), "{said:?}");
}

/// How long credentials of the script below live.
const LIFE_S: i64 = 6;

/// A `credential_process`: counts its calls in `issued`, and gives each caller a key of its own that soon expires.
fn write_process(dir: &Path) -> PathBuf {
    let script = format!(
        r#"#!/bin/sh
set -e
cd '{}'
echo call >> issued
n=$(wc -l < issued)
expires=$(($(date +%s) + {LIFE_S}))
echo $expires > AKIAPROCESS$n
printf '{{"Version": 1, "AccessKeyId": "AKIAPROCESS%d", "SecretAccessKey": "{SECRET}", ' $n
printf '"SessionToken": "{TOKEN}", "Expiration": "%s"}}' $(date -u -d @$expires +%Y-%m-%dT%H:%M:%SZ)
"#,
        dir.display()
    );
    let path = dir.join("process");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Long work outlives its credentials: they are asked for again, and the work goes on. Here the store keeps two calls
/// waiting until the key that signed them has expired, and then sends them away; a call with an expired key is refused for
/// good, and would end the work.
#[tokio::test]
async fn credentials_of_a_process_are_asked_again_in_the_middle_of_the_work() {
    let stage = Stage::new().await;
    let process = write_process(stage.dir.path());
    let aws_config = stage.write("aws-config", &format!("[profile nightly]\ncredential_process = {}\n", process.display()));
    let issued = stage.dir.path().to_path_buf();
    stage.server.admit(move |access_key| {
        let expires = std::fs::read_to_string(issued.join(access_key)).ok()?.trim().parse().unwrap();
        let expires = Timestamp::from_second(expires).unwrap();
        Some(Key { secret: SECRET.into(), token: Some(TOKEN.into()), expires: Some(expires) })
    });
    stage.server.outwait_keys(2);

    let environment = [("AWS_CONFIG_FILE", aws_config.to_str().unwrap()), ("AWS_PROFILE", "nightly")];
    let said = stage.list(&environment, "").await;
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.json()["cluster"], "shop");
    assert_eq!(stage.server.gets_to_outwait(), 0);
    let mut keys = stage.server.seen();
    assert!(keys.is_sorted_by_key(|key| key.len()) && keys[0] == "AKIAPROCESS1", "{keys:?}");
    keys.dedup();
    let calls = std::fs::read_to_string(stage.path("issued")).unwrap().lines().count();
    assert!(keys.len() >= 3 && calls >= 3, "{calls} calls, {keys:?}");
}

/// ECS and EKS: an agent on this host, which wants a token, given as it is or in a file.
#[tokio::test]
async fn a_containers_agent_is_asked() {
    let stage = Stage::new().await;
    let agent = Loopback::start(|asked: &Asked| match asked.header("authorization") {
        Some("agent-token") if asked.line == "GET /v1/credentials" => (200, json_credentials("AKIACONTAINER")),
        _ => (403, "{}".into()),
    })
    .await;
    stage.admit_only("AKIACONTAINER", Some(TOKEN));
    let uri = format!("{}/v1/credentials", agent.url);
    let uri = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str());
    let file = stage.write("agent-token", "agent-token");
    let tokens = [
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "agent-token"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_str().unwrap()),
    ];
    for token in tokens {
        stage.worked(&stage.list(&[uri, token], "").await, "AKIACONTAINER");
    }
    let said = stage.list(&[uri, ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "wrong")], "").await;
    assert_ne!(said.code, 0, "{said:?}");
}

/// EC2: the role of this host, from a metadata service that knows version 2 only. No request comes without the token of
/// version 2, which could be forged from outside.
#[tokio::test]
async fn the_role_of_the_host_is_asked_with_version_2_only() {
    const ROLES: &str = "/latest/meta-data/iam/security-credentials";
    let stage = Stage::new().await;
    let metadata = Loopback::start(|asked: &Asked| {
        if asked.line == "PUT /latest/api/token" && asked.header("x-aws-ec2-metadata-token-ttl-seconds").is_some() {
            return (200, "session".into());
        }
        if asked.header("x-aws-ec2-metadata-token") != Some("session") {
            return (401, String::new());
        }
        match asked.line.strip_prefix("GET ").and_then(|path| path.strip_prefix(ROLES)) {
            Some("/") => (200, "backup-role".into()),
            Some("/backup-role") => (200, json_credentials("AKIAMETADATA")),
            _ => (404, String::new()),
        }
    })
    .await;
    stage.admit_only("AKIAMETADATA", Some(TOKEN));
    let endpoint = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url.as_str());
    let said = stage.list(&[endpoint, ("AWS_EC2_METADATA_DISABLED", "false")], "").await;
    stage.worked(&said, "AKIAMETADATA");
    let asked = metadata.asked();
    let (gets, others): (Vec<_>, Vec<_>) = asked.iter().partition(|asked| asked.line.starts_with("GET "));
    assert!(!others.is_empty() && others.iter().all(|asked| asked.line == "PUT /latest/api/token"), "{others:?}");
    assert!(gets.iter().all(|asked| asked.line.contains(ROLES)), "the region is known: {gets:?}");
    assert!(gets.iter().all(|asked| asked.header("x-aws-ec2-metadata-token") == Some("session")), "{gets:?}");
}

/// Kubernetes: the identity of the pod, a token in a file, is exchanged for credentials of a role.
#[tokio::test]
async fn a_web_identity_is_exchanged_for_a_role() {
    let stage = Stage::new().await;
    let sts = Loopback::start(|asked: &Asked| {
        let wanted = [
            "Action=AssumeRoleWithWebIdentity",
            "RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fbackup",
            "WebIdentityToken=identity-of-the-pod",
            "RoleSessionName=nightly",
        ];
        if wanted.iter().all(|field| asked.body.split('&').any(|found| found == *field)) {
            return (200, assumed("AKIAWEB"));
        }
        (400, "<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>no</Message></Error></ErrorResponse>".into())
    })
    .await;
    stage.admit_only("AKIAWEB", Some(TOKEN));
    let token = stage.write("token", "identity-of-the-pod");
    for variable in ["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"] {
        let environment = [
            (variable, sts.url.as_str()),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/backup"),
            ("AWS_ROLE_SESSION_NAME", "nightly"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ];
        stage.worked(&stage.list(&environment, "").await, "AKIAWEB");
        assert!(sts.asked().iter().all(|asked| asked.header("authorization").is_none()), "the token speaks for itself");
        stage.write("token", "somebody-else");
        let said = stage.list(&environment, "").await;
        assert!(said.code != 0 && said.err.contains("InvalidIdentityToken"), "{said:?}");
        stage.write("token", "identity-of-the-pod");
    }
}

fn assumed(access_key: &str) -> String {
    let expiration = whole_seconds(clock::now() + jiff::SignedDuration::from_hours(1));
    format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{access_key}</AccessKeyId>\
         <SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>{TOKEN}</SessionToken>\
         <Expiration>{expiration}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>"
    )
}
