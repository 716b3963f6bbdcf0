//! Where a restore must not go: what is written there would be swept, copied, or moved aside with something else.

use std::os::unix::fs::symlink;
use std::path::Path;

use lastgood::postgres::scratch;

use crate::support::world::World;

/// Repositories, spools, clusters, tablespaces, what holds one, and ways there.
#[tokio::test(flavor = "multi_thread")]
async fn repositories_and_clusters_are_no_places() {
    let world = World::new(15).await;
    let make = |path: &Path| scratch::make_directory(path, world.user()).unwrap();
    let (space, mirror, free) = (world.path("space"), world.path("mirror"), world.path("free"));
    for dir in [&space, &mirror, &free] {
        make(dir);
    }
    make(&free.join("empty"));
    world.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await;
    world.sql("CREATE TABLE t TABLESPACE fast AS SELECT 1").await;
    world.backup(&[]);
    let oid = world.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'").await;
    world.write_config(None, &format!("\n[[mirror]]\nname = \"second\"\nurl = \"{}\"\n", mirror.join("repository").display()));
    symlink(world.repository().join("clusters"), world.path("way")).unwrap();
    make(&mirror.join("repository"));
    let data = world.server.data().display().to_string();
    let places = [
        (world.repository().join("new"), "lies in the repository"),
        (world.repository().join("clusters/shop/packs/new"), "lies in the repository"),
        (world.path("way").join("new"), "lies in the repository"),
        (world.path("spool").join("new"), "lies in the spool"),
        (mirror.join("repository"), "the mirror second"),
        (mirror.clone(), "holds the mirror second"),
        (Path::new(&data).join("new"), "lies in the cluster"),
        (Path::new(&data).join("pg_wal/new"), "is the pg_wal of a cluster"),
        (space.join("new"), "lies in the tablespace"),
    ];
    make(&world.path("spool"));
    let below = free.join("below");
    make(&below);
    let (below, fresh) = (below.display().to_string(), free.join("fresh").display().to_string());
    for (place, words) in places {
        // The mirror's directory is empty, unless what it holds is looked at.
        if place == mirror {
            std::fs::remove_dir(mirror.join("repository")).unwrap();
        }
        let place = place.display().to_string();
        world.refused(&["restore", "--to", "latest", "--into", &place, "--tablespaces-below", &below], 5, &[words]);
        let mapping = format!("{oid}={place}");
        world.refused(&["restore", "--to", "latest", "--into", &fresh, "--tablespace", &mapping], 5, &[words]);
    }
    // A link, whatever stands behind its name.
    symlink(free.join("empty"), free.join("link")).unwrap();
    let link = free.join("link").display().to_string();
    for link in [link.clone(), format!("{link}/"), format!("{link}/.")] {
        world.refused(&["restore", "--to", "latest", "--into", &link, "--tablespaces-below", &below], 5, &["symbolic link"]);
        let mapping = format!("{oid}={link}");
        world.refused(&["restore", "--to", "latest", "--into", &fresh, "--tablespace", &mapping], 5, &["symbolic link"]);
    }
    let (one, other) = (format!("{oid}={}", free.join("1").display()), format!("{oid}={}", free.join("2").display()));
    let two = ["restore", "--to", "latest", "--into", &fresh, "--tablespace", &one, "--tablespace", &other];
    world.refused(&two, 5, &["two places"]);
    assert!(!free.join("fresh").exists());
    world.ok(&["restore", "--to", "latest", "--into", &fresh, "--tablespace", &one]);
}
