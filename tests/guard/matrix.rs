//! The guard matrix: what stands there × its label × who asks × how it is confirmed, each with its expected end.
//!
//! Every case runs the real program on a directory of a real server. Every refusal must leave the directory as it was, to the byte and
//! the time of each file; every restore must leave what stood there beside it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use lastgood::owner::Ids;
use lastgood::postgres::scratch::{Scratch, Stop};

use super::{at_terminal, beside, copy, picture, relabel, stopped};
use crate::support::world::{World, programs};

/// What stands in the target.
#[derive(Debug, Clone, Copy, PartialEq)]
enum There {
    Absent,
    Empty,
    /// Files, but no cluster.
    Foreign,
    Crashed,
    /// Its pg_control is gone.
    Damaged,
    /// Restored by lastgood, never released.
    Copy,
    /// A cluster of a system that the repository does not know.
    Unknown,
    Living,
    /// Its pid file was removed.
    LivingUnseen,
}

/// Who asks, and how it is confirmed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    /// Cron, without a word.
    Silent,
    Yes,
    /// `echo shop | lastgood restore`
    Piped,
    /// `LASTGOOD_CONFIRM=… LASTGOOD_YES=1`
    Environment,
    WrongCode,
    /// The code of the plan for another target.
    OtherCode,
    Code,
    /// At a terminal.
    TypesName,
    TypesYes,
    TypesOtherName,
    TypesNothing,
    TypesCode,
}

use How::*;
use There::*;

/// `Ok` or the words of the refusal.
type End = Result<(), &'static str>;
const GOES: End = Ok(());
const UNCONFIRMED: End = Err("nobody has confirmed");
const WRONG: End = Err("no code of lastgood");
const OTHER: End = Err("belongs to another plan");
const NOT_NAME: End = Err("is not the name \"shop\"");
const LIVES: End = Err("never writes under a living server");
const NOT_EMPTY: End = Err("not empty");

/// Cases that hold for every label.
const ALWAYS: &[(There, How, End)] = &[
    (Absent, Silent, GOES),
    (Absent, Yes, GOES),
    (Empty, Silent, GOES),
    (Empty, Piped, GOES),
    (Foreign, Silent, NOT_EMPTY),
    (Foreign, Yes, NOT_EMPTY),
    (Foreign, TypesNothing, NOT_EMPTY),
    (Damaged, Silent, UNCONFIRMED),
    (Damaged, Yes, UNCONFIRMED),
    (Damaged, TypesCode, NOT_NAME),
    (Damaged, TypesName, GOES),
    (Damaged, Code, GOES),
];

/// What a cluster without a label needs: its code.
const PLAIN: &[(There, How, End)] = &[
    (Crashed, Silent, UNCONFIRMED),
    (Crashed, Yes, UNCONFIRMED),
    (Crashed, Piped, UNCONFIRMED),
    (Crashed, Environment, UNCONFIRMED),
    (Crashed, WrongCode, WRONG),
    (Crashed, OtherCode, OTHER),
    (Crashed, TypesName, WRONG),
    (Crashed, TypesYes, WRONG),
    (Crashed, TypesNothing, WRONG),
    (Crashed, TypesCode, GOES),
    (Crashed, Code, GOES),
    (Copy, Silent, UNCONFIRMED),
    (Copy, Piped, UNCONFIRMED),
    (Copy, Code, GOES),
    (Unknown, Silent, UNCONFIRMED),
    (Unknown, OtherCode, OTHER),
    (Unknown, Code, GOES),
];

/// What production needs: its name at a terminal, or the code.
const PRODUCTION: &[(There, How, End)] = &[
    (Crashed, Silent, UNCONFIRMED),
    (Crashed, Yes, UNCONFIRMED),
    (Crashed, Piped, UNCONFIRMED),
    (Crashed, Environment, UNCONFIRMED),
    (Crashed, WrongCode, WRONG),
    (Crashed, OtherCode, OTHER),
    (Crashed, TypesYes, NOT_NAME),
    (Crashed, TypesOtherName, NOT_NAME),
    (Crashed, TypesNothing, NOT_NAME),
    (Crashed, TypesCode, NOT_NAME),
    (Crashed, TypesName, GOES),
    (Crashed, Code, GOES),
    (Copy, Yes, UNCONFIRMED),
    (Copy, TypesYes, NOT_NAME),
    (Copy, TypesName, GOES),
];

