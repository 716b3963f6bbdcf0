//! Between the plan and its execution the world changes, by accident or on purpose: each time the guard notices.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lastgood::postgres::scratch::Stop;

use super::{beside, copy, on_tty, picture, relabel, stopped};
use crate::support::world::{Said, World, said};

/// A stopped cluster and a copy of it as the target.
async fn scene() -> (World, PathBuf) {
    let world = stopped("production").await;
    let target = world.path("target");
    copy(world.server.data(), &target);
    (world, target)
}

fn args(target: &Path) -> Vec<String> {
    ["restore", "--to", "latest", "--into", target.to_str().unwrap()].map(String::from).to_vec()
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn with_code(world: &World, target: &Path, code: &str) -> Said {
    let args = args(target);
    world.run(&[&words(&args)[..], &["--confirm", code]].concat())
}

fn code_for(world: &World, target: &Path) -> String {
    world.planned(&words(&args(target))).1
}

/// Refused with these words, and nothing beside the target.
fn refused(said: &Said, target: &Path, expected: &str) {
    assert_eq!(said.code, 5, "{}", said.all());
    assert!(said.err.contains(expected), "should say {expected:?}: {}", said.all());
    assert!(beside(target, "replaced").is_empty() && beside(target, "lastgood-new").is_empty(), "{}", said.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_dies_with_any_change_of_the_target() {
    let (world, target) = scene().await;
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 5] = [
        ("a file is written", |t| std::fs::write(t.join("PG_VERSION"), "15\n").unwrap()),
        ("a file appears", |t| std::fs::write(t.join("base/1/99999"), "").unwrap()),
        ("a file goes", |t| std::fs::remove_file(t.join("base/1/99999")).unwrap()),
        ("a mode changes", |t| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
            std::fs::set_permissions(t.join("postgresql.conf"), mode).unwrap();
        }),
        ("it is exchanged for a copy of itself", |t| {
            let other = t.with_extension("other");
            copy(t, &other);
            std::fs::remove_dir_all(t).unwrap();
            std::fs::rename(&other, t).unwrap();
        }),
    ];
    for (what, change) in changes {
        let code = code_for(&world, &target);
        change(&target);
        let before = picture(&target);
        let said = with_code(&world, &target, &code);
        refused(&said, &target, "belongs to another plan");
        assert!(picture(&target) == before, "{what}");
    }
    // The last plan still holds when nothing has changed.
    let code = code_for(&world, &target);
    assert_eq!(with_code(&world, &target, &code).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_dies_when_the_cluster_was_started_meanwhile() {
    let (world, target) = scene().await;
    let code = code_for(&world, &target);
    let mut server = world.restored("target");
    server.start().await.unwrap();
    refused(&with_code(&world, &target, &code), &target, "never writes under a living server");
    server.stop(Stop::Fast);
    refused(&with_code(&world, &target, &code), &target, "belongs to another plan");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_good_once() {
    let (world, target) = scene().await;
    let code = code_for(&world, &target);
    assert_eq!(with_code(&world, &target, &code).code, 0);
    let again = with_code(&world, &target, &code);
    assert!(again.code == 5 && again.err.contains("belongs to another plan"), "{}", again.all());
    // Not either when the very same directory stands there again.
    world.confirmed(&["undo", "--into", target.to_str().unwrap()]);
    let after_undo = with_code(&world, &target, &code);
    assert!(after_undo.code == 5 && after_undo.err.contains("belongs to another plan"), "{}", after_undo.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_expires() {
    let (world, target) = scene().await;
    let code = code_for(&world, &target);
    const DIGITS: &[u8] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let value = |c: u8| DIGITS.iter().position(|d| *d == c).unwrap() as u32;
    let minute = code.as_bytes()[..4].iter().fold(0, |sum, c| sum << 5 | value(*c));
    for ago in [16, 60, 60 * 24] {
        let then = (minute + (1 << 20) - ago) % (1 << 20);
        let digits: String = (0..4).rev().map(|at| DIGITS[(then >> (5 * at) & 31) as usize] as char).collect();
        refused(&with_code(&world, &target, &format!("{digits}{}", &code[4..])), &target, "has expired");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_worth_nothing_on_another_host() {
    let (world, target) = scene().await;
    let code = code_for(&world, &target);
    let user = world.user().unwrap();
    let program = world.command(&[&words(&args(&target))[..], &["--confirm", &code]].concat());
    let script = "hostname another-host; uid=$1; gid=$2; shift 2; exec setpriv --reuid $uid --regid $gid --clear-groups \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--uts", "sh", "-c", script, "sh", &user.uid.to_string(), &user.gid.to_string()]);
    command.arg(program.get_program()).args(program.get_args()).stdin(Stdio::null());
    command.current_dir(world.path("")).env_remove("PGHOST");
    refused(&said(&mut command), &target, "belongs to another plan");
    assert_eq!(with_code(&world, &target, &code).code, 0, "on its own host it is good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_dies_with_the_configuration() {
    let (world, target) = scene().await;
    let code = code_for(&world, &target);
    relabel(&world, "staging");
    refused(&with_code(&world, &target, &code), &target, "belongs to another plan");
    let elsewhere = world.path("other.toml");
    relabel(&world, "production");
    std::fs::copy(world.config(), &elsewhere).unwrap();
    let mut command = world.command(&[]);
    let program = command.get_program().to_os_string();
    command = Command::new(program);
    let user = world.user().unwrap();
    std::os::unix::process::CommandExt::uid(&mut command, user.uid);
    command.arg("--config").arg(&elsewhere).args(args(&target)).args(["--confirm", &code]).stdin(Stdio::null());
    refused(&said(&mut command), &target, "belongs to another plan");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_and_mounts_in_between_are_noticed() {
    let (world, target) = scene().await;
    let code = code_for(&world, &target);
    let real = world.path("real");
    std::fs::rename(&target, &real).unwrap();
    symlink(&real, &target).unwrap();
    let before = picture(&real);
    refused(&with_code(&world, &target, &code), &target, "symbolic link");
    assert!(picture(&real) == before);
    std::fs::remove_file(&target).unwrap();
    std::fs::rename(&real, &target).unwrap();

    // A link above the target leads to another cluster of the same name.
    let (upper, lower) = (world.path("upper"), world.path("lower"));
    for dir in [&upper, &lower] {
        lastgood::postgres::scratch::make_directory(dir, world.user()).unwrap();
        copy(world.server.data(), &dir.join("main"));
    }
    let way = world.path("way");
    symlink(&upper, &way).unwrap();
    let code = code_for(&world, &way.join("main"));
    std::fs::remove_file(&way).unwrap();
    symlink(&lower, &way).unwrap();
    refused(&with_code(&world, &way.join("main"), &code), &lower.join("main"), "belongs to another plan");

    // Another file system is mounted over the target; and one that shares the device with what is above.
    let code = code_for(&world, &target);
    for options in [vec!["-t", "tmpfs", "none"], vec!["--bind", world.server.data().to_str().unwrap()]] {
        let mounted = Command::new("mount").args(&options).arg(&target).status().unwrap();
        assert!(mounted.success());
        if options[0] == "-t" {
            copy(&world.server.data().join("."), &target);
            std::os::unix::fs::chown(&target, Some(world.user().unwrap().uid), None).unwrap();
        }
        let said = with_code(&world, &target, &code);
        assert!(Command::new("umount").arg(&target).status().unwrap().success());
        refused(&said, &target, "mount point");
    }
}

/// Two people with two good plans: one restores, the other is told.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_operators_one_restores() {
    let (world, target) = scene().await;
    let inode = std::fs::metadata(&target).unwrap().ino();
    let code = code_for(&world, &target);
    let args = args(&target);
    let start = || {
        let mut command = world.command(&[&words(&args)[..], &["--confirm", &code]].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let outcomes: Vec<_> = [start(), start(), start()].into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let codes: Vec<_> = outcomes.iter().map(|o| o.status.code().unwrap()).collect();
    let said: Vec<_> = outcomes.iter().map(|o| String::from_utf8_lossy(&o.stderr).into_owned()).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?} {said:#?}");
    assert!(codes.iter().all(|code| matches!(code, 0 | 5)), "{codes:?} {said:#?}");
    let asides = beside(&target, "replaced");
    assert_eq!(asides.len(), 1);
    assert_eq!(std::fs::metadata(&asides[0]).unwrap().ino(), inode);
    let (_server, session) = world.recovered("target").await;
    assert_eq!(session.value("SELECT count(*) FROM t").await.unwrap(), "3");
}

/// A person looks at the plan, and while the prompt waits the cluster changes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_counts_for_what_was_shown() {
    let (world, target) = scene().await;
    let args = args(&target);
    let mut session = rexpect::session::spawn_command(on_tty(&world, &words(&args)), Some(60_000)).unwrap();
    session.exp_string("name: ").unwrap();
    std::fs::write(target.join("base/1/99999"), "").unwrap();
    let before = picture(&target);
    session.send_line("shop").unwrap();
    let screen = session.exp_eof().unwrap().replace("\r\n", " ");
    assert!(screen.contains("has changed since the plan was made"), "{screen}");
    assert!(picture(&target) == before && beside(&target, "replaced").is_empty());
}

/// A pid file names a process that is no server: the cluster does not live. One that may be a server does.
#[tokio::test(flavor = "multi_thread")]
async fn a_reused_pid_is_no_server() {
    let (world, target) = scene().await;
    let mut other = Command::new("sleep").arg("600").current_dir("/").spawn().unwrap();
    std::fs::write(target.join("postmaster.pid"), format!("{}\n{}\n1\n5432\n/nowhere\n", other.id(), target.display())).unwrap();
    let code = code_for(&world, &target);
    assert_eq!(with_code(&world, &target, &code).code, 0);
    let aside = &beside(&target, "replaced")[0];
    let kept = std::fs::read_to_string(aside.join("postmaster.pid")).unwrap();
    assert!(kept.starts_with(&other.id().to_string()), "the stale file is back where it was: {kept}");
    assert!(!aside.join("postmaster.pid.lastgood").exists());
    other.kill().unwrap();
    other.wait().unwrap();
    let mut inside = Command::new("sleep");
    let user = world.user().unwrap();
    std::os::unix::process::CommandExt::uid(&mut inside, user.uid);
    std::os::unix::process::CommandExt::gid(&mut inside, user.gid);
    let mut inside = inside.arg("600").current_dir(&target).spawn().unwrap();
    std::fs::write(target.join("postmaster.pid"), format!("{}\n", inside.id())).unwrap();
    let said = world.run(&words(&args(&target)));
    inside.kill().unwrap();
    inside.wait().unwrap();
    assert!(said.code == 5 && said.err.contains("living server"), "in doubt it lives: {}", said.all());
}

/// A server of another container: its processes cannot be seen, its socket answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_another_container_is_seen_by_its_socket() {
    let mut world = stopped("").await;
    world.start().await;
    let data = world.server.data().to_path_buf();
    let pid_file = data.join("postmaster.pid");
    let text = std::fs::read_to_string(&pid_file).unwrap();
    // As this host would see it: the pid means nothing here, and no process works in a directory of that name.
    let elsewhere = world.path("elsewhere");
    copy(&data, &elsewhere);
    let lock = world.server.sockets().join(".s.PGSQL.5432.lock");
    let pid = text.lines().next().unwrap();
    let foreign = "4194999";
    std::fs::write(elsewhere.join("postmaster.pid"), text.replacen(pid, foreign, 1)).unwrap();
    let kept = std::fs::read_to_string(&lock).unwrap();
    std::fs::write(&lock, kept.replacen(pid, foreign, 1)).unwrap();
    let said = world.run(&words(&args(&elsewhere)));
    assert!(said.code == 5 && said.err.contains("found by its socket"), "{}", said.all());
    // The socket is another server's by now.
    std::fs::write(&lock, kept).unwrap();
    let said = world.run(&words(&args(&elsewhere)));
    assert!(said.code == 5 && said.err.contains("nobody has confirmed"), "{}", said.all());
}

/// A server in a container: its directory has another name there, its pid is 1 there, and its socket lies where we cannot look.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_a_container_is_seen_by_where_it_works() {
    let (world, target) = scene().await;
    let user = world.user().unwrap();
    let inside = "/mnt/lastgood-container-test";
    std::fs::create_dir_all(inside).unwrap();
    let script = "mount --bind $1 $2; mount -t tmpfs none $3; chmod 777 $3; \
                  exec setpriv --reuid $4 --regid $5 --clear-groups $6 -D $2 -k $3 -h '' -c logging_collector=off";
    let sockets = world.path("inside-sockets");
    std::fs::create_dir(&sockets).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh"]);
    command.arg(&target).arg(inside).arg(&sockets).args([user.uid.to_string(), user.gid.to_string()]);
    command.arg("/usr/lib/postgresql/15/bin/postgres").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = command.spawn().unwrap();
    let began = lastgood::clock::monotonic();
    while std::fs::read_to_string(target.join("postmaster.pid")).is_ok_and(|text| text.lines().count() < 8)
        || !target.join("postmaster.pid").exists()
    {
        assert!(began.elapsed() < crate::support::world::PATIENCE && server.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pid = std::fs::read_to_string(target.join("postmaster.pid")).unwrap();
    let said = world.run(&words(&args(&target)));
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(pid.starts_with("1\n"), "it believes to be the first process: {pid}");
    assert!(said.code == 5 && said.err.contains("living server"), "{}", said.all());
}
