//! pgBackRest.

use std::path::Path;

use anyhow::Result;

use super::{Ahead, Ground, Tool};
use crate::measure::Step;
use crate::place::{BUCKET, Place, REGION};
use crate::settings::Settings;

pub struct Pgbackrest(pub Ground);

/// The settings, in words.
pub fn how(settings: &Settings) -> String {
    let block = if has_block(&settings.pgbackrest) { "repo-block" } else { "no repo-block (before 2.46)" };
    format!("compress-type=zst, compress-level=1, repo-bundle, {block}, process-max={}, start-fast", settings.cores)
        + "; with look-ahead: archive-async"
}

/// Block incremental backup came with 2.46.
fn has_block(program: &Path) -> bool {
    let output = std::process::Command::new(program).arg("version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let minor =
        text.split_whitespace().nth(1).and_then(|version| version.strip_prefix("2.")?.split('.').next()?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor >= 46)
}

impl Pgbackrest {
    fn step<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Step {
        let config = format!("--config={}", self.0.home.join("pgbackrest.conf").display());
        let args = [config, "--stanza=bench".to_string()].into_iter().chain(args.into_iter().map(str::to_string));
        Step::new(&self.0.settings.pgbackrest, args).dir(&self.0.data)
    }

    fn configuration(&self) -> Result<String> {
        let repository = match &self.0.place {
            Place::Directory(path) => format!("repo1-path={}\n", path.join("pgbackrest").display()),
            Place::S3(s3) => {
                let (access, secret) = s3.keys()?;
                format!(
                    "repo1-type=s3\nrepo1-path=/{}pgbackrest\nrepo1-s3-bucket={BUCKET}\nrepo1-s3-region={REGION}\n\
                     repo1-s3-endpoint=localhost\nrepo1-s3-uri-style=path\nrepo1-storage-port={}\nrepo1-storage-ca-file={}\n\
                     repo1-s3-key={access}\nrepo1-s3-key-secret={secret}\n",
                    s3.prefix,
                    s3.port,
                    s3.certificates.join("ca.pem").display()
                )
            }
        };
        let block = if has_block(&self.0.settings.pgbackrest) { "repo1-block=y\n" } else { "" };
        let (home, cores) = (self.0.home.display(), self.0.settings.cores);
        Ok(format!(
            "[global]\n{repository}{block}repo1-bundle=y\nrepo1-retention-full=9\ncompress-type=zst\ncompress-level=1\n\
             process-max={cores}\nstart-fast=y\nspool-path={home}/spool\nlock-path={home}/lock\nlog-path={home}/log\n\
             log-level-file=off\nlog-level-console=warn\n[bench]\npg1-path={}\npg1-socket-path={}\npg1-user=postgres\n",
            self.0.data.display(),
            self.0.sockets.display()
        ))
    }
}

fn async_option(ahead: Ahead) -> &'static str {
    if ahead == Ahead::Yes { "--archive-async" } else { "--no-archive-async" }
}

impl Tool for Pgbackrest {
    fn name(&self) -> &'static str {
        "pgbackrest"
    }

    fn prepare(&self) -> Result<Vec<Step>> {
        std::fs::write(self.0.home.join("pgbackrest.conf"), self.configuration()?)?;
        Ok(vec![self.step(["stanza-create"])])
    }

    fn backup(&self, full: bool) -> Option<Step> {
        Some(self.step(["backup", if full { "--type=full" } else { "--type=incr" }]))
    }

    fn restore(&self, into: &Path) -> Option<Step> {
        Some(self.step(["restore", &format!("--pg1-path={}", into.display())]))
    }

    fn verify(&self) -> Option<Step> {
        Some(self.step(["verify"]))
    }

    fn push(&self, data: &Path, file: &str, ahead: Ahead) -> Option<Step> {
        let data_option = format!("--pg1-path={}", data.display());
        Some(self.step(["archive-push", &data_option, async_option(ahead), file]).dir(data))
    }

    fn fetch(&self, data: &Path, name: &str, destination: &str, ahead: Ahead) -> Option<Step> {
        let data_option = format!("--pg1-path={}", data.display());
        Some(self.step(["archive-get", &data_option, async_option(ahead), name, destination]).dir(data))
    }
}