/// Living servers, whatever the label.
const LIVING: &[(There, How, End)] = &[
    (Living, Silent, LIVES),
    (Living, Yes, LIVES),
    (Living, Code, LIVES),
    (Living, TypesNothing, LIVES),
    (LivingUnseen, Silent, LIVES),
    (LivingUnseen, Code, LIVES),
];

struct Matrix {
    world: World,
    number: usize,
}

impl Matrix {
    fn place(&mut self, there: There) -> PathBuf {
        self.number += 1;
        let path = self.world.path(&format!("target{}", self.number));
        let give = |path: &Path| {
            let Ids { uid, gid } = self.world.user().unwrap();
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
        };
        match there {
            Absent => {}
            Empty => {
                std::fs::create_dir(&path).unwrap();
                give(&path);
            }
            Foreign => {
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join("thesis.tex"), "x").unwrap();
                give(&path);
            }
            Crashed => copy(self.world.server.data(), &path),
            Damaged => {
                copy(self.world.server.data(), &path);
                std::fs::remove_file(path.join("global/pg_control")).unwrap();
            }
            Copy => {
                self.world.ok(&["restore", "--to", "latest", "--into", path.to_str().unwrap()]);
            }
            Unknown => {
                let server = Scratch::new(&programs(15), &path, &path.with_extension("sockets"), self.world.user()).unwrap();
                server.initdb(&[]).unwrap();
            }
            Living | LivingUnseen => unreachable!("has a test of its own"),
        }
        path
    }

    /// Runs one case and checks everything that must hold after it.
    fn case(&mut self, there: There, how: How, end: End) {
        let path = self.place(there);
        self.case_at(&path, there, how, end);
    }

    fn case_at(&self, path: &Path, there: There, how: How, end: End) {
        let world = &self.world;
        let into = path.to_str().unwrap();
        let args = ["restore", "--to", "latest", "--into", into];
        let before = picture(path);
        let code = |target: &str| world.planned(&["restore", "--to", target, "--into", into]).1;
        let with = |more: &[&str]| {
            let said = world.run(&[&args[..], more].concat());
            (said.code, said.all())
        };
        let snapshot =
            || world.ok(&["--json", "list"]).json()["histories"][0]["snapshots"][0]["id"].as_str().unwrap().to_string();
        let (exit, said) = match how {
            Silent => with(&[]),
            Yes => with(&["--yes"]),
            Piped => piped(world, &args),
            Environment => {
                let mut command = world.command(&args);
                command.envs([("LASTGOOD_CONFIRM", code("latest").as_str()), ("LASTGOOD_YES", "1"), ("CONFIRM", "shop")]);
                let said = crate::support::world::said(&mut command);
                (said.code, said.all())
            }
            WrongCode => with(&["--confirm", "yes"]),
            OtherCode => with(&["--confirm", &code(&snapshot())]),
            How::Code => with(&["--confirm", &code("latest")]),
            TypesName => at_terminal(world, &args, &["shop"]),
            TypesYes => at_terminal(world, &args, &["yes"]),
            TypesOtherName => at_terminal(world, &args, &["shop2"]),
            TypesNothing => match end {
                // Nothing is asked where nothing helps.
                Err(words) if words == "not empty" || words.contains("living") => at_terminal(world, &args, &[]),
                _ => at_terminal(world, &args, &[""]),
            },
            TypesCode => at_terminal(world, &args, &[&code("latest")]),
        };
        let about = format!("{there:?} {how:?}: {said}");
        let asides = beside(path, "replaced");
        match end {
            Ok(()) => {
                assert_eq!(exit, 0, "{about}");
                assert!(path.join("lastgood.restored").exists() && path.join("global/pg_control").exists(), "{about}");
                match there {
                    Absent | Empty => assert!(asides.is_empty(), "{about}"),
                    _ => {
                        let mut aside = picture(&asides[0]);
                        assert!(aside.remove(Path::new("lastgood.replaced")).is_some(), "{about}");
                        // Only the directory's own time tells of the note.
                        aside.insert(PathBuf::new(), before[Path::new("")].clone());
                        assert!(aside == before, "what stood there lies beside it, whole: {about}");
                    }
                }
            }
            Err(words) => {
                assert_eq!(exit, 5, "{about}");
                let flat = said.replace("\r\n", " ");
                assert!(flat.contains(words), "should say {words:?}: {about}");
                if there != Living && there != LivingUnseen {
                    assert!(picture(path) == before, "a refusal changes nothing: {about}");
                }
                assert!(asides.is_empty() && beside(path, "lastgood-new").is_empty(), "{about}");
            }
        }
    }
}

