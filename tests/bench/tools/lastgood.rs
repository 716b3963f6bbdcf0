//! lastgood itself.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Ahead, Ground, Tool};
use crate::measure::Step;
use crate::place::{BUCKET, Place, REGION};

pub const HOW: &str = "all defaults: zstd level 1, a thread for each core, what was restored is read back";

pub struct Lastgood(pub Ground);

impl Lastgood {
    fn config(&self, ahead: Ahead) -> PathBuf {
        self.0.home.join(if ahead == Ahead::Yes { "ahead.toml" } else { "plain.toml" })
    }

    fn step<'a>(&self, ahead: Ahead, args: impl IntoIterator<Item = &'a str>) -> Step {
        let config = self.config(ahead).display().to_string();
        let args = ["--config".to_string(), config].into_iter().chain(args.into_iter().map(str::to_string));
        Step::new(&self.0.settings.lastgood, args).dir(&self.0.data)
    }

    fn configuration(&self, ahead: Ahead) -> String {
        let home = self.0.home.display();
        let repository = match &self.0.place {
            Place::Directory(path) => format!("url = \"{}\"\n", path.join("lastgood").display()),
            Place::S3(s3) => format!(
                "url = \"s3://{BUCKET}/{}lastgood\"\n[repository.s3]\nendpoint = \"https://localhost:{}\"\nregion = \"{REGION}\"\n\
                 path_style = true\nconditional_create = false\nca_file = \"{}\"\ncredentials_file = \"{}\"\n",
                s3.prefix,
                s3.port,
                s3.certificates.join("ca.pem").display(),
                s3.credentials.display()
            ),
        };
        let sockets = self.0.sockets.display();
        let ahead = if ahead == Ahead::Yes { "" } else { "push_ahead = 0\nfetch_ahead = 0\n" };
        format!(
            "[repository]\n{repository}\n[cluster]\nname = \"bench\"\n[postgres]\nhost = \"{sockets}\"\n\
             [archive]\nspool = \"{home}/spool\"\n{ahead}"
        )
    }
}

impl Tool for Lastgood {
    fn name(&self) -> &'static str {
        "lastgood"
    }

    fn prepare(&self) -> Result<Vec<Step>> {
        for ahead in [Ahead::No, Ahead::Yes] {
            std::fs::write(self.config(ahead), self.configuration(ahead))?;
        }
        Ok(vec![self.step(Ahead::Yes, ["init"])])
    }

    fn backup(&self, full: bool) -> Option<Step> {
        Some(self.step(Ahead::Yes, ["--json", "backup"].into_iter().chain(full.then_some("--full"))))
    }

    fn restore(&self, into: &Path) -> Option<Step> {
        Some(self.step(Ahead::Yes, ["--json", "restore", "--to", "latest", "--into", &into.display().to_string()]))
    }

    fn verify(&self) -> Option<Step> {
        Some(self.step(Ahead::Yes, ["--json", "verify"]))
    }

    fn push(&self, data: &Path, file: &str, ahead: Ahead) -> Option<Step> {
        Some(self.step(ahead, ["archive-push", file]).dir(data))
    }

    fn fetch(&self, data: &Path, name: &str, destination: &str, ahead: Ahead) -> Option<Step> {
        let system = ["--system-identifier", &self.0.system_identifier];
        Some(self.step(ahead, ["archive-get"].into_iter().chain(system).chain([name, destination])).dir(data))
    }
}
