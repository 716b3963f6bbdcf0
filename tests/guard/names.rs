//! What a name stands for: nobody takes production off, or its name over, by running `init`.

use std::sync::Arc;

use lastgood::repo::repository::Repository;
use lastgood::repo::seal::keys::Keys;
use lastgood::storage::fs::DirectoryStorage;

use super::{at_terminal, on_tty, relabel, stopped};
use crate::support::world::World;

async fn label(world: &World) -> String {
    let store = Arc::new(DirectoryStorage::new(world.repository()));
    let (_, record) = Repository::open(store, &Keys::default()).await.unwrap().registered("shop").await.unwrap();
    record.label.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn production_is_taken_off_by_confirmation_alone() {
    let mut world = stopped("production").await;
    world.start().await;
    relabel(&world, "test");
    world.refused(&["init"], 5, &["will be labelled \"test\"", "PRODUCTION", "nobody has confirmed"]);
    assert_eq!(label(&world).await, "production");
    world.planned(&["init"]);
    assert_eq!(label(&world).await, "production", "a plan changes nothing");
    let (code, screen) = at_terminal(&world, &["init"], &["test"]);
    assert!(code == 5 && screen.contains("is not the name"), "{screen}");
    assert_eq!(label(&world).await, "production");
    let (code, screen) = at_terminal(&world, &["init"], &["shop"]);
    assert_eq!((code, label(&world).await.as_str()), (0, "test"), "{screen}");
    // Anything else is free to change.
    relabel(&world, "staging");
    world.ok(&["init"]);
    relabel(&world, "production");
    world.ok(&["init"]);
    assert_eq!(label(&world).await, "production");
    world.write_config(None, "");
    world.ok(&["init"]);
    assert_eq!(label(&world).await, "production", "left out is not taken off");
}

/// Another server takes production's name over only as a restore over production would.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_over_by_confirmation_alone() {
    let mut world = stopped("production").await;
    world.start().await;
    let other = World::new(15).await;
    let own = world.server.sockets().display().to_string();
    let text = std::fs::read_to_string(world.config()).unwrap().replace("label = \"production\"\n", "");
    std::fs::write(world.config(), text.replace(&own, &other.server.sockets().display().to_string())).unwrap();
    let args = ["init", "--new-history"];
    world.refused(&args, 5, &["will stand for system", "PRODUCTION", "nobody has confirmed"]);
    world.refused(&[&args[..], &["--yes"]].concat(), 5, &["nobody has confirmed"]);
    let before = world.objects("clusters/shop/record");
    let (_, code) = world.planned(&args);
    assert_eq!(world.objects("clusters/shop/record"), before);
    world.ok(&[&args[..], &["--confirm", &code]].concat());
    assert_eq!(label(&world).await, "production", "the label stays with the name");
}

/// What was typed before the question was shown is no answer to it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_typed_ahead_does_not_count() {
    let world = stopped("production").await;
    let data = world.server.data().display().to_string();
    let go = world.path("go");
    let command = on_tty(&world, &["restore", "--to", "latest", "--into", &data]);
    let mut shell = world.command(&[]);
    let program = command.get_program().to_os_string();
    shell = {
        let mut sh = std::process::Command::new("sh");
        std::os::unix::process::CommandExt::uid(&mut sh, world.user().map_or(0, |user| user.uid));
        sh.current_dir(shell.get_current_dir().unwrap());
        sh.args(["-c", "until [ -e \"$0\" ]; do :; done; exec \"$@\""]).arg(&go).arg(program).args(command.get_args());
        sh
    };
    let mut session = rexpect::session::spawn_command(shell, Some(60_000)).unwrap();
    session.send_line("shop").unwrap();
    std::fs::write(&go, "").unwrap();
    session.exp_string("name: ").unwrap();
    session.send_line("no").unwrap();
    let screen = session.exp_eof().unwrap();
    assert!(screen.contains("is not the name"), "{screen}");
    assert!(super::beside(world.server.data(), "replaced").is_empty());
}
