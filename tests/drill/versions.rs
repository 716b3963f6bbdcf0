//! A drill of every supported major version.

use super::{QUESTIONS, filled, passes};

async fn drill(major: u32) {
    let world = filled(major, QUESTIONS).await;
    let report = passes(&world, &[]);
    let version = report["server_version"].as_str().unwrap();
    assert!(version.starts_with(&major.to_string()), "{version}");
    let checked = &report["checked"];
    assert!(checked["relations"].as_u64().unwrap() > 100 && checked["relations"] == checked["relations_there"], "{checked}");
}

macro_rules! versions {
    ($($name:ident $major:literal),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            drill($major).await;
        }
    )*};
}

versions!(postgresql_13 13, postgresql_14 14, postgresql_15 15, postgresql_16 16, postgresql_17 17, postgresql_18 18);
