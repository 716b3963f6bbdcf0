//! Certificates: an authority of one's own is trusted when it is configured, and only then.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use lastgood::config;
use lastgood::storage::s3::S3Storage;
use lastgood::storage::{Fault, Storage};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::key;
use crate::support::s3::{self, write_credentials};

fn openssl(dir: &Path, arguments: &str) {
    let done = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// `ca.pem`, and a certificate for 127.0.0.1 that it signed.
fn make_certificates(dir: &Path) {
    std::fs::write(dir.join("extensions"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(dir, &format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    openssl(dir, &format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
    openssl(dir, "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.pem");
}

/// Answers every request with a 404, one connection at a time, as long as the test lives.
fn serve(dir: &Path) -> u16 {
    let certificate = CertificateDer::from_pem_file(dir.join("server.pem")).unwrap();
    let secret = PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], secret).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(session, socket.unwrap());
            let _ = stream.read(&mut [0; 8192]);
            let body = "<Error><Code>NoSuchBucket</Code><Message>as told over TLS</Message></Error>";
            let head = format!("HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    port
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_when_configured() {
    let dir = tempfile::tempdir().unwrap();
    make_certificates(dir.path());
    let port = serve(dir.path());
    write_credentials(&dir.path().join("credentials"), "AKIATEST", "secret");
    let without = config::S3 {
        endpoint: Some(format!("https://127.0.0.1:{port}")),
        path_style: true,
        credentials_file: Some(dir.path().join("credentials")),
        ..config::S3::default()
    };
    let with = config::S3 { ca_file: Some(dir.path().join("ca.pem")), ..without.clone() };

    let error = S3Storage::connect(s3::BUCKET, "", &without).await.unwrap().stat(&key("a")).await.unwrap_err();
    assert_eq!(error.fault, Fault::Other, "not tried again: {error}");
    assert!(error.detail.contains("UnknownIssuer") && error.detail.contains("set ca_file"), "{error}");

    let store = S3Storage::connect(s3::BUCKET, "", &with).await.unwrap();
    let error = store.read(&key("a"), lastgood::storage::Part::Whole).await.unwrap_err();
    assert_eq!(error.fault, Fault::NoPlace, "{error}");
    assert!(error.detail.contains("as told over TLS"), "{error}");
}
