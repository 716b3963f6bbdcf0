//! An interrupted drill leaves nothing running and nothing lying about, and two drills never meet.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use lastgood::clock;
use lastgood::postgres::session::{Connection, Session};
use rustix::process::{Pid, Signal, kill_process};

use super::{drills, filled, nothing_is_left, servers_below};
use crate::support::world::{PATIENCE, World};

/// A question that does not come back by itself.
const SLOW: &str = "[[drill.question]]\nsql = \"SELECT pg_sleep(300)\"\nexpect = \"\"\ntimeout_s = 600\n";

/// A drill whose server is being asked.
async fn asking(world: &World) -> Child {
    let mut command = world.command(&["drill"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = clock::monotonic();
    while !is_asked(world).await {
        assert!(began.elapsed() < PATIENCE, "no server is asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child
}

/// Whether the server of a drill is at the slow question.
async fn is_asked(world: &World) -> bool {
    let slow = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(300)%' AND pid <> pg_backend_pid()";
    for place in std::fs::read_dir(drills(world)).unwrap().flatten() {
        let host = Some(place.path().join("sockets").display().to_string());
        let connection = Connection { host, ..world.server.connection() };
        if let Ok(session) = Session::open(&connection).await
            && session.value(slow).await.is_ok_and(|count| count == "1")
        {
            return true;
        }
    }
    false
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

async fn no_server(world: &World) {
    let began = clock::monotonic();
    while !servers_below(&drills(world)).is_empty() {
        assert!(began.elapsed() < PATIENCE, "servers outlive their drill: {:?}", servers_below(&drills(world)));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_drill_leaves_nothing() {
    let world = filled(15, SLOW).await;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let child = asking(&world).await;
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(10), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"), "{output:?}");
        nothing_is_left(&world);
    }
    assert!(world.objects("clusters/shop/reports").is_empty());
    // Killed, it cannot clean up; the kernel ends the server, and the next drill removes what lies there.
    let child = asking(&world).await;
    send(&child, Signal::KILL);
    assert_eq!(child.wait_with_output().unwrap().status.signal(), Some(9));
    no_server(&world).await;
    assert_eq!(std::fs::read_dir(drills(&world)).unwrap().count(), 1);
    super::configure(&world, 15, "");
    let said = world.ok(&["drill"]);
    assert!(said.err.contains("removed what an interrupted drill had left"), "{}", said.all());
    nothing_is_left(&world);
    let audit = world.ok(&["audit"]).out;
    assert!(audit.contains("no outcome was recorded") && audit.contains("drill failed"), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_drills_do_not_meet() {
    let world = filled(15, SLOW).await;
    let first = asking(&world).await;
    super::configure(&world, 15, "");
    let said = world.ok(&["drill"]);
    assert!(said.out.contains("the drill passed"), "{}", said.all());
    assert!(is_asked(&world).await, "the other drill was disturbed");
    send(&first, Signal::TERM);
    assert_eq!(first.wait_with_output().unwrap().status.code(), Some(10));
    nothing_is_left(&world);
}
