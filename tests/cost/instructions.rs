//! Instructions of a fixed piece of work, counted by callgrind: the same on a busy machine and on an idle one.

use std::process::Command;

use lastgood::aligned::Pool;
use lastgood::postgres::lsn::Lsn;
use lastgood::postgres::page;
use lastgood::postgres::wal::index::MappedFiles;
use lastgood::postgres::wal::index::fold::Fold;
use lastgood::repo::frame::{COMPRESSED_MAX_BYTES, Compressor, Decompressor, FRAME_BYTES};
use lastgood::repo::object::Sha;
use lastgood::repo::pack::{CHUNK_BYTES, PackBuilder};
use lastgood::repo::segment;

const ROUNDS: usize = 16;
/// Counted, in millions, with the toolchain of November 2026; the bound lies a quarter above. valgrind knows no SHA instructions, so
/// most of it is SHA-256 by hand.
const COUNTED: f64 = 353.0;

/// Words of which one in four is new: compresses about as tables do.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let mut words = Vec::with_capacity(count);
    while words.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words.extend_from_slice(&state.to_le_bytes());
        words.extend_from_slice(&[b' '; 24]);
    }
    words.truncate(count);
    words
}

/// The arithmetic of a snapshot, a restore and a push: run under callgrind by the test below.
#[test]
#[ignore = "the work that `of_a_fixed_piece_of_work` counts"]
fn work() {
    let raw = bytes(FRAME_BYTES);
    let pool = Pool::new(CHUNK_BYTES);
    let (mut compressor, mut decompressor) = (Compressor::new(1), Decompressor::default());
    let mut stored = vec![0; COMPRESSED_MAX_BYTES];
    let mut again = vec![0; FRAME_BYTES];
    let mut pack = PackBuilder::new("20261121T010000Z-ab12/d000001", None, &pool);
    for _ in 0..ROUNDS {
        assert!(raw.chunks_exact(page::PAGE_BYTES).all(|page| !page::checksum_holds(page, 1)));
        let length = compressor.compress_to(&raw, &mut stored);
        let frame = pack.add(&stored[..length], raw.len() as u32, Sha::of(&raw));
        decompressor.open(&frame, &stored[..length], None, &mut again).unwrap();
    }
    let mut fold = Fold::new(Lsn(0x0100_0000), 1 << 20, MappedFiles::new());
    let segment = bytes(1 << 20);
    segment::encode(&segment[..], 1, None, &[std::env::temp_dir()], &mut |bytes| fold.feed(bytes)).unwrap();
}

#[test]
fn of_a_fixed_piece_of_work() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("callgrind.out");
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "cost::instructions::work", "--ignored", "--test-threads=1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    let counts = std::fs::read_to_string(out).unwrap();
    let total = counts.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap_or_else(|| panic!("{said}"));
    let millions = total.trim().parse::<f64>().unwrap() / 1e6;
    println!("{millions:.1} million instructions");
    assert!(millions < COUNTED * 1.25, "{millions} million instructions");
    assert!(millions > COUNTED * 0.6, "{millions} million instructions: so much better that the bound should follow");
}
