//! `recover`: a person at a terminal, from "a table is gone" to a server with the table in it, and to normal operation.

use super::copies::{Running, world};
use crate::guard::on_tty;
use crate::support::world::World;

/// Plays a person: types each answer when its question is on the screen; answers exit code and screen.
fn person(world: &World, args: &[&str], answers: &[(&str, &str)]) -> (i32, String) {
    let mut session = rexpect::session::spawn_command(on_tty(world, args), Some(120_000)).unwrap();
    let mut screen = String::new();
    for (question, answer) in answers {
        match session.exp_string(question) {
            Ok(before) => screen.push_str(&before),
            Err(error) => panic!("{question}: {error}\n{screen}"),
        }
        session.send_line(answer).unwrap();
    }
    screen.push_str(&session.exp_eof().unwrap());
    match session.process().wait().unwrap() {
        rexpect::process::WaitStatus::Exited(_, code) => (code, screen),
        other => panic!("{other:?}: {screen}"),
    }
}

/// Two tables are dropped by mistake, each in a transaction of its own.
async fn mistake() -> World {
    let world = world(15, "").await;
    world.sql("CREATE TABLE orders AS SELECT i FROM generate_series(1, 1000) i").await;
    world.sql("CREATE TABLE customers AS SELECT i FROM generate_series(1, 10) i; ANALYZE").await;
    world.backup(&[]);
    world.sql("INSERT INTO orders VALUES (1001)").await;
    world.sql("DROP TABLE customers").await;
    world.sql("DROP TABLE orders").await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn three_answers_lead_to_a_copy_with_the_table() {
    let world = mistake().await;
    let copy = world.path("copy");
    let running = Running { world: &world, data: copy.clone() };
    let answers = [("What is gone?", "drop since 2h"), ("Before which?", "2"), ("Which?", "1"), ("Enter to leave", "")];
    let (code, screen) = person(&world, &["recover", "--beside", copy.to_str().unwrap()], &answers);
    assert_eq!(code, 0, "{screen}");
    // The newest WAL was brought into the archive by it, and each step stands there as the command that does the same.
    for words in ["DROP postgres.public.customers", "DROP postgres.public.orders", "$ lastgood restore --before", "the target"] {
        assert!(screen.contains(words), "{words}: {screen}");
    }
    let session = running.session().await;
    assert_eq!(session.value("SELECT count(*) FROM orders").await.unwrap(), "1001");
    // Only the cluster's own server was changed by nobody.
    assert_eq!(world.value("SELECT count(*) FROM pg_class WHERE relname IN ('orders', 'customers')").await, "0");
}

/// Over it and back to normal operation: one answer more, and the typed name of production.
#[tokio::test(flavor = "multi_thread")]
async fn over_it_and_back_to_normal_operation() {
    let mut world = mistake().await;
    let text = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), text.replace("name = \"shop\"\n", "name = \"shop\"\nlabel = \"production\"\n")).unwrap();
    world.archive().await;
    world.server.stop(lastgood::postgres::scratch::Stop::Fast);
    let data = world.server.data().to_path_buf();
    // The configuration names the directory, because no server can be asked.
    let text = std::fs::read_to_string(world.config()).unwrap();
    let text = text.replace("[postgres]\n", &format!("[postgres]\ndata_directory = \"{}\"\n", data.display()));
    std::fs::write(world.config(), text).unwrap();
    let running = Running { world: &world, data: data.clone() };
    let answers = [("Which?", "2"), ("name: ", "shop"), ("3 to let it take over", "3"), ("name: ", "shop")];
    let (code, screen) = person(&world, &["recover", "orders"], &answers);
    assert_eq!(code, 0, "{screen}");
    for words in ["lost", "$ lastgood release", "restart", "$ lastgood backup", "$ lastgood check"] {
        assert!(screen.to_lowercase().contains(words), "{words}: {screen}");
    }
    let session = running.session().await;
    assert_eq!(session.value("SELECT count(*) FROM orders").await.unwrap(), "1001");
    assert_eq!(session.value("SHOW archive_mode").await.unwrap(), "on");
    assert_eq!(world.objects("clusters/shop/snapshots").len(), 2);
    assert_eq!(world.run(&["alerts"]).out.matches("acknowledge").count(), 0);
}

/// A question waits for its answer, and not for ever: Ctrl-C ends it with a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_can_be_broken_off() {
    let world = World::bare(15, &[], "", None).await;
    let mut session = rexpect::session::spawn_command(on_tty(&world, &["recover"]), Some(60_000)).unwrap();
    session.exp_string("What is gone?").unwrap();
    session.send_control('c').unwrap();
    let screen = session.exp_eof().unwrap();
    let code = session.process().wait().unwrap();
    assert!(matches!(code, rexpect::process::WaitStatus::Exited(_, 130)), "{code:?}: {screen}");
    assert!(screen.contains("ended by SIGINT: what stood in the place stands there as before"), "{screen}");
}

/// Nobody to ask: nothing is done.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_it_refuses() {
    let world = World::bare(15, &[], "", None).await;
    world.refused(&["recover", "orders"], 5, &["asks a person at a terminal"]);
}
