//! Snapshots: a full one, a restore of it, and second ones after nothing, a hundredth and a tenth have changed.

use anyhow::{Context, Result};

use super::{Player, Scene};
use crate::measure::Step;
use crate::sections::recovery;
use crate::stage::{empty, warm};
use crate::{database, tools};

/// Everything, in the order that the state of the database asks for: each phase sees the same state with every tool.
pub async fn play(scene: &Scene<'_>, players: &mut [Player]) -> Result<()> {
    baseline(scene).await?;
    backups(scene, players, "full", true).await?;
    restores(scene, players, "restore").await?;
    verifies(scene, players).await;
    backups(scene, players, "second-0", false).await?;
    database::scatter(&scene.stage.session, &database::TABLES).await.context("change pages")?;
    backups(scene, players, "second-1%", false).await?;
    database::append(&scene.stage.session).await.context("append rows")?;
    backups(scene, players, "second-10%", false).await
}

/// What PostgreSQL itself takes to start and stop a backup.
async fn baseline(scene: &Scene<'_>) -> Result<()> {
    scene.stage.archive_with(None)?;
    let sockets = scene.stage.server.sockets().display().to_string();
    let step = Step::new(&scene.bench.settings.harness, ["start-stop".to_string(), sockets]);
    let measured = scene.bench.meter.run(vec![step]).await;
    scene.keep("second-0", "start/stop", 1, measured, 0, Default::default());
    Ok(())
}

pub async fn backups(scene: &Scene<'_>, players: &mut [Player], work: &str, full: bool) -> Result<()> {
    for player in scene.order(players) {
        let Some(step) = player.tool.backup(full) else { continue };
        if let Err(error) = scene.turn_to(player).await {
            scene.keep(work, player.tool.name(), 1, Err(error), 0, Default::default());
            continue;
        }
        warm(scene.stage.server.data())?;
        scene.measure(work, player, vec![step], None, 1).await;
        if player.tool.name() == tools::RIVALS[0] {
            assert_sound(scene, player, work).await;
        }
    }
    scene.stage.archive_with(None)
}

/// After each of our own snapshots everything in the repository must be sound; that is not measured.
pub async fn assert_sound(scene: &Scene<'_>, player: &Player, after: &str) {
    let Some(step) = player.tool.verify() else { return };
    if let Err(error) = scene.bench.meter.run(vec![step]).await {
        let error = error.context(format!("the repository is not sound after {after}"));
        scene.keep("soundness", player.tool.name(), 1, Err(error), 0, Default::default());
    }
}

pub async fn restores(scene: &Scene<'_>, players: &mut [Player], work: &str) -> Result<()> {
    for player in scene.order(players) {
        let into = scene.stage.directory("restored")?;
        let Some(step) = player.tool.restore(&into) else { continue };
        scene.store.warm()?;
        let is_good = scene.measure(work, player, vec![step], None, 1).await;
        // Once is enough: what is stored does not depend on the round or on the kind of store.
        if is_good && scene.round == 0 && scene.kind == "directory" && player.tool.restores_whole() {
            recovery::check(scene, player, &into).await;
        }
        empty(&into)?;
    }
    Ok(())
}

async fn verifies(scene: &Scene<'_>, players: &mut [Player]) {
    for player in scene.order(players) {
        if let Some(step) = player.tool.verify() {
            scene.measure("verify", player, vec![step], None, 1).await;
        }
    }
}
