//! A target in the middle of a transaction that holds locks, and settings with which no server would start.

use super::{fails, filled, passes};

/// Replay pauses with the lock of a DROP held for ever: nothing that asks waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_transaction_at_the_target_has_locked_hangs_nothing() {
    let question = "[[drill.question]]\nname = \"locked\"\nsql = \"SELECT count(*) FROM orders\"\nmin = 30000\n";
    let world = filled(15, question).await;
    world.sql("BEGIN").await;
    let xid = world.value("SELECT pg_current_xact_id()").await;
    world.sql("DROP TABLE orders").await;
    world.sql("COMMIT").await;
    world.archive().await;
    let report = passes(&world, &["--to", &format!("xid:{xid}"), "--exclusive", "--dump"]);
    let findings = report["findings"].as_array().unwrap();
    let about =
        |subject: &str| findings.iter().filter(|f| f["subject"] == subject).map(|f| f["what"].to_string()).collect::<String>();
    assert!(about("catalogue").contains("locked by the transaction at the target"), "{report:#}");
    assert!(about("question").contains("30000"), "asked again when recovery had ended: {report:#}");
    assert!(report["checked"]["dumped_bytes"].as_u64().unwrap() > 1_000_000, "{report:#}");
}

/// A server that is started with the settings of the original needs what they name.
#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_original_that_name_what_is_not_there_fail() {
    let world = filled(15, "").await;
    let conf = world.server.data().join("postgresql.conf");
    let sound = std::fs::read_to_string(&conf).unwrap();
    for (line, words) in [
        ("include 'not-there.conf'", "not-there.conf"),
        ("shared_preload_libraries = 'not_there'", "\"not_there\", which is not installed"),
        ("hba_file = '/not/there'", "hba_file is /not/there"),
    ] {
        std::fs::write(&conf, format!("{sound}\n{line}\n")).unwrap();
        world.backup(&[]);
        fails(&world, &[], &["settings: ", words]);
    }
    std::fs::write(&conf, sound).unwrap();
    world.backup(&[]);
    let report = passes(&world, &[]);
    assert!(report["findings"].to_string().contains("the settings of the original can be read"), "{report:#}");
}