/// `echo shop | lastgood restore …`
fn piped(world: &World, args: &[&str]) -> (i32, String) {
    use std::io::Write;
    let mut child = world.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end before it reads; that is the point.
    let _ = child.stdin.take().unwrap().write_all(b"shop\nyes\n");
    let done = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code().unwrap(), format!("{}{}", text(&done.stdout), text(&done.stderr)))
}

async fn play(world: World, cases: &[&[(There, How, End)]]) {
    let mut matrix = Matrix { world, number: 0 };
    for (there, how, end) in cases.iter().copied().flatten() {
        matrix.case(*there, *how, *end);
    }
    // Each attempt and each refusal stands in the audit, and the chain holds.
    let audit = matrix.world.ok(&["--json", "audit"]);
    let count = |word: &str| audit.out.matches(&format!("\"outcome\":\"{word}\"")).count();
    let expected = |goes: bool| cases.iter().copied().flatten().filter(|(_, _, end)| end.is_ok() == goes).count();
    assert_eq!(count("refused"), expected(false), "{}", audit.out);
    assert!(count("attempted") >= expected(true) && count("done") == count("attempted"), "{}", audit.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_label() {
    play(stopped("").await, &[ALWAYS, PLAIN]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_label_that_is_not_production() {
    play(stopped("staging").await, &[PLAIN]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn production_by_configuration() {
    play(stopped("production").await, &[ALWAYS, PRODUCTION]).await;
}

/// The label stands in the repository; this host's configuration says nothing, or says something else.
#[tokio::test(flavor = "multi_thread")]
async fn production_by_the_repository() {
    let world = stopped("production").await;
    world.write_config(None, "");
    play(world, &[PRODUCTION]).await;
    let world = stopped("production").await;
    relabel(&world, "staging");
    play(world, &[&PRODUCTION[..4]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn living_servers() {
    for label in ["", "production"] {
        let mut world = stopped(label).await;
        world.start().await;
        let matrix = Matrix { world, number: 0 };
        let data = matrix.world.server.data().to_path_buf();
        for (there, how, end) in LIVING {
            if *there == LivingUnseen {
                std::fs::rename(data.join("postmaster.pid"), data.join("hidden.pid")).unwrap();
            }
            matrix.case_at(&data, *there, *how, *end);
            if *there == LivingUnseen {
                std::fs::rename(data.join("hidden.pid"), data.join("postmaster.pid")).unwrap();
            }
        }
        assert_eq!(matrix.world.value("SELECT count(*) FROM t").await, "3", "it never noticed");
        let mut world = matrix.world;
        world.server.stop(Stop::Fast);
    }
}

/// How many situations these tests play; fewer would be a hole in the matrix.
#[test]
fn there_are_at_least_sixty_situations() {
    let count = 2 * ALWAYS.len() + 2 * PLAIN.len() + 2 * PRODUCTION.len() + 4 + 2 * LIVING.len();
    assert!(count >= 60, "{count}");
}
