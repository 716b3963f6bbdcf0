//! wal-rus, the port of WAL-G.

use std::path::Path;

use anyhow::Result;

use super::{Ahead, Ground, Tool};
use crate::measure::Step;
use crate::place::{BUCKET, Place, REGION};

pub const HOW: &str = "zstd level 1, reads the data directory itself; second snapshots as deltas from archived WAL; concurrency of \
                       uploads and downloads 4 (its default), 16 at 50 ms; with look-ahead: its daemon for pushes, prefetching for \
                       fetches, 1 and none without. It restores without checking hashes, and leaves the flushing to the system";

pub struct Walrus(pub Ground);

impl Walrus {
    fn step<'a>(&self, ahead: Ahead, args: impl IntoIterator<Item = &'a str>) -> Step {
        let args: Vec<String> = args.into_iter().map(str::to_string).collect();
        let concurrency = match (&self.0.place, ahead) {
            (_, Ahead::No) => "1",
            (Place::S3(s3), _) if s3.is_far => "16",
            _ => "4",
        };
        let step = Step::new(&self.0.settings.walrus, args).dir(&self.0.data).env("PGHOST", self.0.sockets.display().to_string());
        let step = step.env("PGUSER", "postgres").env("PGDATABASE", "postgres").env("WALG_LOG_LEVEL", "ERROR");
        let step = step.env("WALG_COMPRESSION_METHOD", "zstd").env("WALG_COMPRESSION_LEVEL", "1");
        let step = step.env("WALG_UPLOAD_CONCURRENCY", concurrency).env("WALG_DOWNLOAD_CONCURRENCY", concurrency);
        match &self.0.place {
            Place::Directory(path) => step.env("WALG_FILE_PREFIX", path.join("wal-rus").display().to_string()),
            Place::S3(s3) => {
                // Read before: `prepare` fails first when they are not there.
                let (access, secret) = s3.keys().unwrap_or_default();
                step.env("WALG_S3_PREFIX", format!("s3://{BUCKET}/{}wal-rus", s3.prefix))
                    .env("AWS_ENDPOINT_URL", format!("https://localhost:{}", s3.port))
                    .env("AWS_REGION", REGION)
                    .env("AWS_S3_FORCE_PATH_STYLE", "true")
                    .env("AWS_ACCESS_KEY_ID", access)
                    .env("AWS_SECRET_ACCESS_KEY", secret)
                    .env("SSL_CERT_FILE", s3.certificates.join("ca.pem").display().to_string())
            }
        }
    }

    fn socket(&self) -> String {
        self.0.home.join("daemon.socket").display().to_string()
    }
}

impl Tool for Walrus {
    fn name(&self) -> &'static str {
        "wal-rus"
    }

    fn prepare(&self) -> Result<Vec<Step>> {
        if let Place::S3(s3) = &self.0.place {
            s3.keys()?;
        }
        // It has nothing to make; whether it can be run at all is seen here.
        Ok(vec![self.step(Ahead::Yes, ["backup-list"])])
    }

    fn backup(&self, full: bool) -> Option<Step> {
        let data = self.0.data.display().to_string();
        let step = self.step(Ahead::Yes, ["backup-push", &data]);
        Some(if full { step } else { step.env("WALG_DELTA_MAX_STEPS", "7") })
    }

    fn restore(&self, into: &Path) -> Option<Step> {
        Some(self.step(Ahead::Yes, ["backup-fetch", &into.display().to_string(), "LATEST"]))
    }

    fn verify(&self) -> Option<Step> {
        None
    }

    fn push(&self, data: &Path, file: &str, ahead: Ahead) -> Option<Step> {
        let step = match ahead {
            Ahead::No => self.step(ahead, ["wal-push", file]),
            Ahead::Yes => self.step(ahead, ["daemon-client", "--socket", &self.socket(), "wal-push", file]),
        };
        Some(step.dir(data))
    }

    fn fetch(&self, data: &Path, name: &str, destination: &str, ahead: Ahead) -> Option<Step> {
        Some(self.step(ahead, ["wal-fetch", name, destination]).dir(data))
    }

    fn beside(&self, data: &Path) -> Option<Step> {
        Some(self.step(Ahead::Yes, ["daemon", "--socket", &self.socket()]).dir(data).env("PGDATA", data.display().to_string()))
    }
}
