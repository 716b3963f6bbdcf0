//! The way to an S3 store, as a process of its own: it ends TLS, counts requests, and can lie 50 ms away.
//!
//! pgBackRest speaks S3 over TLS only, so everybody goes through the same TLS here. Two ports lead to the store: a near one, and a
//! far one where every byte arrives half a round trip later, in both directions, at any bandwidth; connecting takes a round trip
//! as well. Slow starts of TCP are not imitated, so a real line of that length is harder on all.
//!
//! It ends when its standard input does, so it cannot outlive who started it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::measure::quietly;
use crate::requests::Requests;

/// There and back.
pub const ROUND_TRIP: Duration = Duration::from_millis(50);
const BUFFER_BYTES: usize = 64 << 10;
/// Buffers on their way: 64 MiB in a direction, more than any tool sends in half a round trip here.
const IN_FLIGHT: usize = 1024;

/// Requests by kind, and bytes sent to the store and received from it, inside TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub requests: BTreeMap<String, u64>,
    pub bytes_up: u64,
    pub bytes_down: u64,
}

impl Counts {
    /// What came since `before`.
    pub fn since(&self, before: &Counts) -> Counts {
        let requests = self.requests.iter().map(|(kind, count)| (kind.clone(), count - before.requests.get(kind).unwrap_or(&0)));
        Counts {
            requests: requests.filter(|(_, count)| *count > 0).collect(),
            bytes_up: self.bytes_up - before.bytes_up,
            bytes_down: self.bytes_down - before.bytes_down,
        }
    }
}

/// The process, from outside.
pub struct Proxy {
    pub near_port: u16,
    pub far_port: u16,
    control_port: u16,
    _process: tokio::process::Child,
}

impl Proxy {
    /// Starts the process in front of a store on a port of this host; `certificates` has what [`make_certificates`] made.
    pub async fn start(program: &Path, store_port: u16, certificates: &Path) -> Result<Proxy> {
        let mut command = tokio::process::Command::new(program);
        command.arg("proxy").arg(store_port.to_string()).arg(certificates);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut process = command.spawn().context("start the proxy")?;
        let mut line = String::new();
        let output = process.stdout.take().context("the proxy has no output")?;
        let said = tokio::time::timeout(Duration::from_secs(10), BufReader::new(output).read_line(&mut line)).await;
        said.context("the proxy says nothing")??;
        let [near_port, far_port, control_port]: [u16; 3] = serde_json::from_str(&line).context("the proxy did not start")?;
        Ok(Proxy { near_port, far_port, control_port, _process: process })
    }

    /// Everything that passed until now.
    pub async fn counts(&self) -> Result<Counts> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.control_port)).await?;
        let mut text = Vec::new();
        socket.read_to_end(&mut text).await?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// `ca.pem`, and `server.pem` with `server.key` for this host.
pub fn make_certificates(dir: &Path) -> Result<()> {
    std::fs::write(dir.join("extensions"), "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")?;
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let at = |name: &str| dir.join(name).display().to_string();
    let run = |line: String| {
        let arguments = line.split(' ').map(str::to_string);
        quietly(std::process::Command::new("openssl").args(arguments), None).map(drop)
    };
    run(format!("req -x509 {key} -keyout {} -out {} -days 9 -subj /CN=bench", at("ca.key"), at("ca.pem")))?;
    run(format!("req {key} -keyout {} -out {} -subj /CN=localhost", at("server.key"), at("server.csr")))?;
    let signed = format!("-CA {} -CAkey {} -CAcreateserial -extfile {}", at("ca.pem"), at("ca.key"), at("extensions"));
    run(format!("x509 -req -in {} {signed} -days 9 -out {}", at("server.csr"), at("server.pem")))
}

/// The process, from inside.
pub fn serve(arguments: &[String]) -> Result<()> {
    let [store_port, certificates] = arguments else { anyhow::bail!("proxy PORT CERTIFICATES") };
    let (store_port, certificates) = (store_port.parse()?, PathBuf::from(certificates));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async move {
        let tls = acceptor(&certificates)?;
        let counts = Arc::new(Mutex::new(Counts::default()));
        let bind = || TcpListener::bind("127.0.0.1:0");
        let (near, far, control) = (bind().await?, bind().await?, bind().await?);
        let ports = [near.local_addr()?.port(), far.local_addr()?.port(), control.local_addr()?.port()];
        println!("{}", serde_json::to_string(&ports)?);
        tokio::spawn(accept_near(near, tls, store_port, counts.clone()));
        tokio::spawn(accept_far(far, ports[0]));
        tokio::spawn(tell(control, counts));
        let ended = tokio::task::spawn_blocking(|| std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new()));
        Ok(ended.await?.map(drop)?)
    })
}

fn acceptor(dir: &Path) -> Result<tokio_rustls::TlsAcceptor> {
    let certificate = CertificateDer::from_pem_file(dir.join("server.pem"))?;
    let secret = PrivateKeyDer::from_pem_file(dir.join("server.key"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], secret)?).into())
}

async fn accept_near(listener: TcpListener, tls: tokio_rustls::TlsAcceptor, store_port: u16, counts: Arc<Mutex<Counts>>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (tls, counts) = (tls.clone(), counts.clone());
        tokio::spawn(async move {
            socket.set_nodelay(true)?;
            let client = tls.accept(socket).await?;
            let store = TcpStream::connect(("127.0.0.1", store_port)).await?;
            store.set_nodelay(true)?;
            let (client_read, client_write) = tokio::io::split(client);
            let (store_read, store_write) = store.into_split();
            let up = {
                let (counts, mut requests) = (counts.clone(), Requests::default());
                pass(client_read, store_write, move |bytes| {
                    let mut counts = counts.lock().unwrap_or_else(|e| e.into_inner());
                    counts.bytes_up += bytes.len() as u64;
                    requests.see(bytes, |kind| *counts.requests.entry(kind.into()).or_default() += 1);
                })
            };
            let down = pass(store_read, client_write, move |bytes| {
                counts.lock().unwrap_or_else(|e| e.into_inner()).bytes_down += bytes.len() as u64;
            });
            tokio::try_join!(up, down)
        });
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut see: impl FnMut(&[u8]),
) -> std::io::Result<()> {
    let mut buffer = vec![0u8; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        see(&buffer[..count]);
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
    }
}

async fn accept_far(listener: TcpListener, near_port: u16) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(async move {
            client.set_nodelay(true)?;
            // The handshake of TCP: nothing that the client says now arrives before a round trip is over.
            tokio::time::sleep(ROUND_TRIP).await;
            let near = TcpStream::connect(("127.0.0.1", near_port)).await?;
            near.set_nodelay(true)?;
            let (client_read, client_write) = client.into_split();
            let (near_read, near_write) = near.into_split();
            tokio::try_join!(later(client_read, near_write), later(near_read, client_write))
        });
    }
}

/// Passes everything on half a round trip later.
async fn later(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let reading = async move {
        loop {
            let mut buffer = Vec::with_capacity(BUFFER_BYTES);
            let count = from.read_buf(&mut buffer).await?;
            if count == 0 || sender.send((Instant::now() + ROUND_TRIP / 2, buffer)).await.is_err() {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((at, buffer)) = receiver.recv().await {
            tokio::time::sleep_until(at).await;
            to.write_all(&buffer).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(drop)
}

async fn tell(listener: TcpListener, counts: Arc<Mutex<Counts>>) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let text = serde_json::to_vec(&*counts.lock().unwrap_or_else(|e| e.into_inner())).unwrap_or_default();
        let _ = socket.write_all(&text).await;
    }
}
