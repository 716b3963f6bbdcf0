//! WAL segments into the archive and out of it, a process each, as PostgreSQL calls them.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Player, Scene, index};
use crate::measure::{Server, Step};
use crate::tools::{self, Ahead};

/// How many are pushed and fetched.
pub const COUNT: usize = 64;

pub async fn play(scene: &Scene<'_>, names: &[String]) -> Result<()> {
    for (ahead, push, fetch) in [(Ahead::No, "push", "fetch"), (Ahead::Yes, "push-ahead", "fetch-ahead")] {
        let mut players = scene.prepared(&format!("{push}-")).await?;
        let mut pushed = Vec::new();
        for player in scene.order(&mut players) {
            let data = data_directory(scene, names)?;
            let steps = names.iter().filter_map(|name| push_step(player, &data, name, ahead)).collect();
            let beside = if ahead == Ahead::Yes { player.tool.beside(&data) } else { None };
            if scene.measure(push, player, steps, beside, names.len()).await {
                pushed.push(player.part.clone());
                if scene.kind == "directory" && push == "push" && player.tool.name() == tools::RIVALS[0] {
                    index::play(scene, player, names).await;
                }
            }
            std::fs::remove_dir_all(&data)?;
        }
        for player in scene.order(&mut players) {
            if pushed.contains(&player.part) {
                fetches(scene, player, names, fetch, ahead).await?;
            }
        }
    }
    Ok(())
}

fn push_step(player: &Player, data: &Path, name: &str, ahead: Ahead) -> Option<Step> {
    let status = |state: &str| data.join("pg_wal/archive_status").join(format!("{name}.{state}"));
    let step = player.tool.push(data, &format!("pg_wal/{name}"), ahead)?;
    Some(step.called_by(Server::Archives { ready: status("ready"), done: status("done") }))
}

async fn fetches(scene: &Scene<'_>, player: &Player, names: &[String], work: &str, ahead: Ahead) -> Result<()> {
    // Recovery asks in a directory that has no WAL yet.
    let data = data_directory(scene, &[])?;
    let take = |name: &String| {
        let step = player.tool.fetch(&data, name, "pg_wal/RECOVERYXLOG", ahead)?;
        Some(step.called_by(Server::Takes(data.join("pg_wal/RECOVERYXLOG"))))
    };
    scene.store.warm()?;
    scene.measure(work, player, names.iter().filter_map(take).collect(), None, names.len()).await;
    Ok(std::fs::remove_dir_all(&data)?)
}

/// What tools look at in a data directory when they archive: who it is, its segments, and which of them wait.
fn data_directory(scene: &Scene<'_>, names: &[String]) -> Result<PathBuf> {
    let data = scene.stage.directory("archiving")?;
    let user = scene.stage.user;
    for sub in ["global", "pg_wal", "pg_wal/archive_status"] {
        lastgood::postgres::scratch::make_directory(&data.join(sub), user)?;
    }
    let mut made = Vec::new();
    for file in ["PG_VERSION", "global/pg_control"] {
        std::fs::copy(scene.stage.server.data().join(file), data.join(file))?;
        made.push(data.join(file));
    }
    for name in names {
        // A link has the same owner, and costs nothing.
        std::fs::hard_link(scene.stage.inbox().join(name), data.join("pg_wal").join(name))?;
        let ready = data.join("pg_wal/archive_status").join(format!("{name}.ready"));
        std::fs::write(&ready, "")?;
        made.push(ready);
    }
    if let Some(user) = user {
        made.iter().try_for_each(|path| std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)))?;
    }
    Ok(data)
}
