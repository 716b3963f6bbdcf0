//! lastgood itself.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Ahead, Ground, Tool};
use crate::measure::Step;
use crate::place::{BUCKET, Place, REGION};

pub const HOW: &str = "all defaults: zstd level 1, a thread for each core, what was restored is read back";

pub struct Lastgood {
    pub ground: Ground,
    /// Asks for every page to be read, whatever the WAL index says.
    pub reads_all: bool,
}

/// The name of what reads everything.
pub const READS_ALL: &str = "lastgood, all read";

impl Lastgood {
    fn config(&self, ahead: Ahead) -> PathBuf {
        self.ground.home.join(if ahead == Ahead::Yes { "ahead.toml" } else { "plain.toml" })
    }

    fn step<'a>(&self, ahead: Ahead, args: impl IntoIterator<Item = &'a str>) -> Step {
        let config = self.config(ahead).display().to_string();
        let args = ["--config".to_string(), config].into_iter().chain(args.into_iter().map(str::to_string));
        Step::new(&self.ground.settings.lastgood, args).dir(&self.ground.data)
    }

    fn configuration(&self, ahead: Ahead) -> String {
        let home = self.ground.home.display();
        let repository = match &self.ground.place {
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
        let sockets = self.ground.sockets.display();
        let ahead = if ahead == Ahead::Yes { "" } else { "push_ahead = 0\nfetch_ahead = 0\n" };
        format!(
            "[repository]\n{repository}\n[cluster]\nname = \"bench\"\n[postgres]\nhost = \"{sockets}\"\n\
             [archive]\nspool = \"{home}/spool\"\n{ahead}"
        )
    }
}

impl Tool for Lastgood {
    fn name(&self) -> &'static str {
        if self.reads_all { READS_ALL } else { "lastgood" }
    }

    fn prepare(&self) -> Result<Vec<Step>> {
        for ahead in [Ahead::No, Ahead::Yes] {
            std::fs::write(self.config(ahead), self.configuration(ahead))?;
        }
        Ok(vec![self.step(Ahead::Yes, ["init"])])
    }

    fn backup(&self, full: bool) -> Option<Step> {
        let kind = if full { Some("--full") } else { self.reads_all.then_some("--paranoid") };
        Some(self.step(Ahead::Yes, ["--json", "backup"].into_iter().chain(kind)))
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
        let system = ["--system-identifier", &self.ground.system_identifier];
        Some(self.step(ahead, ["archive-get"].into_iter().chain(system).chain([name, destination])).dir(data))
    }

    fn timeline(&self, kind: Option<&str>) -> Option<Step> {
        let kind = kind.into_iter().flat_map(|kind| ["--kind", kind]);
        Some(self.step(Ahead::Yes, ["--json", "timeline", "--since", "30d"].into_iter().chain(kind)))
    }
}
