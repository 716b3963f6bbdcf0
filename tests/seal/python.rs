//! Another implementation, in another language, from `docs/format.md`: opens what the program sealed.

use std::process::Command;

use super::*;
use crate::support::garage;

/// What `unseal.py` prints.
pub fn unseal(args: &[&str]) -> Vec<u8> {
    let python = garage::tools().join("cryptography-50.0.2/bin/python");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/unseal.py");
    let output = Command::new(&python).arg(script).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}; tests/tools/install test", python.display()));
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn unpacked(zstd: &[u8]) -> Vec<u8> {
    zstd::stream::decode_all(zstd).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn python_opens_a_real_repository() {
    let world = encrypted(with_passphrase).await;
    let (first, _) = filled(&world).await;
    world.ok(&["key", "rotate"]);
    let reader = world.path("reader").display().to_string();
    world.ok(&["key", "export", "--to", &reader]);
    let path = |key: &str| world.repository().join(key).display().to_string();
    // The passphrase alone leads to the same keys as the exported file.
    let passphrase = world.path("passphrase").display().to_string();
    let roots = unseal(&["root", &reader]);
    assert_eq!(unseal(&["keyring", &passphrase, &path("keys/000002-000001")]), roots);
    assert_eq!(String::from_utf8_lossy(&roots).lines().count(), 2);
    // A manifest, a file list, a pack of data, a segment, a history of backups.
    let content = |key: &str| unpacked(&unseal(&["content", &reader, key, &path(key)]));
    let manifest: serde_json::Value = serde_json::from_slice(&content(&format!("clusters/shop/snapshots/{first}"))).unwrap();
    assert_eq!(manifest["id"], first.as_str());
    let list = content(&format!("clusters/shop/files/{first}/000001"));
    assert!(contains(&list, "base/") && contains(&list, "PG_VERSION"));
    let data = content(&format!("clusters/shop/packs/{first}/d000001"));
    assert!(contains(&data, MARKER));
    let wal = world.objects("clusters/shop/wal");
    for key in wal.iter().filter(|key| key.contains("/segments/")) {
        assert_eq!(content(key).len(), 16 << 20);
        let trailer: serde_json::Value = serde_json::from_slice(&unseal(&["trailer", &reader, key, &path(key)])).unwrap();
        assert_eq!(trailer["raw_bytes"], 16 << 20);
    }
    let backup = wal.iter().find(|key| key.contains("/backup/")).unwrap();
    assert!(contains(&content(backup), "START WAL LOCATION"));
}
